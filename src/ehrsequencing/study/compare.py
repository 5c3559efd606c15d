"""From scored models to comparison.json: pooled over folds, same patients and resamples for every row."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from jaxtyping import Int64

from ehrsequencing.cohort import Cohort
from ehrsequencing.config import DAYS_PER_YEAR, HELD_OUT, MIN_TRAIN_EVENTS, TRAIN, TUNING, StudyConfig
from ehrsequencing.evaluation.compare import INTERVAL_MEANING, Evaluation, Scores, paired_difference
from ehrsequencing.predictions import Predictions
from ehrsequencing.study.data import Division, fold_numbers
from ehrsequencing.study.kept import Scored

OUT_OF_FOLD = "out_of_fold"
ONE_SPLIT = (
    "One pretraining run serves every seed. Every model but the curve that is the same for all is recalibrated on the "
    "tuning split."
)
POOLED = (
    "Predictions are out of fold: C compares patients of one fold only, since risks of different fits are not on one "
    "scale; the censoring distribution is that of the whole cohort. One pretraining run a fold serves every seed. "
    "Every model but the curve that is the same for all is recalibrated on the tuning part of its fold, where that has "
    "20 events or more."
)
CONTROLS = {"frozen-ridge": "frozen-random", "frozen": "frozen-random", "full": "from-scratch"}
"""What shows, on the same patients, whether pretraining contributed to a strategy."""
KINDS = ("oracle", "strategy", "control", "baseline")


@dataclass(frozen=True)
class Model:
    """One row of the comparison: what was scored, a Predictions file a seed, folds pooled."""

    name: str
    kind: str
    why: str
    seeds: tuple[int, ...]
    predictions: tuple[Predictions, ...]
    seconds: float | None
    trainable: int | None
    total: int | None
    alpha: float | None
    notes: tuple[str, ...]


def pool(scored: Sequence[Scored]) -> list[Model]:
    """Group by model and seed; the folds of a seed become one file, sorted by subject and prediction_time."""
    names = list(dict.fromkeys(item.model for item in scored))
    models = [_pool_one(name, [item for item in scored if item.model == name]) for name in names]
    return sorted(models, key=lambda model: KINDS.index(model.kind))


def _pool_one(name: str, items: Sequence[Scored]) -> Model:
    seeds = tuple(sorted({item.seed for item in items}))
    files = []
    for seed in seeds:
        joined = Predictions.concat([item.predictions for item in items if item.seed == seed])
        files.append(joined.take(np.lexsort((joined.prediction_time, joined.subject_id))))
    first = items[0]
    return Model(
        name=name,
        kind=first.kind,
        why=first.why,
        seeds=seeds,
        predictions=tuple(files),
        seconds=_mean([item.seconds for item in items]),
        trainable=first.trainable,
        total=first.total,
        alpha=_mean([item.alpha for item in items]),
        notes=tuple(dict.fromkeys(note for item in items for note in item.notes)),
    )


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def write_predictions(models: Sequence[Model], folder: Path) -> None:
    """One parquet file a model and seed."""
    folder.mkdir(parents=True, exist_ok=True)
    for model in models:
        for seed, predictions in zip(model.seeds, model.predictions, strict=True):
            predictions.write(folder / f"{model.name}-{seed}.parquet")


def compare(
    study: StudyConfig,
    cohort: Cohort,
    models: Sequence[Model],
    tau: float,
    facts: dict[str, Any],
    parts: Sequence[Division],
) -> dict[str, Any]:
    """The content of comparison.json; ``parts`` are the study's divisions, ``facts`` are added as they are."""
    pooled = study.folds is not None
    table = cohort.table.sort("subject_id", "prediction_time")
    judged = table if pooled else table.filter(pl.col("split") == HELD_OUT)
    fitted_on = table if pooled else table.filter(pl.col("split") == TRAIN)
    horizons = report_horizons(study, tau)
    evaluation = Evaluation.of(
        judged["duration"].to_numpy(),
        judged["event"].to_numpy(),
        train_duration=fitted_on["duration"].to_numpy(),
        train_event=fitted_on["event"].to_numpy(),
        tau=tau,
        horizons=horizons,
        n_boot=study.bootstrap,
        seed=study.split.seed,
        subject_id=judged["subject_id"].to_numpy(),
        stratum=fold_numbers(parts, judged["subject_id"].to_numpy()) if pooled else None,
    )
    outcomes = int((evaluation.event == 1).sum())
    scores = {model.name: evaluation.score(list(model.predictions)) for model in models}
    return {
        "study": study.name,
        "task": cohort.task.model_dump(mode="json", by_alias=True),
        "split": OUT_OF_FOLD if pooled else HELD_OUT,
        "folds": study.folds,
        "n": judged["subject_id"].n_unique(),
        "n_rows": judged.height,
        "events": outcomes,
        "causes": _cause_counts(cohort.task.causes, evaluation.event),
        **_learning_counts(table, tau, pooled),
        "horizons": list(horizons),
        "tau": tau,
        "cohort_fingerprint": cohort.fingerprint,
        "interval": f"{INTERVAL_MEANING} {POOLED if pooled else ONE_SPLIT}",
        **facts,
        "warnings": [*_warnings(outcomes), *facts.get("warnings", [])],
        "rows": [_row(model, scores[model.name]) for model in models],
        "differences": differences(models, scores),
        "python": platform.python_version(),
    }


