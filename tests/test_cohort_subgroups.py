"""Groups of a cohort's rows: known at prediction_time and not before, in a file of their own, no part of the cohort."""

from __future__ import annotations

import datetime as dt
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from polars.testing import assert_frame_equal

from ascii_tables import dataset, events, groups, on_disk, task
from ehrsequencing.cohort import Cohort, build_cohort
from ehrsequencing.cohort.subgroups import AGE_BANDS, SEX_CODES
from ehrsequencing.errors import EhrError, Exit
from ehrsequencing.study import casemix

RECORDS = """
subject_id | time             | code
1          |                  | Gender//FEMALE
1          | 1973-01-01 04:30 | MEDS_BIRTH
1          | 2012-01-01       | WARD//A
1          | 2012-06-01       | WARD//B
1          | 2013-02-01       | OUT
2          |                  | SEX//M
2          | 1973-01-02       | MEDS_BIRTH
2          | 2012-01-01       | WARD//A
2          | 2012-01-01       | WARD//C
2          | 2013-02-01       | OUT
"""


def built(text: str, folder: Path, **settings: object) -> Cohort:
    return build_cohort(dataset(text, folder / "meds"), task(**settings))


def column(cohort: Cohort, name: str) -> list[str]:
    assert cohort.subgroups is not None
    return cohort.subgroups[name].to_list()


def test_a_birthday_begins_a_band(tmp_path: Path) -> None:
    assert column(built(RECORDS, tmp_path), "age") == ["40 to 49", "18 to 39"]


def test_every_age_has_a_band_and_only_one(tmp_path: Path) -> None:
    births = [dt.datetime(2013 - years, 1, 1) for years in range(1, 100)]
    rows = [(i, born, "MEDS_BIRTH") for i, born in enumerate(births)]
    rows += [(i, dt.datetime(2013, 2, 1), "OUT") for i in range(len(births))]
    frame = pl.DataFrame(rows, schema=["subject_id", "time", "code"], orient="row")
    frame = frame.with_columns(numeric_value=pl.lit(None, pl.Float32)).cast({"time": pl.Datetime("us")})
    found = column(build_cohort(on_disk(frame, tmp_path / "meds"), task()), "age")
    expected = [[name for begin, name in AGE_BANDS if begin <= years][-1] for years in range(1, 100)]
    assert found == expected


def test_sex_is_found_as_the_case_mix_finds_it(tmp_path: Path) -> None:
    assert column(built(RECORDS, tmp_path), "sex") == ["FEMALE", "M"]
    assert casemix._SEX.pattern == SEX_CODES


def test_the_last_one_known_counts_and_of_several_at_one_time_the_last_by_text(tmp_path: Path) -> None:
    assert column(built(RECORDS, tmp_path, subgroups={"ward": {"prefix": "WARD//"}}), "ward") == ["B", "C"]


def test_codes_by_list_and_by_expression_keep_their_names(tmp_path: Path) -> None:
    cohort = built(RECORDS, tmp_path, subgroups={"a": {"any": ["WARD//A", "WARD//C"]}, "b": {"regex": "//[AB]$"}})
    assert column(cohort, "a") == ["WARD//A", "WARD//C"]
    assert column(cohort, "b") == ["WARD//B", "WARD//A"]


def test_a_code_and_a_predicate_tell_whether(tmp_path: Path) -> None:
    asked = {"b": "WARD//B", "any": {"code": {"prefix": "WARD//"}}, "later": "OUT"}
    cohort = built(RECORDS, tmp_path, subgroups=asked)
    assert [column(cohort, name) for name in asked] == [["yes", "no"], ["yes", "yes"], ["no", "no"]]


def test_a_name_of_ones_own_takes_the_place_of_sex_or_age(tmp_path: Path) -> None:
    cohort = built(RECORDS, tmp_path, subgroups={"sex": {"prefix": "WARD//"}, "age": "WARD//B"})
    assert cohort.subgroups is not None
    assert cohort.subgroups.columns == ["subject_id", "prediction_time", "sex", "age"]
    assert (column(cohort, "sex"), column(cohort, "age")) == (["B", "C"], ["yes", "no"])


def test_a_delayed_record_counts_once_it_is_known(tmp_path: Path) -> None:
    asked = {"ward": {"prefix": "WARD//"}}
    slow = [{"code": "WARD//B", "days": 300}]
    assert column(built(RECORDS, tmp_path, subgroups=asked, delay=slow), "ward") == ["A", "C"]


def test_what_models_may_not_read_may_still_tell_groups_apart(tmp_path: Path) -> None:
    unread = {"exclude": {"code": {"prefix": "WARD//"}}, "from": "2012-12-01", "lookback_days": 10}
    found = built(RECORDS, tmp_path, subgroups={"ward": {"prefix": "WARD//"}}, input=unread).subgroups
    (tmp_path / "again").mkdir()
    assert_frame_equal(found, built(RECORDS, tmp_path / "again", subgroups={"ward": {"prefix": "WARD//"}}).subgroups)


def test_each_row_of_a_patient_has_its_own_groups(tmp_path: Path) -> None:
    cohort = built(
        """
        subject_id | time       | code
        1          | 1970-06-01 | MEDS_BIRTH
        1          | 2010-01-01 | VISIT
        1          | 2010-02-01 | REGION//west
        1          | 2010-06-01 | VISIT
        1          | 2010-06-01 | REGION//east
        1          | 2011-01-01 | OUT
        """,
        tmp_path, index={"event": "each", "code": "VISIT"}, subgroups={"region": {"prefix": "REGION//"}},
    )  # fmt: skip
    assert_frame_equal(
        cohort.subgroups,
        groups("""
        subject_id | prediction_time | sex     | age      | region
        1          | 2010-01-01      | unknown | 18 to 39 | unknown
        1          | 2010-06-01      | unknown | 40 to 49 | east
        """),
    )


