"""Groups that stay together, the calendar, rows drawn at random; predictions on new data; visits on disk."""

from __future__ import annotations

import datetime as dt
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from polars.testing import assert_frame_equal

from ascii_tables import dataset, on_disk, task
from ehrsequencing.cohort import Cohort, build_cohort, eligible, prediction_rows
from ehrsequencing.cohort.splits import units
from ehrsequencing.config import SplitByConfig, SplitConfig, StudyConfig, TaskConfig, TokensConfig, parse
from ehrsequencing.errors import EhrError, Exit
from ehrsequencing.events import MedsDataset, assign_splits
from ehrsequencing.study.data import divisions, fold_numbers, limit_labelled, pretraining_records

DAY = dt.timedelta(days=1)
START = dt.datetime(2010, 1, 1)
CALENDAR = SplitConfig.model_validate({"calendar": {"tuning": "2012-01-01", "held_out": "2013-01-01"}})


def sites(folder: Path, count: int = 600, groups: int = 40) -> MedsDataset:
    """Subjects of forty sites (named in a column and by a code) with a visit each year and, some, an outcome."""
    rng = np.random.default_rng(0)
    begin = rng.integers(0, 1_500, count)
    lines: list[tuple[Any, ...]] = []
    for i in range(count):
        site = f"S{i % groups}"
        visits = [START + (int(begin[i]) + 180 * k) * DAY for k in range(6)]
        lines += [(i, time, "VISIT" if time < visits[-1] else ("OUT" if i % 2 else "A"), None, site) for time in visits]
        lines.append((i, visits[0], f"SITE//{site}", None, site))
    schema = {"subject_id": pl.Int64, "time": pl.Datetime("us"), "code": pl.String, "numeric_value": pl.Float32}
    frame = pl.DataFrame(lines, schema=schema | {"site": pl.String}, orient="row").sort("subject_id", "time")
    data = on_disk(frame, folder)
    (folder / "metadata/subject_splits.parquet").unlink()
    return data


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> MedsDataset:
    return sites(tmp_path_factory.mktemp("sites") / "meds")


class TestGroups:
    @pytest.mark.parametrize("split_by", [{"column": "site"}, {"code": {"prefix": "SITE//"}}])
    def test_no_group_straddles_splits_or_folds(self, data: MedsDataset, split_by: dict[str, Any]) -> None:
        asked = task(index={"event": "first", "code": "VISIT"}, split_by=split_by)
        cohort = build_cohort(data, asked)
        site = cohort.table["subject_id"].to_numpy() % 40
        whole = divisions(data, None, SplitConfig(), task=asked)[0]
        assert (whole.of(cohort.table["subject_id"].to_numpy()) == cohort.table["split"].to_numpy()).all()
        folds = divisions(data, 5, SplitConfig(), task=asked)
        for split in (cohort.table["split"].to_numpy(), *(part.split[cohort.table["subject_id"]] for part in folds)):
            assert set(split) >= {"train", "held_out"}
            assert all(len(set(split[site == k])) == 1 for k in range(40))
        fold = fold_numbers(folds, data.subject_ids())
        assert all((part.split[fold == k] == "held_out").all() for k, part in enumerate(folds))

    def test_without_groups_everybody_is_hashed_alone(self, data: MedsDataset) -> None:
        subjects = data.subject_ids()
        assert units(data, subjects, None) is subjects
        alone = np.array([str(subject) for subject in subjects])
        assert (assign_splits(alone, 3) == assign_splits(subjects, 3)).all()

    def test_the_datasets_own_splits_give_way(self, tmp_path: Path) -> None:
        events = "subject_id | time | code\n" + "".join(f"{i} | 2013-02-01 | OUT\n{i} | | G\n" for i in range(9))
        own = dataset(events, tmp_path / "meds", {0: "held_out", 1: "tuning"})
        assert set(build_cohort(own, task()).table["split"]) == {"train", "tuning", "held_out"}
        assert set(build_cohort(own, task(split_by={"code": "G"})).table["split"]) == {"train"}

    def test_a_column_that_is_not_there(self, data: MedsDataset) -> None:
        with pytest.raises(EhrError, match="no column 'practice'") as error:
            build_cohort(data, task(index={"event": "first", "code": "VISIT"}, split_by={"column": "practice"}))
        assert error.value.code == Exit.DATA

    def test_a_code_that_is_not_there(self, data: MedsDataset) -> None:
        with pytest.raises(EhrError, match="no event in the data matches"):
            units(data, data.subject_ids(), SplitByConfig(code="PRACTICE"))


