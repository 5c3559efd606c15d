"""Cumulative/dynamic AUC: those with the outcome by t against those without it by t, weighted for censoring."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple, no_type_check

import numpy as np
from jaxtyping import Bool, Float, Float64, Int64
from numpy.typing import ArrayLike

from ehrsequencing.evaluation.concordance import check_risk
from ehrsequencing.evaluation.metrics import known_outcome
from ehrsequencing.evaluation.sweep import COLUMNS_AT_ONCE, compiled
from ehrsequencing.horizon import check_horizon
from ehrsequencing.nonparametric import Events, KaplanMeier

COMPILED_WORK = 1e7
"""Rows times resamples times points in time, from which compiled code pays for its import."""


def auc_at(
    duration: Float64[np.ndarray, " n"],
    event: Events,
    risk: Float64[np.ndarray, " n"],
    t: float,
    censoring: KaplanMeier,
) -> float:
    """The AUC at ``t`` days of a risk, for instance the predicted risk of the outcome by t (``auc_over_time``).

    >>> duration, event = np.array([1.0, 2.0, 5.0, 5.0]), np.array([1, 1, 0, 1])
    >>> auc_at(duration, event, np.array([0.9, 0.2, 0.3, 0.1]), 3.0, KaplanMeier.fit(duration, np.zeros(4, dtype=int)))
    0.75
    """
    return float(auc_over_time(duration, event, risk[:, None], np.array([float(t)]), censoring)[0])


def auc_over_time(
    duration: Float64[np.ndarray, " n"],
    event: Events,
    risk_curve: Float64[np.ndarray, "n m"],
    times: Float64[np.ndarray, " m"],
    censoring: KaplanMeier,
    stratum: Int64[np.ndarray, " n"] | None = None,
) -> Float64[np.ndarray, " m"]:
    """At each time t the probability that a case by t has a higher risk than a control, equal risks counting one half.

    Cases had the outcome at T ≤ t; controls are free of any event at t, or had a competing event by then. Each weighs
    the inverse probability of knowing it (``known_outcome``): Uno et al. (2007), JASA 102:527; with competing events
    Blanche, Dartigues & Jacqmin-Gadda (2013), Stat Med 32:5381, their second definition. O(n log n) a time.

    Args:
        duration, event: one a row.
        risk_curve: the risk of each row at each time.
        times: days.
        censoring: Ĝ of the training outcome.
        stratum: only pairs within a stratum are compared.

    Returns:
        One a time; NaN where there is no case or no control.

    Raises:
        EhrError: a time past the longest training duration or with Ĝ(t−) < 0.1 (exit 12); risks not finite (exit 13).
    """
    rocs = rocs_of(duration, event, risk_curve, times, censoring, stratum)
    return np.array([float(ratio(roc.concordant_by_case().sum(), roc.comparable_by_case().sum())) for roc in rocs])


def mean_auc(auc: Float64[np.ndarray, "*b m"], survival: Float64[np.ndarray, " m"]) -> Float64[np.ndarray, " *b"]:
    """The mean of AUC(t) over time, each time weighing the outcomes that fall due since the one before.

    ∫ AUC(t) dF(t) / F(t_m), F = 1 − S, by steps: Σ_k AUC(t_k)·(S(t_{k−1}) − S(t_k)) / (1 − S(t_m)). This is
    scikit-survival's mean (Lambert & Chevret 2016, Stat Methods Med Res 25:2088). Times at which the AUC does not exist
    are left out with their weight.

    Args:
        auc: at rising times.
        survival: S at the same times, of the Kaplan–Meier curve; with competing events 1 − the outcome's incidence.

    >>> mean_auc(np.array([0.9, 0.8, 0.7]), np.array([0.9, 0.6, 0.5]))
    array(0.8)
    """
    weight = np.where(np.isfinite(auc), -np.diff(survival, prepend=1.0), 0.0)  # (*b, m)
    return ratio((np.nan_to_num(auc) * weight).sum(axis=-1), weight.sum(axis=-1))


class Roc(NamedTuple):
    """Cases and controls at one time, in the order of their risks within each stratum.

    Attributes:
        order: int64[n], rows by stratum and rising risk.
        run: int64[n], the number of the run of equal risks, rising.
        strata: int64[n], the number of the stratum, rising.
        case, control: float64[n], the weight of being one, in this order.
    """

    order: Int64[np.ndarray, " n"]
    run: Int64[np.ndarray, " n"]
    strata: Int64[np.ndarray, " n"]
    case: Float64[np.ndarray, " n"]
    control: Float64[np.ndarray, " n"]

    @classmethod
    def of(cls, risk: np.ndarray, stratum: np.ndarray, happened: Bool[np.ndarray, " n"], weight: np.ndarray) -> Roc:
        order = np.lexsort((risk, stratum))
        strata, risks = stratum[order], risk[order]
        new_stratum = np.append(False, strata[1:] != strata[:-1])
        new_run = new_stratum | np.append(False, risks[1:] != risks[:-1])
        case, control = np.where(happened, weight, 0.0)[order], np.where(happened, 0.0, weight)[order]
        return cls(order, np.cumsum(new_run), np.cumsum(new_stratum), case, control)

    def lower(self, brought: Float[np.ndarray, " n *b"]) -> Float64[np.ndarray, " n *b"]:
        """For each, what those of lower risk in the same stratum bring, and half of what those of equal risk do."""
        total = _running(brought)
        lower = 0.5 * (total[:-1] + total[1:])
        if self.run[-1] + 1 < self.run.size:  # some share a risk
            first, last = (np.searchsorted(self.run, self.run, side=side) for side in ("left", "right"))
            lower = 0.5 * (total[first] + total[last])
        return lower - total[self._starts] if self.strata[-1] else lower

    def together(self, brought: Float[np.ndarray, " n *b"]) -> Float64[np.ndarray, " n *b"]:
        """For each, what all of the same stratum bring."""
        total = _running(brought)
        return total[np.searchsorted(self.strata, self.strata, side="right")] - total[self._starts]

    @property
    def _starts(self) -> np.ndarray:
        return np.searchsorted(self.strata, self.strata, side="left")

    def concordant_by_case(self) -> Float64[np.ndarray, " n"]:
        """The weight of each case's pairs in which it has the higher risk, in the order of risks."""
        return self.case * self.lower(self.control)

    def comparable_by_case(self) -> Float64[np.ndarray, " n"]:
        """The weight of all of each case's pairs, in the order of risks."""
        return self.case * self.together(self.control)

    def concordant_by_control(self) -> Float64[np.ndarray, " n"]:
        """The weight of each control's pairs in which the case has the higher risk, in the order of risks."""
        return self.control * (self.together(self.case) - self.lower(self.case))

    def comparable_by_control(self) -> Float64[np.ndarray, " n"]:
        """The weight of all of each control's pairs, in the order of risks."""
        return self.control * self.together(self.case)


