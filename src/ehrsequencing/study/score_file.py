"""`ehrseq evaluate`: predictions from any source, scored on a cohort, set against others, and reported."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from ehrsequencing.cohort import Cohort
from ehrsequencing.cohort.attrition import cell, suppress
from ehrsequencing.cohort.words import in_days
from ehrsequencing.config import MIN_CELL, TRAIN
from ehrsequencing.errors import EhrError, Exit
from ehrsequencing.evaluation.calibration import CalibrationSummary, calibration_at_horizons
from ehrsequencing.evaluation.compare import INTERVAL_MEANING, Interval, Scores
from ehrsequencing.evaluation.resampling import MIN_RESAMPLES
from ehrsequencing.files import refuse_around, refuse_unwritable, staged, write_json
from ehrsequencing.predictions import Predictions
from ehrsequencing.report import write_report
from ehrsequencing.report.measures import metric_name
from ehrsequencing.report.suppression import events_cell
from ehrsequencing.study.cohorts import training_grid
from ehrsequencing.study.document import (
    COMPARISON,
    PREDICTIONS,
    Judged,
    Model,
    differences,
    document,
    too_few,
    write_predictions,
)
from ehrsequencing.timegrid import TimeGrid

KEYS = ["subject_id", "prediction_time"]
MARKER = "evaluation.json"
"""What tells the folder of an evaluation from a study's, which must never be replaced by one."""
ANYBODY = "a predictions file"
TRAINED_ON = "these patients are the training split: a model that learned from them is flattered"
NO_INTERVALS = f"No intervals: under {MIN_RESAMPLES} resamples were drawn."
FIXED = "The censoring distribution is that of the cohort's training split."