class TestCalendar:
    def test_training_reads_and_learns_nothing_later(self, data: MedsDataset) -> None:
        asked = task(index={"event": "each", "code": "VISIT"})
        cohort = build_cohort(data, asked, calendar=CALENDAR.calendar)
        table = cohort.table.with_columns(end=pl.col("prediction_time") + pl.duration(days=pl.col("duration")))
        bounds = {"train": (START, 2012), "tuning": (dt.datetime(2012, 1, 1), 2013), "held_out": (START, 2099)}
        assert set(table["split"]) == set(bounds)
        for (split,), rows in table.group_by("split"):
            low, high = bounds[str(split)]
            assert rows["prediction_time"].is_between(low, dt.datetime(high, 1, 1), closed="left").all()
            assert (rows["end"].max() <= dt.datetime(2013, 1, 1)) == (split != "held_out")
        assert table.group_by("subject_id").agg(pl.col("split").n_unique())["split"].max() == 1
        assert cohort.attrition.row(-1, named=True)["rule"] == "period"
        assert cohort.attrition["rows_removed"][-1] > 0
        part = divisions(data, None, CALENDAR, task=asked, cohort=cohort)[0]
        assert (part.of(table["subject_id"].to_numpy()) == table["split"].to_numpy()).all()
        _, store = pretraining_records(
            data, part.train_subjects(), asked, TokensConfig(min_subjects=1), calendar=CALENDAR.calendar
        )
        assert set(store.subject_id) <= set(part.train_subjects())
        assert (store.prediction_time < np.datetime64("2012-01-01")).all()

    @pytest.mark.parametrize(
        ("evaluate_at", "trained", "held_out"),
        [({"age": 50}, [3], [2]), ({"event": "first", "code": "DX"}, [1, 2, 3], [])],
    )
    def test_what_comes_later_takes_nobody_out_of_training(
        self, tmp_path: Path, evaluate_at: dict[str, Any], trained: list[int], held_out: list[int]
    ) -> None:
        events = """
        subject_id | time       | code
        1          | 1964-03-01 | MEDS_BIRTH   # 50 in 2014
        1          | 2010-01-01 | A
        1          | 2011-06-01 | OUT
        2          | 1964-03-01 | MEDS_BIRTH   # the same until 2011
        2          | 2010-01-01 | A
        2          | 2014-06-01 | DX
        2          | 2015-06-01 | OUT
        3          | 1961-03-01 | MEDS_BIRTH   # 50 in 2011
        3          | 2010-01-01 | A
        3          | 2011-04-01 | DX
        3          | 2011-09-01 | OUT
        """
        asked = task(index={"date": dt.date(2009, 1, 1)}, predict_at="every_visit", evaluate_at=evaluate_at)
        cohort = build_cohort(dataset(events, tmp_path / "meds"), asked, calendar=CALENDAR.calendar)
        assert cohort.visits is not None
        visits = cohort.visits.group_by("split").agg(pl.col("subject_id").unique().sort())
        assert dict(visits.iter_rows()) == {"train": trained} | ({"held_out": held_out} if held_out else {})
        assert cohort.table.select("subject_id", "split").rows() == [*((i, "held_out") for i in held_out), (3, "train")]

    @pytest.mark.parametrize(
        ("settings", "said"),
        [
            ({"split": {"calendar": {"tuning": "2013-01-01", "held_out": "2013-01-01"}}}, "must come before"),
            ({"split": {"calendar": {"tuning": 2012, "held_out": 2013}}}, "found a number"),
            ({"split": CALENDAR.model_dump(), "folds": 5}, "do not go with split.calendar"),
        ],
    )
    def test_mistakes(self, settings: dict[str, Any], said: str) -> None:
        with pytest.raises(EhrError, match=said) as error:
            parse(StudyConfig, {"name": "s", "data": "x", "task": "t.yaml", **settings}, "test")
        assert error.value.code == Exit.CONFIG

    def test_groups_do_not_go_with_it(self, data: MedsDataset) -> None:
        asked = task(index={"event": "first", "code": "VISIT"}, split_by={"column": "site"})
        with pytest.raises(EhrError, match="split_by") as error:
            build_cohort(data, asked, calendar=CALENDAR.calendar)
        assert error.value.code == Exit.CONFIG


