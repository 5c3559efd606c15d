"""Validation on other patients: what is unknown, who they are, figures before and after recalibration, refusals."""

from __future__ import annotations

import datetime as dt
import json
import re
from dataclasses import replace
from pathlib import Path

import lifelines
import numpy as np
import polars as pl
import pytest

from ehrsequencing.bundle import Bundle
from ehrsequencing.cohort import Cohort, build_cohort, cut
from ehrsequencing.config import PretrainConfig, SimulateConfig, SplitConfig, TokensConfig, load_task
from ehrsequencing.errors import EhrError, Exit
from ehrsequencing.evaluation.metrics import harrell_c
from ehrsequencing.events import BIRTH, DEATH, MedsDataset, from_dataframe
from ehrsequencing.inference import predict_rows
from ehrsequencing.models.strategies import find_strategy
from ehrsequencing.models.wide import fit_wide
from ehrsequencing.predictions import Predictions
from ehrsequencing.study.assemble import make_bundle
from ehrsequencing.study.before_after import cross_fit, halves
from ehrsequencing.study.casemix import describe_casemix, vocabulary_shares
from ehrsequencing.study.data import prepare
from ehrsequencing.study.steps import pretrain
from ehrsequencing.study.validate import validate
from ehrsequencing.synthetic import simulate
from ehrsequencing.timegrid import TimeGrid, truncate
from ehrsequencing.tokens.vocabulary import UNK
from ehrsequencing.training.finetune import finetune

FACTS = {"seed": 0, "split": SplitConfig().model_dump(mode="json")}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory, prepared, dataset, encoder, recipe) -> Path:
    task = load_task(dataset.root / "task.yaml")
    fitted = finetune(prepared.data, find_strategy("frozen-ridge"), recipe, encoder.model)
    folder = tmp_path_factory.mktemp("bundle") / "bundle"
    make_bundle(prepared, task, fitted, fit_wide(prepared.data), FACTS).save(folder)
    return folder


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory) -> MedsDataset:
    """Other patients of the same simulated hospital; the names of its diagnoses are its own."""
    folder = tmp_path_factory.mktemp("elsewhere")
    other = simulate(folder / "same-codes", SimulateConfig(patients=360, noise_codes=20, seed=5))
    events = other.scan().collect()
    local = pl.col("code").str.starts_with("ICD10CM//") & ~pl.col("code").str.contains("I50")
    events = events.with_columns(
        code=pl.when(local).then("LOCAL//" + pl.col("code").hash().cast(pl.String)).otherwise("code")
    )
    made = from_dataframe(events, folder / "meds")
    (made.root / "task.yaml").write_bytes((other.root / "task.yaml").read_bytes())
    (made.root / "labels").mkdir()
    for file in (other.root / "labels").iterdir():
        (made.root / "labels" / file.name).write_bytes(file.read_bytes())
    return made


@pytest.fixture(scope="module")
def finished(tmp_path_factory, bundle, elsewhere):
    out = tmp_path_factory.mktemp("validated") / "out"
    return validate(bundle, elsewhere.root, elsewhere.root / "task.yaml", out, bootstrap=40)


def test_predictions_are_the_bundles_own(finished, bundle, elsewhere):
    made = Predictions.read(finished.out / "predictions.parquet")
    cohort = Cohort.read(finished.out / "cohort")
    again = predict_rows(Bundle.load(bundle), elsewhere, cohort.table)
    np.testing.assert_allclose(made.survival, again.survival, atol=1e-6)
    assert made.cohort_fingerprint == cohort.fingerprint


def test_c_is_that_of_an_independent_count(finished):
    made, table = Predictions.read(finished.out / "predictions.parquet"), Cohort.read(finished.out / "cohort").table
    duration, event = truncate(table["duration"].to_numpy(), table["event"].to_numpy(), finished.found["tau"])
    earlier = (duration[:, None] < duration) & (event[:, None] == 1)
    earlier |= (duration[:, None] == duration) & (event[:, None] == 1) & (event == 0)
    higher = (made.risk[:, None] > made.risk) + 0.5 * (made.risk[:, None] == made.risk)
    found = finished.found["before"]["metrics"]["harrell_c"]
    assert found["value"] == pytest.approx(higher[earlier].mean(), abs=1e-9)
    assert found["value"] == pytest.approx(harrell_c(duration, event, made.risk), abs=1e-9)
    assert found["low"] < found["value"] < found["high"]


