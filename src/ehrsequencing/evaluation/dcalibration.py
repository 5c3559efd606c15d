"""D-calibration: whether events fall evenly over the deciles of the predicted survival at their own time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float64
from scipy.stats import chi2

from ehrsequencing.evaluation.evaluated import Evaluated, SurvivalPredictions
from ehrsequencing.evaluation.metrics import check_survival
from ehrsequencing.nonparametric import Events, check_outcome

BINS = 10
MIN_EXPECTED = 5.0
LEAST = 1e-12
"""Survival is held above this where its logarithm is taken."""
NOT_DEFINED = (
    "D-calibration asks how S(T) is distributed; with competing events the outcome's 1 − CIF does not fall to 0 and T "
    "may never come: read ICI, slope and observed/expected, which compare with Aalen–Johansen"
)


@dataclass(frozen=True, eq=False)
class DCalibration:
    """Shares of the patients by predicted survival at their own time, and how far they are from 1 in 10 each.

    Attributes:
        bins: float64[10], shares with S(T) in [0, 0.1), [0.1, 0.2), …, [0.9, 1]; they add to 1.
        statistic: Pearson's: n · 10 · Σ (share − 1/10)².
        p: of the statistic, chi-square with 9 degrees of freedom. With censoring it is too high, often by far: spread
            patients vary less than multinomial ones (Simonsen & Waagepetersen 2025, BMC Med Res Methodol 25:236).
        adjusted_statistic, adjusted_p: of events rather than patients, Σ (observed − expected)² / expected over the
            bins, expected being the cumulative hazard −log S that was lived through in the bin. Under a true model the
            differences are martingales, uncorrelated, with the expected events as variance, however patients are
            censored (Hjort 1990, Ann Stat 18:1221): chi-square.
            NaN under 5 expected events.
        degrees: of freedom of the adjusted statistic: a bin with under 5 expected events joins the next.
    """

    bins: Float64[np.ndarray, " ten"]
    statistic: float
    p: float
    adjusted_statistic: float
    adjusted_p: float
    degrees: int

    def to_json(self) -> dict[str, Any]:
        """Plain data for a JSON file."""
        return {
            "statistic": self.statistic,
            "p": self.p,
            "adjusted_statistic": self.adjusted_statistic if self.degrees else None,
            "adjusted_p": self.adjusted_p if self.degrees else None,
            "degrees": self.degrees,
            "bins": self.bins.tolist(),
        }


def d_calibration(
    duration: Float64[np.ndarray, " n"], event: Events, survival_at_own_time: Float64[np.ndarray, " n"]
) -> DCalibration:
    """Haider, Hoehn, Davis & Greiner (2020), JMLR 21:85, §3.5, with 10 bins.

    Under a true model S(T) is uniform. Whoever is censored at C, or at τ where durations end there, has S(T) uniform
    below S(C): one patient in all, spread over their own bin and those below.

    A test: with many patients a good model is rejected, with few a bad one passes. It is reported, and decides nothing.

    Args:
        duration, event: one a row; every event code above 0 counts, and durations are truncated at τ beforehand.
        survival_at_own_time: each row's predicted S at its own duration (``at_own_time``).

    Raises:
        EhrError: survival not in [0, 1] (exit 13).

    >>> half_of_each_bin = np.arange(0.05, 1.0, 0.1)
    >>> found = d_calibration(np.ones(10), np.ones(10, dtype=np.int64), half_of_each_bin)
    >>> found.statistic, found.p
    (0.0, 1.0)
    """
    duration, happened = check_outcome(duration, event)
    survival = np.clip(check_survival(survival_at_own_time[:, None], duration.size)[:, 0], 0.0, 1.0)
    bins = bin_shares(happened, survival).mean(axis=0)  # (10,)
    statistic = float(duration.size * BINS * ((bins - 1.0 / BINS) ** 2).sum())
    observed, expected = _pooled(*_events(happened, survival))  # (k,)
    adjusted = float(((observed - expected) ** 2 / expected).sum()) if observed.size else np.nan
    p, adjusted_p = float(chi2.sf(statistic, BINS - 1)), float(chi2.sf(adjusted, observed.size))
    return DCalibration(bins, statistic, p, adjusted, adjusted_p, observed.size)


def check(patients: Evaluated, seeds: Sequence[SurvivalPredictions]) -> dict[str, Any] | str:
    """D-calibration of a model up to τ, of its seeds the one with the median statistic; or why there is none."""
    if (patients.event > 1).any() or any(each.cif for each in seeds):
        return NOT_DEFINED
    for each in seeds:
        if (why := patients.no_curve(each)) is not None:
            return why
    curves = [(each.survival_at(each.horizon_days), each.horizon_days) for each in seeds]
    own = [at_own_time(*curve, patients.duration) for curve in curves]
    found = [d_calibration(patients.duration, patients.event, survival) for survival in own]
    return sorted(found, key=lambda each: each.statistic)[(len(found) - 1) // 2].to_json()


def bin_shares(happened: np.ndarray, survival: Float64[np.ndarray, " n"]) -> Float64[np.ndarray, "n ten"]:
    """How each row is spread over the bins: an event into its own; (S − a)/S and 0.1/S each below where censored.

    >>> bin_shares(np.array([True, False]), np.array([0.25, 0.25]))[:, :4]
    array([[0. , 0. , 1. , 0. ],
           [0.4, 0.4, 0.2, 0. ]])
    """
    low = np.arange(BINS) / BINS
    own = _own_bin(survival)  # (n,)
    spread = np.clip(survival[:, None] - low, 0.0, 1.0 / BINS)  # (n, 10)
    spread = np.divide(spread, survival[:, None], out=np.eye(1, BINS).repeat(own.size, 0), where=survival[:, None] > 0)
    return np.where(happened[:, None], np.eye(BINS)[own], spread)


def _own_bin(survival: np.ndarray) -> np.ndarray:
    return np.minimum((survival * BINS + 1e-9).astype(np.int64), BINS - 1)


def at_own_time(
    curve: Float64[np.ndarray, "n m"], times: Float64[np.ndarray, " m"], duration: Float64[np.ndarray, " n"]
) -> Float64[np.ndarray, " n"]:
    """Each row's survival at its own duration, linear between (0, 1) and ``times``, which reach every duration.

    >>> at_own_time(np.array([[0.8, 0.4], [0.8, 0.4]]), np.array([10.0, 20.0]), np.array([15.0, 5.0]))
    array([0.6, 0.9])
    """
    knots = np.append(0.0, times)  # (m + 1,)
    steps = np.concatenate([np.ones((len(curve), 1)), curve], axis=1)  # (n, m + 1)
    inside = np.minimum(duration, knots[-1])
    right = np.clip(np.searchsorted(knots, inside), 1, times.size)  # (n,)
    row = np.arange(len(curve))
    share = (inside - knots[right - 1]) / (knots[right] - knots[right - 1])
    return np.asarray(steps[row, right - 1] * (1 - share) + steps[row, right] * share)


def _events(happened: np.ndarray, survival: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Observed and expected events in each bin of predicted survival, from the highest, where everybody starts."""
    high = np.arange(BINS, 0, -1) / BINS  # (10,)
    lived = np.log(high / np.clip(np.maximum(survival[:, None], high - 1.0 / BINS), LEAST, high))  # (n, 10)
    return np.bincount(_own_bin(survival[happened]), minlength=BINS)[::-1].astype(np.float64), lived.sum(axis=0)


def _pooled(observed: np.ndarray, expected: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Neighbouring bins joined until each expects ``MIN_EXPECTED``; what is left at the end joins the last."""
    group, held, groups = np.zeros(expected.size, dtype=np.int64), 0.0, 0
    for k, events in enumerate(expected):
        group[k], held = groups, held + events
        if held >= MIN_EXPECTED:
            groups, held = groups + 1, 0.0
    if groups == 0:
        return np.zeros(0), np.zeros(0)
    group = np.minimum(group, groups - 1)
    return np.bincount(group, observed), np.bincount(group, expected)
