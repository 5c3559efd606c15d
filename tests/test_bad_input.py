"""What real records bring, item by item: each ends in a clear message and its exit code, or in a reported fact.

The table of docs/reference/bad-input.md is kept true by these tests: it names each of them.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import os
import re
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import polars as pl
import pytest
import yaml

from ehrsequencing.bundle import Bundle, Encoder
from ehrsequencing.cli import main
from ehrsequencing.cohort import Cohort, build_cohort, cut
from ehrsequencing.config import FeaturesConfig, TaskConfig, TokensConfig
from ehrsequencing.errors import EhrError, Exit
from ehrsequencing.events import BIRTH, DEATH, MedsDataset, check, from_dataframe, write_dataset
from ehrsequencing.features import FeatureSpec, build_features
from ehrsequencing.files import staged, staged_file
from ehrsequencing.predictions import Predictions
from ehrsequencing.tokens import Tokenizer, tokenize

DAY = dt.datetime(2010, 1, 1)
SCHEMA = {"subject_id": pl.Int64, "time": pl.Datetime("us"), "code": pl.String, "numeric_value": pl.Float32}
TASK = {"name": "out", "index": {"date": "2010-01-01"}, "outcome": "OUT", "horizon_days": 200}
PAGE = Path(__file__).parent.parent / "docs" / "reference" / "bad-input.md"


def days(number: float) -> dt.datetime:
    return DAY + dt.timedelta(days=number)


def events(*rows: tuple[object, ...]) -> pl.DataFrame:
    return pl.DataFrame([(*row, None)[:4] for row in rows], schema=SCHEMA, orient="row")


def life(subject: int, outcome: float | None = None, end: float = 400) -> list[tuple[object, ...]]:
    """Born 1950, seen twice before 2010-01-01 (day 0), perhaps an outcome, last seen on day ``end``."""
    rows = [
        (subject, dt.datetime(1950, 1, 1), BIRTH),
        (subject, days(-90), "VISIT"),
        (subject, days(-30), "LAB", 5.0 + subject % 3),
    ]
    rows += [] if outcome is None else [(subject, days(outcome), "OUT")]
    return [*rows, (subject, days(end), "VISIT")]


def people(n: int = 60) -> pl.DataFrame:
    return events(*(row for s in range(1, n + 1) for row in life(s, 5.0 + 3 * s if s % 2 else None)))


def raw(root: Path, frame: pl.DataFrame, name: str = "0") -> Path:
    """A dataset written without any of the package's care."""
    path = root / "data" / f"{name}.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    frame.write_parquet(path)
    return root


def splits(root: Path, split: list[str], subjects: list[object] | None = None) -> Path:
    (root / "metadata").mkdir(exist_ok=True)
    subjects = list(range(1, len(split) + 1)) if subjects is None else subjects
    pl.DataFrame({"subject_id": subjects, "split": split}).write_parquet(root / "metadata" / "subject_splits.parquet")
    return root


def task_file(folder: Path, **changes: object) -> Path:
    path = folder / "task.yaml"
    path.write_text(yaml.safe_dump({**TASK, **changes}))
    return path


def cohort_of(root: Path, **changes: object) -> Cohort:
    return build_cohort(MedsDataset.open(root), TaskConfig.model_validate({**TASK, **changes}))


def removed(cohort: Cohort) -> dict[str, int]:
    return {rule: count for rule, count in cohort.attrition.select("rule", "removed").iter_rows() if count}


def facts(root: Path) -> dict[str, int]:
    return {problem.what: problem.count for problem in check(MedsDataset(root)).problems}


@pytest.fixture
def ehrseq(monkeypatch, capfd):
    """Runs a command; gives exit code and all it said."""

    def call(*words: object) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["ehrseq", *map(str, words)])
        try:
            main()
            code = 0
        except SystemExit as end:
            code = int(end.code or 0)
        said = "".join(capfd.readouterr())
        assert "Traceback" not in said
        return code, said

    return call


@pytest.fixture
def refused(ehrseq, tmp_path):
    """The message with which ``ehrseq cohort`` refuses a dataset, nothing written."""

    def call(root: Path, code: int, **task: object) -> str:
        found, said = ehrseq("cohort", root, task_file(tmp_path, **task), tmp_path / "never")
        assert found == code, said
        assert said.startswith("error: ")
        assert not (tmp_path / "never").exists()
        return said

    return call


