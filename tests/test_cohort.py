"""The task language as cases: records, a task, and the labels that must come out."""

from __future__ import annotations

import datetime as dt
import os
import re
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import meds
import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

import ascii_tables
import cohort_reference as reference
from ehrsequencing.cohort import Cohort, build_cohort, eligible, for_people, prediction_rows
from ehrsequencing.cohort.attrition import suppress
from ehrsequencing.cohort.rules import birth_rules, exclude_rules, index_rules, outcome_rules, require_rules
from ehrsequencing.config import TaskConfig, parse
from ehrsequencing.errors import EhrError, Exit
from ehrsequencing.events import MedsDataset
from ehrsequencing.sources.synthea import convert_synthea

EHR_DATA = Path(os.environ.get("EHR_DATA", "../shared/data"))


def task(**settings: Any) -> TaskConfig:
    defaults: dict[str, Any] = {"name": "spec", "index": {"date": dt.date(2013, 1, 1)}, "outcome": "OUT"}
    return parse(TaskConfig, defaults | {"require": {"visits": 0}} | settings, "test")


@dataclass(frozen=True)
class Case:
    """Records, the keys of the task that differ from the defaults, the labels, and how many each rule removes."""

    name: str
    events: str
    labels: str
    task: dict[str, Any] = field(default_factory=dict)
    removed: dict[str, int] = field(default_factory=dict)


