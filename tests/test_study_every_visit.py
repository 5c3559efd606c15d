"""A study of predictions at every visit: one row a patient in the comparison, trajectories, refusals, the verbs."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial

import numpy as np
import polars as pl
import pytest
import yaml

from ehrsequencing.bundle import Bundle, Encoder
from ehrsequencing.cohort import Cohort
from ehrsequencing.config import HELD_OUT, BudgetConfig, SimulateConfig
from ehrsequencing.errors import EhrError, Exit
from ehrsequencing.events import MedsDataset
from ehrsequencing.inference import predict
from ehrsequencing.predictions import Predictions
from ehrsequencing.report.inputs import TRAJECTORIES
from ehrsequencing.study import plan, run_study
from ehrsequencing.study.data import prepare
from ehrsequencing.study.steps import write_bundle
from ehrsequencing.study.trajectories import EXAMPLES, example_trajectories
from ehrsequencing.synthetic import simulate
from ehrsequencing.synthetic.truth import TRUTH_FILE

STUDY = {
    "name": "visits",
    "task": "task.yaml",
    "model": {"attention": "block_causal"},
    "pretrain": {"epochs": 1, "batch_size": 64},
    "strategies": ["frozen"],
    "baselines": ["kaplan-meier", "age-sex"],
    "seeds": [0],
    "budget": {"max_epochs": 1, "patience": 1},
    "bootstrap": 20,
}

BUDGET = BudgetConfig(max_epochs=1, patience=1)


@pytest.fixture(scope="module")
def meds(tmp_path_factory):
    config = SimulateConfig(patients=220, noise_codes=10, question="every_visit")
    dataset = simulate(tmp_path_factory.mktemp("simulated") / "meds", config)
    (dataset.root / TRUTH_FILE).unlink()  # no oracle: drawing the truth takes longer than the study
    return dataset.root


def write(folder, meds, **changes):
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump({**STUDY, "data": {"meds": str(meds)}, **changes}))
    return path


@pytest.fixture(scope="module")
def finished(tmp_path_factory, meds):
    folder = tmp_path_factory.mktemp("study")
    run_study(write(folder, meds), folder / "out")
    return folder / "out"


@pytest.fixture(scope="module")
def cohort(finished):
    return Cohort.read(finished / "cohort")


def test_the_comparison_has_one_row_a_patient_and_no_blend(finished, cohort):
    comparison = json.loads((finished / "comparison.json").read_text())
    names = {row["model"] for row in comparison["rows"]}
    assert {"frozen", "kaplan-meier", "age-sex"} <= names
    assert not any("+" in name for name in names)
    held_out = cohort.table.filter(pl.col("split") == HELD_OUT)
    assert comparison["n"] == held_out.height == held_out["subject_id"].n_unique()
    scored = Predictions.read(finished / "predictions" / "frozen-0.parquet")
    assert np.array_equal(scored.subject_id, held_out["subject_id"])
    assert np.array_equal(scored.prediction_time, held_out["prediction_time"])


def test_trajectories_carry_no_ids_and_no_dates(finished, cohort):
    shown = pl.read_parquet(finished / TRAJECTORIES)
    assert dict(shown.schema) == {
        "patient": pl.Int64,
        "days_since_first_visit": pl.Int64,
        "risk_at_horizon": pl.Float64,
    }
    assert shown["patient"].unique().sort().to_list() == list(range(1, EXAMPLES + 1))
    assert shown["risk_at_horizon"].is_between(0, 1).all()
    for (_,), patient in shown.group_by("patient"):
        days = patient["days_since_first_visit"].to_numpy()
        assert days[0] == 0
        assert (np.diff(days) > 0).all()
        assert len(days) >= 3
    last = shown.group_by("patient", maintain_order=True).last()["risk_at_horizon"].to_numpy()
    assert (np.diff(last) >= 0).all()


def test_a_bundle_gives_the_risk_at_each_visit(finished, meds):
    bundle, dataset = Bundle.load(finished / "models" / "frozen-0"), MedsDataset.open(meds)
    every = predict(bundle, dataset)
    assert every.model == "frozen"
    assert len(every) > 3 * len(set(every.subject_id))
    keys = ["subject_id", "prediction_time"]
    asked = every.to_frame().select(*keys, "risk").with_row_index("at")
    kept = Predictions.read(finished / "predictions" / "frozen-0.parquet")
    found = kept.to_frame().select(*keys, kept="risk").join(asked, on=keys, how="left", maintain_order="left")
    assert np.allclose(found["risk"], found["kept"], rtol=1e-5)
    risk = every.outcome_risk_at(np.array([bundle.grid.tau]))[:, 0]
    assert np.std(risk) > 0


def test_too_few_patients_are_no_examples(finished, meds, cohort):
    prepared = prepare(MedsDataset.open(meds), cohort, Encoder.load(finished / "encoder"))
    bundle, visits = Bundle.load(finished / "models" / "frozen-0"), prepared.data.visits
    begin, count = visits.patients(HELD_OUT)
    few = np.repeat(begin[:9], count[:9]) + np.concatenate([np.arange(n) for n in count[:9]])
    fewer = replace(visits, rows=visits.rows[few], places=visits.places.take(few))
    assert example_trajectories(bundle, visits) is not None
    assert example_trajectories(bundle, fewer) is None


def test_a_dry_run_counts_the_windows(tmp_path, meds):
    said = plan(write(tmp_path, meds))
    assert "training tokens" in said


def test_a_bidirectional_study_is_refused_with_the_leak_explained(tmp_path, meds):
    with pytest.raises(EhrError, match="read the visits after it") as caught:
        run_study(write(tmp_path, meds, model={"attention": "bidirectional"}), tmp_path / "out")
    assert caught.value.code == Exit.LEAKAGE
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_finetune_alone(finished, meds, tmp_path):
    causal, other = finished / "encoder", tmp_path / "other"
    turned = Encoder.load(causal)
    turned.masked_lm.config.attention = "bidirectional"
    turned.save(other)
    fit = partial(write_bundle, meds, meds / "task.yaml", tmp_path / "bundle", strategy="frozen", budget=BUDGET)
    with pytest.raises(EhrError, match="read the visits after it") as caught:
        fit(encoder=other)
    assert caught.value.code == Exit.LEAKAGE
    with pytest.raises(EhrError, match="read the visits after it"):
        fit(encoder=causal, attention="bidirectional")
    assert "frozen" in fit(encoder=other, attention="block_causal")
    assert Bundle.load(tmp_path / "bundle").facts["predict_at"] == "every_visit"
