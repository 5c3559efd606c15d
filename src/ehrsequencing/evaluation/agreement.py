"""The integrated calibration index: how far predicted risks lie from smoothed observed ones, on every resample."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float64
from scipy.special import expit, logit

from ehrsequencing.evaluation.metrics import check_survival, known_outcome
from ehrsequencing.horizon import check_horizon
from ehrsequencing.nonparametric import Events, KaplanMeier

KNOTS = (0.10, 0.50, 0.90)
"""Quantiles of the score at which the smooth curve may bend (Harrell's places for three knots)."""
STEPS, RESAMPLE_STEPS = 40, 4
MAX_SLOPE = 1e3


def calibration_index(
    duration: Float64[np.ndarray, " n"],
    event: Events,
    survival_at_t: Float64[np.ndarray, " n"],
    t: float,
    censoring: KaplanMeier,
    counts: np.ndarray | None = None,
) -> Float64[np.ndarray, " resamples"]:
    """ICI at ``t`` days: the mean |predicted − observed| risk, the latter smooth in the former; 0 is perfect.

    The observed risk is a logistic regression of the outcome by t on a restricted cubic spline (three knots) of the
    logit of the predicted risk, patients weighted by the inverse probability of knowing it (``known_outcome``), so that
    censoring and competing events are accounted for. Austin, Harrell & van Klaveren (2020), Stat Med 39:2714.

    Args:
        duration, event: one a row.
        survival_at_t: the predicted probability of no outcome up to t.
        t: days.
        censoring: Ĝ of the training outcome.
        counts: [resamples, n], how often each row was drawn; absent, everybody once.

    Returns:
        One a resample; NaN where the outcome is separated, so that no such curve exists.

    Raises:
        EhrError: t past the longest training duration or Ĝ(t−) < 0.1 (exit 12); survival not in [0, 1] (exit 13).
    """
    check_horizon(t, censoring)
    risk = 1.0 - check_survival(np.asarray(survival_at_t)[:, None], np.asarray(duration).size)[:, 0]  # (n,)
    happened, weight = (x[:, 0] for x in known_outcome(duration, event, np.array([float(t)]), censoring))
    draws = np.ones((1, risk.size)) if counts is None else counts.astype(np.float64)  # (b, n)
    design = spline(logit(np.clip(risk, 1e-9, 1 - 1e-9)))  # (n, p)
    everybody = _fit(design, happened, weight[None, :], np.zeros((1, design.shape[1])), STEPS)
    fitted = _fit(design, happened, draws * weight, np.repeat(everybody, len(draws), axis=0), RESAMPLE_STEPS)
    gap = np.abs(expit(fitted @ design.T) - risk)  # (b, n)
    exists = np.isfinite(fitted).all(axis=1) & (np.abs(fitted).max(axis=1) < MAX_SLOPE)
    return np.where(exists, (draws * gap).sum(axis=1) / draws.sum(axis=1), np.nan)


def spline(x: Float64[np.ndarray, " n"]) -> Float64[np.ndarray, "n p"]:
    """1, x and the restricted cubic term of three knots, linear beyond the outer ones; fewer where x hardly varies.

    Harrell, Regression Modeling Strategies, §2.4.5. Columns after the first are standardised.
    """
    low, middle, high = np.quantile(x, KNOTS)
    columns = [np.ones_like(x)]
    if np.ptp(x) > 0:
        columns.append((x - x.mean()) / x.std())
    if low < middle < high:
        cube = [np.maximum(x - knot, 0.0) ** 3 for knot in (low, middle, high)]
        bend = cube[0] - (cube[1] * (high - low) - cube[2] * (middle - low)) / (high - middle)
        columns.append((bend - bend.mean()) / bend.std())
    return np.stack(columns, axis=1)


def _fit(design: np.ndarray, y: np.ndarray, weight: np.ndarray, start: np.ndarray, steps: int) -> np.ndarray:
    """Weighted logistic regressions of one design, one a row of ``weight`` (b, n), by Newton's method: (b, p)."""
    n, p = design.shape
    squares = (design[:, :, None] * design[:, None, :]).reshape(n, p * p)
    share = weight / np.maximum(weight.sum(axis=1, keepdims=True), 1e-300)
    beta = start
    for _ in range(steps):
        mean = expit(beta @ design.T)  # (b, n)
        slope = (share * (y - mean)) @ design  # (b, p)
        curvature = ((share * mean * (1.0 - mean)) @ squares).reshape(-1, p, p) + 1e-10 * np.eye(p)
        step = np.linalg.solve(curvature, slope[:, :, None])[:, :, 0]
        beta = beta + np.clip(step, -3.0, 3.0)
        if np.abs(step).max() < 1e-10:
            break
    return beta
