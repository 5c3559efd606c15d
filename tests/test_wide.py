"""The penalised linear hazard head: right answer, converged, chosen honestly, kept exactly."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.numpy import load, save
from scipy.optimize import minimize

from ehrsequencing.batches import Targets
from ehrsequencing.errors import EhrError, Exit
from ehrsequencing.models.ridge import PENALTIES, PrincipalAxes, Standardiser, stratified_folds
from ehrsequencing.models.wide import RidgeHazard, fit_ridge_hazard, score_screen
from ehrsequencing.timegrid import TimeGrid

GRID = TimeGrid(np.array([0.0, 100.0, 250.0, 500.0, 1000.0]))
BIAS = np.array([-2.5, -2.0, -1.8, -1.5])


def simulate(n, weight, seed=0, bias=BIAS, scale=1.0):
    """Event times drawn exactly from φ_k = b_k + w·x on GRID, censored uniformly."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, len(weight)))
    logits = bias + (x @ weight)[:, None]
    at_edges = np.concatenate([np.zeros((n, 1)), np.cumsum(np.logaddexp(0, logits), axis=1)], axis=1)
    drawn = rng.exponential(size=n)
    death = np.array([np.interp(u, h, GRID.edges, right=np.inf) for u, h in zip(drawn, at_edges, strict=True)])
    censored = rng.uniform(50, 1500, size=n)
    duration = np.minimum(np.minimum(death, censored), GRID.tau)
    event = (death <= np.minimum(censored, GRID.tau)).astype(np.int64)
    return x * scale, Targets.of(duration, event, GRID)


def part(targets, rows):
    return targets.take(np.arange(len(targets))[rows])


def with_event(targets, event):
    return Targets(targets.duration, torch.tensor(event), targets.bin, targets.fraction)


def reference_loss(parameters, x, targets, penalty):
    """Mean NLL + penalty/2·|w|² on standardised columns, patient by patient, straight from the formula."""
    k = GRID.n_bins
    z = (x - x.mean(axis=0)) / x.std(axis=0)
    outcome = (targets.event.tolist(), targets.bin.tolist(), targets.fraction.tolist())
    total = 0.0
    for row, event, b, f in zip(z, *outcome, strict=True):
        hazard = np.log1p(np.exp(parameters[:k] + row @ parameters[k:]))
        total += hazard[:b].sum() + f * hazard[b] - event * np.log(hazard[b])
    return total / len(x) + penalty / 2 * np.sum(parameters[k:] ** 2)


@pytest.mark.parametrize("penalty", [1e-10, 0.05])
def test_equals_an_independent_optimiser(penalty):
    x, targets = simulate(150, np.array([0.8, -0.5]))
    fit = fit_ridge_hazard(x, targets, x, targets, [penalty], GRID.n_bins)
    start = np.concatenate([BIAS, np.zeros(2)])
    reference = minimize(reference_loss, start, args=(x, targets, penalty), method="BFGS", options={"gtol": 1e-6})
    assert np.concatenate([fit.bias, fit.weight]) == pytest.approx(reference.x, abs=2e-5)
    assert reference_loss(np.concatenate([fit.bias, fit.weight]), x, targets, penalty) <= reference.fun + 1e-12


def test_recovers_the_truth():
    weight = np.array([0.7, -0.4, 0.0, 0.2])
    x, targets = simulate(20_000, weight)
    fit = fit_ridge_hazard(x, targets, x[:2000], part(targets, slice(2000)), [1e-8], GRID.n_bins)
    assert fit.weight / fit.std == pytest.approx(weight, abs=0.04)
    assert fit.bias - fit.weight @ (fit.mean / fit.std) == pytest.approx(BIAS, abs=0.1)


def test_gradient_vanishes_at_every_penalty():
    x, targets = simulate(300, np.full(8, 0.2))
    fit = fit_ridge_hazard(x, targets, x, targets, PENALTIES, GRID.n_bins)
    assert max(row.gradient for row in fit.path) < 1e-7
    parameters = np.concatenate([fit.bias, fit.weight])
    step = 1e-5 * np.eye(len(parameters))
    numeric = [
        reference_loss(parameters + e, x, targets, fit.penalty)
        - reference_loss(parameters - e, x, targets, fit.penalty)
        for e in step
    ]
    assert np.abs(numeric).max() / 2e-5 < 1e-7


