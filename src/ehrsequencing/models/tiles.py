"""Packed records in whole tiles while they are attended, so that a visit's result is the same whatever follows it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
from jaxtyping import Bool, Int, Shaped
from torch import Tensor

TILE, LONG, WHOLE_ROWS = 32, 512, 16
"""Records are attended in whole tiles, those above LONG in multiples of it where results must repeat (torch's kernel
takes so many keys at once); matrix products over whole multiples of WHOLE_ROWS rows give a row the same bits however
many rows there are."""
PROBED = (8, 16, 32, 64, 128)
"""Channels of a head for which the lengths that repeat are looked for."""

attend_here = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
"""What scaled_dot_product_attention itself calls on a CPU."""
Groups = tuple[tuple[int, int], ...]
"""(records, length) of each distinct length, longest first."""


def grouped(lengths: Int[Tensor, " B"]) -> Groups:
    """The groups of lengths in falling order.

    >>> grouped(torch.tensor([3, 2, 2]))
    ((1, 3), (2, 2))
    """
    distinct, counts = lengths.unique_consecutive(return_counts=True)
    return tuple(zip(counts.tolist(), distinct.tolist(), strict=True))


def in_groups(x: Shaped[Tensor, T * rest], groups: Groups) -> list[Tensor]:
    """What stands in each group, [rows, length, …]."""
    parts = x.split([rows * length for rows, length in groups])
    return [part.unflatten(0, group) for part, group in zip(parts, groups, strict=True)]


def rounded(length: int, repeatable: bool) -> int:
    """A length in whole tiles; where results must repeat, one of ``repeatable_lengths`` or a multiple of LONG.

    >>> rounded(1, True), rounded(33, False), rounded(600, True), rounded(600, False)
    (32, 64, 1024, 608)
    """
    if repeatable and length <= LONG:
        return next(n for n in repeatable_lengths() if n >= length)
    step = LONG if repeatable else TILE
    return -(-length // step) * step


@cache
def repeatable_lengths() -> tuple[int, ...]:
    """Whole numbers of tiles up to LONG in which attention gives a query the same bits as among LONG keys.

    A product sums over keys in pieces, whose sizes depend on how many keys there are and on the processor: so it is
    tried, once, on the processor at hand, in single precision.
    """
    safe, single, cpu = set(range(TILE, LONG + 1, TILE)), torch.float32, torch.device("cpu")
    generator = torch.Generator(cpu).manual_seed(0)
    hidden = torch.full((LONG, LONG), -torch.inf, dtype=single, device=cpu).triu(1)  # later keys
    for width in PROBED:
        qkv = torch.randn(3, 1, 1, LONG, width, generator=generator, dtype=single, device=cpu)
        among = {n: attend_here(*qkv[:, :, :, :n], 0.0, False, attn_mask=hidden[:n, :n])[0] for n in safe}
        safe = {n for n, found in among.items() if torch.equal(found, among[LONG][:, :, :n])}
    return tuple(sorted(safe))


@dataclass(frozen=True, eq=False)
class Tiles:
    """Where the T tokens of packed records lie in the T2 places of whole tiles, each record beginning one.

    Attributes:
        groups: (records, length) of each distinct length in tiles, longest first.
        source: [T2] the packed token at each place; where none stands, one of them.
        real: [T2] True where one stands.
        place: [S] where each packed token stands; S is T in whole multiples of WHOLE_ROWS, the last ones stand nowhere.
        tokens: T.
    """

    groups: Groups
    source: Int[Tensor, " T2"]
    real: Bool[Tensor, " T2"]
    place: Int[Tensor, " S"]
    tokens: int

    @classmethod
    def of(cls, lengths: Int[Tensor, " B"], repeatable: bool) -> Tiles:
        """For records of these lengths, longest first.

        >>> Tiles.of(torch.tensor([40, 3]), True).groups
        ((1, 64), (1, 32))
        """
        whole = torch.tensor([rounded(n, repeatable) for n in lengths.tolist()])  # [B]
        inside = torch.arange(int(whole.max()))
        real = (inside < lengths[:, None])[inside < whole[:, None]]  # [T2]
        source = (real.cumsum(dim=0) - 1).clamp_min(0)  # [T2]
        place = real.nonzero()[:, 0]  # [T]
        filling = place.new_zeros(-len(place) % WHOLE_ROWS)
        return cls(grouped(whole), source, real, torch.cat([place, filling]), len(place))

    def numbers(self, x: Int[Tensor, " T"], filling: int) -> list[Int[Tensor, "rows length"]]:
        """A number a packed token in each group, ``filling`` where none stands."""
        return in_groups(x[self.source].masked_fill(~self.real, filling), self.groups)

    def spread(self, x: Shaped[Tensor, "1 heads S D"]) -> Shaped[Tensor, "1 heads T2 D"]:
        """Packed rows in tiles; where no token stands, that of another one."""
        return _taken(x, self.source)

    def gathered(self, x: Shaped[Tensor, "1 heads T2 D"]) -> Shaped[Tensor, "1 heads S D"]:
        """Rows in tiles, packed again; the last ones, which are no tokens, zero."""
        found = _taken(x, self.place)
        found[:, :, self.tokens :] = 0
        return found

    def emptied(self, x: Shaped[Tensor, "1 heads T2 D"]) -> Shaped[Tensor, "1 heads T2 D"]:
        """Rows in tiles, zero where no token stands."""
        return x.masked_fill(~self.real[:, None], 0)


def _taken(x: Shaped[Tensor, "1 heads n D"], rows: Int[Tensor, " m"]) -> Shaped[Tensor, "1 heads m D"]:
    """Rows of all heads, which lie together in memory."""
    return x[0].transpose(0, 1).index_select(0, rows).transpose(0, 1)[None]
