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
from ehrsequencing.models.tiles import Groups, Tiles, grouped, in_groups


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
    Block-causal records are packed likewise, but attended in whole tiles, one call and mask a number of tiles.

    Attributes:
        key_mask: [B, 1, 1, L], True at real tokens; [B, 1, L, L] where block-causal; None where no row is padded, or
            packed.
        groups: (records, length) of each distinct length, longest first; empty where padded.
        index: [T] the packed tokens' places in the flattened [B, L].
        shape: (B, L).
        visible: packed, where not every token sees all of its record: [records, 1 or heads, length, length] of each
            group (of tiles, where there are any), True where the key may be seen.
        backend: who attends in it (``backends.BACKENDS``).
        flat: of a row that ends in padding, what its back-end needs to know.
        tiles: of a row attended in whole tiles, which ends in padding, too: where its tokens lie in them.
    """

    key_mask: Tensor | None
    groups: Groups
    index: Int[Tensor, " T"]
    shape: tuple[int, int]
    visible: tuple[Tensor, ...] = ()
    backend: str = "padded"
    flat: Flat | None = None
    tiles: Tiles | None = None

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
        places = order[:, None] * width + torch.arange(width, device=mask.device)  # [B,L]
        index = places[torch.arange(width, device=mask.device) < lengths[:, None]]  # [T]
        return cls(None, grouped(lengths), index, (rows, width), backend="by_length")

    @classmethod
    def block_causal(cls, mask: Bool[Tensor, "B L"], visit: Int[Tensor, "B L"], *, repeatable: bool = True) -> Layout:
        """The packed layout in which no token sees a later visit.

        ``repeatable`` rounds lengths so that the same kernels work on a visit whatever follows it: then its result is
        the same to the bit. Rounding to tiles alone, as in training, is faster and the same to 1e-6.
        """
        plain = cls.packed(mask)
        tiles = Tiles.of(torch.tensor([n for rows, n in plain.groups for _ in range(rows)]), repeatable)
        seen_from = tiles.numbers(visit.flatten()[plain.index], torch.iinfo(visit.dtype).max)
        return replace(plain, visible=tuple(map(_visible, seen_from)), tiles=tiles)

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
        own = place.flatten()[self.index]  # [T]
        last = torch.iinfo(visit.dtype).max
        parts = self.tiles.numbers(own, last) if self.tiles else in_groups(own, self.groups)
        seen = [_related(part, relations) for part in parts]
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
        """Padded to this layout: [1, T, …] where packed (zeros where the row is longer), unchanged where padded."""
        return self._filled(x.flatten(0, 1).index_select(0, self.index))[None] if self.is_packed else x

    def unpack(self, x: Float[Tensor, "B2 L2 H"]) -> Float[Tensor, "B L H"]:
        """Back to padded; what stands at padded places is finite and meaningless."""
        if not self.is_packed:
            return x
        rows, width = self.shape
        flat = x.new_zeros(rows * width, x.shape[-1]).index_copy(0, self.index, x[0, : len(self.index)])  # [BL,H]
        return flat.view(rows, width, x.shape[-1])

    def _filled(self, x: Shaped[Tensor, T * rest]) -> Shaped[Tensor, S * rest]:
        """With zeros to the size of the row."""
        size = self.flat.size if self.flat else len(self.tiles.place) if self.tiles else len(x)
        return x if size == len(x) else pad(x, (0, 0) * (x.ndim - 1) + (0, size - len(x)))


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
