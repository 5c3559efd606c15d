"""Harrell's and Uno's C: which pairs are compared, with what weight, and how they are ranked, in O(n log n)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Float64, Int64, UInt64

from ehrsequencing.errors import EhrError, Exit
from ehrsequencing.evaluation.sweep import Order, below, below_sums
from ehrsequencing.horizon import check_horizon
from ehrsequencing.nonparametric import Events, KaplanMeier, check_causes


class PairWeights(NamedTuple):
    """What a pair of an outcome i and a patient j who outlived it weighs: ``later[i]``, or ``early[i]·given[j]``.

    The second where j had a competing event before i's outcome. Each is float64[n]; 0 where no pair counts.
    """

    later: Float64[np.ndarray, " n"]
    early: Float64[np.ndarray, " n"]
    given: Float64[np.ndarray, " n"]


@dataclass(frozen=True, eq=False)
class Side:
    """One of the two orders in which patients come, so that whoever outlived an outcome comes in an earlier group.

    Attributes:
        order: those whose outcome it is ask.
        stratum_start: int64[m], the first place of each one's stratum.
    """

    order: Order
    stratum_start: Int64[np.ndarray, " m"]

    @classmethod
    def of(cls, rows: np.ndarray, place: np.ndarray, stratum: np.ndarray, outcome: np.ndarray) -> Side:
        """The members ``rows``, in order, a group being those at one place of one stratum."""
        strata, places = stratum[rows], place[rows]
        fresh = np.append(True, strata[1:] != strata[:-1])
        group = np.cumsum(fresh | np.append(True, places[1:] != places[:-1])) - 1
        return cls(Order(rows, group, outcome[rows]), np.maximum.accumulate(np.where(fresh, np.arange(rows.size), 0)))

    def below(self, rank: np.ndarray, brought: np.ndarray) -> np.ndarray:
        """``sweep.below`` of each member, in order, 0 for those who do not ask; ``rank`` and ``brought`` are by row."""
        rows, group, asks = self.order
        return np.where(asks, below(rank[rows], group, brought[rows], asks), 0.0)

    def below_backwards(self, rank: np.ndarray, brought: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Rows, and ``below`` of each of them, in the order turned round."""
        rows, group = self.order.rows[::-1], self.order.group[::-1]
        return rows, below(rank[rows], group[0] - group, brought[rows])

    def earlier(self, brought: Float[np.ndarray, "*b n"]) -> Float64[np.ndarray, "*b q"]:
        """For each member who asks, what the members of earlier groups of the same stratum bring together."""
        rows, group, asks = self.order
        total = np.zeros((*brought.shape[:-1], rows.size + 1))
        np.cumsum(brought[..., rows], axis=-1, dtype=np.float64, out=total[..., 1:])
        first = np.flatnonzero(np.diff(group, prepend=-1))[group[asks]]  # (q,) where each one's group begins
        return total[..., first] - total[..., self.stratum_start[asks]]


