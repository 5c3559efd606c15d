"""Discrimination and prediction error of survival predictions: Harrell C, Uno C, Brier, integrated Brier (NumPy)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float64, Int64

from ehrsequencing.errors import EhrError, Exit
from ehrsequencing.horizon import check_horizon
from ehrsequencing.nonparametric import Events, KaplanMeier, check_causes, for_outcome

PAIRS_AT_ONCE = 8_000_000
"""Entries of a pair matrix held in memory at a time."""


@dataclass(frozen=True)
class PairCounts:
    """For each event, the patients who outlived it, and how many of them were ranked below it.

    A patient outlives an event at t when their own duration is past t, or is t and censored. Two events at the same t
    are not compared; nor is a patient censored before t. (lifelines and scikit-survival have the same rules.)
    Events are those of cause 1; whoever had a competing event, whenever that was, outlives them all (``for_outcome``).

    Attributes:
        rows: int64[e], the row of each event.
        concordant: float64[e], outliving patients with a lower risk, plus one half for each with an equal risk.
        comparable: float64[e], outliving patients.
    """

    rows: Int64[np.ndarray, " e"]
    concordant: Float64[np.ndarray, " e"]
    comparable: Float64[np.ndarray, " e"]

    @classmethod
    def of(cls, duration: Float64[np.ndarray, " n"], event: Events, risk: Float64[np.ndarray, " n"]) -> PairCounts:
        """Count in O(n log n): in order of survival, longest first, how many earlier risks are lower."""
        duration, event = for_outcome(duration, event, float(np.max(duration, initial=0.0)))
        risk = check_risk(risk, duration.size)
        rank = np.unique(risk, return_inverse=True)[1]  # (n,) equal risks share a rank
        # longest first; at equal times the censored first; inside such a group the highest risk first, so that nobody
        # finds a lower risk earlier in their own group
        order = np.lexsort((-rank, event, -duration))
        group = _runs(duration[order], event[order])  # (n,)
        ranks = rank[order]  # (n,)
        outliving = np.searchsorted(group, group, side="left")  # (n,) members of earlier groups
        concordant = _lower_before(ranks) + 0.5 * _equal_in_earlier_groups(ranks, group)
        at = np.flatnonzero(event[order])
        return cls(order[at], concordant[at], outliving[at].astype(np.float64))


def harrell_c(duration: Float64[np.ndarray, " n"], event: Events, risk: Float64[np.ndarray, " n"]) -> float:
    """Harrell's C: of all comparable pairs, the share in which the one with the event first has the higher risk.

    Equal risks count one half; which pairs are comparable: ``PairCounts``. For C at a horizon, ``truncate`` first.

    Harrell, Lee & Mark (1996), Stat Med 15:361; with competing events Wolbers et al. (2009), Epidemiology 20:555.

    Raises:
        EhrError: no pair is comparable (exit 12), or a risk is not a number (exit 13).

    >>> harrell_c(np.array([1.0, 2.0, 3.0]), np.array([1, 1, 0]), np.array([0.9, 0.1, 0.2]))
    0.6666666666666666
    """
    pairs = PairCounts.of(duration, event, risk)
    return _share(pairs.concordant.sum(), pairs.comparable.sum())


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
    pairs = PairCounts.of(duration, event, risk)
    duration, event = check_causes(duration, event)
    weight = uno_weights(duration[pairs.rows], censoring, tau)  # (e,)
    concordant, comparable = pairs.concordant, pairs.comparable  # (e,)
    for at, excess in _early_blocks(duration, event, pairs.rows, censoring):
        own, others = risk[pairs.rows[at], None], risk[event > 1]
        concordant[at] += (excess * ((others < own) + 0.5 * (others == own))).sum(axis=1)
        comparable[at] += excess.sum(axis=1)
    return _share(weight @ concordant, weight @ comparable)


def _early_blocks(
    duration: np.ndarray, event: np.ndarray, rows: np.ndarray, censoring: KaplanMeier
) -> Iterator[tuple[slice, np.ndarray]]:
    """``early_excess`` of some of the events ``rows`` at a time against all competing events; none without any."""
    competing = duration[event > 1]  # (c,)
    step = max(1, PAIRS_AT_ONCE // max(competing.size, 1))
    for start in range(0, rows.size if competing.size else 0, step):
        at = slice(start, start + step)
        yield at, early_excess(duration[rows[at]], competing, censoring)


def early_excess(
    event_times: Float64[np.ndarray, " e"], competing_times: Float64[np.ndarray, " c"], censoring: KaplanMeier
) -> Float64[np.ndarray, "e c"]:
    """By how much a pair's weight exceeds Ĝ(T−)⁻², as a share of it, where the competing event at U came before T.

    Ĝ(T−)/Ĝ(U−) − 1, which is never positive; 0 where U is not before T.
    """
    ratio = censoring.before(event_times)[:, None] / censoring.before(competing_times)  # (e, c)
    return np.where(competing_times < event_times[:, None], ratio - 1.0, 0.0)


def uno_weights(
    event_times: Float64[np.ndarray, " e"], censoring: KaplanMeier, tau: float
) -> Float64[np.ndarray, " e"]:
    """Ĝ(T−)⁻² where T < τ, else 0."""
    before = event_times < tau
    return np.where(before, np.where(before, censoring.before(event_times), 1.0) ** -2.0, 0.0)


def brier(
    duration: Float64[np.ndarray, " n"],
    event: Events,
    survival_at_t: Float64[np.ndarray, " n"],
    t: float,
    censoring: KaplanMeier,
) -> float:
    """The Brier score at ``t``, weighted by the inverse probability of censoring (``brier_terms``).

    Graf et al. (1999), Stat Med 18:2529.

    Raises:
        EhrError: t past the longest training duration or Ĝ(t−) < 0.1 (exit 12); survival not in [0, 1] (exit 13).
    """
    return float(brier_terms(duration, event, survival_at_t[:, None], np.array([float(t)]), censoring).mean())


def integrated_brier(
    duration: Float64[np.ndarray, " n"],
    event: Events,
    survival: Float64[np.ndarray, "n m"],
    times: Float64[np.ndarray, " m"],
    censoring: KaplanMeier,
    tau: float,
) -> float:
    """The mean Brier score over (0, τ]: its integral by trapezia over 0 and ``times``, divided by τ.

    At 0 the score is 0, since everybody survives it. ``times`` rise strictly and end at τ.

    Raises:
        EhrError: as ``brier``; or ``times`` do not end at τ (exit 13).
    """
    return float(integrated_brier_terms(duration, event, survival, times, censoring, tau).mean())


def integrated_brier_terms(
    duration: Float64[np.ndarray, " n"],
    event: Events,
    survival: Float64[np.ndarray, "n m"],
    times: Float64[np.ndarray, " m"],
    censoring: KaplanMeier,
    tau: float,
) -> Float64[np.ndarray, " n"]:
    """Each patient's share of ``integrated_brier``, which is their mean."""
    if not np.isclose(times[-1], tau, rtol=1e-9, atol=0) or not (np.diff(times, prepend=0.0) > 0).all():
        raise EhrError(
            f"expected curve times that rise from above 0 to τ = {tau:g} days, found {times[0]:g} to {times[-1]:g}",
            "survival curve",
            "predict the curve up to the horizon",
            code=Exit.BUNDLE,
        )
    terms = brier_terms(duration, event, survival, times, censoring)  # (n, m)
    step = np.diff(times, prepend=0.0)  # (m,)
    weight = (step + np.append(step[1:], 0.0)) / 2  # (m,) of the trapezia on either side of each time
    return terms @ (weight / tau)


