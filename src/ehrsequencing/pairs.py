"""Pairs of codes in cut histories: which of two was recorded first, and how recently both were recorded on one day.

A count or a recency of one code says neither. Columns of pairs are few: those that a search found to tell of the
outcome (``models.pair_search``). Sequences of two codes as predictors: Estiri et al. 2020, J Biomed Inform 109:103538.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from types import MappingProxyType

import numpy as np
import polars as pl
from jaxtyping import Bool, Float32, Int32, Int64, Integer

NEVER = -1
TOGETHER_DAYS = 365.0
"""Decay of ``together``, from events as from tokens."""
JOINED = 4_000_000
"""Entries that codes of one day, joined with themselves, may have at once: bounds memory."""


@dataclass(frozen=True)
class Pair:
    """Two codes, and what of them is meant: an entry of ``PAIR_KINDS``."""

    kind: str
    first: str
    second: str

    @property
    def name(self) -> str:
        """Of its column.

        >>> Pair("before", "ICD10CM//N18.3", "ATC//M01AE01").name
        'before:ICD10CM//N18.3 > ATC//M01AE01'
        """
        return f"{self.kind}:{self.first} {PAIR_KINDS[self.kind].sign} {self.second}"


@dataclass(frozen=True, eq=False)
class Occurrences:
    """When each of C codes was recorded in n histories, in whole days before the day of prediction.

    Attributes:
        earliest, latest: of each code; ``NEVER`` where it was not recorded with a time.
        days: on how many days each code was recorded.
        row, pair, day: one entry for each two codes i < j that a history has on one day: i·C + j, and the latest
            such day.
    """

    codes: tuple[str, ...]
    earliest: Int32[np.ndarray, "n C"]
    latest: Int32[np.ndarray, "n C"]
    days: Int32[np.ndarray, "n C"]
    row: Int64[np.ndarray, " e"]
    pair: Int64[np.ndarray, " e"]
    day: Int64[np.ndarray, " e"]

    @classmethod
    def of(cls, events: pl.DataFrame, n: int, codes: list[str]) -> Occurrences:
        """From ``row, code, day`` of dated events (day: whole, before prediction; a code's several on one day count
        once)."""
        width = len(codes)
        known = events.filter(pl.col("code").is_in(codes)).select(
            "row", pl.col("code").cast(pl.Enum(codes)).to_physical().cast(pl.Int64), "day"
        )
        known = known.unique().sort("row")
        extremes = known.group_by("row", "code").agg(first=pl.col("day").max(), last=pl.col("day").min(), days=pl.len())
        earliest, latest = (np.full((n, width), NEVER, dtype=np.int32) for _ in range(2))
        days = np.zeros((n, width), dtype=np.int32)
        at = extremes["row"].to_numpy(), extremes["code"].to_numpy()
        earliest[at], latest[at] = extremes["first"].to_numpy(), extremes["last"].to_numpy()
        days[at] = extremes["days"].to_numpy()
        both = pl.concat(_joint(block, width) for block in _blocks(known)).sort("pair", "row")
        found = (both[name].cast(pl.Int64).to_numpy() for name in ("row", "pair", "day"))
        return cls(tuple(codes), earliest, latest, days, *found)

    def __len__(self) -> int:
        return len(self.earliest)

    def has(self, code: int) -> Bool[np.ndarray, " n"]:
        """Which histories have the code of that number."""
        return self.earliest[:, code] != NEVER


def _blocks(known: pl.DataFrame) -> Iterator[pl.DataFrame]:
    """Whole rows whose days, each joined with itself, have about ``JOINED`` entries together; one block at least."""
    size = known.group_by("row", "day").len().group_by("row").agg((pl.col("len").cast(pl.Int64) ** 2).sum()).sort("row")
    block = (size["len"].cum_sum() // JOINED).to_numpy()
    first = np.flatnonzero(np.diff(block, prepend=-1)) if len(block) else np.zeros(0, np.int64)
    edges = [*size["row"].to_numpy()[first], None]
    if len(edges) == 1:
        yield known
    for low, high in pairwise(edges):
        below = pl.lit(True) if high is None else pl.col("row") < high
        yield known.filter((pl.col("row") >= low) & below)


def _joint(known: pl.DataFrame, width: int) -> pl.DataFrame:
    """``row, pair, day``: the latest day on which a row has both codes of a pair."""
    return (
        known.join(known, on=["row", "day"], suffix="_other")
        .filter(pl.col("code") < pl.col("code_other"))
        .group_by("row", (pl.col("code") * width + pl.col("code_other")).alias("pair"))
        .agg(pl.col("day").min())
    )


Columns = Callable[[Occurrences, int, Integer[np.ndarray, " m"]], Float32[np.ndarray, "n m"]]
"""The columns of one code with each of several others, all of higher number."""


def _before(seen: Occurrences, first: int, others: Integer[np.ndarray, " m"]) -> np.ndarray:
    own, other = seen.earliest[:, [first]], seen.earliest[:, others]  # [n,1], [n,m]
    both = (own != NEVER) & (other != NEVER)
    return np.where(both, np.sign(own - other), 0).astype(np.float32)


def _together(seen: Occurrences, first: int, others: Integer[np.ndarray, " m"]) -> np.ndarray:
    width = len(seen.codes)
    begin, end = np.searchsorted(seen.pair, [first * width, (first + 1) * width])
    place = np.full(width, NEVER)
    place[others] = np.arange(len(others))
    column = place[seen.pair[begin:end] - first * width]
    asked = column != NEVER
    found = np.zeros((len(seen), len(others)), dtype=np.float32)
    found[seen.row[begin:end][asked], column[asked]] = np.exp(-seen.day[begin:end][asked] / TOGETHER_DAYS)
    return found


@dataclass(frozen=True)
class PairKind:
    """What is said of two codes; ``sign`` stands between them in a column's name."""

    why: str
    sign: str
    columns: Columns


PAIR_KINDS: Mapping[str, PairKind] = MappingProxyType(
    {
        "before": PairKind("+1 where the first was recorded on an earlier day, -1 on a later one", ">", _before),
        "together": PairKind("exp(-days since both were last recorded on one day / 365)", "&", _together),
    }
)


def pair_columns(seen: Occurrences, pairs: tuple[Pair, ...]) -> Float32[np.ndarray, "n p"]:
    """The column of each pair; 0 where a history lacks one of the codes."""
    number = {code: at for at, code in enumerate(seen.codes)}
    found = np.zeros((len(seen), len(pairs)), dtype=np.float32)
    for column, pair in enumerate(pairs):
        a, b = number[pair.first], number[pair.second]
        low, high = min(a, b), max(a, b)
        x = PAIR_KINDS[pair.kind].columns(seen, low, np.array([high]))[:, 0]
        found[:, column] = -x if a > b and pair.kind == "before" else x
    return found


def told(pairs: tuple[Pair, ...]) -> tuple[str, ...]:
    """For people: a note that names the pairs; nothing where there are none."""
    names = "; ".join(pair.name for pair in pairs)
    return (f"pairs of codes found on the training rows: {names}",) if pairs else ()
