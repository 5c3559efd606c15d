"""Attention over packed records on a CPU as one node of the graph: a fused kernel call for each distinct length."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from ehrsequencing.models.tiles import Groups, Tiles, attend_here

Biases = Sequence[Tensor | None]

_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
"""The kernels are called here, since a graph of views, splits and concatenations around each call costs as much as a
short record's attention."""


class PackedAttention(torch.autograd.Function):
    """softmax(qkᵀ/√D + bias)v within each record of [1, heads, T, D], records lying one after the other."""

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, groups: Groups, biases: Biases, tiles: Tiles | None
    ) -> Tensor:
        """[1, heads, T, D] in and out; ``biases`` (-inf where the key may not be seen) of each group, or None.

        With ``tiles`` the groups are theirs, and records are attended in them.
        """
        if tiles:
            q, k, v = (tiles.spread(x) for x in (q, k, v))
        found = [
            attend_here(*part, 0.0, False, attn_mask=bias)
            for *part, bias in zip(*(_records(x, groups) for x in (q, k, v)), biases, strict=True)
        ]
        mixed = _together([out for out, _ in found])  # [1,heads,T,D]
        ctx.groups, ctx.biases, ctx.tiles = groups, biases, tiles
        ctx.save_for_backward(q, k, v, mixed, *(logsumexp for _, logsumexp in found))
        return tiles.gathered(mixed) if tiles else mixed

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, mixed, *logsumexps = ctx.saved_tensors
        tiles: Tiles | None = ctx.tiles
        if tiles:
            gradient = tiles.emptied(tiles.spread(gradient))
        parts = (_records(x, ctx.groups) for x in (_rows(gradient), q, k, v, mixed))
        found = [
            _backward(*part, logsumexp, 0.0, False, attn_mask=bias)
            for *part, logsumexp, bias in zip(*parts, logsumexps, ctx.biases, strict=True)
        ]
        gradients = [_together(list(part)) for part in zip(*found, strict=True)]
        return *(tiles.gathered(x) if tiles else x for x in gradients), None, None, None


def _rows(x: Tensor) -> Tensor:
    """With channels next to each other, as the kernels need them."""
    return x if x.stride(-1) == 1 else x.contiguous()


def _records(x: Float[Tensor, "1 heads T D"], groups: Groups) -> Iterator[Float[Tensor, "rows heads length D"]]:
    """The records of each length, as views."""
    _, heads, _, width = x.shape
    _, head, token, channel = x.stride()
    begin = x.storage_offset()
    for rows, length in groups:
        yield x.as_strided((rows, heads, length, width), (length * token, head, token, channel), begin)
        begin += rows * length * token


def _together(parts: list[Tensor]) -> Float[Tensor, "1 heads T D"]:
    """Back to one row of all tokens."""
    return torch.cat([part.transpose(1, 2).flatten(0, 1) for part in parts]).transpose(0, 1)[None]
