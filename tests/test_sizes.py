"""The named sizes: their parameters pinned, counted again by hand, and one of them from records to predictions."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ehrsequencing.bundle import Bundle, Encoder
from ehrsequencing.cohort import build_cohort
from ehrsequencing.config import ModelConfig, PretrainConfig, TokensConfig, load_task
from ehrsequencing.inference import predict
from ehrsequencing.models.behrt import BEHRTConfig
from ehrsequencing.models.behrt_survival import BEHRTForSurvival
from ehrsequencing.models.strategies import find_strategy
from ehrsequencing.models.wide import fit_wide
from ehrsequencing.study.assemble import make_bundle
from ehrsequencing.study.data import prepare
from ehrsequencing.study.steps import pretrain
from ehrsequencing.training.finetune import finetune

CODES = 1_004
PINNED = {
    "small": (497_580, 16_300),
    "medium": (2_323_884, 31_660),
    "large": (13_111_212, 62_380),
    "base": (86_638_252, 93_100),
}
"""Total and head at 1,000 codes (and four special ones), none of them with values."""


def build(size: str, **overrides) -> BEHRTForSurvival:
    with torch.device("meta"):
        return BEHRTForSurvival(BEHRTConfig.of_size(size, CODES, **overrides))


@pytest.mark.parametrize("size", PINNED)
def test_the_parameters_of_each_size(size):
    counts = build(size).get_trainable_parameters()
    assert (counts["total"], counts["head"]) == PINNED[size]


@pytest.mark.parametrize("size", PINNED)
def test_a_layer_a_code_and_the_head_cost_what_arithmetic_says(size):
    config = BEHRTConfig.of_size(size, CODES)
    h, inner, n = config.hidden_size, config.intermediate_size, config.num_hidden_layers
    total = build(size).get_trainable_parameters()["total"]
    attention = 4 * h * h + 3 * h  # q, v and out with bias, k without
    block = attention + (h * inner + inner) + (inner * h + h) + 2 * 2 * h  # two layers of the MLP, two norms
    assert build(size, num_hidden_layers=n + 1).get_trainable_parameters()["total"] - total == block
    with torch.device("meta"):
        more = BEHRTForSurvival(BEHRTConfig.of_size(size, CODES + 100))
    assert more.get_trainable_parameters()["total"] - total == 100 * config.embedding_size
    pooled, hidden, bins = 3 * h, config.head_hidden, config.n_bins
    assert PINNED[size][1] == pooled * hidden + hidden + hidden * bins + bins + 2 * hidden  # a norm between


@pytest.mark.slow
def test_medium_goes_from_records_to_predictions(dataset, recipe, tmp_path):
    short = TokensConfig(max_tokens=48)
    encoder = pretrain(dataset, PretrainConfig(epochs=1), model=ModelConfig(size="medium"), tokens=short)
    encoder.save(tmp_path / "encoder")
    encoder = Encoder.load(tmp_path / "encoder")
    assert (encoder.model.config.hidden_size, encoder.model.config.num_hidden_layers) == (256, 4)
    task = load_task(dataset.root / "task.yaml")
    own = prepare(dataset, build_cohort(dataset, task), encoder)
    fitted = finetune(own.data, find_strategy("frozen-ridge"), recipe, encoder.model)
    make_bundle(own, task, fitted, fit_wide(own.data), {"seed": 0}).save(tmp_path / "bundle")
    again = predict(Bundle.load(tmp_path / "bundle"), dataset, row="frozen-ridge")
    bundle = Bundle.load(tmp_path / "bundle")
    expected = own.data.grid.survival(bundle.rows["frozen-ridge"].logits(fitted.logits, None), again.horizon_days)
    assert np.array_equal(again.subject_id, own.data.rows["subject_id"].to_numpy())
    np.testing.assert_allclose(again.survival, expected, atol=1e-4)
