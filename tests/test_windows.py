"""Windows of records: against a plain reference, never longer than allowed, each visit with its own past."""

from __future__ import annotations

import datetime as dt
import math
from functools import cache

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ehrsequencing.config import TokensConfig
from ehrsequencing.errors import EhrError, Exit
from ehrsequencing.tokens import Tokenizer, tokenize, tokenize_windows

START = dt.datetime(2010, 1, 1)
CODES = [f"C{i:03d}" for i in range(60)]
SCHEMA = {
    "subject_id": pl.Int64,
    "prediction_time": pl.Datetime("us"),
    "time": pl.Datetime("us"),
    "code": pl.String,
    "numeric_value": pl.Float32,
}


@cache
def tokenizer(max_tokens: int, **settings) -> Tokenizer:
    known = pl.DataFrame(
        {"subject_id": range(60), "code": CODES, "numeric_value": [None] * 60}, schema_overrides=SCHEMA
    )
    return Tokenizer.fit(known, TokensConfig(max_tokens=max_tokens, min_subjects=1, **settings))


def records_of(sizes: list[tuple[int, list[int]]]) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Each record: how many static tokens, and how many tokens each of its visits (days) has; codes tell places."""
    lines, ends = [], []
    for subject, (static, visits) in enumerate(sizes):
        code = iter(CODES * 20)
        end = START + dt.timedelta(days=len(visits), hours=23)
        ends.append((subject, end))
        lines += [(subject, end, None, next(code), None) for _ in range(static)]
        for day, size in enumerate(visits):
            moments = [START + dt.timedelta(days=day, minutes=minute) for minute in range(size)]
            lines += [(subject, end, moment, next(code), None) for moment in moments]
    rows = pl.DataFrame(ends, schema={"subject_id": pl.Int64, "prediction_time": pl.Datetime("us")}, orient="row")
    return pl.DataFrame(lines, schema=SCHEMA, orient="row"), rows


def by_definition(static: int, sizes: list[int], max_tokens: int) -> dict[int, list[tuple[int, list[int]]]]:
    """Window number to its visits in order: (visit, positions of its tokens that lie there)."""
    places = max_tokens - 1 - min(static, (max_tokens - 1) // 2)
    half = places // 2
    ends = np.cumsum(sizes)
    begins = ends - sizes
    own = [max(0, math.ceil((end - places) / half)) for end in ends]
    found = {}
    for window in set(own):
        at, visits = window * half, []
        for visit, (begin, end) in enumerate(zip(begins, ends, strict=True)):
            if end <= at + places and (begin >= at or own[visit] == window):
                visits.append((visit, [p for p in range(begin, end) if p >= at]))
        found[window] = visits
    return found


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 9), st.lists(st.integers(1, 14), max_size=12)), min_size=1, max_size=4),
    st.integers(8, 20),
)
def test_windows_are_the_plain_definition(sizes, max_tokens):
    if not any(static or visits for static, visits in sizes):
        return
    history, rows = records_of(sizes)
    windows = tokenize_windows(history, rows, tokenizer(max_tokens))
    assert windows.tokens.lengths.max() <= max_tokens
    row = 0
    for subject, (static, visits) in enumerate(sizes):
        n_static = min(static, (max_tokens - 1) // 2)
        expected = by_definition(static, visits, max_tokens) or {0: []}
        for window in sorted(expected):
            begin, end = windows.tokens.offsets[row : row + 2]
            numbers = [n for n, (_, kept) in enumerate(expected[window], 1) for _ in kept]
            assert windows.tokens.subject_id[row] == subject
            assert windows.tokens.visit[begin:end].tolist() == [0] * (1 + n_static) + numbers
            positions = [p for _, kept in expected[window] for p in kept]
            codes = CODES * 20
            names = [tokenizer(max_tokens).encode(codes[static + p]) for p in positions]
            assert windows.tokens.code[begin + 1 + n_static : end].tolist() == names
            row += 1
    assert row == len(windows.tokens)


def test_every_visit_is_found_with_itself_as_the_last_thing_read():
    history, rows = records_of([(1, [3, 5, 2, 6, 4, 1]), (0, [2])])
    windows = tokenize_windows(history, rows, tokenizer(12))
    asked = windows.visits.filter(pl.col("visit") > 0).select("subject_id", prediction_time="end")
    window, visit = windows.locate(asked)
    assert len(asked) == 7
    for w, v, subject, end in zip(window, visit, asked["subject_id"], asked["prediction_time"], strict=True):
        own = slice(windows.tokens.offsets[w], windows.tokens.offsets[w + 1])
        last = np.flatnonzero(windows.tokens.visit[own] == v)[-1]
        moment = windows.tokens.prediction_time[w] - windows.tokens.day[own][last] * np.timedelta64(
            86_400_000_000, "us"
        )
        assert windows.tokens.subject_id[w] == subject
        assert abs(moment - np.datetime64(end, "us")) < np.timedelta64(1, "s")


def test_before_any_visit_only_static_tokens_are_read():
    history, rows = records_of([(2, [3, 5])])
    windows = tokenize_windows(history, rows, tokenizer(12))
    early = pl.DataFrame({"subject_id": [0], "prediction_time": [START - dt.timedelta(days=1)]})
    assert [part.tolist() for part in windows.locate(early)] == [[0], [0]]


def test_a_short_record_is_one_window_with_the_tokens_of_tokenize():
    history, rows = records_of([(2, [3, 4, 2])])
    one, whole = tokenize_windows(history, rows, tokenizer(64)).tokens, tokenize(history, rows, tokenizer(64))
    for name in ("code", "visit", "gap"):
        at = slice(1, None)  # [CLS] carries nothing here
        assert np.array_equal(getattr(one, name)[at], getattr(whole, name)[at]), name


def test_a_birth_recorded_later_is_not_known_yet():
    history, rows = records_of([(0, [1, 1])])
    birth = history.head(1).with_columns(code=pl.lit("MEDS_BIRTH"), time=START + dt.timedelta(hours=12))
    store = tokenize_windows(pl.concat([history, birth]), rows, tokenizer(8)).tokens
    assert np.isnan(store.age[:2]).all()
    assert store.age[2] >= 0


def test_a_prediction_within_a_visit_is_refused():
    history, rows = records_of([(0, [3, 5])])
    windows = tokenize_windows(history, rows, tokenizer(12))
    within = pl.DataFrame({"subject_id": [0], "prediction_time": [START + dt.timedelta(days=1, minutes=1)]})
    with pytest.raises(EhrError, match="before the end of the visit") as caught:
        windows.locate(within)
    assert caught.value.code == Exit.LEAKAGE
    stranger = pl.DataFrame({"subject_id": [9], "prediction_time": [START]})
    with pytest.raises(EhrError, match="without a record") as caught:
        windows.locate(stranger)
    assert caught.value.code == Exit.DATA


def test_overlapping_visits_are_refused():
    history, rows = records_of([(0, [3])])
    history = history.with_columns(hadm_id=1)
    with pytest.raises(EhrError, match="may overlap") as caught:
        tokenize_windows(history, rows, tokenizer(12, visit_column="hadm_id"))
    assert caught.value.code == Exit.CONFIG


def test_a_window_can_be_taken_alone():
    history, rows = records_of([(1, [3, 5, 2, 6, 4, 1]), (0, [2])])
    windows = tokenize_windows(history, rows, tokenizer(12))
    second = windows.take(np.array([1]))
    begin, end = windows.tokens.offsets[1:3]
    assert np.array_equal(second.tokens.code, windows.tokens.code[begin:end])
    assert second.visits["window"].unique().to_list() == [0]
