"""What a batch of records says of pairs of codes, read from its tokens: the columns of ``pairs`` beside pooled vectors.

An encoder sums a record up in one vector; which of two codes came first, of thousands of such pairs, is not in it. The
few pairs that tell of an outcome (``pair_search``) are read beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ehrsequencing.batches import Batch
from ehrsequencing.models.rotary import coordinates
from ehrsequencing.pairs import TOGETHER_DAYS

PairIds = Sequence[str | int]
"""The kind of a pair (``pairs.PAIR_KINDS``) and the ids of its two codes."""


def read_pairs(batch: Batch, pairs: Sequence[PairIds]) -> Float[Tensor, "B P"]:
    """A column a pair, as ``pairs.pair_columns`` has them of events, but that a visit takes the place of a day, and the
    time between visits that of all time: how long a stay lasted is not in a batch. Static tokens count for none, and
    what lies before the first of ``max_tokens`` tokens is not seen.
    """
    dated = batch.mask & (batch.visit > 0)  # [B,L]
    columns = [READERS[str(kind)](batch, dated, int(a), int(b)) for kind, a, b in pairs]
    return torch.stack(columns, dim=1) if columns else batch.gap.new_zeros(len(batch), 0)


def _earliest(batch: Batch, dated: Bool[Tensor, "B L"], code: int) -> Int[Tensor, " B"]:
    """The number of the visit with the code's first token; 0 where there is none."""
    far = torch.iinfo(batch.visit.dtype).max
    first = torch.where(dated & (batch.code == code), batch.visit, far).amin(dim=1)  # [B]
    return torch.where(first == far, 0, first)


def _before(batch: Batch, dated: Bool[Tensor, "B L"], a: int, b: int) -> Float[Tensor, " B"]:
    first, second = _earliest(batch, dated, a), _earliest(batch, dated, b)  # [B]
    return torch.where((first > 0) & (second > 0), (second - first).sign(), 0).to(batch.gap.dtype)


def _together(batch: Batch, dated: Bool[Tensor, "B L"], a: int, b: int) -> Float[Tensor, " B"]:
    visit = batch.visit.masked_fill(~dated, 0)  # [B,L]
    size = batch.visit.shape[1] + 1
    has = [
        torch.zeros(len(batch), size, dtype=torch.long, device=visit.device).scatter_reduce(
            1, visit, (dated & (batch.code == code)).long(), "amax"
        )
        for code in (a, b)
    ]  # [B,V] each
    both = (has[0] * has[1]).gather(1, visit).bool() & dated  # [B,L] tokens of visits that have the two
    days = coordinates(batch)[..., 2]  # [B,L] since the first visit; of [CLS], at prediction_time
    ago = torch.where(both, days[:, :1] - days, torch.inf).amin(dim=1)  # [B]
    return torch.exp(-ago / TOGETHER_DAYS)


READERS: Mapping[str, Callable[[Batch, Tensor, int, int], Tensor]] = MappingProxyType(
    {"before": _before, "together": _together}
)
