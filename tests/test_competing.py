"""Competing risks on the time grid and in the curves: against integration, lifelines and known truths."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from lifelines import AalenJohansenFitter
from scipy.integrate import quad
from scipy.optimize import check_grad

from competing_data import GRID, draw, logits_of_hazards
from ehrsequencing.errors import EhrError, Exit
from ehrsequencing.hazards import cause_shares, nll_gradient, total_logit
from ehrsequencing.nonparametric import AalenJohansen, KaplanMeier, censoring_distribution, check_causes, for_outcome
from ehrsequencing.timegrid import TimeGrid, truncate


def some_logits(n: int = 6, causes: int = 3, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(-1.5, 1.5, (n, GRID.n_bins, causes))


def hazard_by_cause(logits: np.ndarray, t: float) -> np.ndarray:
    """λ_r(t), one row's (K, R) logits: Λ_k by its definition, divided by the bin's width and shared out."""
    k = int(GRID.locate(np.array([t]))[0][0])
    weight = np.exp(logits[k])
    return np.log(1 + weight.sum()) / GRID.widths[k] * weight / weight.sum()


def integrate(function, end: float) -> float:
    points = [edge for edge in GRID.edges[1:-1] if edge < end]
    return quad(function, 0.0, end, points=points or None, epsabs=1e-12, limit=200)[0]


def test_nll_is_the_likelihood_by_integration():
    logits = some_logits(5)
    duration, event = np.array([5.0, 60.0, 61.0, 280.0, 300.0]), np.array([1, 2, 0, 3, 1])
    for row in range(5):
        survival = np.exp(-integrate(lambda t, r=row: hazard_by_cause(logits[r], t).sum(), duration[row]))
        likelihood = survival
        if event[row]:
            k = int(GRID.locate(duration[row : row + 1])[0][0])
            likelihood *= hazard_by_cause(logits[row], duration[row])[event[row] - 1] * GRID.widths[k]
        found = GRID.nll(logits, duration, event)[row]
        assert found == pytest.approx(-np.log(likelihood), rel=1e-9)


def test_incidences_are_integrals_and_sum_with_survival_to_one():
    logits = some_logits(3)
    times = np.array([0.0, 7.0, 20.0, 100.0, 299.0, 300.0])
    cif, survival = GRID.cif(logits, times), GRID.survival(logits, times)
    np.testing.assert_allclose(cif.sum(axis=2) + survival, 1.0, atol=1e-14)
    assert (np.diff(cif, axis=1) > 0).all()

    def all_cause(t: float) -> float:
        return float(np.exp(-integrate(lambda u: hazard_by_cause(logits[1], u).sum(), t)))

    for t, found in ((7.0, cif[1, 1]), (30.0, GRID.cif(logits, np.array([30.0]))[1, 0])):
        expected = [integrate(lambda u, r=r: all_cause(u) * hazard_by_cause(logits[1], u)[r], t) for r in range(3)]
        np.testing.assert_allclose(found, expected, rtol=1e-8)


@pytest.mark.parametrize("shift", [0.0, -12.0, 8.0])
@pytest.mark.parametrize("horizon", [None, 95.0])
def test_time_lost_is_the_integral_of_the_incidence(shift, horizon):
    logits = some_logits(3) + shift
    end = GRID.tau if horizon is None else horizon
    lost = GRID.time_lost(logits, horizon)
    for cause in range(3):
        value = integrate(lambda t, r=cause: GRID.cif(logits, np.array([t]))[2, 0, r], end)
        assert lost[2, cause] == pytest.approx(value, rel=1e-8)
    np.testing.assert_allclose(lost.sum(axis=1) + GRID.rmst(logits, horizon), end, rtol=1e-12)
    np.testing.assert_array_equal(GRID.risk(logits), GRID.time_lost(logits)[:, 0])
    np.testing.assert_array_equal(GRID.risk(logits, 95.0), GRID.cif(logits, np.array([95.0]))[:, 0, 0])


def test_one_cause_by_the_long_way_is_the_short_way():
    logits = some_logits(20, causes=1)
    duration, event = draw(logits, GRID, 0, censored_by=400.0)
    times, flat = GRID.curve_times(), logits[:, :, 0]
    np.testing.assert_array_equal(total_logit(logits), flat)
    np.testing.assert_array_equal(cause_shares(logits), 1.0)
    np.testing.assert_allclose(GRID.nll(logits, duration, event), GRID.nll(flat, duration, event), rtol=1e-14)
    np.testing.assert_array_equal(GRID.survival(logits, times), GRID.survival(flat, times))
    np.testing.assert_array_equal(GRID.cif(logits, times), GRID.cif(flat, times))
    np.testing.assert_allclose(GRID.cif(flat, times)[:, :, 0], 1 - GRID.survival(flat, times), atol=1e-14)
    np.testing.assert_allclose(GRID.risk(logits), GRID.tau + GRID.risk(flat), rtol=1e-12)
    bins, fraction = GRID.locate(duration)
    exposure = GRID.exposure(bins, fraction)
    value, gradient = nll_gradient(flat, exposure, bins, event)
    long_value, long_gradient = nll_gradient(logits, exposure, bins, event)
    assert long_value == pytest.approx(value, rel=1e-14)
    np.testing.assert_allclose(long_gradient[:, :, 0], gradient, rtol=1e-13)


@pytest.mark.parametrize("shift", [0.0, -30.0, 30.0])
def test_nll_gradient_is_that_of_the_nll(shift):
    logits = some_logits(5) + shift
    duration, event = np.array([5.0, 60.0, 61.0, 280.0, 300.0]), np.array([1, 2, 0, 3, 1])
    bins, fraction = GRID.locate(duration)
    exposure = GRID.exposure(bins, fraction)

    def value(flat: np.ndarray) -> float:
        return float(GRID.nll(flat.reshape(logits.shape), duration, event).sum())

    def gradient(flat: np.ndarray) -> np.ndarray:
        return nll_gradient(flat.reshape(logits.shape), exposure, bins, event)[1].ravel()

    found = nll_gradient(logits, exposure, bins, event)[0]
    assert found == pytest.approx(value(logits.ravel()), rel=1e-13)
    assert check_grad(value, gradient, logits.ravel()) < 1e-5 * max(1.0, abs(found))


@pytest.mark.parametrize("level", [-700.0, 700.0])
def test_extreme_logits_stay_finite(level):
    logits = np.full((3, GRID.n_bins, 2), level)
    logits[0, :, 1] = -level
    duration, event = np.array([10.0, 100.0, 300.0]), np.array([2, 1, 0])
    bins, fraction = GRID.locate(duration)
    value, gradient = nll_gradient(logits, GRID.exposure(bins, fraction), bins, event)
    assert np.isfinite(value)
    assert np.isfinite(gradient).all()
    assert np.isfinite(GRID.nll(logits, duration, event)).all()
    for curves in (GRID.cif(logits, GRID.curve_times()), GRID.time_lost(logits)):
        assert np.isfinite(curves).all()


def test_marginal_logits_minimise_the_likelihood_and_reproduce_aalen_johansen():
    truth = logits_of_hazards(np.tile([[0.05, 0.1], [0.2, 0.05], [0.1, 0.3], [0.4, 0.2]], (4000, 1, 1)))
    duration, event = draw(truth, GRID, 3, censored_by=600.0)
    logits = GRID.marginal_logits(duration, event, 2)
    every = np.broadcast_to(logits, (len(duration), *logits.shape))
    bins, fraction = GRID.locate(duration)
    gradient = nll_gradient(np.array(every), GRID.exposure(bins, fraction), bins, event)[1].sum(axis=0)
    np.testing.assert_allclose(gradient, 0.0, atol=1e-8 * len(duration))
    expected = AalenJohansen.fit(duration, event).at(GRID.edges[1:])  # (K, R)
    np.testing.assert_allclose(GRID.cif(logits[None], GRID.edges[1:])[0], expected, atol=0.004)
    np.testing.assert_allclose(expected, GRID.cif(truth[:1], GRID.edges[1:])[0], atol=0.03)


def test_marginal_logits_of_a_cause_without_events_are_finite():
    logits = GRID.marginal_logits(np.array([5.0, 30.0, 300.0]), np.array([1, 1, 0]), 2)
    assert np.isfinite(logits).all()
    with pytest.raises(ValueError, match="codes up to 1"):
        GRID.marginal_logits(np.array([5.0, 30.0]), np.array([1, 2]))


def test_logits_come_back_from_their_curves():
    grid = TimeGrid(np.array([0.0, 30.0, 90.0, 150.0, 300.0]))  # edges among the curve's points: nothing is lost
    logits = some_logits(40, seed=4)
    np.testing.assert_allclose(grid.logits_of(grid.cif(logits, grid.curve_times())), logits, atol=1e-6)
    between = TimeGrid(np.array([0.0, 31.3, 88.8, 151.7, 300.0]))
    again = between.logits_of(between.cif(logits, between.curve_times()))
    times = between.edges[1:]
    np.testing.assert_allclose(between.cif(again, times), between.cif(logits, times), atol=0.02)
    steps = AalenJohansen.fit(*draw(some_logits(500, 2), grid, 5))
    curve = steps.at(grid.curve_times())[None]
    np.testing.assert_allclose(
        grid.cif(grid.logits_of(curve), grid.edges[1:]), steps.at(grid.edges[1:])[None], atol=1e-6
    )


def test_grid_is_placed_by_the_outcome_alone():
    duration, event = draw(some_logits(3000, 2), GRID, 6, censored_by=500.0)
    grid = TimeGrid.fit(duration, event, 250.0)
    expected = int(np.clip(((event == 1) & (duration <= 250)).sum() // 10, 4, 20))
    assert grid.n_bins == expected
    mass = np.diff(AalenJohansen.fit(*truncate(duration, event, 250.0)).at(grid.edges)[:, 0])
    np.testing.assert_allclose(mass, mass.mean(), rtol=0.05)
    with pytest.raises(EhrError, match="no event in the training split"):
        TimeGrid.fit(duration, np.where(event == 1, 2, event), 250.0)


def test_truncate_keeps_causes_up_to_the_horizon():
    duration, event = truncate(np.array([5.0, 6.0, 9.0, 10.0]), np.array([2, 1, 3, 2]), 9.0)
    np.testing.assert_array_equal(duration, [5, 6, 9, 9])
    np.testing.assert_array_equal(event, [2, 1, 3, 0])


def test_for_outcome_keeps_rivals_at_risk_to_the_horizon():
    duration, event = for_outcome(np.array([3.0, 4.0, 5.0, 50.0, 60.0]), np.array([2, 1, 0, 1, 3]), 20.0)
    np.testing.assert_array_equal(duration, [20, 4, 5, 20, 20])
    np.testing.assert_array_equal(event, [0, 1, 0, 0, 0])


def test_only_code_zero_is_censoring():
    duration, event = np.array([1.0, 2.0, 2.0, 3.0, 4.0]), np.array([2, 0, 3, 1, 0])
    found, expected = censoring_distribution(duration, event), censoring_distribution(duration, event > 0)
    np.testing.assert_array_equal(found.times, [2, 4])
    np.testing.assert_array_equal(found.values, expected.values)


@pytest.mark.parametrize("event", [np.array([-1, 0]), np.array([0.5, 1.0]), np.array([np.nan, 1.0])])
def test_codes_that_are_none_are_refused(event):
    with pytest.raises(EhrError, match="event codes 0, 1, 2") as error:
        check_causes(np.array([1.0, 2.0]), event)
    assert error.value.code is Exit.COHORT


def test_aalen_johansen_by_hand():
    # at risk 5, 4, 2: d1/5; S = 4/5, then tied cause 1 and 2 of 4: S = 2/5, then the last of 2
    duration, event = np.array([1.0, 2.0, 2.0, 3.0, 4.0]), np.array([1, 1, 2, 2, 0])
    curves = AalenJohansen.fit(duration, event)
    np.testing.assert_array_equal(curves.times, [1, 2, 3])
    np.testing.assert_allclose(curves.values, [[0.2, 0.0], [0.4, 0.2], [0.4, 0.4]])
    np.testing.assert_allclose(curves.at(np.array([0.9, 2.5, 99.0])), [[0, 0], [0.4, 0.2], [0.4, 0.4]])
    assert AalenJohansen.fit(duration, event, n_causes=3).at(3.0)[2] == 0
    with pytest.raises(EhrError, match="event codes up to 1"):
        AalenJohansen.fit(duration, event, n_causes=1)


def test_aalen_johansen_of_one_cause_is_kaplan_meier():
    duration, event = draw(some_logits(300, 1), GRID, 7, censored_by=300.0)
    times = np.linspace(0, 300, 50)
    expected, curves = KaplanMeier.fit(duration, event), AalenJohansen.fit(duration, event)
    np.testing.assert_allclose(curves.at(times)[:, 0], 1 - expected.at(times), atol=1e-12)
    greenwood = expected.at(times) ** 2 * expected._greenwood(times)
    np.testing.assert_allclose(curves._look_up(curves.variance, times)[:, 0], greenwood, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("cause", [1, 2])
def test_aalen_johansen_is_that_of_lifelines(cause):
    rng = np.random.default_rng(0)
    duration, event = rng.permutation(np.arange(1.0, 301.0)), rng.integers(0, 3, 300)  # lifelines moves tied times
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        other = AalenJohansenFitter(calculate_variance=True).fit(duration, event, event_of_interest=cause)
    times = other.cumulative_density_.index.to_numpy()[1:-1]
    curves = AalenJohansen.fit(duration, event)
    np.testing.assert_allclose(
        curves.at(times)[:, cause - 1], other.cumulative_density_.to_numpy()[1:-1, 0], rtol=1e-12
    )
    low, high = curves.interval(times)
    ours = np.stack([low[:, cause - 1], high[:, cause - 1]], axis=1)
    theirs = other.confidence_interval_.to_numpy()[1:-1]
    known = np.isfinite(theirs).all(axis=1) & (curves.at(times)[:, cause - 1] > 0)
    np.testing.assert_allclose(ours[known], theirs[known], rtol=1e-9)
