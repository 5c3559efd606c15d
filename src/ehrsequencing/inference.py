"""From a bundle and records to predictions, through the same cut, tokens and features as in training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import polars as pl
from jaxtyping import Float64

from ehrsequencing.bundle import Bundle
from ehrsequencing.cohort import cut, prediction_rows
from ehrsequencing.config import TaskConfig
from ehrsequencing.errors import EhrError, Exit
from ehrsequencing.events import MedsDataset
from ehrsequencing.features import build_features
from ehrsequencing.models.forward import hazard_logits
from ehrsequencing.predictions import Predictions
from ehrsequencing.timegrid import TimeGrid
from ehrsequencing.tokens import tokenize


def predict(
    bundle: Bundle, dataset: MedsDataset, *, labels: Path | None = None, row: str | None = None
) -> Predictions:
    """Risks and survival curves for everybody the bundle's task may ask about in ``dataset``.

    Args:
        labels: a MEDS label file that says whom to predict and when, instead of the task's own index.
        row: which of the bundle's rows; None is its default (the blend where there is one).
    """
    task = with_labels_found(bundle.task, [dataset.root]) if labels is None else bundle.task
    rows = prediction_rows(dataset, task, labels)
    return predict_rows(bundle, dataset, rows, row)


def predict_rows(bundle: Bundle, dataset: MedsDataset, rows: pl.DataFrame, row: str | None = None) -> Predictions:
    """Predictions for given rows (``subject_id, prediction_time``), in their order."""
    name, chosen = bundle.row(row)
    history = cut(dataset.scan(), rows, bundle.task).collect(engine="streaming")
    deep = wide = None
    if chosen.alpha > 0:
        tokens = tokenize(history, rows, bundle.tokenizer)
        deep = hazard_logits(bundle.model, tokens, np.arange(len(tokens)))  # [n, K]
    if chosen.alpha < 1:
        wide = bundle.wide.logits(build_features(history, rows, bundle.features).values)  # [n, K]
    fingerprint = str(bundle.facts.get("cohort_fingerprint", ""))
    return to_predictions(chosen.logits(deep, wide), rows, bundle.grid, name, fingerprint)


def to_predictions(
    logits: Float64[np.ndarray, "n K"], rows: pl.DataFrame, grid: TimeGrid, model: str, cohort_fingerprint: str
) -> Predictions:
    """Hazard logits as predictions: risk = −RMST(τ), survival at the 100 equal points on (0, τ]."""
    times = grid.curve_times()
    return Predictions(
        subject_id=rows["subject_id"].to_numpy(),
        prediction_time=rows["prediction_time"].to_numpy(),
        risk=grid.risk(logits),
        horizon_days=times,
        survival=grid.survival(logits, times),
        cohort_fingerprint=cohort_fingerprint,
        model=model,
    )


def predict_to_file(
    bundle: Path, meds: Path, out: Path, *, labels: Path | None = None, row: str | None = None
) -> str:
    """``ehrseq predict``: writes the predictions file and says what it holds."""
    loaded = Bundle.load(bundle)
    predictions = predict(loaded, MedsDataset.open(meds), labels=labels, row=row)
    predictions.write(out)
    others = ", ".join(name for name in loaded.rows if name != predictions.model)
    return (
        f"{len(predictions.risk):,} predictions by '{predictions.model}' in {out} "
        f"(horizon {loaded.grid.tau:g} days; other rows of this bundle: {others})"
    )


def with_labels_found(task: TaskConfig, folders: Sequence[Path]) -> TaskConfig:
    """The task with its label file's path made whole: a relative one is looked for in ``folders``, in order.

    Raises:
        EhrError: exit 10 where the file is in none of them.
    """
    labels = task.index.labels
    if labels is None or labels.is_absolute():
        return task
    for folder in folders:
        if (folder / labels).exists():
            index = task.index.model_copy(update={"labels": folder / labels})
            return task.model_copy(update={"index": index})
    raise EhrError(
        f"the label file '{labels}' is in none of {', '.join(str(folder) for folder in folders)}",
        f"task {task.name}, index.labels",
        "give its whole path, or --labels where there is such an option",
        code=Exit.CONFIG,
    )
