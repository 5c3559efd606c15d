"""``tokenize``: the only way from a cut history to token sequences, without a loop over subjects."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from jaxtyping import Bool, Int64

from ehrsequencing.config import DAYS_PER_YEAR
from ehrsequencing.tokens.placed import Events, Placed
from ehrsequencing.tokens.store import TOKEN_ARRAYS, Counts, TokenStore
from ehrsequencing.tokens.tokenizer import Tokenizer
from ehrsequencing.tokens.visits import US_PER_DAY, Spans
from ehrsequencing.tokens.vocabulary import CLS


def tokenize(history: pl.DataFrame, rows: pl.DataFrame, tokenizer: Tokenizer) -> TokenStore:
    """One sequence a row of ``rows``, in that order: ``[CLS]``, static tokens, then visits in time order.

    A visit is one value of ``visit_column`` where the tokenizer names one (a calendar day where that is null),
    otherwise one calendar day; visits are ordered by their first event, events in a visit by time, then code, then
    value. Births (which give the age) and deaths are no tokens. Of more than ``max_tokens``, the most recent whole
    visits are kept; of a single longer visit, its latest tokens. Static tokens are kept always, but take at most half
    the places. A code that fell back to an ancestor, or to ``[UNK]``, brings no value: the unit may differ.

    The history is read once, a block of rows at a time; beside the result little is held. It is quickest where the
    events stand in order already, as a dataset's do.

    Args:
        history: what ``cohort.cut`` gives: ``subject_id, prediction_time, time, code, numeric_value``; rows of other
            subjects are ignored, and the order does not matter.
        rows: ``subject_id, prediction_time``, distinct.

    Raises:
        EhrError: exit 15 for an event after prediction_time; exit 11 for repeated rows or a missing column.
    """
    placed = Placed.of(history, rows, tokenizer)
    n, most = placed.keys.height, placed.keys.height + placed.n_events
    arrays: dict[str, Any] = {name: np.empty(most, dtype) for name, dtype in TOKEN_ARRAYS.items()}  # used as filled
    offsets, truncated, counts = np.zeros(n + 1, dtype=np.int64), np.zeros(n, dtype=bool), Counts()
    prediction_time = placed.keys["prediction_time"].to_numpy().astype("datetime64[us]")
    for first, events in placed.blocks():
        rows_here = slice(first, first + len(events.birth))
        now = prediction_time[rows_here].astype(np.int64)
        free = {name: values[offsets[first] :] for name, values in arrays.items()}
        ends, truncated[rows_here], counted = _sequences(events, now, tokenizer.config.max_tokens, free)
        offsets[first + 1 : rows_here.stop + 1] = offsets[first] + ends
        counts += counted
    return TokenStore(
        **{name: values[: offsets[-1]] for name, values in arrays.items()},
        offsets=offsets,
        subject_id=placed.keys["subject_id"].to_numpy().astype(np.int64),
        prediction_time=prediction_time,
        truncated=truncated,
        tokenizer_fingerprint=tokenizer.fingerprint,
        counts=counts.to_json(),
    )


def _sequences(
    events: Events, now: Int64[np.ndarray, " n"], max_tokens: int, out: dict[str, np.ndarray]
) -> tuple[Int64[np.ndarray, " n"], Bool[np.ndarray, " n"], Counts]:
    """The sequences of a block of rows, into the beginning of ``out``: where each ends, whether it was cut, counts.

    Args:
        now: each row's prediction_time in microseconds.
    """
    n, row = len(now), events.row
    spans = Spans.of(row, events.static, events.key, n)
    static = np.flatnonzero(events.static)
    day = (now[row] - events.time) / US_PER_DAY  # [T]
    day[static] = np.inf
    since_last = spans.smallest(day, np.inf)  # [n]
    age = years(events.time - events.birth[row])  # [T]
    age[static] = np.nan
    kept = spans.keep(max_tokens)
    counts = Counts(
        tokens=int(np.count_nonzero(kept)),
        fallbacks=int(np.count_nonzero(events.fallback & kept)),
        bad_values=events.bad_values,
        left_out_tokens=int(np.count_nonzero(~kept)),
        rows_without_birth=int(np.count_nonzero(np.isnan(events.birth))),
        events_before_birth=int(np.count_nonzero(age < 0)),
    )
    tokens = {
        "code": (events.code, CLS),
        "value": (events.value, np.nan),
        "age": (np.maximum(age, 0.0, out=age), np.maximum(years(now - events.birth), 0.0)),
        "visit": (spans.numbers(kept), 0),
        "gap": (spans.gaps(events.time), np.where(np.isinf(since_last), 0.0, since_last)),
        "day": (day, 0.0),
    }
    layout = RowLayout.of(row[kept] if counts.left_out_tokens else row, n)
    for name, (values, cls_value) in tokens.items():
        layout.put(values[kept] if counts.left_out_tokens else values, cls_value, out[name])
    return layout.offsets[1:], np.bincount(row[~kept], minlength=n) > 0, counts


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
        """An array of T + N."""
        filled = np.empty(self.offsets[-1], dtype=dtype)
        self.put(tokens, cls_value, filled)
        return filled

    def put(self, tokens: np.ndarray, cls_value: Any, out: np.ndarray) -> None:
        """The same into the beginning of ``out``."""
        out[self.place] = tokens
        out[self.offsets[:-1]] = cls_value


def years(microseconds: np.ndarray) -> np.ndarray:
    """Microseconds as years."""
    return microseconds / (US_PER_DAY * DAYS_PER_YEAR)