@pytest.mark.parametrize("seed", range(5))
def test_nothing_after_prediction_time_matters(seed: int, tmp_path: Path) -> None:
    """Random records; then everything after prediction_time but the outcome is drawn anew."""
    rng = np.random.default_rng(seed)
    moment = dt.datetime(2013, 1, 1)
    codes = ["REGION//a", "REGION//b", "SEX//F", "SEX//M", "X", "MEDS_BIRTH"]

    def drawn(count: int, low: int, high: int, kinds: int) -> list[tuple[int, dt.datetime, str]]:
        hours = rng.integers(low, high, count)
        return [(int(rng.integers(30)), moment + dt.timedelta(hours=int(h)), codes[rng.integers(kinds)]) for h in hours]

    before = drawn(120, -5_000, 1, 6) + [(i, moment + dt.timedelta(days=90), "OUT") for i in range(30)]
    before += [(i, moment - dt.timedelta(days=500), code) for i, code in enumerate(codes)]
    asked = {"region": {"prefix": "REGION//"}, "x": "X"}
    found = []
    for name in ("one", "two"):
        rows = before + drawn(60, 1, 2_000, 5)  # births apart: nobody is asked about before birth
        frame = pl.DataFrame(rows, schema=["subject_id", "time", "code"], orient="row")
        frame = frame.with_columns(numeric_value=pl.lit(None, pl.Float32)).cast({"time": pl.Datetime("us")})
        data = on_disk(frame.sort("subject_id", "time"), tmp_path / name)
        found.append(build_cohort(data, task(subgroups=asked, washout=False)).subgroups)
    assert_frame_equal(*found)
    assert set(found[0]["region"]) == {"a", "b", "unknown"}


def test_codes_that_do_not_occur_are_refused_where_a_model_is_fitted(tmp_path: Path) -> None:
    data = dataset(RECORDS, tmp_path / "meds")
    wrong = task(subgroups={"ward": {"prefix": "WART//"}, "b": "WARD//Q"})
    with pytest.raises(EhrError, match="no event in the data matches prefix WART//") as error:
        build_cohort(data, wrong)
    assert error.value.code == Exit.COHORT
    assert "subgroups.ward" in error.value.where
    elsewhere = build_cohort(data, wrong, learning=False)
    assert (column(elsewhere, "ward"), column(elsewhere, "b")) == (["unknown"] * 2, ["no"] * 2)


def test_they_are_no_part_of_the_cohort(tmp_path: Path) -> None:
    data = dataset(RECORDS, tmp_path / "meds")
    plain, told = (build_cohort(data, task(subgroups=asked)) for asked in ({}, {"ward": {"prefix": "WARD//"}}))
    assert plain.fingerprint == told.fingerprint
    assert_frame_equal(plain.table, told.table)
    assert told.with_splits(np.array(["train", "tuning"])).subgroups is told.subgroups


def test_written_and_read_again(tmp_path: Path) -> None:
    cohort, folder = built(RECORDS, tmp_path, subgroups={"ward": {"prefix": "WARD//"}}), tmp_path / "cohort"
    cohort.write(folder)
    again = Cohort.read(folder)
    assert_frame_equal(again.subgroups, cohort.subgroups)
    assert again.task == cohort.task
    some = replace(cohort, table=cohort.table.tail(1))
    some.write(folder)
    assert Cohort.read(folder).subgroups["ward"].to_list() == ["C"]
    (folder / "subgroups.parquet").unlink()  # a cohort made before there were any
    old = Cohort.read(folder)
    assert old.subgroups is None
    old.write(folder)
    assert not (folder / "subgroups.parquet").exists()


def test_a_file_that_belongs_to_other_rows_is_refused(tmp_path: Path) -> None:
    cohort, folder = built(RECORDS, tmp_path), tmp_path / "cohort"
    cohort.write(folder)
    wrong = [cohort.subgroups.reverse(), cohort.subgroups.drop("prediction_time"), cohort.subgroups.with_columns(n=1)]
    for frame in wrong:
        frame.write_parquet(folder / "subgroups.parquet")
        with pytest.raises(EhrError, match=r"subgroups\.parquet does not belong to cohort\.parquet"):
            Cohort.read(folder)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"my ward": "A"}, "cannot be named 'my ward'"),
        ({"subject_id": "A"}, "cannot be named 'subject_id'"),
        ({"ward": {"prefx": "WARD//"}}, "(?s)unknown key 'subgroups.ward.prefx'.*did you mean 'prefix'"),
        ({"ward": {"code": "A", "value": 3}}, "(?s)unknown key 'subgroups.ward.value'.*value_m"),
        ({"ward": {"prefix": ""}}, "it is empty"),
        ({"ward": {"any": ["A"], "prefix": "B"}}, "exactly one of any, regex, prefix"),
        (["REGION//"], "subgroups"),
    ],
)
def test_slips_are_named(asked: object, message: str) -> None:
    with pytest.raises(EhrError, match=message) as error:
        task(subgroups=asked)
    assert error.value.code == Exit.CONFIG


def test_events_without_births_or_sexes(tmp_path: Path) -> None:
    frame = events(RECORDS).filter(pl.col("code").str.starts_with("WARD") | (pl.col("code") == "OUT"))
    cohort = build_cohort(on_disk(frame, tmp_path / "meds"), task())
    assert (column(cohort, "sex"), column(cohort, "age")) == (["unknown"] * 2, ["unknown"] * 2)
