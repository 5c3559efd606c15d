"""The simulation asked at every visit: its hazard read from its records, its branches against what then happened."""

from __future__ import annotations

import datetime as dt
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from ehrsequencing.config import SimulateConfig, TaskConfig, load_yaml, parse
from ehrsequencing.errors import EhrError, Exit
from ehrsequencing.evaluation.metrics import harrell_c
from ehrsequencing.events import MedsDataset, check
from ehrsequencing.nonparametric import KaplanMeier
from ehrsequencing.synthetic import has_states, landmark_survival, log_hazard, read_truth, simulate
from ehrsequencing.synthetic.process import RATE_PER_DAY
from ehrsequencing.timegrid import truncate

HORIZON = 1_826.0
CONFIG = SimulateConfig(patients=2_000, seed=3, question="every_visit", noise_codes=30)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("visits") / "demo"
    simulate(out, CONFIG)
    return out


@pytest.fixture(scope="module")
def truth(folder: Path) -> pl.DataFrame:
    return read_truth(folder)


@pytest.fixture(scope="module")
def events(folder: Path) -> pl.DataFrame:
    return MedsDataset.open(folder).scan().collect()


def landmarks(truth: pl.DataFrame, days: float) -> pl.DataFrame:
    """The first visit of each patient at least so many days after their first one."""
    start = pl.col("prediction_time").min().over("subject_id")
    late = truth.filter(pl.col("prediction_time") >= start + pl.duration(days=days))
    return late.group_by("subject_id", maintain_order=True).first()


def test_the_hazard_at_every_visit_is_the_documented_function_of_the_record_up_to_it(
    truth: pl.DataFrame, events: pl.DataFrame
) -> None:
    for day in (0, 400, 2_000):
        rows = landmarks(truth, day).select("subject_id", "prediction_time", "log_hazard")
        known = pl.col("time").is_null() | (pl.col("time") <= pl.col("prediction_time"))
        history = events.join(rows.drop("log_hazard"), on="subject_id").filter(known)
        np.testing.assert_allclose(log_hazard(history, rows), rows["log_hazard"], atol=1e-9)


def test_every_row_of_the_truth_is_a_visit_before_the_outcome(truth: pl.DataFrame, events: pl.DataFrame) -> None:
    dated = events.filter(pl.col("time").is_not_null() & (pl.col("code") != "MEDS_BIRTH"))
    outcome = dated.filter(code="ICD10CM//I50.9").select("subject_id", happened="time")
    last = dated.group_by("subject_id").agg(last=pl.col("time").max())
    visits = dated.filter(pl.col("code").str.starts_with("VISIT//")).select("subject_id", prediction_time="time")
    visits = visits.join(outcome, on="subject_id", how="left").join(last, on="subject_id")
    before = pl.col("prediction_time") < pl.min_horizontal("happened", "last")
    expected = visits.filter(before).sort("subject_id", "prediction_time")
    assert truth.select("subject_id", "prediction_time").equals(expected.select("subject_id", "prediction_time"))
    days = (pl.min_horizontal("happened", "last") - pl.col("prediction_time")).dt.total_days()
    assert truth["duration"].equals(expected.select(days.cast(pl.Float64)).to_series(), check_names=False)
    assert (truth["event"] == 1).equals(expected["happened"].is_not_null(), check_names=False)


def test_the_drawn_outcomes_follow_the_hazard_of_each_visit(truth: pl.DataFrame) -> None:
    """Within the time to the next visit the hazard is λ·e^η: events over their cumulative hazard is 1."""
    later = pl.col("duration").shift(-1).over("subject_id").fill_null(0.0)
    known = truth.with_columns(exposure=pl.col("duration") - later, here=(later == 0) & (pl.col("event") == 1))
    hazard = RATE_PER_DAY * known["exposure"].to_numpy() * np.exp(known["log_hazard"].to_numpy())
    count = int(known["here"].sum())
    assert count > 700
    assert count / hazard.sum() == pytest.approx(1.0, abs=4 / np.sqrt(count))