def test_data_to_judge_on_need_no_training_split(tmp_path: Path) -> None:
    events = "subject_id | time | code\n" + "".join(f"{i} | 2010-01-01 | A\n{i} | 2013-02-01 | OUT\n" for i in range(5))
    elsewhere = dataset(events, tmp_path / "meds", dict.fromkeys(range(5), "held_out"))
    with pytest.raises(EhrError, match="in the training split"):
        build_cohort(elsewhere, task())
    assert build_cohort(elsewhere, task(), learning=False).table["event"].to_list() == [1] * 5


class TestRandomEvents:
    def test_each_of_several_is_as_likely_and_nobody_else_matters(self, data: MedsDataset) -> None:
        asked = task(index={"event": "random", "code": "VISIT"})
        rows = build_cohort(data, asked, split_seed=1).table
        first = data.scan().group_by("subject_id").agg(pl.col("time").min()).sort("subject_id").collect()["time"]
        visit = (rows["prediction_time"] - first).dt.total_days() // 180
        assert (np.bincount(visit, minlength=5) > 90).all()  # 120 expected
        assert not rows.equals(build_cohort(data, asked, split_seed=2).table)

    def test_the_attrition_table_says_that_it_looks_ahead(self, data: MedsDataset) -> None:
        for event, ahead in (("first", False), ("each", False), ("last", True), ("random", True)):
            cohort = build_cohort(data, task(index={"event": event, "code": "VISIT"}))
            assert ("looks ahead" in cohort.describe()) is ahead


class TestNewData:
    RECORDS = """
        subject_id | time       | code
        1          | 2012-01-01 | A
        1          | 2012-06-01 | OUT   # before prediction_time: washout, though nothing follows
        2          | 2012-01-01 | A
        2          | 2012-06-01 | B
        3          | 2012-01-01 | A
        3          | 2013-05-01 | B
        """

    def test_washout_where_the_outcome_is_known(self, tmp_path: Path) -> None:
        data = dataset(self.RECORDS, tmp_path / "meds")
        rows, attrition = eligible(data, task())
        assert rows["subject_id"].to_list() == [2, 3]
        assert dict(attrition.select("rule", "removed").iter_rows())["washout"] == 1
        assert prediction_rows(data, task(washout=False))["subject_id"].to_list() == [1, 2, 3]

    def test_every_visit_and_the_rows_of_a_label_file(self, tmp_path: Path) -> None:
        data = dataset(self.RECORDS, tmp_path / "meds")
        asked = task(index={"date": dt.date(2012, 1, 1)}, predict_at="every_visit", competing={"b": "B"})
        rows = prediction_rows(data, asked)
        assert rows["subject_id"].to_list() == [1, 2, 3]  # visits at the outcome or a competing event are none
        rows.write_parquet(tmp_path / "labels.parquet")
        assert_frame_equal(prediction_rows(data, asked, tmp_path / "labels.parquet"), rows)


