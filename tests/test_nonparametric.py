"""Kaplan–Meier and the censoring distribution against lifelines, scikit-survival and hand-made tables."""

from __future__ import annotations

import numpy as np
import pytest
from lifelines import KaplanMeierFitter
from sksurv.nonparametric import kaplan_meier_estimator

from ehrsequencing.errors import EhrError, Exit
from ehrsequencing.nonparametric import KaplanMeier, censoring_distribution

rng = np.random.default_rng(0)


def outcome(n: int, ties: bool) -> tuple[np.ndarray, np.ndarray]:
    duration = rng.exponential(1000, n) + 1
    if ties:
        duration = np.ceil(duration / 365) * 365.0
    return duration, rng.integers(0, 2, n)


@pytest.mark.parametrize("ties", [False, True])
def test_kaplan_meier_equals_lifelines(ties: bool) -> None:
    duration, event = outcome(300, ties)
    km, theirs = KaplanMeier.fit(duration, event), KaplanMeierFitter().fit(duration, event)
    times = np.unique(np.concatenate([duration, np.linspace(0, duration.max(), 50)]))
    np.testing.assert_allclose(km.at(times), theirs.survival_function_at_times(times), atol=1e-12)
    before = np.nextafter(times[1:], 0)
    np.testing.assert_allclose(km.before(times[1:]), theirs.survival_function_at_times(before), atol=1e-12)


@pytest.mark.parametrize("level", [0.95, 0.8])
def test_interval_equals_lifelines(level: float) -> None:
    duration, event = outcome(200, ties=True)
    theirs = KaplanMeierFitter(alpha=1 - level).fit(duration, event)
    inside = (theirs.survival_function_.values[:, 0] > 0) & (theirs.survival_function_.values[:, 0] < 1)
    times = theirs.survival_function_.index.to_numpy()[inside]
    low, high = KaplanMeier.fit(duration, event).interval(times, level)
    expected = theirs.confidence_interval_survival_function_.to_numpy()[inside]
    np.testing.assert_allclose(np.column_stack([low, high]), expected, atol=1e-10)


def test_interval_where_nothing_happened_is_the_exact_binomial_limit() -> None:
    duration = np.full(30, 10.0)
    low, high = KaplanMeier.fit(duration, np.zeros(30, dtype=np.int64)).interval(np.array([5.0]))
    assert low[0] == pytest.approx(0.025 ** (1 / 30))
    assert high[0] == 1.0
    low, high = KaplanMeier.fit(duration, np.ones(30, dtype=np.int64)).interval(np.array([10.0]))
    assert low[0] == 0.0
    assert 0 < high[0] < 0.2


@pytest.mark.parametrize("ties", [False, True])
def test_censoring_distribution_equals_sksurv_reverse(ties: bool) -> None:
    duration, event = outcome(300, ties)
    times, values = kaplan_meier_estimator(event.astype(bool), duration, reverse=True)
    np.testing.assert_allclose(censoring_distribution(duration, event).at(times), values, atol=1e-12)


def test_events_come_before_censorings_at_tied_times() -> None:
    duration, event = np.array([1.0, 1.0, 1.0, 2.0]), np.array([1, 1, 0, 0])
    censoring = censoring_distribution(duration, event)
    # of the two left at time 1 after its two events, one is censored
    assert censoring.before(1.0) == 1.0
    assert censoring.at(1.0) == pytest.approx(1 / 2)
    # all four were at risk of the events at time 1
    assert KaplanMeier.fit(duration, event).at(1.0) == pytest.approx(1 / 2)


def test_everybody_censored_or_nobody() -> None:
    duration = np.array([1.0, 2.0, 3.0])
    assert (KaplanMeier.fit(duration, np.zeros(3, dtype=bool)).at(duration) == 1).all()
    assert (censoring_distribution(duration, np.ones(3, dtype=bool)).at(duration) == 1).all()


@pytest.mark.parametrize(
    ("duration", "event", "found"),
    [
        (np.array([1.0, np.nan]), np.array([1, 0]), "1 that are not"),
        (np.array([-1.0, 2.0]), np.array([1, 0]), "at least 0"),
        (np.array([]), np.array([], dtype=np.int64), "shapes"),
    ],
)
def test_impossible_outcomes_are_refused(duration: np.ndarray, event: np.ndarray, found: str) -> None:
    with pytest.raises(EhrError, match=found) as error:
        KaplanMeier.fit(duration, event)
    assert error.value.code is Exit.COHORT
