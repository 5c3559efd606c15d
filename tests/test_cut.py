"""The one cut: what it lets through, and that nothing downstream of it can tell one future from another."""

from __future__ import annotations

import datetime as dt
import tempfile
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given, settings
from polars.testing import assert_frame_equal

import ascii_tables
import cut_property
from cut_property import NOW, TICK, Downstream, Futures, assert_blind_to_the_future, bits
from ehrsequencing.batches import collate
from ehrsequencing.cohort import cut, whole_records
from ehrsequencing.config import FeaturesConfig, InputConfig, TaskConfig, TokensConfig, parse
from ehrsequencing.errors import EhrError
from ehrsequencing.events import MedsDataset
from ehrsequencing.features import FeatureSpec, build_features
from ehrsequencing.models.behrt import BEHRTConfig
from ehrsequencing.models.behrt_survival import BEHRTForSurvival
from ehrsequencing.tokens import Tokenizer, TokenStore, tokenize


def training() -> tuple[pl.DataFrame, pl.DataFrame]:
    """Forty subjects with every code but the unseen one, from which everything fitted is fitted."""
    rng = np.random.default_rng(0)
    size = 40 * len(cut_property.CODES)
    days = rng.integers(0, 20_000, size)
    events = pl.DataFrame(
        {
            "subject_id": np.repeat(np.arange(40), len(cut_property.CODES)),
            "time": [NOW - dt.timedelta(days=int(day)) for day in days],
            "code": [code.replace("UNSEEN//X", "LAB//NA") for code in cut_property.CODES] * 40,
            "numeric_value": rng.normal(size=size).astype(np.float32),
            "hadm_id": days // 9,
        },
        schema=cut_property.SCHEMA,
    )
    rows = pl.DataFrame({"subject_id": range(40), "prediction_time": [NOW] * 40})
    rows = rows.cast({"prediction_time": pl.Datetime("us")})
    return cut(events.sort("subject_id", "time").lazy(), rows, InputConfig()).collect(), rows


