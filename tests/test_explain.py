"""What people are told of attributions: codes of enough patients, examples without ids or dates, files, the verb."""

from __future__ import annotations

import json
import re
import sys

import numpy as np
import polars as pl
import pytest

from ehrsequencing.attribution import Attributions, explain, explain_rows
from ehrsequencing.attribution.examples import MAX_CODES, OTHER, coarse
from ehrsequencing.bundle import Bundle
from ehrsequencing.cli import main
from ehrsequencing.cohort import build_cohort
from ehrsequencing.config import HELD_OUT, MIN_CELL, load_task
from ehrsequencing.models.wide import fit_wide
from ehrsequencing.progress import Tick
from ehrsequencing.study.assemble import make_bundle
from ehrsequencing.training.finetune import finetune

PATIENTS = 30


@pytest.fixture(scope="module")
def bundle(dataset, prepared, encoder, recipe) -> Bundle:
    task = load_task(dataset.root / "task.yaml")
    fitted = finetune(prepared.data, "frozen-ridge", recipe, encoder.model)
    return make_bundle(prepared, task, fitted, fit_wide(prepared.data), {"seed": 5})


@pytest.fixture(scope="module")
def folder(bundle, tmp_path_factory):
    place = tmp_path_factory.mktemp("bundles") / "one"
    bundle.save(place)
    return place


@pytest.fixture(scope="module")
def told(bundle, dataset) -> dict:
    rows = build_cohort(dataset, bundle.task).table.filter(pl.col("split") == HELD_OUT)
    return explain_rows(bundle, dataset, rows, max_patients=PATIENTS)


def made(lines: list[tuple[int, str, float | None, float]], risks: dict[int, float]) -> Attributions:
    """Attributions of given lines: subject, code, days_before, attribution."""
    now = pl.lit("2020-01-01").str.to_datetime(time_unit="us").alias("prediction_time")
    table = pl.DataFrame(
        lines,
        schema={"subject_id": pl.Int64, "code": pl.String, "days_before": pl.Float64, "attribution": pl.Float64},
        orient="row",
    ).with_columns(now)
    people = pl.DataFrame({"subject_id": list(risks), "risk": list(risks.values())}).with_columns(
        now, baseline_risk=pl.lit(0.25), steps=pl.lit(8)
    )
    return Attributions("lora", 0, 365.0, "nothing", people, table, {"A": "a code in words"})


def twelve() -> Attributions:
    """Subjects 101 … 112: everybody has A, eleven B, nine C (rare), one many codes."""
    lines: list[tuple[int, str, float | None, float]] = []
    for number in range(12):
        subject = 101 + number
        lines += [(subject, "A", 3.0, 0.01 * number), (subject, "A", 400.0, -0.002), (subject, "SEX//F", None, 0.001)]
        lines += [(subject, "B", 3.0, -0.02)] if number else []
        lines += [(subject, "C", 5.0, 0.03)] if number >= 3 else []
    lines += [(112, f"D{number}", 5.0, 0.001) for number in range(9)]
    return made(lines, {101 + number: 0.05 * number for number in range(12)})


def test_only_codes_of_enough_patients_are_listed():
    codes = {line["code"]: line for line in twelve().codes()}
    assert set(codes) == {"A", "SEX//F"}, "B is had by all but one of twelve, who would stand out"
    assert codes["A"]["description"] == "a code in words"
    assert codes["A"]["mean"] == pytest.approx(0.055 - 0.002)
    assert codes["A"]["mean_abs"] == pytest.approx(0.055 - 0.002 + 2 * 0.002 / 12, abs=1e-6)


def test_examples_are_chosen_by_rule_and_never_the_extremes():
    shown = twelve().to_json()["examples"]
    assert [example["patient"] for example in shown] == [1, 2, 3, 4]
    assert [example["risk"] for example in shown] == pytest.approx([0.50, 0.40, 0.30, 0.15])


def test_rare_codes_are_not_named_and_sums_stay_whole():
    found = twelve()
    for example in found.to_json()["examples"]:
        named = {line["code"] for visit in example["visits"] for line in visit["codes"]}
        assert named <= {"A", "B", OTHER}
        (subject,) = (101 + number for number in range(12) if np.isclose(0.05 * number, example["risk"]))
        own = found.table.filter(pl.col("subject_id") == subject)["attribution"].sum()
        parts = [line["attribution"] for visit in example["visits"] for line in visit["codes"]]
        parts += [line["attribution"] for line in example["undated"]]
        assert sum(parts) + example["earlier"] == pytest.approx(own, abs=1e-5)
        assert [visit["days_before"] for visit in example["visits"]] == [0, 7, 396]


def test_few_patients_are_no_examples():
    few = made([(number, "A", 1.0, 0.1) for number in range(9)], dict.fromkeys(range(9), 0.3)).to_json()
    assert few["examples"] == few["codes"] == []


@pytest.mark.parametrize(("days", "rounded"), [(0, 0), (3.4, 0), (3.6, 7), (89, 91), (95, 91), (729, 730), (900, 730)])
def test_days_are_coarsened(days, rounded):
    assert coarse(float(days)) == rounded


