"""Who sees whom in a batch of records, and how the batch lies in memory; ``backends`` attends in it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from types import MappingProxyType

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor
from torch.nn.functional import pad

from ehrsequencing.models.flat_attention import Bounds, Flat, Span

TILE, LONG = 32, 256
"""Block-causal records are packed in whole tiles, those above LONG in multiples of it where results must repeat."""


@dataclass(frozen=True)
class Relation:
    """Which tokens of its record a head may read.

    Attributes:
        sees: of the visit numbers of query and key.
        span: the same as where what a token sees begins and ends.
    """

    why: str
    sees: Callable[[Tensor, Tensor], Tensor]
    span: Callable[[Bounds], Span]


RELATIONS: Mapping[str, Relation] = MappingProxyType(
    {
        "record": Relation(
            "everything: what stands anywhere in the record",
            lambda query, key: torch.ones_like(query >= key),
            lambda bounds: bounds.record,
        ),
        "past": Relation("its own and earlier visits: what came first", torch.ge, lambda bounds: bounds.past),
        "visit": Relation("its own visit: what was recorded together", torch.eq, lambda bounds: bounds.visit),
    }
)
"""What a head may read of a record, by name. Heads that differ in it tell apart what was recorded together, what came
before, and what stands anywhere, which a bidirectional mask alone must learn from time differences."""


@dataclass(frozen=True)
class Reading:
    """How an encoder reads records: which visits a token sees, and each head of those (``RELATIONS``).

    Attributes:
        repeatable: block-causal, lengths are rounded so that a visit's result is the same to the bit whatever follows.
        dropout: of attention weights.
    """

    relations: tuple[str, ...] = ()
    block_causal: bool = False
    repeatable: bool = False
    dropout: float | int = 0.0


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
        backend: who attends in it (``backends.BACKENDS``).
        flat: of a row that ends in padding, what its back-end needs to know.
        exact: packed without any padding.
    """

    key_mask: Tensor | None
    groups: tuple[tuple[int, int], ...]
    index: Int[Tensor, " T"]
    shape: tuple[int, int]
    visible: tuple[Tensor, ...] = ()
    backend: str = "padded"
    flat: Flat | None = None
    exact: bool = False

    @classmethod
    def padded(cls, mask: Bool[Tensor, "B L"], visit: Int[Tensor, "B L"] | None = None) -> Layout:
        """The layout of rows padded to one length; ``mask`` is True at real tokens, which lead their row.

        Given visit numbers, no token sees a later visit.

        >>> Layout.padded(torch.tensor([[True, True]])).key_mask is None
        True
        """
        key_mask = None if bool(mask.all()) else mask[:, None, None, :]
        if visit is not None:
            key_mask = _visible(_seen_from(mask, visit))
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
        groups = tuple(zip(counts.tolist(), distinct.tolist(), strict=True))
        return cls(None, groups, index, (rows, width), backend="by_length", exact=True)

    @classmethod
    def block_causal(cls, mask: Bool[Tensor, "B L"], visit: Int[Tensor, "B L"], *, repeatable: bool = True) -> Layout:
        """The packed layout in which no token sees a later visit (L being a whole number of tiles).

        ``repeatable`` rounds lengths so that the same kernels work on a visit whatever follows it: then its result is
        the same to the bit. Rounding to tiles alone, as in training, is faster and the same to 1e-6.
        """
        seen_from = _seen_from(mask, visit)
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
        return cls(None, groups, index, _shape(mask), visible, backend="by_length")

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
        return self._filled(self.index % width)[None] if self.is_packed else self.index[None, :width]

    @property
    def is_packed(self) -> bool:
        """All records in one row."""
        return bool(self.groups) or self.flat is not None

    def pack(self, x: Shaped[Tensor, "B L *rest"]) -> Shaped[Tensor, "B2 L2 *rest"]:
        """Padded to this layout: [1, T, …] where packed (zeros where a flat row pads), unchanged where padded."""
        return self._filled(x.flatten(0, 1).index_select(0, self.index))[None] if self.is_packed else x

    def unpack(self, x: Float[Tensor, "B2 L2 H"]) -> Float[Tensor, "B L H"]:
        """Back to padded; what stands at padded places is finite and meaningless."""
        if not self.is_packed:
            return x
        rows, width = self.shape
        flat = x.new_zeros(rows * width, x.shape[-1]).index_copy(0, self.index, x[0, : len(self.index)])  # [BL,H]
        return flat.view(rows, width, x.shape[-1])

    def _filled(self, x: Shaped[Tensor, T * rest]) -> Shaped[Tensor, S * rest]:
        """With zeros to the size of a flat row."""
        return x if self.flat is None else pad(x, (0, 0) * (x.ndim - 1) + (0, self.flat.size - len(x)))


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


def _seen_from(mask: Bool[Tensor, "B L"], visit: Int[Tensor, "B L"]) -> Int[Tensor, "B L"]:
    """Visit numbers by which padding sees all, and none sees it."""
    return torch.where(mask, visit, torch.iinfo(visit.dtype).max)


def _shape(mask: Tensor) -> tuple[int, int]:
    return mask.shape[0], mask.shape[1]
