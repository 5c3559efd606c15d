"""Proportional and per-bin hazards: what each head can say, and the convex fit with weights of each bin."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.optimize import approx_fprime

from ehrsequencing.batches import Targets
from ehrsequencing.models.behrt import BEHRTModel
from ehrsequencing.models.behrt_survival import BEHRTForSurvival
from ehrsequencing.models.heads import HEADS, LinearHead
from ehrsequencing.models.strategies import STRATEGIES
from ehrsequencing.models.wide import RidgeHazard, _loss, _Plan, fit_ridge_hazard, mean_nll
from ehrsequencing.timegrid import TimeGrid
from ehrsequencing.training.finetune import finetune
from tiny_batches import shake, tiny_config

GRID = TimeGrid(np.array([0.0, 100.0, 300.0, 700.0]))


def crossing(n: int, seed: int) -> tuple[np.ndarray, Targets]:
    """A feature that raises the hazard early and lowers it late: no proportional model can say so."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 2))
    logits = np.array([-2.0, -1.5, -1.0]) + x[:, :1] * np.array([1.0, 0.0, -1.0]) + 0.5 * x[:, 1:]
    at_edges = np.concatenate([np.zeros((n, 1)), np.cumsum(np.logaddexp(0, logits), axis=1)], axis=1)
    drawn = rng.exponential(size=n)
    death = np.array([np.interp(u, h, GRID.edges, right=np.inf) for u, h in zip(drawn, at_edges, strict=True)])
    event = (death <= GRID.tau).astype(np.int64)
    return x, Targets.of(np.minimum(death, GRID.tau), event, GRID)


@pytest.mark.parametrize("causes", [1, 2])
@pytest.mark.parametrize("name", list(HEADS))
def test_proportional_heads_move_all_bins_alike_and_per_bin_heads_do_not(name, causes):
    features = torch.randn(7, 96)
    for hazards in ("proportional", "per_bin"):
        head = HEADS[name](tiny_config(head=name, hazards=hazards, n_causes=causes)).eval()
        shake(head, 0.3)
        logits = head(features)[:, 0].detach()
        assert logits.shape == ((7, 6) if causes == 1 else (7, 6, 2))
        said = logits - logits[:1]  # the intercepts go
        spread = float((said - said[:, :1]).abs().max())
        assert (spread < 1e-5) == (hazards == "proportional")
        assert float(said.abs().max()) > 0.1


@pytest.mark.parametrize("name", list(HEADS))
def test_a_head_starts_at_the_marginal_hazard(name):
    for hazards in ("proportional", "per_bin"):
        head = HEADS[name](tiny_config(head=name, hazards=hazards)).eval()
        for parameter in head.parameters():
            torch.nn.init.zeros_(parameter)
        marginal = torch.linspace(-3, -1, 6)
        head.set_marginal(marginal)
        assert torch.allclose(head(torch.randn(3, 96))[:, 0], marginal.expand(3, 6))


def test_per_bin_weights_find_what_proportional_ones_cannot():
    (x, targets), (x_tune, targets_tune) = crossing(4_000, 0), crossing(2_000, 1)
    shared = fit_ridge_hazard(x, targets, x_tune, targets_tune, n_bins=3)
    own = fit_ridge_hazard(x, targets, x_tune, targets_tune, n_bins=3, per_bin=True)
    assert own.weight.shape == (2, 3)
    assert (own.per_bin, shared.per_bin) == (True, False)
    assert np.allclose(own.weight[0] / own.std[0], [1, 0, -1], atol=0.2)
    assert np.allclose(own.weight[1] / own.std[1], 0.5, atol=0.15)
    assert mean_nll(own.logits(x_tune), targets_tune) < mean_nll(shared.logits(x_tune), targets_tune) - 0.05


def test_where_hazards_are_proportional_tuning_gives_the_shared_weights_back():
    rng = np.random.default_rng(5)

    def proportional(n):
        x = rng.normal(size=(n, 8))
        logits = np.array([-2.0, -1.5, -1.0]) + 0.5 * x[:, :1]
        at_edges = np.concatenate([np.zeros((n, 1)), np.cumsum(np.logaddexp(0, logits), axis=1)], axis=1)
        drawn = rng.exponential(size=n)
        death = np.array([np.interp(u, h, GRID.edges, right=np.inf) for u, h in zip(drawn, at_edges, strict=True)])
        return x, Targets.of(np.minimum(death, GRID.tau), (death <= GRID.tau).astype(np.int64), GRID)

    (x, targets), (x_tune, targets_tune) = proportional(400), proportional(1_500)
    shared = fit_ridge_hazard(x, targets, x_tune, targets_tune, n_bins=3)
    own = fit_ridge_hazard(x, targets, x_tune, targets_tune, n_bins=3, per_bin=True)
    assert own.weight.shape == (8, 3)
    assert mean_nll(own.logits(x_tune), targets_tune) < mean_nll(shared.logits(x_tune), targets_tune) + 1e-3


def test_a_residual_head_of_before_there_was_a_choice_keeps_its_shapes():
    """Its linear part was shared by the bins and its MLP was not; its configuration says nothing of it."""
    head = HEADS["residual"](tiny_config(head="residual"))
    assert head.weight.shape == (96,)
    assert head.hazard.weight.shape == (6, 10)
    assert BEHRTForSurvival.from_encoder(BEHRTModel(tiny_config()), strategy="lora").config.hazards == "proportional"


@pytest.mark.parametrize("freedom", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("causes", [1, 2])
def test_the_gradient_of_the_per_bin_loss_is_that_of_its_values(causes, freedom):
    x, targets = crossing(60, 3)
    targets = Targets(
        targets.duration, targets.event * torch.randint(1, causes + 1, (60,)), targets.bin, targets.fraction
    )
    loss = _loss(x, targets, _Plan((1.0,), ((2, freedom),), 3, causes, per_bin=True), freedom)
    point = np.random.default_rng(0).normal(size=(2 * 4 + 3) * causes) * 0.3
    value, gradient = loss(point)
    assert np.isfinite(value)
    assert np.allclose(gradient, approx_fprime(point, lambda at: loss(at)[0], 1e-6), atol=1e-5)


def test_a_linear_head_repeats_the_per_bin_fit_and_a_file_keeps_it():
    x, targets = crossing(500, 4)
    x = np.repeat(x, 48, axis=1) + 0.1 * np.random.default_rng(0).normal(size=(500, 96))
    fit = fit_ridge_hazard(x, targets, x, targets, [0.1], n_bins=3, per_bin=True)
    head = LinearHead(tiny_config(head="linear", hazards="per_bin", n_bins=3))
    head.set_ridge(fit)
    with torch.no_grad():
        assert np.allclose(head(torch.from_numpy(x).float())[:, 0].numpy(), fit.logits(x), atol=1e-4)
    again = RidgeHazard.from_arrays(fit.to_arrays())
    assert np.array_equal(again.logits(x), fit.logits(x))


@pytest.mark.parametrize("name", ["frozen-ridge", "lora"])
def test_every_strategy_takes_either_kind(data, encoder, recipe, name):
    for hazards in ("proportional", "per_bin"):
        fitted = finetune(data, replace(STRATEGIES[name], hazards=hazards), recipe, encoder.model)
        assert fitted.model.config.head_hazards == hazards
        if name == "frozen-ridge":
            said = fitted.logits - fitted.logits[:1]
            assert np.abs(said - said[:, :1]).max() < 1e-4 or hazards == "per_bin"
            assert fitted.model.hazard_head.weight.ndim == (1 if hazards == "proportional" else 2)
