"""Discrete-time logistic regression on person-periods, multinomial with competing risks; ridge chosen on tuning.

How it differs from ``wide``, which has the same linear form φ_k = b_k + w·x and the same logit link h = σ(φ): it reads
Cox's columns, unscreened, and it counts, as textbooks do, *whether* the event fell into a bin, not where in it: an
event in bin k costs −log h_k = sp(φ_k) − φ_k, where the likelihood in continuous time costs f·sp(φ_k) − log sp(φ_k).
A patient censored at fraction f of a bin was exposed to f of it. Counting events whole and censorings in part favours
the events a little where a bin's hazard is high: recalibration, as for every model, comes after.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Float64, Int64

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

HALF_AN_EVENT = 0.5
"""What a bin without events of a cause is taken to have had; its intercept is held there."""


class PersonPeriods(NamedTuple):
    """n patients' columns, their own bins, and how each ended.

    ``exposure`` is 1 for the bins lived through and for the bin of an event, the elapsed fraction for the bin of a
    censoring, 0 after; ``event`` is 0 for a censoring, r for cause r.
    """

    x: Float[np.ndarray, "n p"]
    exposure: Float64[np.ndarray, "n K"]
    bin: Int64[np.ndarray, " n"]
    event: Int64[np.ndarray, " n"]

    @classmethod
    def of(
        cls,
        x: Float[np.ndarray, "n p"],
        exposure: Float64[np.ndarray, "n K"],
        bin: Int64[np.ndarray, " n"],
        event: Int64[np.ndarray, " n"],
    ) -> PersonPeriods:
        """From the fraction of each bin lived (``TimeGrid.exposure``): the bin of an event counts whole."""
        whole = exposure.copy()
        cases = np.flatnonzero(event)
        whole[cases, bin[cases]] = 1.0
        return cls(x, whole, bin, event)

    def take(self, rows: np.ndarray) -> PersonPeriods:
        """The given patients."""
        return PersonPeriods(*(part[rows] for part in self))

    def counts(self, n_causes: int) -> Float64[np.ndarray, "K R"]:
        """Events of each cause in each bin."""
        found = np.zeros((self.exposure.shape[1], n_causes))
        cases = np.flatnonzero(self.event)
        np.add.at(found, (self.bin[cases], self.event[cases] - 1), 1.0)
        return found

    def nll(self, logits: Float64[np.ndarray, "n K R"]) -> tuple[float, Float64[np.ndarray, "n K R"]]:
        """Summed −log likelihood of the person-periods and its gradient: exposure·softmax(φ) − 1[cause r in bin k]."""
        total = np.logaddexp(0.0, np.logaddexp.reduce(logits, axis=2))  # [n,K] −log(1 − Σ_r h_r)
        gradient = self.exposure[..., None] * np.exp(logits - total[..., None])  # [n,K,R]
        cases = np.flatnonzero(self.event)
        own = (cases, self.bin[cases], self.event[cases] - 1)
        gradient[own] -= 1.0
        return float((self.exposure * total).sum() - logits[own].sum()), gradient


@dataclass(frozen=True)
class LogisticHazard:
    """A fitted model: φ_kr = bias_kr + weight_r · (x − mean)/std."""

    standardiser: Standardiser
    weight: Float64[np.ndarray, "p R"]
    bias: Float64[np.ndarray, "K R"]
    penalty: float
    notes: tuple[str, ...] = ()

    @property
    def n_parameters(self) -> int:
        """Weights in use and intercepts."""
        return int(np.count_nonzero(self.weight)) + self.bias.size

    def logits(self, x: Float[np.ndarray, "n p"]) -> Float64[np.ndarray, "n K"] | Float64[np.ndarray, "n K R"]:
        """Hazard logits of each row, bin and, where there are several, cause."""
        eta = self.standardiser(x) @ self.weight  # [n,R]
        logits = self.bias + eta[:, None, :]  # [n,K,R]
        return logits[..., 0] if self.bias.shape[1] == 1 else logits


def fit_logistic(
    train: PersonPeriods, tune: PersonPeriods, n_causes: int = 1, penalties: Sequence[float] = PENALTIES
) -> LogisticHazard:
    """Minimise the mean NLL of a patient's periods + penalty/2·|w|², columns standardised, intercepts free.

    The penalty is the one with the lowest tuning NLL; where the tuning rows have fewer than `MIN_TUNING_EVENTS`
    outcomes, folds of the training rows choose, and a note says so.
    """
    penalties = sorted(penalties, reverse=True)
    tuning_events = int((tune.event == 1).sum())
    if tuning_events >= MIN_TUNING_EVENTS:
        return min(_path(train, tune, n_causes, penalties), key=lambda fit: fit[1])[0]

    def losses(fitted: np.ndarray, judged: np.ndarray) -> list[list[float]]:
        path = _path(train.take(fitted), train.take(judged), n_causes, penalties)
        return [[loss * len(judged) for _, loss in path]]

    chosen = best_by_folds(train.event == 1, penalties, losses)[1]
    fits = [fit for fit, _ in _path(train, tune, n_causes, chosen, patience=len(chosen))]
    note = f"{tuning_events} tuning events cannot choose the penalty: {FOLDS} folds of the training rows did"
    return replace(fits[-1], notes=(note,))


def _path(
    train: PersonPeriods, tune: PersonPeriods, n_causes: int, penalties: Sequence[float], patience: int = PATIENCE
) -> Iterator[tuple[LogisticHazard, float]]:
    """A converged fit for each penalty in turn, with the mean NLL of the rows it is judged by."""
    standardise = Standardiser.fit(train.x)
    axes = PrincipalAxes.of(standardise(train.x))
    z_tune, n, rank = standardise(tune.x), len(train.x), len(axes.variance)
    bias, scale = _marginal(train, n_causes)
    share = train.counts(n_causes).sum(axis=0) / n  # [R] about the information of a unit of φ
    curvature = (axes.variance[:, None] * share).ravel()  # [rank·R]
    start = np.concatenate([np.zeros(rank * n_causes), bias.ravel()])
    problem = RidgeProblem(_loss(train, axes.scores, bias.shape), start, curvature, scale.ravel())

    def split(point: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        coefficients, bias = _split(point, rank, scale.shape)
        return axes.rotation @ coefficients, bias

    def judge(point: np.ndarray) -> float:
        weight, bias = split(point)
        return tune.nll(bias + (z_tune @ weight)[:, None, :])[0] / max(len(z_tune), 1)

    for penalty, minimum, judged in problem.path(penalties, judge, patience):
        weight, bias = split(minimum.point)
        yield LogisticHazard(standardise, weight, bias, penalty), judged


def _loss(rows: PersonPeriods, scores: np.ndarray, shape: tuple[int, ...]) -> Loss:
    """Mean NLL and gradient at (coefficients on the axes [rank·R], intercepts [K·R])."""
    n, rank = scores.shape

    def loss(point: np.ndarray) -> tuple[float, np.ndarray]:
        coefficients, bias = _split(point, rank, shape)
        value, gradient = rows.nll(bias + (scores @ coefficients)[:, None, :])
        along = scores.T @ gradient.sum(axis=1)  # [rank,R]
        return value / n, np.concatenate([along.ravel(), gradient.sum(axis=0).ravel()]) / n

    return loss


def _split(point: np.ndarray, rank: int, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    n_causes = shape[1]
    return point[: rank * n_causes].reshape(rank, n_causes), point[rank * n_causes :].reshape(shape)


def _marginal(rows: PersonPeriods, n_causes: int) -> tuple[np.ndarray, np.ndarray]:
    """Intercepts [K,R] without covariates, and their scale: the inverse root of their information, 0 = held."""
    found = rows.counts(n_causes)  # [K,R]
    events = np.maximum(found, HALF_AN_EVENT)
    exposed = rows.exposure.sum(axis=0)  # [K]
    without = np.maximum(exposed - events.sum(axis=1), HALF_AN_EVENT)  # [K]
    scale = np.divide(1.0, np.sqrt(found / len(rows.x)), out=np.zeros_like(found), where=found > 0)
    return np.log(events / without[:, None]), scale
