"""Antolini's time-dependent C: at each outcome's time, whose predicted curve is lower there, on interpolated curves."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, no_type_check

import numpy as np
from jaxtyping import Float, Float64, Int64

from ehrsequencing.errors import EhrError, Exit
from ehrsequencing.evaluation.concordance import Pairs, no_pairs
from ehrsequencing.evaluation.metrics import check_survival
from ehrsequencing.evaluation.sweep import PAIRS_AT_ONCE, compiled
from ehrsequencing.nonparametric import Events

COMPILED_WORK = 5e7
"""Pairs from which compiled code pays for its import."""


def antolini_c(
    duration: Float64[np.ndarray, " n"],
    event: Events,
    survival: Float64[np.ndarray, "n m"],
    times: Float64[np.ndarray, " m"],
    stratum: Int64[np.ndarray, " n"] | None = None,
) -> float:
    """The share of comparable pairs in which the one with the outcome at T had the lower predicted S(T) of the two.

    Pairs are Harrell's (``Pairs``), equal curves at T count one half. With one curve's order at all times it is
    Harrell's C. With competing events ``survival`` is 1 − CIF of the outcome.

    Antolini, Boracchi & Biganzoli (2005), Stat Med 24:3927. Every pair is looked at: O(outcomes · n).

    Args:
        duration, event: one a row.
        survival: at ``times``; between them, and from 1 at day 0, it is interpolated linearly.
        times: days, rising from above 0, the last no earlier than the last outcome.
        stratum: only pairs within a stratum are compared.

    Raises:
        EhrError: no comparable pair (exit 12); survival that is no probability, or too short (exit 13).

    >>> times, curves = np.array([2.0, 4.0]), np.array([[0.5, 0.1], [0.6, 0.5], [0.9, 0.3]])
    >>> antolini_c(np.array([1.0, 4.0, 4.0]), np.array([1, 1, 0]), curves, times)
    0.6666666666666666
    """
    ranking = TimeRanking(Pairs.of(duration, event, stratum), times, check_survival(survival, np.asarray(event).size))
    comparable = ranking.pairs.comparable(ranking.pairs.harrell()).sum()
    if not comparable > 0:
        raise no_pairs()
    return float(ranking.tallies[0].sum() / comparable)


@dataclass(frozen=True, eq=False)
class TimeRanking:
    """Who ranks above whom at each outcome's time.

    Attributes:
        pairs: of the outcome.
        times: float64[m], days, as in ``antolini_c``.
        survival: float64[n, m].
    """

    pairs: Pairs
    times: Float64[np.ndarray, " m"]
    survival: Float64[np.ndarray, "n m"]

    def __post_init__(self) -> None:
        last = self.pairs.duration[self.pairs.outcome].max(initial=0.0)
        if not (np.diff(self.times, prepend=0.0) > 0).all() or last > self.times[-1] * (1 + 1e-9):
            raise EhrError(
                f"expected curve times that rise from above 0 to the last outcome, at {last:g} days, "
                f"found {self.times[0]:g} to {self.times[-1]:g}",
                "survival curve",
                "predict the curve up to the horizon",
                code=Exit.BUNDLE,
            )

    @cached_property
    def _knots(self) -> tuple[np.ndarray, np.ndarray]:
        """Times (m + 1,) and curves (m + 1, n) from 1 at day 0."""
        start = np.ones((1, self.survival.shape[0]))
        return np.append(0.0, self.times), np.concatenate([start, self.survival.T])

    def _between(self, when: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The curves at their points, and for each of some times the point at its end and how near it is to that."""
        knots, curves = self._knots
        right = np.clip(np.searchsorted(knots, when), 1, knots.size - 1)  # (q,)
        return curves, right, np.minimum((when - knots[right - 1]) / (knots[right] - knots[right - 1]), 1.0)

    def at(self, when: Float64[np.ndarray, " q"]) -> Float64[np.ndarray, "q n"]:
        """Every row's curve at each of some times."""
        curves, right, part = self._between(when)
        return curves[right - 1] * (1 - part[:, None]) + curves[right] * part[:, None]

    @cached_property
    def _place(self) -> np.ndarray:
        """Until when each row outlives outcomes: ``Pairs.place``, past all of them after a competing event."""
        return np.where(self.pairs.event > 1, np.uint64(2**64 - 1), self.pairs.place)

    def blocks(self) -> Iterator[tuple[Int64[np.ndarray, " q"], Float[np.ndarray, "q n"]]]:
        """Some outcomes at a time, and the score of each against everybody: 1 or ½ where concordant, else 0."""
        pairs, rows = self.pairs, np.flatnonzero(self.pairs.outcome)
        step = max(1, PAIRS_AT_ONCE // pairs.event.size)
        for start in range(0, rows.size, step):
            at = rows[start : start + step]
            curves = self.at(pairs.duration[at])  # (q, n)
            own = np.take_along_axis(curves, at[:, None], axis=1)  # (q, 1)
            score = (own < curves) + np.float32(0.5) * (own == curves)
            outlived = (self._place > pairs.place[at, None]) & (pairs.stratum == pairs.stratum[at, None])
            yield at, score * outlived

    @cached_property
    def tallies(self) -> tuple[Float64[np.ndarray, " n"], Float64[np.ndarray, " n"]]:
        """Concordant pairs of each row: those of its own outcome, and those in which it outlived another's."""
        own, others = np.zeros(self.pairs.event.size), np.zeros(self.pairs.event.size)
        rows = np.flatnonzero(self.pairs.outcome)
        tally = kernel() if float(rows.size) * own.size >= COMPILED_WORK else None
        if tally is not None:
            knots, right, part = self._between(self.pairs.duration[rows])
            tally(rows, right, part, knots, self._place, self.pairs.place, self.pairs.stratum, own, others)
            return own, others
        for at, score in self.blocks():
            own[at] = score.sum(axis=1, dtype=np.float64)
            others += score.sum(axis=0, dtype=np.float64)
        return own, others

    def concordant_sums(self, drawn: Float[np.ndarray, "b n"]) -> Float64[np.ndarray, " b"]:
        """Concordant pairs in resamples ``drawn`` of the rows."""
        found = np.zeros(len(drawn))
        for rows, score in self.blocks():
            found += (drawn[:, rows].astype(np.float64) * (drawn @ score.T)).sum(axis=1)
        return found


@lru_cache(maxsize=1)
def kernel() -> Callable[..., Any] | None:
    """The compiled tallies; None without numba."""
    return compiled(_tally)


@no_type_check
def _tally(rows, right, part, curves, place, own_place, stratum, own, others):
    """``own`` and ``others`` (n,) are filled: see ``TimeRanking.tallies``; ``curves`` is (m + 1, n)."""
    for q in range(rows.size):
        i, end, p = rows[q], right[q], part[q]
        mine = curves[end - 1, i] * (1 - p) + curves[end, i] * p
        total = 0.0
        for j in range(place.size):
            theirs = curves[end - 1, j] * (1 - p) + curves[end, j] * p
            outlived = (place[j] > own_place[i]) & (stratum[j] == stratum[i])
            score = outlived * (1.0 * (mine < theirs) + 0.5 * (mine == theirs))
            total += score
            others[j] += score
        own[i] = total