def downstream() -> dict[str, Downstream]:
    """Everything that is made of a history, each fitted part fixed."""
    history, rows = training()
    by_day = Tokenizer.fit(history, TokensConfig(max_tokens=8, min_subjects=1, min_values=2))
    by_visit = Tokenizer.fit(history, TokensConfig(min_subjects=1, min_values=2, visit_column="hadm_id"))
    spec = FeatureSpec.fit(history, rows, FeaturesConfig(min_subjects=2))
    torch.manual_seed(0)
    size = {"embedding_size": 8, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    vocabulary = {"vocab_size": by_day.vocab_size, "value_codes": by_day.value_codes}
    model = BEHRTForSurvival(BEHRTConfig(**vocabulary, **size, intermediate_size=16, n_bins=4)).eval()

    def tokens(history: pl.DataFrame, rows: pl.DataFrame) -> Sequence[Any]:
        return _arrays(tokenize(history, rows, by_visit))

    def tokens_and_predictions(history: pl.DataFrame, rows: pl.DataFrame) -> Sequence[Any]:
        store = tokenize(history, rows, by_day)
        with torch.inference_mode():
            return [*_arrays(store), model(collate(store, np.arange(rows.height))).numpy()]

    return {
        "the cut": lambda history, rows: [history],
        "tokens by visit": tokens,
        "tokens by day and predictions": tokens_and_predictions,
        "features": lambda history, rows: [build_features(history, rows, spec).values],
    }


def _arrays(store: TokenStore) -> list[np.ndarray]:
    values = (getattr(store, item.name) for item in fields(store))
    return [value for value in values if isinstance(value, np.ndarray)]


DOWNSTREAM = downstream()


@settings(max_examples=50, deadline=None)
@given(cut_property.futures())
def test_nothing_downstream_depends_on_what_comes_later(futures: Futures) -> None:
    assert_blind_to_the_future(futures, DOWNSTREAM)


@settings(max_examples=20, deadline=None)
@given(cut_property.futures())
def test_nor_does_it_on_disk(futures: Futures) -> None:
    """The same through files: other rows in the shards, the same history."""
    histories = []
    with tempfile.TemporaryDirectory() as folder:
        for name, events in (("one", futures.one), ("other", futures.other)):
            if events.is_empty():
                return
            data = ascii_tables.on_disk(events, Path(folder) / name)
            histories.append(futures.history(data.scan()).collect(engine="streaming"))
    one, other = (bits([history.sort("subject_id", maintain_order=True)]) for history in histories)
    assert one == other


def _leaky(events: pl.LazyFrame, rows: pl.DataFrame, task: Any, visit_column: str | None) -> pl.LazyFrame:
    return cut(events, rows.with_columns(pl.col("prediction_time") + dt.timedelta(hours=1)), task)


def _birth_leak(events: pl.LazyFrame, rows: pl.DataFrame, task: Any, visit_column: str | None) -> pl.LazyFrame:
    """Births recorded at any time: the age would tell."""
    births = events.filter(pl.col("code") == "MEDS_BIRTH").join(rows.lazy(), on="subject_id")
    history = cut(events, rows, task)
    return pl.concat([history, births.select(history.collect_schema().names())]).unique(maintain_order=True)


@pytest.mark.parametrize("leaky", [_leaky, _birth_leak])
def test_the_property_notices_a_leak(leaky: cut_property.Cut) -> None:
    past = ascii_tables.events("subject_id | time | code\n 1 | 2012-01-01 | LAB//NA")
    later = ascii_tables.events("subject_id | time | code\n 1 | 2013-01-01 12:30 | MEDS_BIRTH")
    past, later = (frame.with_columns(hadm_id=pl.lit(None, pl.Int64)) for frame in (past, later))
    rows = pl.DataFrame({"subject_id": [1], "prediction_time": [NOW]}).cast({"prediction_time": pl.Datetime("us")})
    futures = Futures(past, pl.concat([past, later]), rows, InputConfig())
    assert_blind_to_the_future(futures, DOWNSTREAM)
    with pytest.raises(AssertionError, match="the cut differs"):
        assert_blind_to_the_future(futures, DOWNSTREAM, leaky)


RECORD = """
subject_id | time                       | code       | numeric_value
1          |                            | SEX//F     |
1          | 1950-01-01                 | MEDS_BIRTH |
1          | 2010-04-30 23:59:59.999999 | A          |      # a microsecond before input.from
1          | 2010-05-01                 | B          | 1.5
1          | 2013-01-01 12:00           | C          |      # at prediction_time
1          | 2013-01-01 12:00:00.000001 | D          |      # a microsecond later
2          | 2011-01-01                 | A          |      # not asked about
3          |                            | SEX//M     |
"""
ROWS = pl.DataFrame({"subject_id": [3, 1], "prediction_time": [NOW, NOW], "event": [1, 0]})


class TestWhatPasses:
    def codes(self, input: InputConfig | TaskConfig) -> list[tuple[int, str]]:
        return cut(ascii_tables.events(RECORD).lazy(), ROWS, input).select("subject_id", "code").collect().rows()

    def test_up_to_prediction_time_and_static_rows(self) -> None:
        expected = [(1, "SEX//F"), (1, "MEDS_BIRTH"), (1, "A"), (1, "B"), (1, "C"), (3, "SEX//M")]
        assert self.codes(InputConfig()) == expected

    def test_from_a_date_on_births_stay(self) -> None:
        expected = [(1, "SEX//F"), (1, "MEDS_BIRTH"), (1, "B"), (1, "C"), (3, "SEX//M")]
        assert self.codes(InputConfig(from_=dt.date(2010, 5, 1))) == expected

    def test_a_task_stands_for_its_input(self) -> None:
        settings = {"name": "t", "index": {"age": 50}, "outcome": "C", "input": {"from": dt.date(2010, 5, 1)}}
        task = parse(TaskConfig, settings, "test")
        assert self.codes(task) == self.codes(task.input)

    def test_columns(self) -> None:
        events = ascii_tables.events(RECORD).with_columns(hadm_id=pl.lit(5), split=pl.lit("x"))
        history = cut(events.lazy(), ROWS, InputConfig()).collect()
        core = ["subject_id", "prediction_time", "time", "code", "numeric_value"]
        assert history.columns == [*core, "hadm_id", "split"]  # the outcome in `rows` does not come along

    def test_delays_are_undone_before_the_cut(self) -> None:
        settings = {"name": "t", "index": {"age": 50}, "outcome": "C", "delay": {"code": "C", "days": 1}}
        task = parse(TaskConfig, settings, "test")
        assert "C" not in [code for _, code in self.codes(task)]
        whole = whole_records(ascii_tables.events(RECORD).lazy(), np.array([1]), task).collect()
        assert whole.filter(pl.col("code") == "C")["time"].to_list() == [NOW + dt.timedelta(days=1)]
        assert whole["prediction_time"].unique().to_list() == [NOW + dt.timedelta(days=1)]

    def test_a_visit_column_that_is_not_there(self) -> None:
        settings = {"name": "t", "index": {"age": 50}, "outcome": "C", "delay": {"code": "C", "until": "end_of_visit"}}
        with pytest.raises(EhrError, match="no column 'stay'"):
            cut(ascii_tables.events(RECORD).lazy(), ROWS, parse(TaskConfig, settings, "test"), visit_column="stay")

    def test_several_predictions_a_subject(self) -> None:
        rows = pl.DataFrame({"subject_id": [1, 1], "prediction_time": [dt.datetime(1950, 1, 1), NOW]})
        history = cut(ascii_tables.events(RECORD).lazy(), rows, InputConfig()).collect()
        assert history.group_by("prediction_time").len().sort("prediction_time")["len"].to_list() == [2, 5]

    def test_shards_keep_their_order(self, tmp_path: Path) -> None:
        for shard in range(3):
            frame = pl.DataFrame({"subject_id": shard, "time": [NOW] * 2, "code": ["Z", "A"]})
            (tmp_path / "data").mkdir(exist_ok=True)
            frame.cast({"subject_id": pl.Int64, "time": pl.Datetime("us")}).write_parquet(
                tmp_path / f"data/{shard}.parquet"
            )
        rows = pl.DataFrame({"subject_id": [2, 0, 1], "prediction_time": [NOW] * 3})
        history = cut(MedsDataset.open(tmp_path).scan(), rows, InputConfig()).collect(engine="streaming")
        assert history.select("subject_id", "code").rows() == [(s, code) for s in range(3) for code in ("Z", "A")]


class TestWholeRecords:
    def test_up_to_the_last_event(self) -> None:
        events = ascii_tables.events(RECORD).lazy()
        records = whole_records(events, np.array([1, 2, 3]), InputConfig()).collect()
        assert records["code"].to_list() == ["SEX//F", "MEDS_BIRTH", "A", "B", "C", "D", "A"]
        last = {1: NOW + TICK, 2: dt.datetime(2011, 1, 1)}  # 3 has no dated event
        assert dict(records.select("subject_id", "prediction_time").unique().rows()) == last

    def test_they_end_before_a_date(self) -> None:
        events = ascii_tables.events(RECORD).lazy()
        records = whole_records(events, np.array([1, 2]), InputConfig(), before=dt.datetime(2010, 5, 1)).collect()
        assert records["code"].to_list() == ["SEX//F", "MEDS_BIRTH", "A"]

    def test_the_same_cut(self) -> None:
        events = ascii_tables.events(RECORD).lazy()
        rows = pl.DataFrame({"subject_id": [1], "prediction_time": [NOW + TICK]}, schema_overrides=_TIME)
        input = InputConfig(from_=dt.date(2010, 5, 1))
        assert_frame_equal(whole_records(events, np.array([1]), input).collect(), cut(events, rows, input).collect())


_TIME = {"prediction_time": pl.Datetime("us")}