def test_every_figure_stands_before_and_after_with_an_interval(finished):
    assert json.loads((finished.out / "validation.json").read_text()) == finished.found
    for side in ("before", "after"):
        assert {"harrell_c", "uno_c", "ibs"} <= set(finished.found[side]["metrics"])
        for horizon in map(str, ("365.25", "1826")):
            calibration = finished.found[side]["calibration"][horizon]
            assert {"ici", "e50", "e90"} <= set(calibration)
            for name in ("slope", "intercept", "observed", "expected", "oe"):
                figure = calibration[name]
                assert figure["low"] <= figure["value"] <= figure["high"]
    observed = [finished.found[side]["calibration"]["1826"]["observed"]["value"] for side in ("before", "after")]
    assert observed[0] == observed[1]


def test_the_unknown_share_is_counted_event_by_event(finished, bundle, elsewhere):
    tokenizer, table = Bundle.load(bundle).tokenizer, Cohort.read(finished.out / "cohort").table
    history = cut(elsewhere.scan(), table, load_task(elsewhere.root / "task.yaml")).collect()
    pairs = [(s, c) for s, c in history.select("subject_id", "code").iter_rows() if c not in (BIRTH, DEATH)]
    unknown = [(subject, code) for subject, code in pairs if tokenizer.encode(code) == UNK]
    fallback = [code for _, code in pairs if tokenizer.encode(code) != UNK and code not in tokenizer.codes]
    found = finished.found["casemix"]["validation"]["vocabulary"]
    assert len(unknown) / len(pairs) > 0.1
    assert found["unknown"] == pytest.approx(len(unknown) / len(pairs))
    assert found["fallback"] == pytest.approx(len(fallback) / len(pairs))
    widespread: dict[str, set[int]] = {}
    for subject, code in unknown:
        widespread.setdefault(code, set()).add(subject)
    shown = {code: share * table.height for code, share in found["codes"].items()}
    assert shown
    for code, patients in shown.items():
        assert len(widespread[code]) >= 10
        assert round(patients) <= len(widespread[code])
    assert any(code.startswith("LOCAL//") for code in shown)


def test_the_bundle_keeps_the_case_mix_of_its_training_patients(finished, prepared):
    kept = finished.found["casemix"]["development"]
    train = prepared.data.rows.filter(pl.col("split") == "train")
    assert kept["patients"].lstrip("~") == str(train.height)
    assert kept["age_years"][1] == pytest.approx(float(np.median(_ages(prepared))), abs=0.02)
    assert kept["vocabulary"]["unknown"] < finished.found["casemix"]["validation"]["vocabulary"]["unknown"]
    assert 0.3 < sum(kept["sex"].values()) <= 1.0


def _ages(prepared) -> np.ndarray:
    tokens = prepared.data.tokens
    return tokens.age[tokens.offsets[:-1]][prepared.data.index("train")]


def test_small_groups_are_nowhere_in_a_case_mix(prepared):
    day = dt.datetime(2020, 1, 1)
    rows = pl.DataFrame(
        {"subject_id": range(30), "prediction_time": [day] * 30, "duration": [50.0] * 30, "event": [1] * 4 + [0] * 26}
    )
    codes = {"RARE": range(9), "TEN": range(10), "ALL": range(30), "NEARLY": range(25)}
    events = [(subject, day, day, code) for code, owners in codes.items() for subject in owners]
    names = ["subject_id", "prediction_time", "time", "code"]
    table = pl.DataFrame(events, schema=names, orient="row")
    found = describe_casemix(table, rows, prepared.data.tokenizer, 100.0, ("outcome",))
    assert found["codes"] == {"ALL": 1.0, "NEARLY": pytest.approx(20 / 30), "TEN": pytest.approx(10 / 30)}
    assert found["events"] == {"outcome": "<10"}
    assert found["observed_risk"] is None
    assert found["age_years"] is None
    unknown = vocabulary_shares(table, prepared.data.tokenizer)["codes"]
    assert set(unknown) == {"ALL", "NEARLY", "TEN"}


@pytest.fixture(scope="module")
def distorted():
    """Hazard logits that are true, their too extreme and shifted version, and outcomes drawn from the truth."""
    rng, n = np.random.default_rng(3), 20_000
    grid = TimeGrid(np.linspace(0.0, 1_000.0, 6))
    true = rng.normal(-2.0, 0.8, n)[:, None] + np.zeros(grid.n_bins)  # [n, K]
    hazard = np.log1p(np.exp(true[:, 0])) / 200  # a day
    event_time, censored = rng.exponential(1 / hazard), rng.uniform(200, 2_500, n)
    duration, event = np.minimum(event_time, censored), (event_time <= censored).astype(np.int64)
    table = pl.DataFrame({"subject_id": np.arange(n), "duration": duration, "event": event})
    return grid, true, 2.0 * true + 1.5, table


