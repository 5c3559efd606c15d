"""What a statistician would ask of a record: which codes, how often, how recently first and last, how values run."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ehrsequencing.batches import Batch
from ehrsequencing.config import DAYS_PER_YEAR

LAST_DAYS, FIRST_DAYS = 365.0, 1_500.0
"""Recency is exp(−days since the last, or the first, occurrence / these)."""
LEAST_SPREAD = 0.02
"""Squared years that times of values spread over, at least, where a slope is asked for."""
MOST_SLOPE = 2.0
"""Standard units a year at which a slope is clipped."""
PARTS = ("present", "count", "last", "first")
VALUE_PARTS = ("last value", "mean value", "slope")


@dataclass(frozen=True, eq=False)
class Summary:
    """Of B records and N codes, V of which carry values.

    Attributes:
        codes: ``PARTS``: whether a code occurred, log(1 + how often), recency of its last and of its first occurrence;
            0 where it did not. Static codes have recency 0.
        values: ``VALUE_PARTS`` of standardised values: the last one (of equal times the largest), the mean, and the
            least-squares slope a year, 0 where times hardly spread.
        valued: 1 where the record has values of the code.
    """

    codes: Float[Tensor, "B 4 N"]
    values: Float[Tensor, "B 3 V"]
    valued: Float[Tensor, "B V"]


def summarise(
    batch: Batch,
    days: Float[Tensor, "B L"],
    slot: Int[Tensor, " vocab"],
    n: int,
    value_slot: Int[Tensor, " vocab"],
    n_values: int,
) -> Summary:
    """The summary of each record of a batch.

    Args:
        days: before prediction_time, of each token; infinite where it has no time (``batches.days_ago``).
        slot, value_slot: the place of each id among the N codes, and the V codes with values; −1 for none.
    """
    dated = days.isfinite().float()  # [B,L]
    ago = torch.where(days.isfinite(), days, 0.0)  # [B,L]
    own = slot[batch.code].masked_fill(~batch.mask, -1)  # [B,L]
    place = own.clamp_min(0)  # [B,L]
    known = (own >= 0).float()  # [B,L]
    empty = ago.new_zeros(len(batch), n)
    count = empty.scatter_add(1, place, known)  # [B,N]
    timed = known * dated  # [B,L]
    last = empty.scatter_reduce(1, place, timed * torch.exp(-ago / LAST_DAYS), "amax")  # [B,N]
    since = empty.scatter_reduce(1, place, timed * ago, "amax")  # [B,N]
    dated_codes = empty.scatter_reduce(1, place, timed, "amax")  # [B,N]
    first = dated_codes * torch.exp(-since / FIRST_DAYS)  # [B,N]
    codes = torch.stack([(count > 0).float(), count.log1p(), last, first], dim=1)  # [B,4,N]
    return Summary(codes, *_values(batch, ago, dated, value_slot, n_values))


def _values(
    batch: Batch, ago: Tensor, dated: Tensor, slot: Int[Tensor, " vocab"], n: int
) -> tuple[Float[Tensor, "B 3 V"], Float[Tensor, "B V"]]:
    if n == 0:
        return ago.new_zeros(len(batch), len(VALUE_PARTS), 0), ago.new_zeros(len(batch), 0)
    own = slot[batch.code].masked_fill(~(batch.mask & batch.has_value), -1)  # [B,L]
    place = own.clamp_min(0)  # [B,L]
    known = (own >= 0) * dated  # [B,L]
    empty = ago.new_zeros(len(batch), n)

    def total(x: Tensor) -> Tensor:
        return empty.scatter_add(1, place, x * known)  # [B,V]

    count = total(torch.ones_like(ago))  # [B,V]
    size = count.clamp_min(1)
    latest = torch.full_like(empty, torch.inf).scatter_reduce(
        1, place, torch.where(known > 0, ago, torch.inf), "amin"
    )  # [B,V]
    newest = known * (ago == latest.gather(1, place))  # [B,L]
    last = torch.full_like(empty, -torch.inf).scatter_reduce(
        1, place, torch.where(newest > 0, batch.value, -torch.inf), "amax"
    )  # [B,V]
    mean, years = total(batch.value) / size, -ago / DAYS_PER_YEAR
    x = years - (total(years) / size).gather(1, place)  # [B,L]
    y = batch.value - mean.gather(1, place)  # [B,L]
    spread = total(x * x)  # [B,V]
    slope = torch.where(spread > LEAST_SPREAD, total(x * y) / spread.clamp_min(LEAST_SPREAD), 0.0)
    valued = (count > 0).float()
    last = torch.where(count > 0, last, 0.0)
    return torch.stack([last, mean, slope.clamp(-MOST_SLOPE, MOST_SLOPE)], dim=1), valued