@dataclass(frozen=True)
class FileScores:
    """Figures of a predictions file on the rows of a split: ``n`` of its ``of`` rows have a prediction.

    Attributes:
        n, of: rows, a patient at a prediction_time; ``patients`` are behind the ``n``.
        events: of each cause among them, by name, up to the horizon.
        figures: each with its interval.
        calibration: by horizon in days.
        strangers: predictions for subjects who are not in the cohort; left out.
        not_computed: metric → why the file does not allow it.
        differences: the file minus each other one, by metric, as in comparison.json.
        others: figures of the other files, by model.
        report: where the report was left.
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
    not_computed: Mapping[str, str] = field(default_factory=dict)
    differences: Sequence[Mapping[str, Any]] = ()
    others: Mapping[str, Mapping[str, Interval]] = field(default_factory=dict)
    report: Path | None = None

    def text(self) -> str:
        """For people."""
        what = "patients" if self.n == self.patients else f"rows ({cell(self.patients)} patients)"
        lines = [f"{share_cell(self.n, self.of)} {what} of '{self.split}', horizon {self.tau:g} days"]
        if self.n < self.of:
            lines.append("warning: patients without a prediction were left out; that can flatter a model")
        if self.strangers:
            lines.append(f"{suppress([self.strangers])[0]} predictions for patients outside the cohort were left out")
        if len(self.events) > 1:
            lines.append("competing events are no censoring: C, Brier and calibration are those of the outcome")
        if self.split == TRAIN:
            lines.append(f"warning: {TRAINED_ON}")
        lines += _figure_lines(self.figures)
        lines += [f"  {metric_name(name)}: not computed, {why}" for name, why in self.not_computed.items()]
        lines += [_said(*each) for each in self.calibration.items()]
        lines += _difference_lines(self.differences)
        lines += [INTERVAL_MEANING] if any(each.low is not None for each in self.figures.values()) else [NO_INTERVALS]
        return "\n".join(lines if self.report is None else [*lines, f"\nreport: {self.report}"])

    def to_json(self) -> dict[str, Any]:
        """For programs."""
        facts = {name: getattr(self, name) for name in ("model", "split", "n", "of", "patients", "tau", "strangers")}
        return {
            **facts,
            "events": dict(self.events),
            "metrics": _plain_figures(self.figures),
            "calibration": {f"{days:.10g}": found.to_json() for days, found in self.calibration.items()},
            "not_computed": dict(self.not_computed),
            "differences": [dict(each) for each in self.differences],
            "others": {model: _plain_figures(figures) for model, figures in self.others.items()},
            "interval": INTERVAL_MEANING,
            "report": None if self.report is None else str(self.report),
        }


def share_cell(n: int, of: int) -> str:
    """So many of how many, also where those left out are a small cell.

    >>> share_cell(200, 200), share_cell(219, 222), share_cell(8, 222), share_cell(100, 222)
    ('200 of 200', 'over 212 of 222', '<10 of 222', '100 of 222')
    """
    return f"{events_cell(of, n)} of {of:,}"


def _plain_figures(figures: Mapping[str, Interval]) -> dict[str, Any]:
    return {name: interval.to_json() for name, interval in figures.items()}


def _figure_lines(figures: Mapping[str, Interval]) -> Iterator[str]:
    """The figures up to τ, then those of each horizon."""
    for name, interval in sorted(figures.items(), key=lambda item: float(item[0].partition("@")[2] or 0)):
        span = "" if interval.low is None else f"  (95% {interval.low:.4f} to {interval.high:.4f})"
        yield f"  {metric_name(name):<42}{interval.value:>9.4f}{span}"


def _difference_lines(found: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    for each in found:
        span = "" if each["low"] is None else f"  (95% {each['low']:+.4f} to {each['high']:+.4f})"
        word = f"  {each['word']}" if each.get("word") else ""
        yield f"  {metric_name(each['metric'])}: {each['model']} − {each['against']} {each['value']:+.4f}{span}{word}"


def _said(days: float, found: CalibrationSummary) -> str:
    return f"  by {in_days(days)}: observed risk {found.observed:.4f}, expected {found.expected:.4f}"


def evaluate_file(
    predictions: Path,
    cohort: Path,
    *,
    against: Sequence[Path] = (),
    report: Path | None = None,
    horizons: tuple[float, ...] = (),
    bootstrap: int = 1_000,
    split: str,
) -> FileScores:
    """Score the rows that all files and the cohort share, a row being a subject and a prediction_time.

    Args:
        against: other models' predictions, to be compared with on the same rows.
        report: a folder for report.html with its numbers (comparison.json) and what they were made of.

    Raises:
        EhrError: a horizon past the cohort's (exit 2); predictions for another cohort, or none for the split (13); or
            made at other times than the cohort's (15); a report that cannot be written (14).
    """
    known, files = Cohort.read(cohort), [predictions, *against]
    if report is not None:
        refuse_around(Path(report), (Path(cohort), *map(Path, files)))
        refuse_unwritable(Path(report), MARKER)
    tau = _tau(known, Path(cohort) / "grid.json")
    _check_horizons(horizons, tau)
    given = [_of_outcome(each, known) for each in _named([Predictions.read(file) for file in files], files)]
    for each, file in zip(given, files, strict=True):
        _refuse_foreign(each, known, file)
    judged, train = (
        known.table.filter(pl.col("split") == split).sort(KEYS),
        known.table.filter(pl.col("split") == TRAIN),
    )
    if train.is_empty():
        what = "the cohort has no training split: who is followed how long is learned from it"
        raise EhrError(what, str(cohort), "evaluate on a cohort with a training split", code=Exit.COHORT)
    rows = judged
    for each, file in zip(given, files, strict=True):
        rows = _shared_rows(rows, each, file, split, known)
    if rows["subject_id"].n_unique() < MIN_CELL:
        what = f"under {MIN_CELL} patients have a prediction: nothing can be said of so few"
        raise EhrError(what, str(predictions), "predict more of the split's patients", code=Exit.COHORT)
    models = [_model(each, rows, first=number == 0) for number, each in enumerate(given)]
    scene = Judged(known, rows, train, tau, tuple(horizons) or (tau,), n_boot=bootstrap)
    scores = {model.name: scene.evaluation.score(list(model.predictions)) for model in models}
    pairs = [(models[0].name, other.name) for other in models[1:]]
    found = _found(scene, models, scores, differences(pairs, scores), split, judged.height)
    strangers = int((~np.isin(given[0].subject_id, known.table["subject_id"].to_numpy())).sum())
    found = replace(found, strangers=strangers)
    return found if report is None else _reported(found, scene, models, scores, Path(report))


def _named(given: Sequence[Predictions], files: Sequence[Path]) -> list[Predictions]:
    """Each under a name of its own: the model's, or where two files give the same one, the file's."""
    names = [each.model for each in given]
    told = [name if names.count(name) == 1 else file.stem for name, file in zip(names, files, strict=True)]
    told = [name if told.count(name) == 1 else f"{name}-{k}" for k, name in enumerate(told, start=1)]
    return [replace(each, model=name) for each, name in zip(given, told, strict=True)]


def _of_outcome(given: Predictions, known: Cohort) -> Predictions:
    """The predictions without curves that are none of the outcome: survival alone, where events compete."""
    if given.cif or len(known.task.causes) == 1:
        return given
    return replace(given, horizon_days=np.zeros(0), survival=np.zeros((len(given), 0)))


def _model(given: Predictions, rows: pl.DataFrame, *, first: bool) -> Model:
    at = rows.select(KEYS).join(_places(given), on=KEYS, how="left", maintain_order="left")["at"].to_numpy()
    return Model(given.model, "predictions" if first else "baseline", ANYBODY, (given.take(at),))


def _found(
    scene: Judged,
    models: Sequence[Model],
    scores: Mapping[str, Scores],
    pairs: Sequence[Mapping[str, Any]],
    split: str,
    of: int,
) -> FileScores:
    own = scores[models[0].name]
    figures = own.intervals()
    events = {cause: scene.with_event(k) for k, cause in enumerate(scene.cohort.task.causes, start=1)}
    return FileScores(
        models[0].name,
        split,
        scene.rows.height,
        of,
        scene.tau,
        figures,
        patients=scene.patients,
        events=events,
        calibration=calibration_at_horizons(own, models[0].predictions),
        not_computed=own.not_computed,
        differences=pairs,
        others={model.name: scores[model.name].intervals() for model in models[1:]},
    )


def _reported(
    found: FileScores, scene: Judged, models: Sequence[Model], scores: Mapping[str, Scores], out: Path
) -> FileScores:
    """The folder with the report, its numbers, the cohort's judged rows and the predictions it was made of."""
    content = {
        "study": found.model,
        **document(scene, models, scores),
        "split": found.split,
        "judged": found.model,
        "interval": f"{INTERVAL_MEANING} {FIXED}" if scene.n_boot >= MIN_RESAMPLES else NO_INTERVALS,
        "warnings": [*([TRAINED_ON] if found.split == TRAIN else []), *too_few(scene.events)],
        "differences": list(found.differences),
    }
    with staged(out, MARKER) as draft:
        write_json(draft / MARKER, {"model": found.model, "split": found.split})
        write_predictions(models, draft / PREDICTIONS)
        scene.cohort.write(draft / "cohort")
        write_json(draft / COMPARISON, content)
        write_report(draft)
    return replace(found, report=out / "report.html")


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


