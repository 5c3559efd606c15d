"""A whole study on a small simulation: what it leaves on disk, that it repeats, that bundles predict it again."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import yaml

from ehrsequencing.bundle import Bundle
from ehrsequencing.cohort import Cohort
from ehrsequencing.config import SplitConfig, StudyConfig, TaskConfig, load_yaml
from ehrsequencing.errors import EhrError, Exit
from ehrsequencing.events import MedsDataset
from ehrsequencing.inference import predict
from ehrsequencing.predictions import Predictions
from ehrsequencing.study import plan, run_study
from ehrsequencing.study.data import divisions, limit_labelled

STUDIES = Path(__file__).parent.parent / "studies"
SMALL = {
    "name": "small",
    "data": {"simulate": {"patients": 240, "noise_codes": 20}},
    "task": "task.yaml",
    "labelled": 160,
    "pretrain": {"epochs": 1},
    "strategies": ["frozen", "frozen-ridge", "lora"],
    "seeds": [0, 1],
    "budget": {"max_epochs": 1, "patience": 1},
    "bootstrap": 50,
}


def write(folder: Path, **changes) -> Path:
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump({**SMALL, **changes}))
    return path


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    said: list[str] = []
    run_study(write(folder), folder / "out", say=said.append)
    return folder / "out", "\n".join(said)


def comparison(out: Path):
    return json.loads((out / "comparison.json").read_text())


def test_every_model_is_scored_on_the_same_patients(finished):
    out, _ = finished
    files = sorted((out / "predictions").glob("*.parquet"))
    subjects = [tuple(Predictions.read(file).subject_id) for file in files]
    assert len(set(subjects)) == 1
    assert len(subjects[0]) == comparison(out)["n"]


def test_the_comparison_names_every_row_with_intervals(finished):
    out, _ = finished
    found = comparison(out)
    kinds = {row["model"]: row["kind"] for row in found["rows"]}
    assert kinds == {
        "oracle": "oracle",
        **dict.fromkeys(
            ["frozen+wide", "frozen", "frozen-ridge+wide", "frozen-ridge", "lora+wide", "lora"], "strategy"
        ),
        **dict.fromkeys(["kaplan-meier", "age-sex", "cox", "boosting", "wide", "lstm"], "baseline"),
    }
    for row in found["rows"]:
        for metric in ("harrell_c", "uno_c", "ibs"):
            figure = row["metrics"][metric]
            assert figure["low"] <= figure["value"] <= figure["high"]
    by_name = {row["model"]: row for row in found["rows"]}
    assert by_name["kaplan-meier"]["metrics"]["harrell_c"]["value"] == 0.5
    assert by_name["lora"]["seeds"] == [0, 1]
    assert by_name["frozen-ridge"]["seeds"] == [0]
    assert by_name["lora"]["trainable"] < by_name["lora"]["total"]
    assert {d["metric"] for d in found["differences"]} == {"uno_c", "ibs", "antolini_c"}
    assert all(d["word"] in ("climb", "stay", "underpowered") for d in found["differences"] if d["metric"] == "uno_c")
    assert by_name["lora"]["checks"]["d_calibration"]["p"] is not None
    assert by_name["lora"]["metrics"]["slope@1826"]["low"] is not None
    assert {each["name"] for each in found["subgroups"]} >= {"sex", "age"}
    assert found["sample_size"]["validation"]
    assert any("events" in warning for warning in found["warnings"])


def test_without_recalibration_there_is_nothing_from_before_it(finished):
    out, _ = finished
    assert comparison(out)["events_tuning"] < 20, "too few to recalibrate"
    assert not (out / "predictions" / "raw").exists()


def test_the_best_strategy_is_explained(finished):
    out, _ = finished
    found = json.loads((out / "attributions.json").read_text())
    assert found["model"] in {row["model"] for row in comparison(out)["rows"] if row["kind"] == "strategy"}
    assert found["codes"]


def test_the_report_is_written_and_names_no_patient_file(finished):
    out, _ = finished
    page = (out / "report.html").read_text()
    assert "lora+wide" in page
    assert str(out.parent) not in page


def test_what_was_chosen_is_said_with_departures_and_footprint(finished):
    _, said = finished
    assert "Recipe 'small'" in said
    assert "at most 1 epochs instead of 100" in said
    assert "masked codes guessed" in said


@pytest.mark.parametrize("row", ["lora+wide", "lora", "wide"])
def test_a_bundle_gives_the_held_out_predictions_again(finished, row):
    out, _ = finished
    bundle, dataset = Bundle.load(out / "models" / "lora-0"), MedsDataset.open(out / "meds")
    again = predict(bundle, dataset, row=row)
    kept = Predictions.read(out / "predictions" / f"{row}-0.parquet")
    at = np.searchsorted(again.subject_id, kept.subject_id)
    assert np.array_equal(again.subject_id[at], kept.subject_id)
    assert np.allclose(again.risk[at], kept.risk, rtol=1e-5)
    assert np.allclose(again.survival[at], kept.survival, atol=1e-5)


def test_a_rerun_gives_the_same_numbers(finished, tmp_path):
    out, _ = finished
    study = write(tmp_path, strategies=["frozen-ridge"], baselines=["cox", "wide"], seeds=[0])
    run_study(study, tmp_path / "out")
    first = {row["model"]: row["metrics"] for row in comparison(out)["rows"]}
    again = {row["model"]: row["metrics"] for row in comparison(tmp_path / "out")["rows"]}
    for model in ("frozen-ridge", "frozen-ridge+wide", "cox", "wide", "oracle"):
        assert again[model] == first[model], model


def test_folds_pool_out_of_fold_predictions_of_everybody(tmp_path):
    study = write(
        tmp_path,
        labelled=None,
        folds=2,
        strategies=["frozen-ridge"],
        baselines=["kaplan-meier", "cox", "wide"],
        seeds=[0],
    )
    run_study(study, tmp_path / "out")
    found = comparison(tmp_path / "out")
    cohort = Cohort.read(tmp_path / "out" / "cohort")
    assert (found["split"], found["n"]) == ("out_of_fold", cohort.table.height)
    pooled = Predictions.read(tmp_path / "out" / "predictions" / "frozen-ridge-0.parquet")
    assert set(pooled.subject_id) == set(cohort.table["subject_id"])
    assert {path.name for path in (tmp_path / "out" / "models").iterdir()} == {
        "frozen-ridge-0-fold0",
        "frozen-ridge-0-fold1",
    }


def test_folds_keep_everybody_out_of_the_pretraining_of_their_own_fold(dataset):
    parts = divisions(dataset, 3, SplitConfig())
    held_out = [set(part.subject_id[part.split == "held_out"]) for part in parts]
    assert set.union(*held_out) == set(dataset.subject_ids())
    for part, out in zip(parts, held_out, strict=True):
        assert not out & set(part.train_subjects())
        assert len(part.train_subjects()) > 0.4 * len(part.subject_id)


def test_labelled_limits_train_and_tuning_and_leaves_held_out_alone():
    rows = pl.DataFrame(
        {
            "subject_id": range(100),
            "prediction_time": [0] * 100,
            "duration": [1.0] * 100,
            "event": [1] * 100,
            "split": ["train"] * 60 + ["tuning"] * 20 + ["held_out"] * 20,
        },
        schema_overrides={"prediction_time": pl.Datetime("us"), "event": pl.Int8},
    )
    task = TaskConfig(name="t", index={"age": 1}, outcome="A")
    fewer = limit_labelled(Cohort(rows, pl.DataFrame(), task), 30, 0).table
    assert (fewer["split"] == "held_out").sum() == 20
    assert fewer.height == 50
    most = limit_labelled(Cohort(rows, pl.DataFrame(), task), 31, 0).table
    assert set(fewer["subject_id"]) < set(most["subject_id"])


def test_a_dry_run_says_what_would_be_fitted_and_leaves_nothing(tmp_path):
    text = plan(write(tmp_path))
    assert "would pretrain 1 encoder" in text
    assert "minutes" in text
    assert [path.name for path in tmp_path.iterdir()] == ["study.yaml"]


def test_a_failing_run_leaves_nothing_behind(tmp_path):
    task = {"name": "never", "index": {"age": 50}, "outcome": "ICD10CM//Z99", "horizon_days": 365}
    with pytest.raises(EhrError) as caught:
        run_study(write(tmp_path, task=task), tmp_path / "out")
    assert caught.value.code == Exit.COHORT
    assert [path.name for path in tmp_path.iterdir()] == ["study.yaml"]


@pytest.mark.parametrize(("changes", "word"), [({"strategies": ["lorra"]}, "lora"), ({"baselines": ["cocks"]}, "cox")])
def test_an_unknown_model_names_the_nearest(tmp_path, changes, word):
    with pytest.raises(EhrError) as caught:
        run_study(write(tmp_path, **changes), tmp_path / "out")
    assert caught.value.code == Exit.CONFIG
    assert word in caught.value.fix


@pytest.mark.parametrize("path", sorted(STUDIES.glob("*.yaml")), ids=lambda path: path.stem)
def test_the_studies_shipped_are_valid(path):
    assert load_yaml(StudyConfig, path).name == path.stem