def test_duplicate_rows(ehrseq, tmp_path):
    """Kept and counted: a copy may be a second measurement; the cohort is the same."""
    once, twice = (
        raw(tmp_path / "a", people()),
        raw(tmp_path / "b", pl.concat([people()] * 2).sort("subject_id", "time")),
    )
    code, said = ehrseq("check", twice)
    assert code == 0
    assert f"exact copies of another row: {people().height} of {2 * people().height} events" in said
    assert cohort_of(twice).table.equals(cohort_of(once).table)


def test_string_subject_ids(refused, tmp_path):
    text = people().with_columns(pl.format("p{}", "subject_id").alias("subject_id"))
    assert "'subject_id' should be int64, found String" in refused(raw(tmp_path / "raw", text), Exit.DATA)
    hashed = from_dataframe(text, tmp_path / "hashed")
    assert len(hashed.subject_ids()) == 60
    assert cohort_of(tmp_path / "hashed").table.height == 60


@pytest.mark.parametrize("column", ["subject_id", "code"])
@pytest.mark.parametrize("statistics", [True, False])
def test_null_subject_ids(refused, tmp_path, column, statistics):
    """Refused where they stand in a dataset; set aside where a table is written as one."""
    holes = people().with_columns(pl.when(pl.int_range(pl.len()) % 100 == 7).then(None).otherwise(column).alias(column))
    missing = holes[column].null_count()
    root = raw(tmp_path / "raw", holes)
    holes.write_parquet(root / "data" / "0.parquet", statistics=statistics)
    assert f"{missing} rows have no {column}" in refused(root, Exit.DATA)
    made = from_dataframe(holes, tmp_path / "made")
    assert check(made).facts["rows_set_aside"] == missing
    assert made.scan().collect().height == people().height - missing


def test_time_zones(refused, tmp_path):
    zoned = people().with_columns(
        pl.col("time").dt.replace_time_zone("Europe/Paris", ambiguous="earliest", non_existent="null")
    )
    said = refused(raw(tmp_path / "raw", zoned), Exit.DATA)
    assert "without time zone, found Datetime(time_unit='us', time_zone='Europe/Paris')" in said
    assert "convert the times to one zone" in said
    utc = from_dataframe(zoned, tmp_path / "made").scan().collect()
    assert utc.filter(pl.col("code") == "OUT")["time"].min() == days(8) - dt.timedelta(hours=1)


def model_input(root: Path) -> tuple[str, np.ndarray]:
    """The fingerprint of the tokens and the feature matrix of a dataset's cohort."""
    dataset, cohort = MedsDataset.open(root), cohort_of(root)
    history = cut(dataset.scan(), cohort.table, cohort.task).collect()
    tokenizer = Tokenizer.fit(history, TokensConfig(min_subjects=1, min_values=1))
    spec = FeatureSpec.fit(history, cohort.table, FeaturesConfig(min_subjects=1))
    return tokenize(history, cohort.table, tokenizer).fingerprint, build_features(history, cohort.table, spec).values


def test_unsorted_or_non_contiguous_subjects(ehrseq, tmp_path):
    """``check`` calls it an error, for other tools' sake; here not a number changes."""
    tidy, shuffled = (
        raw(tmp_path / "a", people()),
        raw(tmp_path / "b", people().sample(fraction=1.0, shuffle=True, seed=1)),
    )
    code, said = ehrseq("check", shuffled)
    assert code == Exit.DATA
    assert "events not in order of time" in said
    assert "events not in one block of the file" in said
    assert cohort_of(shuffled).table.equals(cohort_of(tidy).table)
    (tokens, features), (same_tokens, same_features) = model_input(tidy), model_input(shuffled)
    assert tokens == same_tokens
    assert np.array_equal(features, same_features)


@pytest.mark.parametrize("verb", ["check", "cohort"])
@pytest.mark.parametrize("damage", ["cut short", "empty", "bits flipped"])
def test_truncated_parquet(ehrseq, tmp_path, damage, verb):
    root = raw(tmp_path / "raw", people(400))
    file = root / "data" / "0.parquet"
    content = bytearray(file.read_bytes())
    if damage == "bits flipped":
        content[200:800] = bytes(byte ^ 0x5A for byte in content[200:800])
    file.write_bytes(b"" if damage == "empty" else content if damage == "bits flipped" else content[:-500])
    words = (root,) if verb == "check" else (root, task_file(tmp_path), tmp_path / "never")
    code, said = ehrseq(verb, *words)
    assert code == Exit.DATA, said
    assert "damaged" in said or "not readable as parquet" in said
    assert str(file) in said or "'ehrseq check' names the file" in said
    assert not (tmp_path / "never").exists()


