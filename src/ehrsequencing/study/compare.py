"""From scored models to a study's comparison.json: pooled over folds, same patients and resamples for every row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl

from ehrsequencing.cohort import Cohort
from ehrsequencing.config import DAYS_PER_YEAR, HELD_OUT, TRAIN, TUNING, StudyConfig
from ehrsequencing.evaluation.compare import INTERVAL_MEANING, Scores
from ehrsequencing.evaluation.sample_size import check
from ehrsequencing.models.own_strategies import read_strategy
from ehrsequencing.predictions import Predictions
from ehrsequencing.study.data import Division, fold_numbers
from ehrsequencing.study.document import KINDS, Judged, Model, default_horizons, differences, document, too_few
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


def pool(scored: Sequence[Scored]) -> list[Model]:
    """Group by model and seed; the folds of a seed become one file, sorted by subject and prediction_time."""
    names = list(dict.fromkeys(item.model for item in scored))
    models = [_pool_one(name, [item for item in scored if item.model == name]) for name in names]
    return sorted(models, key=lambda model: KINDS.index(model.kind))


def _pool_one(name: str, items: Sequence[Scored]) -> Model:
    seeds = tuple(sorted({item.seed for item in items}))
    by_seed = [[item for item in items if item.seed == seed] for seed in seeds]
    first = items[0]
    return Model(
        name=name,
        kind=first.kind,
        why=first.why,
        predictions=tuple(_joined([item.predictions for item in folds]) for folds in by_seed),
        seeds=seeds,
        seconds=_mean([item.seconds for item in items]),
        trainable=first.trainable,
        total=first.total,
        alpha=_mean([item.alpha for item in items]),
        notes=tuple(dict.fromkeys(note for item in items for note in item.notes)),
        raw=tuple(_before(folds) for folds in by_seed),
    )


def _joined(folds: Sequence[Predictions]) -> Predictions:
    joined = Predictions.concat(folds)
    return joined.take(np.lexsort((joined.prediction_time, joined.subject_id)))


def _before(folds: Sequence[Scored]) -> Predictions | None:
    """All folds before recalibration; None where it changed nothing in any of them."""
    if all(item.raw is None for item in folds):
        return None
    return _joined([item.predictions if item.raw is None else item.raw for item in folds])


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


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
    judged = _judged(study, cohort, tau, parts)
    scores = {model.name: judged.evaluation.score(list(model.predictions)) for model in models}
    return {
        "study": study.name,
        **document(judged, models, scores),
        "split": OUT_OF_FOLD if pooled else HELD_OUT,
        "folds": study.folds,
        **_learning_counts(cohort.table, tau, pooled),
        "sample_size": _sample_size(judged, facts.get("n_features")),
        "interval": f"{INTERVAL_MEANING} {POOLED if pooled else ONE_SPLIT}",
        **facts,
        "warnings": [*too_few(judged.events), *facts.get("warnings", [])],
        "differences": differences(_pairs(study, models, scores), scores),
    }


def _judged(study: StudyConfig, cohort: Cohort, tau: float, parts: Sequence[Division]) -> Judged:
    """The held-out rows, or all of them where folds are pooled."""
    pooled = study.folds is not None
    table = cohort.table.sort("subject_id", "prediction_time")
    rows = table if pooled else table.filter(pl.col("split") == HELD_OUT)
    return Judged(
        cohort,
        rows,
        fitted_on=table if pooled else table.filter(pl.col("split") == TRAIN),
        tau=tau,
        horizons=default_horizons(study.horizons_days, tau),
        n_boot=study.bootstrap,
        seed=study.split.seed,
        stratum=fold_numbers(parts, rows["subject_id"].to_numpy()) if pooled else None,
    )


def _learning_counts(table: pl.DataFrame, tau: float, pooled: bool) -> dict[str, int | None]:
    if pooled:
        return {"n_train": None, "events_train": None, "n_tuning": None, "events_tuning": None}
    seen = table.with_columns(event=(pl.col("event") == 1) & (pl.col("duration") <= tau))
    counts: dict[str, int | None] = {}
    for split in (TRAIN, TUNING):
        part = seen.filter(pl.col("split") == split)
        counts |= {f"n_{split}": part.height, f"events_{split}": int(part["event"].sum())}
    return counts


def _sample_size(judged: Judged, parameters: int | None) -> dict[str, Any]:
    """Riley's criteria for those who were learned from, and the precision that those who are judged allow.

    Out of fold everybody is judged, and learned from in all folds but one.
    """
    table = judged.cohort.table
    learned = table if judged.stratum is not None else table.filter(pl.col("split") != HELD_OUT)
    happened = learned.filter((pl.col("event") == 1) & (pl.col("duration") <= judged.tau))
    duration = learned["duration"].to_numpy()
    return check(
        learned["subject_id"].n_unique(),
        happened["subject_id"].n_unique(),
        mean_followup_years=float(np.minimum(duration, judged.tau).mean()) / DAYS_PER_YEAR,
        horizon_years=judged.tau / DAYS_PER_YEAR,
        parameters=parameters,
        evaluated=(judged.patients, judged.events),
    )


def best_simple(models: Sequence[Model], scores: Mapping[str, Scores]) -> str | None:
    """The baseline with the highest Uno C on the evaluated patients: the hardest one to beat."""
    simple = [model.name for model in models if model.kind == "baseline"]
    return max(simple, key=lambda name: scores[name].figures["uno_c"][0], default=None)


def _pairs(study: StudyConfig, models: Sequence[Model], scores: Mapping[str, Scores]) -> list[tuple[str, str]]:
    """Strategies, controls and oracle against the best simple model, and strategies against their controls."""
    against = best_simple(models, scores)
    if against is None:
        return []
    beside = [(model.name, against) for model in models if model.kind != "baseline"]
    controlled = [(strategy.name, strategy.control) for strategy in map(read_strategy, study.strategies)]
    return beside + [(name, control) for name, control in controlled if control is not None and control in scores]
