"""Calibration at a time in figures, on every resample: ICI, E50, E90, slope, intercept, observed over expected."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from jaxtyping import Float64
from scipy.special import logit

from ehrsequencing.evaluation.evaluated import Evaluated, SurvivalPredictions, at, outcome_free_at
from ehrsequencing.evaluation.families import Figures
from ehrsequencing.evaluation.incidence import incidence
from ehrsequencing.evaluation.logistic import Spline, blocks, logistic, probability
from ehrsequencing.evaluation.metrics import check_survival, known_outcome
from ehrsequencing.horizon import check_horizon
from ehrsequencing.nonparametric import Events, KaplanMeier

AT_A_TIME = ("ici", "e50", "e90", "slope", "intercept", "oe")
"""What is reported of each horizon; ``observed`` and ``expected`` are behind ``oe``."""
WHY_NOT: Mapping[str, str] = {
    "slope": "predictions that do not differ, or that separate who has the outcome from who has not, have no slope",
    "intercept": "everybody or nobody is known to have the outcome by then",
    "oe": "nobody was followed that long, or nobody is expected to have the outcome",
    "observed": "nobody was followed that long",
    "km_calibration": "nobody was followed to the horizon",
} | dict.fromkeys(("ici", "e50", "e90"), "no smooth curve of the outcome exists: it is separated, or the same for all")
"""Why a figure may not exist."""
CLOSE_TO_CERTAIN = 1e-9
"""Predicted risks are held this far from 0 and 1 where their logit is taken."""


def calibration(patients: Evaluated, predictions: SurvivalPredictions) -> Figures:
    """``AT_A_TIME`` at every horizon: float64[1 + resamples] each, or why there is none."""
    found: dict[str, np.ndarray | str] = {}
    for place, horizon in enumerate(patients.horizons):
        if (why := patients.no_point(predictions, horizon)) is None:
            free = outcome_free_at(predictions, np.array([float(horizon)]))[:, 0]  # (n,)
            outcome = patients.duration, patients.event, free, horizon, patients.censoring
            figures = calibration_figures(*outcome, patients.counts, patients.observed[:, place])
            found |= {at(name, horizon): _or_reason(name, figures[name]) for name in AT_A_TIME}
        else:
            found |= {at(name, horizon): why for name in AT_A_TIME}
    return found


def whole_curve(patients: Evaluated, predictions: SurvivalPredictions) -> Figures:
    """``km_calibration``: float64[1 + resamples], or why there is none."""
    if (why := patients.no_curve(predictions)) is not None:
        return {"km_calibration": why}
    curve, observed = outcome_free_at(predictions, patients.curve_times), patients.observed[:, len(patients.horizons) :]
    figures = km_calibration(curve, observed, patients.curve_times, patients.counts)
    return {"km_calibration": _or_reason("km_calibration", figures)}


def _or_reason(name: str, values: np.ndarray) -> np.ndarray | str:
    return values if np.isfinite(values[0]) else WHY_NOT[name]


def calibration_figures(
    duration: Float64[np.ndarray, " n"],
    event: Events,
    survival_at_t: Float64[np.ndarray, " n"],
    t: float,
    censoring: KaplanMeier,
    counts: np.ndarray | None = None,
    observed: Float64[np.ndarray, " resamples"] | None = None,
) -> dict[str, Float64[np.ndarray, " resamples"]]:
    """Every calibration figure at ``t`` days, each on every resample.

    ``ici``, ``e50``, ``e90``: mean, median and 90th percentile of |predicted − observed| risk, the latter smooth in the
    former (``smooth_fit``); 0 is perfect. Austin, Harrell & van Klaveren (2020), Stat Med 39:2714.

    ``slope`` of the outcome on the logit of the predicted risk (below 1: too extreme); ``intercept``, with the slope
    held at 1 (below 0: too high). Cox (1958), Biometrika 45:562. Both as the smooth curve weighted by the inverse
    probability of knowing the outcome (``known_outcome``), so that censoring and competing events are accounted for.

    ``observed``: one minus Kaplan–Meier, or with competing events Aalen–Johansen; ``expected``: the mean predicted
    risk; ``oe``: the first over the second.

    Args:
        duration, event: one a row.
        survival_at_t: the predicted probability of no outcome up to t: S(t), or with competing events 1 − CIF(t).
        t: days.
        censoring: Ĝ of the training outcome.
        counts: [resamples, n], how often each row was drawn; absent, everybody once.
        observed: the observed risk of each resample, where it is known already (``incidence``).

    Returns:
        One a resample of each figure; NaN where it does not exist (``WHY_NOT``).

    Raises:
        EhrError: t past the longest training duration or Ĝ(t−) < 0.1 (exit 12); survival not in [0, 1] (exit 13).

    >>> from ehrsequencing.nonparametric import censoring_distribution
    >>> day, event, survival = np.array([1.0, 3.0, 2.0, 3.0]), np.array([1, 0, 1, 0]), np.array([0.5, 0.5, 0.6, 0.9])
    >>> found = calibration_figures(day, event, survival, 2.0, censoring_distribution(day, event))
    >>> {name: float(found[name][0].round(3)) for name in ("observed", "expected", "oe", "intercept")}
    {'observed': 0.5, 'expected': 0.375, 'oe': 1.333, 'intercept': 0.59}
    """
    check_horizon(t, censoring)
    risk = 1.0 - check_survival(np.asarray(survival_at_t)[:, None], np.asarray(duration).size)[:, 0]  # (n,)
    drawn = np.ones((1, risk.size), dtype=np.uint8) if counts is None else counts
    happened, weight = (x[:, 0] for x in known_outcome(duration, event, np.array([float(t)]), censoring))  # (n,)
    score = risk_score(risk)
    varies = bool(np.ptp(score) > 0)
    line = np.column_stack([np.ones(risk.size), (score - score.mean()) / (score.std() if varies else 1.0)])  # (n, 2)
    slope = logistic(line, happened, weight, drawn)[:, 1] / score.std() if varies else np.full(len(drawn), np.nan)
    intercept = logistic(line[:, :1], happened, weight, drawn, score)[:, 0]
    design = Spline.of(score)(score)
    seen = incidence(duration, event, np.array([float(t)]), drawn)[:, 0] if observed is None else observed
    expected = _mean(risk, drawn)
    return {
        **_distances(risk, design, logistic(design, happened, weight, drawn), drawn),
        "slope": slope,
        "intercept": intercept,
        "observed": seen,
        "expected": expected,
        "oe": np.divide(seen, expected, out=np.full(len(drawn), np.nan), where=expected > 0),
    }


def km_calibration(
    curve: Float64[np.ndarray, "n m"],
    observed: Float64[np.ndarray, "resamples m"],
    times: Float64[np.ndarray, " m"],
    counts: np.ndarray,
) -> Float64[np.ndarray, " resamples"]:
    """The mean over (0, τ] of |mean predicted − observed| probability of no outcome, on every resample; 0 is perfect.

    By trapezia over 0, where both are 1, and ``times``, which end at τ. It sees whether a model is right on average at
    every time, not whether it tells patients apart: the Kaplan–Meier curve itself scores best.

    Args:
        curve: the predicted probability of no outcome.
        observed: the observed incidence of each resample (``incidence``).
        times: days, rising.
        counts: [resamples, n].
    """
    step = np.diff(times, prepend=0.0)
    width = (step + np.append(step[1:], 0.0)) / 2  # (m,)
    return np.abs(_mean(curve, counts) - (1.0 - observed)) @ (width / times[-1])


def risk_score(risk: Float64[np.ndarray, " n"]) -> Float64[np.ndarray, " n"]:
    """The logit of the predicted risk, finite."""
    return np.asarray(logit(np.clip(risk, CLOSE_TO_CERTAIN, 1 - CLOSE_TO_CERTAIN)))


def _mean(values: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """The mean of each resample's rows: (b,) of (n,), or (b, m) of (n, m)."""
    width, parts = len(values), []
    for block in blocks(len(counts), width):
        drawn = counts[block].astype(np.float64)
        parts.append((drawn @ values.reshape(width, -1)) / drawn.sum(axis=1, keepdims=True))
    return np.concatenate(parts).reshape(len(counts), *values.shape[1:])


def _distances(risk: np.ndarray, design: np.ndarray, fitted: np.ndarray, counts: np.ndarray) -> dict[str, np.ndarray]:
    """ICI, E50 and E90 of every resample."""
    found = np.full((len(counts), 3), np.nan)
    for block in blocks(len(counts), risk.size):
        gap = probability(fitted[block] @ design.T)
        gap -= risk
        np.abs(gap, out=gap)  # (b, n)
        for row, distance, drawn in zip(found[block], gap, counts[block], strict=True):
            if np.isfinite(distance[0]):
                own = np.repeat(distance, drawn)
                row[:] = own.mean(), *_quantiles(own)
    return dict(zip(("ici", "e50", "e90"), found.T, strict=True))


def _quantiles(x: np.ndarray) -> tuple[float, float]:
    """``np.quantile(x, [0.5, 0.9])`` without its overhead; x is reordered."""
    places = [(x.size - 1) * share for share in (0.5, 0.9)]
    ends = [(int(place), min(int(place) + 1, x.size - 1)) for place in places]
    x.partition(sorted({k for pair in ends for k in pair}))
    half, most = (x[low] + (place - low) * (x[high] - x[low]) for place, (low, high) in zip(places, ends, strict=True))
    return float(half), float(most)