def test_negative_age(tmp_path):
    """Counted; the age is 0, and nobody is asked about before birth."""
    early = [(1, days(-60), "VISIT"), (1, days(-40), BIRTH), (2, days(50), BIRTH)]
    root = raw(
        tmp_path, pl.concat([people().filter(pl.col("subject_id") > 2), events(*early, *life(1)[2:], *life(2)[2:])])
    )
    assert facts(root)[f"events before {BIRTH}"] == 2
    cohort = cohort_of(root)
    assert removed(cohort) == {"before birth": 1}
    history = cut(MedsDataset.open(root).scan(), cohort.table, cohort.task).collect()
    store = tokenize(history, cohort.table, Tokenizer.fit(history, TokensConfig(min_subjects=1)))
    assert store.stats["events_before_birth"] == 1
    assert store.age[store.offsets[0] + 1] == 0


def test_death_before_birth(tmp_path):
    wrong = [(row[0], *row[1:]) for row in life(1) if row[2] != BIRTH]
    root = raw(
        tmp_path,
        pl.concat([people(), events(*((99, *row[1:]) for row in wrong), (99, days(-9), DEATH), (99, days(-5), BIRTH))]),
    )
    assert facts(root)[f"{DEATH} before {BIRTH}"] == 1
    assert removed(cohort_of(root)) == {"dead": 1}
    assert removed(cohort_of(root, index={"date": "2009-12-24"}, washout=False)) == {"before birth": 1}


def test_two_births(tmp_path):
    """Counted; the earliest counts, for cohorts and tokens alike."""
    root = raw(tmp_path, pl.concat([people(), events((1, dt.datetime(1960, 1, 1), BIRTH))]))
    assert facts(root)[f"more than one {BIRTH}"] == 1
    cohort = cohort_of(root, require={"age_min": 55})
    assert 1 in cohort.table["subject_id"]
    history = cut(MedsDataset.open(root).scan(), cohort.table, cohort.task).collect()
    store = tokenize(history, cohort.table, Tokenizer.fit(history, TokensConfig(min_subjects=1)))
    assert store.age[0] == pytest.approx(60.0, abs=0.01)


def test_events_long_after_death(tmp_path):
    """Counted apart from late results; nothing after a death is an outcome, and follow-up ends with it."""
    root = raw(
        tmp_path, pl.concat([people(), events(*life(99, outcome=150), (99, dt.datetime(2010, 2, 1, 13), DEATH))])
    )
    found = facts(root)
    assert found[f"events more than 30 days after {DEATH}"] == 1
    assert found[f"events after {DEATH}"] == 1
    row = cohort_of(root).table.filter(pl.col("subject_id") == 99).row(0, named=True)
    assert (row["event"], row["duration"]) == (0, pytest.approx(31 + 13 / 24))


def test_midnight_deaths(tmp_path):
    """A death known by its date alone does not come before the records of its own day."""
    noon, evening = days(20) + dt.timedelta(hours=12), days(20) + dt.timedelta(hours=20)
    dies = [*life(99)[:-1], (99, days(20), DEATH), (99, noon, "OUT"), (99, evening, "LAB", 1.0), (99, days(21), "BILL")]
    root = raw(tmp_path, pl.concat([people(), events(*dies)]))
    found = facts(root)
    assert found[f"{DEATH} at midnight, records later that day"] == 1
    assert found[f"events after {DEATH}"] == 1

    def of(**changes: object) -> dict[str, object]:
        return cohort_of(root, **changes).table.filter(pl.col("subject_id") == 99).row(0, named=True)

    assert (of()["event"], of()["duration"]) == (1, 20.5)
    assert (of(outcome=DEATH)["event"], of(outcome=DEATH)["duration"]) == (1, pytest.approx(20 + 20 / 24))
    admitted = of(index={"event": "last", "code": "OUT"}, outcome=DEATH, washout=False)
    assert (admitted["event"], admitted["duration"]) == (1, pytest.approx(8 / 24))
    deaths = MedsDataset.open(root).scan().filter(pl.col("code") == DEATH).collect()
    assert deaths["time"].to_list() == [evening]


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory) -> tuple[Path, Path]:
    """A dataset of 120 people with splits of their own (80, 20, 20), and an encoder pretrained on it."""
    from ehrsequencing.study import steps

    folder = tmp_path_factory.mktemp("pretrained")
    root = splits(raw(folder / "meds", people(120)), ["train"] * 80 + ["tuning"] * 20 + ["held_out"] * 20)
    steps.write_encoder(root, folder / "encoder", epochs=1)
    return root, folder / "encoder"


