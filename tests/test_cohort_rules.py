"""The fast rules held against a plain reference; prediction rows; label files; users' mistakes."""

from __future__ import annotations

import datetime as dt
from collections import Counter
from dataclasses import astuple
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

import cohort_reference as reference
from ascii_tables import EVENTS, TWO_PATIENTS, dataset, task
from ehrsequencing.cohort import build_cohort, cut, eligible, prediction_rows
from ehrsequencing.cohort.attrition import Attrition
from ehrsequencing.cohort.build import at_evaluation
from ehrsequencing.cohort.rows import Question, label_rows
from ehrsequencing.cohort.subjects import KEYS
from ehrsequencing.errors import EhrError, Exit


class TestLabelFiles:
    def write(self, folder: Path, times: dict[int, dt.datetime], **more: Any) -> Path:
        rows = {"subject_id": list(times), "prediction_time": list(times.values())}
        pl.DataFrame(rows | more, schema_overrides={"subject_id": pl.Int64}).write_parquet(folder / "labels.parquet")
        return folder / "labels.parquet"

    def test_each_subject_has_its_own_time(self, tmp_path: Path) -> None:
        file = self.write(
            tmp_path, {1: dt.datetime(2012, 1, 1), 9: dt.datetime(2012, 1, 1)}, boolean_value=[True, True]
        )
        data = dataset(TWO_PATIENTS, tmp_path / "meds")
        cohort = build_cohort(data, task(index={"labels": file}))
        assert cohort.table.select("subject_id", "prediction_time").rows() == [(1, dt.datetime(2012, 1, 1))]
        removed = dict(cohort.attrition.select("rule", "removed").iter_rows())
        assert removed["no records"] == 1
        assert removed["no index"] == 1
        assert cohort.attrition["remaining"].to_list()[:3] == [3, 2, 1]

    def test_shards_in_a_folder(self, tmp_path: Path) -> None:
        for subject in (1, 2):
            folder = tmp_path / "labels" / str(subject)
            folder.mkdir(parents=True)
            self.write(folder, {subject: dt.datetime(2012, 1, 1)})
        data = dataset(TWO_PATIENTS, tmp_path / "meds")
        assert build_cohort(data, task(index={"labels": tmp_path / "labels"})).table.height == 2

    def test_a_subject_at_several_times(self, tmp_path: Path) -> None:
        times = [dt.datetime(2012, 1, 2), dt.datetime(2012, 1, 1)]
        pl.DataFrame({"subject_id": [1, 1], "prediction_time": times}).write_parquet(tmp_path / "labels.parquet")
        data = dataset(TWO_PATIENTS, tmp_path / "meds")
        cohort = build_cohort(data, task(index={"labels": tmp_path / "labels.parquet"}))
        assert cohort.table.select("subject_id", "prediction_time").rows() == [(1, times[1]), (1, times[0])]

    def test_a_row_twice(self, tmp_path: Path) -> None:
        times = [dt.datetime(2012, 1, 1), dt.datetime(2012, 1, 1)]
        pl.DataFrame({"subject_id": [1, 1], "prediction_time": times}).write_parquet(tmp_path / "labels.parquet")
        data = dataset(TWO_PATIENTS, tmp_path / "meds")
        with pytest.raises(EhrError, match="1 rows that repeat") as error:
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
        data = dataset(TWO_PATIENTS, tmp_path / "meds")
        with pytest.raises(EhrError, match=said) as error:
            build_cohort(data, task(index={"labels": tmp_path / "labels.parquet"}))
        assert error.value.code == Exit.DATA

    @pytest.mark.parametrize("content", [None, b"no parquet"])
    def test_no_such_file(self, tmp_path: Path, content: bytes | None) -> None:
        if content is not None:
            (tmp_path / "labels.parquet").write_bytes(content)
        data = dataset(TWO_PATIENTS, tmp_path / "meds")
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
            build_cohort(dataset(TWO_PATIENTS, tmp_path / "meds"), task(**settings))
        assert error.value.code == Exit.COHORT
        assert error.value.where == f"task spec, {where}"

    def test_nobody_left(self, tmp_path: Path) -> None:
        data = dataset(TWO_PATIENTS, tmp_path / "meds")
        with pytest.raises(EhrError, match="nobody is left") as error:
            build_cohort(data, task(index={"date": dt.date(2020, 1, 1)}))
        assert error.value.code == Exit.COHORT
        assert "prediction_time after the last record" in str(error.value)

    @pytest.mark.parametrize(("horizon", "split"), [(None, "held_out"), (30.0, "train")])
    def test_no_outcome_in_training(self, tmp_path: Path, horizon: float | None, split: str) -> None:
        data = dataset(TWO_PATIENTS, tmp_path / "meds", {1: split})
        with pytest.raises(EhrError, match=r"no outcome \(OUT\).*in the training split") as error:
            build_cohort(data, task(horizon_days=horizon))
        assert error.value.code == Exit.COHORT

    def test_a_time_zone_in_the_task(self, tmp_path: Path) -> None:
        data = dataset(TWO_PATIENTS, tmp_path / "meds")
        with pytest.raises(EhrError, match="time zone") as error:
            build_cohort(data, task(index={"date": dt.datetime(2013, 1, 1, tzinfo=dt.UTC)}))
        assert error.value.code == Exit.CONFIG

    def test_a_subject_without_a_split(self, tmp_path: Path) -> None:
        data = dataset(TWO_PATIENTS, tmp_path / "meds")
        splits = tmp_path / "meds/metadata/subject_splits.parquet"
        pl.read_parquet(splits).head(1).write_parquet(splits)
        with pytest.raises(EhrError, match="1 of the 2 subjects") as error:
            build_cohort(data, task())
        assert error.value.code == Exit.DATA


