"""The smooth calibration curve: on the diagonal for a true model, on the distortion for another, with honest bands."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import expit, logit

from competing_data import GRID, draw, logits_of_hazards
from ehrsequencing.errors import EhrError
from ehrsequencing.evaluation.agreement import calibration_figures, risk_score
from ehrsequencing.evaluation.logistic import Spline, logistic, probability
from ehrsequencing.evaluation.metrics import known_outcome
from ehrsequencing.evaluation.resampling import resample_counts
from ehrsequencing.evaluation.smooth import smooth_calibration
from ehrsequencing.nonparametric import censoring_distribution

T = 800.0


def cohort(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """duration, event and the true risk by T."""
    rng = np.random.default_rng(seed)
    hazard = np.exp(rng.normal(size=n)) / 2000
    failure, censoring = rng.exponential(1 / hazard), rng.exponential(2500, n)
    return np.minimum(failure, censoring), (failure <= censoring).astype(np.int64), 1 - np.exp(-hazard * T)


def curve(duration, event, risk, **options):
    return smooth_calibration(duration, event, 1 - risk, T, censoring_distribution(duration, event), **options)


def test_a_true_model_lies_on_the_diagonal_and_a_distorted_one_on_its_distortion() -> None:
    duration, event, risk = cohort(30_000)
    true = curve(duration, event, risk, n_boot=50)
    np.testing.assert_allclose(true.observed, true.predicted, atol=0.02)
    assert ((true.low <= true.predicted) & (true.predicted <= true.high)).mean() > 0.7
    wrong = curve(duration, event, expit(1.5 * logit(risk) + 0.5), n_boot=50)
    np.testing.assert_allclose(wrong.observed, expit((logit(wrong.predicted) - 0.5) / 1.5), atol=0.02)
    assert (np.diff(wrong.observed) > 0).all()


def test_the_ici_is_the_mean_distance_from_the_curve() -> None:
    duration, event, risk = cohort(2_000)
    wrong = risk**1.5
    smooth = curve(duration, event, wrong, n_boot=0)
    inside = (wrong >= smooth.predicted[0]) & (wrong <= smooth.predicted[-1])
    gap = np.abs(np.interp(wrong[inside], smooth.predicted, smooth.observed) - wrong[inside])
    found = calibration_figures(duration, event, 1 - wrong, T, censoring_distribution(duration, event))
    assert found["ici"][0] == pytest.approx(gap.mean(), rel=0.03)
    assert np.isnan(smooth.low).all()
    assert inside.mean() == pytest.approx(0.98, abs=0.002)


def test_the_band_holds_the_truth_about_as_often_as_it_says() -> None:
    held = []
    for seed in range(80):
        duration, event, risk = cohort(600, seed)
        shown = expit(0.7 * logit(risk) - 0.3)
        found = curve(duration, event, shown, n_boot=100, seed=seed)
        truth = expit((logit(found.predicted) + 0.3) / 0.7)
        held.append(((found.low <= truth) & (truth <= found.high))[[5, 20, 35]])
    # 240 looks, three of a curve: a standard error of about .02; percentile bands of 600 patients fall a little short
    assert 0.88 < np.mean(held) < 0.99


def test_the_band_is_that_of_resampling_by_hand() -> None:
    duration, event, risk = cohort(500)
    censoring = censoring_distribution(duration, event)
    found = curve(duration, event, risk, n_boot=60, seed=3)
    happened, weight = (x[:, 0] for x in known_outcome(duration, event, np.array([T]), censoring))
    spline, score, drawn = Spline.of(risk_score(risk)), risk_score(risk), resample_counts(500, 60, 3)[1:]
    by_hand = []
    for counts in drawn:
        rows = np.repeat(np.arange(500), counts)
        beta = logistic(spline(score[rows]), happened[rows], weight[rows], np.ones((1, 500)))
        by_hand.append(probability(beta @ spline(risk_score(found.predicted)).T)[0])
    low, high = np.quantile(by_hand, [0.025, 0.975], axis=0)
    np.testing.assert_allclose(found.low, low, atol=1e-4)
    np.testing.assert_allclose(found.high, high, atol=1e-4)


def test_at_least_ten_patients_lie_beyond_either_end() -> None:
    duration, event, risk = cohort(200)
    found = curve(duration, event, risk, n_boot=0)
    assert (risk < found.predicted[0]).sum() == 10
    assert (risk > found.predicted[-1]).sum() == 10
    assert not np.isin(found.predicted, risk).any()
    assert curve(*(x[:20] for x in cohort(200)), n_boot=5).predicted.size == 0


def test_constant_predictions_are_one_point_and_no_outcomes_none() -> None:
    duration, event, _ = cohort(300)
    found = curve(duration, event, np.full(300, 0.3), n_boot=50)
    assert found.predicted == pytest.approx([0.3])
    assert found.low[0] < found.observed[0] < found.high[0]
    assert curve(np.full(300, 900.0), np.zeros(300, dtype=np.int64), cohort(300)[2]).observed.size == 0


def test_with_competing_events_it_is_the_curve_of_the_incidence() -> None:
    logits = logits_of_hazards(np.random.default_rng(0).gamma(2.0, 0.08, (6000, GRID.n_bins, 2)))
    duration, event = draw(logits, GRID, 1, censored_by=600.0)
    t, censoring = 150.0, censoring_distribution(duration, event)
    free = 1 - GRID.cif(logits, np.array([t]))[:, 0, 0]
    found = smooth_calibration(duration, event, free, t, censoring, n_boot=50)
    np.testing.assert_allclose(found.observed, found.predicted, atol=0.06)
    assert ((found.low <= found.predicted) & (found.predicted <= found.high)).mean() > 0.6
    naive = smooth_calibration(duration, np.where(event == 1, 1, 0), free, t, censoring, n_boot=0)
    assert (naive.observed - naive.predicted).mean() > 0.03


def test_an_unsupported_horizon_is_refused() -> None:
    duration, event, risk = cohort(100)
    with pytest.raises(EhrError, match="past the longest training duration"):
        smooth_calibration(duration, event, 1 - risk, 1e6, censoring_distribution(duration, event))
