"""MEDS datasets: opened, checked, written whole, divided into splits and folds."""

from __future__ import annotations

import datetime as dt
import hashlib
import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import meds
import numpy as np
import pandas as pd
import polars as pl
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ehrsequencing.errors import EhrError, Exit
from ehrsequencing.events import (
    BIRTH,
    DEATH,
    MedsDataset,
    assign_folds,
    assign_splits,
    check,
    from_dataframe,
    hash_ids,
    parse_times,
    private_folder,
    rank_hash,
    staged,
    write_dataset,
)

DATA = Path(os.environ.get("EHR_DATA", "../shared/data"))
MIMIC = DATA / "mimic_iv_demo_meds"
DAY = dt.datetime(2010, 1, 1)
SCHEMA = {"subject_id": pl.Int64, "time": pl.Datetime("us"), "code": pl.String, "numeric_value": pl.Float32}
needs_mimic = pytest.mark.skipif(not MIMIC.is_dir(), reason=f"no real data at {MIMIC} (set EHR_DATA)")


def events(*rows: tuple[object, ...]) -> pl.DataFrame:
    return pl.DataFrame([(*row, None)[:4] for row in rows], schema=SCHEMA, orient="row")


def days(number: float) -> dt.datetime:
    return DAY + dt.timedelta(days=number)


def two_shards() -> list[pl.DataFrame]:
    first = events((1, days(2), "B", 1.5), (1, None, "SEX//F"), (1, days(0), BIRTH), (1, days(2), "A"))
    return [first, events((2, days(0), BIRTH), (2, days(9), DEATH))]


def raw_shard(root: Path, frame: pl.DataFrame, name: str = "0") -> MedsDataset:
    """A dataset written without any of the package's care."""
    path = root / "data" / f"{name}.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    frame.write_parquet(path)
    return MedsDataset(root)


def counts(dataset: MedsDataset) -> dict[str, int]:
    return {problem.what: problem.count for problem in check(dataset).problems}


