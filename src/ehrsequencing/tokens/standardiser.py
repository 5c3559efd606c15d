"""Robust standardisation of numeric values, one location and scale a code, fitted on the training split."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl
from jaxtyping import Float32, Float64, Integer

_SPREADS = ((0.25, 0.75, 1.349), (0.05, 0.95, 3.290), (0.01, 0.99, 4.653))
"""Lower and upper quantile, and their distance in standard deviations of a normal distribution."""


VALUES_AT_ONCE = 4_000_000
"""Values, about, of which the quantiles are taken together."""


@dataclass(frozen=True, eq=False)
class Standardiser:
    """z = clip((x − median) / scale, ±clip) of codes that carry values; all other codes have none.

    ``scale`` is the interquartile range over 1.349 (the standard deviation, were the values normal). Where that is
    0 the 5–95% and then the 1–99% range take its place; a code whose values are all but constant carries none.

    Attributes:
        ids: ids of the codes that carry values, ascending.
        median: in the code's own unit.
        scale: likewise, above 0.
        clip: largest absolute standardised value.
    """

    ids: Integer[np.ndarray, " c"]
    median: Float64[np.ndarray, " c"]
    scale: Float64[np.ndarray, " c"]
    clip: float

    @classmethod
    def fit(cls, values: pl.DataFrame, min_values: int, clip: float) -> Standardiser:
        """Fit on finite values.

        Args:
            values: columns ``id`` and ``value``, finite only.
            min_values: a code with fewer values carries none.

        >>> frame = pl.DataFrame({"id": [4] * 5 + [5] * 5, "value": [1.0, 2, 3, 4, 5, 7, 7, 7, 7, 7]})
        >>> fitted = Standardiser.fit(frame, min_values=5, clip=4.0)
        >>> fitted.ids.tolist(), fitted.median.tolist()
        ([4], [3.0])
        """
        value = pl.col("value").cast(pl.Float64)
        spreads = [
            (value.quantile(high, "linear") - value.quantile(low, "linear")) / deviations
            for low, high, deviations in _SPREADS
        ]
        first_positive = pl.coalesce([pl.when(spread > 0).then(spread) for spread in spreads])
        known = values.group_by("id").len("n").filter(pl.col("n") >= min_values).sort("id")
        groups = known.with_columns(group=pl.col("n").cast(pl.Int64).cum_sum() // VALUES_AT_ONCE)
        fitted = pl.concat(
            values.filter(pl.col("id").is_in(group["id"].implode()))
            .group_by("id")
            .agg(pl.len().alias("n"), value.median().alias("median"), first_positive.alias("scale"))
            for group in groups.partition_by("group", maintain_order=True) or [known]
        )
        fitted = fitted.filter(pl.col("scale").is_not_null() & pl.col("scale").is_finite()).sort("id")
        ids = fitted["id"].cast(pl.Int64).to_numpy()
        median, scale = fitted["median"].cast(pl.Float64).to_numpy(), fitted["scale"].cast(pl.Float64).to_numpy()
        return cls(ids, median, scale, float(clip))

    def transform(
        self, ids: Integer[np.ndarray, " n"], values: Float32[np.ndarray, " n"], vocab_size: int
    ) -> Float32[np.ndarray, " n"]:
        """Standardised values; NaN where there is no finite value or the code carries none."""
        median = np.full(vocab_size, np.nan)
        scale = np.ones(vocab_size)
        median[self.ids], scale[self.ids] = self.median, self.scale
        scaled = np.full(len(ids), np.nan, dtype=np.float32)
        finite = np.flatnonzero(np.isfinite(values))
        own = ids[finite]
        z = (values[finite].astype(np.float64) - median[own]) / scale[own]
        scaled[finite] = np.clip(z, -self.clip, self.clip)
        return scaled