def brier_terms(
    duration: Float64[np.ndarray, " n"],
    event: Events,
    survival: Float64[np.ndarray, "n m"],
    times: Float64[np.ndarray, " m"],
    censoring: KaplanMeier,
) -> Float64[np.ndarray, "n m"]:
    """Each patient's weighted squared error at each time; their mean over patients is the Brier score.

    An event at T ≤ t: S(t)² / Ĝ(T−). Known to be event-free at t: (1 − S(t))² / Ĝ(t−). Censored before t: 0.
    With competing events S(t) stands for the probability of no outcome by t, 1 − CIF(t), and whoever had a competing
    event at T ≤ t is known not to have the outcome: (1 − S(t))² / Ĝ(T−) (Schoop et al. 2011, Biom J 53:88).
    Whoever is censored at t itself (all those still followed, where follow-up ends at t) is known to be event-free at
    t, and had to stay uncensored only up to t−; where nobody is censored at t, Ĝ(t−) is the usual Ĝ(t).
    """
    survival = check_survival(survival, np.asarray(duration).size)  # (n, m)
    check_horizon(float(np.max(times)), censoring)
    happened, weight = known_outcome(duration, event, times, censoring)  # (n, m)
    return np.where(happened, survival, 1.0 - survival) ** 2 * weight


