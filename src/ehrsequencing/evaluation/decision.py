"""Decision curves: the net benefit of acting on a predicted risk by a day, over thresholds (NumPy)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int64

from ehrsequencing.config import MIN_CELL
from ehrsequencing.evaluation.metrics import check_survival
from ehrsequencing.evaluation.nested import nested_incidence
from ehrsequencing.evaluation.resampling import LEVEL, resample_counts
from ehrsequencing.horizon import check_horizon
from ehrsequencing.nonparametric import Events, KaplanMeier

POINTS = 50
TIMES_MEAN_RISK = 5.0
"""Thresholds past this many times the mean predicted risk are hardly anybody's to act on."""


@dataclass(frozen=True, eq=False)
class NetBenefit:
    """Net benefit by a day over thresholds p: true positives a patient, less false positives weighed by p/(1 − p).

    Attributes:
        thresholds: float64[k], rising.
        model: float64[k], of acting on whoever has a predicted risk of at least p; NaN where that is fewer than 10
            patients, or nobody of them was followed to that day.
        treat_all: float64[k], of acting on everybody.
        treat_none: float64[k], zeros.
        flagged: float64[k], the share of rows with a predicted risk of at least p; NaN where ``model`` is.
        gain: float64[k], ``model`` less the better of the two policies without a model.
        low, high: float64[k], the interval of ``model``; None without resamples.
        gain_low, gain_high: float64[k], that of ``gain``, on the same resamples: chance that is common to both cancels.
    """

    thresholds: Float64[np.ndarray, " k"]
    model: Float64[np.ndarray, " k"]
    treat_all: Float64[np.ndarray, " k"]
    treat_none: Float64[np.ndarray, " k"]
    flagged: Float64[np.ndarray, " k"]
    gain: Float64[np.ndarray, " k"]
    low: Float64[np.ndarray, " k"] | None = None
    high: Float64[np.ndarray, " k"] | None = None
    gain_low: Float64[np.ndarray, " k"] | None = None
    gain_high: Float64[np.ndarray, " k"] | None = None


ROUNDING = 1e-12
"""1 − 0.8 is a hair less than 0.2, and yet reaches it."""


def net_benefit(
    duration: Float64[np.ndarray, " n"],
    event: Events,
    survival_at_t: Float64[np.ndarray, " n"],
    t: float,
    censoring: KaplanMeier,
    thresholds: Float64[np.ndarray, " k"],
    *,
    n_boot: int = 0,
    seed: int = 0,
    subject_id: Int64[np.ndarray, " n"] | None = None,
    level: float = LEVEL,
) -> NetBenefit:
    """F_p(t)·P(flagged) − (1 − F_p(t))·P(flagged)·p/(1 − p), flagged being a predicted risk of at least p.

    Vickers & Elkin (2006), Med Decis Making 26:565; with censoring and with competing events Vickers, Cronin, Elkin &
    Gonen (2008), BMC Med Inform Decis Mak 8:53.

    F_p is the observed risk among the flagged, by Kaplan–Meier or, with competing events, Aalen–Johansen, inside that
    group: the published estimator, which other programs reproduce. The weights of ``known_outcome`` would do as well
    where censoring does not depend on the risk, and are the same thing where Ĝ is that of the flagged (Satten & Datta
    2001, Am Stat 55:207); but one Ĝ for everybody is wrong where the sickest are followed longest or shortest, which is
    just where a threshold divides. The tests hold the two against each other.

    Args:
        duration, event: one a row; 1 the outcome, 2, 3, … competing events.
        survival_at_t: the predicted probability of no outcome by ``t``.
        t: days.
        censoring: Ĝ of the training outcome: decides, as for every figure, whether ``t`` can be reported at all.
        thresholds: rising, between 0 and 1 (``default_thresholds``).
        n_boot: resamples of patients; 0 for no intervals.
        seed: of the resamples.
        subject_id: whose rows these are, where patients have several; absent, each row is a patient.
        level: of the intervals.

    Raises:
        EhrError: t past the longest training duration or Ĝ(t−) < 0.1 (exit 12); survival not in [0, 1] (exit 13).
        ValueError: thresholds that do not rise, or are not between 0 and 1.

    >>> from ehrsequencing.nonparametric import censoring_distribution
    >>> duration, event = np.full(40, 2.0), np.repeat([1, 0], 20)  # half of them have it, all flagged ones do
    >>> g = censoring_distribution(duration, event)
    >>> found = net_benefit(duration, event, np.repeat([0.2, 0.8], 20), 2.0, g, np.array([0.1, 0.5]))
    >>> found.model.round(3), found.treat_all.round(3), found.flagged
    (array([0.444, 0.5  ]), array([0.444, 0.   ]), array([1. , 0.5]))
    """
    check_horizon(t, censoring)
    thresholds = _rising(thresholds)
    risk = 1.0 - check_survival(np.asarray(survival_at_t)[:, None], np.asarray(duration).size)[:, 0]  # (n,)
    member = np.searchsorted(thresholds, risk + ROUNDING, side="right")  # (n,) thresholds reached
    counts = resample_counts(risk.size, n_boot, seed, subject_id)  # (1 + B, n)
    observed, share = nested_incidence(duration, event, t, counts, member, thresholds.size + 1)  # (1 + B, 1 + k)
    odds = thresholds / (1.0 - thresholds)  # (k,)
    gained = np.where(share > 0, observed * share, 0.0)  # true positives; nobody flagged: nothing gained
    lost = np.where(share > 0, (1.0 - observed) * share, 0.0)
    model = gained[:, 1:] - lost[:, 1:] * odds  # (1 + B, k)
    treat_all = gained[:, :1] - lost[:, :1] * odds  # (1 + B, k)
    model[:, _patients(member, subject_id, thresholds.size) < MIN_CELL] = np.nan
    gain = model - np.maximum(treat_all, 0.0)
    low, high = _limits(model, level)
    gain_low, gain_high = _limits(gain, level)
    flagged = np.where(np.isfinite(model[0]), share[0, 1:], np.nan)
    nothing = np.zeros(thresholds.size)
    return NetBenefit(thresholds, model[0], treat_all[0], nothing, flagged, gain[0], low, high, gain_low, gain_high)


