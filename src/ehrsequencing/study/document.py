"""What a comparison leaves behind: every model's figures on the same rows and resamples, as plain data."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from jaxtyping import Int64

from ehrsequencing.cohort import Cohort
from ehrsequencing.config import DAYS_PER_YEAR, MIN_TRAIN_EVENTS
from ehrsequencing.evaluation.causes import cause_figures
from ehrsequencing.evaluation.compare import Evaluation, Scores
from ehrsequencing.evaluation.subgroups import score_subgroups
from ehrsequencing.evaluation.verdict import difference_table, family_bound
from ehrsequencing.predictions import Predictions

COMPARISON, PREDICTIONS, RAW = "comparison.json", "predictions", "raw"
KINDS = ("oracle", "strategy", "ensemble", "control", "baseline", "predictions")
"""What a row is, in the order in which rows are told; ``predictions``: somebody's file, whoever made it."""
SUBGROUP_RESAMPLES = 500
"""Resamples of a subgroup's figures, at most: there are many subgroups."""


@dataclass(frozen=True)
class Model:
    """One row of the comparison: a Predictions file a seed (folds pooled), and what the model cost."""

    name: str
    kind: str
    why: str
    predictions: tuple[Predictions, ...]
    seeds: tuple[int, ...] = (0,)
    seconds: float | None = None
    trainable: int | None = None
    total: int | None = None
    alpha: float | None = None
    notes: tuple[str, ...] = ()
    raw: tuple[Predictions | None, ...] = ()


@dataclass(frozen=True)
class Judged:
    """Who is evaluated, on what, up to when.

    Attributes:
        rows: of the cohort's table, sorted by subject and prediction_time.
        fitted_on: the rows whose outcome gives the censoring distribution.
        horizons: days, each at most τ.
        stratum: the fold of each row, where predictions of several fits are pooled.
    """

    cohort: Cohort
    rows: pl.DataFrame
    fitted_on: pl.DataFrame
    tau: float
    horizons: tuple[float, ...]
    n_boot: int
    seed: int = 0
    stratum: Int64[np.ndarray, " n"] | None = None

    @cached_property
    def evaluation(self) -> Evaluation:
        """What every model is scored by."""
        return Evaluation.of(self.rows["duration"].to_numpy(), self.rows["event"].to_numpy(), **self.options)

    @property
    def options(self) -> dict[str, Any]:
        """All that an evaluation of these rows is told beside their outcome."""
        return {
            "train_duration": self.fitted_on["duration"].to_numpy(),
            "train_event": self.fitted_on["event"].to_numpy(),
            "tau": self.tau,
            "horizons": self.horizons,
            "n_boot": self.n_boot,
            "seed": self.seed,
            "subject_id": self.rows["subject_id"].to_numpy(),
            "stratum": self.stratum,
        }

    @property
    def patients(self) -> int:
        """Who is evaluated; some may have several rows."""
        return self.rows["subject_id"].n_unique()

    def with_event(self, cause: int = 1) -> int:
        """Patients with an event of a cause up to τ, in any of their rows."""
        return int(np.unique(self.rows["subject_id"].to_numpy()[self.evaluation.event == cause]).size)

    @property
    def events(self) -> int:
        """Patients with the outcome up to τ."""
        return self.with_event()


def default_horizons(asked: Sequence[float], tau: float) -> tuple[float, ...]:
    """The days asked for; without any, one year where it lies within τ, and τ.

    >>> default_horizons((), 1826.0), default_horizons((), 90.0), default_horizons((30.0,), 90.0)
    ((365.25, 1826.0), (90.0,), (30.0,))
    """
    return tuple(asked) or ((DAYS_PER_YEAR, tau) if tau > DAYS_PER_YEAR else (tau,))


def document(judged: Judged, models: Sequence[Model], scores: Mapping[str, Scores]) -> dict[str, Any]:
    """The part of comparison.json that any predictions have, whoever made them."""
    return {
        "task": judged.cohort.task.model_dump(mode="json", by_alias=True),
        "n": judged.patients,
        "n_rows": judged.rows.height,
        "events": judged.events,
        "causes": {cause: judged.with_event(k) for k, cause in enumerate(judged.cohort.task.causes, start=1)},
        "horizons": list(judged.horizons),
        "tau": judged.tau,
        "cohort_fingerprint": judged.cohort.fingerprint,
        "rows": [_row(model, scores[model.name]) for model in models],
        "cause_figures": _cause_figures(judged, models),
        "subgroups": _subgroups(judged, shown_models(models, scores)),
        "python": platform.python_version(),
    }