def rocs_of(
    duration: Float64[np.ndarray, " n"],
    event: Events,
    risk_curve: Float64[np.ndarray, "n m"],
    times: Float64[np.ndarray, " m"],
    censoring: KaplanMeier,
    stratum: Int64[np.ndarray, " n"] | None = None,
) -> list[Roc]:
    """Cases and controls at each time; raises as ``auc_over_time``."""
    n = np.asarray(event).size
    check_horizon(float(np.max(times)), censoring)
    happened, weight = known_outcome(duration, event, times, censoring)  # (n, m)
    stratum = np.zeros(n, dtype=np.int64) if stratum is None else stratum
    return [Roc.of(check_risk(risk_curve[:, k], n), stratum, happened[:, k], weight[:, k]) for k in range(times.size)]


def resampled_auc(rocs: list[Roc], drawn: Float[np.ndarray, "b n"]) -> Float64[np.ndarray, "b m"]:
    """The AUC at each time on resamples ``drawn`` of the rows; NaN where one has no case or no control."""
    found = np.empty((len(drawn), len(rocs)))
    sums = _swept_sums if drawn.size * len(rocs) >= COMPILED_WORK and kernel() is not None else _running_sums
    for start in range(0, len(drawn), COLUMNS_AT_ONCE):
        came = np.ascontiguousarray(drawn[start : start + COLUMNS_AT_ONCE].T)  # (n, b)
        for k, roc in enumerate(rocs):
            found[start : start + COLUMNS_AT_ONCE, k] = ratio(*sums(roc, came))
    return found


def ratio(part: ArrayLike, whole: ArrayLike) -> np.ndarray:
    """part / whole, NaN where the whole is nothing."""
    part, whole = np.asarray(part, dtype=np.float64), np.asarray(whole, dtype=np.float64)
    return np.divide(part, whole, out=np.full(part.shape, np.nan), where=whole > 0)


def _running(brought: np.ndarray) -> np.ndarray:
    """Sums up to each place, from 0: (n + 1, *b)."""
    total = np.zeros((len(brought) + 1, *brought.shape[1:]))
    np.cumsum(brought, axis=0, dtype=np.float64, out=total[1:])
    return total


def _running_sums(roc: Roc, drawn: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The weight of concordant and of all pairs in resamples (n, b)."""
    came = drawn[roc.order]
    cases, controls = came * roc.case[:, None], came * roc.control[:, None]  # (n, b)
    first = np.flatnonzero(np.append(True, np.diff(roc.strata) > 0))
    everybody = np.add.reduceat(cases, first) * np.add.reduceat(controls, first)  # (strata, b)
    return np.einsum("nb,nb->b", cases, roc.lower(controls)), everybody.sum(axis=0)


def _swept_sums(roc: Roc, drawn: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """As ``_running_sums``, compiled."""
    sums, swept = np.zeros((2, drawn.shape[1])), kernel()
    assert swept is not None
    swept(*roc, drawn, sums)
    return sums[0], sums[1]


@lru_cache(maxsize=1)
def kernel() -> Callable[..., Any] | None:
    """The compiled sums; None without numba."""
    return compiled(_sums)


@no_type_check
def _sums(order, run, strata, case, control, drawn, sums):
    """``sums`` (2, b) of concordant and of all pairs; ``drawn`` is (n, b)."""
    n, b = drawn.shape
    lower, cases, own_case, own_control = np.zeros(b), np.zeros(b), np.zeros(b), np.zeros(b)
    for k in range(n):
        row = order[k]
        for c in range(b):
            own_case[c] += drawn[row, c] * case[k]
            own_control[c] += drawn[row, c] * control[k]
        if k + 1 < n and run[k + 1] == run[k]:
            continue
        last = k + 1 == n or strata[k + 1] != strata[k]
        for c in range(b):
            sums[0, c] += own_case[c] * (lower[c] + 0.5 * own_control[c])
            lower[c] += own_control[c]
            cases[c] += own_case[c]
            own_case[c] = 0.0
            own_control[c] = 0.0
        if last:
            for c in range(b):
                sums[1, c] += cases[c] * lower[c]
                lower[c] = 0.0
                cases[c] = 0.0
