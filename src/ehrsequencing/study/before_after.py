"""Figures of a bundle on other patients, before and after a cross-fitted recalibration, with intervals."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from jaxtyping import Float64, Int64

from ehrsequencing.config import MIN_TRAIN_EVENTS, MIN_TUNING_EVENTS
from ehrsequencing.evaluation.calibration import Recalibration, calibration_summary
from ehrsequencing.evaluation.compare import (
    RANKING,
    Evaluation,
    Interval,
    Scores,
    base_name,
    outcome_free_at,
    resample_counts,
)
from ehrsequencing.events import rank_hash
from ehrsequencing.predictions import Predictions
from ehrsequencing.progress import Progress, Tick
from ehrsequencing.timegrid import TimeGrid

CALIBRATION_RESAMPLES = 200
"""Resamples for the intervals of calibration figures: each is a fit, not a sum."""
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
        first, second, ranked = (
            everybody.score(before),
            everybody.score(after),
            within.score(after, only=("concordance", "antolini", "auc")),
        )
        progress(Tick("evaluate", 3, 4, "calibration"))
        figures = [
            calibration_figures(each, everybody, subjects, min(n_boot, CALIBRATION_RESAMPLES))
            for each in (before, after)
        ]
        return cls(
            len(before),
            int((everybody.event == 1).sum()),
            tau,
            horizons,
            {"metrics": _metrics(first), "calibration": figures[0]},
            {"metrics": _metrics(second) | _ranks(ranked), "calibration": figures[1], "change": _change(first, second)},
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


def _ranks(scores: Scores) -> dict[str, Any]:
    return {name: value for name, value in _metrics(scores).items() if base_name(name) in RANKING}


def _change(before: Scores, after: Scores) -> dict[str, Any]:
    """After − before of every error, paired."""
    return {
        name: Interval.of(after.figures[name] - figures).to_json()
        for name, figures in before.figures.items()
        if base_name(name) not in RANKING
    }


def calibration_figures(
    predictions: Predictions, evaluation: Evaluation, subject_id: Int64[np.ndarray, " n"], n_boot: int
) -> dict[str, dict[str, Any]]:
    """``slope, intercept, observed, expected, ratio`` (observed / expected) by horizon, with bootstrap intervals.

    A figure that does not exist (no outcome by then) has the value None.
    """
    counts = resample_counts(evaluation.duration.size, n_boot, evaluation.seed, subject_id)
    return {
        f"{horizon:.10g}": _calibration_at(predictions, evaluation, float(horizon), counts)
        for horizon in evaluation.horizons
    }


def _calibration_at(
    predictions: Predictions, evaluation: Evaluation, horizon: float, counts: np.ndarray
) -> dict[str, Any]:
    survival = outcome_free_at(predictions, np.array([horizon]))[:, 0]  # (n,)
    figures = np.stack([_summarise(evaluation, survival, horizon, drawn) for drawn in counts])  # (1 + B, 5)
    names = ("slope", "intercept", "observed", "expected", "ratio")
    return {name: _plain(Interval.of(column)) for name, column in zip(names, figures.T, strict=True)}


def _summarise(
    evaluation: Evaluation, survival: Float64[np.ndarray, " n"], horizon: float, counts: np.ndarray
) -> Float64[np.ndarray, " five"]:
    rows = np.repeat(np.arange(survival.size), counts)
    found = calibration_summary(
        evaluation.duration[rows], evaluation.event[rows], survival[rows], horizon, evaluation.censoring
    )
    ratio = found.observed / found.expected if found.expected > 0 else np.nan
    return np.array([found.slope, found.intercept, found.observed, found.expected, ratio])


def _plain(interval: Interval) -> dict[str, Any]:
    """JSON has no NaN: a figure that does not exist is None."""
    data = interval.to_json()
    return {key: None if isinstance(value, float) and not np.isfinite(value) else value for key, value in data.items()}
