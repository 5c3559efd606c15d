"""Dropout that draws its bits cheaply on a CPU, where torch's own costs more than the matrix product beside it."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

LEVELS = 1 << 16
"""A decision takes 16 random bits, so that the share kept is within 1/131,072 of the one asked for."""


class Dropout(nn.Dropout):
    """``torch.nn.Dropout``, four decisions from each draw of torch's generator on a CPU."""

    def forward(self, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Zero a share p of the elements in training, and divide the others by the share kept."""
        if not self.training or self.p == 0 or x.device.type != "cpu":
            return super().forward(x)
        kept = round((1 - self.p) * LEVELS)
        if kept == 0:
            return super().forward(x)
        return x * keep(x, kept).mul_(LEVELS / kept)


def keep(like: Float[Tensor, "*shape"], kept: int) -> Float[Tensor, "*shape"]:
    """1 with probability ``kept``/LEVELS, else 0, in the shape and type of a tensor on a CPU.

    >>> _ = torch.manual_seed(0)
    >>> keep(torch.zeros(100_000), LEVELS // 4).mean().round(decimals=2)
    tensor(0.2500)
    """
    words = torch.empty(-(-like.numel() // 4), dtype=torch.int64).random_(-(1 << 63), None)  # all 64 bits
    bits = words.view(torch.int16)[: like.numel()].view(like.shape)  # -LEVELS/2 to LEVELS/2 - 1
    return torch.lt(bits, kept - LEVELS // 2, out=torch.empty_like(like, memory_format=torch.contiguous_format))
