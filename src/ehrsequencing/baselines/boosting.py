"""Gradient boosting of the Cox partial likelihood (xgboost), stopped early on the tuning rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import xgboost as xgb
from jaxtyping import Float32, Float64

from ehrsequencing.baselines.cox import Outcome
from ehrsequencing.config import MIN_TUNING_EVENTS
from ehrsequencing.models.ridge import FOLDS, stratified_folds

SETTINGS = {
    "objective": "survival:cox",
    "eval_metric": "cox-nloglik",
    "eta": 0.05,
    "max_depth": 3,
    "subsample": 0.7,
    "colsample_bytree": 0.5,
    "min_child_weight": 2.0,
    "lambda": 5.0,
    "tree_method": "hist",
    "max_bin": 64,
    "verbosity": 0,
}
MAX_ROUNDS, PATIENCE = 2_000, 50
FALLBACK_ROUNDS = 20
_ABSENT = 0.0
"""Most features are 0, a code that is absent: stored sparsely, trees grow two to three times as fast."""


@dataclass(frozen=True)
class Boosted:
    """Fitted trees, used up to the best round."""

    booster: xgb.Booster
    rounds: int
    notes: tuple[str, ...] = ()

    def linear_predictor(self, x: Float32[np.ndarray, "n p"]) -> Float64[np.ndarray, " n"]:
        """Log relative hazard of each row."""
        margin = self.booster.predict(
            xgb.DMatrix(x, missing=_ABSENT), output_margin=True, iteration_range=(0, self.rounds)
        )
        return margin.astype(np.float64)

    @property
    def n_leaves(self) -> int:
        """Fitted numbers: one a leaf."""
        return sum(tree.count("leaf=") for tree in self.booster[: self.rounds].get_dump())


def fit_boosting(
    x: Float32[np.ndarray, "n p"],
    outcome: Outcome,
    x_tune: Float32[np.ndarray, "m p"],
    outcome_tune: Outcome,
    seed: int,
) -> Boosted:
    """Trees on the training rows; their number is the one with the highest partial likelihood of the tuning rows.

    Where the tuning rows have fewer than `MIN_TUNING_EVENTS` events, folds of the training rows choose the number, and
    a note says so. One thread: the thread pools of two libraries spin against each other.
    Same rows and seed give the same trees.
    """
    settings = {**SETTINGS, "seed": seed, "nthread": 1}
    train = _matrix(x, outcome)
    tuning_events = int(outcome_tune.event.sum())
    if tuning_events >= MIN_TUNING_EVENTS:
        judged = [(_matrix(x_tune, outcome_tune), "tuning")]
        booster = xgb.train(
            settings, train, MAX_ROUNDS, evals=judged, early_stopping_rounds=PATIENCE, verbose_eval=False
        )
        return Boosted(booster, booster.best_iteration + 1)
    rounds, note = _rounds_by_folds(settings, train, outcome)
    return Boosted(
        xgb.train(settings, train, rounds), rounds, (f"{tuning_events} tuning events cannot stop it: {note}",)
    )


def _rounds_by_folds(settings: dict[str, Any], train: xgb.DMatrix, outcome: Outcome) -> tuple[int, str]:
    folds = min(FOLDS, int(outcome.event.sum()))
    if folds < 2:
        return FALLBACK_ROUNDS, f"{FALLBACK_ROUNDS} rounds"
    fold = stratified_folds(outcome.event > 0, folds)
    parts = [(np.flatnonzero(fold != k), np.flatnonzero(fold == k)) for k in range(folds)]
    result = xgb.cv(
        settings, train, MAX_ROUNDS, folds=parts, early_stopping_rounds=PATIENCE, as_pandas=False, verbose_eval=False
    )
    return len(
        np.asarray(result["test-cox-nloglik-mean"])
    ), f"{folds} folds of the training rows chose the number of trees"


def _matrix(x: np.ndarray, outcome: Outcome) -> xgb.DMatrix:
    # survival:cox reads a censored duration as a negative label
    label = np.where(outcome.event > 0, outcome.duration, -outcome.duration)
    return xgb.DMatrix(x, label=label, missing=_ABSENT)