class TestWriting:
    def test_shards_are_sorted_and_valid_by_the_standards_own_checker(self, tmp_path: Path) -> None:
        dataset = write_dataset(tmp_path / "out", two_shards(), name="tiny")
        assert [path.name for path in dataset.shards()] == ["0.parquet", "1.parquet"]
        assert dataset.scan().collect()["code"].to_list() == ["SEX//F", BIRTH, "A", "B", BIRTH, DEATH]
        for shard in dataset.shards():
            meds.DataSchema.validate(pq.read_table(shard))
        meds.CodeMetadataSchema.validate(pq.read_table(tmp_path / "out/metadata/codes.parquet"))
        facts = json.loads((tmp_path / "out/metadata/dataset.json").read_text())
        meds.DatasetMetadataSchema.validate(facts)
        assert facts["dataset_name"] == "tiny"

    def test_every_code_is_in_the_metadata_described_or_not(self, tmp_path: Path) -> None:
        known = pl.DataFrame({"code": ["A", "Z"], "description": ["a thing", "unused"]})
        codes = write_dataset(tmp_path / "out", two_shards(), name="tiny", codes=lambda: known).codes()
        described = dict(codes.iter_rows())
        assert described == {"A": "a thing", "B": None, "SEX//F": None, BIRTH: None, DEATH: None, "Z": "unused"}

    def test_splits_and_further_files_travel_with_it(self, tmp_path: Path) -> None:
        splits = pl.DataFrame({"subject_id": [2, 1], "split": ["train", "tuning"]})
        truth = pl.DataFrame({"subject_id": [1], "hazard": [0.5]})
        dataset = write_dataset(
            tmp_path / "out", two_shards(), name="tiny", splits=splits, extras={"truth/t.parquet": truth}
        )
        found = dataset.splits()
        assert found is not None
        assert found.rows() == [(1, "tuning"), (2, "train")]
        meds.SubjectSplitSchema.validate(pq.read_table(tmp_path / "out/metadata/subject_splits.parquet"))
        assert pl.read_parquet(tmp_path / "out/truth/t.parquet").equals(truth)

    def test_a_failure_midway_leaves_nothing(self, tmp_path: Path) -> None:
        def broken() -> Iterator[pl.DataFrame]:
            yield two_shards()[0]
            raise RuntimeError("the source broke")

        with pytest.raises(RuntimeError, match="the source broke"):
            write_dataset(tmp_path / "out", broken(), name="tiny")
        assert list(tmp_path.iterdir()) == []

    def test_a_failure_midway_leaves_the_earlier_dataset(self, tmp_path: Path) -> None:
        before = write_dataset(tmp_path / "out", two_shards(), name="tiny").fingerprint()
        with pytest.raises(EhrError, match="earlier shard"):
            write_dataset(tmp_path / "out", [*two_shards(), two_shards()[0]], name="tiny")
        assert MedsDataset.open(tmp_path / "out").fingerprint() == before
        assert [path.name for path in tmp_path.iterdir()] == ["out"]

    def test_an_earlier_dataset_of_ours_is_replaced(self, tmp_path: Path) -> None:
        write_dataset(tmp_path / "out", two_shards(), name="old")
        dataset = write_dataset(tmp_path / "out", two_shards()[:1], name="new")
        assert dataset.describe()["dataset_name"] == "new"
        assert len(dataset.shards()) == 1
        assert [path.name for path in tmp_path.iterdir()] == ["out"]

    def test_a_dataset_of_somebody_else_is_never_replaced(self, tmp_path: Path) -> None:
        write_dataset(tmp_path / "out", two_shards(), name="theirs", metadata={"etl_name": "MEDS_transforms"})
        with pytest.raises(EhrError, match="did not write") as caught:
            write_dataset(tmp_path / "out", two_shards(), name="tiny")
        assert caught.value.code == Exit.ENVIRONMENT
        assert MedsDataset.open(tmp_path / "out").describe()["dataset_name"] == "theirs"

    @pytest.mark.parametrize("ours", [False, True])
    def test_strangers_in_the_folder_are_never_deleted(self, tmp_path: Path, ours: bool) -> None:
        if ours:
            write_dataset(tmp_path / "out", two_shards(), name="tiny")
        (tmp_path / "out").mkdir(exist_ok=True)
        (tmp_path / "out/thesis.txt").write_text("years of work")
        with pytest.raises(EhrError) as caught:
            write_dataset(tmp_path / "out", two_shards(), name="tiny")
        assert caught.value.code == Exit.ENVIRONMENT
        assert (tmp_path / "out/thesis.txt").read_text() == "years of work"
        assert [path.name for path in tmp_path.iterdir()] == ["out"]

    def test_unwritable_folder(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        with pytest.raises(EhrError, match="cannot be written") as caught:
            write_dataset(tmp_path / "file" / "out", two_shards(), name="tiny")
        assert caught.value.code == Exit.ENVIRONMENT

    def test_full_disk_while_writing(self, tmp_path: Path) -> None:
        with pytest.raises(EhrError, match="No space left") as caught, staged(tmp_path / "out"):
            raise OSError(28, "No space left on device")
        assert caught.value.code == Exit.ENVIRONMENT
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize(
        ("frame", "message"),
        [
            (events((1, DAY, None)), "column 'code' has nulls"),
            (events((None, DAY, "A")), "column 'subject_id' has nulls"),
            (events((1, DAY, "A")).drop("code"), "no such column"),
            (events((1, DAY, "A")).with_columns(pl.col("subject_id").cast(pl.String)), "'subject_id' should be Int64"),
            (events((1, DAY, "A")).with_columns(pl.col("time").dt.replace_time_zone("UTC")), "'time' should be"),
            (events(), "no event"),
        ],
    )
    def test_frames_that_break_meds_are_refused(self, tmp_path: Path, frame: pl.DataFrame, message: str) -> None:
        with pytest.raises(EhrError, match=message) as caught:
            write_dataset(tmp_path / "out", [frame], name="tiny")
        assert caught.value.code == Exit.DATA
        assert list(tmp_path.iterdir()) == []

    def test_same_rows_same_bytes_and_other_rows_other_bytes(self, tmp_path: Path) -> None:
        one = write_dataset(tmp_path / "a", two_shards(), name="tiny")
        shuffled = [frame.sample(fraction=1.0, shuffle=True, seed=3) for frame in two_shards()]
        two = write_dataset(tmp_path / "b", shuffled, name="another name")
        three = write_dataset(tmp_path / "c", two_shards()[:1], name="tiny")
        assert one.fingerprint() == two.fingerprint() != three.fingerprint()
        assert len(one.fingerprint()) == 32


class TestOpening:
    def test_the_value_column_is_always_there_and_extra_columns_stay(self, tmp_path: Path) -> None:
        raw_shard(tmp_path, events((1, DAY, "A")).drop("numeric_value").with_columns(ward=pl.lit("x")), "a/0")
        raw_shard(tmp_path, events((2, DAY, "B", 2.0)).with_columns(pl.col("numeric_value").cast(pl.Float64)), "b/0")
        dataset = MedsDataset.open(tmp_path)
        table = dataset.scan().collect()
        assert table.schema == pl.Schema({**SCHEMA, "ward": pl.String})
        assert table.rows() == [(1, DAY, "A", None, "x"), (2, DAY, "B", 2.0, None)]
        assert dataset.subject_ids().tolist() == [1, 2]
        assert dataset.codes().is_empty()
        assert dataset.splits() is None

    def test_no_folder(self, tmp_path: Path) -> None:
        with pytest.raises(EhrError, match="does not exist") as caught:
            MedsDataset.open(tmp_path / "nowhere")
        assert caught.value.code == Exit.DATA

    def test_no_shards(self, tmp_path: Path) -> None:
        with pytest.raises(EhrError, match=r"no data/\*\*/\*.parquet"):
            MedsDataset.open(tmp_path)

    def test_not_parquet(self, tmp_path: Path) -> None:
        (tmp_path / "data").mkdir()
        (tmp_path / "data/0.parquet").write_text("subject_id,time,code")
        with pytest.raises(EhrError, match="not readable as parquet"):
            MedsDataset.open(tmp_path)

    def test_missing_column_names_the_nearest(self, tmp_path: Path) -> None:
        raw_shard(tmp_path, events((1, DAY, "A")).rename({"subject_id": "subject"}))
        with pytest.raises(EhrError, match="'subject_id' is missing") as caught:
            MedsDataset.open(tmp_path)
        assert "did you mean 'subject'?" in caught.value.fix

    @pytest.mark.parametrize(
        ("change", "found"),
        [
            (pl.col("subject_id").cast(pl.String), "found String"),
            (pl.col("time").dt.replace_time_zone("Europe/Paris"), "without time zone, found .*Europe/Paris"),
            (pl.col("time").dt.cast_time_unit("ns"), "found .*ns"),
            (pl.lit(1).alias("code"), "found Int32"),
            (pl.lit("high").alias("numeric_value"), "found String"),
        ],
    )
    def test_wrong_types_say_what_was_found(self, tmp_path: Path, change: pl.Expr, found: str) -> None:
        raw_shard(tmp_path, events((1, DAY, "A")).with_columns(change))
        with pytest.raises(EhrError, match=found) as caught:
            MedsDataset.open(tmp_path)
        assert caught.value.code == Exit.DATA

    def test_broken_metadata(self, tmp_path: Path) -> None:
        dataset = write_dataset(tmp_path / "out", two_shards(), name="tiny")
        pl.DataFrame({"subject": [1]}).write_parquet(tmp_path / "out/metadata/subject_splits.parquet")
        with pytest.raises(EhrError, match="'subject_id' is missing"):
            dataset.splits()
        (tmp_path / "out/metadata/dataset.json").write_text("{")
        with pytest.raises(EhrError, match="not readable as JSON"):
            dataset.describe()


class TestChecking:
    def test_a_clean_dataset_has_nothing_to_say(self, tmp_path: Path) -> None:
        report = check(write_dataset(tmp_path / "out", two_shards(), name="tiny"))
        assert report.problems == []
        assert report.ok
        assert (report.facts["subjects"], report.facts["events"], report.facts["codes"]) == (2, 6, 5)
        assert (report.facts["static_events"], report.facts["numeric_values"]) == (1, 1)
        assert "no problems found" in report.text()

    @pytest.mark.parametrize(
        ("frame", "what", "count"),
        [
            (events((1, days(2), "A"), (1, days(1), "A")), "events not in order of time", 1),
            (events((1, days(2), "A"), (1, None, "A")), "events not in order of time", 1),
            (events((1, days(1), "A"), (2, days(1), "A"), (1, days(2), "A")), "events not in one block of the file", 1),
            (events((None, days(1), "A"), (1, days(1), "A")), "no subject_id", 1),
            (events((1, days(1), None), (1, days(2), "")), "no code", 2),
            (events((1, days(1), BIRTH), (1, days(2), BIRTH)), f"more than one {BIRTH}", 1),
            (events((1, days(1), DEATH), (1, days(1), DEATH)), f"more than one {DEATH}", 1),
            (events((1, None, BIRTH)), "birth or death without a time", 1),
            (events((1, days(1), DEATH), (1, days(2), "A")), f"events after {DEATH}", 1),
            (events((1, days(1), "A"), (1, days(2), BIRTH)), f"events before {BIRTH}", 1),
            (events((1, days(1), "A"), (2, days(1), BIRTH)), f"no {BIRTH}", 1),
            (events((1, DAY, "A", np.nan), (1, DAY, "A", np.inf)), "numeric_value is NaN or infinite", 2),
            (events((1, days(1), "A"), (1, days(2), "B")), "codes without metadata", 2),
        ],
    )  # fmt: skip
    def test_each_fault_is_counted(self, tmp_path: Path, frame: pl.DataFrame, what: str, count: int) -> None:
        assert counts(raw_shard(tmp_path, frame))[what] == count

    def test_events_on_the_day_and_minute_of_death_are_not_after_it(self, tmp_path: Path) -> None:
        same = events((1, days(0), BIRTH), (1, days(0), "A"), (1, days(5), DEATH), (1, days(5), "Z"))
        found = counts(raw_shard(tmp_path, same))
        assert f"events after {DEATH}" not in found
        assert f"events before {BIRTH}" not in found

    def test_a_subject_in_two_shards(self, tmp_path: Path) -> None:
        raw_shard(tmp_path, events((1, days(1), BIRTH)), "0")
        found = counts(raw_shard(tmp_path, events((1, days(2), BIRTH)), "1"))
        assert found["events in more than one shard"] == 1
        assert found[f"more than one {BIRTH}"] == 1

    def test_splits_that_do_not_match(self, tmp_path: Path) -> None:
        splits = pl.DataFrame({"subject_id": [1, 1, 7], "split": ["train", "held_out", "test"]})
        found = counts(write_dataset(tmp_path / "out", two_shards(), name="tiny", splits=splits))
        assert found["splits of subjects without events"] == 1
        assert found["no split"] == 1
        assert found["more than one split"] == 1
        assert found["splits other than train, tuning, held_out"] == 1

    def test_worst_first_and_errors_make_it_not_ok(self, tmp_path: Path) -> None:
        report = check(raw_shard(tmp_path, events((1, days(2), "A"), (1, days(1), "A"))))
        assert [problem.severity for problem in report.problems] == ["error", "warning", "warning", "note"]
        assert not report.ok

    def test_text_shows_no_small_cell_and_no_identifier(self, tmp_path: Path) -> None:
        ids = [987_000_000_000 + number for number in range(40)]
        alive = [row for subject in ids for row in ((subject, days(0), BIRTH), (subject, days(1), "A"))]
        late = [(subject, days(when), code) for subject in ids[:3] for when, code in ((5, DEATH), (6, "A"))]
        text = check(raw_shard(tmp_path, events(*alive, *late).sort("subject_id", "time"))).text()
        assert "events after MEDS_DEATH: <10 of <10 subjects" in text
        assert "subjects_with_death      <10 of 40" in text
        assert not any(str(subject) in text for subject in ids)

    def test_the_few_cannot_be_had_by_subtraction(self, tmp_path: Path) -> None:
        rows = [(subject, days(0), BIRTH if subject > 2 else "A") for subject in range(40)]
        report = check(raw_shard(tmp_path, events(*rows)))
        assert report.facts["subjects_with_birth"] == 37
        assert "subjects_with_birth      >30 of 40" in report.text()
        assert "37" not in report.text()

    @needs_mimic
    def test_real_records(self) -> None:
        report = check(MedsDataset.open(MIMIC))
        found = {problem.what: (problem.count, problem.total) for problem in report.problems}
        assert found == {
            "codes without metadata": (4_374, 7_035),
            f"events after {DEATH}": (15, 31),
            "exact copies of another row": (2_645, 916_166),
        }
        assert (report.facts["subjects"], report.facts["events"]) == (100, 916_166)
        splits = MedsDataset.open(MIMIC).splits()
        assert splits is not None
        assert splits["split"].value_counts().sort("split").rows() == [("held_out", 10), ("train", 80), ("tuning", 10)]


class TestDataFrames:
    def test_text_ids_are_hashed_and_the_way_back_stays_outside(self, tmp_path: Path) -> None:
        rows = {"subject_id": ["MRN-7", "MRN-9"], "time": ["2010-01-01", "2010-01-02T03:04:05Z"], "code": ["A", "B"]}
        dataset = from_dataframe(pl.DataFrame(rows), tmp_path / "out")
        secret = private_folder(tmp_path / "out") / "subject_ids.parquet"
        way_back = dict(pl.read_parquet(secret).iter_rows())
        table = dataset.scan().collect()
        assert sorted(way_back.values()) == dataset.subject_ids().tolist()
        assert table.filter(pl.col("code") == "B").row(0)[:2] == (way_back["MRN-9"], dt.datetime(2010, 1, 2, 3, 4, 5))
        assert all(b"MRN" not in path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file())
        assert stat.S_IMODE(secret.stat().st_mode) == 0o600

    def test_pandas_dates_zones_and_missing_values(self, tmp_path: Path) -> None:
        frame = pd.DataFrame(
            {
                "subject_id": [3, 3, 3],
                "time": pd.to_datetime(["2010-01-01 12:00", "2010-01-02 12:00", None]).tz_localize("Etc/GMT-2"),
                "code": ["A", "A", "SEX//F"],
                "numeric_value": [1.5, np.nan, np.nan],
            }
        )
        rows = from_dataframe(frame, tmp_path / "out").scan().collect().rows()
        noon = dt.datetime(2010, 1, 1, 10)
        assert rows == [(3, None, "SEX//F", None), (3, noon, "A", 1.5), (3, noon + dt.timedelta(days=1), "A", None)]
        assert not private_folder(tmp_path / "out").exists()

    def test_rows_that_cannot_be_read_are_set_aside_with_their_reason(self, tmp_path: Path) -> None:
        frame = pl.DataFrame(
            {
                "subject_id": ["a", None, "a", "a", "a", "a", "a", ""],
                "time": ["2010-01-01", "2010-01-01", "1.2.2010", "2010-02-30", "", "2010-01-01", "2010-01-01", None],
                "code": ["A", "A", "A", "A", "SEX//F", "", "A", "A"],
                "numeric_value": ["1.5", "", "", "", "", "", "high", "inf"],
            }
        )
        dataset = from_dataframe(frame, tmp_path / "out", name="visits")
        rejects = pl.read_parquet(tmp_path / "out/rejects/visits.parquet")
        assert rejects.rows() == [
            ("visits", 1, "subject_id is empty or no 64-bit integer"),
            ("visits", 2, "time is not a date"),
            ("visits", 3, "time is not a date"),
            ("visits", 5, "code is empty"),
            ("visits", 6, "numeric_value is not a finite number"),
            ("visits", 7, "subject_id is empty or no 64-bit integer"),
        ]
        assert dataset.scan().collect().height + rejects.height == frame.height
        assert check(dataset).facts["rows_set_aside"] == 6

    def test_missing_column_names_the_nearest(self, tmp_path: Path) -> None:
        with pytest.raises(EhrError, match="'subject_id' is missing") as caught:
            from_dataframe(pl.DataFrame({"subjectid": [1], "time": [DAY], "code": ["A"]}), tmp_path / "out")
        assert "did you mean 'subjectid'?" in caught.value.fix

    def test_further_columns_stay_only_where_they_are_named(self, tmp_path: Path) -> None:
        frame = pl.DataFrame({"subject_id": [1], "time": [DAY], "code": ["A"], "ward": [4], "ssn": ["123"]})
        with pytest.raises(EhrError, match="unexpected columns: ward, ssn"):
            from_dataframe(frame, tmp_path / "out")
        kept = from_dataframe(frame.drop("ssn"), tmp_path / "out", keep=("ward",)).scan().collect()
        assert kept["ward"].to_list() == [4]

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (pl.lit(2010).alias("time"), "'time' should hold dates"),
            (pl.lit(1.5).alias("subject_id"), "'subject_id' should hold integers or text"),
        ],
    )
    def test_impossible_types(self, tmp_path: Path, change: pl.Expr, message: str) -> None:
        with pytest.raises(EhrError, match=message):
            from_dataframe(events((1, DAY, "A")).with_columns(change), tmp_path / "out")

    def test_not_a_table(self, tmp_path: Path) -> None:
        with pytest.raises(EhrError, match=r"expected a polars or pandas DataFrame, found builtins\.list"):
            from_dataframe([1, 2], tmp_path / "out")