class TestPredictionRows:
    def test_no_outcome_is_needed(self, tmp_path: Path) -> None:
        data = dataset(
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
        data = dataset(
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
        data = dataset(TWO_PATIENTS, tmp_path / "meds")
        file = TestLabelFiles().write(tmp_path, {2: dt.datetime(2030, 1, 1)})
        assert prediction_rows(data, task(), labels=file).rows() == [(2, dt.datetime(2030, 1, 1))]

    def test_the_cohort_is_among_them(self, tmp_path: Path) -> None:
        data = dataset(TWO_PATIENTS, tmp_path / "meds")
        question = task(require={"visits": 1})
        kept = build_cohort(data, question).table.select("subject_id", "prediction_time")
        assert_frame_equal(prediction_rows(data, question).join(kept, on=kept.columns, how="semi"), kept)

    def test_nobody(self, tmp_path: Path) -> None:
        data = dataset(TWO_PATIENTS, tmp_path / "meds")
        with pytest.raises(EhrError, match="nobody is left"):
            prediction_rows(data, task(index={"event": "first", "code": "ABSENT"}))


DAYS = ["1999-12-31", "2000-02-28", "2000-02-29", "2000-03-01", "2001-02-28", "2001-03-01", "2001-08-29", "2002-02-28"]
CLOCKS = ["00:00", "08:00", "23:59:59.999999"]
TIMES = st.builds("{}T{}".format, st.sampled_from(DAYS), st.sampled_from(CLOCKS)).map(dt.datetime.fromisoformat)
DATES = st.sampled_from(DAYS).map(dt.date.fromisoformat)
CODES = ["MEDS_BIRTH", "MEDS_DEATH", "A", "B/1", "B/2", "OUT"]
ROWS = st.builds(
    reference.Row,
    time=st.sampled_from([True] * 9 + [False]).flatmap(lambda dated: TIMES if dated else st.none()),
    code=st.sampled_from([*CODES[1:], "A", "A", "B/1", "OUT"]),
    value=st.sampled_from([None, float("nan"), 1.0, 6.5]),
    visit=st.sampled_from([None, "1", "2"]),
)
BIRTHS = st.sampled_from([[], *[[reference.Row(dt.datetime(1999, 1, day), "MEDS_BIRTH", None)] for day in range(1, 6)]])
LATEST = reference.Row(dt.datetime(2003, 1, 1), "LAST", None)
RECORDS = st.builds(
    lambda birth, rows, last: birth + rows + last,
    BIRTHS,
    st.lists(ROWS, min_size=2, max_size=9),
    st.sampled_from([[], [LATEST], [LATEST]]),
)
"""Mostly people with a birth whose records go on for a while, so that many rows survive the rules."""
NAMES = st.sampled_from(["A", "OUT", "MEDS_DEATH", {"prefix": "B/"}, {"regex": "[/U]"}, {"any": ["A", "B/2"]}])
PREDICATES = st.builds(
    lambda code, low, high: {"code": code, "value_min": low, "value_max": high},
    NAMES,
    st.sampled_from([None, None, None, 1.0, 2.0]),
    st.sampled_from([None, None, None, 1.0]),
)
BEGINS = st.one_of(
    st.builds(lambda years: {"age": years}, st.sampled_from([0.0, 0.5, 1.0, 2.0])),
    st.builds(lambda time: {"date": time}, TIMES | DATES),
    st.builds(lambda days: {"after_history_days": days}, st.sampled_from([0.0, 1.0, 365.0])),
    st.builds(lambda code: {"event": "first", "code": code}, st.sampled_from(["A", {"prefix": "B"}, "OUT"])),
)
EVENTS_ASKED = st.builds(
    lambda event, code: {"event": event, "code": code},
    st.sampled_from(["last", "each", "random"]),
    st.sampled_from(["A", {"prefix": "B"}, "OUT"]),
)
REQUIRES = st.fixed_dictionaries(
    {"visits": st.sampled_from([0, 0, 1, 2]), "history_days": st.sampled_from([0.0, 0.0, 1.0, 365.0])},
    optional={"age_min": st.sampled_from([1.0, 0.5]), "age_max": st.sampled_from([0.0, 1.0, 1.5])},
)
DELAYS = st.builds(
    lambda predicate, known: {**predicate, **known},
    PREDICATES,
    st.sampled_from([{"days": 1.0}, {"days": 400.0}, {"until": "end_of_day"}, {"until": "end_of_visit"}]),
)
INPUTS = st.fixed_dictionaries(
    {},
    optional={
        "from": TIMES | DATES,
        "exclude": st.lists(PREDICATES, max_size=2),
        "lookback_days": st.sampled_from([0.5, 1.0, 365.0, 1000.0]),
    },
)
ENDS = st.one_of(
    st.just("last_record"),
    st.builds(lambda code: {"code": code}, NAMES),
    st.builds(lambda date: {"date": date}, TIMES | DATES),
)
COMMON = {
    "outcome": PREDICATES,
    "competing": st.dictionaries(st.sampled_from(["death", "other", "third"]), PREDICATES, max_size=2),
    "require": st.just({"visits": 0}) | REQUIRES,
    "exclude": st.just([]) | st.lists(PREDICATES, max_size=2),
    "washout": st.sampled_from([False, False, True]),
    "delay": st.just([]) | st.lists(DELAYS, max_size=2),
    "follow_up": st.builds(lambda end: {"end": end}, ENDS),
    "input": st.just({}) | INPUTS,
}
TASKS = st.fixed_dictionaries({"index": BEGINS | EVENTS_ASKED, **COMMON}) | st.fixed_dictionaries(
    {
        "index": BEGINS,
        **COMMON,
        "input": INPUTS.map(lambda given: {k: v for k, v in given.items() if k != "lookback_days"}),
        "predict_at": st.just("every_visit"),
        "evaluate_at": st.none() | BEGINS,
    }
)
EVERY_CODE = [reference.Row(None, code, None) for code in CODES]
COLUMNS = EVENTS | {"stay": pl.String}


def as_events(records: dict[int, list[reference.Row]]) -> pl.LazyFrame:
    lines = [(n, row.time, row.code, row.value, row.visit) for n, record in records.items() for row in record]
    return pl.LazyFrame(lines, schema=COLUMNS, orient="row")


@pytest.mark.slow
@settings(max_examples=120, deadline=None)
@given(records=st.lists(RECORDS, min_size=2, max_size=5), settings=TASKS, by_column=st.booleans())
def test_the_fast_rules_agree_with_the_plain_ones(
    records: list[list[reference.Row]], settings: dict[str, Any], by_column: bool
) -> None:
    question, by_subject = task(**settings), dict(enumerate([EVERY_CODE, *records]))
    expected, removed = reference.cohort(by_subject, question, by_column=by_column)
    events, column = as_events(by_subject), "stay" if by_column else None
    asked = Question.of([events], question, visit_column=column, seed=0, follow_up=True)
    rows = label_rows(asked)
    plain = [(number, *astuple(label)) for number, labels in expected.items() for label in labels]
    assert rows.select(*KEYS, "event").rows() == [(number, at, event) for number, at, _, event in plain]
    np.testing.assert_allclose(rows["duration"].to_numpy(), [duration for _, _, duration, _ in plain], rtol=1e-12)
    assert Counter({step[0]: step[1] for step in asked.attrition.steps if step[1]}) == removed
    people = {number: reference.Subject(by_subject[number], question, number, by_column) for number in expected}
    judged = [(n, label.prediction_time) for n, who in people.items() for label in who.evaluated(expected[n])]
    assert at_evaluation(rows, question, Attrition()).select(KEYS).rows() == judged
    history = cut(events, rows, question, visit_column=column).collect()
    read = Counter(history.select(*KEYS, "time", "code", "stay").rows())
    again = [(n, at, row) for n, at, _, _ in plain for row in people[n].read(at)]
    assert read == Counter((n, at, row.time, row.code, row.visit) for n, at, row in again)
