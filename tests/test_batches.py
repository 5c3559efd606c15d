"""Padded batches, micro-batches, random cuts and targets."""

from __future__ import annotations

import datetime as dt

import numpy as np
import polars as pl
import pytest
import torch

from ehrsequencing.batches import (
    PADDED,
    Batch,
    SurvivalData,
    Targets,
    collate,
    cut_at_random,
    epoch_batches,
    micro_batches,
)
from ehrsequencing.cohort import cut
from ehrsequencing.config import FeaturesConfig, InputConfig, TokensConfig
from ehrsequencing.errors import EhrError
from ehrsequencing.features import FeatureSpec, build_features
from ehrsequencing.timegrid import TimeGrid
from ehrsequencing.tokens import CLS, PAD, Tokenizer, TokenStore, tokenize

NOW = dt.datetime(2020, 1, 1)
SCHEMA = {
    "subject_id": pl.Int64,
    "prediction_time": pl.Datetime("us"),
    "time": pl.Datetime("us"),
    "code": pl.String,
    "numeric_value": pl.Float32,
}

KEYS = {"subject_id": pl.Int64, "prediction_time": pl.Datetime("us")}


def random_history(n: int, seed: int = 0) -> pl.DataFrame:
    """n subjects, every fifth without a birth, every seventh without dated events; 5 to 60 events otherwise."""
    rng = np.random.default_rng(seed)
    events: list[tuple] = []
    for subject in range(1, n + 1):
        if subject % 5:
            events.append((subject, NOW, NOW - dt.timedelta(days=20_000 + subject), "MEDS_BIRTH", None))
        events.append((subject, NOW, None, f"SEX//{'MF'[subject % 2]}", None))
        for _ in range(int(rng.integers(5, 60)) if subject % 7 else 0):
            time = NOW - dt.timedelta(hours=int(rng.integers(0, 24 * 2000)))
            value = float(rng.normal()) if rng.random() < 0.5 else None
            events.append((subject, NOW, time, f"C{rng.integers(0, 9)}", value))
    return pl.DataFrame(events, schema=SCHEMA, orient="row")


@pytest.fixture(scope="module")
def history() -> pl.DataFrame:
    return random_history(60)


@pytest.fixture(scope="module")
def rows(history: pl.DataFrame) -> pl.DataFrame:
    return history.select("subject_id", "prediction_time").unique().sort("subject_id")


@pytest.fixture(scope="module")
def tokenizer(history: pl.DataFrame) -> Tokenizer:
    return Tokenizer.fit(history, TokensConfig(min_subjects=1, min_values=5))


@pytest.fixture(scope="module")
def store(history: pl.DataFrame, rows: pl.DataFrame, tokenizer: Tokenizer) -> TokenStore:
    return tokenize(history, rows, tokenizer)


def test_collate_equals_a_loop(store: TokenStore) -> None:
    chosen = np.array([5, 0, 6, 30])
    batch = collate(store, chosen)
    assert batch.code.shape == (4, store.lengths[chosen].max())
    for b, row in enumerate(chosen):
        at, length = slice(store.offsets[row], store.offsets[row + 1]), store.lengths[row]
        assert batch.mask[b].sum() == length
        assert batch.mask[b, :length].all()
        assert batch.code[b, 0] == CLS
        np.testing.assert_array_equal(batch.code[b, :length], store.code[at])
        np.testing.assert_array_equal(batch.visit[b, :length], store.visit[at])
        np.testing.assert_array_equal(batch.gap[b, :length], store.gap[at])
        known = ~np.isnan(store.age[at])
        np.testing.assert_array_equal(batch.age_known[b, :length], known)
        np.testing.assert_array_equal(batch.age[b, :length][known], store.age[at][known])
        valued = ~np.isnan(store.value[at])
        np.testing.assert_array_equal(batch.has_value[b, :length], valued)
        np.testing.assert_array_equal(batch.value[b, :length][valued], store.value[at][valued])
        padded = (batch.code[b, length:], batch.value[b, length:], batch.age[b, length:], batch.gap[b, length:])
        assert all((part == 0).all() for part in padded)
        assert not batch.has_value[b, length:].any()
    assert PAD == 0
    assert all(torch.isfinite(part).all() for part in (batch.value, batch.age, batch.gap))
    assert isinstance(batch.to("cpu"), Batch)


