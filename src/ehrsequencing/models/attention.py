"""Attention over a batch of records behind one function, whatever the layout of the batch in memory."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention


@dataclass(frozen=True)
class Layout:
    """Where the tokens of B records lie, and so which of them see each other: all real tokens of one record.

    *Padded*: [B, L], each row up to its own length real. *Packed*: one row of all T real tokens, longest record first,
    so that nothing is computed for padding; records of one length are attended in one call, without a mask.

    Attributes:
        key_mask: [B, 1, 1, L], True at real tokens; None where no row is padded, or packed.
        groups: (records, length) of each distinct length, longest first; empty where padded.
        index: [T] the packed tokens' places in the flattened [B, L].
        shape: (B, L).
    """

    key_mask: Tensor | None
    groups: tuple[tuple[int, int], ...]
    index: Int[Tensor, " T"]
    shape: tuple[int, int]

    @classmethod
    def of(cls, mask: Bool[Tensor, "B L"]) -> Layout:
        """The faster layout where ``mask`` lives: packed on a CPU, padded elsewhere."""
        return cls.packed(mask) if mask.device.type == "cpu" else cls.padded(mask)

    @classmethod
    def padded(cls, mask: Bool[Tensor, "B L"]) -> Layout:
        """The layout of rows padded to one length; ``mask`` is True at real tokens, which lead their row.

        >>> Layout.padded(torch.tensor([[True, True]])).key_mask is None
        True
        """
        key_mask = None if bool(mask.all()) else mask[:, None, None, :]
        return cls(key_mask, (), torch.arange(mask.numel(), device=mask.device), (mask.shape[0], mask.shape[1]))

    @classmethod
    def packed(cls, mask: Bool[Tensor, "B L"]) -> Layout:
        """The layout without padding.

        >>> Layout.packed(torch.tensor([[True, False], [True, True]])).groups
        ((1, 2), (1, 1))
        """
        rows, width = mask.shape
        lengths, order = mask.sum(dim=1).sort(descending=True, stable=True)  # [B], [B]
        distinct, counts = lengths.unique_consecutive(return_counts=True)
        places = order[:, None] * width + torch.arange(width, device=mask.device)  # [B,L]
        index = places[torch.arange(width, device=mask.device) < lengths[:, None]]  # [T]
        return cls(None, tuple(zip(counts.tolist(), distinct.tolist(), strict=True)), index, (rows, width))

    def pack(self, x: Float[Tensor, "B L *rest"]) -> Float[Tensor, "B2 L2 *rest"]:
        """Padded to this layout: [1, T, …] where packed, unchanged where padded."""
        return x.flatten(0, 1)[self.index][None] if self.groups else x

    def unpack(self, x: Float[Tensor, "B2 L2 H"]) -> Float[Tensor, "B L H"]:
        """Back to padded, 0 at padded places."""
        if not self.groups:
            return x
        rows, width = self.shape
        flat = x.new_zeros(rows * width, x.shape[-1]).index_copy(0, self.index, x[0])  # [BL,H]
        return flat.view(rows, width, x.shape[-1])


def attend(
    q: Float[Tensor, "B heads L D"],
    k: Float[Tensor, "B heads L D"],
    v: Float[Tensor, "B heads L D"],
    layout: Layout,
    dropout: float | int = 0.0,
) -> Float[Tensor, "B heads L D"]:
    """softmax(qkᵀ/√D)v within ``layout`` (Vaswani et al. 2017); values at padded queries are finite and meaningless.

    ``dropout`` above 0 takes scaled_dot_product_attention off its fast path (2 to 3 times slower on a CPU).
    """
    if not layout.groups:
        return scaled_dot_product_attention(q, k, v, attn_mask=layout.key_mask, dropout_p=dropout)
    sizes = [rows * length for rows, length in layout.groups]
    parts = zip(layout.groups, q.split(sizes, dim=2), k.split(sizes, dim=2), v.split(sizes, dim=2), strict=True)
    return torch.cat([_attend_group(group, part, dropout) for group, *part in parts], dim=2)  # [1,heads,T,D]


def _attend_group(group: tuple[int, int], qkv: list[Tensor], dropout: float | int) -> Tensor:
    """Records of one length: [1, heads, rows·length, D] in and out, [rows, heads, length, D] between."""
    q, k, v = (x[0].unflatten(1, group).transpose(0, 1) for x in qkv)  # [rows,heads,length,D]
    mixed = scaled_dot_product_attention(q, k, v, dropout_p=dropout)
    return mixed.transpose(0, 1).flatten(1, 2)[None]  # [1,heads,rows·length,D]
