"""D-calibration: its definition written out, uniform p for the truth, tiny p for a distortion, where p misleads."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from scipy.stats import chisquare, kstest

from ehrsequencing.evaluation.compare import Evaluation
from ehrsequencing.evaluation.dcalibration import DCalibration, at_own_time, bin_shares, d_calibration
from ehrsequencing.predictions import Predictions

RUNS = 300
CENSORING = {"none": {}, "random": {"censored": 1500.0}, "random, and a horizon": {"censored": 1500.0, "tau": 600.0}}


def cohort(n: int, seed: int, censored: float = np.inf, tau: float = np.inf, wrong: float = 1.0):
    """duration, event, and the true S at it (or that of hazards ``wrong`` times as high)."""
    rng = np.random.default_rng(seed)
    hazard = np.exp(0.8 * rng.normal(size=n)) / 1000
    failure = rng.exponential(1 / hazard)
    leaves = np.minimum(rng.exponential(censored, n) if np.isfinite(censored) else np.inf, tau)
    duration = np.minimum(failure, leaves)
    return duration, (failure <= leaves).astype(np.int64), np.exp(-wrong * hazard * duration)


@cache
def true_models(how: str) -> list[DCalibration]:
    """Of a true model on cohorts of 500, censored in the way named."""
    return [d_calibration(*cohort(500, seed, **CENSORING[how])) for seed in range(RUNS)]


def haider(event: np.ndarray, survival: np.ndarray) -> np.ndarray:
    """Counts by bin as in Haider et al. (2020), eq. 10 and B.1, patient by patient."""
    counts = np.zeros(10)
    for happened, s in zip(event, survival, strict=True):
        k = min(int(s * 10), 9)
        if happened:
            counts[k] += 1
        else:
            counts[k] += (s - k / 10) / s
            counts[:k] += 0.1 / s
    return counts


def test_it_is_the_definition_patient_by_patient() -> None:
    duration, event, survival = cohort(300, 0, 1500.0)
    expected = haider(event, survival)
    found = d_calibration(duration, event, survival)
    np.testing.assert_allclose(found.bins, expected / 300, atol=1e-12)
    statistic, p = chisquare(expected, np.full(10, 30.0))
    assert (found.statistic, found.p) == (pytest.approx(statistic), pytest.approx(p))
    np.testing.assert_allclose(bin_shares(event > 0, survival).sum(axis=1), 1.0)


def test_the_adjusted_statistic_is_observed_against_expected_events() -> None:
    duration, event, survival = cohort(2_000, 1, 1500.0)
    high = np.arange(10, 0, -1) / 10
    observed = np.array([((event == 1) & (survival < h) & (survival >= h - 0.1)).sum() for h in high])
    lived = [np.log(h / np.clip(survival, max(h - 0.1, 1e-12), h)).sum() for h in high]
    found = d_calibration(duration, event, survival)
    assert found.degrees == 10
    assert found.adjusted_statistic == pytest.approx(((observed - lived) ** 2 / lived).sum())
    assert sum(lived) == pytest.approx(-np.log(survival).sum())


@pytest.mark.parametrize("how", CENSORING)
def test_the_adjusted_p_of_a_true_model_is_uniform_however_patients_are_censored(how: str) -> None:
    p = np.array([each.adjusted_p for each in true_models(how)])
    assert kstest(p, "uniform").pvalue > 0.01
    assert (p < 0.05).mean() == pytest.approx(0.05, abs=3 * np.sqrt(0.05 * 0.95 / RUNS))


def test_the_p_of_haider_is_uniform_without_censoring_and_too_high_with_it() -> None:
    assert kstest([each.p for each in true_models("none")], "uniform").pvalue > 0.01
    # Simonsen & Waagepetersen (2025): spread patients vary less than multinomial ones, and the test hardly rejects
    for how in ("random", "random, and a horizon"):
        p = np.array([each.p for each in true_models(how)])
        assert (p < 0.05).mean() < 0.02
        assert np.median(p) > 0.65


@pytest.mark.parametrize("how", [{}, {"censored": 1500.0, "tau": 900.0}], ids=str)
def test_a_distorted_model_has_a_tiny_p(how: dict) -> None:
    found = d_calibration(*cohort(3_000, 0, wrong=1.5, **how))
    assert found.p < 1e-6
    assert found.adjusted_p < 1e-6
    assert found.bins[0] > 0.13  # hazards too high: survival at the event too low


def test_few_events_are_not_tested_beyond_what_they_carry() -> None:
    duration, event = np.full(40, 100.0), np.zeros(40, dtype=np.int64)
    event[:2] = 1
    found = d_calibration(duration, event, np.full(40, 0.97))
    assert found.degrees == 0
    assert found.to_json()["adjusted_p"] is None
    some = d_calibration(duration, event, np.full(40, 0.8))  # 40 · −log .8 = 8.9 events expected
    assert some.degrees == 1
    assert some.adjusted_statistic == pytest.approx((2 + 40 * np.log(0.8)) ** 2 / (-40 * np.log(0.8)))


def test_survival_of_zero_and_one_has_its_bins() -> None:
    survival, event = np.array([0.0, 0.0, 1.0, 1.0]), np.array([1, 0, 1, 0])
    parts = bin_shares(event > 0, survival)
    np.testing.assert_allclose(parts[0], np.eye(10)[0])
    np.testing.assert_allclose(parts[1], np.eye(10)[0])
    np.testing.assert_allclose(parts[2], np.eye(10)[9])
    np.testing.assert_allclose(parts[3], 0.1)
    assert isinstance(d_calibration(np.ones(4), event, survival), DCalibration)


def predictions(hazard: np.ndarray, tau: float, cif: bool = False) -> Predictions:
    times = np.linspace(0, tau, 101)[1:]
    curve = np.exp(-hazard[:, None] * times)
    causes = {"outcome": 0.5 * (1 - curve), "death": 0.5 * (1 - curve)} if cif else {}
    day = np.full(hazard.size, np.datetime64("2020-01-01", "us"))
    return Predictions(np.arange(hazard.size), day, hazard, times, curve, cif=causes)


def test_an_evaluation_reads_curves_at_each_patients_own_time_and_ends_at_the_horizon() -> None:
    rng, tau = np.random.default_rng(0), 700.0
    hazard = np.exp(0.8 * rng.normal(size=400)) / 1000
    failure, leaves = rng.exponential(1 / hazard), rng.exponential(1500, 400)
    duration, event = np.minimum(failure, leaves), (failure <= leaves).astype(np.int64)
    made = Evaluation.of(duration, event, train_duration=duration, train_event=event, tau=tau, n_boot=0)
    one = predictions(hazard, tau)
    own = at_own_time(one.survival, one.horizon_days, np.minimum(duration, tau))
    np.testing.assert_allclose(own, np.exp(-hazard * np.minimum(duration, tau)), atol=1e-3)
    np.testing.assert_allclose(own, np.diag(one.survival_at(np.minimum(duration, tau))), atol=1e-12)
    expected = d_calibration(np.minimum(duration, tau), event * (duration <= tau), own)
    assert made.score(one).checks["d_calibration"] == expected.to_json()
    far = predictions(3 * hazard, tau)
    seeds = made.score([one, far, predictions(1.1 * hazard, tau)]).checks["d_calibration"]["statistic"]
    assert expected.statistic <= seeds < made.score(far).checks["d_calibration"]["statistic"]


def test_with_competing_events_it_is_not_defined_and_says_so() -> None:
    duration, event = np.linspace(1, 100, 60), np.resize([0, 1, 2], 60)
    made = Evaluation.of(duration, event, train_duration=duration, train_event=event, tau=50.0, n_boot=0)
    scores = made.score(predictions(np.linspace(1e-3, 1e-2, 60), 50.0, cif=True))
    assert not scores.checks
    assert "competing events" in scores.not_computed["d_calibration"]
