"""Kaplan–Meier, the censoring distribution and Aalen–Johansen, with their tie rules and intervals; NumPy only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float64, Int, Int64
from scipy.special import ndtri

from ehrsequencing.errors import EhrError, Exit

Events = Bool[np.ndarray, " n"] | Int[np.ndarray, " n"]
"""0 or False censored; 1 or True the outcome; 2, 3, … competing events."""


def check_outcome(duration: np.ndarray, event: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The outcome as (float64[n], bool[n]): True for an event of any cause.

    Raises:
        EhrError: as ``check_causes``.

    >>> check_outcome(np.array([1.0, 2.0, 3.0]), np.array([0, 1, 2]))
    (array([1., 2., 3.]), array([False,  True,  True]))
    """
    duration, event = check_causes(duration, event)
    return duration, event > 0


def check_causes(duration: np.ndarray, event: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The outcome as (float64[n], int64[n]), the latter 0 where censored and the cause's number elsewhere.

    Raises:
        EhrError: unequal lengths, no rows, durations that are negative or not finite, or event codes that are not
            whole numbers of at least 0 (exit 12).

    >>> check_causes(np.array([1.0, 2.0]), np.array([2, 0]))
    (array([1., 2.]), array([2, 0]))
    """
    duration, event = np.asarray(duration, dtype=np.float64), np.asarray(event)  # (n,)
    if duration.ndim != 1 or duration.shape != event.shape or duration.size == 0:
        raise EhrError(
            f"expected one duration and one event flag a patient, found shapes {duration.shape} and {event.shape}",
            "outcome",
            "give two equally long, non-empty columns",
            code=Exit.COHORT,
        )
    _refuse(~np.isfinite(duration) | (duration < 0), "finite durations of at least 0 days")
    known = np.isfinite(event) & (event >= 0)
    _refuse(~known | (event != np.floor(np.where(known, event, 0))), "event codes 0, 1, 2, …")
    return duration, event.astype(np.int64)


def _refuse(bad: np.ndarray, expected: str) -> None:
    if bad.any():
        raise EhrError(
            f"expected {expected}, found {int(bad.sum())} that are not",
            f"outcome, first in row {int(np.argmax(bad))}",
            "leave out or correct these rows",
            code=Exit.COHORT,
        )


def for_outcome(
    duration: Float64[np.ndarray, " n"], event: Events, tau: float
) -> tuple[Float64[np.ndarray, " n"], Int64[np.ndarray, " n"]]:
    """The outcome as discrimination of cause 1 sees it: competing events at ``tau`` without an event, codes 0 and 1.

    Whoever had a competing event can no longer have the outcome, so stays comparable with everybody who has it up to
    ``tau`` (Wolbers et al. 2009, Epidemiology 20:555). Other durations past ``tau`` end there, without an event. For
    ranking only: a competing event is no censoring.

    >>> for_outcome(np.array([1.0, 2.0, 9.0]), np.array([2, 1, 1]), 5.0)
    (array([5., 2., 5.]), array([0, 1, 0]))
    """
    duration, event = check_causes(duration, event)
    happened = ((event == 1) & (duration <= tau)).astype(np.int64)
    return np.where(event > 1, float(tau), np.minimum(duration, tau)), happened


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
        """Kaplan & Meier (1958), of events of any cause. Who is censored at t was still at risk of the events at t."""
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

    An event of any cause, competing ones included, is no censoring. At tied times events come before censorings: who
    has an event at t is no longer at risk of being censored at t.

    >>> g = censoring_distribution(np.array([1.0, 2.0, 2.0, 3.0]), np.array([1, 1, 0, 1]))
    >>> g.at(2.0), g.before(2.0)
    (array(0.5), array(1.))
    """
    duration, event = check_outcome(duration, event)
    times, at_risk, events, leaving = _tally(duration, event)
    return KaplanMeier._from_counts(times, at_risk - events, leaving - events, duration)


@dataclass(frozen=True, eq=False)
class AalenJohansen:
    """Cumulative incidences of R competing causes as right-continuous step functions; they sum to 1 − S.

    Attributes:
        times: float64[m], the distinct times of events of any cause.
        values: float64[m, R], the probability of each cause's event up to and at each time.
        variance: float64[m, R], of ``values``, pointwise, by the delta method.
        at_risk: float64[m], patients at risk just before each time.
        observed: float64[n], all durations, sorted; past the last one the curves are held at their last values.

    >>> aj = AalenJohansen.fit(np.array([1.0, 2.0, 3.0, 4.0]), np.array([1, 2, 0, 1]))
    >>> aj.at(np.array([0.5, 1.0, 2.0, 4.0]))
    array([[0.  , 0.  ],
           [0.25, 0.  ],
           [0.25, 0.25],
           [0.75, 0.25]])
    """

    times: Float64[np.ndarray, " m"]
    values: Float64[np.ndarray, "m R"]
    variance: Float64[np.ndarray, "m R"]
    at_risk: Float64[np.ndarray, " m"]
    observed: Float64[np.ndarray, " n"]

    @classmethod
    def fit(cls, duration: Float64[np.ndarray, " n"], event: Events, n_causes: int | None = None) -> AalenJohansen:
        """Aalen & Johansen (1978): F_r(t) = Σ_{u ≤ t} S(u−)·d_r(u)/Y(u). Who is censored at t was at risk at t.

        Args:
            duration, event: days, and 0 or the number of the cause.
            n_causes: R; where absent the highest number found, at least 1.

        Raises:
            EhrError: a code above ``n_causes`` (exit 12).
        """
        duration, event = check_causes(duration, event)
        n_causes = max(int(event.max()), 1) if n_causes is None else n_causes
        _refuse(event > n_causes, f"event codes up to {n_causes}")
        times, at_risk, any_event, _ = _tally(duration, event > 0)
        steps = any_event > 0
        by_cause = [_tally(duration, event == cause + 1)[2][steps] for cause in range(n_causes)]
        deaths, at_risk, total = np.stack(by_cause, axis=1), at_risk[steps], any_event[steps]  # (m, R), (m,), (m,)
        before = np.concatenate([[1.0], np.cumprod(1.0 - total / at_risk)[:-1]])  # (m,) S(u−)
        values = np.cumsum((before / at_risk)[:, None] * deaths, axis=0)
        variance = _delta_variance(values, before, deaths, total, at_risk)
        return cls(times[steps], values, variance, at_risk, np.sort(duration))

    @property
    def n_causes(self) -> int:
        """R."""
        return self.values.shape[1]

    def at(self, t: np.ndarray | float) -> np.ndarray:
        """F_r(t) = P(T ≤ t, cause r), float64 in the shape of ``t`` with an axis of R causes behind it."""
        return self._look_up(self.values, t)

    def interval(
        self, t: Float64[np.ndarray, " k"], level: float = 0.95
    ) -> tuple[Float64[np.ndarray, "k R"], Float64[np.ndarray, "k R"]]:
        """Pointwise limits of F_r(t): log(−log F), within (0, 1) (Collett, Modelling Survival Data, §12.2).

        Where F_r(t) is 0 (or 1) its variance says nothing; there the exact binomial limit with the number at risk at t
        bounds it from above (or below), as in ``KaplanMeier.interval``.
        """
        z, values, variance = float(ndtri((1 + level) / 2)), self.at(t), self._look_up(self.variance, t)  # (k, R)
        at_risk = self.observed.size - np.searchsorted(self.observed, t, side="left")  # (k,)
        exact = (((1 - level) / 2) ** (1.0 / np.maximum(at_risk, 1)))[:, None]
        inside = (values > 0) & (values < 1)
        log_f = np.log(np.where(inside, values, 0.5))
        width = z * np.sqrt(variance) / np.abs(np.where(inside, values, 0.5) * log_f)
        low = np.where(inside, np.exp(log_f * np.exp(width)), np.where(values >= 1, exact, 0.0))
        high = np.where(inside, np.exp(log_f * np.exp(-width)), np.where(values >= 1, 1.0, 1 - exact))
        return low, high

    def _look_up(self, steps: np.ndarray, t: np.ndarray | float) -> np.ndarray:
        index = np.searchsorted(self.times, np.asarray(t, dtype=np.float64), side="right")
        return np.asarray(np.concatenate([np.zeros((1, self.n_causes)), steps])[index])


def _delta_variance(
    values: np.ndarray, before: np.ndarray, deaths: np.ndarray, total: np.ndarray, at_risk: np.ndarray
) -> np.ndarray:
    """Var F_r(t) (m, R), with D(u) = F_r(t) − F_r(u), over u ≤ t (Marubini & Valsecchi 1995, §10.4):

    Σ D²·d/(Y(Y − d)) + Σ S(u−)²·d_r(Y − d_r)/Y³ − 2 Σ D·S(u−)·d_r/Y²; the sums over u expand in powers of F_r(t).
    """
    surviving = at_risk - total
    spread = np.divide(total, at_risk * surviving, out=np.zeros_like(surviving), where=surviving > 0)[:, None]  # (m, 1)
    own = (before / at_risk**2)[:, None] * deaths  # (m, R)
    square, cross, fixed = (np.cumsum(term, axis=0) for term in (spread, spread * values, spread * values**2))
    first = values**2 * square - 2 * values * cross + fixed
    second = np.cumsum((before**2 / at_risk**3)[:, None] * deaths * (at_risk[:, None] - deaths), axis=0)
    third = values * np.cumsum(own, axis=0) - np.cumsum(own * values, axis=0)
    return np.maximum(first + second - 2 * third, 0.0)


def _tally(duration: np.ndarray, event: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Distinct times, patients at risk just before each, events at each, patients leaving at each; all (m,)."""
    times, inverse, counts = np.unique(duration, return_inverse=True, return_counts=True)
    leaving = counts.astype(np.float64)
    events = np.bincount(inverse, weights=event.astype(np.float64), minlength=times.size)
    return times, np.cumsum(leaving[::-1])[::-1].copy(), events, leaving
