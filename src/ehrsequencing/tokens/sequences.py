"""``tokenize``: the only way from a cut history to token sequences, without a loop over subjects."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from jaxtyping import Bool, Float32, Float64, Int32, Int64

from ehrsequencing.config import DAYS_PER_YEAR
from ehrsequencing.errors import EhrError, Exit
from ehrsequencing.events import BIRTH, DEATH
from ehrsequencing.tokens.store import TokenStore
from ehrsequencing.tokens.tokenizer import Tokenizer
from ehrsequencing.tokens.visits import Spans
from ehrsequencing.tokens.vocabulary import CLS, UNK

US_PER_DAY = 86_400_000_000
_KEYS = ("subject_id", "prediction_time")


def tokenize(history: pl.DataFrame, rows: pl.DataFrame, tokenizer: Tokenizer) -> TokenStore:
    """One sequence a row of ``rows``, in that order: ``[CLS]``, static tokens, then visits in time order.

    A visit is one value of ``visit_column`` where the tokenizer names one (a calendar day where that is null),
    otherwise one calendar day; visits are ordered by their first event, events in a visit by time, then code, then
    value. Births (which give the age) and deaths are no tokens. Of more than ``max_tokens``, the most recent whole
    visits are kept; of a single longer visit, its latest tokens. Static tokens are kept always, but take at most half
    the places. A code that fell back to an ancestor, or to ``[UNK]``, brings no value: the unit may differ.

    Args:
        history: what ``cohort.cut`` gives: ``subject_id, prediction_time, time, code, numeric_value``; rows of other
            subjects are ignored, and the order does not matter.
        rows: ``subject_id, prediction_time``, distinct.

    Raises:
        EhrError: exit 15 for an event after prediction_time; exit 11 for repeated rows or a missing column.
    """
    keys, own = place(history, rows, tokenizer.config.visit_column)
    prediction_time = keys["prediction_time"].to_numpy().astype("datetime64[us]")
    events = sorted_events(own, tokenizer)
    spans = Spans.of(events.row, events.static, events.key, keys.height)
    kept = spans.keep(tokenizer.config.max_tokens)
    now = prediction_time.astype(np.int64)  # [N] microseconds
    birth = births(own, keys.height)  # [N] microseconds
    day = np.where(events.static, np.inf, (now[events.row] - events.time) / US_PER_DAY)  # [T]
    since_last = spans.smallest(day, np.inf)  # [N]
    age = np.where(events.static, np.nan, years(events.time - birth[events.row]))  # [T]
    layout = RowLayout.of(events.row[kept], keys.height)
    return TokenStore(
        code=layout.fill(events.code[kept], CLS, np.int32),
        value=layout.fill(events.value[kept], np.nan, np.float32),
        age=layout.fill(np.maximum(age[kept], 0.0), np.maximum(years(now - birth), 0.0), np.float32),
        visit=layout.fill(spans.numbers(kept)[kept], 0, np.int32),
        gap=layout.fill(
            spans.gaps(events.time)[kept] / US_PER_DAY, np.where(np.isinf(since_last), 0.0, since_last), np.float32
        ),
        day=layout.fill(day[kept], 0.0, np.float32),
        offsets=layout.offsets,
        subject_id=keys["subject_id"].to_numpy().astype(np.int64),
        prediction_time=prediction_time,
        truncated=np.bincount(events.row[~kept], minlength=keys.height) > 0,
        tokenizer_fingerprint=tokenizer.fingerprint,
        counts={
            "fallback_share": float(events.fallback[kept].sum() / max(kept.sum(), 1)),
            "bad_values": events.bad_values,
            "left_out_tokens": int((~kept).sum()),
            "rows_without_birth": int(np.isnan(birth).sum()),
            "events_before_birth": int((age < 0).sum()),
        },
    )


@dataclass(frozen=True, eq=False)
class RowLayout:
    """Where each kept token goes once every row is led by a [CLS]; tokens are given in the order of their rows."""

    offsets: Int64[np.ndarray, " N1"]
    place: Int64[np.ndarray, " T"]

    @classmethod
    def of(cls, row: Int64[np.ndarray, " T"], n_rows: int) -> RowLayout:
        lengths = np.bincount(row, minlength=n_rows) + 1
        return cls(np.append(0, np.cumsum(lengths)), np.arange(len(row)) + row + 1)

    def fill(self, tokens: np.ndarray, cls_value: Any, dtype: type) -> np.ndarray:
        filled = np.empty(self.offsets[-1], dtype=dtype)
        filled[self.place] = tokens
        filled[self.offsets[:-1]] = cls_value
        return filled


def place(history: pl.DataFrame, rows: pl.DataFrame, visit_column: str | None) -> tuple[pl.DataFrame, pl.DataFrame]:
    """The rows numbered, and their own events with that number."""
    _refuse_bad_columns(history, rows, visit_column)
    keys = rows.select(pl.col("subject_id").cast(pl.Int64), _microseconds("prediction_time")).with_row_index("row")
    if keys.select(_KEYS).is_duplicated().any():
        raise EhrError("a subject and prediction_time occurs twice", "rows", "give every row once", code=Exit.DATA)
    history = history.with_columns(_microseconds("prediction_time"), _microseconds("time"))
    own = history.join(keys, on=_KEYS, how="inner")
    _refuse_future(own)
    return keys, own


def _microseconds(name: str) -> pl.Expr:
    return pl.col(name).cast(pl.Datetime("us"))


def years(microseconds: np.ndarray) -> np.ndarray:
    """Microseconds as years."""
    return microseconds / (US_PER_DAY * DAYS_PER_YEAR)


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


def _refuse_future(history: pl.DataFrame) -> None:
    """Raise EhrError (exit 15) where an event lies after its row's prediction_time."""
    late = int((history["time"] > history["prediction_time"]).sum())
    if late:
        raise EhrError(
            f"{late} events lie after their prediction_time", "history", "cut it with cohort.cut", code=Exit.LEAKAGE
        )


