"""Cut histories by row, read a block of rows at a time: codes as numbers, tokens in order, few bytes held at once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import polars as pl
from jaxtyping import Bool, Float32, Float64, Int32, Int64

from ehrsequencing.errors import EhrError, Exit
from ehrsequencing.events import BIRTH, DEATH
from ehrsequencing.tokens.numbers import in_order, numbered, stretches
from ehrsequencing.tokens.tokenizer import Tokenizer
from ehrsequencing.tokens.visits import US_PER_DAY
from ehrsequencing.tokens.vocabulary import UNK

BLOCK = 131_072
"""Events read together: their arrays stay in the processor's cache."""
_KEYS = ("subject_id", "prediction_time")
_STATIC = np.iinfo(np.int64).min
"""In place of a time, while sorting: before every other."""


@dataclass(frozen=True, eq=False)
class Events:
    """Tokens of rows but for [CLS], sorted by row, static first, then visit; arrays of T."""

    row: Int64[np.ndarray, " T"]
    time: Int64[np.ndarray, " T"]  # microseconds since the epoch; of no meaning where static
    static: Bool[np.ndarray, " T"]
    key: Int64[np.ndarray, " T"]  # equal within a visit of a row
    code: Int32[np.ndarray, " T"]
    value: Float32[np.ndarray, " T"]
    fallback: Bool[np.ndarray, " T"]  # took the id of an ancestor
    bad_values: int
    birth: Float64[np.ndarray, " N"]  # of each row, microseconds since the epoch; NaN where unknown


@dataclass(frozen=True, eq=False)
class _Coding:
    """What a history's codes mean, by their number; 0 is no code."""

    number: Int32[np.ndarray, " T"]
    id: Int32[np.ndarray, " C"]  # ~id of those that fell back
    birth: int
    death: int

    @classmethod
    def of(cls, codes: pl.Series, tokenizer: Tokenizer) -> _Coding:
        number, names = numbered(codes)
        found = tokenizer.lookup(pl.Series(names, dtype=pl.String))
        ids = np.append(np.int32(UNK), found["id"].to_numpy())
        exact = np.append(False, found["exact"].to_numpy())
        at = {name: place for place, name in enumerate(names, start=1)}
        return cls(number, np.where(exact, ids, ~ids).astype(np.int32), at.get(BIRTH, -1), at.get(DEATH, -1))


@dataclass(frozen=True, eq=False)
class Placed:
    """The rows, and where in the history the events of each stand.

    Attributes:
        keys: ``row, subject_id, prediction_time``.
        row, begin, length: of each stretch of a row's events in ``history``, sorted by row.
    """

    tokenizer: Tokenizer
    keys: pl.DataFrame
    history: pl.DataFrame
    row: Int64[np.ndarray, " R"]
    begin: Int64[np.ndarray, " R"]
    length: Int64[np.ndarray, " R"]

    @classmethod
    def of(cls, history: pl.DataFrame, rows: pl.DataFrame, tokenizer: Tokenizer) -> Placed:
        """Number the rows and find their events; those of other rows are ignored.

        Raises:
            EhrError: exit 15 for an event after prediction_time; exit 11 for repeated rows or a missing column.
        """
        _refuse_bad_columns(history, rows, tokenizer.config.visit_column)
        keys = rows.select(pl.col("subject_id").cast(pl.Int64), _microseconds("prediction_time")).with_row_index("row")
        if keys.select(_KEYS).is_duplicated().any():
            raise EhrError("a subject and prediction_time occurs twice", "rows", "give every row once", code=Exit.DATA)
        if not history.schema["time"] == history.schema["prediction_time"] == pl.Datetime("us"):
            history = history.with_columns(_microseconds("prediction_time"), _microseconds("time"))
        begin = stretches(history, _KEYS)
        length = np.diff(np.append(begin, history.height))
        first = history.select(pl.col(_KEYS).gather(begin))
        found = first.join(keys, on=_KEYS, how="left", maintain_order="left")["row"]
        own = found.is_not_null().to_numpy()
        if (history["time"] > history["prediction_time"]).any():
            _refuse_future(history, np.repeat(own, length))
        row = found.drop_nulls().to_numpy().astype(np.int64)
        order = np.argsort(row, kind="stable")
        return cls(tokenizer, keys, history, row[order], begin[own][order], length[own][order])

    @property
    def n_events(self) -> int:
        """Events of the rows, those that are no tokens included."""
        return int(self.length.sum())

    def blocks(self, events: int = BLOCK) -> Iterator[tuple[int, Events]]:
        """Blocks of rows with about so many events each: the first row, and the events, rows numbered from there."""
        n = self.keys.height
        each = np.bincount(self.row, weights=self.length, minlength=n).astype(np.int64)
        before, first = np.append(0, np.cumsum(each)), 0
        while first < n:
            last = int(np.searchsorted(before, before[first] + events, side="right")) - 1
            last = min(max(last, first + 1), n)
            yield first, self.events(first, last)
            first = last

    def events(self, first: int = 0, last: int | None = None) -> Events:
        """The tokens of the rows from ``first`` up to ``last``, sorted; rows are numbered from ``first``."""
        n = (self.keys.height if last is None else last) - first
        here = slice(*np.searchsorted(self.row, [first, first + n]))
        row = np.repeat(self.row[here] - first, self.length[here])  # [E]
        at = _positions(self.begin[here], self.length[here])
        number, time, value = self._coding.number[at], self._times[at], self._values[at]  # [E]
        born = number == self._coding.birth
        birth = _earliest(row[born], time[born], n)  # [n]
        token = ~(born | (number == self._coding.death))
        stays = np.flatnonzero(token)
        row, time, number, value = row[stays], time[stays], number[stays], value[stays]  # [T]
        bad = (
            self._bad_values
            and int(np.isinf(value).sum()) - _taken(self._raw, at).filter(pl.Series(token)).null_count()
        )
        visits = self._visits(row, time, at, token)
        order = in_order([row, time] if visits is None else [row, *visits, time], [number, value])
        if order is not None:
            row, time, number, value = row[order], time[order], number[order], value[order]
        key = time // US_PER_DAY if visits is None else visits[1] if order is None else visits[1][order]
        signed, static = self._coding.id[number], time == _STATIC
        code, fell = signed ^ (signed >> 31), signed < 0
        value[fell] = np.nan
        time[static] = 0
        return Events(
            row=row,
            time=time,
            static=static,
            key=key,
            code=code,
            value=self.tokenizer.standardiser.transform(code, value, self.tokenizer.vocab_size),
            fallback=fell & (code != UNK),
            bad_values=bad,
            birth=birth,
        )

    def _visits(
        self, row: np.ndarray, time: np.ndarray, at: slice | np.ndarray, token: np.ndarray
    ) -> tuple[Int64[np.ndarray, " T"], Int64[np.ndarray, " T"]] | None:
        """When each event's visit begins, and its name as a number in order; None where visits are calendar days."""
        column = self.tokenizer.config.visit_column
        if column is None:
            return None
        own = _taken(self.history[column], at).filter(pl.Series(token)).alias("visit")
        moment = _taken(self.history["time"], at).filter(pl.Series(token)).alias("moment")
        date = pl.col("moment").dt.date().cast(pl.String)
        named = pl.coalesce(pl.lit("v") + pl.col("visit").cast(pl.String), date)
        frame = pl.DataFrame([own, moment, pl.Series("row", row), pl.Series("time", time)]).with_columns(
            name=pl.when(pl.col("moment").is_not_null()).then(named)
        )
        names = pl.Enum(frame["name"].unique().drop_nulls().sort())
        number = frame["name"].cast(names).to_physical().cast(pl.Int64).fill_null(-1)
        start = frame.select(pl.col("time").min().over("row", "name")).to_series()
        return start.to_numpy(), number.to_numpy()

    @cached_property
    def _coding(self) -> _Coding:
        return _Coding.of(self.history["code"], self.tokenizer)

    @cached_property
    def _times(self) -> Int64[np.ndarray, " E"]:
        return self.history["time"].to_physical().fill_null(_STATIC).to_numpy()

    @cached_property
    def _raw(self) -> pl.Series:
        return self.history["numeric_value"].cast(pl.Float32)

    @cached_property
    def _values(self) -> Float32[np.ndarray, " E"]:
        """As they are ordered: none first (-inf), what is no number last (inf)."""
        return self._raw.fill_nan(np.inf).fill_null(-np.inf).to_numpy()

    @cached_property
    def _bad_values(self) -> int:
        """How many are no finite numbers."""
        return int((~self._raw.is_finite()).sum())


