"""Attention over a batch of records behind one function, whatever the layout of the batch in memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from types import MappingProxyType

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from ehrsequencing.models.packed_attention import PackedAttention

TILE, LONG = 32, 256
"""Block-causal records are packed in whole tiles, those above LONG in multiples of it where results must repeat."""


@dataclass(frozen=True)
class Relation:
    """Which tokens of its record a head may read: ``sees`` of the visit numbers of query and key."""

    why: str
    sees: Callable[[Tensor, Tensor], Tensor]


RELATIONS: Mapping[str, Relation] = MappingProxyType(
    {
        "record": Relation(
            "everything: what stands anywhere in the record", lambda query, key: torch.ones_like(query >= key)
        ),
        "past": Relation("its own and earlier visits: what came first", torch.ge),
        "visit": Relation("its own visit: what was recorded together", torch.eq),
    }
)
"""What a head may read of a record, by name. Heads that differ in it tell apart what was recorded together, what came
before, and what stands anywhere, which a bidirectional mask alone must learn from time differences."""


@dataclass(frozen=True)
class Layout:
    """Where the tokens of B records lie, and which of them see each other: all real tokens of one record, or
    (*block-causal*) those of a token's own and of earlier visits only.

    *Padded*: [B, L], each row up to its own length real. *Packed*: one row of all T real tokens, longest record first,
    so that nothing is computed for padding; records of one length are attended in one call, without a mask.
    Block-causal records are packed by length rounded up to whole tiles, one mask a length.

    Attributes:
        key_mask: [B, 1, 1, L], True at real tokens; [B, 1, L, L] where block-causal; None where no row is padded, or
            packed.
        groups: (records, length) of each distinct length, longest first; empty where padded.
        index: [T] the packed tokens' places in the flattened [B, L].
        shape: (B, L).
        visible: packed, where not every token sees all of its record: [records, 1 or heads, length, length] of each
            group, True where the key may be seen.
        exact: packed without any padding.
    """

    key_mask: Tensor | None
    groups: tuple[tuple[int, int], ...]
    index: Int[Tensor, " T"]
    shape: tuple[int, int]
    visible: tuple[Tensor, ...] = ()
    exact: bool = False

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
        return cls(None, tuple(zip(counts.tolist(), distinct.tolist(), strict=True)), index, (rows, width), exact=True)

    @classmethod
    def block_causal(cls, mask: Bool[Tensor, "B L"], visit: Int[Tensor, "B L"], *, repeatable: bool = True) -> Layout:
        """The layout in which no token sees a later visit: packed on a CPU (L a whole number of tiles), else padded.

        ``repeatable`` rounds lengths so that the same kernels work on a visit whatever follows it: then its result is
        the same to the bit. Rounding to tiles alone, as in training, is faster and the same to 1e-6.
        """
        seen_from = torch.where(mask, visit, torch.iinfo(visit.dtype).max)  # padding sees all, and none sees it
        if mask.device.type != "cpu":
            return cls(_visible(seen_from), (), torch.arange(mask.numel(), device=mask.device), _shape(mask))
        width = mask.shape[1]
        wanted = [min(rounded(n, repeatable), width) for n in mask.sum(dim=1).tolist()]
        lengths, order = torch.tensor(wanted).sort(descending=True, stable=True)  # [B], [B]
        distinct, counts = lengths.unique_consecutive(return_counts=True)
        groups = tuple(zip(counts.tolist(), distinct.tolist(), strict=True))
        rows = order.split(counts.tolist())
        index = torch.cat(
            [(own[:, None] * width + torch.arange(n)).flatten() for own, (_, n) in zip(rows, groups, strict=True)]
        )
        visible = tuple(_visible(seen_from[own, :n]) for own, (_, n) in zip(rows, groups, strict=True))
        return cls(None, groups, index, _shape(mask), visible)

    def related(
        self, mask: Bool[Tensor, "B L"], visit: Int[Tensor, "B L"], relations: Sequence[str], *, block_causal: bool
    ) -> Layout:
        """The same layout, in which each head sees only what its own relation (``RELATIONS``) lets it see.

        ``[CLS]``, first in its row, stands in a visit of its own after the last one; block-causal, in visit 0.
        """
        if not relations:
            return self
        place = visit.clone()  # [B,L]
        if not block_causal:
            place[:, 0] = visit.amax(dim=1) + 1
        place = place.masked_fill(~mask, torch.iinfo(visit.dtype).max)  # padding stands in a visit of its own, last
        if not self.groups:
            real = mask[:, None, None, :] if self.key_mask is None else self.key_mask  # [B,1,1 or L,L]
            padded = ~mask[:, None, :, None]  # [B,1,L,1] what a padded query reads is meaningless, but must be finite
            return replace(self, key_mask=_related(place, relations) & real | padded)
        sizes = [rows * length for rows, length in self.groups]
        parts = zip(self.groups, place.flatten()[self.index].split(sizes), strict=True)
        seen = [_related(part.view(group), relations) for group, part in parts]
        bases: Sequence[Tensor | bool] = self.visible or [True] * len(seen)
        return replace(self, visible=tuple(own & base for own, base in zip(seen, bases, strict=True)))

    @cached_property
    def biases(self) -> tuple[Tensor | None, ...]:
        """``visible`` as what is added to the scores of each group, 0 or -inf; once for all layers."""
        if not self.visible:
            return (None,) * len(self.groups)
        return tuple(torch.zeros(seen.shape).masked_fill_(~seen, -torch.inf) for seen in self.visible)

    @property
    def position(self) -> Int[Tensor, "B2 L2"]:
        """Where in its record each token of this layout stands, from 0; [1, L] where padded."""
        width = self.shape[1]
        return self.index[None] % width if self.groups else self.index[None, :width]

    def pack(self, x: Shaped[Tensor, "B L *rest"]) -> Shaped[Tensor, "B2 L2 *rest"]:
        """Padded to this layout: [1, T, …] where packed, unchanged where padded."""
        return x.flatten(0, 1).index_select(0, self.index)[None] if self.groups else x

    def unpack(self, x: Float[Tensor, "B2 L2 H"]) -> Float[Tensor, "B L H"]:
        """Back to padded; what stands at padded places is finite and meaningless."""
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
    if dropout == 0 and q.device.type == "cpu":
        packed: Tensor = PackedAttention.apply(q, k, v, layout.groups, layout.biases)
        return packed
    sizes = [rows * length for rows, length in layout.groups]
    masks: Sequence[Tensor | None] = layout.visible or [None] * len(sizes)
    parts = zip(layout.groups, masks, q.split(sizes, dim=2), k.split(sizes, dim=2), v.split(sizes, dim=2), strict=True)
    return torch.cat([_attend_group(group, mask, part, dropout) for group, mask, *part in parts], dim=2)


def _attend_group(group: tuple[int, int], mask: Tensor | None, qkv: list[Tensor], dropout: float | int) -> Tensor:
    """Records of one length: [1, heads, rows·length, D] in and out, [rows, heads, length, D] between."""
    q, k, v = (x[0].unflatten(1, group).transpose(0, 1) for x in qkv)  # [rows,heads,length,D]
    mixed = scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)
    return mixed.transpose(0, 1).flatten(1, 2)[None]  # [1,heads,rows·length,D]


def rounded(length: int, repeatable: bool) -> int:
    """A length in whole tiles; where results must repeat, above LONG in multiples of LONG.

    >>> rounded(1, True), rounded(33, True), rounded(300, True), rounded(300, False)
    (32, 64, 512, 320)
    """
    step = LONG if repeatable and length > LONG else TILE
    return -(-length // step) * step


def _visible(visit: Int[Tensor, "B L"]) -> Bool[Tensor, "B 1 L L"]:
    """Queries down, keys across: True where the key's visit is not later than the query's."""
    return (visit[:, None, :] <= visit[:, :, None])[:, None]


def _related(visit: Int[Tensor, "B L"], relations: Sequence[str]) -> Bool[Tensor, "B heads L L"]:
    """Queries down, keys across, a plane a head: True where the head's relation holds."""
    query, key = visit[:, :, None], visit[:, None, :]  # [B,L,1], [B,1,L]
    planes = {name: RELATIONS[name].sees(query, key) for name in dict.fromkeys(relations)}
    return torch.stack([planes[name] for name in relations], dim=1)


def _shape(mask: Tensor) -> tuple[int, int]:
    return mask.shape[0], mask.shape[1]
