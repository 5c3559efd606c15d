"""The observed risk by a day in nested groups of patients, on every resample: Kaplan–Meier or Aalen–Johansen."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int64, Shaped

from ehrsequencing.nonparametric import Events, check_causes

RESAMPLE_TIMES = 400
"""Distinct event times that the resamples tell apart; of more, neighbouring ones are joined."""


def nested_incidence(
    duration: Float64[np.ndarray, " n"],
    event: Events,
    t: float,
    counts: Shaped[np.ndarray, "resamples n"],
    member: Int64[np.ndarray, " n"],
    groups: int,
) -> tuple[Float64[np.ndarray, "resamples groups"], Float64[np.ndarray, "resamples groups"]]:
    """The outcome's cumulative incidence by ``t`` days in nested groups, and each group's share of everybody.

    Σ_{u ≤ t} S(u−)·d₁(u)/Y(u), S the Kaplan–Meier curve of events of any cause (Aalen & Johansen 1978): with one cause
    that is one minus Kaplan–Meier. Group 0 is everybody, group j whoever has ``member >= j``. Row 0 of ``counts`` is
    exact; with more than 400 event times the others are a life table's differences from it, about as much work however
    many patients there are.

    Args:
        duration, event: one a row; 1 the outcome, 2, 3, … competing events.
        t: days.
        counts: how often each row was drawn; row 0 is the sample itself.
        member: the last group that each row is in, from 0.
        groups: how many there are.

    Returns:
        (incidence, share): NaN where a group is empty, or ends before ``t`` with somebody still at risk.

    >>> risk, share = nested_incidence(np.array([1.0, 2.0, 3.0, 3.0]), np.array([1, 0, 0, 1]), 2.0,
    ...                                np.ones((1, 4)), np.array([1, 0, 0, 1]), 2)
    >>> risk, share
    (array([[0.25, 0.5 ]]), array([[1. , 0.5]]))
    """
    duration, event = check_causes(duration, event)
    times = np.unique(duration[(event > 0) & (duration <= t)])  # (m,)
    exact = _Counting.of(duration, event, t, times, member, groups)
    first = exact.incidence(counts[0])
    if times.size <= RESAMPLE_TIMES:
        found = [first, *(exact.incidence(drawn) for drawn in counts[1:])]
    else:
        joined = times[np.linspace(0, times.size, RESAMPLE_TIMES, endpoint=False).astype(np.int64)]
        rough = _Counting.of(duration, event, t, joined, member, groups)
        start = rough.incidence(counts[0])[0]
        rest = (rough.incidence(drawn) for drawn in counts[1:])
        found = [first, *((np.clip(first[0] + risk - start, 0.0, 1.0), share) for risk, share in rest)]
    return np.stack([risk for risk, _ in found]), np.stack([share for _, share in found])


@dataclass(frozen=True, eq=False)
class _Counting:
    """Where each row stands in the tables of times (the beginnings of intervals) by groups."""

    groups: int
    times: int
    member: np.ndarray  # (n,)
    leaves: np.ndarray  # (n,) cell: the times that a row was at risk at, and its group
    happened: np.ndarray  # (e,) rows with an event up to t
    ends: np.ndarray  # (e,) cell of each event
    outcome: np.ndarray  # (e,) whether it is the outcome
    followed: np.ndarray  # (f,) rows followed to t

    @classmethod
    def of(
        cls, duration: np.ndarray, event: np.ndarray, t: float, times: np.ndarray, member: np.ndarray, groups: int
    ) -> _Counting:
        happened = np.flatnonzero((event > 0) & (duration <= t))
        passed = np.searchsorted(times, duration, side="right")  # (n,)
        ends = (passed[happened] - 1) * groups + member[happened]
        followed = np.flatnonzero(duration >= t)
        leaves = passed * groups + member
        return cls(groups, times.size, member, leaves, happened, ends, event[happened] == 1, followed)

    def incidence(self, drawn: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The incidence and the share of each group, (G,), where row i was drawn ``drawn[i]`` times."""
        weight = np.asarray(drawn, dtype=np.float64)  # (n,)
        at_risk = self._nested(self.leaves, weight, self.times + 1)[::-1].cumsum(axis=0)[::-1]  # (m + 1, G)
        y = np.maximum(at_risk[1:], 1e-300)  # (m, G) at risk at each time
        ended = self._nested(self.ends, weight[self.happened], self.times)  # (m, G)
        outcomes = self._nested(self.ends, weight[self.happened] * self.outcome, self.times)  # (m, G)
        after = np.cumprod(1.0 - ended / y, axis=0)  # (m, G)
        survival = np.concatenate([np.ones((1, self.groups)), after])  # (m + 1, G)
        risk = (survival[:-1] * outcomes / y).sum(axis=0)
        to_the_end = self._nested(self.member[self.followed], weight[self.followed], 1)[0]
        known = (at_risk[0] > 0) & ((to_the_end > 0) | (survival[-1] <= 1e-12))
        return np.where(known, risk, np.nan), at_risk[0] / at_risk[0, 0]

    def _nested(self, cells: np.ndarray, weight: np.ndarray, rows: int) -> np.ndarray:
        """The weight in each cell, a group holding what the later ones hold, (rows, G)."""
        table = np.bincount(cells, weight, minlength=rows * self.groups).reshape(rows, self.groups)
        return table[:, ::-1].cumsum(axis=1)[:, ::-1]
