"""Calibration: observed against predicted risk, its slope and intercept, and recalibration of hazard logits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Float64, Int64
from scipy.optimize import minimize
from scipy.special import expit, logit

from ehrsequencing.config import MIN_TUNING_EVENTS
from ehrsequencing.errors import EhrError, Exit
from ehrsequencing.evaluation.compare import LEVEL, resample_counts
from ehrsequencing.evaluation.metrics import check_survival, known_outcome
from ehrsequencing.hazards import nll_gradient, softplus
from ehrsequencing.horizon import check_horizon
from ehrsequencing.nonparametric import AalenJohansen, Events, KaplanMeier, check_causes
from ehrsequencing.timegrid import TimeGrid, truncate

MIN_BIN_EVENTS = 10
"""Bins with fewer tuning events share one recalibration intercept."""


@dataclass(frozen=True, eq=False)
class CalibrationCurve:
    """Observed against predicted risk of the event by a time, in groups of rising predicted risk.

    Attributes:
        predicted: float64[g], mean predicted risk of the group.
        observed: float64[g], one minus its Kaplan–Meier estimate, or with competing events its Aalen–Johansen estimate
            of the outcome's incidence; NaN where nobody in it was followed that long.
        low, high: float64[g], the interval of ``observed``.
        n: int64[g], patients in the group.
    """

    predicted: Float64[np.ndarray, " g"]
    observed: Float64[np.ndarray, " g"]
    low: Float64[np.ndarray, " g"]
    high: Float64[np.ndarray, " g"]
    n: Int64[np.ndarray, " g"]


def calibration_curve(
    duration: Float64[np.ndarray, " n"],
    event: Events,
    survival_at_t: Float64[np.ndarray, " n"],
    t: float,
    *,
    groups: int = 10,
    n_boot: int = 0,
    seed: int = 0,
    level: float = LEVEL,
) -> CalibrationCurve:
    """The calibration curve at ``t`` days.

    Groups are quantiles of the predicted risk; equal predictions are never split, so that there may be fewer.

    Args:
        duration, event, survival_at_t: one a patient; the last is the predicted S(t), or with competing events
            1 − CIF(t) of the outcome.
        t: days.
        groups: how many, at most.
        n_boot: 0 for the estimate's own interval (log−log); otherwise resamples of the patients inside each group.
            A group in which nobody or everybody had the event always has the exact limit of ``KaplanMeier.interval``,
            because its resamples are all alike.
        seed: of the resamples.
        level: of the interval.

    Raises:
        EhrError: survival that is not a probability (exit 13).
    """
    duration, event = check_causes(duration, event)
    risk = 1.0 - check_survival(survival_at_t[:, None], duration.size)[:, 0]  # (n,)
    causes = max(int(event.max()), 1)
    cuts = np.unique(np.quantile(risk, np.arange(1, groups) / groups, method="inverted_cdf"))
    member = np.unique(np.searchsorted(cuts, risk, side="left"), return_inverse=True)[1]  # (n,)
    rows = []
    for g in range(int(member.max()) + 1):
        own = member == g
        rows.append((risk[own].mean(), *_observed(duration[own], event[own], causes, t, n_boot, seed, level)))
    predicted, observed, low, high = np.array(rows, dtype=np.float64).T
    return CalibrationCurve(predicted, observed, low, high, np.bincount(member))


def _observed(
    duration: np.ndarray, event: np.ndarray, causes: int, t: float, n_boot: int, seed: int, level: float
) -> tuple[float, float, float]:
    """The observed risk by t and its limits."""
    risk, low, high = _incidence(duration, event, causes, t, level)
    if float(duration.max()) < t and KaplanMeier.fit(duration, event).at(t) > 0:
        return np.nan, np.nan, np.nan
    if n_boot > 0 and 0 < risk < 1:
        risks = _resampled_risk(duration, event, t, resample_counts(duration.size, n_boot, seed)[1:])
        low, high = (float(q) for q in np.nanquantile(risks, [(1 - level) / 2, (1 + level) / 2]))
    return risk, low, high


def _incidence(
    duration: np.ndarray, event: np.ndarray, causes: int, t: float, level: float
) -> tuple[float, float, float]:
    """The outcome's incidence by t with its limits: Kaplan–Meier for one cause, else Aalen–Johansen."""
    at = np.array([float(t)])
    if causes == 1:
        km = KaplanMeier.fit(duration, event)
        low, high = (1.0 - float(limit[0]) for limit in reversed(km.interval(at, level)))
        return 1.0 - float(km.at(t)), low, high
    incidence = AalenJohansen.fit(duration, event, causes)
    low, high = (float(limit[0, 0]) for limit in incidence.interval(at, level))
    return float(incidence.at(at)[0, 0]), low, high