def outcomes_only_in(tmp_path: Path, meds: Path, subjects: range | set[int]) -> Path:
    """The same dataset, the outcomes of all others left out."""
    shutil.copytree(meds, tmp_path / "meds")
    keep = (pl.col("code") != "OUT") | pl.col("subject_id").is_in(list(subjects))
    return raw(tmp_path / "meds", people(120).filter(keep))


def fit(ehrseq, meds: Path, encoder: Path, tmp_path: Path, strategy: str = "lora") -> tuple[int, str]:
    words = ("--encoder", encoder, "--strategy", strategy, "--max-epochs", 1)
    return ehrseq("finetune", meds, task_file(tmp_path, horizon_days=390), tmp_path / "bundle", *words)


def test_a_single_event_split(ehrseq, pretrained, tmp_path):
    """One outcome in training, and one in tuning: warned of, fitted on the fewest bins, not recalibrated."""
    meds = outcomes_only_in(tmp_path, pretrained[0], {7, 81})
    code, said = fit(ehrseq, meds, pretrained[1], tmp_path)
    assert code == 0, said
    assert "events" in said
    bundle = Bundle.load(tmp_path / "bundle")
    assert all(row.unchanged for row in bundle.rows.values())
    assert ehrseq("predict", tmp_path / "bundle", meds, tmp_path / "p.parquet")[0] == 0
    assert np.isfinite(Predictions.read(tmp_path / "p.parquet").survival).all()


def test_an_all_censored_tuning_split(ehrseq, pretrained, tmp_path):
    """Epochs are selected by likelihood, the blend is even, and nothing is recalibrated; the bundle says so."""
    meds = outcomes_only_in(tmp_path, pretrained[0], range(1, 81))
    code, said = fit(ehrseq, meds, pretrained[1], tmp_path)
    assert code == 0, said
    bundle = Bundle.load(tmp_path / "bundle")
    assert any("selected by likelihood" in note for note in bundle.facts["notes"])
    assert bundle.rows["lora+wide"].alpha == 0.5
    assert all(row.unchanged for row in bundle.rows.values())


def test_an_all_censored_training_split(ehrseq, pretrained, tmp_path):
    meds = outcomes_only_in(tmp_path, pretrained[0], range(81, 121))
    code, said = fit(ehrseq, meds, pretrained[1], tmp_path)
    assert code == Exit.COHORT
    assert "in the training split" in said
    assert not (tmp_path / "bundle").exists()


def test_a_horizon_beyond_follow_up(refused, tmp_path):
    said = refused(raw(tmp_path / "raw", people()), Exit.COHORT, horizon_days=4_000)
    assert "horizon" in said
    assert "4000" in said


ODD_CODES = [
    'say "AA"',
    "it's",
    "line\nbreak",
    "tab\there",
    "Größe//µg",
    "血糖",
    "a,b;c",
    "back\\slash",
    "🙂",
    "<b>&amp;",
]


def test_codes_with_quotes_newlines_and_other_alphabets(ehrseq, tmp_path):
    """Kept letter by letter, from the file over predicates and tokens to disk and back."""
    rows = [(s, days(-20 - n), code, 1.0) for s in range(2, 61, 2) for n, code in enumerate(ODD_CODES)]
    root = write_dataset(tmp_path / "meds", [pl.concat([people(), events(*rows)])], name="odd").root
    assert ehrseq("check", root)[0] == 0
    assert sorted(set(MedsDataset.open(root).codes()["code"]) - {BIRTH, "VISIT", "LAB", "OUT"}) == sorted(ODD_CODES)
    cohort = cohort_of(root)
    history = cut(MedsDataset.open(root).scan(), cohort.table, cohort.task).collect()
    tokenizer = Tokenizer.fit(history, TokensConfig(min_subjects=1))
    tokenizer.save(tmp_path / "tokenizer.json")
    again = Tokenizer.load(tmp_path / "tokenizer.json")
    assert again.fingerprint == tokenizer.fingerprint
    for code in ODD_CODES:
        assert again.codes[again.encode(code)] == code
        assert cohort_of(root, exclude=[code]).table["subject_id"].to_list() == list(range(1, 61, 2))
    code, said = ehrseq("cohort", root, task_file(tmp_path, outcome="line\nbraek"), tmp_path / "never")
    assert code == Exit.COHORT
    assert "line\nbreak" in said