def test_recalibration_recovers_the_truth(distorted):
    grid, true, wrong, table = distorted
    fits, adjusted = cross_fit(wrong, table, grid, seed=0)
    for fit in fits:
        assert fit["slope"] == pytest.approx(0.5, abs=0.04)
        np.testing.assert_allclose(fit["intercepts"], -0.75, atol=0.15)
    assert np.abs(adjusted - true).mean() < 0.1 < np.abs(wrong - true).mean()


def test_nobodys_own_half_adjusts_them(distorted):
    grid, _, wrong, table = distorted
    half = halves(table["subject_id"].to_numpy(), 0)
    assert 0.45 < half.mean() < 0.55
    flipped = table.with_columns(event=pl.when(pl.Series(half == 0)).then(1 - pl.col("event")).otherwise("event"))
    before, after = (cross_fit(wrong, rows, grid, seed=0)[1] for rows in (table, flipped))
    np.testing.assert_array_equal(before[half == 0], after[half == 0])
    assert (before[half == 1] != after[half == 1]).all()


def test_recalibration_repairs_a_bundle_that_is_off(bundle, elsewhere, tmp_path):
    loaded = Bundle.load(bundle)
    row = loaded.rows["wide"].recalibration
    loaded.rows["wide"] = replace(loaded.rows["wide"], recalibration=replace(row, intercepts=row.intercepts + 1.5))
    loaded.save(tmp_path / "off")
    found = validate(
        tmp_path / "off", elsewhere.root, elsewhere.root / "task.yaml", tmp_path / "out", row="wide", bootstrap=20
    ).found
    ratio = [found[side]["calibration"]["1826"]["oe"]["value"] for side in ("before", "after")]
    assert ratio[0] < 0.7
    assert ratio[1] == pytest.approx(1.0, abs=0.15)
    assert found["after"]["change"]["ibs"]["high"] < 0


def test_the_report_and_the_text_show_it_without_naming_anybody(finished):
    page = (finished.out / "report.html").read_text()
    for hook in ("figures", "casemix", "codes", "calibration", "thirds"):
        assert f"data-test-{hook}" in page
    assert "<svg" in page
    assert not re.search(r"<script|https?://(?!www.w3.org)", page)
    assert str(finished.out.parent) not in page
    text = finished.text()
    assert "have a code the model does not know" in text
    assert f"{finished.found['before']['metrics']['uno_c']['value']:.3f}" in text
    assert "Cross-fitted" in text


def refusal(*words, **options) -> EhrError:
    with pytest.raises(EhrError) as caught:
        validate(*words, **options)
    return caught.value


def test_the_patients_of_its_development_are_refused_but_for_those_held_out(bundle, dataset, prepared, tmp_path):
    place = bundle, dataset.root, dataset.root / "task.yaml", tmp_path / "out"
    for options in ({}, {"split": "train"}, {"split": "held_out", "division": SplitConfig(seed=1)}):
        error = refusal(*place, **options)
        assert error.code == Exit.LEAKAGE
        assert not (tmp_path / "out").exists()
    done = validate(*place, split="held_out", bootstrap=0)
    assert done.found["n"] == len(prepared.data.index("held_out"))


@pytest.mark.parametrize(
    ("old", "new", "code", "word"),
    [
        ("name: ", "name: not_", Exit.CONFIG, "not_"),
        ("horizon_days: 1826", "horizon_days: 3000", Exit.COHORT, "3000"),
        ("horizon_days: 1826", "horizon_days: 1826\ncompeting: {death: MEDS_DEATH}", Exit.CONFIG, "competing"),
    ],
)
def test_another_question_is_refused(bundle, elsewhere, tmp_path, old, new, code, word):
    text = (elsewhere.root / "task.yaml").read_text()
    assert old in text
    (tmp_path / "task.yaml").write_text(text.replace(old, new, 1))
    error = refusal(bundle, elsewhere.root, tmp_path / "task.yaml", tmp_path / "out")
    assert error.code == code
    assert word in str(error)