def births(own: pl.DataFrame, n: int) -> Float64[np.ndarray, " n"]:
    """Microseconds since the epoch of each row's first dated birth; NaN where there is none."""
    found = own.filter(pl.col("code") == BIRTH).group_by("row").agg(pl.col("time").min()).drop_nulls()
    birth = np.full(n, np.nan)
    birth[found["row"].to_numpy()] = found["time"].to_physical().to_numpy()
    return birth


@dataclass(frozen=True, eq=False)
class Events:
    """All rows' tokens but [CLS], sorted by row, static first, then visit; arrays of T."""

    row: Int64[np.ndarray, " T"]
    time: Int64[np.ndarray, " T"]  # microseconds since the epoch; of no meaning where static
    static: Bool[np.ndarray, " T"]
    key: Int64[np.ndarray, " T"]  # equal within a visit of a row
    code: Int32[np.ndarray, " T"]
    value: Float32[np.ndarray, " T"]
    fallback: Bool[np.ndarray, " T"]  # took the id of an ancestor
    bad_values: int


def sorted_events(own: pl.DataFrame, tokenizer: Tokenizer) -> Events:
    """The tokens of the numbered rows, encoded; births and deaths are none."""
    events = own.filter(~pl.col("code").is_in([BIRTH, DEATH]).fill_null(False))
    found = tokenizer.lookup(events["code"])
    column = tokenizer.config.visit_column
    table = events.join(found, on="code", how="left").select(
        pl.col("row").cast(pl.Int64),
        pl.col("time").to_physical().alias("time"),
        pl.col("id").fill_null(UNK),
        pl.col("exact").fill_null(False),
        pl.col("rank").fill_null(-1),
        pl.col("numeric_value").cast(pl.Float32).alias("value"),
        _visit_key(column).alias("key"),
    )
    order = ["row", "time", "rank", "value"]
    if column is not None:
        table = table.with_columns(pl.col("time").min().over("row", "key").alias("start"))
        order = ["row", "start", "key", "time", "rank", "value"]
    table = table.sort(order, nulls_last=False)
    value = table["value"].fill_null(np.nan).to_numpy()
    code, exact, static = table["id"].to_numpy(), table["exact"].to_numpy(), table["time"].is_null()
    own_value = np.where(exact, value, np.float32(np.nan))
    return Events(
        row=table["row"].to_numpy(),
        time=table["time"].fill_null(0).to_numpy(),
        static=static.to_numpy(),
        key=table["key"].rle_id().cast(pl.Int64).to_numpy(),
        code=code,
        value=tokenizer.standardiser.transform(code, own_value, tokenizer.vocab_size),
        fallback=~exact & (code != UNK),
        bad_values=int(table["value"].is_not_null().sum() - np.isfinite(value).sum()),
    )


def _visit_key(column: str | None) -> pl.Expr:
    """The visit's name within a row; null for static events."""
    date = pl.col("time").dt.date()
    if column is None:
        return date
    named = pl.coalesce(pl.lit("v") + pl.col(column).cast(pl.String), date.cast(pl.String))
    return pl.when(pl.col("time").is_not_null()).then(named)