def test_nan_and_infinite_values(tmp_path):
    """Counted; no value for tokens, features and predicates. A table that brings them has the rows set aside."""
    odd = [(s, days(-10), "LAB", value) for s, value in ((1, float("nan")), (2, float("inf")), (3, float("-inf")))]
    clean, root = raw(tmp_path / "a", people()), raw(tmp_path / "b", pl.concat([people(), events(*odd)]))
    assert facts(root)["numeric_value is NaN or infinite"] == 3
    for limit in ({"value_min": 6.5}, {"value_max": 5.5}):
        exclude = [{"code": "LAB", **limit}]
        assert removed(cohort_of(root, exclude=exclude)) == removed(cohort_of(clean, exclude=exclude))
    cohort = cohort_of(root)
    history = cut(MedsDataset.open(root).scan(), cohort.table, cohort.task).collect()
    store = tokenize(
        history, cohort.table, tokenizer := Tokenizer.fit(history, TokensConfig(min_values=1, min_subjects=1))
    )
    assert store.counts["bad_values"] == 3
    assert np.isfinite(tokenizer.standardiser.median).all()
    assert np.isfinite(model_input(root)[1]).all()
    made = from_dataframe(pl.concat([people(), events(*odd)]), tmp_path / "made")
    assert check(made).facts["rows_set_aside"] == 2
    assert made.scan().collect().height == people().height + 1


def test_a_subject_in_two_shards(ehrseq, tmp_path):
    """``check`` calls it an error; here not a number changes."""
    halves, order = raw(tmp_path / "b", people()[::2], "0"), raw(tmp_path / "a", people())
    raw(halves, people()[1::2], "1")
    code, said = ehrseq("check", halves)
    assert code == Exit.DATA
    assert "events in more than one shard: 60 subjects" in said
    assert cohort_of(halves).table.equals(cohort_of(order).table)
    assert model_input(halves)[0] == model_input(order)[0]


def test_a_subject_in_two_splits(refused, ehrseq, tmp_path):
    """Never allowed to train on whom it is judged by; the same row twice is once."""
    root = splits(raw(tmp_path / "raw", people()), ["train"] * 60 + ["held_out"], [*range(1, 61), 7])
    assert "1 subjects are in more than one split" in refused(root, Exit.DATA)
    code, said = ehrseq("pretrain", root, tmp_path / "encoder")
    assert code == Exit.DATA, said
    assert ehrseq("check", root)[0] == Exit.DATA
    splits(root, ["train"] * 61, [*range(1, 61), 7])
    assert cohort_of(root).table.height == 60


@pytest.mark.parametrize("bad", ["text ids", "null", "old name"])
def test_splits_that_cannot_be_used(refused, tmp_path, bad):
    subjects: list[object] = [str(n) for n in range(60)] if bad == "text ids" else [*range(1, 60), None]
    root = splits(raw(tmp_path / "raw", people()), ["train"] * 60, subjects)
    if bad == "old name":
        (root / "metadata/subject_splits.parquet").rename(root / "metadata/patient_splits.parquet")
    said = refused(root, Exit.DATA)
    assert {"text ids": "should be int64", "null": "no subject_id or no split", "old name": "MEDS 0.3"}[bad] in said


def test_splits_without_a_training_split(ehrseq, tmp_path):
    root = splits(raw(tmp_path / "raw", people()), ["development"] * 40 + ["test"] * 20)
    code, said = ehrseq("pretrain", root, tmp_path / "encoder")
    assert code == Exit.DATA
    assert "no subject is in the split 'train' (found: development, test)" in said


