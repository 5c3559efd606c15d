"""Vocabulary, value standardiser and token sequences, held against a plain reference over random records."""

from __future__ import annotations

import datetime as dt
import itertools
import math
import os
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ehrsequencing.config import TokensConfig
from ehrsequencing.errors import EhrError, Exit
from ehrsequencing.tokens import CLS, N_SPECIAL, UNK, Tokenizer, TokenStore, ancestors, tokenize
from ehrsequencing.tokens.numbers import numbered
from ehrsequencing.tokens.standardiser import Standardiser
from ehrsequencing.tokens.vocabulary import SubjectCounts

SCHEMA = {
    "subject_id": pl.Int64,
    "prediction_time": pl.Datetime("us"),
    "time": pl.Datetime("us"),
    "code": pl.String,
    "numeric_value": pl.Float32,
    "hadm_id": pl.Int64,
}
NOW = dt.datetime(2020, 1, 1, 12)
DAY = dt.timedelta(days=1)
Event = tuple[int, dt.datetime | None, str, float | None, int | None]


def frame(events: list[Event], now: dt.datetime = NOW) -> pl.DataFrame:
    rows = [(subject, now, time, code, value, visit) for subject, time, code, value, visit in events]
    return pl.DataFrame(rows, schema=SCHEMA, orient="row")


def rows_of(subjects: list[int], now: dt.datetime = NOW) -> pl.DataFrame:
    return pl.DataFrame({"subject_id": subjects, "prediction_time": [now] * len(subjects)}, schema_overrides=KEYS)


KEYS = {"subject_id": pl.Int64, "prediction_time": pl.Datetime("us")}
CODES = ["A", "B", "C//1//x", "C//1//y", "ICD10CM//E11.65", "ICD10CM//E11.64", "SEX//F"]

times = st.one_of(st.none(), st.integers(0, 40 * 24).map(lambda h: NOW - dt.timedelta(hours=h)))
values = st.one_of(st.none(), st.sampled_from([-1.0, 0.0, 0.5, 2.0, 7.0, math.inf, math.nan]))
visits = st.one_of(st.none(), st.integers(1, 3))
event = st.tuples(st.integers(1, 4), times, st.sampled_from(CODES), values, visits)
births = st.lists(st.tuples(st.integers(1, 4), st.integers(0, 20_000)), max_size=3, unique_by=lambda x: x[0])


@st.composite
def histories(draw: st.DrawFn) -> pl.DataFrame:
    events: list[Event] = list(draw(st.lists(event, max_size=60)))
    events += [(subject, NOW - days * DAY, "MEDS_BIRTH", None, None) for subject, days in draw(births)]
    return frame(events)


def token(row: dict, tokenizer: Tokenizer) -> tuple[int, float]:
    """Id and standardised value of one event, in plain Python."""
    known = {code: number for number, code in enumerate(tokenizer.codes)}
    chain = [row["code"], *ancestors(row["code"])]
    number = next((known[code] for code in chain if code in known), UNK)
    value, scaled = row["numeric_value"], math.nan
    at = {int(i): n for n, i in enumerate(tokenizer.standardiser.ids)}
    if value is not None and math.isfinite(value) and row["code"] in known and number in at:
        fitted = tokenizer.standardiser
        z = (value - fitted.median[at[number]]) / fitted.scale[at[number]]
        scaled = min(max(z, -fitted.clip), fitted.clip)
    return number, scaled


