"""The loop and what runs in it: selection, stopping, seeds, cached features, nothing learned from held-out rows."""

from __future__ import annotations

import dataclasses

import numpy as np
import polars as pl
import pytest
import torch
from torch import nn

from ehrsequencing.batches import SurvivalData
from ehrsequencing.config import HELD_OUT, TRAIN, TUNING, BudgetConfig, ModelConfig, OptimizerConfig
from ehrsequencing.errors import EhrError
from ehrsequencing.evaluation.compare import Evaluation, Scores
from ehrsequencing.models.behrt_survival import BEHRTForSurvival
from ehrsequencing.models.forward import encode, hazard_logits, in_micro_batches
from ehrsequencing.models.strategies import STRATEGIES
from ehrsequencing.study.auto import score_on_tuning
from ehrsequencing.training.checkpoints import _scores as checkpoint_scores
from ehrsequencing.training.checkpoints import best_calibrated
from ehrsequencing.training.finetune import FeatureCache, finetune
from ehrsequencing.training.loop import Schedule, Tick, train, warmup_cosine
from ehrsequencing.training.objectives import SurvivalObjective
from ehrsequencing.training.recipes import RECIPES
from interrupted import Stateless


class Scripted(Stateless):
    """An objective whose scores are written beforehand; the loss pulls the one weight down by a known step."""

    n_rows = 4

    def __init__(self, model: nn.Linear, scores: list[float]) -> None:
        self.model, self.scores, self.seen = model, iter(scores), []

    def loss(self, rows):
        return self.model.weight.sum() * len(rows)

    def validate(self):
        self.seen.append(self.model.weight.item())
        return {"score": next(self.scores)}


def run(scores, patience=None, epochs=None, choose=None):
    torch.manual_seed(0)
    model = nn.Linear(1, 1, bias=False)
    objective = Scripted(model, scores)
    schedule = Schedule(epochs or len(scores), 4, OptimizerConfig(), patience)
    return model, objective, train(model, objective, schedule, choose=choose)


def test_the_best_epoch_is_kept_not_the_last():
    model, objective, history = run([0.5, 0.9, 0.6, 0.7])
    assert [epoch.best for epoch in history] == [False, True, False, False]
    assert model.weight.item() == objective.seen[1] != objective.seen[3]


def test_training_stops_when_patience_runs_out():
    _, _, history = run([0.5, 0.9, 0.6, 0.7, 0.8, 1.0], patience=3)
    assert len(history) == 5


def test_another_epoch_can_be_chosen():
    model, objective, history = run([0.5, 0.9, 0.6], choose=lambda history: 2)
    assert history[2].best
    assert model.weight.item() == objective.seen[2]


def test_progress_is_told_with_what_is_left():
    ticks: list[Tick] = []
    model = nn.Linear(1, 1, bias=False)
    train(model, Scripted(model, [1.0, 2.0]), Schedule(2, 2, OptimizerConfig()), title="head", progress=ticks.append)
    assert all(tick.title == "head" and 0 < tick.done <= tick.total == 2 for tick in ticks)
    assert sum(bool(tick.note) for tick in ticks) == 3


def test_warm_up_starts_above_zero_and_the_rate_decays():
    factor = warmup_cosine(50, 0.1)
    rates = [factor(step) for step in range(50)]
    assert rates[0] > 0
    assert max(rates) == rates[4] == 1
    assert rates[-1] < 1e-6


def test_a_loss_that_is_no_number_ends_the_run():
    class Broken(Scripted):
        def loss(self, rows):
            return super().loss(rows) * float("nan")

    model = nn.Linear(1, 1, bias=False)
    with pytest.raises(EhrError, match="loss became nan"):
        train(model, Broken(model, [1.0]), Schedule(1, 4, OptimizerConfig()))