def test_collate_reads_a_mapped_store(store: TokenStore, tmp_path) -> None:
    store.save(tmp_path / "tokens")
    mapped = TokenStore.load(tmp_path / "tokens")
    assert torch.equal(collate(mapped, np.arange(9)).code, collate(store, np.arange(9)).code)


@pytest.mark.parametrize("budget", [1, 64, 200, 10_000])
def test_micro_batches_hold_each_row_once_within_the_budget(store: TokenStore, budget: int) -> None:
    chosen = np.random.default_rng(1).permutation(len(store))[:32]
    parts = micro_batches(store, chosen, budget)
    assert sorted(np.concatenate(parts).tolist()) == sorted(chosen.tolist())
    for part in parts:
        assert store.lengths[part].sum() <= budget or len(part) == 1
        assert len(part) * store.lengths[part].max() <= PADDED * budget or len(part) == 1
    if budget == 10_000:
        assert len(parts) == 1


def test_epoch_batches_are_random_and_reproducible() -> None:
    first, again, other = (list(epoch_batches(103, 10, np.random.default_rng(seed))) for seed in (1, 1, 2))
    assert sorted(np.concatenate(first).tolist()) == list(range(103))
    assert [len(batch) for batch in first] == [10] * 10 + [3]
    assert all((a == b).all() for a, b in zip(first, again, strict=True))
    assert any((a != b).any() for a, b in zip(first, other, strict=True))


def test_cut_at_random_equals_tokenising_the_cut_history(
    store: TokenStore, history: pl.DataFrame, tokenizer: Tokenizer
) -> None:
    chosen = np.arange(len(store))
    cut = cut_at_random(store, chosen, np.random.default_rng(3), 1.0)
    times = pl.DataFrame({"subject_id": cut.subject_id, "at": cut.prediction_time})
    known = history.join(times, on="subject_id").filter(pl.col("time").is_null() | (pl.col("time") <= pl.col("at")))
    known = known.with_columns(prediction_time=pl.col("at")).drop("at")
    anew = tokenize(known, times.rename({"at": "prediction_time"}), tokenizer)
    np.testing.assert_array_equal(cut.lengths, anew.lengths)
    for name in ("code", "visit"):
        np.testing.assert_array_equal(getattr(cut, name), getattr(anew, name))
    for name in ("value", "age", "gap", "day"):
        np.testing.assert_allclose(getattr(cut, name), getattr(anew, name), atol=2e-3)
    dated = np.add.reduceat(np.isfinite(store.day), store.offsets[:-1]) > 1
    shorter = cut.lengths < store.lengths
    assert shorter[dated].mean() > 0.8
    assert (np.add.reduceat(np.isfinite(cut.day), cut.offsets[:-1]) > 1)[dated].all()
    assert (cut.day >= 0).all()


def test_cut_at_random_cuts_the_asked_share_and_leaves_the_rest(store: TokenStore) -> None:
    chosen = np.repeat(np.arange(len(store)), 40)
    cut = cut_at_random(store, chosen, np.random.default_rng(0), 0.5)
    moved = cut.prediction_time < store.prediction_time[chosen]
    with_events = (np.add.reduceat(np.isfinite(store.day), store.offsets[:-1]) > 1)[chosen]
    assert moved[with_events].mean() == pytest.approx(0.5, abs=0.05)
    assert not moved[~with_events].any()
    assert cut.take(np.flatnonzero(~moved)).fingerprint == store.take(chosen[~moved]).fingerprint
    assert (
        cut_at_random(store, chosen[:9], np.random.default_rng(0), 0.0).fingerprint
        == store.take(chosen[:9]).fingerprint
    )
    again = cut_at_random(store, chosen, np.random.default_rng(0), 0.5)
    assert again.fingerprint == cut.fingerprint
    assert cut_at_random(store, chosen, np.random.default_rng(1), 0.5).fingerprint != cut.fingerprint


