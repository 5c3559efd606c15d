"""Calibration curve, slope and intercept against lifelines, scikit-learn and the truth."""

from __future__ import annotations

import numpy as np
import pytest
from lifelines import KaplanMeierFitter
from scipy.special import expit, logit
from sklearn.linear_model import LogisticRegression

from ehrsequencing.errors import EhrError
from ehrsequencing.evaluation.calibration import calibration_curve, calibration_summary
from ehrsequencing.evaluation.resampling import resample_counts
from ehrsequencing.nonparametric import KaplanMeier, censoring_distribution

T = 800.0


def cohort(n: int, seed: int = 0, censored: bool = True) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """duration, event and the true S(T)."""
    rng = np.random.default_rng(seed)
    hazard = np.exp(rng.normal(size=n)) / 1000
    failure = rng.exponential(1 / hazard)
    censoring = rng.exponential(2000, n) if censored else np.full(n, 1e5)
    return np.minimum(failure, censoring), (failure <= censoring).astype(np.int64), np.exp(-hazard * T)


def test_a_true_model_lies_on_the_diagonal() -> None:
    curve = calibration_curve(*cohort(20_000), T)
    assert curve.n.sum() == 20_000
    assert curve.predicted.size == 10
    assert (np.diff(curve.predicted) > 0).all()
    np.testing.assert_allclose(curve.observed, curve.predicted, atol=0.03)
    assert ((curve.low <= curve.predicted) & (curve.predicted <= curve.high)).sum() >= 8


def test_groups_are_kaplan_meier_of_lifelines_with_its_interval() -> None:
    duration, event, survival = cohort(300)
    curve = calibration_curve(duration, event, survival, T, groups=3)
    order = np.argsort(1 - survival)
    for g, rows in enumerate(np.split(order, 3)):
        theirs = KaplanMeierFitter().fit(duration[rows], event[rows])
        assert curve.n[g] == 100
        assert curve.predicted[g] == pytest.approx((1 - survival[rows]).mean())
        assert curve.observed[g] == pytest.approx(1 - theirs.predict(T))
        limits = theirs.confidence_interval_survival_function_
        low, high = limits[limits.index <= T].to_numpy()[-1]
        assert (curve.low[g], curve.high[g]) == (pytest.approx(1 - high), pytest.approx(1 - low))


def test_bootstrap_interval_agrees_with_the_analytic_one_and_with_resampling_by_hand() -> None:
    duration, event, survival = cohort(1500)
    duration = np.ceil(duration / 30) * 30.0
    analytic = calibration_curve(duration, event, survival, T, groups=3)
    boot = calibration_curve(duration, event, survival, T, groups=3, n_boot=1000, seed=1)
    np.testing.assert_allclose(boot.observed, analytic.observed)
    np.testing.assert_allclose(boot.low, analytic.low, atol=0.012)
    np.testing.assert_allclose(boot.high, analytic.high, atol=0.012)
    rows = np.sort(np.argsort(1 - survival)[:500])
    draws = [np.repeat(rows, counts) for counts in resample_counts(500, 1000, 1)[1:]]
    by_hand = [1 - KaplanMeier.fit(duration[d], event[d]).at(T) for d in draws]
    np.testing.assert_allclose((boot.low[0], boot.high[0]), np.quantile(by_hand, [0.025, 0.975]), rtol=1e-9)


def test_equal_predictions_are_never_split() -> None:
    duration, event, survival = cohort(400)
    assert calibration_curve(duration, event, np.full(400, 0.5), T).n.tolist() == [400]
    curve = calibration_curve(duration, event, np.round(survival, 1), T)
    np.testing.assert_allclose(curve.predicted, np.round(curve.predicted, 1), atol=0.11)
    assert curve.n.sum() == 400
    assert curve.predicted.size < 10


@pytest.mark.parametrize("n_boot", [0, 100])
def test_a_group_without_events_has_a_limit_all_the_same(n_boot: int) -> None:
    duration, event = np.full(50, 1000.0), np.zeros(50, dtype=np.int64)
    curve = calibration_curve(duration, event, np.full(50, 0.99), T, n_boot=n_boot)
    assert (curve.observed[0], curve.low[0]) == (0.0, 0.0)
    assert curve.high[0] == pytest.approx(1 - 0.025 ** (1 / 50))


def test_a_group_that_nobody_was_followed_in_has_no_observed_risk() -> None:
    duration = np.concatenate([np.full(30, 1000.0), np.full(30, 100.0)])
    survival = np.concatenate([np.full(30, 0.9), np.full(30, 0.2)])
    curve = calibration_curve(duration, np.zeros(60, dtype=np.int64), survival, T)
    np.testing.assert_array_equal(np.isnan(curve.observed), [False, True])
    assert np.isnan(curve.high[1])


def test_slope_and_intercept_of_a_true_and_of_a_distorted_model() -> None:
    duration, event, survival = cohort(40_000)
    censoring = censoring_distribution(duration, event)
    true = calibration_summary(duration, event, survival, T, censoring)
    assert true.slope == pytest.approx(1.0, abs=0.04)
    assert true.intercept == pytest.approx(0.0, abs=0.04)
    assert true.expected == pytest.approx(true.observed, abs=0.01)
    extreme = calibration_summary(duration, event, 1 - expit(2 * logit(1 - survival)), T, censoring)
    assert extreme.slope == pytest.approx(0.5, abs=0.02)
    high = calibration_summary(duration, event, 1 - expit(logit(1 - survival) + 1), T, censoring)
    assert high.intercept == pytest.approx(-1.0, abs=0.05)
    assert high.slope == pytest.approx(1.0, abs=0.04)


def test_slope_equals_scikit_learn() -> None:
    duration, event, survival = cohort(500)
    censoring = censoring_distribution(duration, event)
    died, alive = (event == 1) & (duration <= T), duration > T
    weight = np.where(died, 1 / censoring.before(np.minimum(duration, T)), alive / censoring.at(T))
    score = logit(1 - survival)[:, None]
    theirs = LogisticRegression(C=np.inf, tol=1e-10).fit(score, died, sample_weight=weight)
    ours = calibration_summary(duration, event, survival, T, censoring)
    assert ours.slope == pytest.approx(theirs.coef_[0, 0], abs=1e-4)


def test_a_constant_model_has_no_slope() -> None:
    duration, event, _ = cohort(200)
    summary = calibration_summary(duration, event, np.full(200, 0.5), T, censoring_distribution(duration, event))
    assert np.isnan(summary.slope)
    assert np.isfinite(summary.intercept)


def test_unsupported_horizon_is_refused() -> None:
    duration, event, survival = cohort(200)
    with pytest.raises(EhrError, match="past the longest training duration"):
        calibration_summary(duration, event, survival, 1e6, censoring_distribution(duration, event))
