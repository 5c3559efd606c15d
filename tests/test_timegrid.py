"""The time grid: edges, survival, restricted mean, likelihood and choice of τ, against integration and hand sums."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.optimize import minimize

from ehrsequencing.config import CURVE_POINTS
from ehrsequencing.errors import EhrError, Exit
from ehrsequencing.hazards import log_softplus
from ehrsequencing.horizon import choose_tau
from ehrsequencing.nonparametric import KaplanMeier
from ehrsequencing.timegrid import TimeGrid, truncate


def outcome(n: int = 600, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    failure, censoring = 900 * rng.weibull(1.4, n), rng.uniform(100, 2500, n)
    return np.minimum(failure, censoring), (failure <= censoring).astype(np.int64)


def some_grid() -> TimeGrid:
    return TimeGrid(np.array([0.0, 30.0, 100.0, 365.0, 1000.0]))


def some_logits(n: int = 7) -> np.ndarray:
    return np.random.default_rng(1).normal(-1, 1.5, (n, 4))


@pytest.mark.parametrize(("events", "bins"), [(12, 4), (49, 4), (50, 5), (123, 12), (200, 20), (5000, 20)])
def test_number_of_bins_follows_the_events(events: int, bins: int) -> None:
    duration = np.random.default_rng(0).exponential(100, events) + 1
    assert TimeGrid.fit(duration, np.ones(events, dtype=np.int64), duration.max()).n_bins == bins


def test_bins_lose_equal_kaplan_meier_mass() -> None:
    duration, event = outcome(5000)
    grid = TimeGrid.fit(duration, event, 1500.0)
    mass = -np.diff(KaplanMeier.fit(duration, event).at(grid.edges))
    assert grid.tau == 1500.0
    assert grid.edges[0] == 0
    np.testing.assert_allclose(mass, mass.mean(), rtol=0.02)


def test_tied_times_leave_fewer_but_strictly_rising_edges() -> None:
    duration = np.repeat([365.0, 730.0, 1095.0], 100)
    grid = TimeGrid.fit(duration, np.ones(300, dtype=np.int64), 1095.0)
    np.testing.assert_array_equal(grid.edges, [0.0, 365.0, 730.0, 1095.0])


def test_no_events_is_refused() -> None:
    with pytest.raises(EhrError, match="no event in the training split within the horizon of 5 days") as error:
        TimeGrid.fit(np.array([4.0, 9.0]), np.array([0, 1]), 5.0)
    assert error.value.code is Exit.COHORT


def test_locate_at_and_between_edges() -> None:
    bins, fraction = some_grid().locate(np.array([1e-9, 30.0, np.nextafter(30.0, 31), 65.0, 1000.0, 4000.0]))
    np.testing.assert_array_equal(bins, [0, 0, 1, 1, 3, 3])
    np.testing.assert_allclose(fraction, [1e-9 / 30, 1, 0, 0.5, 1, 1], atol=1e-12)
    assert (fraction > 0).all()
    with pytest.raises(EhrError, match="above 0 days, found 1"):
        some_grid().locate(np.array([0.0, 1.0]))


def test_survival_at_edges_is_the_product_of_one_minus_the_hazards() -> None:
    grid, logits = some_grid(), some_logits()
    expected = np.cumprod(1 - 1 / (1 + np.exp(-logits)), axis=1)
    np.testing.assert_allclose(grid.survival(logits, grid.edges[1:]), expected, rtol=1e-12)
    np.testing.assert_array_equal(grid.survival(logits, np.array([0.0])), 1.0)
    curve = grid.survival(logits, grid.curve_times())
    assert curve.shape == (7, CURVE_POINTS)
    assert (np.diff(curve, axis=1) < 0).all()
    assert grid.curve_times()[-1] == grid.tau


def test_survival_past_tau_is_refused() -> None:
    with pytest.raises(EhrError, match="between 0 and the horizon of 1000 days, found up to 1001"):
        some_grid().survival(some_logits(), np.array([1001.0]))


@pytest.mark.parametrize("horizon", [None, 12.0, 30.0, 500.0])
def test_restricted_mean_equals_numeric_integration(horizon: float | None) -> None:
    grid, logits = some_grid(), some_logits(3)
    end = horizon or grid.tau
    for row, value in zip(logits, grid.rmst(logits, horizon), strict=True):
        cuts = [e for e in grid.edges if 0 < e < end]
        integral = quad(lambda t, row=row: grid.survival(row[None], np.array([t]))[0, 0], 0, end, points=cuts or None)
        assert value == pytest.approx(integral[0], rel=1e-9)


def test_extreme_logits_stay_finite() -> None:
    grid = some_grid()
    logits = np.array([[-800.0] * 4, [800.0] * 4, [800.0, -800.0, 0.0, 800.0]])
    assert np.isfinite(grid.nll(logits, np.array([50.0, 50.0, 50.0]), np.array([1, 1, 1]))).all()
    np.testing.assert_allclose(grid.rmst(logits)[:2], [1000.0, 30.0 / 800.0])
    np.testing.assert_allclose(
        log_softplus(np.array([-20.1, -19.9])), np.log(np.log1p(np.exp([-20.1, -19.9]))), rtol=1e-14
    )


@given(st.floats(-4, 4), st.integers(0, 3), st.floats(0.01, 3))
@settings(max_examples=30, deadline=None)
def test_a_higher_logit_is_a_higher_risk(base: float, which: int, more: float) -> None:
    grid = some_grid()
    logits = np.full((2, 4), base)
    logits[1, which] += more
    low, high = grid.risk(logits)
    assert high > low
    low, high = grid.risk(logits, 1000.0)
    assert high > low


def test_risk_at_a_horizon_is_one_minus_survival() -> None:
    grid, logits = some_grid(), some_logits()
    np.testing.assert_allclose(grid.risk(logits, 200.0), 1 - grid.survival(logits, np.array([200.0]))[:, 0])
    np.testing.assert_allclose(grid.risk(logits), -grid.rmst(logits))


def test_nll_equals_the_formula_summed_by_hand() -> None:
    grid, logits = some_grid(), some_logits(5)
    duration, event = np.array([10.0, 30.0, 65.0, 1000.0, 3000.0]), np.array([1, 0, 1, 1, 1])
    expected = []
    for row, t, d in zip(logits, duration, event, strict=True):
        d, t = (0, 1000.0) if t > 1000 else (d, t)
        k = next(j for j in range(4) if t <= grid.edges[j + 1])
        f = (t - grid.edges[k]) / (grid.edges[k + 1] - grid.edges[k])
        sp = np.log(1 + np.exp(row))
        expected.append(sum(sp[:k]) + f * sp[k] - d * np.log(sp[k]))
    np.testing.assert_allclose(grid.nll(logits, duration, event), expected, rtol=1e-12)


def test_nll_is_the_log_density_of_its_own_survival_curve() -> None:
    grid, logits = some_grid(), some_logits(1)
    t, step = 50.0, 1e-4
    survival = grid.survival(logits, np.array([t - step, t, t + step]))[0]
    density = (survival[0] - survival[2]) / (2 * step)
    assert grid.nll(logits, np.array([t]), np.array([0]))[0] == pytest.approx(-np.log(survival[1]))
    bin_width = 70.0
    assert grid.nll(logits, np.array([t]), np.array([1]))[0] == pytest.approx(-np.log(density * bin_width), abs=1e-6)


def test_marginal_logits_minimise_the_likelihood_and_reproduce_kaplan_meier() -> None:
    duration, event = outcome(400)
    grid = TimeGrid.fit(duration, event, 1500.0)
    logits = grid.marginal_logits(duration, event)
    found = minimize(lambda x: grid.nll(np.tile(x, (duration.size, 1)), duration, event).mean(), np.zeros(grid.n_bins))
    np.testing.assert_allclose(logits, found.x, atol=1e-3)
    times = grid.curve_times()
    survival = grid.survival(logits[None], times)[0]
    np.testing.assert_allclose(survival, KaplanMeier.fit(duration, event).at(times), atol=0.015)


def test_a_bin_without_events_has_a_finite_small_hazard() -> None:
    grid = TimeGrid(np.array([0.0, 10.0, 20.0]))
    logits = grid.marginal_logits(np.array([5.0, 6.0, 20.0, 20.0]), np.array([1, 1, 0, 0]))
    hazard = grid.cumulative_hazard(logits[None], np.array([10.0, 20.0]))[0]
    np.testing.assert_allclose(hazard, [2 / 3.1, 2 / 3.1 + 0.25])


def test_days_or_years_make_no_difference() -> None:
    duration, event = outcome()
    days, years = TimeGrid.fit(duration, event, 1461.0), TimeGrid.fit(duration / 365.25, event, 4.0)
    np.testing.assert_allclose(days.edges / 365.25, years.edges, rtol=1e-12)
    logits = np.random.default_rng(2).normal(-2, 1, (duration.size, days.n_bins))
    np.testing.assert_allclose(
        days.nll(logits, duration, event), years.nll(logits, duration / 365.25, event), rtol=1e-9
    )
    np.testing.assert_allclose(days.risk(logits) / 365.25, years.risk(logits), rtol=1e-9)
    np.testing.assert_allclose(days.marginal_logits(duration, event), years.marginal_logits(duration / 365.25, event))


def test_json_round_trip_is_exact() -> None:
    duration, event = outcome()
    grid = TimeGrid.fit(duration, event, 1000.0 / 3)
    again = TimeGrid.from_json(json.loads(json.dumps(grid.to_json())))
    assert again == grid
    assert hash(again) == hash(grid)
    assert again.fingerprint == grid.fingerprint
    assert TimeGrid(grid.edges * 2).fingerprint != grid.fingerprint


@pytest.mark.parametrize("edges", [[0.0], [1.0, 2.0], [0.0, 2.0, 2.0], [0.0, np.inf]])
def test_broken_edges_are_refused(edges: list[float]) -> None:
    with pytest.raises(EhrError, match="start at 0 and rise strictly") as error:
        TimeGrid.from_json({"edges": edges})
    assert error.value.code is Exit.BUNDLE


def test_truncate() -> None:
    duration, event = truncate(np.array([1.0, 5.0, 5.0, 6.0]), np.array([1, 1, 0, 1]), 5.0)
    np.testing.assert_array_equal(duration, [1, 5, 5, 5])
    np.testing.assert_array_equal(event, [1, 1, 0, 0])


def test_choose_tau() -> None:
    duration = np.arange(1.0, 101.0)
    nobody, everybody = np.zeros(100, dtype=np.int64), np.ones(100, dtype=np.int64)
    # Ĝ(t) = 1 − t/100 falls below 0.1 after t = 90, so Ĝ(91−) = 0.1 is the last that will do
    assert choose_tau(duration, nobody, None) == 91.0
    assert choose_tau(duration, everybody, None) == 100.0
    assert choose_tau(duration, nobody, 60.0) == 60.0
    with pytest.raises(EhrError, match=r"horizon of 101 days is past the longest training duration, 100 days") as error:
        choose_tau(duration, nobody, 101.0)
    assert error.value.code is Exit.COHORT
    with pytest.raises(EhrError, match=r"only a share of 0\.060 is still uncensored") as error:
        choose_tau(duration, nobody, 95.0)
    assert "at most 91 days" in error.value.fix


def test_everybody_censored_together_at_the_horizon_is_no_obstacle() -> None:
    duration, event = truncate(*outcome(), 300.0)
    assert choose_tau(duration, event, 300.0) == 300.0
