"""What blocks make of a batch, in the layout in which they did; padded rows only where somebody asks for them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from ehrsequencing.models.attention import Layout
from ehrsequencing.models.tiles import Groups, in_groups


@dataclass(frozen=True, eq=False)
class States:
    """The vectors of B rows of at most L.

    Attributes:
        laid: in ``layout``: [1, T, H] where packed.
    """

    laid: Float[Tensor, "B2 L2 H"]
    layout: Layout

    @cached_property
    def padded(self) -> Float[Tensor, "B L H"]:
        """What stands at padded places is finite and meaningless."""
        return self.layout.unpack(self.laid)

    def at(self, places: Int[Tensor, " M"]) -> Float[Tensor, "M H"]:
        """Those of some places of the flattened [B, L], all of them real."""
        if not self.layout.groups:
            return self.padded.flatten(0, 1).index_select(0, places)
        index = self.layout.index  # [T]
        place = index.new_empty(self.layout.shape[0] * self.layout.shape[1])  # [BL]
        place[index] = torch.arange(len(index), device=index.device)
        return self.laid[0].index_select(0, place[places])

    def pooled(self, mask: Bool[Tensor, "B L"]) -> Float[Tensor, "B F"]:
        """First, mean and maximum over each row's real places (``mask``), concatenated: F = 3H."""
        if not self.layout.groups:
            return pool(self.padded, mask)
        pooled: Tensor = _PoolPacked.apply(self.laid[0, : len(self.layout.index)], self.layout.groups)
        starts = _starts(self.layout.groups, pooled.device)  # [B]
        row = self.layout.index[starts] // self.layout.shape[1]  # [B]
        return torch.empty_like(pooled).index_copy(0, row, pooled)


def pool(hidden: Float[Tensor, "B L H"], mask: Bool[Tensor, "B L"]) -> Float[Tensor, "B F"]:
    """[CLS], mean and maximum over a record's real tokens, concatenated: F = 3H; [CLS] leads the row."""
    real = mask[..., None]  # [B,L,1]
    mean = (hidden * real).sum(dim=1) / real.sum(dim=1)  # [B,H]
    top = hidden.masked_fill(~real, -torch.inf).amax(dim=1)  # [B,H]
    return torch.cat([hidden[:, 0], mean, top], dim=-1)  # [B,3H]


def _starts(groups: Groups, device: torch.device) -> Tensor:
    """Where each packed record begins, [B]."""
    lengths = _lengths(groups, device)
    return lengths.cumsum(dim=0) - lengths


def _lengths(groups: Groups, device: torch.device) -> Tensor:
    rows, lengths = (torch.tensor(part, device=device) for part in zip(*groups, strict=True))
    return lengths.repeat_interleave(rows)


class _PoolPacked(torch.autograd.Function):
    """``pool`` of records that lie one after the other in [T, H], in their order: [B, 3H]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, groups: Groups) -> Tensor:
        own = in_groups(x, groups)
        tops = [part.max(dim=1) for part in own]  # [rows,H] each
        starts = _starts(groups, x.device)  # [B]
        mean = torch.cat([part.mean(dim=1) for part in own])  # [B,H]
        ctx.groups, ctx.shape = groups, x.shape
        ctx.save_for_backward(starts, starts[:, None] + torch.cat([top.indices for top in tops]))
        return torch.cat([x.index_select(0, starts), mean, torch.cat([top.values for top in tops])], dim=1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        starts, highest = ctx.saved_tensors  # [B], [B,H]
        first, mean, top = gradient.chunk(3, dim=1)  # [B,H]
        lengths = _lengths(ctx.groups, gradient.device)  # [B]
        record = torch.arange(len(lengths), device=lengths.device).repeat_interleave(lengths)  # [T]
        out = (mean / lengths[:, None]).index_select(0, record)  # [T,H]
        out.index_add_(0, starts, first)
        return out.scatter_add_(0, highest, top), None