class TestTimes:
    @settings(max_examples=50, deadline=None)
    @given(st.datetimes(min_value=dt.datetime(1800, 1, 1), max_value=dt.datetime(2200, 1, 1)), st.integers(-14, 14))
    def test_what_python_writes_is_read_back_as_utc(self, moment: dt.datetime, hours: int) -> None:
        zone = dt.timezone(dt.timedelta(hours=hours))
        written = [moment.isoformat(), moment.isoformat(" ") + "Z", moment.replace(tzinfo=zone).isoformat()]
        read = pl.DataFrame({"t": written}).select(parse_times(pl.col("t")))["t"].to_list()
        assert read == [moment, moment, moment - dt.timedelta(hours=hours)]

    @pytest.mark.parametrize(
        "text", ["2001-02-30", "2001-13-01", "01/02/2001", "2001", "20010203", "2001-02-03T25:00", "x", ""]
    )
    def test_anything_else_is_null(self, text: str) -> None:
        assert pl.DataFrame({"t": [text]}).select(parse_times(pl.col("t")))["t"].to_list() == [None]


class TestHashing:
    ids = np.arange(20_000)

    def test_against_the_definition(self) -> None:
        word = hashlib.blake2b(b"folds/7/42", digest_size=8).digest()
        expected = (int.from_bytes(word, "big") >> 11) / 2**53
        assert rank_hash(np.array([42]), 7, "folds")[0] == expected

    def test_uniform_and_unrelated_between_purposes_and_seeds(self) -> None:
        first, second = rank_hash(self.ids, 0, "splits"), rank_hash(self.ids, 1, "splits")
        third = rank_hash(self.ids, 0, "folds")
        assert 0 <= first.min() < first.max() < 1
        assert np.histogram(first, 10, (0, 1))[0] == pytest.approx(2_000, abs=200)
        assert abs(np.corrcoef([first, second, third])[np.triu_indices(3, 1)]).max() < 0.03

    def test_a_subjects_split_depends_on_itself_alone(self) -> None:
        whole = assign_splits(self.ids, 3)
        some = np.array([17, 4, 19_999])
        assert assign_splits(some, 3).tolist() == whole[some].tolist()
        assert assign_folds(some, 3, 5).tolist() == assign_folds(self.ids, 3, 5)[some].tolist()

    def test_shares(self) -> None:
        names, sizes = np.unique(assign_splits(self.ids, 0), return_counts=True)
        assert dict(zip(names.tolist(), sizes / 20_000, strict=True)) == pytest.approx(
            {"train": 0.70, "tuning": 0.15, "held_out": 0.15}, abs=0.01
        )
        assert np.bincount(assign_folds(self.ids, 0, 5)) == pytest.approx(4_000, abs=200)

    def test_shares_that_do_not_add_up(self) -> None:
        with pytest.raises(EhrError, match=r"add up to 0\.9") as caught:
            assign_splits(self.ids, 0, {"train": 0.7, "held_out": 0.2})
        assert caught.value.code == Exit.CONFIG

    def test_ids_are_positive_stable_and_change_with_the_salt(self) -> None:
        plain, salted = hash_ids(["a", "b", "a"]), hash_ids(["a", "b", "a"], salt="secret")
        word = hashlib.blake2b(b"a", digest_size=8).digest()
        assert plain[0] == plain[2] == int.from_bytes(word, "big") >> 1
        assert plain.min() > 0
        assert set(plain.tolist()).isdisjoint(salted.tolist())

    def test_a_collision_is_an_error(self, monkeypatch: pytest.MonkeyPatch) -> None:
        class Constant:
            MAX_KEY_SIZE = 64

            def __call__(self, *_: object, **__: object) -> Constant:
                return self

            def digest(self) -> bytes:
                return bytes(8)

        monkeypatch.setattr("ehrsequencing.events.subjects.hashlib.blake2b", Constant())
        with pytest.raises(EhrError, match="same hash"):
            hash_ids(["a", "b"])
