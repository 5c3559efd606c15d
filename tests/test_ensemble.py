"""The mean of several models' hazards, by hand, with competing causes, and what is refused."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from ehrsequencing.config import StudyConfig, parse
from ehrsequencing.ensemble import ensemble
from ehrsequencing.errors import EhrError, Exit
from ehrsequencing.hazards import cause_shares, mean_of_hazards, softplus, total_logit
from ehrsequencing.predictions import Predictions
from ehrsequencing.timegrid import TimeGrid

GRID = TimeGrid(np.array([0.0, 37.0, 410.0, 900.0, 1000.0]))


def hazards(logits):
    """h_r of every bin, from the definition."""
    return -np.expm1(-softplus(total_logit(logits)))[..., None] * cause_shares(logits)


def drawn(shape, seed):
    return np.random.default_rng(seed).normal(-2, 1, shape)


def predictions(logits, causes=("outcome",)):
    day = np.full(len(logits), np.datetime64("2020-01-01", "us"))
    return Predictions.from_logits(logits, GRID, np.arange(len(logits)), day, causes, cohort_fingerprint="c", model="m")


@pytest.mark.parametrize("shape", [(5, 4), (5, 4, 3)])
def test_the_mean_is_of_the_hazards_of_every_bin_and_cause(shape):
    several = [drawn(shape, seed) for seed in range(3)]
    expected = np.mean([hazards(each) for each in several], axis=0)
    assert np.allclose(hazards(mean_of_hazards(several)), expected, rtol=1e-12)


def test_extreme_logits_stay_finite():
    assert np.isfinite(mean_of_hazards([np.full((1, 2), 700.0), np.full((1, 2), -700.0)])).all()


@pytest.mark.parametrize("causes", [("outcome",), ("outcome", "death")])
def test_a_model_with_itself_is_itself(causes):
    shape = (6, 4) if len(causes) == 1 else (6, 4, 2)
    one = predictions(drawn(shape, 0), causes)
    both = ensemble([one, one], "twice")
    assert np.allclose(both.survival, one.survival, atol=1e-9)
    assert np.allclose(both.risk, one.risk, rtol=1e-3)  # inside a step of the curve that holds an edge
    for cause in one.cif:
        assert np.allclose(both.cif[cause], one.cif[cause], atol=1e-9)


def test_the_first_step_of_the_mean_is_the_mean_of_the_first_steps():
    several = [predictions(drawn((6, 4), seed)) for seed in range(3)]
    both = ensemble(several, "mean")
    assert np.allclose(1 - both.survival[:, 0], np.mean([1 - each.survival[:, 0] for each in several], axis=0))
    second = np.mean([1 - each.survival[:, 1] / each.survival[:, 0] for each in several], axis=0)
    assert np.allclose(1 - both.survival[:, 1] / both.survival[:, 0], second)


def test_members_of_other_rows_causes_cohorts_or_horizons_are_refused():
    one = predictions(drawn((6, 4), 0))
    others = [
        predictions(drawn((5, 4), 0)),
        predictions(drawn((6, 4, 2), 0), ("outcome", "death")),
        replace(one, cohort_fingerprint="d"),
        replace(one, horizon_days=one.horizon_days * 2),
    ]
    for other, what in zip(others, ("rows", "causes", "cohort", "horizons"), strict=True):
        with pytest.raises(EhrError, match=what) as caught:
            ensemble([one, other], "mean")
        assert caught.value.code == Exit.BUNDLE


def test_one_seed_has_nothing_to_average():
    with pytest.raises(EhrError, match="two seeds") as caught:
        parse(StudyConfig, {"name": "s", "data": "x", "task": "t", "ensemble": True, "seeds": [0]}, "study")
    assert caught.value.code == Exit.CONFIG
