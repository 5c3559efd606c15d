"""Discriminative rates, gradual unfreezing, a grid of rates: which tensors move, when, and by how much."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from ehrsequencing.config import OptimizerConfig
from ehrsequencing.errors import EhrError, Exit
from ehrsequencing.models.behrt_survival import BEHRTForSurvival
from ehrsequencing.models.strategies import STRATEGIES
from ehrsequencing.training.finetune import finetune
from ehrsequencing.training.loop import Schedule, train
from ehrsequencing.training.pacing import Pacing, make_optimizer
from ehrsequencing.training.resume import Resume
from interrupted import Stateless
from tiny_batches import tiny_config

LAYERS = 2


class Pulled(Stateless):
    """Every parameter is pulled down alike; what moved is looked at after each epoch."""

    n_rows = 2

    def __init__(self, model: torch.nn.Module) -> None:
        self.model, self.moved = model, list[set[str]]()
        self.start = self.now()

    def now(self) -> dict[str, torch.Tensor]:
        return {name: p.detach().clone() for name, p in self.model.named_parameters()}

    def loss(self, rows):
        return sum(p.sum() for p in self.model.parameters())

    def validate(self):
        self.moved.append({name for name, value in self.now().items() if not torch.equal(value, self.start[name])})
        return {"score": float(len(self.moved))}


def pulled(pacing: Pacing, epochs: int = 1, **optimizer) -> Pulled:
    torch.manual_seed(0)
    model = BEHRTForSurvival(tiny_config())
    objective = Pulled(model)
    train(model, objective, Schedule(epochs, 2, OptimizerConfig(clip_norm=1e9, **optimizer), pacing=pacing))
    return objective


def test_the_encoder_goes_at_its_share_of_the_rate():
    """Adam's first step is the learning rate, whatever the gradient."""
    objective = pulled(Pacing(encoder_rate=0.1, n_layers=LAYERS), weight_decay=0, learning_rate=1e-2)
    step = {n: float((value - objective.start[n]).abs().mean()) for n, value in objective.now().items()}
    assert step["hazard_head.dense.weight"] == pytest.approx(10 * step["behrt.layers.0.feed_in.weight"], rel=1e-3)
    assert step["behrt.embeddings.norm.bias"] == pytest.approx(step["behrt.layers.1.feed_in.bias"], rel=1e-3)


def test_layers_begin_to_move_from_the_top_one_by_one():
    objective = pulled(Pacing(unfreeze_every=1, n_layers=LAYERS), epochs=5)  # the last step's rate is 0
    names = set(objective.start)
    head = {name for name in names if name.startswith("hazard_head.")}
    top = {name for name in names if ".layers.1." in name} | {"behrt.norm.weight", "behrt.norm.bias"}
    below = {name for name in names if ".layers.0." in name}
    assert [moved & names for moved in objective.moved[:4]] == [head, head | top, head | top | below, names]


def test_what_waits_has_no_moments_yet():
    model = BEHRTForSurvival(tiny_config())
    optimizer = make_optimizer(model, OptimizerConfig(), Pacing(unfreeze_every=1, n_layers=LAYERS))
    assert {group["thaw"] for group in optimizer.param_groups} == {0, 1, 2, 3}


def test_without_pacing_there_are_two_groups_and_every_tensor_is_in_one():
    model = BEHRTForSurvival(tiny_config())
    optimizer = make_optimizer(model, OptimizerConfig(weight_decay=0.5))
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.5, 0.0]
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(list(model.parameters()))


def test_adapters_go_with_the_head():
    pacing = Pacing(encoder_rate=0.1, unfreeze_every=3, n_layers=LAYERS)
    assert pacing.of("behrt.layers.0.attention.q_proj.lora_A.default.weight") == (1.0, 0)
    assert pacing.of("behrt.layers.0.attention.q_proj.base_layer.weight") == (0.1, 6)


def test_the_rate_with_the_lowest_tuning_loss_is_kept(data, encoder, recipe):
    grid = replace(STRATEGIES["lora"], learning_rates=(1e-9, 3e-2))
    fitted = finetune(data, grid, recipe, encoder.model)
    losses = {
        rate: finetune(data, replace(STRATEGIES["lora"], learning_rate=rate), recipe, encoder.model).tuning(data)
        for rate in grid.learning_rates
    }
    assert fitted.tuning(data)["tuning_nll"] == min(each["tuning_nll"] for each in losses.values())
    assert any("learning rate" in note and "kept" in note for note in fitted.notes)
    assert fitted.strategy == grid


def test_gradual_unfreezing_goes_on_after_a_kill_to_the_same_bytes(data, encoder, recipe, tmp_path):
    slow = replace(STRATEGIES["full"], unfreeze_every=1, encoder_rate=0.3)
    short = replace(recipe, epochs=3, patience=3)
    whole = finetune(data, slow, short, encoder.model)
    stopped = []

    def kill(tick):
        if tick.done >= 1.5:
            stopped.append(tick)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        finetune(data, slow, short, encoder.model, progress=kill, resume=Resume(tmp_path / "loop", every=0))
    again = finetune(data, slow, short, encoder.model, resume=Resume(tmp_path / "loop", every=0))
    assert stopped
    assert np.array_equal(again.logits, whole.logits)
    assert [epoch.train_loss for epoch in again.history] == [epoch.train_loss for epoch in whole.history]


def test_a_rate_that_diverges_is_left_out_with_a_note(data, encoder, recipe):
    grid = replace(STRATEGIES["lora"], learning_rates=(1e30, 1e-3))
    fitted = finetune(data, grid, recipe, encoder.model)
    alone = finetune(data, "lora", recipe, encoder.model)
    assert np.array_equal(fitted.logits, alone.logits)
    assert any("left out" in note for note in fitted.notes)
    with pytest.raises(EhrError, match="loss became"):
        finetune(data, replace(grid, learning_rates=(1e30, 1e31)), recipe, encoder.model)


def test_layers_that_would_never_move_are_refused_or_told(data, encoder, recipe):
    with pytest.raises(EhrError, match="before any layer moves") as caught:
        finetune(data, replace(STRATEGIES["full"], unfreeze_every=2), recipe, encoder.model)
    assert caught.value.code == Exit.CONFIG
    fitted = finetune(data, replace(STRATEGIES["full"], unfreeze_every=1), recipe, encoder.model)
    assert "of the encoder 1 of 3 layers moved within 2 epochs, not the embeddings" in fitted.notes


def test_other_settings_of_an_adapter_do_not_go_on_from_a_kept_state(data, encoder, recipe, tmp_path):
    def fit(alpha, resume=None):
        strategy = replace(STRATEGIES["lora"], lora_alpha=alpha, head="mlp", hazards=None)
        return finetune(data, strategy, recipe, encoder.model, resume=resume).logits

    first = fit(32, Resume(tmp_path / "loop"))
    assert np.array_equal(fit(32, Resume(tmp_path / "loop")), first)
    assert np.array_equal(fit(320, Resume(tmp_path / "loop")), fit(320))
