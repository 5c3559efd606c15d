"""From a bundle and records to predictions, through the same cut, tokens and features as in training."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from jaxtyping import Float64, Int64

from ehrsequencing.batches import VisitPlaces
from ehrsequencing.bundle import Bundle
from ehrsequencing.cohort import cut, prediction_rows
from ehrsequencing.config import OUTCOME, TaskConfig
from ehrsequencing.ensemble import ensemble
from ehrsequencing.errors import EhrError, Exit
from ehrsequencing.events import MedsDataset, among
from ehrsequencing.features import build_features
from ehrsequencing.models.forward import hazard_logits, visit_logits
from ehrsequencing.prediction_checks import row_blocks
from ehrsequencing.predictions import Predictions, write_predictions
from ehrsequencing.progress import tracked
from ehrsequencing.timegrid import TimeGrid
from ehrsequencing.tokens import Tokenizer, tokenize, tokenize_windows


def predict(bundle: Bundle, dataset: MedsDataset, *, labels: Path | None = None, row: str | None = None) -> Predictions:
    """Risks and survival curves for everybody the bundle's task may ask about in ``dataset``.

    Args:
        labels: a MEDS label file that says whom to predict and when, instead of the task's own index.
        row: which of the bundle's rows; None is its default (the blend where there is one).
    """
    return predict_rows(bundle, dataset, _asked_about(bundle, dataset, labels), row)


def _asked_about(bundle: Bundle, dataset: MedsDataset, labels: Path | None) -> pl.DataFrame:
    return prediction_rows(dataset, bundle.task, labels, visit_column=bundle.tokenizer.config.visit_column)


def predict_rows(bundle: Bundle, dataset: MedsDataset, rows: pl.DataFrame, row: str | None = None) -> Predictions:
    """Predictions for given rows (``subject_id, prediction_time``), in their order."""
    name, logits = row_logits(bundle, dataset, rows, row)
    return to_predictions(logits, rows, bundle.grid, name, cohort_fingerprint="", causes=bundle.causes)


def row_logits(
    bundle: Bundle, dataset: MedsDataset, rows: pl.DataFrame, row: str | None = None, task: TaskConfig | None = None
) -> tuple[str, Float64[np.ndarray, "n K *R"]]:
    """The name of the bundle's row that is read, and its hazard logits for given rows, in their order.

    Args:
        task: whose rules say what may be read; None is the bundle's own.
    """
    name, _ = bundle.row(row)
    found = np.empty(0)
    for part, at in _by_part(dataset, rows):
        logits = _part_logits(bundle, part, rows[at], row, task or bundle.task)  # [m, K, *R]
        found = found if found.size else np.empty((rows.height, *logits.shape[1:]))
        found[at] = logits
    return name, found


def _by_part(dataset: MedsDataset, rows: pl.DataFrame) -> Iterator[tuple[MedsDataset, Int64[np.ndarray, " m"]]]:
    """The dataset's parts, each with the positions of its subjects' rows; rows of nobody go with the first."""
    parts = dataset.parts()
    if len(parts) == 1:
        yield dataset, np.arange(rows.height)
        return
    subject = rows["subject_id"].to_numpy()
    of = np.zeros(len(subject), dtype=np.int64)
    for number, part in enumerate(parts):
        of[among(subject, part.subject_ids())] = number
    wanted = [(parts[number], np.flatnonzero(of == number)) for number in range(len(parts))]
    wanted = [(part, at) for part, at in wanted if len(at)]
    yield from tracked(wanted, "predicting", [float(len(at)) for _, at in wanted])


def _part_logits(
    bundle: Bundle, dataset: MedsDataset, rows: pl.DataFrame, row: str | None, task: TaskConfig
) -> Float64[np.ndarray, "n K *R"]:
    _, chosen = bundle.row(row)
    visit_column = bundle.tokenizer.config.visit_column
    deep = wide = None
    at_visits = bundle.model.config.predict_at == "every_visit"
    if chosen.alpha > 0 and at_visits:
        deep = visit_logits(bundle.model, read_visits(dataset, rows, task, bundle.tokenizer))  # [n, K]
    if chosen.alpha < 1 or not at_visits:  # a history for every row: many times the records where rows are visits
        history = cut(dataset.scan(), rows, task, visit_column=visit_column).collect(engine="streaming")
    if chosen.alpha > 0 and not at_visits:
        tokens = tokenize(history, rows, bundle.tokenizer)
        deep = hazard_logits(bundle.model, tokens, np.arange(len(tokens)))  # [n, K, *R]
    if chosen.alpha < 1:
        wide = bundle.wide.logits(build_features(history, rows, bundle.features).values)  # [n, K, *R]
    return chosen.logits(deep, wide)


def read_visits(dataset: MedsDataset, rows: pl.DataFrame, task: TaskConfig, tokenizer: Tokenizer) -> VisitPlaces:
    """Where each of ``rows`` (a visit's last event each) is predicted, in windows of its subject's record.

    Raises:
        EhrError: exit 10 where the task looks back only so many days, which one reading of a record cannot do for
            every visit at once; exit 15 for a row within a visit.
    """
    if task.input.lookback_days is not None:
        what = "at every visit a record is read once, so that a look-back cannot begin anew at each visit"
        raise EhrError(what, "input.lookback_days", "leave it out, or predict at an index", code=Exit.CONFIG)
    records = rows.group_by("subject_id").agg(pl.col("prediction_time").max()).sort("subject_id")
    column = tokenizer.config.visit_column
    history = cut(dataset.scan(), records, task, visit_column=column).collect(engine="streaming")
    windows = tokenize_windows(history, records, tokenizer)
    window, visit = windows.locate(rows)
    asked = np.unique(window)
    return VisitPlaces(windows.take(asked).tokens, np.searchsorted(asked, window), visit)


def to_predictions(
    logits: Float64[np.ndarray, "n K *R"],
    rows: pl.DataFrame,
    grid: TimeGrid,
    model: str,
    cohort_fingerprint: str,
    causes: Sequence[str] = (OUTCOME,),
) -> Predictions:
    """Hazard logits of rows as predictions: risk and curves, with an incidence a cause where several compete."""
    if (logits.shape[2] if logits.ndim == 3 else 1) != len(causes):
        raise ValueError(f"expected logits of {len(causes)} causes ({', '.join(causes)}), found {logits.shape}")
    return Predictions.from_logits(
        logits,
        grid,
        rows["subject_id"].to_numpy(),
        rows["prediction_time"].to_numpy(),
        causes,
        cohort_fingerprint=cohort_fingerprint,
        model=model,
    )


def predict_together(
    bundles: Sequence[Bundle], dataset: MedsDataset, *, labels: Path | None = None, row: str | None = None
) -> Predictions:
    """The mean of several bundles' hazards: of one task and one split, fitted with different seeds.

    Args:
        row: which row of every bundle; None is each one's default.

    Raises:
        EhrError: bundles of another task, division of the patients, or horizon (exit 13).
    """
    first = bundles[0]
    for other in bundles[1:]:
        if other.task != first.task:
            what = f"expected bundles of one task, found '{first.task.name}' and another '{other.task.name}'"
            raise EhrError(what, "--also", "average bundles of the same TASK.yaml", code=Exit.BUNDLE)
        if any(other.facts.get(name) != first.facts.get(name) for name in ("split", "fold")):
            what = "the bundles divide patients differently: one has learned from whom another holds out"
            raise EhrError(what, "--also", "average bundles of one split", code=Exit.BUNDLE)
    each = [predict(bundle, dataset, labels=labels, row=row) for bundle in bundles]
    return ensemble(each, f"mean of {len(bundles)} ({each[0].model})")


@dataclass(frozen=True)
class PredictionsFile:
    """A predictions file that was written, and what it holds."""

    path: Path
    n: int
    row: str
    horizon_days: float
    other_rows: tuple[str, ...]

    def text(self) -> str:
        """For people."""
        return (
            f"{self.n:,} predictions by '{self.row}' in {self.path} "
            f"(horizon {self.horizon_days:g} days; other rows of this bundle: {', '.join(self.other_rows)})"
        )

    def to_json(self) -> dict[str, Any]:
        """For programs."""
        return {**asdict(self), "path": str(self.path)}


def predict_to_file(
    bundle: Path,
    meds: Path,
    out: Path,
    *,
    labels: Path | None = None,
    row: str | None = None,
    also: Sequence[Path] = (),
) -> PredictionsFile:
    """``ehrseq predict``: writes the predictions file, of one bundle or the mean of several, and says what it holds."""
    _refuse_precious(Path(out), (Path(bundle), *map(Path, also), Path(meds)))
    if len({Path(place).resolve() for place in (bundle, *also)}) <= len(also):
        raise EhrError("a bundle is given twice", "--also", "name each bundle once", code=Exit.USAGE)
    loaded, dataset = Bundle.load(bundle), MedsDataset.open(meds)
    used = loaded.row(row)[0]
    if also:
        predictions = predict_together([loaded, *map(Bundle.load, also)], dataset, labels=labels, row=row)
        predictions.write(out)
        n, model = len(predictions), predictions.model
    else:
        n, model = _predict_in_groups(loaded, dataset, Path(out), labels, row), used
    return PredictionsFile(Path(out), n, model, loaded.grid.tau, tuple(name for name in loaded.rows if name != used))


def _predict_in_groups(bundle: Bundle, dataset: MedsDataset, out: Path, labels: Path | None, row: str | None) -> int:
    """How many predictions were written. Hazards of everybody are in memory, curves of some at a time."""
    rows = _asked_about(bundle, dataset, labels)
    name, logits = row_logits(bundle, dataset, rows, row)
    blocks = row_blocks(rows.height)
    write_predictions(
        out, (to_predictions(logits[at], rows[at], bundle.grid, name, "", bundle.causes) for at in blocks)
    )
    return rows.height


def _refuse_precious(out: Path, inputs: tuple[Path, ...]) -> None:
    """EhrError (exit 14) where writing ``out`` would overwrite records, a bundle, or another file than predictions."""
    place = out.resolve()
    if any(place.is_relative_to(folder.resolve()) for folder in inputs):
        raise EhrError("the output lies inside the input", str(out), "choose another place", code=Exit.ENVIRONMENT)
    if not out.exists():
        return
    try:
        Predictions.read(out)
    except EhrError:
        raise EhrError(
            "the output exists and is no predictions file", str(out), "choose another name", code=Exit.ENVIRONMENT
        ) from None
