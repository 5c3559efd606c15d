"""A finished cohort: its splits, fingerprint and files, and what it tells people."""

from __future__ import annotations

import datetime as dt
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import meds
import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest
from polars.testing import assert_frame_equal

from ascii_tables import on_disk, task
from ehrsequencing.cohort import Cohort, build_cohort, for_people
from ehrsequencing.cohort.attrition import suppress
from ehrsequencing.errors import EhrError, Exit


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
        data = on_disk(many_patients(300), tmp_path / "meds")
        (tmp_path / "meds/metadata/subject_splits.parquet").unlink()
        return build_cohort(data, task(horizon_days=30), split_seed=3)

    def test_types_and_splits(self, cohort: Cohort) -> None:
        expected = {"subject_id": pl.Int64, "prediction_time": pl.Datetime("us"), "duration": pl.Float64}
        assert dict(cohort.table.schema) == expected | {"event": pl.Int8, "split": pl.String}
        assert cohort.table["subject_id"].is_sorted()
        shares = cohort.table["split"].value_counts(normalize=True)
        assert dict(shares.iter_rows())["train"] == pytest.approx(0.7, abs=0.08)

    def test_splits_follow_their_seed_only(self, cohort: Cohort, tmp_path: Path) -> None:
        data = on_disk(many_patients(200), tmp_path / "fewer")
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
        data = on_disk(many_patients(6), tmp_path / "meds")
        cohort = build_cohort(data, task())
        cohort.write(tmp_path / "cohort")
        written = pl.read_csv(tmp_path / "cohort/attrition.csv", infer_schema=False)
        assert set(written["removed"]) | set(written["remaining"]) <= {"0", "<10", "withheld"}
        assert "<10" in cohort.describe()


def test_small_cells_cannot_be_had_by_subtraction() -> None:
    rows = [("subjects", 0, 724, ""), ("age", 40, 684, "a"), ("visits", 2, 682, "b"), ("dead", 0, 682, "c")]
    exact = pl.DataFrame(rows, schema=["rule", "removed", "remaining", "why"], orient="row")
    shown = [("subjects", "0", "724"), ("age", "", ""), ("visits", "", ""), ("dead", "42", "682")]
    assert for_people(exact).select("rule", "removed", "remaining").rows() == shown
    few = for_people(exact[[0, 2]].with_columns(remaining=pl.Series([724, 722])))
    assert few.select("removed", "remaining").rows() == [("0", "withheld"), ("<10", "722")]
    assert suppress([10, 0, 12]) == ["10", "0", "12"]


def test_described_patients_without_the_outcome_are_no_small_cell_either(tmp_path: Path) -> None:
    data = on_disk(many_patients(300), tmp_path / "meds")
    cohort = build_cohort(data, task())
    outcome = (pl.col("subject_id") < 297).cast(pl.Int8)  # 3 of 300 without: 297 would tell
    text = replace(cohort, table=cohort.table.with_columns(event=outcome)).describe()
    assert re.search(r"^all +300 +~300$", text, re.MULTILINE)


def test_described_outcomes_lie_within_the_horizon(tmp_path: Path) -> None:
    data = on_disk(many_patients(300), tmp_path / "meds")  # 100 outcomes, half of them in 30 days
    counts = [build_cohort(data, task(horizon_days=days)).describe() for days in (None, 30.0)]
    assert re.search(r"^all +300 +100$", counts[0], re.MULTILINE)
    assert re.search(r"^all +300 +50$", counts[1], re.MULTILINE)
