"""Ridge-penalised Cox regression, fitted to convergence; the penalty chosen by partial likelihood."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Float64, Int64

from ehrsequencing.baselines.proportional import PartialLikelihood
from ehrsequencing.config import MIN_TUNING_EVENTS
from ehrsequencing.models.ridge import (
    FOLDS,
    PATIENCE,
    PENALTIES,
    Loss,
    PrincipalAxes,
    RidgeProblem,
    Standardiser,
    best_by_folds,
)


@dataclass(frozen=True)
class RidgeCox:
    """A fitted Cox model: log relative hazard η = weight · (x − mean)/std."""

    standardiser: Standardiser
    weight: Float64[np.ndarray, " p"]
    penalty: float
    notes: tuple[str, ...] = ()

    def linear_predictor(self, x: Float[np.ndarray, "n p"]) -> Float64[np.ndarray, " n"]:
        """η of each row."""
        return self.standardiser(x) @ self.weight


class Outcome(NamedTuple):
    """Durations and event flags of some rows."""

    duration: Float64[np.ndarray, " n"]
    event: Int64[np.ndarray, " n"]

    def take(self, rows: np.ndarray) -> Outcome:
        """The given rows."""
        return Outcome(self.duration[rows], self.event[rows])


def fit_cox(
    x: Float[np.ndarray, "n p"],
    outcome: Outcome,
    x_tune: Float[np.ndarray, "m p"],
    outcome_tune: Outcome,
    penalties: Sequence[float] = PENALTIES,
) -> RidgeCox:
    """Minimise minus the mean log partial likelihood (Efron's ties) + penalty/2·|w|², columns standardised.

    The penalty is the one with the highest partial likelihood among the tuning rows; where they have fewer than
    `MIN_TUNING_EVENTS` events, over folds of the training rows, and a note says so.
    """
    penalties = sorted(penalties, reverse=True)
    tuning_events = int(outcome_tune.event.sum())
    if tuning_events >= MIN_TUNING_EVENTS:
        return min(_path(x, outcome, x_tune, outcome_tune, penalties), key=lambda fit: fit[1])[0]
    fit = fit_cox_along(x, outcome, _by_folds(x, outcome, penalties))
    note = f"{tuning_events} tuning events cannot choose the penalty: {FOLDS} folds of the training rows did"
    return replace(fit, notes=(note, *fit.notes))


def fit_cox_along(x: Float[np.ndarray, "n p"], outcome: Outcome, penalties: Sequence[float]) -> RidgeCox:
    """Cox regression at the last of ``penalties``, strong to weak, each fit started at the one before.

    Where the last does not converge the weakest that does is taken, with a note.
    """
    nobody = Outcome(np.zeros(0), np.zeros(0, dtype=np.int64))
    path = _path(x, outcome, x[:0], nobody, penalties, patience=len(penalties))
    null = RidgeCox(Standardiser.fit(x), np.zeros(x.shape[1]), np.inf)
    fit = [null, *(fit for fit, judged in path if np.isfinite(judged))][-1]
    if fit.penalty == penalties[-1]:
        return fit
    return replace(fit, notes=(f"no convergence at penalty {penalties[-1]:.2g}: {fit.penalty:.2g} taken",))


def _by_folds(x: np.ndarray, outcome: Outcome, penalties: Sequence[float]) -> tuple[float, ...]:
    """The penalties down to the one with the lowest left-out loss."""

    def losses(fitted: np.ndarray, judged: np.ndarray) -> list[list[float]]:
        path = _path(x[fitted], outcome.take(fitted), x[judged], outcome.take(judged), penalties)
        return [[loss for _, loss in path]]

    return best_by_folds(outcome.event > 0, penalties, losses)[1]


def _path(
    x: np.ndarray,
    outcome: Outcome,
    x_tune: np.ndarray,
    outcome_tune: Outcome,
    penalties: Sequence[float],
    patience: int = PATIENCE,
) -> Iterator[tuple[RidgeCox, float]]:
    """A fit for each penalty in turn, with the partial-likelihood loss of the rows it is judged by."""
    standardise = Standardiser.fit(x)
    axes = PrincipalAxes.of(standardise(x))
    z_tune, left_out = standardise(x_tune), PartialLikelihood(*outcome_tune)
    curvature = outcome.event.mean() * axes.variance  # [r] about the information at no effect
    problem = RidgeProblem(_loss(axes.scores, outcome), np.zeros(len(curvature)), curvature, np.zeros(0))

    def judge(point: np.ndarray) -> float:
        return left_out(z_tune @ (axes.rotation @ point))[0]

    for penalty, minimum, judged in problem.path(penalties, judge, patience):
        yield RidgeCox(standardise, axes.rotation @ minimum.point, penalty), judged


def _loss(scores: np.ndarray, outcome: Outcome) -> Loss:
    """Minus the mean log partial likelihood and its gradient at coefficients on the axes [r]."""
    partial = PartialLikelihood(*outcome)
    n = len(scores)

    def loss(point: np.ndarray) -> tuple[float, np.ndarray]:
        value, gradient = partial(scores @ point)
        return value / n, gradient @ scores / n

    return loss
