"""Recalibration of hazard logits against the truth, finite steps and its own likelihood."""

from __future__ import annotations

import json

import numpy as np
import pytest

from ehrsequencing.errors import EhrError, Exit
from ehrsequencing.evaluation.recalibration import Recalibration
from ehrsequencing.timegrid import TimeGrid

GRID = TimeGrid(np.array([0.0, 100.0, 300.0, 700.0, 1500.0]))


def tuning(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """True logits on GRID and outcomes drawn from them, by inverting each patient's cumulative hazard."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(n, 1)) + np.array([-2.0, -1.5, -1.0, -0.5])
    target, times = rng.exponential(size=n), np.linspace(0, GRID.tau, 3001)
    hazard = GRID.cumulative_hazard(logits, times)
    failure = np.array([np.interp(x, h, times, right=1e9) for x, h in zip(target, hazard, strict=True)])
    censoring = rng.exponential(2500, n)
    return logits, np.maximum(np.minimum(failure, censoring), 1e-6), (failure <= censoring).astype(np.int64)


def test_recalibration_undoes_a_distortion() -> None:
    logits, duration, event = tuning(6000)
    shift = np.array([0.5, -0.5, 1.0, 0.0])
    fitted = Recalibration.fit((logits - shift) / 0.6, duration, event, GRID)
    assert fitted.slope == pytest.approx(0.6, abs=0.05)
    np.testing.assert_allclose(fitted.intercepts, shift, atol=0.2)
    better, worse = fitted.apply((logits - shift) / 0.6), (logits - shift) / 0.6
    assert GRID.nll(better, duration, event).mean() < GRID.nll(worse, duration, event).mean()
    assert "4 intercepts" in fitted.note


def test_recalibration_leaves_a_true_model_nearly_alone() -> None:
    logits, duration, event = tuning(6000)
    fitted = Recalibration.fit(logits, duration, event, GRID)
    assert fitted.slope == pytest.approx(1.0, abs=0.05)
    np.testing.assert_allclose(fitted.intercepts, 0.0, atol=0.2)


def test_recalibration_is_at_the_least_likelihood() -> None:
    logits, duration, event = tuning(300, 1)
    distorted = 2 * logits + 1
    fitted = Recalibration.fit(distorted, duration, event, GRID)
    least = GRID.nll(fitted.apply(distorted), duration, event).mean()
    rng = np.random.default_rng(0)
    for _ in range(50):
        nearby = Recalibration(fitted.slope + rng.normal(0, 1e-2), fitted.intercepts + rng.normal(0, 1e-2, 4), "")
        assert GRID.nll(nearby.apply(distorted), duration, event).mean() > least


def test_bins_with_few_events_share_an_intercept() -> None:
    logits, duration, event = tuning(2000)
    late = event.copy()
    late[(duration <= 300) & (np.cumsum((duration <= 300) & (event == 1)) > 9)] = 0
    fitted = Recalibration.fit(logits, duration, late, GRID)
    assert fitted.intercepts[0] == fitted.intercepts[1]
    assert len(set(fitted.intercepts.tolist())) == 3
    few = Recalibration.fit(logits[:60], duration[:60], event[:60], GRID)
    assert event[:60].sum() >= 20
    assert len(set(few.intercepts.tolist())) < 4


def test_under_twenty_tuning_events_nothing_is_recalibrated() -> None:
    logits, duration, event = tuning(400)
    rows = np.concatenate([np.flatnonzero((event == 1) & (duration <= GRID.tau))[:19], np.flatnonzero(event == 0)])
    fitted = Recalibration.fit(logits[rows], duration[rows], event[rows], GRID)
    np.testing.assert_array_equal(fitted.apply(logits), logits)
    assert fitted.note == "not recalibrated: under 20 tuning events"


def test_recalibration_never_turns_a_ranking_round() -> None:
    logits, duration, event = tuning(1000)
    fitted = Recalibration.fit(-logits, duration, event, GRID)
    assert fitted.slope == 0.0


def test_recalibration_of_a_constant_or_extreme_model_is_finite() -> None:
    logits, duration, event = tuning(500)
    for distorted in (np.zeros_like(logits), 300 * logits, np.tile([[-700.0, 700.0, 0.0, 1.0]], (500, 1))):
        fitted = Recalibration.fit(distorted, duration, event, GRID)
        assert np.isfinite(GRID.nll(fitted.apply(distorted), duration, event)).all()
        before = GRID.nll(distorted, duration, event).mean()
        assert GRID.nll(fitted.apply(distorted), duration, event).mean() <= before + 1e-9


def test_logits_that_are_not_numbers_are_refused() -> None:
    logits, duration, event = tuning(200)
    with pytest.raises(EhrError, match="no finite likelihood") as error:
        Recalibration.fit(np.full_like(logits, np.nan), duration, event, GRID)
    assert error.value.code is Exit.BUNDLE


def test_recalibration_json_round_trip_is_exact() -> None:
    logits, duration, event = tuning(300)
    fitted = Recalibration.fit(logits, duration, event, GRID)
    again = Recalibration.from_json(json.loads(json.dumps(fitted.to_json())))
    np.testing.assert_array_equal(again.apply(logits), fitted.apply(logits))
    assert again.note == fitted.note
