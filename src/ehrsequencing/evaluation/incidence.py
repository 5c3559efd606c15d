"""The outcome's observed incidence on every bootstrap resample: weighted Kaplan–Meier, or Aalen–Johansen."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float64

from ehrsequencing.evaluation.logistic import blocks
from ehrsequencing.nonparametric import Events, check_causes


def incidence(
    duration: Float64[np.ndarray, " n"],
    event: Events,
    times: Float64[np.ndarray, " m"],
    counts: np.ndarray | None = None,
) -> Float64[np.ndarray, "resamples m"]:
    """The probability of the outcome by each time: Σ_{u ≤ t} S(u−)·d₁(u)/Y(u), each row as often as it was drawn.

    With one cause this is 1 − Kaplan–Meier, with several the Aalen–Johansen estimate of cause 1.

    Args:
        duration, event: one a row.
        times: days.
        counts: [resamples, n], how often each row was drawn; absent, everybody once.

    Returns:
        NaN past the longest duration drawn, unless nobody is left by then.

    Raises:
        EhrError: durations or event codes that are none (exit 12).

    >>> incidence(np.array([1.0, 2.0, 3.0, 4.0]), np.array([1, 2, 0, 1]), np.array([0.5, 1.0, 2.0, 5.0]))
    array([[0.  , 0.25, 0.25, 0.75]])
    """
    duration, event = check_causes(duration, event)
    order = np.argsort(duration, kind="stable")
    drawn = np.ones((1, duration.size), dtype=np.uint8) if counts is None else counts
    sample = duration[order], event[order]
    found = [_incidence(*sample, drawn[block][:, order], times) for block in blocks(len(drawn), duration.size)]
    return np.concatenate(found)


def _incidence(
    duration: np.ndarray, event: np.ndarray, counts: np.ndarray, times: np.ndarray
) -> Float64[np.ndarray, "b m"]:
    """In order of ``duration``; only the times of events, u, are looked at."""
    happened = np.flatnonzero((event > 0) & (duration <= np.max(times)))  # (e,)
    at, first = np.unique(duration[happened], return_index=True)  # (u,)
    last = duration[duration.size - 1 - np.argmax(counts[:, ::-1] > 0, axis=1)]  # (b,) the longest duration drawn
    if at.size == 0:
        return np.where(times <= last[:, None], 0.0, np.nan)
    start = np.searchsorted(duration, at)  # (u,) where each event time begins
    leaving = np.add.reduceat(counts, start, axis=1, dtype=np.float64)  # (b, u) from each event time to the next
    at_risk = np.cumsum(leaving[:, ::-1], axis=1)[:, ::-1]  # (b, u)
    chance = np.divide(1.0, at_risk, out=np.zeros_like(at_risk), where=at_risk > 0)
    of_any, of_outcome = (
        np.add.reduceat(counts[:, happened] * kind, first, axis=1, dtype=np.float64) * chance  # (b, u)
        for kind in (np.uint8(1), (event[happened] == 1).astype(np.uint8))
    )
    survival = np.cumprod(1.0 - of_any, axis=1)  # (b, u)
    of_outcome[:, 1:] *= survival[:, :-1]
    steps = np.cumsum(of_outcome, axis=1)
    index = np.searchsorted(at, times, side="right") - 1  # (m,)
    before = index < 0
    values = np.where(before, 0.0, steps[:, index])
    over = np.where(before, False, survival[:, index] <= 1e-12)
    return np.where((times <= last[:, None]) | over, values, np.nan)