def default_thresholds(
    survival_at_t: Float64[np.ndarray, " n"] | Float64[np.ndarray, "models n"], points: int = POINTS
) -> Float64[np.ndarray, " k"]:
    """Equally spaced thresholds from just above 0 to where predictions still reach.

    Up to the 99th percentile of the predicted risk, and at most 5 times its mean: past that hardly anybody is flagged.
    Of several models the widest range.

    >>> default_thresholds(1 - np.array([0.0, 0.1, 0.2, 0.3]), points=3)
    array([0.099, 0.198, 0.297])
    """
    risk = 1.0 - np.atleast_2d(np.asarray(survival_at_t, dtype=np.float64))  # (models, n)
    reach = np.minimum(np.quantile(risk, 0.99, axis=1), TIMES_MEAN_RISK * risk.mean(axis=1))  # (models,)
    top = float(np.clip(reach.max(), 1e-4, 0.99))
    return np.linspace(0.0, top, points + 1)[1:]


def _rising(thresholds: np.ndarray) -> np.ndarray:
    thresholds = np.asarray(thresholds, dtype=np.float64)
    if thresholds.ndim != 1 or not ((thresholds > 0) & (thresholds < 1)).all() or (np.diff(thresholds) <= 0).any():
        raise ValueError(f"expected rising thresholds between 0 and 1, found {thresholds}")
    return thresholds


def _patients(member: np.ndarray, subject_id: np.ndarray | None, groups: int) -> np.ndarray:
    """How many patients reach each threshold with one of their rows, (k,)."""
    if subject_id is not None:
        owner = np.unique(subject_id, return_inverse=True)[1]
        highest = np.zeros(int(owner.max()) + 1, dtype=np.int64)
        np.maximum.at(highest, owner, member)
        member = highest
    return np.bincount(member, minlength=groups + 1)[::-1].cumsum()[::-1][1:]


def _limits(figures: np.ndarray, level: float) -> tuple[np.ndarray, np.ndarray] | tuple[None, None]:
    """Percentiles over the resamples of each column; NaN where the figure itself is."""
    if figures.shape[0] == 1:
        return None, None
    low, high = np.full((2, figures.shape[1]), np.nan)
    seen = np.isfinite(figures[0]) & np.isfinite(figures[1:]).any(axis=0)
    low[seen], high[seen] = np.nanquantile(figures[1:, seen], [(1 - level) / 2, (1 + level) / 2], axis=0)
    return low, high
