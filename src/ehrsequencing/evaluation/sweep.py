"""How much of lower rank came earlier: the sum behind every concordance, in O(n log n), compiled where numba is there.

Members come one group after another. Each may bring a weight, and each may ask for the weight of the members of earlier
groups that rank lower, those of equal rank counting half. Members of one group do not see each other.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple, no_type_check

import numpy as np
from jaxtyping import Bool, Float, Float64, Int64

COMPILED_FROM, COMPILED_WORK = 20_000, 1e9
"""Members, and pairs times resamples, from which compiled code pays for its import of half a second."""
COLUMNS_AT_ONCE = 64
"""Resamples swept together: their sums fill a cache line or more, so that the tree is read once for all of them."""
EXACT_COUNTS = 2**23
"""Below so many, whole and half numbers are exact in float32, in which a tree takes half the room."""
PAIRS_AT_ONCE = 8_000_000
"""Entries of a pair matrix held in memory at a time."""


def below(
    rank: Int64[np.ndarray, " n"],
    group: Int64[np.ndarray, " n"],
    weight: Float64[np.ndarray, " n"],
    asks: Bool[np.ndarray, " n"] | None = None,
) -> Float64[np.ndarray, " n"]:
    """For each member who asks, the weight of lower rank in earlier groups, and half of that of equal rank.

    Args:
        rank: from 0 on.
        group: never falling.
        weight: brought by each member.
        asks: who does; what stands for the others is meaningless. None: everybody.

    >>> below(np.array([1, 0, 2, 1]), np.array([0, 0, 1, 2]), np.ones(4)).tolist()
    [0.0, 0.0, 2.0, 1.5]
    """
    sweep = single_kernel() if rank.size >= COMPILED_FROM else None
    if sweep is None:
        return below_numpy(rank, group, weight)
    counts = rank.size < EXACT_COUNTS and bool(((weight == 0) | (weight == 1)).all())
    asks, sums = np.ones(rank.size, dtype=np.bool_) if asks is None else asks, np.zeros(rank.size)
    sweep(group, asks, rank, weight.astype(np.float32 if counts else np.float64), sums)
    return sums


def below_numpy(
    rank: Int64[np.ndarray, " n"], group: Int64[np.ndarray, " n"], weight: Float64[np.ndarray, " n"]
) -> Float64[np.ndarray, " n"]:
    """``below`` without compiled code, bit by bit of the rank from the highest.

    Two ranks first differ in one bit: there the lower has 0 and the higher 1, and above it both are equal. So one
    stable regrouping a bit, and a running sum over the zeros in each regrouped node, find every pair once.
    """
    # inside a group the highest rank first, so that nobody finds a lower rank earlier in their own group
    order = np.lexsort((-rank, group))
    ranks, weights = rank[order], weight[order]  # (n,)
    found, index = np.zeros(rank.size), np.arange(rank.size)
    position = index  # (n,) in nodes of equal higher bits, in the first order inside a node
    for bit in reversed(range(int(ranks.max(initial=0)).bit_length())):
        here = ranks[position]  # (n,)
        one = (here >> bit) & 1 == 1
        zeros = np.where(one, 0.0, weights[position])
        before = np.cumsum(zeros) - zeros
        found[position[one]] += (before - before[_starts(here >> (bit + 1))])[one]
        position = position[np.argsort(here >> bit, kind="stable")]
    found[order] = found.copy()
    return found + 0.5 * _equal_earlier(rank, group, weight)


def _equal_earlier(rank: np.ndarray, group: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """For each member, the weight of equal rank in earlier groups."""
    order = np.lexsort((group, rank))
    ranks, brought = rank[order], weight[order]
    before = np.cumsum(brought) - brought  # (n,)
    by_rank, by_both = _starts(ranks), _starts(ranks, group[order])
    earlier = np.empty(rank.size)
    earlier[order] = before[by_both] - before[by_rank]
    return earlier


def _starts(*columns: np.ndarray) -> np.ndarray:
    """For each row, the first row of its run of equal values in the sorted ``columns``."""
    fresh = np.zeros(columns[0].size, dtype=np.bool_)
    fresh[:1] = True
    for column in columns:
        fresh[1:] |= column[1:] != column[:-1]
    return np.maximum.accumulate(np.where(fresh, np.arange(fresh.size), 0))


class Order(NamedTuple):
    """In which order members come.

    Attributes:
        rows: int64[m], of the members; others of the n rows there are take no part.
        group: int64[m], of each, never falling.
        asks: bool[m], who asks.
    """

    rows: Int64[np.ndarray, " m"]
    group: Int64[np.ndarray, " m"]
    asks: Bool[np.ndarray, " m"]

    @property
    def asking(self) -> Int64[np.ndarray, " q"]:
        """The rows of those who ask."""
        return self.rows[self.asks]


def below_sums(
    order: Order,
    rank: Int64[np.ndarray, " n"],
    brought: Float64[np.ndarray, " n"],
    drawn: Float[np.ndarray, "b n"],
    columns: Float64[np.ndarray, "q k"],
) -> Float64[np.ndarray, "b k"]:
    """Σ w_i c_i · (Σ w_j a_j of lower rank in earlier groups, half of equal rank), on every resample w.

    Args:
        order: of the members.
        rank: of each row, as in ``below``.
        brought: a, of each row.
        drawn: w, how often each row was drawn, one line a resample.
        columns: c, of the q members who ask, in their order.
    """
    work = float(len(columns)) * rank.size * len(drawn)
    sums = _swept_sums if work >= COMPILED_WORK and kernel() is not None else _matrix_sums
    return sums(order, rank, brought, drawn, columns)


def _swept_sums(
    order: Order, rank: np.ndarray, brought: np.ndarray, drawn: np.ndarray, columns: np.ndarray
) -> np.ndarray:
    """By the compiled sweep, ``COLUMNS_AT_ONCE`` resamples at a time; counts and halves are exact in float32."""
    sweep, puts = kernel(), brought != 0
    assert sweep is not None
    plain = bool((brought[puts] == 1).all())
    found = np.empty((len(drawn), columns.shape[1]))
    for start in range(0, len(drawn), COLUMNS_AT_ONCE):
        came = np.ascontiguousarray(drawn[start : start + COLUMNS_AT_ONCE].T)  # (n, b)
        brings = came if plain else came * brought[:, None]
        sums = np.zeros((len(columns), came.shape[1]), dtype=brings.dtype)
        sweep(order.rows, order.group, order.asks, rank, puts, brings, sums)
        found[start : start + COLUMNS_AT_ONCE] = (came[order.asking].astype(np.float64) * sums).T @ columns
    return found


def _matrix_sums(
    order: Order, rank: np.ndarray, brought: np.ndarray, drawn: np.ndarray, columns: np.ndarray
) -> np.ndarray:
    """By the matrix of all pairs, some members that ask at a time: one matrix product for all resamples."""
    puts = order.rows[brought[order.rows] != 0]
    plain = bool((brought[puts] == 1).all())
    brings = drawn[:, puts] if plain else drawn[:, puts] * brought[puts]  # (b, p)
    group = np.empty(rank.size, dtype=np.int64)
    group[order.rows] = order.group
    found, step = np.zeros((len(drawn), columns.shape[1])), max(1, PAIRS_AT_ONCE // max(puts.size, 1))
    for start in range(0, len(columns), step):
        at = order.asking[start : start + step]
        own = rank[at, None]
        score = (rank[puts] < own) + np.float32(0.5) * (rank[puts] == own)  # (q, p) 1, ½ or 0
        pairs = (score * (group[puts] < group[at, None])).astype(brings.dtype)
        sums = drawn[:, at].astype(np.float64) * (brings @ pairs.T)  # (b, q)
        found += sums @ columns[start : start + step]
    return found


@lru_cache(maxsize=1)
def kernel() -> Callable[..., Any] | None:
    """The compiled sweep; None without numba."""
    return compiled(_sweep)


@lru_cache(maxsize=1)
def single_kernel() -> Callable[..., Any] | None:
    """The compiled sweep of one column; None without numba."""
    return compiled(_sweep_one)


def compiled(function: Callable[..., Any]) -> Callable[..., Any] | None:
    """A function as machine code, kept on disk where there is a place for it; None without numba."""
    try:
        import numba
    except ImportError:
        return None
    try:
        return numba.njit(function, cache=True, nogil=True)
    except RuntimeError:  # no folder is writable: neither the package's own nor the user's
        return numba.njit(function, nogil=True)


@no_type_check
def _sweep(rows, group, asks, rank, puts, weight, sums):  # noqa: C901
    """Fenwick tree over ranks, all columns of ``weight`` (n, b) at once; ``sums`` (q, b) is filled.

    One nest of loops, because compiled code can call no function that tests wrap.
    """
    b, top = weight.shape[1], rank.max() + 1
    tree = np.zeros((top + 1, b), weight.dtype)  # node r holds ranks r − (r & −r) … r − 1
    equal = np.zeros((top, b), weight.dtype)
    half = weight.dtype.type(0.5)
    waiting, q = 0, 0  # the next member to bring its weight, once a later group asks; the next row of sums
    for k in range(rows.size):
        while group[waiting] < group[k]:
            row = rows[waiting]
            if puts[row]:
                r = rank[row]
                for c in range(b):
                    equal[r, c] += weight[row, c]
                r += 1
                while r <= top:
                    for c in range(b):
                        tree[r, c] += weight[row, c]
                    r += r & -r
            waiting += 1
        if asks[k]:
            r = rank[rows[k]]
            for c in range(b):
                sums[q, c] = half * equal[r, c]
            while r > 0:
                for c in range(b):
                    sums[q, c] += tree[r, c]
                r -= r & -r
            q += 1


@no_type_check
def _sweep_one(group, asks, rank, weight, sums):
    """``_sweep`` of one column ``weight`` (n,), members standing in order; ``sums`` (n,) is filled where one asks."""
    top = rank.max() + 1
    tree, equal = np.zeros(top + 1, weight.dtype), np.zeros(top, weight.dtype)
    waiting = 0
    for k in range(rank.size):
        while group[waiting] < group[k]:
            brought = weight[waiting]
            if brought != 0:
                r = rank[waiting]
                equal[r] += brought
                r += 1
                while r <= top:
                    tree[r] += brought
                    r += r & -r
            waiting += 1
        if asks[k]:
            r = rank[k]
            found = 0.5 * equal[r]
            while r > 0:
                found += tree[r]
                r -= r & -r
            sums[k] = found
