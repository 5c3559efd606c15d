"""Competing risks with piecewise constant hazards of each cause: the truth is known in closed form."""

from __future__ import annotations

import numpy as np

from ehrsequencing.hazards import inverse_softplus
from ehrsequencing.timegrid import TimeGrid

GRID = TimeGrid(np.array([0.0, 20.0, 60.0, 150.0, 300.0]))


def logits_of_hazards(hazards: np.ndarray) -> np.ndarray:
    """Hazard logits whose causes have these cumulative hazards a bin, (n, K, R)."""
    total = hazards.sum(axis=2, keepdims=True)
    return inverse_softplus(total) + np.log(hazards / total)


def draw(logits: np.ndarray, grid: TimeGrid, seed: int, censored_by: float = np.inf) -> tuple[np.ndarray, np.ndarray]:
    """Durations and codes of one draw a row: all-cause time by inversion, cause by its share, uniform censoring."""
    rng = np.random.default_rng(seed)
    n = len(logits)
    weight = np.exp(logits)
    total = np.log1p(weight.sum(axis=2))  # (n, K)
    cumulative = np.concatenate([np.zeros((n, 1)), np.cumsum(total, axis=1)], axis=1)
    target = rng.exponential(size=n)
    duration, code = np.full(n, grid.tau), np.zeros(n, dtype=np.int64)
    for i in range(n):
        k = int(np.searchsorted(cumulative[i], target[i])) - 1
        if k < grid.n_bins:
            share = (target[i] - cumulative[i, k]) / total[i, k]
            duration[i] = grid.edges[k] + share * grid.widths[k]
            code[i] = 1 + rng.choice(logits.shape[2], p=weight[i, k] / weight[i, k].sum())
    if np.isfinite(censored_by):
        leaves = rng.uniform(1.0, censored_by, n)
        code[leaves < duration] = 0
        duration = np.minimum(duration, leaves)
    return np.maximum(duration, 1e-6), code