def test_metadata_lacking_codes(ehrseq, tmp_path):
    """Reported; codes need no description to be used."""
    root = raw(tmp_path / "raw", people())
    assert cohort_of(root).table.height == 60
    (root / "metadata").mkdir()
    pl.DataFrame({"code": ["OUT"], "description": ["the outcome"]}).write_parquet(root / "metadata/codes.parquet")
    code, said = ehrseq("check", root)
    assert code == 0
    assert "codes without metadata: 3 of 4 codes" in said
    pl.DataFrame({"concept": ["OUT"]}).write_parquet(root / "metadata/codes.parquet")
    code, said = ehrseq("check", root)
    assert code == Exit.DATA
    assert "column 'code' is missing" in said


def test_the_schema_of_an_older_meds(refused, tmp_path):
    older = people().rename({"subject_id": "patient_id"})
    said = refused(raw(tmp_path / "a", older), Exit.DATA)
    assert "MEDS 0.3" in said
    assert "rename patient_id to subject_id" in said
    nested = older.group_by("patient_id").agg(events=pl.struct("time", "code"))
    assert "rename patient_id to subject_id" in refused(raw(tmp_path / "b", nested), Exit.DATA)
    assert "one row a patient" in refused(raw(tmp_path / "e", nested.drop("patient_id")), Exit.DATA)
    double = people().with_columns(pl.col("numeric_value").cast(pl.Float64), text_value=pl.lit("x"))
    root = raw(tmp_path / "c", double)
    assert facts(root)["numeric_value is not float32"] == 1
    assert cohort_of(root).table.equals(cohort_of(raw(tmp_path / "d", people())).table)


def test_histories_cut_at_max_tokens(ehrseq, pretrained, tmp_path):
    """The latest whole visits stay, and how many patients that touched is said; the wide model reads it all."""
    many = [(s, days(-700 + n), "LAB", 5.0) for s in range(1, 13) for n in range(600 if s > 2 else 3)]
    meds = raw(tmp_path / "meds", pl.concat([people(120), events(*many)]))
    splits(meds, ["train"] * 80 + ["tuning"] * 20 + ["held_out"] * 20)
    code, said = fit(ehrseq, meds, pretrained[1], tmp_path, "frozen-ridge")
    assert code == 0, said
    assert "cut to their latest visits: 10 (110 whole)" in said


def test_predictions_for_patients_not_in_the_cohort(ehrseq, tmp_path):
    """Left out and counted where some are in it; refused where none is."""
    root = splits(raw(tmp_path / "raw", people(120)), ["train"] * 60 + ["held_out"] * 60)
    assert ehrseq("cohort", root, task_file(tmp_path), tmp_path / "cohort")[0] == 0

    def predicted(first: int, last: int) -> Path:
        ids, rng = np.arange(first, last), np.random.default_rng(0)
        curve = np.exp(-np.cumsum(rng.random((len(ids), 100)) / 100, axis=1))
        made = np.full(len(ids), np.datetime64(DAY, "us"))
        file = Predictions(ids, made, rng.random(len(ids)), np.linspace(0, 200, 101)[1:], curve)
        file.write(tmp_path / "p.parquet")
        return tmp_path / "p.parquet"

    code, said = ehrseq("evaluate", predicted(61, 141), tmp_path / "cohort", "--bootstrap", 20)
    assert code == 0
    assert "60 of 60 patients" in said
    assert "20 predictions for patients outside the cohort were left out" in said
    code, said = ehrseq("evaluate", predicted(500, 520), tmp_path / "cohort")
    assert code == Exit.BUNDLE
    assert "none of the 20 predictions" in said


DAMAGES = ["missing", "cut short", "foreign", "newer", "unreadable"]


def damage(folder: Path, marker: str, file: str, how: str) -> None:
    content = json.loads((folder / marker).read_text())
    if how == "missing":
        (folder / file).unlink()
    elif how == "cut short":
        (folder / file).write_bytes((folder / file).read_bytes()[:-20])
    elif how == "foreign":
        (folder / marker).write_text(json.dumps({"name": "somebody else's", "version": 3}))
    elif how == "newer":
        (folder / marker).write_text(json.dumps({**content, "format": 99}))
    else:
        from ehrsequencing.bundle import _digest

        (folder / file).write_bytes(b"not what it should be")
        files = {**content["files"], file: _digest(folder / file)}
        (folder / marker).write_text(json.dumps({**content, "files": files}))