def test_the_branches_are_calibrated_at_early_and_late_visits(truth: pl.DataFrame) -> None:
    times = np.array([365.0, HORIZON])
    for day in (0, 730):
        rows = landmarks(truth, day)
        survival, error = landmark_survival(rows, times, branches=10, seed=1)
        duration, event = rows["duration"].to_numpy(), rows["event"].cast(pl.Int64).to_numpy()
        low = rows["log_hazard"].to_numpy() < rows["log_hazard"].median()  # not by the noisy estimate itself
        for part in (low, ~low):
            observed = KaplanMeier.fit(duration[part], event[part])
            np.testing.assert_allclose(survival[part].mean(axis=0), observed.at(times), atol=0.05)
        assert error.max() < 0.12


def test_the_stated_error_is_that_of_repeating_the_draw(truth: pl.DataFrame) -> None:
    rows, times = truth.sample(12, seed=0), np.array([700.0, HORIZON])
    draws = [landmark_survival(rows, times, branches=30, seed=seed) for seed in range(25)]
    spread = np.std([survival for survival, _ in draws], axis=0, ddof=1)
    stated = np.sqrt(np.mean([error**2 for _, error in draws], axis=0))
    np.testing.assert_allclose(stated, spread, rtol=0.5)
    assert stated.mean() == pytest.approx(spread.mean(), rel=0.2)


def test_the_branches_know_more_than_the_hazard_held_still(truth: pl.DataFrame) -> None:
    rows = landmarks(truth, 730)
    survival, _ = landmark_survival(rows, np.array([HORIZON]), branches=10)
    outcome = truncate(rows["duration"].to_numpy(), rows["event"].cast(pl.Int64).to_numpy(), HORIZON)
    frozen = np.exp(-RATE_PER_DAY * HORIZON * np.exp(rows["log_hazard"].to_numpy()))
    assert harrell_c(*outcome, 1 - survival[:, 0]) > harrell_c(*outcome, rows["log_hazard"].to_numpy())
    observed = KaplanMeier.fit(rows["duration"].to_numpy(), rows["event"].cast(pl.Int64).to_numpy()).at(HORIZON)
    assert abs(frozen.mean() - observed) > abs(survival.mean() - observed)


def test_curves_fall_from_one_and_equal_seeds_give_equal_curves(truth: pl.DataFrame) -> None:
    rows, times = truth.head(5), np.array([0.0, 0.5, 1.0, 30.0, 31.0, 1_000.0])
    survival, error = landmark_survival(rows, times, branches=10, seed=4)
    assert (survival[:, :2] == 1).all()  # the outcome falls on whole days
    assert (np.diff(survival, axis=1) <= 0).all()
    assert (error[:, 0] == 0).all()
    again, _ = landmark_survival(rows, times, branches=10, seed=4)
    np.testing.assert_array_equal(survival, again)
    other, _ = landmark_survival(rows, times, branches=10, seed=5)
    assert (survival[:, -1] != other[:, -1]).any()
    first_day = np.exp(-RATE_PER_DAY * np.exp(rows["log_hazard"].to_numpy()))
    np.testing.assert_allclose(survival[:, 2], first_day)  # no visit comes sooner than in 14 days


def test_the_files_are_clean_and_depend_on_the_seed_alone(folder: Path, truth: pl.DataFrame, tmp_path: Path) -> None:
    dataset = MedsDataset.open(folder)
    assert check(dataset).problems == []
    assert has_states(truth)
    few = simulate(tmp_path / "few", CONFIG.model_copy(update={"patients": 40}), subjects_per_shard=15)
    assert few.scan().collect().equals(dataset.scan().filter(pl.col("subject_id") <= 40).collect())
    assert read_truth(few.root).equals(truth.filter(pl.col("subject_id") <= 40))
    task = load_yaml(TaskConfig, folder / "task.yaml")
    assert (task.predict_at, task.horizon_days) == ("every_visit", HORIZON)
    assert task.evaluate_at is not None


def test_visits_lie_on_different_days(truth: pl.DataFrame) -> None:
    gap = truth.select(pl.col("prediction_time").diff().over("subject_id")).to_series()
    assert gap.drop_nulls().min() >= dt.timedelta(days=14)


def test_death_does_not_compete_at_every_visit() -> None:
    with pytest.raises(EhrError, match="every_visit goes without competing_death") as raised:
        parse(SimulateConfig, {"question": "every_visit", "competing_death": True}, "STUDY.yaml")
    assert raised.value.code is Exit.CONFIG