def report_horizons(study: StudyConfig, tau: float) -> tuple[float, ...]:
    """The study's own horizons; without any, one year where it lies within τ, and τ."""
    if study.horizons_days:
        return tuple(study.horizons_days)
    return (DAYS_PER_YEAR, tau) if tau > DAYS_PER_YEAR else (tau,)


def _cause_counts(causes: Sequence[str], event: Int64[np.ndarray, " n"]) -> dict[str, int]:
    """Events of each cause among the evaluated rows, up to τ.

    >>> _cause_counts(("outcome", "death"), np.array([0, 1, 2, 2]))
    {'outcome': 1, 'death': 2}
    """
    return {cause: int((event == number).sum()) for number, cause in enumerate(causes, start=1)}


def _learning_counts(table: pl.DataFrame, tau: float, pooled: bool) -> dict[str, int | None]:
    if pooled:
        return {"n_train": None, "events_train": None, "n_tuning": None, "events_tuning": None}
    seen = table.with_columns(event=(pl.col("event") == 1) & (pl.col("duration") <= tau))
    counts: dict[str, int | None] = {}
    for split in (TRAIN, TUNING):
        part = seen.filter(pl.col("split") == split)
        counts |= {f"n_{split}": part.height, f"events_{split}": int(part["event"].sum())}
    return counts


def _warnings(events: int) -> list[str]:
    if events >= MIN_TRAIN_EVENTS:
        return []
    return [f"only {events} events among the evaluated patients: differences between models cannot be told apart"]


def _row(model: Model, scores: Scores) -> dict[str, Any]:
    return {
        "model": model.name,
        "kind": model.kind,
        "why": model.why,
        "seeds": list(model.seeds),
        "trainable": model.trainable,
        "total": model.total,
        "seconds": model.seconds,
        "alpha": model.alpha,
        "notes": list(model.notes),
        "metrics": {name: interval.to_json() for name, interval in scores.intervals().items()},
        "not_computed": dict(scores.not_computed),
    }


def best_simple(models: Sequence[Model], scores: dict[str, Scores]) -> str | None:
    """The baseline with the highest Uno C on the evaluated patients: the hardest one to beat."""
    simple = [model.name for model in models if model.kind == "baseline"]
    return max(simple, key=lambda name: scores[name].figures["uno_c"][0], default=None)


def differences(models: Sequence[Model], scores: dict[str, Scores]) -> list[dict[str, Any]]:
    """Strategies, controls and oracle against the best simple model, and strategies against their controls."""
    against = best_simple(models, scores)
    if against is None:
        return []
    rows = []
    for model in models:
        if model.kind == "baseline":
            continue
        for metric in ("uno_c", "ibs"):
            interval = paired_difference(scores[against], scores[model.name], metric)
            rows.append({"model": model.name, "against": against, "metric": metric, **interval.to_json()})
    for name, control in CONTROLS.items():
        if name in scores and control in scores:
            for metric in ("uno_c", "ibs"):
                interval = paired_difference(scores[control], scores[name], metric)
                rows.append({"model": name, "against": control, "metric": metric, **interval.to_json()})
    return rows
