"""Figures of a bundle on other patients, before and after a cross-fitted recalibration, with intervals."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from jaxtyping import Int64

from ehrsequencing.config import MIN_TRAIN_EVENTS, MIN_TUNING_EVENTS
from ehrsequencing.evaluation.agreement import AT_A_TIME
from ehrsequencing.evaluation.calibration import calibration_at_horizons
from ehrsequencing.evaluation.compare import FAMILIES, Evaluation, Interval, Scores, base_name
from ehrsequencing.evaluation.recalibration import Recalibration
from ehrsequencing.events import rank_hash
from ehrsequencing.predictions import Predictions
from ehrsequencing.progress import Progress, Tick
from ehrsequencing.timegrid import TimeGrid

ERRORS = ("errors", "calibration", "whole_curve")
"""Families of figures that do not rank patients."""
NO_ERRORS = ("slope", "intercept", "oe", "scaled_ibs", "scaled_brier")
"""Figures of these families that are not better the lower they are."""
HOW = (
    "Cross-fitted: patients are divided into two halves by a hash of their id; each half is recalibrated (one slope, "
    "an intercept a time bin) by a fit on the other half, so that nobody's own outcome adjusted their prediction."
)
C_AFTER = "After recalibration C compares patients of one half only: each half was adjusted by a fit of its own."


def halves(subject_id: Int64[np.ndarray, " n"], seed: int) -> Int64[np.ndarray, " n"]:
    """0 or 1 a row, from the hash of its patient's id."""
    return (rank_hash(subject_id, seed, "validation") < 0.5).astype(np.int64)


def cross_fit(
    logits: np.ndarray, rows: pl.DataFrame, grid: TimeGrid, seed: int
) -> tuple[list[dict[str, Any]], np.ndarray]:
    """Each half recalibrated by a fit on the other: what was fitted, and the adjusted logits in the rows' order."""
    half = halves(rows["subject_id"].to_numpy(), seed)
    duration, event = rows["duration"].to_numpy(), rows["event"].to_numpy()
    adjusted, fits = logits.astype(np.float64), []
    for k in (0, 1):
        learn, judge = np.flatnonzero(half != k), np.flatnonzero(half == k)
        fitted = Recalibration.fit(logits[learn], duration[learn], event[learn], grid)
        adjusted[judge] = fitted.apply(logits[judge])
        fits.append({"half": k, "note": fitted.note.replace("tuning ", ""), **_without_note(fitted)})
    return fits, adjusted


def _without_note(fitted: Recalibration) -> dict[str, Any]:
    return {key: value for key, value in fitted.to_json().items() if key != "note"}


@dataclass(frozen=True, eq=False)
class BeforeAfter:
    """Figures before and after recalibration, on the same patients and resamples."""

    n: int
    events: int
    tau: float
    horizons: tuple[float, ...]
    before: dict[str, Any]
    after: dict[str, Any]

    @classmethod
    def of(
        cls,
        before: Predictions,
        after: Predictions,
        rows: pl.DataFrame,
        tau: float,
        horizons: tuple[float, ...],
        n_boot: int,
        seed: int,
        progress: Progress,
    ) -> BeforeAfter:
        duration, event = rows["duration"].to_numpy(), rows["event"].to_numpy()
        subjects = rows["subject_id"].to_numpy()

        def evaluation(stratum: Int64[np.ndarray, " n"] | None) -> Evaluation:
            return Evaluation.of(
                duration, event, train_duration=duration, train_event=event, tau=tau, horizons=horizons,
                n_boot=n_boot, seed=seed, subject_id=subjects, stratum=stratum,
            )  # fmt: skip

        everybody, within = evaluation(None), evaluation(halves(subjects, seed))
        first, second = everybody.score(before), everybody.score(after, only=ERRORS)
        ranked = within.score(after, only=[name for name in FAMILIES if name not in ERRORS])
        progress(Tick("evaluate", 3, 4, "calibration"))
        return cls(
            len(before),
            int((everybody.event == 1).sum()),
            tau,
            horizons,
            _figures(first, before),
            {**_figures(second, after, _metrics(ranked)), "change": _change(first, second)},
        )

    def to_json(self) -> dict[str, Any]:
        return {
            "n": self.n,
            "events": self.events,
            "tau": self.tau,
            "horizons": list(self.horizons),
            "warnings": self.warnings(),
            "before": self.before,
            "after": self.after,
        }

    def warnings(self) -> list[str]:
        """What the number of outcomes does not allow."""
        found = []
        if self.events < MIN_TRAIN_EVENTS:
            found.append(f"under {MIN_TRAIN_EVENTS} outcomes: a validation needs 100 and better 200 to say much")
        if self.events < 2 * MIN_TUNING_EVENTS:
            found.append(f"a half with under {MIN_TUNING_EVENTS} outcomes cannot be used to recalibrate the other")
        return found


def _metrics(scores: Scores) -> dict[str, Any]:
    return {name: interval.to_json() for name, interval in scores.intervals().items()}


def _figures(scores: Scores, predictions: Predictions, ranks: dict[str, Any] | None = None) -> dict[str, Any]:
    """``metrics`` of the whole, and ``calibration`` by horizon."""
    calibration = calibration_at_horizons(scores, predictions)
    metrics = {name: value for name, value in _metrics(scores).items() if base_name(name) not in AT_A_TIME}
    return {
        "metrics": metrics | (ranks or {}),
        "calibration": {f"{horizon:.10g}": found.to_json() for horizon, found in calibration.items()},
        "checks": dict(scores.checks),
    }


def _change(before: Scores, after: Scores) -> dict[str, Any]:
    """After − before of every error, paired."""
    return {
        name: Interval.of(figures - before.figures[name]).to_json()
        for name, figures in after.figures.items()
        if name in before.figures and base_name(name) not in NO_ERRORS
    }
