"""The blend: α finds the better part, the mixture where there is one, and stays at one half where nobody can know."""

from __future__ import annotations

import numpy as np
import pytest

from ehrsequencing.models.blend import ALPHAS, blend, choose_alpha
from ehrsequencing.timegrid import TimeGrid

GRID = TimeGrid(np.array([0.0, 50.0, 200.0, 600.0, 1000.0]))


def outcome(logits, seed=0):
    """Event times from the hazard logits on GRID, all censored at τ."""
    rng = np.random.default_rng(seed)
    ends = np.concatenate([np.zeros((len(logits), 1)), np.cumsum(np.logaddexp(0, logits), axis=1)], axis=1)
    drawn = rng.exponential(size=len(logits))
    death = np.array([np.interp(u, h, GRID.edges, right=np.inf) for u, h in zip(drawn, ends, strict=True)])
    return np.minimum(death, GRID.tau), (death <= GRID.tau).astype(np.int64)


def parts(n=4000):
    rng = np.random.default_rng(1)
    one, other = rng.normal(size=(2, n, 1))
    base = np.array([-2.0, -1.8, -1.5, -1.7])
    return base + one, base + other


@pytest.mark.parametrize("truth", [0.0, 0.3, 0.5, 1.0])
def test_alpha_finds_the_true_mixture(truth):
    deep, wide = parts()
    duration, event = outcome(blend(deep, wide, truth))
    assert choose_alpha(deep, wide, GRID, duration, event) == pytest.approx(truth, abs=0.1)


def test_alpha_is_the_argmin_of_the_formula_in_steps_of_a_tenth():
    deep, wide = parts(300)
    duration, event = outcome(blend(deep, wide, 0.6))
    losses = []
    for step in range(11):
        logits = step / 10 * deep + (1 - step / 10) * wide
        bins, fraction = GRID.locate(duration)
        hazard = np.log1p(np.exp(logits))
        loss = [
            hazard[i, :k].sum() + fraction[i] * hazard[i, k] - event[i] * np.log(hazard[i, k])
            for i, k in enumerate(bins)
        ]
        losses.append(np.mean(loss))
    assert choose_alpha(deep, wide, GRID, duration, event) == np.argmin(losses) / 10


def test_parts_come_back_bit_for_bit_and_alpha_is_linear_in_between():
    deep, wide = parts(20)
    assert np.array_equal(blend(deep, wide, 1.0), deep)
    assert np.array_equal(blend(deep, wide, 0), wide)
    assert blend(deep, wide, 0.3) == pytest.approx(wide + 0.3 * (deep - wide))
    low = blend(deep.astype(np.float32), wide, 1.0)
    assert low.dtype == np.float64
    low[:] = 0
    assert deep.any()


def test_equal_parts_give_the_smallest_alpha_and_few_events_one_half():
    deep, wide = parts(500)
    duration, event = outcome(deep)
    assert choose_alpha(deep, deep, GRID, duration, event) == 0.0
    few = event * (np.cumsum(event) <= 19)
    assert choose_alpha(deep, wide, GRID, duration, few) == 0.5
    enough = event * (np.cumsum(event) <= 20)
    assert choose_alpha(deep, wide, GRID, duration, enough) != 0.5
    late = np.where(np.cumsum(event) <= 19, duration, GRID.tau + 1)
    assert choose_alpha(deep, wide, GRID, late, event) == 0.5


def test_steps():
    assert ALPHAS == (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
