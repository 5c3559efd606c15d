"""Whole records as overlapping windows counted from their start, for a prediction at every visit.

What a visit reads must not depend on what is recorded after it. A record is therefore never truncated from its end:
visits are laid end to end from the record's start, and windows of ``max_tokens`` begin at fixed distances from there.
"""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass, replace

import numpy as np
import polars as pl
from jaxtyping import Bool, Int64, Integer

from ehrsequencing.errors import EhrError, Exit
from ehrsequencing.tokens.placed import Events, Placed
from ehrsequencing.tokens.sequences import RowLayout, years
from ehrsequencing.tokens.store import Counts, TokenStore
from ehrsequencing.tokens.tokenizer import Tokenizer
from ehrsequencing.tokens.visits import US_PER_DAY, Spans
from ehrsequencing.tokens.vocabulary import CLS

OVERLAPPING = 3
"""Windows at most that one token lies in: they begin half their length apart."""
BEFORE_ANY_VISIT = dt.datetime(1, 1, 1)


@dataclass(frozen=True, eq=False)
class Windows:
    """Windows of records, and where in them each visit is predicted.

    Attributes:
        tokens: one row a window; its ``prediction_time`` is its last event. ``[CLS]`` carries nothing: every visit
            sees it.
        visits: ``subject_id, start, end`` (first and last event), ``window`` (the row of ``tokens`` in which the visit
            is predicted) and ``visit`` (its number there), sorted by subject and time; first of each record stands
            visit 0, before any event.
    """

    tokens: TokenStore
    visits: pl.DataFrame

    def locate(self, rows: pl.DataFrame) -> tuple[Int64[np.ndarray, " n"], Int64[np.ndarray, " n"]]:
        """Window and visit number of each of ``rows`` (``subject_id, prediction_time``): its last visit by then.

        Raises:
            EhrError: exit 15 where that visit ends after prediction_time; exit 11 for a subject without a record.
        """
        asked = rows.select(pl.col("subject_id").cast(pl.Int64), pl.col("prediction_time").cast(pl.Datetime("us")))
        found = (
            asked.with_row_index("at")
            .sort("prediction_time")
            .join_asof(
                self.visits.sort("start", maintain_order=True),
                left_on="prediction_time",
                right_on="start",
                by="subject_id",
                strategy="backward",
                check_sortedness=False,  # both are sorted; polars cannot see it by group
            )
            .sort("at")
        )
        missing, still_open = found["window"].null_count(), int((found["end"] > found["prediction_time"]).sum())
        if missing:
            raise EhrError(f"{missing} rows are of subjects without a record", "rows", "cut their records too")
        if still_open:
            what = f"{still_open} rows would be predicted before the end of the visit they are predicted from"
            fix = "predict at a visit's last event (the end of the day), not within it"
            raise EhrError(what, "prediction_time", fix, code=Exit.LEAKAGE)
        return found["window"].to_numpy().astype(np.int64), found["visit"].to_numpy().astype(np.int64)

    def take(self, windows: Integer[np.ndarray, " m"]) -> Windows:
        """Only the given windows, and the visits predicted in them."""
        number = np.full(len(self.tokens), -1, dtype=np.int64)
        number[windows] = np.arange(len(windows))
        visits = self.visits.with_columns(window=pl.Series(number[self.visits["window"].to_numpy()]))
        return replace(self, tokens=self.tokens.take(windows), visits=visits.filter(pl.col("window") >= 0))


def tokenize_windows(history: pl.DataFrame, records: pl.DataFrame, tokenizer: Tokenizer) -> Windows:
    """The records of ``records`` as windows of at most ``max_tokens``; a visit is one calendar day.

    Within a record the tokens of its visits stand at positions 0, 1, …; window w begins at w·h, where h is half of the
    places that ``[CLS]`` and the static tokens (at most half of all) leave. A visit that ends at position e is
    predicted in the first window that reaches to e. A window holds the whole visits that begin in it, up to its end,
    and of a visit too long for it the latest tokens; every visit is so predicted from itself and at least half a window
    of earlier tokens, where there are so many. Ages are unknown before a record's birth.

    Args:
        history: what ``cohort.cut`` gives at each record's last moment.
        records: ``subject_id, prediction_time`` (that moment), one a subject.

    Raises:
        EhrError: exit 10 where the tokenizer names a ``visit_column``; exit 15 for an event after its record's end;
            exit 11 for repeated records or a missing column.
    """
    if tokenizer.config.visit_column is not None:
        what = f"visits by '{tokenizer.config.visit_column}' may overlap: one would be predicted before it ended"
        fix = "leave out tokens.visit_column: for predictions at every visit, a visit is a calendar day"
        raise EhrError(what, "tokens.visit_column", fix, code=Exit.CONFIG)
    placed = Placed.of(history, records, tokenizer)
    keys = placed.keys
    if keys["subject_id"].is_duplicated().any():
        raise EhrError("a subject occurs twice", "records", "give every record once", code=Exit.DATA)
    events = placed.events()
    spans = Spans.of(events.row, events.static, events.key, keys.height)
    plan = _Plan.of(spans, tokenizer.config.max_tokens)
    content = _Content.of(plan, keys.height)
    tokens = _store(events, plan, content, keys, tokenizer)
    return Windows(tokens, _visits(events, plan, content, keys))