@dataclass(frozen=True, eq=False)
class Pairs:
    """All pairs of an outcome and a patient who outlived it.

    A patient outlives an outcome at t when their own duration is past t, or is t without the outcome then. Two outcomes
    at the same t are not compared; nor is a patient censored before t. (lifelines and scikit-survival have the same
    rules.) Outcomes are events of cause 1; whoever had a competing event, whenever that was, can no longer have the
    outcome and outlives them all (Wolbers et al. 2009, Epidemiology 20:555).

    Attributes:
        duration, event: one a row, as ``check_causes`` gives them.
        stratum: int64[n]; only pairs within a stratum are compared.
    """

    duration: Float64[np.ndarray, " n"]
    event: Int64[np.ndarray, " n"]
    stratum: Int64[np.ndarray, " n"]

    @classmethod
    def of(
        cls, duration: Float64[np.ndarray, " n"], event: Events, stratum: Int64[np.ndarray, " n"] | None = None
    ) -> Pairs:
        """The pairs of an outcome.

        Raises:
            EhrError: an outcome that is none (exit 12).
        """
        duration, event = check_causes(duration, event)
        return cls(duration, event, np.zeros(event.size, dtype=np.int64) if stratum is None else stratum)

    @property
    def outcome(self) -> Bool[np.ndarray, " n"]:
        """Who had the outcome."""
        return self.event == 1

    @cached_property
    def place(self) -> UInt64[np.ndarray, " n"]:
        """Durations as whole numbers in the same order; at one time, whoever has the outcome before the others."""
        bits = (self.duration + 0.0).view(np.uint64)  # of floats that are not negative, in the order of the floats
        return (bits << np.uint64(1)) | (~self.outcome).astype(np.uint64)

    @cached_property
    def later(self) -> Side:
        """Longest duration first: everybody, so that who is still there at an outcome came before it."""
        order = self._by_stratum(np.argsort(self.place)[::-1])
        return Side.of(order, self.place, self.stratum, self.outcome)

    @cached_property
    def early(self) -> Side:
        """Shortest duration first: outcomes, and competing events, those before an outcome came before it."""
        order = self._by_stratum(np.argsort(self.place))
        return Side.of(order[self.event[order] > 0], self.place, self.stratum, self.outcome)

    def _by_stratum(self, order: np.ndarray) -> np.ndarray:
        return order if self._one_stratum else order[np.argsort(self.stratum[order], kind="stable")]

    @cached_property
    def _one_stratum(self) -> bool:
        return bool((self.stratum == self.stratum[0]).all())

    @cached_property
    def competing(self) -> bool:
        """Whether anybody had a competing event."""
        return bool((self.event > 1).any())

    def ranks(self, risk: Float64[np.ndarray, " n"]) -> Int64[np.ndarray, " n"]:
        """Equal risks of a stratum share a rank; a stratum that comes first in the orders ranks above those after it.

        So nobody finds a lower rank in an earlier stratum.

        Raises:
            EhrError: risks that are not finite numbers, one a row (exit 13).
        """
        rank = np.unique(check_risk(risk, self.event.size), return_inverse=True)[1]  # (n,)
        if self._one_stratum:
            return rank
        place = np.unique(-self.stratum, return_inverse=True)[1]
        return np.unique(place * (int(rank.max()) + 1) + rank, return_inverse=True)[1]

    def harrell(self, tau: float = np.inf) -> PairWeights:
        """Every pair whose outcome lies in (0, τ] weighs 1."""
        counts = (self.outcome & (self.duration <= tau)).astype(np.float64)
        return PairWeights(counts, counts, (self.event > 1).astype(np.float64))

    def uno(self, censoring: KaplanMeier, tau: float) -> PairWeights:
        """Pairs whose outcome lies at T < τ weigh Ĝ(T−)⁻², or with a competing event at U < T Ĝ(T−)⁻¹·Ĝ(U−)⁻¹."""
        counts = self.outcome & (self.duration < tau)
        known = counts | ((self.event > 1) & (self.duration < tau))
        once = np.where(known, 1.0, 0.0) / np.where(known, censoring.before(np.where(known, self.duration, 0.0)), 1.0)
        return PairWeights(np.where(counts, once, 0.0) ** 2, np.where(counts, once, 0.0), np.where(counts, 0.0, once))

    def concordant(self, rank: Int64[np.ndarray, " n"], weights: PairWeights) -> Float64[np.ndarray, " n"]:
        """For each outcome, the weight of its pairs in which it ranks higher, half of those that rank equally."""
        found, rows = np.zeros(rank.size), self.later.order.rows
        found[rows] = weights.later[rows] * self.later.below(rank, np.ones(rank.size))
        if self.competing:
            rows = self.early.order.rows
            found[rows] += weights.early[rows] * self.early.below(rank, weights.given)
        return found

    def comparable(self, weights: PairWeights) -> Float64[np.ndarray, " n"]:
        """For each outcome, the weight of all its pairs."""
        found, rows = np.zeros(self.event.size), self.later.order.asking
        found[rows] = weights.later[rows] * self.later.earlier(np.ones(self.event.size))
        if self.competing:
            rows = self.early.order.asking
            found[rows] += weights.early[rows] * self.early.earlier(weights.given)
        return found

    def concordant_with(self, rank: Int64[np.ndarray, " n"], weights: PairWeights) -> Float64[np.ndarray, " n"]:
        """For each patient, the weight of the pairs in which they outlived an outcome and rank lower than it."""
        return self._outlived(rank.max() - rank, weights)

    def comparable_with(self, weights: PairWeights) -> Float64[np.ndarray, " n"]:
        """For each patient, the weight of all pairs in which they outlived an outcome."""
        return 2.0 * self._outlived(np.unique(self.stratum, return_inverse=True)[1], weights)

    def _outlived(self, rank: np.ndarray, weights: PairWeights) -> np.ndarray:
        """The orders turned round: outcomes bring their weight, those who outlived them ask."""
        found = np.zeros(rank.size)
        rows, sums = self.later.below_backwards(rank, weights.later)
        found[rows] = sums
        if self.competing:
            rows, sums = self.early.below_backwards(rank, weights.early)
            found[rows] += weights.given[rows] * sums
        return found