def known_outcome(
    duration: Float64[np.ndarray, " n"], event: Events, times: Float64[np.ndarray, " m"], censoring: KaplanMeier
) -> tuple[Bool[np.ndarray, "n m"], Float64[np.ndarray, "n m"]]:
    """Whether the outcome is known to have happened by each time, and the weight of that knowledge.

    The inverse probability of knowing it: 1/Ĝ(T−) after an event of any cause at T ≤ t, 1/Ĝ(t−) while event-free; 0
    for whoever was censored before t.
    """
    duration, event = check_causes(duration, event)
    over = (event[:, None] > 0) & (duration[:, None] <= times)  # (n, m)
    free = (duration[:, None] > times) | ((event[:, None] == 0) & (duration[:, None] == times))  # (n, m)
    at_event = 1.0 / censoring.before(np.minimum(duration, np.max(times)))  # (n,)
    weight = np.where(over, at_event[:, None], free / censoring.before(times))
    return over & (event[:, None] == 1), weight


def check_risk(risk: np.ndarray, n: int) -> np.ndarray:
    """The risks as float64[n]; EhrError (exit 13) where there are not n, or one is not finite."""
    risk = np.asarray(risk, dtype=np.float64)
    if risk.shape != (n,) or not np.isfinite(risk).all():
        found = f"{int((~np.isfinite(risk)).sum())} not finite" if risk.shape == (n,) else f"shape {risk.shape}"
        raise EhrError(
            f"expected {n:,} finite risks, found {found}", "predictions", "predict every row anew", code=Exit.BUNDLE
        )
    return risk


def check_survival(survival: np.ndarray, n: int) -> np.ndarray:
    """The survival curves as float64[n, m]; EhrError (exit 13) where a value is not a probability."""
    survival = np.asarray(survival, dtype=np.float64)
    if survival.ndim != 2 or survival.shape[0] != n or not ((survival >= -1e-6) & (survival <= 1 + 1e-6)).all():
        raise EhrError(
            f"expected {n:,} rows of survival probabilities in [0, 1], found shape {survival.shape}"
            + (f" from {survival.min():g} to {survival.max():g}" if survival.size else ""),
            "predictions",
            "predict every row anew",
            code=Exit.BUNDLE,
        )
    return survival


def no_pairs() -> EhrError:
    """The error of a concordance that does not exist."""
    return EhrError(
        "no two patients can be compared: no event before the horizon is followed by anybody's later duration",
        "outcome",
        "evaluate on more patients or over a longer horizon",
        code=Exit.COHORT,
    )


def survival_groups(duration: Float64[np.ndarray, " n"], event: Events) -> Int64[np.ndarray, " n"]:
    """Numbers such that a patient outlives an event exactly when theirs is higher than the event's (``PairCounts``).

    >>> survival_groups(np.array([1.0, 1.0, 2.0, 1.0]), np.array([1, 0, 1, 1]))
    array([0, 1, 2, 0])
    """
    event = np.asarray(event) == 1
    order = np.lexsort((~event, duration))
    groups = np.empty(order.size, dtype=np.int64)
    groups[order] = _runs(duration[order], event[order])
    return groups


def _share(concordant: float, comparable: float) -> float:
    if not comparable > 0:
        raise no_pairs()
    return float(concordant / comparable)


def _runs(*columns: np.ndarray) -> np.ndarray:
    """The number of the run of equal values that each row of the sorted ``columns`` belongs to, from 0."""
    changed = np.zeros(columns[0].size, dtype=bool)
    for column in columns:
        changed[1:] |= column[1:] != column[:-1]
    return np.cumsum(changed)


def _equal_in_earlier_groups(ranks: np.ndarray, group: np.ndarray) -> np.ndarray:
    """For each position, how many members of earlier groups have the same rank."""
    width = int(group[-1]) + 1
    keys = ranks.astype(np.int64) * width + group  # (n,)
    ordered = np.sort(keys)
    return np.searchsorted(ordered, keys, side="left") - np.searchsorted(ordered, keys - group, side="left")


def _lower_before(ranks: np.ndarray) -> np.ndarray:
    """For each position, how many earlier positions hold a lower rank, bit by bit of the rank from the highest.

    Two ranks first differ in one bit: there the lower has 0 and the higher 1, and above it both are equal. So one
    stable regrouping a bit, and a running count of zeros in each regrouped node, find every pair once.
    """
    count = np.zeros(ranks.size, dtype=np.int64)
    index = np.arange(ranks.size)
    position = index  # (n,) in nodes of equal higher bits, in the first order inside a node
    for bit in reversed(range(int(ranks.max()).bit_length())):
        here = ranks[position]  # (n,)
        one = (here >> bit) & 1 == 1
        zeros_before = np.cumsum(~one) - ~one
        node = here >> (bit + 1)
        fresh = np.append(True, node[1:] != node[:-1])
        start = np.maximum.accumulate(np.where(fresh, index, 0))
        count[position[one]] += (zeros_before - zeros_before[start])[one]
        position = position[np.argsort(here >> bit, kind="stable")]
    return count
