"""Attention over one flat row of all records, as GPUs like it: FlexAttention by spans, and variable-length attention.

Whatever a token may see of its record (all of it, what came before, its own visit) lies side by side, so that a mask is
two numbers a token: where what it sees begins and ends. They are computed on the host, with the table of blocks that
FlexAttention skips or takes whole, and travel with the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from ehrsequencing.device import INDUCTOR, compiled, moved
from ehrsequencing.outline import Outline

BLOCK = 128
"""Tokens in a block that FlexAttention skips, takes whole, or looks at token by token."""
LEAST, SEQUENCES = 256, 64
"""The smallest pack; variable-length attention is told of a whole multiple of so many records."""


class Span(NamedTuple):
    """What each of T tokens sees: the tokens from ``first`` on, before ``end``."""

    first: Int[np.ndarray, " T"]
    end: Int[np.ndarray, " T"]

    def within(self, other: Span) -> Span:
        """What lies in both."""
        return Span(np.maximum(self.first, other.first), np.minimum(self.end, other.end))


@dataclass(frozen=True, eq=False)
class Bounds:
    """Of each of T tokens, records lying one after the other: its record, its visit, and visits that are not later.

    ``[CLS]``, first in its record, stands in a visit of its own after the last one; block-causal, in visit 0.
    """

    record: Span
    visit: Span
    past: Span

    @classmethod
    def of(cls, outline: Outline, *, block_causal: bool) -> Bounds:
        """From where records and visits begin.

        >>> outline = Outline(np.array([4]), np.array([0, 1, 1, 2]), 4)
        >>> Bounds.of(outline, block_causal=True).past.end.tolist()
        [1, 3, 3, 4]
        """
        leads = outline.position == 0  # [T]
        record = _runs(leads)
        visit = _runs(outline.opens | (outline.position == 1) & (not block_causal))
        if block_causal:
            return cls(record, visit, Span(record.first, visit.end))
        return cls(record, visit, Span(record.first + ~leads, np.where(leads, record.end, visit.end)))


def _runs(opens: Bool[np.ndarray, " T"]) -> Span:
    """The run of tokens that each token is in, a run beginning wherever ``opens``."""
    begin = np.flatnonzero(opens)
    lengths = np.diff(begin, append=len(opens))
    return Span(np.repeat(begin, lengths), np.repeat(begin + lengths, lengths))


@dataclass(frozen=True, eq=False)
class Flat:
    """One row of S places: T real tokens, record after record, then padding, each place of which sees itself alone.

    Attributes:
        size: S, one of few (``pack_size``), so that few kernels are compiled.
        blocks: for FlexAttention.
        starts: for variable-length attention: where records begin, and S.
        longest: no record is longer.
    """

    size: int
    blocks: BlockMask | None = None
    starts: Int[Tensor, " N"] | None = None
    longest: int = 0

    @classmethod
    def by_spans(cls, planes: Sequence[Span], plane: Sequence[int], device: torch.device) -> Flat:
        """Head h sees ``planes[plane[h]]``; where one head is named all see as it does."""
        size = pack_size(len(planes[0].first))
        padded = [_padded(span, size) for span in planes]
        whole = Span(*(np.stack([s[side] for s in padded]).astype(np.int32) for side in (0, 1)))  # [P,S]
        return cls(size, blocks=_block_mask(whole, plane, device))

    @classmethod
    def by_records(cls, outline: Outline, device: torch.device) -> Flat:
        """Every token sees its record."""
        size = pack_size(len(outline.visit))
        longest = 1 << int(outline.lengths.max(initial=1) - 1).bit_length()
        ends = np.cumsum(outline.lengths)
        starts = np.concatenate([[0], ends, np.arange(ends[-1], size, longest)[1:], [size]])
        starts = np.pad(starts, (0, -(len(starts) - 1) % SEQUENCES), mode="edge").astype(np.int32)
        return cls(size, starts=moved(torch.from_numpy(starts), device), longest=longest)


def pack_size(tokens: int) -> int:
    """The smallest of 256, 384, 512, 768, 1,024, … that holds so many tokens.

    >>> pack_size(1), pack_size(257), pack_size(1_025)
    (256, 384, 1536)
    """
    power = max(LEAST, 1 << max(tokens - 1, 0).bit_length())
    return power * 3 // 4 if tokens <= power * 3 // 4 and power > LEAST else power


def _padded(span: Span, size: int) -> Span:
    alone = np.arange(len(span.first), size)
    return Span(np.append(span.first, alone), np.append(span.end, alone + 1))


def _block_mask(span: Span, plane: Sequence[int], device: torch.device) -> BlockMask:
    """What FlexAttention reads of the spans [P, S] of each head's plane."""
    first, end = (moved(torch.from_numpy(part), device) for part in span)  # [P,S]
    of_head = moved(torch.tensor(plane), device)  # [heads]
    # a lambda, so that no checker of types wraps what is compiled
    own: Any = lambda h: of_head[h % len(plane)]  # noqa: E731
    sees: Any = lambda b, h, q, kv: (first[own(h), q] <= kv) & (kv < end[own(h), q])  # noqa: E731
    some, all_ = _block_table(span)  # [P,n,n]
    orders = [_ordered(table) for table in (some, all_, some.transpose(0, 2, 1), all_.transpose(0, 2, 1))]
    found: dict[str, Any] = {
        f"{name}_{what}": moved(torch.from_numpy(part), device).index_select(0, of_head)[None]
        for name, order in zip(("kv", "full_kv", "q", "full_q"), orders, strict=True)
        for what, part in zip(("num_blocks", "indices"), order, strict=True)
    }
    size = span.first.shape[1]
    return BlockMask((size, size), **found, BLOCK_SIZE=(BLOCK, BLOCK), mask_mod=sees)