def test_penalty_is_the_best_of_the_path_on_tuning_and_weak_paths_end_early():
    x, targets = simulate(500, np.r_[0.6, np.zeros(59)])
    train, tune = slice(0, 250), slice(250, None)
    fit = fit_ridge_hazard(x[train], part(targets, train), x[tune], part(targets, tune), PENALTIES, GRID.n_bins)
    best = min(fit.path, key=lambda row: row.tuning_nll)
    assert fit.penalty == best.penalty
    assert len(fit.path) < len(PENALTIES)
    duration, event = targets.duration.numpy(), targets.event.numpy()
    nll = GRID.nll(fit.logits(x[tune]), duration[tune], event[tune]).mean()
    assert nll == pytest.approx(best.tuning_nll, rel=1e-10)
    marginal = np.tile(GRID.marginal_logits(duration[train], event[train]), (250, 1))
    assert nll < GRID.nll(marginal, duration[tune], event[tune]).mean() - 0.01


def test_scale_and_shift_of_columns_do_not_matter():
    weight = np.array([0.7, -0.4, 0.1])
    x, targets = simulate(400, weight)
    moved = x * np.array([1e-4, 1.0, 1e5]) + np.array([3.0, -2.0, 1e4])
    a = fit_ridge_hazard(x, targets, x, targets, PENALTIES, GRID.n_bins)
    b = fit_ridge_hazard(moved, targets, moved, targets, PENALTIES, GRID.n_bins)
    assert a.penalty == b.penalty
    assert a.logits(x) == pytest.approx(b.logits(moved), abs=1e-6)


def test_starts_at_the_marginal_hazard_and_stays_there_under_a_huge_penalty():
    x, targets = simulate(400, np.array([0.5]))
    fit = fit_ridge_hazard(x, targets, x, targets, [1e9], GRID.n_bins)
    assert fit.bias == pytest.approx(GRID.marginal_logits(targets.duration.numpy(), targets.event.numpy()), abs=1e-6)


def test_more_columns_than_patients_and_constant_columns():
    x, targets = simulate(120, np.r_[1.0, np.zeros(299)])
    x[:, 7] = 3.3
    x = x.astype(np.float32)
    fit = fit_ridge_hazard(x, targets, x, targets, (1.0, 0.1), GRID.n_bins)
    assert fit.weight[7] == 0
    other = x.copy()
    other[:, 7] = 1e6
    assert np.array_equal(fit.logits(x), fit.logits(other))
    z = Standardiser.fit(x)(x)
    axes = PrincipalAxes.of(z)
    assert axes.scores @ axes.rotation.T == pytest.approx(z, abs=1e-9)


def test_rotation_gives_the_fit_of_either_gram_matrix():
    x, targets = simulate(60, np.r_[1.0, np.zeros(59)])
    wide = np.concatenate([x, x[:, :1]], axis=1)  # 61 columns: the patients' Gram matrix
    doubled = fit_ridge_hazard(wide, targets, wide, targets, [0.2], GRID.n_bins)
    assert doubled.weight[0] == pytest.approx(doubled.weight[60], abs=1e-8)
    twice = np.concatenate([x[:, :1] * np.sqrt(2), x[:, 1:]], axis=1)
    z = Standardiser.fit(x)(x) * np.r_[np.sqrt(2), np.ones(59)]
    assert PrincipalAxes.of(z).variance.sum() == pytest.approx(61)
    assert len(twice) == 60