def test_the_study_gets_what_the_report_reads(told, bundle):
    assert told["model"] == bundle.default_row
    assert told["seed"] == 5
    assert told["horizon"] == bundle.grid.tau
    assert told["patients"] == PATIENTS
    assert told["completeness"] <= 2e-3
    assert json.loads(json.dumps(told, allow_nan=False)) == told
    assert told["codes"][0]["mean_abs"] >= told["codes"][-1]["mean_abs"] > 0
    assert all(line["patients"] >= MIN_CELL for line in told["codes"])
    described = {line["code"]: line["description"] for line in told["codes"]}
    assert described["age"].startswith("Age")
    assert all(words for code, words in described.items() if code.startswith(("ICD10CM//", "LOINC//")))
    for example in told["examples"]:
        assert max(len(visit["codes"]) for visit in example["visits"]) <= MAX_CODES + 1


def test_neither_patients_nor_dates_are_in_what_people_read(told, dataset):
    text = json.dumps(told)
    assert not re.search(r"\b(19|20)\d\d-\d\d", text)
    assert "subject" not in text
    ids = {int(number) for number in re.findall(r'"patient": (\d+)', text)}
    assert ids == set(range(1, len(told["examples"]) + 1))


def test_progress_is_told_to_whoever_was_given(bundle, dataset):
    rows = build_cohort(dataset, bundle.task).table.head(12)
    heard: list[Tick] = []
    explain_rows(bundle, dataset, rows, row="wide", progress=heard.append)
    assert heard[-1].done == heard[-1].total == 12


def run(monkeypatch, capfd, *words: object) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["ehrseq", *map(str, words)])
    with pytest.raises(SystemExit) as end:
        main()
    out, err = capfd.readouterr()
    return int(end.value.code or 0), out, err


def test_the_verb_leaves_two_files_and_a_table(folder, dataset, tmp_path, monkeypatch, capfd):
    out = tmp_path / "why"
    words = ("explain", folder, dataset.root, out, "--row", "wide", "--patients", 40, "--horizon", 730)
    code, text, err = run(monkeypatch, capfd, *words)
    assert code == 0, err
    assert "Age, against the average training patient" in text
    assert "not causation" in " ".join(text.split())
    assert err == f"next: ehrseq predict {folder} {dataset.root} {tmp_path / 'predictions.parquet'}\n"
    told = json.loads((out / "attributions.json").read_text())
    assert told["horizon"] == 730
    table = pl.read_parquet(out / "attributions.parquet")
    assert table.columns == ["subject_id", "prediction_time", "code", "days_before", "attribution"]
    assert table["subject_id"].n_unique() == told["patients"] == 40
    code, text, err = run(monkeypatch, capfd, *words, "--json")
    assert code == 0
    assert err == ""
    assert json.loads(text)["codes"] == told["codes"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["why"]


def test_a_label_file_says_whom_to_explain(folder, bundle, dataset, tmp_path, monkeypatch, capfd):
    rows = build_cohort(dataset, bundle.task).table.select("subject_id", "prediction_time").head(15)
    rows.write_parquet(tmp_path / "labels.parquet")
    words = (
        "explain",
        folder,
        dataset.root,
        tmp_path / "why",
        "--row",
        "wide",
        "--labels",
        tmp_path / "labels.parquet",
    )
    assert run(monkeypatch, capfd, *words)[0] == 0
    table = pl.read_parquet(tmp_path / "why" / "attributions.parquet")
    assert set(table["subject_id"]) == set(rows["subject_id"])


@pytest.mark.parametrize(
    ("options", "code", "word"),
    [
        (("--row", "widee"), 2, "no row 'widee'"),
        (("--horizon", 99999), 2, "no risk by 99999 days"),
        (("--patients", 0), 2, "patients"),
        (("--labels", "nowhere.parquet"), 11, "label file"),
    ],
)
def test_mistakes_end_with_their_exit_code(folder, dataset, tmp_path, monkeypatch, capfd, options, code, word):
    found, _, err = run(monkeypatch, capfd, "explain", folder, dataset.root, tmp_path / "why", *options)
    assert found == code, err
    assert word in err
    assert not list(tmp_path.iterdir())


def test_places_that_hold_something_else_are_left_alone(folder, dataset, tmp_path, monkeypatch, capfd):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    for place in (tmp_path / "mine", dataset.root / "why", folder):
        assert run(monkeypatch, capfd, "explain", folder, dataset.root, place)[0] == 14
    assert not (dataset.root / "why").exists()
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.txt"]


def test_the_table_gives_every_patient_its_risk(bundle, dataset):
    found = explain(bundle, dataset, row="wide", patients=20)
    total = found.table.group_by("subject_id").agg(pl.col("attribution").sum()).sort("subject_id")
    expected = found.patients["risk"] - found.patients["baseline_risk"]
    np.testing.assert_allclose(total["attribution"], expected, atol=1e-6)