def _places(given: Predictions) -> pl.DataFrame:
    """Where each subject and prediction_time stands in a file."""
    columns = {"subject_id": given.subject_id, "prediction_time": given.prediction_time, "at": np.arange(len(given))}
    return pl.DataFrame(columns, schema_overrides={"prediction_time": pl.Datetime("us")})


def _shared_rows(judged: pl.DataFrame, given: Predictions, where: Path, split: str, known: Cohort) -> pl.DataFrame:
    """The judged rows that have a prediction; none at all, or a patient predicted only at other times, is refused."""
    rows = _places(given)
    shared = judged.join(rows, on=KEYS, how="semi", maintain_order="left")
    elsewhen = judged.join(rows, on="subject_id", how="semi").join(shared, on="subject_id", how="anti").height
    if elsewhen:
        raise EhrError(
            f"{cell(elsewhen)} predictions were made at another prediction_time than the cohort's",
            str(where),
            "predict at the cohort's own prediction_time",
            code=Exit.LEAKAGE,
        )
    if shared.height == 0:
        raise EhrError(
            f"none of the {len(given):,} predictions is for a patient of the cohort's '{split}' split",
            str(where),
            f"predict these patients, or choose another split ({', '.join(known.table['split'].unique().sort())})",
            code=Exit.BUNDLE,
        )
    return shared