@dataclass(frozen=True, eq=False)
class _Plan:
    """Which visits are predicted in which window of their record, over G groups (visits and static groups).

    Attributes:
        record: of each group.
        first, end: positions of a group's first token and after its last, counted from its record's first dated token.
        places: tokens that a window of the group's record has for visits.
        window: in which its visit is predicted.
    """

    spans: Spans
    static: Bool[np.ndarray, " T"]
    record: Int64[np.ndarray, " G"]
    dated: Bool[np.ndarray, " G"]
    first: Int64[np.ndarray, " G"]
    end: Int64[np.ndarray, " G"]
    places: Int64[np.ndarray, " G"]
    window: Int64[np.ndarray, " G"]

    @classmethod
    def of(cls, spans: Spans, max_tokens: int) -> _Plan:
        n, static = len(spans.row_begin), spans.keep_static(max_tokens)
        record, dated = spans.row[spans.begin], ~spans.static[spans.begin]
        dated_begin = spans.row_begin + np.bincount(spans.row[spans.static], minlength=n)  # [N]
        first = spans.begin - dated_begin[record]
        end = first + np.diff(np.append(spans.begin, len(spans.row)))
        places = max_tokens - 1 - np.bincount(spans.row[static], minlength=n)[record]
        window = np.where(dated, np.maximum(-((places - end) // (places // 2)), 0), 0)
        return cls(spans, static, record, dated, first, end, places, window)

    def members(self) -> tuple[Int64[np.ndarray, " P"], Int64[np.ndarray, " P"]]:
        """Every pair of a dated token and a window of its record that holds it, in no order."""
        group = self.spans.group
        at = np.arange(len(group))
        position = self.first[group] + at - self.spans.begin[group]  # [T]
        half, places = (self.places // 2)[group], self.places[group]  # [T]
        tokens, windows = [], []
        for back in range(OVERLAPPING):
            window = position // half - back  # [T]
            begin = window * half
            whole = (self.first[group] >= begin) & (self.end[group] <= begin + places)
            inside = self.dated[group] & (window >= 0) & (position < begin + places)
            inside &= whole | (self.window[group] == window)
            tokens.append(at[inside])
            windows.append(window[inside])
        return np.concatenate(tokens), np.concatenate(windows)


@dataclass(frozen=True, eq=False)
class _Content:
    """What lies in each of W windows: pairs of a window and a token, sorted by both.

    Attributes:
        name: record · ``most`` + number in its record, of each window.
        window, token, visit: of each pair; visit 0 for static tokens.
    """

    name: Int64[np.ndarray, " W"]
    most: int
    window: Int64[np.ndarray, " P"]
    token: Int64[np.ndarray, " P"]
    visit: Int64[np.ndarray, " P"]

    @property
    def record(self) -> Int64[np.ndarray, " W"]:
        return self.name // self.most

    @classmethod
    def of(cls, plan: _Plan, n: int) -> _Content:
        """The windows in which some visit is predicted; a record without visits has one."""
        spans, most = plan.spans, int(plan.window.max(initial=0)) + 1
        empty = np.setdiff1d(np.arange(n), plan.record[plan.dated]) * most
        name = np.unique(np.append(plan.record[plan.dated] * most + plan.window[plan.dated], empty))
        token, number = plan.members()
        asked = spans.row[token] * most + number
        real = np.isin(asked, name) & (number < most)
        static_window, static_token = _static_pairs(plan, name // most)
        window = np.append(static_window, np.searchsorted(name, asked[real]))
        token = np.append(static_token, token[real])
        order = np.lexsort((token, window))
        window, token = window[order], token[order]
        return cls(name, most, window, token, _numbers(window, spans.group[token], spans.static[token], len(name)))


def _static_pairs(
    plan: _Plan, record: Int64[np.ndarray, " W"]
) -> tuple[Int64[np.ndarray, " S"], Int64[np.ndarray, " S"]]:
    """(window, token) of the static tokens that every window of a record begins with."""
    spans = plan.spans
    count = np.bincount(spans.row[plan.static], minlength=len(spans.row_begin))[record]  # [W]
    window = np.repeat(np.arange(len(record)), count)
    inside = np.arange(len(window)) - np.repeat(np.cumsum(count) - count, count)
    return window, spans.row_begin[record[window]] + inside


def _numbers(
    window: Int64[np.ndarray, " P"], group: Int64[np.ndarray, " P"], static: Bool[np.ndarray, " P"], n: int
) -> Int64[np.ndarray, " P"]:
    """1, 2, … over each window's visits in order; 0 for static tokens."""
    opens = ~static & ((np.diff(group, prepend=-1) != 0) | (np.diff(window, prepend=-1) != 0))
    so_far = np.cumsum(opens)  # [P]
    earlier = np.append(0, so_far)[np.searchsorted(window, np.arange(n))]  # [W] visits in the windows before
    return np.where(static, 0, so_far - earlier[window])


def _store(
    events: Events,
    plan: _Plan,
    content: _Content,
    keys: pl.DataFrame,
    tokenizer: Tokenizer,
) -> TokenStore:
    layout = RowLayout.of(content.window, len(content.name))
    at, record, birth = content.token, content.record, events.birth
    static = plan.spans.static
    ends = keys["prediction_time"].to_physical().to_numpy()[record].copy()  # [W]
    dated = content.visit > 0
    last = np.flatnonzero(dated & np.append(np.diff(content.window) != 0, True)[: len(dated)])
    ends[content.window[last]] = events.time[at[last]]
    age = years(events.time - birth[events.row])  # [T]
    age = np.where(static | (age < 0), np.nan, age)  # a birth recorded later is not known yet
    day = np.where(dated, (ends[content.window] - events.time[at]) / US_PER_DAY, np.inf)
    return TokenStore(
        code=layout.fill(events.code[at], CLS, np.int32),
        value=layout.fill(events.value[at], np.nan, np.float32),
        age=layout.fill(age[at], np.nan, np.float32),
        visit=layout.fill(content.visit, 0, np.int32),
        gap=layout.fill(plan.spans.gaps(events.time)[at], 0.0, np.float32),
        day=layout.fill(day, 0.0, np.float32),
        offsets=layout.offsets,
        subject_id=keys["subject_id"].to_numpy().astype(np.int64)[record],
        prediction_time=ends.astype("datetime64[us]"),
        truncated=content.name % content.most > 0,
        tokenizer_fingerprint=tokenizer.fingerprint,
        counts=Counts(
            tokens=len(at),
            fallbacks=int(events.fallback[at].sum()),
            bad_values=events.bad_values,
            left_out_tokens=int(len(events.row) - len(np.unique(at))),
            rows_without_birth=int(np.isnan(birth).sum()),
            events_before_birth=int((events.time < birth[events.row])[~static].sum()),
        ).to_json(),
    )


def _visits(events: Events, plan: _Plan, content: _Content, keys: pl.DataFrame) -> pl.DataFrame:
    subject = keys["subject_id"].to_numpy().astype(np.int64)
    group, record = np.flatnonzero(plan.dated), plan.record[plan.dated]
    last = np.append(plan.spans.begin, len(events.row))[group + 1] - 1  # token
    window = np.searchsorted(content.name, record * content.most + plan.window[group])
    # a visit's latest token lies in the window that predicts it
    pair = np.searchsorted(content.window * len(events.row) + content.token, window * len(events.row) + last)
    dated = pl.DataFrame(
        {
            "subject_id": subject[record],
            "start": events.time[plan.spans.begin[group]],
            "end": events.time[last],
            "window": window,
            "visit": content.visit[pair],
        }
    ).with_columns(pl.col("start", "end").cast(pl.Datetime("us")))
    first_window = np.searchsorted(content.record, np.arange(len(subject)))
    none = pl.DataFrame({"subject_id": subject, "window": first_window}).with_columns(
        start=pl.lit(BEFORE_ANY_VISIT), end=pl.lit(BEFORE_ANY_VISIT), visit=pl.lit(0, pl.Int64)
    )
    return pl.concat([none.select(dated.columns), dated]).sort("subject_id", "start", maintain_order=True)