def test_score_screen_is_the_formula_and_finds_the_signal():
    x, targets = simulate(300, np.r_[np.zeros(9), 0.9])
    z = Standardiser.fit(x)(x)
    score = score_screen(z, targets, GRID.n_bins)
    hazard = GRID.marginal_logits(targets.duration.numpy(), targets.event.numpy())[None]
    expected = np.array([GRID.cumulative_hazard(hazard, np.array([t]))[0, 0] for t in targets.duration.numpy()])
    for j in (0, 9):
        u = sum(z[i, j] * (targets.event[i].item() - expected[i]) for i in range(len(z)))
        v = sum(z[i, j] ** 2 * expected[i] for i in range(len(z)))
        assert score[j] == pytest.approx(u * u / v)
    assert score.argmax() == 9
    fit = fit_ridge_hazard(x, targets, x, targets, [0.01], GRID.n_bins, screens=[1])
    narrow = RidgeHazard(fit.mean, fit.std, np.r_[np.zeros(9), 1.0], fit.bias, 0.01)
    assert {row.columns for row in fit.path} == {1, 10}
    assert narrow.n_parameters == 1 + GRID.n_bins


def test_the_score_of_no_effect_is_chi_squared():
    scores = []
    for seed in range(40):
        x, targets = simulate(200, np.zeros(10), seed=seed)
        scores.append(score_screen(Standardiser.fit(x)(x), targets, GRID.n_bins))
    assert np.mean(scores) == pytest.approx(1.0, abs=0.2)


@pytest.mark.parametrize("tuning_rows", [40, 0])
def test_few_tuning_events_leave_the_choice_to_folds_of_training(tuning_rows):
    x, targets = simulate(200 + tuning_rows, np.r_[0.8, np.zeros(39)])
    event = targets.event.numpy().copy()
    event[200:] = 0
    targets = with_event(targets, event)
    train, tune = slice(0, 200), slice(200, None)
    fit = fit_ridge_hazard(x[train], part(targets, train), x[tune], part(targets, tune), (1.0, 0.1, 0.01), 4, [5])
    assert "0 tuning events" in fit.notes[0]
    assert fit.penalty < 1.0
    assert fit.path[-1].columns == 5
    assert np.corrcoef(fit.linear_predictor(x), x[:, 0])[0, 1] > 0.7


def test_one_event_or_an_empty_bin_gives_a_finite_model():
    x, targets = simulate(100, np.zeros(3))
    event = (np.arange(100) == 4).astype(np.int64)
    alone = with_event(targets, event)
    fit = fit_ridge_hazard(x, alone, x, alone, PENALTIES, GRID.n_bins, screens=[2])
    assert np.isfinite(fit.logits(x)).all()
    assert fit.penalty == PENALTIES[0]
    held = np.flatnonzero(np.bincount(alone.bin.numpy(), weights=event, minlength=4) == 0)
    assert fit.bias[held] == pytest.approx(GRID.marginal_logits(targets.duration.numpy(), event)[held])


def test_no_training_event_is_a_cohort_error():
    x, targets = simulate(50, np.zeros(2))
    none = with_event(targets, np.zeros(50, dtype=np.int64))
    with pytest.raises(EhrError, match="no events") as error:
        fit_ridge_hazard(x, none, x, targets, PENALTIES, GRID.n_bins)
    assert error.value.code == Exit.COHORT


def test_kept_as_arrays_it_is_the_same_function():
    x, targets = simulate(300, np.array([0.5, -0.5, 0.0]))
    x[:, 2] = 1.0
    fit = fit_ridge_hazard(x, targets, x, targets, PENALTIES, GRID.n_bins)
    again = RidgeHazard.from_arrays(load(save(fit.to_arrays())))
    assert np.array_equal(again.logits(x), fit.logits(x))
    assert (again.penalty, again.path) == (fit.penalty, fit.path)


def test_wrong_arrays_and_wrong_columns_are_refused():
    x, targets = simulate(100, np.array([0.5, -0.5]))
    fit = fit_ridge_hazard(x, targets, x, targets, [0.1], GRID.n_bins)
    with pytest.raises(EhrError, match="expected 2 feature columns, found 1"):
        fit.logits(x[:, :1])
    arrays = {name: values for name, values in fit.to_arrays().items() if name != "bias"}
    with pytest.raises(EhrError, match="missing: bias") as error:
        RidgeHazard.from_arrays(arrays)
    assert error.value.code == Exit.BUNDLE


def test_folds_share_the_events_out():
    event = np.arange(23) % 4 == 0
    fold = stratified_folds(event, 5)
    assert sorted(np.bincount(fold[event])) == [1, 1, 1, 1, 2]
    assert np.ptp(np.bincount(fold)) <= 2
