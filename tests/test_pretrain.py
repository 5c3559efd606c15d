"""Pretraining learns structure: on the simulator it beats always guessing the most frequent code by half again."""

from __future__ import annotations

import numpy as np
import pytest

from ehrsequencing.config import (
    InputConfig,
    ModelConfig,
    OptimizerConfig,
    PretrainConfig,
    SimulateConfig,
    SplitConfig,
    TokensConfig,
)
from ehrsequencing.errors import EhrError, Exit
from ehrsequencing.study.data import divisions, pretraining_records
from ehrsequencing.study.steps import pretrain
from ehrsequencing.synthetic import simulate
from ehrsequencing.training.pretrain import pretrain as run_pretraining


@pytest.mark.slow
def test_it_beats_the_most_frequent_code_by_half_again(tmp_path):
    dataset = simulate(tmp_path / "meds", SimulateConfig(patients=1_500, seed=3, noise_codes=200))
    encoder = pretrain(
        dataset, PretrainConfig(epochs=6, optimizer=OptimizerConfig(learning_rate=3e-3)), model=ModelConfig(dropout=0.0)
    )
    record = encoder.record
    assert record["accuracy"] > 1.5 * record["most_frequent_code"]
    losses = [epoch["validation_loss"] for epoch in record["history"]]
    assert losses[-1] < losses[0]


def test_only_training_subjects_are_read(dataset, encoder):
    train = divisions(dataset, None, SplitConfig())[0].train_subjects()
    _, store = pretraining_records(dataset, train, InputConfig(), TokensConfig())
    assert set(store.subject_id) <= set(train)
    assert encoder.record["subjects"] == len(store)


def test_the_same_seed_gives_the_same_weights(dataset):
    config = PretrainConfig(epochs=1, batch_size=64)
    one, two = (pretrain(dataset, config, seed=5).model.state_dict() for _ in range(2))
    assert all(np.array_equal(one[name].numpy(), two[name].numpy()) for name in one)


def test_nothing_to_learn_from_is_refused(dataset, encoder):
    _, store = pretraining_records(dataset, dataset.subject_ids()[:1], InputConfig(), TokensConfig())
    with pytest.raises(EhrError) as caught:
        run_pretraining(store, encoder.tokenizer, PretrainConfig(), ModelConfig())
    assert caught.value.code == Exit.DATA