def test_rules_may_differ_and_are_named(bundle, elsewhere, tmp_path):
    text = (elsewhere.root / "task.yaml").read_text().replace("horizon_days: 1826", "horizon_days: 1000")
    (tmp_path / "task.yaml").write_text(text + "require: {visits: 3}\n" * ("require" not in text))
    done = validate(bundle, elsewhere.root, tmp_path / "task.yaml", tmp_path / "out", bootstrap=5, horizons=(500.0,))
    assert done.found["task_changes"]["horizon_days"] == {"bundle": 1826.0, "task": 1000.0}
    assert done.found["tau"] == 1000.0
    assert set(done.found["before"]["calibration"]) == {"500"}
    assert "horizon_days" in (tmp_path / "out" / "report.html").read_text()


@pytest.mark.slow
def test_hospital_b_codes_and_suffers_otherwise(bundle, tmp_path):
    """What the simulator changes from a to b is what the validation shows: unknown codes, age, risk too low."""
    other = simulate(tmp_path / "b", SimulateConfig(patients=900, noise_codes=20, seed=7, hospital="b"))
    done = validate(bundle, other.root, other.root / "task.yaml", tmp_path / "out", row="wide", bootstrap=20)
    was, now = (done.found["casemix"][side] for side in ("development", "validation"))
    assert now["age_years"][1] - was["age_years"][1] > 3  # 63 and 68 in the mean
    assert now["observed_risk"] > was["observed_risk"]
    assert now["vocabulary"]["unknown"] > was["vocabulary"]["unknown"] + 0.02
    unknown = set(now["vocabulary"]["codes"])
    assert any(code.startswith("ICD9") for code in unknown), unknown
    before, after = (done.found[side]["calibration"]["1826"]["oe"] for side in ("before", "after"))
    assert before["low"] > 1.0
    assert after["value"] == pytest.approx(1.0, abs=0.1)
    assert done.found["after"]["change"]["ibs"]["value"] < 0


def test_one_split_alone(bundle, elsewhere, tmp_path):
    task = elsewhere.root / "task.yaml"
    done = validate(bundle, elsewhere.root, task, tmp_path / "out", bootstrap=0, split="train")
    assert done.found["n"] == build_cohort(elsewhere, load_task(task)).table.filter(pl.col("split") == "train").height
    error = refusal(bundle, elsewhere.root, task, tmp_path / "other", split="later")
    assert error.code == Exit.COHORT
    assert "held_out" in str(error)


@pytest.mark.slow
def test_with_competing_deaths_it_judges_incidences(tmp_path, recipe):
    """Deaths are no censoring: observed risk is Aalen–Johansen's, predicted risk the incidence of the outcome."""
    homes = {seed: tmp_path / f"meds-{seed}" for seed in (0, 1)}
    for seed, home in homes.items():
        simulate(home, SimulateConfig(patients=300, noise_codes=10, seed=seed, competing_death=True))
    first = MedsDataset.open(homes[0])
    task = load_task(homes[0] / "task.yaml")
    encoder = pretrain(first, PretrainConfig(epochs=1), tokens=TokensConfig(max_tokens=48))
    own = prepare(first, build_cohort(first, task), encoder)
    fitted = finetune(own.data, find_strategy("frozen-ridge"), recipe, encoder.model)
    make_bundle(own, task, fitted, fit_wide(own.data), FACTS).save(tmp_path / "bundle")
    done = validate(tmp_path / "bundle", homes[1], homes[1] / "task.yaml", tmp_path / "out", bootstrap=20)
    table = Cohort.read(tmp_path / "out" / "cohort").table
    duration, event = truncate(table["duration"].to_numpy(), table["event"].to_numpy(), done.found["tau"])
    observed = lifelines.AalenJohansenFitter(seed=0, calculate_variance=False).fit(duration, event, event_of_interest=1)
    found = done.found["before"]["calibration"]["1826"]
    assert found["observed"]["value"] == pytest.approx(float(observed.cumulative_density_.iloc[-1, 0]), abs=0.005)
    made = Predictions.read(tmp_path / "out" / "predictions.parquet")
    assert found["expected"]["value"] == pytest.approx(made.cif["outcome"][:, -1].mean(), abs=1e-6)
    assert done.found["events"] == int((event == 1).sum()) < int((event > 0).sum())
    assert set(done.found["casemix"]["validation"]["events"]) == {"outcome", "death"}
    assert "with death" in (tmp_path / "out" / "report.html").read_text()