def _positions(begin: Int64[np.ndarray, " r"], length: Int64[np.ndarray, " r"]) -> slice | Int64[np.ndarray, " t"]:
    """The positions of several stretches one after the other; a slice where they follow each other."""
    if not len(begin):
        return slice(0, 0)
    if (begin[1:] == begin[:-1] + length[:-1]).all():
        return slice(int(begin[0]), int(begin[-1] + length[-1]))
    end = np.cumsum(length)
    return np.repeat(begin - (end - length), length) + np.arange(end[-1])


def _taken(values: pl.Series, at: slice | Int64[np.ndarray, " t"]) -> pl.Series:
    return values[at] if isinstance(at, slice) else values.gather(at)


def _earliest(row: Int64[np.ndarray, " b"], time: Int64[np.ndarray, " b"], n: int) -> Float64[np.ndarray, " n"]:
    """Each row's first dated birth, in microseconds since the epoch; NaN where there is none."""
    found, dated = np.full(n, np.inf), time != _STATIC
    np.minimum.at(found, row[dated], time[dated])
    return np.where(np.isinf(found), np.nan, found)


def _microseconds(name: str) -> pl.Expr:
    return pl.col(name).cast(pl.Datetime("us"))


def _refuse_bad_columns(history: pl.DataFrame, rows: pl.DataFrame, visit_column: str | None) -> None:
    visit = () if visit_column is None else (visit_column,)
    needed = {"history": (history, (*_KEYS, "time", "code", "numeric_value", *visit)), "rows": (rows, _KEYS)}
    for name, (frame, columns) in needed.items():
        missing = [column for column in columns if column not in frame.columns]
        if missing:
            raise EhrError(
                f"{name} has no column {', '.join(missing)} (found: {', '.join(frame.columns)})",
                name,
                "name a visit_column that the events bring" if missing == list(visit) else "add the column",
                code=Exit.DATA,
            )


def _refuse_future(history: pl.DataFrame, own: Bool[np.ndarray, " T"]) -> None:
    """Raise EhrError (exit 15) where an event of the rows lies after its prediction_time."""
    late = (history["time"] > history["prediction_time"]).fill_null(False)
    count = int((late & pl.Series(own)).sum())
    if count:
        raise EhrError(
            f"{count} events lie after their prediction_time", "history", "cut it with cohort.cut", code=Exit.LEAKAGE
        )
