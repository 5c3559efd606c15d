"""Relative position, visit and time inside attention: rotary angles (Su et al. 2021, arXiv:2104.09864)."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from ehrsequencing.batches import Batch
from ehrsequencing.models.attention import Layout

POSITION_SCALES, VISIT_SCALES, DAY_SCALES = (1.0, 100.0), (1.0, 30.0), (5.0, 3_000.0)
"""Shortest and longest distance (tokens, visits, days) at which a pair of channels has turned by one radian."""


Turn = tuple[Tensor, Tensor]
"""Cosines and sines of the angles, each [B, 1, L, D/2]; [1, 1, T, D/2] where packed."""


def coordinates(batch: Batch, *, block_causal: bool = False) -> Float[Tensor, "B L 3"]:
    """Where each token stands: its position, its visit, and days since the record's first visit, stays left out.

    ``[CLS]``, first in its row, stands at prediction_time: one visit and its own gap after the last visit, so that its
    distance to a token is how long ago that token was. Block-causal, it stands before the first visit, at the record's
    start: every visit sees it, so it must not tell where the record ends.
    """
    position = (batch.mask.cumsum(dim=1) - 1).clamp_min(0)  # [B,L]
    visit = batch.visit.masked_fill(~batch.mask, 0)  # [B,L]
    opens = torch.zeros_like(batch.mask)  # [B,L] the first token of a visit
    opens[:, 1:] = (visit[:, 1:] != visit[:, :-1]) & batch.mask[:, 1:]
    days = (batch.gap * opens).cumsum(dim=1)  # [B,L]
    if block_causal:
        return torch.stack([position, visit, days], dim=-1).to(batch.gap.dtype)  # [B,L,3]
    visit, days = visit.clone(), days.clone()
    days[:, 0] = days.amax(dim=1) + batch.gap[:, 0]
    visit[:, 0] = visit.amax(dim=1) + 1
    return torch.stack([position, visit, days], dim=-1).to(batch.gap.dtype)  # [B,L,3]


def rotation(batch: Batch, width: int, layout: Layout, *, block_causal: bool = False) -> Turn:
    """The angles of heads with ``width`` channels, in ``layout``.

    A quarter of the pairs of channels turns with position, a quarter with visit, the rest with time.
    """
    pairs = width // 2
    shares = (pairs // 4, pairs // 4, pairs - 2 * (pairs // 4))
    where = layout.pack(coordinates(batch, block_causal=block_causal))  # [B,L,3], [1,T,3] where packed
    angles = [
        where[..., axis, None] * _rates(scales, count, where.device)
        for axis, (scales, count) in enumerate(zip((POSITION_SCALES, VISIT_SCALES, DAY_SCALES), shares, strict=True))
    ]
    angle = torch.cat(angles, dim=-1)[:, None]  # [B,1,L,P]
    return angle.cos(), angle.sin()


def rotate(x: Float[Tensor, "B heads L D"], turn: Turn) -> Float[Tensor, "B heads L D"]:
    """Turn each pair of channels, so that products of queries and keys depend on differences of coordinates alone."""
    turned: Tensor = _Rotate.apply(x, *turn)
    return turned


class _Rotate(torch.autograd.Function):
    """A rotation as one node of the graph; the gradient is turned back by the same angles."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _turned(x, cos, sin, 1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        return _turned(gradient, cos, sin, -1), None, None


def _turned(x: Float[Tensor, "B heads L D"], cos: Tensor, sin: Tensor, way: int) -> Float[Tensor, "B heads L D"]:
    """(a cos − b sin, a sin + b cos) of the halves a and b of the channels, or with −sin."""
    out = torch.empty_like(x)  # [B,heads,L,D]
    cos, sin = cos.to(x.dtype), sin.to(x.dtype)
    (a, b), (first, second) = x.chunk(2, dim=-1), out.chunk(2, dim=-1)  # [B,heads,L,P]
    torch.mul(a, cos, out=first).addcmul_(b, sin, value=-way)
    torch.mul(b, cos, out=second).addcmul_(a, sin, value=way)
    return out


def _rates(scales: tuple[float, float], count: int, device: torch.device) -> Tensor:
    shortest, longest = scales
    return 1 / torch.logspace(0, 1, max(count, 1), base=longest / shortest, device=device)[:count] / shortest