CASES = [
    Case(
        "the outcome counts strictly after prediction_time, follow-up ends at the last record",
        """
        subject_id | time             | code
        1          | 2012-06-01       | A
        1          | 2013-01-11 12:00 | OUT
        1          | 2014-01-01       | A
        2          | 2012-06-01       | A
        2          | 2013-01-31       | A
        """,
        """
        subject_id | prediction_time | duration | event
        1          | 2013-01-01      | 10.5     | 1
        2          | 2013-01-01      | 30       | 0
        """,
    ),
    Case(
        "washout: an outcome at prediction_time itself is in the past",
        """
        subject_id | time             | code
        1          | 2013-01-01       | OUT   # at prediction_time
        1          | 2013-02-01       | OUT
        2          | 2013-01-01 00:01 | OUT   # a minute later
        """,
        """
        subject_id | prediction_time | duration             | event
        2          | 2013-01-01      | 0.000694444444444444 | 1
        """,
        removed={"washout": 1},
    ),
    Case(
        "without washout, earlier outcomes are history and the next one counts",
        """
        subject_id | time       | code
        1          | 2012-01-01 | OUT
        1          | 2013-02-01 | OUT
        2          | 2013-01-01 | OUT
        2          | 2013-03-02 | A
        """,
        """
        subject_id | prediction_time | duration | event
        1          | 2013-01-01      | 31       | 1
        2          | 2013-01-01      | 60       | 0
        """,
        {"washout": False},
    ),
    Case(
        "death ends follow-up: what is recorded later does not count",
        """
        subject_id | time       | code
        1          | 2012-01-01 | A
        1          | 2013-01-03 | MEDS_DEATH
        1          | 2013-01-05 | OUT
        2          | 2012-01-01 | A
        2          | 2013-01-03 | OUT         # at the time of death: counts
        2          | 2013-01-03 | MEDS_DEATH
        3          | 2012-01-01 | OUT         # here so that a training subject has one
        """,
        """
        subject_id | prediction_time | duration | event
        1          | 2013-01-01      | 2        | 0
        2          | 2013-01-01      | 2        | 1
        """,
        removed={"record over": 1},
    ),
    Case(
        "death as the outcome; certificates written later are no second death",
        """
        subject_id | time       | code
        1          | 2013-01-03 | MEDS_DEATH
        1          | 2013-01-05 | CERTIFICATE
        2          | 2013-01-05 | A
        """,
        """
        subject_id | prediction_time | duration | event
        1          | 2013-01-01      | 2        | 1
        2          | 2013-01-01      | 4        | 0
        """,
        {"outcome": "MEDS_DEATH"},
    ),
    Case(
        "a death dated at midnight leaves no prediction later that day",
        """
        subject_id | time             | code
        1          | 2013-05-01 00:00 | MEDS_DEATH
        1          | 2013-05-01 08:00 | ADMISSION   # recorded after the dated death
        1          | 2013-05-01 09:00 | OUT
        2          | 2013-05-01 08:00 | ADMISSION
        2          | 2013-05-01 20:00 | MEDS_DEATH  # a death with its hour
        2          | 2013-05-01 14:00 | OUT
        3          | 2013-04-30 08:00 | ADMISSION
        3          | 2013-05-01 00:00 | MEDS_DEATH  # dated: ends follow-up at midnight
        3          | 2013-05-01 14:00 | OUT
        """,
        """
        subject_id | prediction_time     | duration           | event
        2          | 2013-05-01 08:00    | 0.25               | 1
        3          | 2013-04-30 08:00    | 0.6666666666666666 | 0
        """,
        {"index": {"event": "first", "code": "ADMISSION"}},
        {"dead": 1},
    ),
    Case(
        "index by date: before birth, after death, after the last record, nothing after it",
        """
        subject_id | time       | code
        1          | 2014-01-01 | MEDS_BIRTH
        1          | 2015-01-01 | OUT
        2          | 2012-01-01 | MEDS_DEATH
        2          | 2015-01-01 | OUT
        3          | 2012-01-01 | OUT
        4          | 2013-01-01 | A          # the last record is at prediction_time
        5          | 2013-01-02 | OUT
        6          |            | SEX//F     # never seen
        """,
        """
        subject_id | prediction_time | duration | event
        5          | 2013-01-01      | 1        | 1
        """,
        removed={"before birth": 1, "dead": 1, "record over": 2, "no follow-up": 1},
    ),
    Case(
        "index by age: the birthday begins at midnight, leap births on 28 February",
        """
        subject_id | time             | code
        1          | 1960-05-05 17:00 | MEDS_BIRTH
        1          | 2010-05-05 06:00 | OUT
        2          | 1960-02-29       | MEDS_BIRTH
        2          | 2010-03-01       | OUT
        3          | 1960-05-05       | MEDS_BIRTH
        3          | 2010-05-04       | OUT         # does not live to see it in the record
        4          | 2010-05-06       | OUT         # birth unknown
        """,
        """
        subject_id | prediction_time | duration | event
        1          | 2010-05-05      | 0.25     | 1
        2          | 2010-02-28      | 1        | 1
        """,
        {"index": {"age": 50}},
        {"no birth": 1, "record over": 1},
    ),
    Case(
        "index by first event: the first, never a static row; nobody without one",
        """
        subject_id | time             | code
        1          |                  | E11.9
        1          | 2010-01-01 10:00 | E11.65
        1          | 2010-02-01       | E11.9
        1          | 2010-02-10 10:00 | OUT
        2          | 2010-01-01       | E10.1
        2          | 2010-02-01       | OUT
        """,
        """
        subject_id | prediction_time  | duration | event
        1          | 2010-01-01 10:00 | 40       | 1
        """,
        {"index": {"event": "first", "code": {"prefix": "E11"}}},
        {"no index": 1},
    ),
    Case(
        "ages in require: completed years, both ends included",
        """
        subject_id | time       | code
        1          | 1995-01-01 | MEDS_BIRTH  # 18 today
        1          | 2014-01-01 | OUT
        2          | 1995-01-02 | MEDS_BIRTH  # 17
        2          | 2014-01-01 | OUT
        3          | 1947-01-02 | MEDS_BIRTH  # 65 for one more day
        3          | 2014-01-01 | OUT
        4          | 1947-01-01 | MEDS_BIRTH  # 66 today
        4          | 2014-01-01 | OUT
        5          | 2014-01-01 | OUT
        """,
        """
        subject_id | prediction_time | duration | event
        1          | 2013-01-01      | 365      | 1
        3          | 2013-01-01      | 365      | 1
        """,
        {"require": {"visits": 0, "age_min": 18, "age_max": 65}},
        {"no birth": 1, "age_min": 1, "age_max": 1},
    ),
    Case(
        "history and visits are counted in what a model may read",
        """
        subject_id | time             | code
        1          | 2000-01-01       | MEDS_BIRTH  # no visit
        1          | 2010-05-01 00:00 | A           # from input.from on
        1          | 2012-01-01       | A
        1          | 2014-01-01       | OUT
        2          | 2010-04-30       | A           # before input.from
        2          | 2012-01-01       | A
        2          | 2014-01-01       | OUT
        3          | 2010-06-01 08:00 | A
        3          | 2010-06-01 20:00 | A           # the same day is one visit
        3          |                  | SEX//F      # static is no visit
        3          | 2013-01-02       | A           # after prediction_time
        3          | 2014-01-01       | OUT
        4          | 2012-06-01       | A
        4          | 2013-01-01       | A           # at prediction_time: read
        4          | 2014-01-01       | OUT
        """,
        """
        subject_id | prediction_time | duration | event
        1          | 2013-01-01      | 365      | 1
        """,
        {"require": {"visits": 2, "history_days": 365}, "input": {"from": dt.date(2010, 5, 1)}},
        {"history_days": 1, "visits": 2},
    ),
    Case(
        "exclude: at or before prediction_time, static rows always, values in their range",
        """
        subject_id | time       | code   | numeric_value
        1          | 2013-01-01 | HBA1C  | 6.5
        1          | 2014-01-01 | OUT    |
        2          | 2012-01-01 | HBA1C  | 6.4
        2          | 2012-02-01 | HBA1C  |
        2          | 2012-03-01 | HBA1C  | nan
        2          | 2013-01-02 | HBA1C  | 9.9
        2          | 2014-01-01 | OUT    |
        3          |            | SEX//M |
        3          | 2014-01-01 | OUT    |
        """,
        """
        subject_id | prediction_time | duration | event
        2          | 2013-01-01      | 365      | 1
        """,
        {"exclude": [{"code": "HBA1C", "value_min": 6.5}, "SEX//M"]},
        {"exclude 1": 1, "exclude 2": 1},
    ),
    Case(
        "an outcome with a range; limits are compared as stored (float32)",
        """
        subject_id | time       | code | numeric_value
        1          | 2013-01-02 | K    | 0.2
        1          | 2013-01-03 | K    | 0.1
        2          | 2013-01-03 | K    | 0.11
        """,
        """
        subject_id | prediction_time | duration | event
        1          | 2013-01-01      | 2        | 1
        2          | 2013-01-01      | 2        | 0
        """,
        {"outcome": {"code": {"any": ["K", "POTASSIUM"]}, "value_max": 0.1}},
    ),
    Case(
        "a regular expression is searched for anywhere in the code",
        """
        subject_id | time       | code
        1          | 2013-01-02 | DX//ICD10CM//I21.4
        2          | 2013-01-02 | DX//ICD10CM//I25
        """,
        """
        subject_id | prediction_time | duration | event
        1          | 2013-01-01      | 1        | 1
        2          | 2013-01-01      | 1        | 0
        """,
        {"outcome": {"code": {"regex": "//I2[1-4]"}}},
    ),
    Case(
        "rules are counted in order, each on what the one before left",
        """
        subject_id | time       | code
        1          | 2012-01-01 | BAD
        1          | 2012-01-01 | OUT
        2          | 2012-01-01 | OUT
        2          | 2013-01-01 | A
        3          | 2013-01-01 | A
        4          | 2013-01-05 | OUT
        1          | 2013-01-01 | A
        """,
        """
        subject_id | prediction_time | duration | event
        4          | 2013-01-01      | 4        | 1
        """,
        {"exclude": "BAD"},
        {"exclude 1": 1, "washout": 1, "no follow-up": 1},
    ),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_case(case: Case, tmp_path: Path) -> None:
    cohort = build_cohort(ascii_tables.dataset(case.events, tmp_path / "meds"), task(**case.task))
    assert_frame_equal(cohort.table.drop("split"), ascii_tables.labels(case.labels))
    removed = {rule: count for rule, count in cohort.attrition.select("rule", "removed").iter_rows() if count}
    assert removed == case.removed
    assert_attrition_adds_up(cohort)


def assert_attrition_adds_up(cohort: Cohort) -> None:
    removed, remaining = cohort.attrition["removed"].to_list(), cohort.attrition["remaining"].to_list()
    assert all(
        before - gone == after for before, gone, after in zip(remaining, removed[1:], remaining[1:], strict=False)
    )
    assert remaining[-1] == cohort.table.height


TWO_PATIENTS = """
subject_id | time       | code
1          | 2010-01-01 | ICD10CM//I21.4
1          | 2013-02-01 | OUT
2          | 2010-01-01 | ICD10CM//I21.9
2          | 2013-02-01 | A
"""


class TestLabelFiles:
    def write(self, folder: Path, times: dict[int, dt.datetime], **more: Any) -> Path:
        rows = {"subject_id": list(times), "prediction_time": list(times.values())}
        pl.DataFrame(rows | more, schema_overrides={"subject_id": pl.Int64}).write_parquet(folder / "labels.parquet")
        return folder / "labels.parquet"

    def test_each_subject_has_its_own_time(self, tmp_path: Path) -> None:
        file = self.write(
            tmp_path, {1: dt.datetime(2012, 1, 1), 9: dt.datetime(2012, 1, 1)}, boolean_value=[True, True]
        )
        data = ascii_tables.dataset(TWO_PATIENTS, tmp_path / "meds")
        cohort = build_cohort(data, task(index={"labels": file}))
        assert cohort.table.select("subject_id", "prediction_time").rows() == [(1, dt.datetime(2012, 1, 1))]
        removed = dict(cohort.attrition.select("rule", "removed").iter_rows())
        assert removed["no records"] == 1
        assert removed["no index"] == 1
        assert_attrition_adds_up(cohort)

    def test_shards_in_a_folder(self, tmp_path: Path) -> None:
        for subject in (1, 2):
            folder = tmp_path / "labels" / str(subject)
            folder.mkdir(parents=True)
            self.write(folder, {subject: dt.datetime(2012, 1, 1)})
        data = ascii_tables.dataset(TWO_PATIENTS, tmp_path / "meds")
        assert build_cohort(data, task(index={"labels": tmp_path / "labels"})).table.height == 2

    def test_a_subject_twice(self, tmp_path: Path) -> None:
        times = [dt.datetime(2012, 1, 1), dt.datetime(2012, 1, 2)]
        pl.DataFrame({"subject_id": [1, 1], "prediction_time": times}).write_parquet(tmp_path / "labels.parquet")
        data = ascii_tables.dataset(TWO_PATIENTS, tmp_path / "meds")
        with pytest.raises(EhrError, match="one prediction a subject") as error:
            build_cohort(data, task(index={"labels": tmp_path / "labels.parquet"}))
        assert error.value.code == Exit.COHORT

    @pytest.mark.parametrize(
        ("columns", "said"),
        [
            ({"subject_id": [1]}, "prediction_time is missing"),
            ({"subject_id": ["1"], "prediction_time": [dt.datetime(2012, 1, 1)]}, "String"),
            ({"subject_id": [1], "prediction_time": [dt.datetime(2012, 1, 1, tzinfo=dt.UTC)]}, "UTC"),
            ({"subject_id": [1, 2], "prediction_time": [dt.datetime(2012, 1, 1), None]}, "null"),
        ],
    )
    def test_files_that_are_no_labels(self, tmp_path: Path, columns: dict[str, list[Any]], said: str) -> None:
        pl.DataFrame(columns).write_parquet(tmp_path / "labels.parquet")
        data = ascii_tables.dataset(TWO_PATIENTS, tmp_path / "meds")
        with pytest.raises(EhrError, match=said) as error:
            build_cohort(data, task(index={"labels": tmp_path / "labels.parquet"}))
        assert error.value.code == Exit.DATA

    @pytest.mark.parametrize("content", [None, b"no parquet"])
    def test_no_such_file(self, tmp_path: Path, content: bytes | None) -> None:
        if content is not None:
            (tmp_path / "labels.parquet").write_bytes(content)
        data = ascii_tables.dataset(TWO_PATIENTS, tmp_path / "meds")
        with pytest.raises(EhrError, match="parquet") as error:
            build_cohort(data, task(index={"labels": tmp_path / "labels.parquet"}))
        assert error.value.code == Exit.DATA


class TestMistakes:
    @pytest.mark.parametrize(
        ("settings", "where"),
        [
            ({"outcome": "ICD10CM//I21.44"}, "outcome"),
            ({"outcome": {"code": {"prefix": "ICD10CM//I22."}}}, "outcome"),
            ({"outcome": {"code": {"regex": "ICD10CM//I21[.]$"}}}, "outcome"),
            ({"exclude": ["OUT", "ICD9CM//I21.4"]}, "exclude.1"),
            ({"index": {"event": "first", "code": "ICD10//I21.4"}}, "index.code"),
        ],
    )
    def test_a_code_that_occurs_nowhere(self, tmp_path: Path, settings: dict[str, Any], where: str) -> None:
        with pytest.raises(EhrError, match=r"near codes: .*ICD10CM//I21\.4") as error:
            build_cohort(ascii_tables.dataset(TWO_PATIENTS, tmp_path / "meds"), task(**settings))
        assert error.value.code == Exit.COHORT
        assert error.value.where == f"task spec, {where}"

    def test_nobody_left(self, tmp_path: Path) -> None:
        data = ascii_tables.dataset(TWO_PATIENTS, tmp_path / "meds")
        with pytest.raises(EhrError, match="nobody is left") as error:
            build_cohort(data, task(index={"date": dt.date(2020, 1, 1)}))
        assert error.value.code == Exit.COHORT
        assert "prediction_time after the last record" in str(error.value)

    @pytest.mark.parametrize(("horizon", "split"), [(None, "held_out"), (30.0, "train")])
    def test_no_outcome_in_training(self, tmp_path: Path, horizon: float | None, split: str) -> None:
        data = ascii_tables.dataset(TWO_PATIENTS, tmp_path / "meds", {1: split})
        with pytest.raises(EhrError, match=r"no outcome \(OUT\).*in the training split") as error:
            build_cohort(data, task(horizon_days=horizon))
        assert error.value.code == Exit.COHORT

    def test_a_time_zone_in_the_task(self, tmp_path: Path) -> None:
        data = ascii_tables.dataset(TWO_PATIENTS, tmp_path / "meds")
        with pytest.raises(EhrError, match="time zone") as error:
            build_cohort(data, task(index={"date": dt.datetime(2013, 1, 1, tzinfo=dt.UTC)}))
        assert error.value.code == Exit.CONFIG

    def test_a_subject_without_a_split(self, tmp_path: Path) -> None:
        data = ascii_tables.dataset(TWO_PATIENTS, tmp_path / "meds")
        splits = tmp_path / "meds/metadata/subject_splits.parquet"
        pl.read_parquet(splits).head(1).write_parquet(splits)
        with pytest.raises(EhrError, match="1 of the 2 subjects") as error:
            build_cohort(data, task())
        assert error.value.code == Exit.DATA


def many_patients(count: int) -> pl.DataFrame:
    """Subjects with one visit before 2013; every third has the outcome in 2013, after its number of days."""
    day = dt.datetime(2013, 1, 1)
    rows = [(i, day - dt.timedelta(days=9), "A") for i in range(count)]
    rows += [(i, day + dt.timedelta(days=1 + i % 60), "OUT" if i % 3 == 0 else "A") for i in range(count)]
    table = pl.DataFrame(rows, schema=["subject_id", "time", "code"], orient="row")
    return table.with_columns(numeric_value=pl.lit(None, pl.Float32)).cast({"time": pl.Datetime("us")})


class TestCohort:
    @pytest.fixture
    def cohort(self, tmp_path: Path) -> Cohort:
        data = ascii_tables.on_disk(many_patients(300), tmp_path / "meds")
        (tmp_path / "meds/metadata/subject_splits.parquet").unlink()
        return build_cohort(data, task(horizon_days=30), split_seed=3)

    def test_types_and_splits(self, cohort: Cohort) -> None:
        expected = {"subject_id": pl.Int64, "prediction_time": pl.Datetime("us"), "duration": pl.Float64}
        assert dict(cohort.table.schema) == expected | {"event": pl.Int8, "split": pl.String}
        assert cohort.table["subject_id"].is_sorted()
        shares = cohort.table["split"].value_counts(normalize=True)
        assert dict(shares.iter_rows())["train"] == pytest.approx(0.7, abs=0.08)

    def test_splits_follow_their_seed_only(self, cohort: Cohort, tmp_path: Path) -> None:
        data = ascii_tables.on_disk(many_patients(200), tmp_path / "fewer")
        (tmp_path / "fewer/metadata/subject_splits.parquet").unlink()
        fewer = build_cohort(data, task(), split_seed=3).table.select("subject_id", "split")
        assert_frame_equal(fewer, cohort.table.select("subject_id", "split").head(200))
        other = build_cohort(data, task(), split_seed=4).table["split"]
        assert (other != fewer["split"]).any()

    def test_fingerprint(self, cohort: Cohort) -> None:
        assert cohort.with_splits(np.array(["train"] * 300)).fingerprint == cohort.fingerprint
        for name, change in {"duration": pl.col("duration") + 1e-9, "event": pl.col("event") ^ 1}.items():
            changed = Cohort(
                cohort.table.with_columns(change.cast(cohort.table.schema[name])), cohort.attrition, task()
            )
            assert changed.fingerprint != cohort.fingerprint
        assert len(cohort.fingerprint) == 32

    def test_with_splits(self, cohort: Cohort) -> None:
        split = np.array(["held_out"] * 299 + ["train"])
        assert cohort.with_splits(split).table["split"].to_list() == split.tolist()
        with pytest.raises(EhrError, match="expected 300 splits, found 2"):
            cohort.with_splits(split[:2])

    def test_written_and_read_again(self, cohort: Cohort, tmp_path: Path) -> None:
        cohort.write(tmp_path / "cohort")
        again = Cohort.read(tmp_path / "cohort")
        assert_frame_equal(again.table, cohort.table)
        assert_frame_equal(again.attrition, cohort.attrition)
        assert (again.task, again.fingerprint) == (cohort.task, cohort.fingerprint)
        cohort.write(tmp_path / "cohort")  # a cohort may be replaced
        assert sorted(path.name for path in tmp_path.iterdir()) == ["cohort", "meds"]

    def test_meds_labels(self, cohort: Cohort, tmp_path: Path) -> None:
        cohort.write(tmp_path / "cohort")
        files = sorted((tmp_path / "cohort/labels").iterdir())
        assert [file.stem for file in files] == ["held_out", "train", "tuning"]
        for file in files:
            meds.LabelSchema.validate(pq.read_table(file))
        labels = pl.concat([pl.read_parquet(file) for file in files]).sort("subject_id")
        event, duration = pl.col("event") == 1, pl.col("duration")
        assert labels.height == cohort.table.filter(event | (duration >= 30)).height < 300
        positive = labels.filter(pl.col("boolean_value"))["subject_id"]
        assert positive.to_list() == cohort.table.filter(event & (duration <= 30))["subject_id"].to_list()

    def test_no_horizon_no_labels(self, cohort: Cohort, tmp_path: Path) -> None:
        without = Cohort(cohort.table, cohort.attrition, task())
        without.write(tmp_path / "cohort")
        assert not (tmp_path / "cohort/labels").exists()
        assert "No MEDS label files" in without.describe()
        assert "within 30 days" in cohort.describe()

    def test_a_foreign_folder_stays(self, cohort: Cohort, tmp_path: Path) -> None:
        (tmp_path / "notes").mkdir()
        (tmp_path / "notes/mine.txt").write_text("mine")
        with pytest.raises(EhrError, match="something else") as error:
            cohort.write(tmp_path / "notes")
        assert error.value.code == Exit.ENVIRONMENT
        assert [path.name for path in (tmp_path / "notes").iterdir()] == ["mine.txt"]

    def test_an_unwritable_folder(self, cohort: Cohort, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("in the way")
        with pytest.raises(EhrError, match="cannot be written") as error:
            cohort.write(tmp_path / "file" / "cohort")
        assert error.value.code == Exit.ENVIRONMENT

    def test_a_killed_write_leaves_the_old(self, cohort: Cohort, tmp_path: Path, monkeypatch: Any) -> None:
        cohort.write(tmp_path / "cohort")
        monkeypatch.setattr(Cohort, "_write_into", lambda self, folder: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            cohort.write(tmp_path / "cohort")
        assert Cohort.read(tmp_path / "cohort").fingerprint == cohort.fingerprint
        assert sorted(path.name for path in tmp_path.iterdir()) == ["cohort", "meds"]

    @pytest.mark.parametrize("name", ["cohort.parquet", "attrition.parquet", "task.json"])
    def test_reading_half_a_cohort(self, cohort: Cohort, tmp_path: Path, name: str) -> None:
        cohort.write(tmp_path / "cohort")
        (tmp_path / "cohort" / name).write_bytes(b"{")
        with pytest.raises(EhrError, match="damaged") as error:
            Cohort.read(tmp_path / "cohort")
        assert error.value.code == Exit.COHORT
        (tmp_path / "cohort" / name).unlink()
        with pytest.raises(EhrError, match=f"{name} is missing"):
            Cohort.read(tmp_path / "cohort")

    def test_reading_another_table(self, cohort: Cohort, tmp_path: Path) -> None:
        cohort.write(tmp_path / "cohort")
        cohort.table.drop("event").write_parquet(tmp_path / "cohort/cohort.parquet")
        with pytest.raises(EhrError, match="unexpected columns"):
            Cohort.read(tmp_path / "cohort")

    def test_described_without_small_cells(self, tmp_path: Path) -> None:
        data = ascii_tables.dataset(CASES[1].events, tmp_path / "meds")
        cohort = build_cohort(data, task())
        cohort.write(tmp_path / "cohort")
        written = pl.read_csv(tmp_path / "cohort/attrition.csv", infer_schema=False)
        assert set(written["removed"]) | set(written["remaining"]) == {"0", "<10"}
        assert "<10" in cohort.describe()


def test_small_cells_cannot_be_had_by_subtraction() -> None:
    exact = pl.DataFrame({"rule": ["subjects", "visits"], "removed": [0, 2], "remaining": [724, 722], "why": ["", ""]})
    assert for_people(exact)["removed"].to_list() == ["0", "<10"]
    assert for_people(exact)["remaining"].to_list() == ["~720", "~720"]
    assert suppress([10, 0, 12]) == ["10", "0", "12"]


class TestPredictionRows:
    def test_no_outcome_is_needed(self, tmp_path: Path) -> None:
        data = ascii_tables.dataset(
            """
            subject_id | time       | code
            1          | 2012-01-01 | A           # last seen a year before
            2          | 2012-01-01 | BAD
            3          | 2012-01-01 | MEDS_DEATH
            """,
            tmp_path / "meds",
        )
        rows, attrition = eligible(data, task(exclude=["BAD", "ABSENT"], outcome="NEVER"))
        assert rows.rows() == [(1, dt.datetime(2013, 1, 1))]
        assert dict(attrition.select("rule", "removed").iter_rows())["dead"] == 1

    def test_birthdays_that_have_not_come(self, tmp_path: Path) -> None:
        data = ascii_tables.dataset(
            """
            subject_id | time       | code
            1          | 1960-01-01 | MEDS_BIRTH
            1          | 2009-06-01 | A
            2          | 1970-01-01 | MEDS_BIRTH   # 50 in 2020, the data end in 2012
            2          | 2012-01-01 | A
            """,
            tmp_path / "meds",
        )
        rows = prediction_rows(data, task(index={"age": 50}))
        assert rows.rows() == [(1, dt.datetime(2010, 1, 1))]

    def test_a_label_file_instead(self, tmp_path: Path) -> None:
        data = ascii_tables.dataset(TWO_PATIENTS, tmp_path / "meds")
        file = TestLabelFiles().write(tmp_path, {2: dt.datetime(2030, 1, 1)})
        assert prediction_rows(data, task(), labels=file).rows() == [(2, dt.datetime(2030, 1, 1))]

    def test_the_cohort_is_among_them(self, tmp_path: Path) -> None:
        data = ascii_tables.on_disk(many_patients(30), tmp_path / "meds")
        question = task(require={"visits": 1})
        kept = build_cohort(data, question).table.select("subject_id", "prediction_time")
        assert_frame_equal(prediction_rows(data, question).join(kept, on=kept.columns, how="semi"), kept)

    def test_nobody(self, tmp_path: Path) -> None:
        data = ascii_tables.dataset(TWO_PATIENTS, tmp_path / "meds")
        with pytest.raises(EhrError, match="nobody is left"):
            prediction_rows(data, task(index={"event": "first", "code": "ABSENT"}))


DAYS = ["1999-12-31", "2000-02-28", "2000-02-29", "2000-03-01", "2001-02-28", "2001-03-01", "2001-08-29", "2002-02-28"]
CLOCKS = ["00:00", "08:00", "23:59:59.999999"]
TIMES = st.builds("{}T{}".format, st.sampled_from(DAYS), st.sampled_from(CLOCKS)).map(dt.datetime.fromisoformat)
CODES = ["MEDS_BIRTH", "MEDS_DEATH", "A", "B/1", "B/2", "OUT"]
ROWS = st.builds(
    reference.Row,
    time=st.none() | TIMES,
    code=st.sampled_from([*CODES, "A", "OUT"]),
    value=st.sampled_from([None, float("nan"), 1.0, 6.5]),
)
RECORDS = st.lists(ROWS, min_size=1, max_size=8)
PREDICATES = st.builds(
    lambda code, low, high: {"code": code, "value_min": low, "value_max": high},
    st.sampled_from(["A", "OUT", "MEDS_DEATH", {"prefix": "B/"}, {"regex": "[/U]"}, {"any": ["A", "B/2"]}]),
    st.sampled_from([None, None, 1.0, 2.0]),
    st.sampled_from([None, None, 1.0]),
)
INDICES = st.one_of(
    st.builds(lambda years: {"age": years}, st.sampled_from([0.0, 0.5, 1.0, 2.0])),
    st.builds(lambda time: {"date": time}, TIMES),
    st.builds(lambda day: {"date": dt.date.fromisoformat(day)}, st.sampled_from(DAYS)),
    st.builds(lambda code: {"event": "first", "code": code}, st.sampled_from(["A", {"prefix": "B"}, "OUT"])),
)
REQUIRES = st.fixed_dictionaries(
    {"visits": st.sampled_from([0, 0, 1, 2]), "history_days": st.sampled_from([0.0, 0.0, 1.0, 365.0])},
    optional={"age_min": st.sampled_from([1.0, 0.5]), "age_max": st.sampled_from([0.0, 1.0, 1.5])},
)
TASKS = st.fixed_dictionaries(
    {
        "index": INDICES,
        "outcome": PREDICATES,
        "require": REQUIRES,
        "exclude": st.lists(PREDICATES, max_size=2),
        "washout": st.booleans(),
        "input": st.just({}) | st.builds(lambda time: {"from": time}, TIMES),
    }
)
EVERY_CODE = [reference.Row(None, code, None) for code in CODES]


@settings(max_examples=100, deadline=None)
@given(records=st.lists(RECORDS, min_size=1, max_size=5), settings=TASKS)
def test_the_fast_rules_agree_with_the_plain_ones(records: list[list[reference.Row]], settings: dict[str, Any]) -> None:
    question = task(**settings)
    by_subject = dict(enumerate([EVERY_CODE, *records]))
    expected, removed = reference.cohort(by_subject, question)
    frame = pl.DataFrame(
        [(subject, row.time, row.code, row.value) for subject, record in by_subject.items() for row in record],
        schema=ascii_tables.EVENTS,
        orient="row",
    )
    with tempfile.TemporaryDirectory() as folder:
        data = ascii_tables.on_disk(frame, Path(folder) / "meds")
        if not any(label.event for label in expected.values()):
            with pytest.raises(EhrError, match="no outcome" if expected else "nobody is left"):
                build_cohort(data, question)
            return
        cohort = build_cohort(data, question)
    rows = {subject: (time, event) for subject, time, _, event, _ in cohort.table.iter_rows()}
    assert rows == {subject: (label.prediction_time, label.event) for subject, label in expected.items()}
    durations = [expected[subject].duration for subject in cohort.table["subject_id"]]
    np.testing.assert_allclose(cohort.table["duration"].to_numpy(), durations, rtol=1e-12)
    counted = {rule: count for rule, count in cohort.attrition.select("rule", "removed").iter_rows() if count}
    assert Counter(counted) == removed


MANUAL = Path(__file__).parents[1] / "docs/reference/task-language.md"


def manual_task(number: int) -> TaskConfig:
    block = re.findall(r"```yaml\n(.*?)```", MANUAL.read_text(encoding="utf-8"), re.DOTALL)[number]
    return parse(TaskConfig, yaml.safe_load(block), str(MANUAL))


def test_the_manual_names_every_key_and_rule() -> None:
    text = MANUAL.read_text(encoding="utf-8")
    keys = {name for name in TaskConfig.model_fields if f"`{name}" not in text}
    assert not keys, "keys of the task language without a line in the manual"
    table = text[text.index("| rule | removes |") : text.index("Then: nobody left")]
    written = re.findall("`([^`]*)`", "".join(line.split("|")[1] for line in table.strip().splitlines()[2:]))
    every = task(exclude=["A", "B"], require={"age_min": 1, "age_max": 2, "history_days": 1})
    rules = [*birth_rules(every), *index_rules(every.index, follow_up=True), *require_rules(every.require)]
    rules += [*exclude_rules(every), *outcome_rules(every)]
    assert written == ["no records", *(rule.name for rule in rules)]


def test_the_manuals_second_example(tmp_path: Path) -> None:
    records = """
        subject_id | time       | code           | numeric_value
        1          | 1960-03-01 | MEDS_BIRTH     |
        1          | 2010-01-01 | ICD10CM//I10   |
        1          | 2012-01-01 | ICD10CM//E11.9 |
        1          | 2012-01-31 | ICD10CM//I21.9 |
        2          | 1960-03-01 | MEDS_BIRTH     |
        2          | 2009-01-01 | LOINC//33914-3 | 30    # at the limit
        2          | 2010-01-01 | ICD10CM//C50.1 |
        2          | 2012-01-01 | ICD10CM//E11.9 |
        2          | 2012-01-31 | ICD10CM//I21.4 |
        """
    cohort = build_cohort(ascii_tables.dataset(records, tmp_path / "meds"), manual_task(1))
    assert cohort.table.select("subject_id", "duration", "event").rows() == [(1, 30.0, 1)]
    assert cohort.attrition.filter(pl.col("removed") > 0)["rule"].to_list() == ["exclude 1"]


@pytest.fixture(scope="module")
def synthea(tmp_path_factory: pytest.TempPathFactory) -> MedsDataset:
    source = EHR_DATA / "synthea_1k"
    if not source.is_dir():
        pytest.skip(f"{source} is not there")
    return convert_synthea(source, tmp_path_factory.mktemp("synthea") / "meds").dataset


def test_synthea_death_within_five_years(synthea: MedsDataset) -> None:
    """The manual's first example; its counts were had once more from the raw CSV files, without this package."""
    cohort = build_cohort(synthea, manual_task(0))
    died = pl.col("event") == 1
    assert cohort.table.height == 722
    assert cohort.table.filter(died & (pl.col("duration") <= 1826.25)).height == 36
    assert cohort.table.filter(died).height == 47
    removed = dict(cohort.attrition.select("rule", "removed").iter_rows())
    assert removed["subjects"] == removed["no birth"] == removed["no follow-up"] == 0
    assert removed["before birth"] + removed["dead"] + removed["age_min"] == 1171 - 724
    assert removed["visits"] == 2