def shown_models(models: Sequence[Model], scores: Mapping[str, Scores]) -> list[Model]:
    """Those that are looked at closely: the best of each kind by Uno's C, blends apart, and every file given."""
    found: dict[tuple[str, bool], Model] = {}
    for model in models:
        kind = (model.kind, "+" in model.name)
        if kind[0] in ("strategy", "baseline") and (kind not in found or _c(scores, model) > _c(scores, found[kind])):
            found[kind] = model
    return [*found.values(), *(model for model in models if model.kind == "predictions")]


def _c(scores: Mapping[str, Scores], model: Model) -> float:
    return float(scores[model.name].figures["uno_c"][0])


def _subgroups(judged: Judged, models: Sequence[Model]) -> list[dict[str, Any]]:
    """Figures told apart by sex, age and what the task names, where the cohort has them."""
    if judged.cohort.subgroups is None:
        return []
    keys = ["subject_id", "prediction_time"]
    groups = judged.rows.select(keys).join(judged.cohort.subgroups, on=keys, how="left", maintain_order="left")
    labels = {name: groups[name].to_list() for name in groups.columns if name not in keys}
    predictions = {model.name: list(model.predictions) for model in models}
    return score_subgroups(judged.evaluation, predictions, labels, n_boot=min(judged.n_boot, SUBGROUP_RESAMPLES))


def _cause_figures(judged: Judged, models: Sequence[Model]) -> dict[str, list[dict[str, Any]]]:
    """Every model's figures of each competing cause."""
    causes, options = judged.cohort.task.causes, judged.options
    if len(causes) == 1:
        return {}
    predictions = {model.name: model.predictions for model in models}
    return cause_figures(
        causes, predictions, judged.rows["duration"].to_numpy(), judged.rows["event"].to_numpy(), **options
    )


def too_few(events: int) -> list[str]:
    """A warning where the evaluated outcomes are too few to tell models apart."""
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
        "notes": [*model.notes, *(f"{metric_name(name)}: {note}" for name, note in scores.notes.items())],
        "metrics": {name: interval.to_json() for name, interval in scores.intervals().items()},
        "checks": dict(scores.checks),
        "not_computed": dict(scores.not_computed),
    }


def differences(pairs: Sequence[tuple[str, str]], scores: Mapping[str, Scores]) -> list[dict[str, Any]]:
    """Each pair's first model minus its second, on the same patients, by metric, with the rule's word for C.

    Of several models set against the same one the best is picked afterwards: a ``climb`` must hold for the highest gain
    of as many (``family_bound``), so that the rule errs as rarely for the whole table as for one pair.
    """
    found = []
    for name, against in pairs:
        family = [scores[each] for each, rival in pairs if rival == against]
        bound = family_bound(scores[against], family)
        for difference in difference_table({name: scores[name], against: scores[against]}, against):
            found += [_allowing(entry, bound, len(family)) for entry in difference.to_json()]
    return found


def _allowing(entry: dict[str, Any], bound: float | None, count: int) -> dict[str, Any]:
    if entry.get("word") != "climb" or bound is None or entry["value"] > bound:
        return entry
    reason = f"the gain would be found for one pair, not for the best of {count} models set against {entry['against']}"
    return entry | {"word": "underpowered", "why": "family", "reason": reason}


def write_predictions(models: Sequence[Model], folder: Path) -> None:
    """One parquet file a model and seed; those before recalibration under ``raw/``."""
    folder.mkdir(parents=True, exist_ok=True)
    for model in models:
        for seed, predictions in zip(model.seeds, model.predictions, strict=True):
            predictions.write(folder / f"{model.name}-{seed}.parquet")
        for seed, raw in zip(model.seeds, model.raw or [None] * len(model.seeds), strict=True):
            if raw is not None:
                raw.write(folder / RAW / f"{model.name}-{seed}.parquet")
