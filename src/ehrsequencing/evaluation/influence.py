"""Influence-function standard errors and intervals: what the bootstrap says, without resampling.

A figure of n rows is a function of how often each was drawn; its derivatives there, one a row, are the row's influence.
To first order the figure of a resample is the figure plus the influences of whom it drew too often, less those of whom
it drew too seldom; its variance is the sum of squared influences, summed first within each patient.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float64, Int64
from scipy.special import expit, logit, ndtri

from ehrsequencing.evaluation.antolini import TimeRanking
from ehrsequencing.evaluation.concordance import Pairs, PairWeights, no_pairs
from ehrsequencing.evaluation.resampling import LEVEL, Interval
from ehrsequencing.evaluation.roc import Roc

INFLUENCE_MEANING = (
    "95% intervals from influence functions, clustered by patient, on the logit scale for C and AUC: the first-order "
    "equivalent of a patient bootstrap. Two variances are inside: that of who was evaluated, and that of the training "
    "seeds where a model has several; not that of who was trained on: the training patients, the "
    "split and the censoring distribution are held fixed."
)


@dataclass(frozen=True, eq=False)
class Influence:
    """A figure, and by how much it rises with each row that is drawn once more.

    Attributes:
        value: of the figure.
        terms: float64[n], which sum to 0 where the figure does not depend on how many rows there are.
        seed_variance: of a mean over training seeds.
    """

    value: float
    terms: Float64[np.ndarray, " n"]
    seed_variance: float = 0.0

    def __sub__(self, other: Influence) -> Influence:
        """The difference of two figures on the same rows, for a model of one seed each."""
        return Influence(self.value - other.value, self.terms - other.terms, self.seed_variance + other.seed_variance)

    def on(self, drawn: Float[np.ndarray, "b n"]) -> Float64[np.ndarray, " b"]:
        """The figure on resamples of the rows, to first order."""
        return self.value + drawn @ self.terms - self.terms.sum()

    def standard_error(self, cluster: Int64[np.ndarray, " n"] | None = None) -> float:
        """Of the figure, by patient where ``cluster`` says whose row each is."""
        terms = self.terms
        if cluster is not None:
            terms = np.bincount(np.unique(cluster, return_inverse=True)[1], weights=terms)
        return float(np.sqrt((terms**2).sum() + self.seed_variance))


def influence_interval(
    figure: Influence,
    cluster: Int64[np.ndarray, " n"] | None = None,
    *,
    level: float = LEVEL,
    scale: str = "logit",
) -> Interval:
    """The normal interval of a figure; without limits where its standard error is 0 or the scale has no room for it.

    Args:
        figure: what ``concordance_influence`` and its kin give.
        cluster: whose row each is, where patients have several.
        level: of the interval.
        scale: ``logit``, for figures in (0, 1), or ``plain``, for differences and errors.

    >>> figure = Influence(0.75, np.array([0.03, -0.03, 0.04, -0.04]))
    >>> round(figure.standard_error(), 4), influence_interval(figure, scale="plain").low.__round__(4)
    (0.0707, 0.6114)
    >>> influence_interval(figure).low.__round__(4), influence_interval(figure).high.__round__(4)
    (0.5889, 0.8627)
    """
    error = figure.standard_error(cluster)
    if not 0 < error < np.inf:
        return Interval(figure.value, None, None)
    limits = SCALES[scale](figure.value, float(ndtri((1 + level) / 2)) * error)
    return Interval(figure.value, *limits)


def _on_logit(value: float, width: float) -> tuple[float | None, float | None]:
    if not 0 < value < 1:
        return None, None
    centre, width = float(logit(value)), width / (value * (1 - value))
    return float(expit(centre - width)), float(expit(centre + width))


SCALES: Mapping[str, Callable[[float, float], tuple[float | None, float | None]]] = {
    "logit": _on_logit,
    "plain": lambda value, width: (value - width, value + width),
}
"""On which scale an interval is symmetric."""


def concordance_influence(pairs: Pairs, risk: Float64[np.ndarray, " n"], weights: PairWeights) -> Influence:
    """Harrell's C with ``pairs.harrell()``, Uno's with ``pairs.uno(…)`` (Ĝ held fixed), in O(n log n).

    Raises:
        EhrError: no comparable pair (exit 12), risks that are not finite (exit 13).

    >>> pairs = Pairs.of(np.array([1.0, 2.0, 3.0]), np.array([1, 1, 0]))
    >>> found = concordance_influence(pairs, np.array([0.9, 0.1, 0.2]), pairs.harrell())
    >>> found.value.__round__(4), found.terms.round(4).tolist()
    (0.6667, [0.2222, -0.1111, -0.1111])
    """
    rank = pairs.ranks(risk)
    concordant = pairs.concordant(rank, weights) + pairs.concordant_with(rank, weights)  # (n,)
    comparable = pairs.comparable(weights) + pairs.comparable_with(weights)  # (n,)
    return _of_pairs(concordant, comparable)


def antolini_influence(ranking: TimeRanking) -> Influence:
    """Antolini's C, in O(outcomes · n); raises as ``concordance_influence``."""
    weights = ranking.pairs.harrell()
    comparable = ranking.pairs.comparable(weights) + ranking.pairs.comparable_with(weights)
    own, others = ranking.tallies
    return _of_pairs(own + others, comparable)


def auc_influence(roc: Roc) -> Influence | None:
    """AUC at one time, in O(n log n); None where there is no case or no control."""
    concordant, comparable = np.empty(roc.order.size), np.empty(roc.order.size)
    concordant[roc.order] = roc.concordant_by_case() + roc.concordant_by_control()
    comparable[roc.order] = roc.comparable_by_case() + roc.comparable_by_control()
    return _of_pairs(concordant, comparable) if comparable.sum() > 0 else None


def mean_influence(terms: Float64[np.ndarray, " n"]) -> Influence:
    """A mean over rows, such as the Brier score.

    >>> mean_influence(np.array([1.0, 3.0])).terms.tolist()
    [-0.5, 0.5]
    """
    return Influence(float(terms.mean()), (terms - terms.mean()) / terms.size)


def ratio_influence(part: Influence, whole: Influence) -> Influence:
    """One figure as a share of another."""
    value = part.value / whole.value
    return Influence(value, (part.terms - value * whole.terms) / whole.value)


def weighted_influence(figures: Sequence[Influence], weights: Float64[np.ndarray, " k"]) -> Influence:
    """The mean of several figures of one model, weighted."""
    share = weights / weights.sum()
    value = float(sum(w * figure.value for w, figure in zip(share, figures, strict=True)))
    return Influence(value, np.sum([w * figure.terms for w, figure in zip(share, figures, strict=True)], axis=0))


def over_seeds(figures: Sequence[Influence]) -> Influence:
    """The mean of one model's seeds: the patients' influence on it, and the variance that the choice of seeds adds.

    The variance is that of the mean of as many new seeds, as the bootstrap's stretched draws have it.
    """
    values = np.array([figure.value for figure in figures])
    terms = np.mean([figure.terms for figure in figures], axis=0)
    spread = values.var(ddof=1) if values.size > 1 else 0.0
    return Influence(float(values.mean()), terms, float(spread / values.size))


def _of_pairs(concordant: np.ndarray, comparable: np.ndarray) -> Influence:
    """From each row's pairs, every pair being in two rows."""
    if not comparable.sum() > 0:
        raise no_pairs()
    value = float(concordant.sum() / comparable.sum())
    return Influence(value, 2.0 * (concordant - value * comparable) / comparable.sum())