@pytest.mark.parametrize("name", list(STRATEGIES))
def test_every_strategy_fits_and_scores_all_rows(data, encoder, recipe, name):
    fitted = finetune(data, name, recipe, encoder.model, seed=1)
    assert fitted.logits.shape == (len(data), data.grid.n_bins)
    assert np.isfinite(fitted.logits).all()
    assert np.allclose(fitted.logits, hazard_logits(fitted.model, data.tokens, np.arange(len(data))), atol=1e-5)
    assert {"tuning_brier", "tuning_nll"} <= set(fitted.tuning(data))
    for epoch in fitted.history:
        assert {"tuning_c", "tuning_brier", "tuning_nll"} <= set(epoch.metrics)


def test_the_same_seed_gives_the_same_bytes_and_another_seed_another_model(data, encoder, recipe):
    first, again, other = (finetune(data, "lora", recipe, encoder.model, seed=seed) for seed in (1, 1, 2))
    assert np.array_equal(first.logits, again.logits)
    assert not np.array_equal(first.logits, other.logits)


def test_fitting_never_changes_the_encoder_it_was_given(data, encoder, recipe):
    before = {name: tensor.clone() for name, tensor in encoder.model.state_dict().items()}
    finetune(data, "full", recipe, encoder.model)
    assert all(torch.equal(tensor, before[name]) for name, tensor in encoder.model.state_dict().items())


def test_held_out_outcomes_change_no_weight(data, encoder, recipe):
    held_out = pl.col("split") == HELD_OUT
    rows = data.rows.with_columns(
        duration=pl.when(held_out).then(1.0).otherwise("duration"),
        event=pl.when(held_out).then(1 - pl.col("event")).otherwise("event"),
    )
    other = dataclasses.replace(data, rows=rows)
    for name in ("frozen", "frozen-ridge", "lora"):
        a, b = (finetune(part, name, recipe, encoder.model) for part in (data, other))
        assert np.array_equal(a.logits, b.logits)


def test_a_frozen_encoder_runs_once_however_long_the_head_trains(data, encoder):
    recipe = RECIPES["small"].within(BudgetConfig(max_epochs=5))[0]
    cache = FeatureCache()
    for seed in (0, 1):
        finetune(data, "frozen", recipe, encoder.model, seed=seed, cache=cache)
    finetune(data, "frozen-ridge", recipe, encoder.model, cache=cache)
    assert cache.encoder_passes == 1


def test_cached_features_give_the_losses_of_the_uncached_loop(data: SurvivalData, encoder):
    """With dropout off the head cannot tell whether the frozen encoder ran once or at every step."""
    schedule = Schedule(3, 32, OptimizerConfig(), None, seed=3)
    histories = []
    for cached in (True, False):
        torch.manual_seed(3)
        model = BEHRTForSurvival.from_encoder(
            encoder.model, strategy="frozen", n_bins=data.grid.n_bins, dropout=0.0, head_dropout=0.0
        )
        features = encode(model, data.tokens, np.arange(len(data)))
        on_cache = lambda rows, m=model, f=features: m.hazard_head(f[torch.from_numpy(rows)])[:, 0]  # noqa: E731
        on_tokens = lambda rows, m=model: in_micro_batches(m, data.tokens, rows)[:, 0]  # noqa: E731
        objective = SurvivalObjective(data, on_cache if cached else on_tokens, 0.05)
        histories.append(train(model, objective, schedule))
    for a, b in zip(*histories, strict=True):
        assert a.train_loss == pytest.approx(b.train_loss, abs=1e-5)
        assert a.metrics["tuning_nll"] == pytest.approx(b.metrics["tuning_nll"], abs=1e-5)


def test_micro_batches_split_memory_not_the_step(data, encoder):
    """The ranking term sees every patient of a step, whatever the token budget."""
    model = BEHRTForSurvival.from_encoder(encoder.model, n_bins=data.grid.n_bins, dropout=0.0, head_dropout=0.0)
    rows = np.arange(48)
    losses = []
    for budget in (200, 100_000):
        forward = lambda at, b=budget: in_micro_batches(model, data.tokens, at, b)[:, 0]  # noqa: E731
        losses.append(SurvivalObjective(data, forward, 0.5).loss(rows).item())
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)


