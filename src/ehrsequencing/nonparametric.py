"""Kaplan–Meier and the censoring distribution, with their tie rules and intervals; NumPy only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float64, Int
from scipy.special import ndtri

from ehrsequencing.errors import EhrError, Exit

Events = Bool[np.ndarray, " n"] | Int[np.ndarray, " n"]


def check_outcome(duration: np.ndarray, event: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The outcome as (float64[n], bool[n]).

    Raises:
        EhrError: unequal lengths, no rows, or durations that are negative or not finite (exit 12).

    >>> check_outcome(np.array([1.0, 2.0]), np.array([0, 1]))
    (array([1., 2.]), array([False,  True]))
    """
    duration = np.asarray(duration, dtype=np.float64)  # (n,)
    event = np.asarray(event) != 0  # (n,)
    if duration.ndim != 1 or duration.shape != event.shape or duration.size == 0:
        raise EhrError(
            f"expected one duration and one event flag a patient, found shapes {duration.shape} and {event.shape}",
            "outcome",
            "give two equally long, non-empty columns",
            code=Exit.COHORT,
        )
    bad = ~np.isfinite(duration) | (duration < 0)
    if bad.any():
        raise EhrError(
            f"expected finite durations of at least 0 days, found {int(bad.sum())} that are not",
            f"outcome, first in row {int(np.argmax(bad))}",
            "leave out or correct these rows",
            code=Exit.COHORT,
        )
    return duration, event


@dataclass(frozen=True, eq=False)
class KaplanMeier:
    """A survival curve as a right-continuous step function, with the counts behind it.

    Attributes:
        times: float64[m], the distinct times at which the curve steps.
        values: float64[m], S at and after each time.
        at_risk: float64[m], patients at risk just before each time.
        events: float64[m], events at each time.
        observed: float64[n], all durations, sorted; past the last one the curve is held at its last value.

    >>> km = KaplanMeier.fit(np.array([1.0, 2.0, 2.0, 3.0]), np.array([1, 1, 0, 1]))
    >>> km.at(np.array([0.5, 1.0, 2.0])), km.before(np.array([2.0]))
    (array([1.  , 0.75, 0.5 ]), array([0.75]))
    """

    times: Float64[np.ndarray, " m"]
    values: Float64[np.ndarray, " m"]
    at_risk: Float64[np.ndarray, " m"]
    events: Float64[np.ndarray, " m"]
    observed: Float64[np.ndarray, " n"]

    @classmethod
    def fit(cls, duration: Float64[np.ndarray, " n"], event: Events) -> KaplanMeier:
        """Kaplan & Meier (1958). A patient censored at t was still at risk of the events at t."""
        duration, event = check_outcome(duration, event)
        times, at_risk, events, _ = _tally(duration, event)
        return cls._from_counts(times, at_risk, events, duration)

    @classmethod
    def _from_counts(
        cls, times: np.ndarray, at_risk: np.ndarray, events: np.ndarray, duration: np.ndarray
    ) -> KaplanMeier:
        steps = events > 0
        # (m,) at_risk >= events > 0 at every step
        values = np.cumprod(1.0 - events[steps] / at_risk[steps])
        return cls(times[steps], values, at_risk[steps], events[steps], np.sort(duration))

    @property
    def last(self) -> float:
        """The longest duration."""
        return float(self.observed[-1])

    def at(self, t: np.ndarray | float) -> np.ndarray:
        """S(t) = P(T > t), float64 in the shape of ``t``."""
        return self._look_up(t, "right")

    def before(self, t: np.ndarray | float) -> np.ndarray:
        """S(t−) = P(T ≥ t), float64 in the shape of ``t``."""
        return self._look_up(t, "left")

    def interval(self, t: Float64[np.ndarray, " k"], level: float = 0.95) -> tuple[np.ndarray, np.ndarray]:
        """Pointwise limits of S(t): log(−log) with Greenwood's variance (Kalbfleisch & Prentice).

        Where S(t) is 1 (or 0) Greenwood's variance says nothing; there the exact binomial limit with the number at risk
        at t, (α/2)^(1/n), bounds it from below (or 1 − (α/2)^(1/n) from above).

        Returns:
            (low, high), each float64[k].
        """
        t = np.asarray(t, dtype=np.float64)
        z, survival = float(ndtri((1 + level) / 2)), self.at(t)  # (k,)
        inside = (survival > 0) & (survival < 1)
        log_s = np.log(np.where(inside, survival, 0.5))
        width = z * np.sqrt(np.where(inside, self._greenwood(t), 0.0)) / np.abs(log_s)
        exact = ((1 - level) / 2) ** (1.0 / np.maximum(self._at_risk_at(t), 1))
        low = np.where(inside, np.exp(log_s * np.exp(width)), np.where(survival >= 1, exact, 0.0))
        high = np.where(inside, np.exp(log_s * np.exp(-width)), np.where(survival >= 1, 1.0, 1 - exact))
        return low, high

    def _look_up(self, t: np.ndarray | float, side: Literal["left", "right"]) -> np.ndarray:
        steps = np.concatenate([[1.0], self.values])
        index = np.searchsorted(self.times, np.asarray(t, dtype=np.float64), side=side)
        return np.asarray(steps[index])

    def _at_risk_at(self, t: np.ndarray) -> np.ndarray:
        return self.observed.size - np.searchsorted(self.observed, t, side="left")

    def _greenwood(self, t: np.ndarray) -> np.ndarray:
        surviving = self.at_risk - self.events
        terms = np.divide(self.events, self.at_risk * surviving, out=np.zeros_like(surviving), where=surviving > 0)
        return np.concatenate([[0.0], np.cumsum(terms)])[np.searchsorted(self.times, t, side="right")]


def censoring_distribution(duration: Float64[np.ndarray, " n"], event: Events) -> KaplanMeier:
    """Ĝ(t) = P(C > t), the Kaplan–Meier curve of being censored (event == 0).

    At tied times events come before censorings: who has the event at t is no longer at risk of being censored at t.

    >>> g = censoring_distribution(np.array([1.0, 2.0, 2.0, 3.0]), np.array([1, 1, 0, 1]))
    >>> g.at(2.0), g.before(2.0)
    (array(0.5), array(1.))
    """
    duration, event = check_outcome(duration, event)
    times, at_risk, events, leaving = _tally(duration, event)
    return KaplanMeier._from_counts(times, at_risk - events, leaving - events, duration)


def _tally(duration: np.ndarray, event: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Distinct times, patients at risk just before each, events at each, patients leaving at each; all (m,)."""
    times, inverse, counts = np.unique(duration, return_inverse=True, return_counts=True)
    leaving = counts.astype(np.float64)
    events = np.bincount(inverse, weights=event.astype(np.float64), minlength=times.size)
    return times, np.cumsum(leaving[::-1])[::-1].copy(), events, leaving
