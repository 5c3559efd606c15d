"""The patient bootstrap that all models share, and a figure with its interval."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int64, UInt8

LEVEL = 0.95
MIN_RESAMPLES = 20
"""Fewer give no interval."""
INTERVAL_MEANING = (
    "95% percentile intervals of a patient bootstrap: evaluated patients are drawn with replacement, the same draws "
    "for every model, and where a model has several seeds these are drawn too and their figures averaged. Two "
    "variances are inside: that of who was evaluated, and that of the training seeds where a model has several; not "
    "that of who was trained on: the training patients, the split and the censoring distribution are held fixed. Under "
    "20 resamples no interval is given."
)


@dataclass(frozen=True)
class Interval:
    """A figure and its interval; ``low`` and ``high`` are None without resamples, or where they are too few to tell.

    ``skipped`` counts the resamples in which the figure does not exist (no comparable pairs).
    """

    value: float
    low: float | None
    high: float | None
    skipped: int = 0

    def to_json(self) -> dict[str, float | int | None]:
        """Plain data; ``skipped`` is named only where it happened."""
        data: dict[str, float | int | None] = {"value": self.value, "low": self.low, "high": self.high}
        return data | ({"skipped": self.skipped} if self.skipped else {})

    @classmethod
    def of(cls, figures: Float64[np.ndarray, " resamples"], level: float = LEVEL) -> Interval:
        """``figures[0]`` is the figure itself, the others its resamples; NaN where one does not exist.

        No limits from fewer than ``MIN_RESAMPLES``, nor where the figure exists in fewer than half of them.

        >>> Interval.of(np.append(0.7, np.linspace(0.6, 0.8, 41)))
        Interval(value=0.7, low=0.605, high=0.795, skipped=0)
        """
        seen = figures[1:][np.isfinite(figures[1:])]
        skipped = figures.size - 1 - seen.size
        if seen.size < MIN_RESAMPLES or skipped > seen.size:
            return cls(float(figures[0]), None, None, skipped)
        low, high = np.quantile(seen, [(1 - level) / 2, (1 + level) / 2])
        return cls(float(figures[0]), float(low), float(high), skipped)


def resample_counts(
    n: int, n_boot: int, seed: int, cluster: Int64[np.ndarray, " n"] | None = None
) -> UInt8[np.ndarray, "resamples n"]:
    """How often each of ``n`` rows is in each bootstrap resample; row 0 is the sample itself.

    Args:
        n: rows.
        n_boot: resamples, drawn with replacement, as many patients as there are.
        seed: equal seeds give equal resamples.
        cluster: whose row each is, where patients have several; a patient's rows are drawn together.

    >>> resample_counts(3, 2, seed=0).sum(axis=1)
    array([3, 3, 3], dtype=uint64)
    """
    owner = np.arange(n) if cluster is None else np.unique(cluster, return_inverse=True)[1]  # (n,)
    size = int(owner.max()) + 1
    rng = np.random.default_rng([seed, size])
    counts = np.ones((n_boot + 1, n), dtype=np.uint8)
    for row in range(1, n_boot + 1):
        counts[row] = np.bincount(rng.integers(0, size, size), minlength=size)[owner]
    return counts


def over_seeds(values: Float64[np.ndarray, "seeds resamples"], seed: int) -> Float64[np.ndarray, " resamples"]:
    """The mean over a model's seeds; in a resample, over as many seeds drawn with replacement.

    S draws from S seeds vary by (S − 1)/S of what S new seeds would: their distance from the mean is stretched by
    √(S/(S − 1)) (Davison & Hinkley 1997, Bootstrap Methods, §2.3). Models with equally many seeds have the same draws,
    so that their differences are paired by seed.
    """
    n_seeds, size = values.shape
    drawn = np.random.default_rng([seed, n_seeds]).integers(0, n_seeds, (size, n_seeds))
    drawn[0] = np.arange(n_seeds)
    mean, chosen = values.mean(axis=0), np.take_along_axis(values.T, drawn, axis=1).mean(axis=1)
    return mean + np.sqrt(n_seeds / max(n_seeds - 1, 1)) * (chosen - mean)
