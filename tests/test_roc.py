"""Cumulative/dynamic AUC against scikit-survival, all pairs and the truth; its mean over time."""

from __future__ import annotations

import numpy as np
import pytest
from sksurv.metrics import cumulative_dynamic_auc
from sksurv.util import Surv

from ehrsequencing.errors import EhrError, Exit
from ehrsequencing.evaluation.roc import auc_at, auc_over_time, mean_auc, resampled_auc, rocs_of
from ehrsequencing.nonparametric import AalenJohansen, KaplanMeier, censoring_distribution
from ehrsequencing.timegrid import truncate
from test_compare import TAU, competing_patients, patients, predict, prepare, with_causes
from test_metrics import brute_force_g_before, cohort, competing

TIMES = np.array([100.0, 300.0, 700.0, 1200.0])


def brute_force_auc(
    duration: np.ndarray, event: np.ndarray, risk: np.ndarray, t: float, train: tuple, stratum: np.ndarray
) -> float:
    """Pair by pair: a case by t against a control at t, each over the probability of knowing what it is."""
    known = np.array([brute_force_g_before(*train, min(d, t)) for d in duration])
    over = (event > 0) & (duration <= t)
    free = (duration > t) | ((event == 0) & (duration == t))
    above = below = 0.0
    for i, j in np.ndindex(duration.size, duration.size):
        control = free[j] or (over[j] and event[j] > 1)
        if over[i] and event[i] == 1 and control and stratum[i] == stratum[j]:
            weight = 1 / (known[i] * known[j])
            above += weight * (1.0 if risk[i] > risk[j] else 0.5 if risk[i] == risk[j] else 0.0)
            below += weight
    return above / below


@pytest.mark.parametrize("yearly", [False, True])
@pytest.mark.parametrize("strata", [1, 3])
def test_auc_equals_all_pairs_with_ties_competing_events_and_strata(yearly: bool, strata: int) -> None:
    duration, event, risk = competing(90, yearly=yearly)
    train = competing(300, 9, yearly=yearly)[:2]
    times = np.array([365.0, 730.0]) if yearly else TIMES[1:3]
    curve, stratum = np.round(risk[:, None] * [1.0, -0.5], 1), np.arange(90) % strata
    ours = auc_over_time(duration, event, curve, times, censoring_distribution(*train), stratum)
    for k, t in enumerate(times):
        expected = brute_force_auc(duration, event, curve[:, k], t, train, stratum)
        assert ours[k] == pytest.approx(expected, abs=1e-12)


def test_auc_and_its_mean_equal_sksurv() -> None:
    """On untied times scikit-survival's Ĝ(T) of an event is our Ĝ(T−); its controls all weigh the same, as ours do."""
    duration, event, risk = cohort("continuous", 400)
    train = cohort("continuous", 600, seed=9)[:2]
    inside = duration < train[0].max()  # scikit-survival refuses the others
    duration, event, risk = duration[inside], event[inside], risk[inside]
    test = Surv.from_arrays(event, duration)
    theirs, their_mean = cumulative_dynamic_auc(Surv.from_arrays(train[1], train[0]), test, risk, TIMES)
    ours = auc_over_time(duration, event, np.tile(risk[:, None], 4), TIMES, censoring_distribution(*train))
    # at an evaluated event between two training times both Ĝ are the same step
    np.testing.assert_allclose(ours, theirs, atol=1e-12)
    assert mean_auc(ours, KaplanMeier.fit(duration, event).at(TIMES)) == pytest.approx(their_mean, abs=1e-12)


def test_the_mean_of_a_constant_auc_is_it_and_what_does_not_exist_is_left_out() -> None:
    survival = np.array([0.9, 0.7, 0.6])
    assert mean_auc(np.full(3, 0.8), survival) == pytest.approx(0.8)
    assert mean_auc(np.array([np.nan, 0.8, 0.7]), survival) == pytest.approx((0.2 * 0.8 + 0.1 * 0.7) / 0.3)
    assert np.isnan(mean_auc(np.full(3, np.nan), survival))