def harrell_c(duration: Float64[np.ndarray, " n"], event: Events, risk: Float64[np.ndarray, " n"]) -> float:
    """Harrell's C: of all comparable pairs, the share in which the one with the event first has the higher risk.

    Equal risks count one half; which pairs are comparable: ``Pairs``. For C at a horizon, ``truncate`` first.

    Harrell, Lee & Mark (1996), Stat Med 15:361; with competing events Wolbers et al. (2009), Epidemiology 20:555.

    Raises:
        EhrError: no pair is comparable (exit 12), or a risk is not a number (exit 13).

    >>> harrell_c(np.array([1.0, 2.0, 3.0]), np.array([1, 1, 0]), np.array([0.9, 0.1, 0.2]))
    0.6666666666666666
    """
    pairs = Pairs.of(duration, event)
    return share(pairs, pairs.ranks(risk), pairs.harrell())


def uno_c(
    duration: Float64[np.ndarray, " n"],
    event: Events,
    risk: Float64[np.ndarray, " n"],
    censoring: KaplanMeier,
    tau: float,
) -> float:
    """Uno's C at τ: Harrell's pairs whose event lies before τ, each weighted by Ĝ(T−)⁻² of the event's time T.

    Uno et al. (2011), Stat Med 30:1105. Times are as given or truncated at τ: an event at τ itself is not before τ.
    Of a patient with a competing event at an earlier time U it is known from U on that they outlive the event: their
    pairs weigh Ĝ(T−)⁻¹·Ĝ(U−)⁻¹ (Wolbers et al. 2014, Biostatistics 15:526).

    Args:
        duration, event, risk: one a patient.
        censoring: Ĝ, fitted on the training outcome.
        tau: days.

    Raises:
        EhrError: τ past the longest training duration or Ĝ(τ−) < 0.1; no comparable pair (exit 12).
    """
    check_horizon(tau, censoring)
    pairs = Pairs.of(duration, event)
    return share(pairs, pairs.ranks(risk), pairs.uno(censoring, tau))


def share(pairs: Pairs, rank: Int64[np.ndarray, " n"], weights: PairWeights) -> float:
    """The share of concordant pairs among the comparable ones, by weight.

    Raises:
        EhrError: there is no pair (exit 12).
    """
    comparable = pairs.comparable(weights).sum()
    if not comparable > 0:
        raise no_pairs()
    return float(pairs.concordant(rank, weights).sum() / comparable)


def concordant_sums(
    pairs: Pairs, rank: Int64[np.ndarray, " n"], kinds: Sequence[PairWeights], drawn: Float[np.ndarray, "b n"]
) -> Float64[np.ndarray, "b kinds"]:
    """The weight of all concordant pairs in resamples ``drawn`` of the rows, by each of several weightings."""
    order = pairs.later.order
    columns = np.stack([kind.later[order.asking] for kind in kinds], axis=1)
    found = below_sums(order, rank, np.ones(rank.size), drawn, columns)
    if pairs.competing:
        order = pairs.early.order
        for k, kind in enumerate(kinds):
            found[:, [k]] += below_sums(order, rank, kind.given, drawn, kind.early[order.asking, None])
    return found


def comparable_sums(
    pairs: Pairs, kinds: Sequence[PairWeights], drawn: Float[np.ndarray, "b n"]
) -> Float64[np.ndarray, "b kinds"]:
    """The weight of all comparable pairs in resamples ``drawn`` of the rows, by each of several weightings."""
    rows = pairs.later.order.asking
    outlived = drawn[:, rows] * pairs.later.earlier(drawn)  # (b, e)
    found = outlived @ np.stack([kind.later[rows] for kind in kinds], axis=1)  # (b, kinds)
    if pairs.competing:
        rows = pairs.early.order.asking
        for k, kind in enumerate(kinds):
            found[:, k] += (drawn[:, rows] * pairs.early.earlier(drawn * kind.given)) @ kind.early[rows]
    return found


def check_risk(risk: np.ndarray, n: int) -> np.ndarray:
    """The risks as float64[n]; EhrError (exit 13) where there are not n, or one is not finite."""
    risk = np.asarray(risk, dtype=np.float64)
    if risk.shape != (n,) or not np.isfinite(risk).all():
        found = f"{int((~np.isfinite(risk)).sum())} not finite" if risk.shape == (n,) else f"shape {risk.shape}"
        raise EhrError(
            f"expected {n:,} finite risks, found {found}", "predictions", "predict every row anew", code=Exit.BUNDLE
        )
    return risk


def no_pairs() -> EhrError:
    """The error of a concordance that does not exist."""
    return EhrError(
        "no two patients can be compared: no event before the horizon is followed by anybody's later duration",
        "outcome",
        "evaluate on more patients or over a longer horizon",
        code=Exit.COHORT,
    )