def test_rows_come_back_in_their_order(data, encoder):
    model = BEHRTForSurvival.from_encoder(encoder.model, n_bins=data.grid.n_bins)
    rows = np.array([17, 3, 99, 0])
    together = hazard_logits(model, data.tokens, rows)
    alone = np.concatenate([hazard_logits(model, data.tokens, rows[[i]]) for i in range(4)])
    assert np.allclose(together, alone, atol=1e-5)


def test_without_comparable_tuning_pairs_epochs_are_selected_by_likelihood(data, encoder, recipe):
    rows = data.rows.with_columns(event=pl.when(pl.col("split") == TRAIN).then("event").otherwise(pl.lit(0, pl.Int8)))
    fitted = finetune(dataclasses.replace(data, rows=rows), "frozen", recipe, encoder.model)
    assert any("selected by likelihood" in note for note in fitted.notes)
    assert all("tuning_c" not in epoch.metrics for epoch in fitted.history)


def test_large_runs_keep_the_best_calibrated_of_equally_good_epochs():
    duration, event = np.array([1.0, 2.0, 3.0]), np.array([1, 1, 0])
    evaluation = Evaluation.of(duration, event, train_duration=duration, train_event=event, tau=2.5, n_boot=0)

    def scored(c, noise):
        return Scores(evaluation, {"harrell_c": np.concatenate([[c], c + noise])}, {})

    noise = np.random.default_rng(0).normal(0, 0.01, 200)
    other = np.random.default_rng(1).normal(0, 0.01, 200)
    scores = [scored(0.700, noise), scored(0.695, other), scored(0.60, noise)]
    metrics = [
        {"score": s.figures["harrell_c"][0], "tuning_brier": b} for s, b in zip(scores, (0.2, 0.1, 0.01), strict=True)
    ]
    assert best_calibrated(scores, metrics) == 1
    metrics[1]["tuning_brier"] = 0.3
    assert best_calibrated(scores, metrics) == 0


def test_rows_of_one_patient_are_resampled_together_wherever_fits_are_told_apart(data: SurvivalData, encoder, recipe):
    fitted = finetune(data, "frozen-ridge", recipe, encoder.model)
    patient = np.empty(len(data), dtype=np.int64)
    for number, split in enumerate((TRAIN, TUNING, HELD_OUT)):
        rows = data.index(split)
        patient[rows] = 1_000 * number + np.arange(len(rows)) // 2
    twice = dataclasses.replace(
        data,
        rows=data.rows.with_columns(pl.Series("subject_id", patient)),
        tokens=dataclasses.replace(data.tokens, subject_id=patient),
    )
    objective = SurvivalObjective(twice, lambda rows: torch.from_numpy(fitted.logits[rows]), 0.1)
    at = twice.index(TUNING)
    found = [*checkpoint_scores(objective, [fitted.logits[at]]), *score_on_tuning(twice, {"a": fitted}, 20).values()]
    assert len(found) == 2
    for scores in found:
        drawn = scores.evaluation.counts[:, : len(at) // 2 * 2]
        assert (drawn[:, ::2] == drawn[:, 1::2]).all()
        assert len(np.unique(drawn)) > 2


def test_a_start_that_no_epoch_beats_is_kept(data, encoder, recipe):
    """A ruinous learning rate: what comes back is the convex fit that training started from."""
    ruinous = dataclasses.replace(STRATEGIES["lora"], learning_rate=0.3)
    fitted, ridge = (finetune(data, name, recipe, encoder.model) for name in (ruinous, "frozen-ridge"))
    assert any("no epoch did better" in note for note in fitted.notes)
    assert not any(epoch.best for epoch in fitted.history)
    assert fitted.tuning(data)["tuning_c"] == pytest.approx(ridge.tuning(data)["tuning_c"], abs=0.01)
    assert np.abs(fitted.logits - ridge.logits).max() < 0.2


def test_every_way_to_fine_tune_hides_codes_by_default(data, encoder, recipe):
    assert finetune(data, "lora", recipe, encoder.model).model.config.code_dropout == ModelConfig().code_dropout
    assert finetune(data, "lora", recipe, encoder.model, code_dropout=0.0).model.config.code_dropout == 0