class TestVisits:
    @pytest.fixture
    def cohort(self, data: MedsDataset) -> Cohort:
        index = {"event": "first", "code": "VISIT"}
        asked = task(index=index, predict_at="every_visit", evaluate_at={"date": dt.date(2011, 1, 1)}, horizon_days=400)
        return build_cohort(data, asked)

    def test_written_and_read_again(self, cohort: Cohort, tmp_path: Path) -> None:
        cohort.write(tmp_path / "cohort")
        again = Cohort.read(tmp_path / "cohort")
        assert cohort.visits is not None
        assert again.visits is not None
        assert_frame_equal(again.visits, cohort.visits)
        assert again.causes == ("outcome",)
        (tmp_path / "cohort/visits.parquet").unlink()
        with pytest.raises(EhrError, match=r"visits\.parquet is missing"):
            Cohort.read(tmp_path / "cohort")

    def test_one_row_a_subject_is_evaluated(self, cohort: Cohort) -> None:
        assert cohort.visits is not None
        assert cohort.table["subject_id"].is_unique().all()
        assert cohort.visits.height > 3 * cohort.table.height
        assert cohort.table.join(cohort.visits, on=cohort.table.columns, how="anti").is_empty()
        assert "visits" in cohort.describe()

    def test_other_splits_and_fewer_labels(self, cohort: Cohort) -> None:
        assert cohort.visits is not None
        sizes = cohort.table.height, cohort.visits.height
        split = [np.full(size, "train") for size in sizes]
        assert set(cohort.with_splits(*split).visits["split"]) == {"train"}
        with pytest.raises(EhrError, match=f"expected {sizes[1]} splits, found 0"):
            cohort.with_splits(split[0])
        fewer = limit_labelled(cohort, 30, 0)
        learning = fewer.visits.filter(pl.col("split") != "held_out")["subject_id"].n_unique()
        assert learning == 30
        assert set(fewer.table["subject_id"]) <= set(fewer.visits["subject_id"])

    def test_beside_it_or_nothing(self, cohort: Cohort, tmp_path: Path) -> None:
        cohort.write(tmp_path / "cohort", beside={"grid.json": {"tau": 1.0}})
        with pytest.raises(ValueError, match="JSON"):
            cohort.write(tmp_path / "cohort", beside={"grid.json": {"tau": float("nan")}})
        assert '"tau": 1.0' in (tmp_path / "cohort/grid.json").read_text()
        assert [path.name for path in tmp_path.iterdir()] == ["cohort"]

    @pytest.mark.parametrize(
        "settings",
        [
            {"predict_at": "index", "evaluate_at": {"age": 50}},
            {"index": {"event": "each", "code": "A"}},
            {"index": {"event": "last", "code": "A"}},
            {"evaluate_at": {"event": "random", "code": "A"}},
            {"input": {"lookback_days": 30}},
        ],
    )
    def test_what_does_not_go_together(self, settings: dict[str, Any]) -> None:
        with pytest.raises(EhrError) as error:
            task(**({"predict_at": "every_visit"} | settings))
        assert error.value.code == Exit.CONFIG


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"index": {"date": 2013}}, "write the whole date, as in 2013-01-01"),
        ({"index": {"date": "2013"}}, "write the whole date, as in 2013-01-01"),
        ({"outcome": {"code": {"regex": "I2["}}}, "outcome.code: not a regular expression: unterminated"),
        ({"exclude": ["A", {"code": {"regx": "A"}}]}, "unknown key 'exclude.1.code.regx'"),
        ({"follow_up": {"end": {"date": 2013}}}, "follow_up.end.date: expected a date"),
    ],
)
def test_a_mistake_is_told_as_it_was_meant(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(EhrError) as error:
        parse(TaskConfig, {"name": "t", "index": {"age": 50}, "outcome": "X"} | settings, "test")
    assert said in str(error.value)