def _resampled_risk(duration: np.ndarray, event: np.ndarray, t: float, counts: np.ndarray) -> np.ndarray:
    """The outcome's incidence by t on every resample, (B,); NaN where nobody drawn was followed to t."""
    order = np.argsort(duration, kind="stable")
    weights = counts[:, order].astype(np.float64)  # (B, n)
    first = np.unique(duration[order], return_index=True)[1]  # (m,) where each distinct time starts
    at_risk = np.cumsum(weights[:, ::-1], axis=1)[:, ::-1][:, first]  # (B, m)

    def lost(happened: np.ndarray) -> np.ndarray:
        events = np.add.reduceat(weights * happened[order], first, axis=1)  # (B, m)
        return np.divide(events, at_risk, out=np.zeros_like(events), where=at_risk > 0)

    survival = np.cumprod(1.0 - lost(event > 0), axis=1)  # (B, m)
    before = np.concatenate([np.ones((len(weights), 1)), survival[:, :-1]], axis=1)
    inside = duration[order][first] <= t  # (m,)
    followed = (weights * (duration[order] >= t)).sum(axis=1) > 0
    over = survival[:, np.flatnonzero(inside)[-1]] == 0 if inside.any() else False
    return np.where(followed | over, (before * lost(event == 1))[:, inside].sum(axis=1), np.nan)


@dataclass(frozen=True)
class CalibrationSummary:
    """Calibration at a time in four numbers; a perfect model has slope 1, intercept 0 and observed = expected.

    Attributes:
        slope: of the outcome on the logit of the predicted risk; below 1 the predictions are too extreme. NaN where
            predictions do not differ or separate the outcomes.
        intercept: with the slope held at 1, the shift of the logit that would make predictions right on average.
        observed: one minus the Kaplan–Meier estimate of everybody; with competing events Aalen–Johansen.
        expected: the mean predicted risk.
    """

    slope: float
    intercept: float
    observed: float
    expected: float


def calibration_summary(
    duration: Float64[np.ndarray, " n"],
    event: Events,
    survival_at_t: Float64[np.ndarray, " n"],
    t: float,
    censoring: KaplanMeier,
) -> CalibrationSummary:
    """Logistic recalibration at ``t`` days, patients weighted by the inverse probability of censoring.

    Cox (1958), Biometrika 45:562, on the weighted outcome of ``brier_terms``.

    Raises:
        EhrError: t past the longest training duration or Ĝ(t−) < 0.1 (exit 12); survival not in [0, 1] (exit 13).
    """
    duration, event = check_causes(duration, event)
    check_horizon(t, censoring)
    risk = 1.0 - check_survival(survival_at_t[:, None], duration.size)[:, 0]
    died, weight = (x[:, 0] for x in known_outcome(duration, event, np.array([float(t)]), censoring))  # (n,)
    score = logit(np.clip(risk, 1e-12, 1 - 1e-12))  # (n,)
    both = np.column_stack([score, np.ones(score.size)])
    slope = _logistic(both, np.zeros(score.size), died, weight)[0] if np.ptp(score) > 0 else np.nan
    intercept = _logistic(both[:, 1:], score, died, weight)[0]
    observed = _incidence(duration, event, max(int(event.max()), 1), t, LEVEL)[0]
    return CalibrationSummary(float(slope), float(intercept), observed, float(risk.mean()))


def _logistic(x: np.ndarray, offset: np.ndarray, y: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Weighted maximum likelihood, (p,); NaN where it does not exist."""

    def loss(b: np.ndarray) -> tuple[float, np.ndarray]:
        score = offset + x @ b  # (n,)
        return float(weight @ (softplus(score) - y * score)) / scale, x.T @ (weight * (expit(score) - y)) / scale

    scale, start = weight.sum(), np.zeros(x.shape[1])
    if not 0 < weight @ y < scale:
        return np.full(x.shape[1], np.nan)
    found = minimize(loss, start, jac=True, method="L-BFGS-B", options={"gtol": 1e-10, "ftol": 1e-15})
    return found.x if np.abs(found.x).max() < 1e3 else np.full(x.shape[1], np.nan)