@pytest.fixture(scope="module")
def bundle(pretrained, tmp_path_factory) -> Path:
    from ehrsequencing.study import steps

    folder = tmp_path_factory.mktemp("bundle")
    steps.write_bundle(
        pretrained[0], task_file(folder), folder / "bundle", encoder=pretrained[1], strategy="frozen-ridge"
    )
    return folder / "bundle"


@pytest.mark.parametrize("how", DAMAGES)
def test_a_bundle_missing_a_file_truncated_foreign_or_newer(ehrseq, bundle, pretrained, tmp_path, how):
    shutil.copytree(bundle, tmp_path / "bundle")
    damage(tmp_path / "bundle", "bundle.json", "wide.safetensors", how)
    code, said = ehrseq("predict", tmp_path / "bundle", pretrained[0], tmp_path / "p.parquet")
    assert code == Exit.BUNDLE, said
    assert str(tmp_path / "bundle") in said
    assert not (tmp_path / "p.parquet").exists()


@pytest.mark.parametrize("how", DAMAGES)
def test_an_encoder_missing_a_file_truncated_foreign_or_newer(ehrseq, pretrained, tmp_path, how):
    shutil.copytree(pretrained[1], tmp_path / "encoder")
    damage(tmp_path / "encoder", "pretraining.json", "model.safetensors", how)
    with pytest.raises(EhrError) as caught:
        Encoder.load(tmp_path / "encoder")
    assert caught.value.code == Exit.BUNDLE
    assert caught.value.where == str(tmp_path / "encoder")


@pytest.fixture
def full_disk() -> Iterator[None]:
    """Every file ends after so many bytes, whoever writes it: the system itself refuses the rest."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def writes(root: Path, task: Path) -> dict[str, tuple[object, ...]]:
    return {
        "simulate": ("simulate", "OUT", "--patients", 300, "--seed", 1),
        "cohort": ("cohort", root, task, "OUT"),
        "pretrain": ("pretrain", root, "OUT", "--epochs", 1, "--quiet"),
    }


@pytest.mark.parametrize("earlier", [False, True])
@pytest.mark.parametrize("verb", ["simulate", "cohort", "pretrain"])
def test_a_full_disk(ehrseq, tmp_path, request, verb, earlier):
    """Exit 14, the earlier result whole, nothing else left behind."""
    root = raw(tmp_path / "raw", people(600))
    words = writes(root, task_file(tmp_path))[verb]
    command = [tmp_path / "out" if word == "OUT" else word for word in words]
    if earlier:
        (tmp_path / "out").mkdir()
    before = contents(tmp_path)
    request.getfixturevalue("full_disk")
    code, said = ehrseq(*command)
    assert code == Exit.ENVIRONMENT, said
    assert "cannot be written" in said
    assert contents(tmp_path) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["raw", "task.yaml"] + ["out"] * earlier)


def save_npy(path: Path) -> None:
    with path.open("wb") as file:
        np.save(file, np.arange(10_000))


@pytest.mark.parametrize(
    "write",
    [
        lambda path: pl.DataFrame({"a": range(10_000)}).write_parquet(path),
        lambda path: pl.DataFrame({"a": range(10_000)}).write_csv(path),
        save_npy,
        lambda path: __import__("safetensors.numpy").numpy.save_file({"a": np.arange(10_000)}, path),
        lambda path: path.write_text("x" * 10_000),
    ],
    ids=["parquet", "csv", "npy", "safetensors", "text"],
)
def test_a_full_disk_under_any_writer(tmp_path, full_disk, write):
    (tmp_path / "kept").write_text("the earlier result")
    with pytest.raises(EhrError, match="cannot be written: ") as caught, staged_file(tmp_path / "kept") as draft:
        write(draft)
    assert caught.value.code == Exit.ENVIRONMENT
    assert contents(tmp_path) == {"kept": b"the earlier result"}


HOLDER = """
import sys, time
from pathlib import Path
from ehrsequencing.files import staged
with staged(Path(sys.argv[1]), "metadata/dataset.json") as draft:
    (draft / "first.txt").write_text("by the first")
    print("writing", flush=True)
    time.sleep(60)
