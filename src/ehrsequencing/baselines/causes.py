"""From the hazards of several causes to their cumulative incidences.

With a cause-specific hazard H_r of each cause r (an event of another cause censors) and ΔΛ(u) = Σ_r ΔH_r(u):

    CIF_r(t) = Σ_{u ≤ t} S(u−)·(1 − e^{−ΔΛ(u)})·ΔH_r(u)/ΔΛ(u),    S(u) = exp(−Σ_{v ≤ u} ΔΛ(v)).

The Aalen–Johansen product integral with each step's hazard spent evenly over the step, instead of at one instant: S and
the incidences add to 1 whatever the size of a step, and with one cause this is S = exp(−H), as everywhere here. The two
agree to the square of the steps (Kalbfleisch & Prentice 2002, §8.2; Beyersmann et al. 2012, §5.2).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float64

from ehrsequencing.baselines.proportional import Breslow, relative_hazard

MAX_STEPS = 1_000
"""More distinct event times are gathered into so many equal steps of time."""
_CELLS = 2_000_000
"""Rows are worked through in blocks of at most so many numbers."""


def incidence(increments: Float64[np.ndarray, "n u R"]) -> Float64[np.ndarray, "n u R"]:
    """CIF_r after each of u steps, of hazards ΔH_r.

    >>> incidence(np.log(2) * np.array([[[0.5, 0.5], [0.75, 0.25]]])).round(4).tolist()
    [[[0.25, 0.25], [0.4375, 0.3125]]]
    """
    total = increments.sum(axis=2)  # [n,u] ΔΛ
    before = np.exp(-(np.cumsum(total, axis=1) - total))  # [n,u] S(u−)
    lost = before * -np.expm1(-total)  # [n,u]
    share = np.divide(increments, total[..., None], out=np.zeros_like(increments), where=total[..., None] > 0)
    return np.cumsum(lost[..., None] * share, axis=1)


def proportional_incidence(
    base: Sequence[Breslow], eta: Sequence[Float64[np.ndarray, " n"]], times: Float64[np.ndarray, " m"]
) -> Float64[np.ndarray, "n m R"]:
    """CIFs at ``times`` of cause-specific proportional hazards ΔH_r(u | x) = e^{η_r(x)}·ΔH₀_r(u)."""
    steps, increments = _steps(base, times)  # [u], [u,R]
    relative = np.stack([relative_hazard(one) for one in eta], axis=1)  # [n,R]
    at = np.searchsorted(steps, times, side="right")  # [m]
    block = max(_CELLS // max(increments.size, 1), 1)
    parts = []
    for begin in range(0, len(relative), block):
        found = incidence(relative[begin : begin + block, None, :] * increments)  # [b,u,R]
        whole = np.concatenate([np.zeros((len(found), 1, len(base))), found], axis=1)
        parts.append(whole[:, at])
    return np.concatenate(parts)


def time_lost(cif: Float64[np.ndarray, "n m"], times: Float64[np.ndarray, " m"]) -> Float64[np.ndarray, " n"]:
    """∫ CIF over (0, last time] of a curve given at ``times``, by trapezia; days (Andersen 2013).

    >>> time_lost(np.array([[0.5, 0.5]]), np.array([1.0, 2.0]))
    array([0.75])
    """
    whole = np.concatenate([np.zeros((len(cif), 1)), cif], axis=1)
    return np.trapezoid(whole, np.concatenate([[0.0], times]), axis=1)


def _steps(base: Sequence[Breslow], times: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The times [u] at which a cause's baseline hazard steps, and the steps of all causes there [u,R]."""
    every = np.unique(np.concatenate([one.times for one in base]))
    if len(every) > MAX_STEPS:
        every = np.linspace(0.0, max(times[-1], every[-1]), MAX_STEPS + 1)[1:]
    increments = np.zeros((len(every), len(base)))
    for cause, one in enumerate(base):
        at = np.minimum(np.searchsorted(every, one.times), len(every) - 1)
        increments[:, cause] = np.bincount(at, weights=np.diff(one.cumulative, prepend=0.0), minlength=len(every))
    return every, increments