def _block_table(span: Span) -> tuple[Bool[np.ndarray, "P n n"], Bool[np.ndarray, "P n n"]]:
    """Queries down, keys across: blocks in which some key is seen but not all by all, and those in which all are."""
    first, end = (part.reshape(len(part), -1, BLOCK) for part in span)  # [P,n,BLOCK]
    begins = np.arange(first.shape[1]) * BLOCK  # [n]
    touched = (begins + BLOCK > first.min(axis=2)[..., None]) & (begins < end.max(axis=2)[..., None])  # [P,n,n]
    whole = (begins >= first.max(axis=2)[..., None]) & (begins + BLOCK <= end.min(axis=2)[..., None])  # [P,n,n]
    return touched & ~whole, whole


def _ordered(table: Bool[np.ndarray, "P n n"]) -> tuple[Int[np.ndarray, "P n"], Int[np.ndarray, "P n n"]]:
    """How many blocks of each row count, and the numbers of all blocks, those that count first."""
    count = table.sum(axis=2).astype(np.int32)
    return count, np.argsort(~table, axis=2, kind="stable").astype(np.int32)


def flex(q: Float[Tensor, "1 heads S D"], k: Tensor, v: Tensor, flat: Flat) -> Float[Tensor, "1 heads S D"]:
    """FlexAttention over the flat row (Dong et al. 2024, arXiv:2412.05496): compiled on CUDA, else term by term."""
    mixed: Tensor = _flex_kernel(q.device.type)(q, k, v, block_mask=flat.blocks)
    return mixed


@cache
def _flex_kernel(device: str) -> Callable[..., Any]:
    kernel: Any = flex_attention
    return compiled(kernel, INDUCTOR) if device == "cuda" else kernel


def varlen(q: Float[Tensor, "1 heads S D"], k: Tensor, v: Tensor, flat: Flat) -> Float[Tensor, "1 heads S D"]:
    """Variable-length FlashAttention over the flat row: half precision on CUDA only."""
    from torch.nn.attention.varlen import varlen_attn

    row = (x[0].transpose(0, 1) for x in (q, k, v))  # [S,heads,D]
    attention: Any = varlen_attn
    mixed: Tensor = attention(*row, flat.starts, flat.starts, flat.longest, flat.longest)  # [S,heads,D]
    return mixed.transpose(0, 1)[None]