"""


@contextlib.contextmanager
def writing(out: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process is writing ``out``; it is killed in the end."""
    command = [sys.executable, "-c", HOLDER, str(out)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "writing\n"
        yield process
        process.kill()


def test_two_runs_into_one_folder(ehrseq, tmp_path):
    """The second stops and says so; the first is unharmed."""
    with writing(tmp_path / "out") as first:
        code, said = ehrseq("simulate", tmp_path / "out", "--patients", 20)
        assert code == Exit.ENVIRONMENT
        assert "another run is writing there" in said
        assert first.poll() is None
        assert [path.name for path in tmp_path.glob(".out.*.tmp/*")] == ["first.txt"]


def test_a_killed_run_blocks_nobody_and_its_draft_is_tidied_away(ehrseq, tmp_path):
    with writing(tmp_path / "out"):
        pass
    assert list(tmp_path.glob(".out.*.tmp"))
    code, said = ehrseq("simulate", tmp_path / "out", "--patients", 20)
    assert code == 0, said
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_killed_while_replacing_the_earlier_result_comes_back(tmp_path, monkeypatch):
    with staged(tmp_path / "out", "marker") as draft:
        (draft / "marker").write_text("earlier")
    rename, calls = Path.rename, []

    def killed_at_the_second(self: Path, target: Path) -> Path:
        calls.append(self)
        if len(calls) == 2:
            os._exit(9)
        return rename(self, target)

    child = os.fork()
    if child == 0:
        monkeypatch.setattr(Path, "rename", killed_at_the_second)
        with staged(tmp_path / "out", "marker") as draft:
            (draft / "marker").write_text("later")
        os._exit(0)
    assert os.waitpid(child, 0)[1] != 0
    assert not (tmp_path / "out").exists()
    with pytest.raises(RuntimeError), staged(tmp_path / "out", "marker"):
        raise RuntimeError
    assert (tmp_path / "out" / "marker").read_text() == "earlier"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_columns_of_odd_types_in_a_table(tmp_path):
    table = pl.DataFrame({"subject_id": [1, 2], "time": [DAY, DAY], "code": ["A", "B"], "numeric_value": [1.0, 2.0]})
    lists = {"code": [["A"], ["B"]], "numeric_value": [[1.0], [2.0]], "subject_id": [[1], [2]], "time": [[DAY], [DAY]]}
    for column, values in lists.items():
        with pytest.raises(EhrError, match=f"column '{column}' should hold"):
            from_dataframe(table.with_columns(pl.Series(column, values)), tmp_path / "out")
    for mixed in ([1, "two"], [1, [2]], [1, {"id": 2}]):
        with pytest.raises(EhrError, match="column 'subject_id'") as caught:
            from_dataframe(pd.DataFrame({**table.to_pandas(), "subject_id": mixed}), tmp_path / "out")
        assert caught.value.code == Exit.DATA
    assert list(tmp_path.iterdir()) == []


def test_a_table_of_which_no_row_can_be_read_says_why(tmp_path):
    rows = {"subject_id": [1, None, 3], "time": ["1.2.2010", "2010-01-01", "2.2.2010"], "code": ["A", "B", "C"]}
    with pytest.raises(EhrError) as caught:
        from_dataframe(pl.DataFrame(rows), tmp_path / "out", name="visits")
    assert "no row can be read: 2 times time is not a date; 1 times subject_id is empty" in caught.value.what
    assert caught.value.where.startswith("visits, rows 0, 1, 2")
    with pytest.raises(EhrError, match="the table has no rows"):
        from_dataframe(pl.DataFrame(rows).clear(), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_whole_number_ids_that_an_empty_cell_made_floats(tmp_path):
    frame = pd.DataFrame({"subject_id": [7, None, 9], "time": ["2010-01-01"] * 3, "code": ["A", "B", "C"]})
    assert frame["subject_id"].dtype == float
    made = from_dataframe(frame, tmp_path / "out")
    assert made.subject_ids().tolist() == [7, 9]
    assert check(made).facts["rows_set_aside"] == 1
    with pytest.raises(EhrError, match="found Float64"):
        from_dataframe(frame.assign(subject_id=[7.5, 8.0, 9.0]), tmp_path / "out")


def test_the_page_names_these_tests():
    own = {name for name in globals() if name.startswith("test_") and name != "test_the_page_names_these_tests"}
    assert set(re.findall(r"`(test_\w+)`", PAGE.read_text(encoding="utf-8"))) == own