def test_auc_does_not_depend_on_censoring() -> None:
    full = competing(20_000, 2, censored=False)
    seen = competing(20_000, 2)
    curve = np.tile(full[2][:, None], 2)
    everybody = censoring_distribution(np.append(full[0], 1e7), np.append(full[1], 1))
    times = np.array([200.0, 600.0])
    truth = auc_over_time(*full[:2], curve, times, everybody)
    weighted = auc_over_time(*seen[:2], curve, times, censoring_distribution(*seen[:2]))
    np.testing.assert_allclose(weighted, truth, atol=0.01)  # standard error about 0.004


def test_a_risk_that_is_constant_scores_one_half_and_turned_round_the_rest() -> None:
    duration, event, risk = competing(200)
    censoring = censoring_distribution(duration, event)
    assert auc_at(duration, event, np.zeros(200), 500.0, censoring) == pytest.approx(0.5)
    ours, turned = (auc_at(duration, event, sign * risk, 500.0, censoring) for sign in (1, -1))
    assert ours + turned == pytest.approx(1.0)


def test_auc_on_resamples_equals_its_definition() -> None:
    duration, event, score = competing_patients(120)
    train = competing_patients(400, 9)[:2]
    evaluation = prepare(duration, event, train, horizons=(365.0,), n_boot=6)
    model = with_causes(np.round(score, 1))
    figures = evaluation.score(model, only=("auc",)).figures
    times, cut = evaluation.auc_times, truncate(duration, event, TAU)
    survival = 1 - AalenJohansen.fit(*train).at(times)[:, 0]
    risk, by_year = model.outcome_risk_at(times), model.outcome_risk_at(np.array([365.0]))
    for b, counts in enumerate(evaluation.counts):
        rows = np.repeat(np.arange(120), counts)
        outcome, g = (cut[0][rows], cut[1][rows]), evaluation.censoring
        assert figures["auc@365"][b] == pytest.approx(auc_at(*outcome, by_year[rows, 0], 365.0, g), abs=1e-12)
        expected = mean_auc(auc_over_time(*outcome, risk[rows], times, g), survival)
        assert figures["mean_auc"][b] == pytest.approx(float(expected), abs=1e-12)


def test_a_resample_without_cases_has_no_auc() -> None:
    duration, event = np.array([10.0, 20.0, 30.0]), np.array([1, 0, 0])
    censoring = censoring_distribution(np.append(duration, 90.0), np.append(event, 1))
    rocs = rocs_of(duration, event, np.array([[0.9], [0.1], [0.2]]), np.array([15.0]), censoring)
    drawn = np.array([[1.0, 1.0, 1.0], [0.0, 2.0, 1.0], [3.0, 0.0, 0.0]])
    assert resampled_auc(rocs, drawn)[:, 0].tolist()[0] == 1.0
    assert np.isnan(resampled_auc(rocs, drawn)[1:, 0]).all()


def test_what_cannot_be_is_refused() -> None:
    duration, event, truth = patients(100)
    censoring = censoring_distribution(duration, event)
    with pytest.raises(EhrError, match="past the longest training duration") as error:
        auc_at(duration, event, truth, 1e6, censoring)
    assert error.value.code is Exit.COHORT
    with pytest.raises(EhrError, match="finite risks") as error:
        auc_at(duration, event, np.where(truth > 0, np.nan, truth), 300.0, censoring)
    assert error.value.code is Exit.BUNDLE


def test_predictions_without_a_curve_have_no_mean_auc() -> None:
    duration, event, truth = patients(100)
    scores = prepare(duration, event, horizons=(375.0,), n_boot=2).score(predict(truth, points=4), only=("auc",))
    assert list(scores.figures) == ["auc@375"]
    assert "curve points" in scores.not_computed["mean_auc"]