def reference(history: pl.DataFrame, subject: int, tokenizer: Tokenizer) -> list[tuple]:
    """(code, visit, gap days, day, value, age) of one subject, in plain Python."""
    column, limit = tokenizer.config.visit_column, tokenizer.config.max_tokens
    own = [row for row in history.iter_rows(named=True) if row["subject_id"] == subject]
    born = min((row["time"] for row in own if row["code"] == "MEDS_BIRTH" and row["time"]), default=None)

    def years(time: dt.datetime) -> float:
        return math.nan if born is None else max((time - born) / DAY / 365.25, 0.0)

    def order(row: dict) -> tuple:
        value = row["numeric_value"]
        rank = (0, 0.0) if value is None else (2, 0.0) if math.isnan(value) else (1, value)
        return (row["time"] or dt.datetime.min, row["code"], rank)

    events = sorted((row for row in own if row["code"] not in ("MEDS_BIRTH", "MEDS_DEATH")), key=order)
    static = [row for row in events if row["time"] is None][: (limit - 1) // 2]
    groups: dict = {}
    for row in events:
        if row["time"] is not None:
            named = column is not None and row[column] is not None
            key = f"v{row[column]}" if named else row["time"].date().isoformat()
            groups.setdefault(key, []).append(row)
    ordered = [groups[key] for key in sorted(groups, key=lambda key: (groups[key][0]["time"], key))]
    gaps = [0.0] + [
        max((later[0]["time"] - earlier[-1]["time"]) / DAY, 0.0) for earlier, later in itertools.pairwise(ordered)
    ]
    places = limit - 1 - len(static)
    kept: list[tuple[list, float]] = []
    for visit, gap in reversed(list(zip(ordered, gaps, strict=False))):
        room = places - sum(len(other) for other, _ in kept)
        if len(visit) > room:
            if not kept:
                kept.append((visit[len(visit) - room :], gap))
            break
        kept.insert(0, (visit, gap))
    latest = max((row["time"] for row in events if row["time"]), default=NOW)
    out = [(CLS, 0, (NOW - latest) / DAY, 0.0, math.nan, years(NOW))]
    out += [(token(row, tokenizer)[0], 0, 0.0, math.inf, token(row, tokenizer)[1], math.nan) for row in static]
    for number, (visit, gap) in enumerate(kept, start=1):
        for row in visit:
            code, value = token(row, tokenizer)
            out.append((code, number, gap, (NOW - row["time"]) / DAY, value, years(row["time"])))
    return out


def as_rows(store: TokenStore, row: int) -> np.ndarray:
    at = slice(store.offsets[row], store.offsets[row + 1])
    columns = (store.code, store.visit, store.gap, store.day, store.value, store.age)
    return np.array([column[at] for column in columns], dtype=np.float64).T


CONFIGS = [
    TokensConfig(min_subjects=1, min_values=3, max_tokens=64),
    TokensConfig(min_subjects=2, min_values=1, max_tokens=9),
    TokensConfig(min_subjects=2, min_values=1, max_tokens=12, visit_column="hadm_id"),
]


@pytest.mark.parametrize("config", CONFIGS, ids=["all", "truncated", "visit column"])
@settings(max_examples=25, deadline=None)
@given(history=histories(), seed=st.integers(0, 1000))
def test_equals_plain_reference_and_ignores_input_order(config: TokensConfig, history: pl.DataFrame, seed: int) -> None:
    tokenizer = Tokenizer.fit(history, config)
    subjects = [3, 1, 4, 2, 9]
    store = tokenize(history, rows_of(subjects), tokenizer)
    for row, subject in enumerate(subjects):
        expected = np.array(reference(history, subject, tokenizer), dtype=np.float64)
        np.testing.assert_allclose(as_rows(store, row), expected, rtol=1e-5, atol=1e-6)

    shuffled = history.sample(fraction=1.0, shuffle=True, seed=seed)
    again = Tokenizer.fit(shuffled, config)
    assert again.fingerprint == tokenizer.fingerprint
    assert tokenize(shuffled, rows_of(subjects), again).fingerprint == store.fingerprint
    assert tokenize(history, rows_of(subjects[::-1]), tokenizer).fingerprint == store.fingerprint

    some = history.filter(pl.col("subject_id").is_in([1, 2]))
    alone = tokenize(some, rows_of([1, 2]), tokenizer)
    assert alone.fingerprint == store.take(np.array([1, 3])).fingerprint


@settings(max_examples=25, deadline=None)
@given(history=histories(), limit=st.integers(8, 20))
def test_truncation_keeps_whole_recent_visits(history: pl.DataFrame, limit: int) -> None:
    fitted = Tokenizer.fit(history, TokensConfig(min_subjects=1, max_tokens=1000))
    short = Tokenizer(fitted.codes, fitted.standardiser, TokensConfig(min_subjects=1, max_tokens=limit))
    whole, cut = (tokenize(history, rows_of([1, 2, 3, 4]), tokenizer) for tokenizer in (fitted, short))
    assert (cut.code[cut.offsets[:-1]] == CLS).all()
    assert cut.lengths.max() <= limit
    assert (cut.truncated == (cut.lengths < whole.lengths)).all()
    for row in range(4):
        before, after = as_rows(whole, row), as_rows(cut, row)
        visits = after[after[:, 1] > 0]
        np.testing.assert_array_equal(
            visits[:, 3:], before[before[:, 1] > 0][len(before[before[:, 1] > 0]) - len(visits) :, 3:]
        )
        if len(np.unique(visits[:, 1])) > 1:
            last = before[:, 1].max()
            for number in np.unique(visits[:, 1]):
                original = number + last - visits[:, 1].max()
                assert (visits[:, 1] == number).sum() == (before[:, 1] == original).sum()


def test_nothing_after_prediction_time() -> None:
    history = frame([(1, NOW, "A", None, None), (1, NOW + dt.timedelta(seconds=1), "B", None, None)])
    tokenizer = Tokenizer.fit(history, TokensConfig(min_subjects=1))
    with pytest.raises(EhrError, match="1 events lie after") as caught:
        tokenize(history, rows_of([1]), tokenizer)
    assert caught.value.code == Exit.LEAKAGE
    at_the_cut = tokenize(history.head(1), rows_of([1]), tokenizer)
    assert at_the_cut.day.tolist() == [0.0, 0.0]


def test_births_give_age_and_are_no_tokens() -> None:
    history = frame(
        [
            (1, NOW - 3652.5 * DAY, "MEDS_BIRTH", None, None),
            (1, NOW - 365.25 * DAY, "A", None, None),
            (1, NOW - 365.25 * DAY, "MEDS_DEATH", None, None),
            (1, NOW - 4000 * DAY, "A", None, None),
        ]
    )
    tokenizer = Tokenizer.fit(history, TokensConfig(min_subjects=1))
    store = tokenize(history, rows_of([1, 2]), tokenizer)
    assert tokenizer.codes[N_SPECIAL:] == ("A",)
    np.testing.assert_allclose(store.age, [10.0, 0.0, 9.0, np.nan], rtol=1e-6)
    assert store.stats["events_before_birth"] == 1
    assert store.stats["rows_without_birth"] == 1
    assert store.stats["rows_without_events"] == 1


def fit_vocabulary(pairs: pl.DataFrame, min_subjects: int, max_codes: int) -> tuple[str, ...]:
    """Of one group of subjects."""
    number, names = numbered(pairs["code"])
    counts = SubjectCounts(min_subjects)
    counts.add(pairs["subject_id"].to_numpy(), number - 1, names)
    return counts.codes(max_codes)


def test_rare_codes_meet_in_their_ancestor_only_when_needed() -> None:
    codes = {"ICD10CM//E11.65": [1, 2], "ICD10CM//E11.64": [3], "ICD10CM//E11.9": [4, 5, 6], "ICD10CM//Z99.1": [1]}
    pairs = pl.DataFrame(
        [(s, c) for c, subjects in codes.items() for s in subjects], schema=["subject_id", "code"], orient="row"
    )
    assert fit_vocabulary(pairs, min_subjects=3, max_codes=10) == ("ICD10CM//E11.6", "ICD10CM//E11.9")
    assert fit_vocabulary(pairs, min_subjects=4, max_codes=10) == ("ICD10CM//E11",)
    assert fit_vocabulary(pairs, min_subjects=1, max_codes=2) == ("ICD10CM//E11.9", "ICD10CM//E11.65")
    six = fit_vocabulary(pairs.filter(pl.col("code") != "ICD10CM//E11.9"), min_subjects=3, max_codes=10)
    assert six == ("ICD10CM//E11.6",)
    # the same subject under two children counts once
    twice = pl.DataFrame({"subject_id": [1, 1], "code": ["ICD9//250.01", "ICD9//250.02"]})
    assert fit_vocabulary(twice, min_subjects=2, max_codes=10) == ()


def test_fallback_goes_through_known_ids_and_brings_no_value() -> None:
    history = frame(
        [(s, NOW - DAY, "ICD10CM//E11", float(s), None) for s in range(1, 7)]
        + [(s, NOW - DAY, "ICD10CM//E11.6", float(s), None) for s in range(1, 7)]
    )
    tokenizer = Tokenizer.fit(history, TokensConfig(min_subjects=5, min_values=5))
    e11, e116 = tokenizer.encode("ICD10CM//E11"), tokenizer.encode("ICD10CM//E11.6")
    assert e11 != e116
    assert tokenizer.encode("ICD10CM//E11.65") == e116
    assert tokenizer.encode("ICD10CM//E11.9") == e11
    assert tokenizer.encode("ICD10CM//E12.9") == UNK
    new = frame(
        [(9, NOW, "ICD10CM//E11.65", 3.0, None), (9, NOW, "ICD10CM//E11.6", 3.0, None), (9, NOW, "Q", 1.0, None)]
    )
    store = tokenize(new, rows_of([9]), tokenizer)
    assert store.code.tolist() == [CLS, e116, e116, UNK]
    assert np.isfinite(store.value).tolist() == [False, True, False, False]
    assert store.stats["oov_share"] == pytest.approx(1 / 3)
    assert store.stats["fallback_share"] == pytest.approx(1 / 3)


def test_standardiser_is_robust_and_handles_degenerate_scales() -> None:
    rng = np.random.default_rng(0)
    normal = rng.normal(140.0, 3.0, 4000)
    groups = {
        4: np.append(normal, [999_999.0] * 20),
        5: np.full(50, 7.0),  # constant: carries nothing
        6: np.append(np.zeros(90), np.linspace(1, 5, 10)),  # interquartile range 0
        7: np.array([1.0, 2.0]),  # too few
    }
    values = pl.DataFrame(
        {
            "id": np.repeat(list(groups), [len(v) for v in groups.values()]),
            "value": np.concatenate(list(groups.values())),
        }
    )
    fitted = Standardiser.fit(values, min_values=10, clip=4.0)
    assert fitted.ids.tolist() == [4, 6]
    assert fitted.median[0] == pytest.approx(140, abs=0.3)
    assert fitted.scale[0] == pytest.approx(3, rel=0.05)
    assert fitted.scale[1] > 0
    z = fitted.transform(np.array([4, 4, 4, 5, 6, 4]), np.float32([140, 146, 1e30, 7, 0, np.inf]), vocab_size=9)
    np.testing.assert_allclose(z[:2], [0, 2], atol=0.15)
    assert z[2] == 4.0
    assert z[4] == 0.0
    assert np.isnan(z[[3, 5]]).all()


def test_bad_values_are_counted_and_carry_nothing() -> None:
    history = frame(
        [(1, NOW - n * DAY, "A", v, None) for n, v in enumerate([1.0, 2.0, 3.0, math.nan, -math.inf, None])]
    )
    tokenizer = Tokenizer.fit(history, TokensConfig(min_subjects=1, min_values=3))
    store = tokenize(history, rows_of([1]), tokenizer)
    assert store.stats["bad_values"] == 2
    assert np.isfinite(store.value).sum() == 3


def test_missing_columns_and_repeated_rows_are_refused() -> None:
    history = frame([(1, NOW, "A", None, None)])
    tokenizer = Tokenizer.fit(history, TokensConfig(min_subjects=1, visit_column="stay"))
    with pytest.raises(EhrError, match="history has no column stay"):
        tokenize(history, rows_of([1]), tokenizer)
    plain = Tokenizer.fit(history, TokensConfig(min_subjects=1))
    with pytest.raises(EhrError, match="history has no column code"):
        tokenize(history.drop("code"), rows_of([1]), plain)
    with pytest.raises(EhrError, match="occurs twice"):
        tokenize(history, rows_of([1, 1]), plain)


def test_saved_and_loaded_are_the_same(tmp_path: Path) -> None:
    history = frame([(s, NOW - s * DAY, "A", float(s), None) for s in range(1, 30)] + [(1, None, "SEX//F", None, None)])
    tokenizer = Tokenizer.fit(history, TokensConfig(min_subjects=1))
    tokenizer.save(tmp_path / "tokenizer.json")
    loaded = Tokenizer.load(tmp_path / "tokenizer.json")
    assert loaded.fingerprint == tokenizer.fingerprint
    assert loaded.value_codes == tokenizer.value_codes == (4,)
    store = tokenize(history, rows_of(list(range(1, 30))), loaded)
    for mmap in (True, False):
        store.save(tmp_path / "tokens")
        again = TokenStore.load(tmp_path / "tokens", mmap=mmap)
        assert isinstance(again.code, np.memmap) == mmap
        assert again.fingerprint == store.fingerprint
        assert again.stats == store.stats
    assert not list(tmp_path.glob("*.tmp"))
    nobody = tokenize(history, rows_of([]), tokenizer)
    nobody.save(tmp_path / "nobody")
    assert len(TokenStore.load(tmp_path / "nobody")) == 0
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(EhrError, match="not a tokenizer"):
        Tokenizer.load(tmp_path / "tokenizer.json")
    with pytest.raises(EhrError, match="cannot be read"):
        TokenStore.load(tmp_path / "absent")


def test_fingerprint_moves_with_every_part() -> None:
    history = frame([(s, NOW - s * DAY, "A", float(s), None) for s in range(1, 30)])
    tokenizer = Tokenizer.fit(history, TokensConfig(min_subjects=1))
    store = tokenize(history, rows_of([1, 2, 3]), tokenizer)
    other = Tokenizer.fit(history, TokensConfig(min_subjects=1, max_tokens=100))
    assert tokenize(history, rows_of([1, 2, 3]), other).fingerprint != store.fingerprint
    assert store.take(np.array([0, 1])).fingerprint != store.fingerprint
    moved = history.with_columns(pl.col("numeric_value") + (pl.col("subject_id") == 2))
    assert tokenize(moved, rows_of([1, 2, 3]), tokenizer).fingerprint != store.fingerprint


def test_real_codes_of_mimic() -> None:
    root = Path(os.environ.get("EHR_DATA", "../shared/data")) / "mimic_iv_demo_meds" / "data"
    if not root.is_dir():
        pytest.skip(f"no {root}: set EHR_DATA")
    shard = pl.read_parquet(root / "tuning" / "0.parquet")
    history = shard.with_columns(pl.col("time").max().over("subject_id").alias("prediction_time"))
    rows = history.select("subject_id", "prediction_time").unique().sort("subject_id")
    tokenizer = Tokenizer.fit(history, TokensConfig(min_subjects=2, visit_column="hadm_id"))
    store = tokenize(history, rows, tokenizer)
    assert store.stats["n_rows"] == rows.height
    assert store.stats["oov_share"] < 0.05
    assert store.lengths.max() == 512
    assert store.stats["truncated_rows"] > 0
    assert len(tokenizer.value_codes) > 50
    dated = np.isfinite(store.day)
    assert (store.day[dated] >= 0).all()
    assert (np.abs(store.value[np.isfinite(store.value)]) <= 4).all()
    assert np.diff(store.visit[store.offsets[0] : store.offsets[1]]).max() <= 1