def test_targets_lie_on_the_grid() -> None:
    grid = TimeGrid(np.array([0.0, 10.0, 30.0]))
    targets = Targets.of(np.array([10.0, 15.0, 30.0]), np.array([1, 0, 0], dtype=np.int8), grid)
    assert targets.bin.tolist() == [0, 1, 1]
    assert targets.fraction.tolist() == [1.0, 0.25, 1.0]
    assert targets.event.dtype == torch.int64
    assert targets.take(np.array([2, 0])).duration.tolist() == [30.0, 10.0]
    assert len(targets.to("cpu")) == 3


def survival_data(history: pl.DataFrame, rows: pl.DataFrame, store: TokenStore, tokenizer: Tokenizer) -> SurvivalData:
    n = rows.height
    labelled = rows.with_columns(
        duration=pl.Series(np.linspace(1.0, 30.0, n)),
        event=pl.Series(np.arange(n) % 2, dtype=pl.Int8),
        split=pl.Series(["train", "tuning", "held_out"] * (n // 3)),
    )
    spec = FeatureSpec.fit(history, rows, FeaturesConfig(min_subjects=5))
    features = build_features(history, rows, spec)
    return SurvivalData(labelled, store, features, TimeGrid(np.array([0.0, 10.0, 30.0])), tokenizer, "abc")


def test_survival_data_keeps_rows_together(history, rows, store, tokenizer) -> None:
    data = survival_data(history, rows, store, tokenizer)
    index = data.index("tuning")
    assert index.tolist() == list(range(1, 60, 3))
    targets = data.targets(index)
    np.testing.assert_array_equal(targets.duration, data.rows["duration"].to_numpy()[index])
    assert len(data) == 60
    with pytest.raises(EhrError, match="tokens are of other subjects"):
        SurvivalData(data.rows[::-1], store, data.features, data.grid, tokenizer, "abc")
    with pytest.raises(EhrError, match="expected 59 rows of tokens, found 60"):
        SurvivalData(data.rows[:59], store, data.features, data.grid, tokenizer, "abc")
    other = Tokenizer.fit(history, TokensConfig(min_subjects=50))
    with pytest.raises(EhrError, match="another tokenizer"):
        SurvivalData(data.rows, store, data.features, data.grid, other, "abc")


@pytest.mark.parametrize("seed", range(5))
def test_nothing_after_the_cut_can_be_seen(seed: int) -> None:
    """Artefacts fixed, changing, adding or removing later events leaves tokens and features bit-identical."""
    rng = np.random.default_rng(seed)
    events = random_history(30, seed).drop("prediction_time")
    hours = [dt.timedelta(hours=int(h)) for h in rng.integers(0, 24 * 1500, 30)]
    rows = pl.DataFrame(
        {"subject_id": range(1, 31), "prediction_time": [NOW - h for h in hours]}, schema_overrides=KEYS
    )
    before = cut(events.lazy(), rows, InputConfig()).collect()
    tokenizer = Tokenizer.fit(before, TokensConfig(min_subjects=1, min_values=5))
    spec = FeatureSpec.fit(before, rows, FeaturesConfig(min_subjects=3))

    joined = events.join(rows, on="subject_id")
    known = joined.filter(pl.col("time").is_null() | (pl.col("time") <= pl.col("prediction_time")))
    later = joined.filter(pl.col("time") > pl.col("prediction_time")).sample(fraction=0.5, seed=seed)
    changed = later.with_columns(pl.lit("NEW").alias("code"), pl.lit(9.0, pl.Float32).alias("numeric_value"))
    tick = pl.col("prediction_time") + pl.duration(microseconds=1)
    added = rows.with_columns(
        tick.alias("time"), pl.lit("C1").alias("code"), pl.lit(5.0, pl.Float32).alias("numeric_value")
    )
    columns = ["subject_id", "time", "code", "numeric_value"]
    world = pl.concat([part.select(columns) for part in (known, changed, added)]).sample(
        fraction=1.0, shuffle=True, seed=1
    )
    assert world.height != events.height
    after = cut(world.lazy(), rows, InputConfig()).collect()
    assert tokenize(after, rows, tokenizer).fingerprint == tokenize(before, rows, tokenizer).fingerprint
    features = [build_features(history, rows, spec).values.tobytes() for history in (before, after)]
    assert features[0] == features[1]
