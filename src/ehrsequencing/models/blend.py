"""The blend of a deep and a wide model: α·deep + (1 − α)·wide hazard logits, α chosen on the tuning rows."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Float64

from ehrsequencing.config import MIN_TUNING_EVENTS
from ehrsequencing.nonparametric import Events
from ehrsequencing.timegrid import TimeGrid

ALPHAS = tuple(step / 10 for step in range(11))
UNDECIDED = 0.5
"""The α of a tuning split that has too few events to choose one."""


def blend(
    deep: Float[np.ndarray, "n K *R"], wide: Float[np.ndarray, "n K *R"], alpha: float | int
) -> Float64[np.ndarray, "n K *R"]:
    """α·deep + (1 − α)·wide of raw hazard logits, float64; either part alone at α = 1 and α = 0, bit for bit.

    With competing causes every φ_{k,r} is blended by the same α.

    >>> blend(np.array([[2.0]]), np.array([[-2.0]]), 0.75)
    array([[1.]])
    """
    if alpha in (0, 1):
        return np.array(deep if alpha else wide, dtype=np.float64)
    return alpha * deep.astype(np.float64) + (1 - alpha) * wide.astype(np.float64)


def choose_alpha(
    deep: Float[np.ndarray, "n K *R"],
    wide: Float[np.ndarray, "n K *R"],
    grid: TimeGrid,
    duration: Float64[np.ndarray, " n"],
    event: Events,
) -> float:
    """The α in steps of 0.1 whose blend has the lowest mean NLL on the tuning rows; the smallest of equals.

    The NLL is convex in α. With fewer than `MIN_TUNING_EVENTS` outcomes up to τ, α is ½.

    Args:
        deep, wide: raw hazard logits of the tuning rows, neither recalibrated.
        duration, event: their outcome; days past τ are censored at τ.
    """
    if np.count_nonzero((event == 1) & (duration <= grid.tau)) < MIN_TUNING_EVENTS:
        return UNDECIDED
    losses = [float(grid.nll(blend(deep, wide, alpha), duration, event).mean()) for alpha in ALPHAS]
    return ALPHAS[int(np.argmin(losses))]
