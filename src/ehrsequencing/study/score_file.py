"""``ehrseq evaluate``: anybody's predictions file on the rows of a cohort's split."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from ehrsequencing.cohort import Cohort
from ehrsequencing.cohort.attrition import suppress
from ehrsequencing.config import TRAIN
from ehrsequencing.errors import EhrError, Exit
from ehrsequencing.evaluation.calibration import CalibrationSummary, calibration_at_horizons
from ehrsequencing.evaluation.compare import INTERVAL_MEANING, Evaluation, Interval
from ehrsequencing.predictions import Predictions
from ehrsequencing.study.data import training_grid
from ehrsequencing.timegrid import TimeGrid, truncate

KEYS = ["subject_id", "prediction_time"]


@dataclass(frozen=True)
class FileScores:
    """Figures of a predictions file on the rows of a split: ``n`` of its ``of`` rows have a prediction.

    Attributes:
        n, of: rows, a patient at a prediction_time; ``patients`` are behind the ``n``.
        events: of each cause among them, by name, up to the horizon.
        figures: each with its interval.
        calibration: by horizon in days.
        strangers: predictions for subjects who are not in the cohort; left out.
    """

    model: str
    split: str
    n: int
    of: int
    tau: float
    figures: Mapping[str, Interval]
    patients: int = 0
    events: Mapping[str, int] = field(default_factory=dict)
    calibration: Mapping[float, CalibrationSummary] = field(default_factory=dict)
    strangers: int = 0

    def text(self) -> str:
        """For people."""
        what = "patients" if self.n == self.patients else f"rows ({self.patients:,} patients)"
        lines = [f"{self.n:,} of {self.of:,} {what} of '{self.split}', horizon {self.tau:g} days"]
        if self.n < self.of:
            lines.append("warning: patients without a prediction were left out; that can flatter a model")
        if self.strangers:
            lines.append(f"{suppress([self.strangers])[0]} predictions for patients outside the cohort were left out")
        if len(self.events) > 1:
            lines.append("competing events are no censoring: C, Brier and calibration are those of the outcome")
        for name, interval in self.figures.items():
            span = "" if interval.low is None else f"  (95% {interval.low:.4f} to {interval.high:.4f})"
            lines.append(f"  {name:<16}{interval.value:.4f}{span}")
        return "\n".join([*lines, *(_said(*each) for each in self.calibration.items()), INTERVAL_MEANING])

    def to_json(self) -> dict[str, Any]:
        """For programs."""
        facts = {name: getattr(self, name) for name in ("model", "split", "n", "of", "patients", "tau", "strangers")}
        return {
            **facts,
            "events": dict(self.events),
            "metrics": {name: interval.to_json() for name, interval in self.figures.items()},
            "calibration": {f"{days:.10g}": found.to_json() for days, found in self.calibration.items()},
            "interval": INTERVAL_MEANING,
        }


def _said(days: float, found: CalibrationSummary) -> str:
    ratio = f"{found.observed / found.expected:.3f}" if found.expected > 0 else "undefined"
    slope = f"{found.slope:.3f}" if math.isfinite(found.slope) else "none (constant or separating predictions)"
    return (
        f"  calibration at {days:g} days: slope {slope}, observed {found.observed:.4f}, expected {found.expected:.4f}, "
        f"observed/expected {ratio}"
    )


def evaluate_file(
    predictions: Path, cohort: Path, *, horizons: tuple[float, ...] = (), bootstrap: int = 1_000, split: str
) -> FileScores:
    """Score the rows that predictions and cohort share, a row being a subject and a prediction_time.

    Raises:
        EhrError: a horizon past the cohort's (exit 2); predictions for another cohort, or none for the split (13); or
            made at other times than the cohort's (15).
    """
    known, given = Cohort.read(cohort), Predictions.read(predictions)
    tau = _tau(known, Path(cohort) / "grid.json")
    _check_horizons(horizons, tau)
    _refuse_foreign(given, known, predictions)
    judged = known.table.filter(pl.col("split") == split)
    shared = _shared_rows(judged, given, predictions)
    if shared.height == 0:
        raise EhrError(
            f"none of the {len(given):,} predictions is for a patient of the cohort's '{split}' split",
            str(predictions),
            f"predict these patients, or choose another split ({', '.join(known.table['split'].unique().sort())})",
            code=Exit.BUNDLE,
        )
    strangers = int((~np.isin(given.subject_id, known.table["subject_id"].to_numpy())).sum())
    facts = FileScores(given.model, split, shared.height, judged.height, tau, {}, strangers=strangers)
    return _score(known, shared, given.take(shared["at"].to_numpy()), facts, horizons, bootstrap)


def _score(
    known: Cohort,
    shared: pl.DataFrame,
    rows: Predictions,
    facts: FileScores,
    horizons: Sequence[float],
    bootstrap: int,
) -> FileScores:
    train = known.table.filter(pl.col("split") == TRAIN)
    learned = train["duration"].to_numpy(), train["event"].to_numpy()
    duration, event = truncate(shared["duration"].to_numpy(), shared["event"].to_numpy(), facts.tau)
    evaluation = Evaluation.of(
        duration,
        event,
        train_duration=learned[0],
        train_event=learned[1],
        tau=facts.tau,
        horizons=tuple(horizons) or (facts.tau,),
        n_boot=bootstrap,
        subject_id=shared["subject_id"].to_numpy(),
    )
    scores = evaluation.score(rows)
    calibration = calibration_at_horizons(scores, rows)
    events = {cause: int((event == number).sum()) for number, cause in enumerate(known.task.causes, start=1)}
    patients = shared["subject_id"].n_unique()
    return replace(facts, figures=scores.intervals(), patients=patients, events=events, calibration=calibration)


def _tau(cohort: Cohort, grid: Path) -> float:
    """The horizon the cohort was written with; worked out again where only the cohort itself is there."""
    if not grid.is_file():
        return training_grid(cohort).tau
    try:
        return TimeGrid.from_json(json.loads(grid.read_text(encoding="utf-8"))).tau
    except (ValueError, TypeError, KeyError) as error:
        raise EhrError(f"not a time grid: {error}", str(grid), "make the cohort again", code=Exit.COHORT) from None


def _check_horizons(horizons: Sequence[float], tau: float) -> None:
    for horizon in horizons:
        if not 0 < horizon <= tau:
            raise EhrError(
                f"the horizon of {horizon:g} days is not within the cohort's, 0 to {tau:g} days",
                "--horizon",
                f"give days above 0 and at most {tau:g}",
                code=Exit.USAGE,
            )


def _refuse_foreign(given: Predictions, known: Cohort, where: Path) -> None:
    if given.cohort_fingerprint not in ("", known.fingerprint):
        raise EhrError(
            "the predictions were made for another cohort (its fingerprint differs)",
            str(where),
            "evaluate them on the cohort they were made for",
            code=Exit.BUNDLE,
        )


def _shared_rows(judged: pl.DataFrame, given: Predictions, where: Path) -> pl.DataFrame:
    """The judged rows that have a prediction, ``at`` its place; a patient predicted only at other times is refused."""
    columns = {"subject_id": given.subject_id, "prediction_time": given.prediction_time, "at": np.arange(len(given))}
    rows = pl.DataFrame(columns, schema_overrides={"prediction_time": pl.Datetime("us")})
    shared = judged.join(rows, on=KEYS, how="inner").sort(KEYS)
    predicted = judged.join(rows, on="subject_id", how="semi")
    elsewhen = predicted.join(shared, on="subject_id", how="anti").height
    if elsewhen:
        raise EhrError(
            f"{elsewhen:,} predictions were made at another prediction_time than the cohort's",
            str(where),
            "predict at the cohort's own prediction_time",
            code=Exit.LEAKAGE,
        )
    return shared
