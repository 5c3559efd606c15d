"""What a step costs, counted and not timed: bounds that fail where packing, its graph or caching are lost."""

from __future__ import annotations

from dataclasses import fields

import numpy as np
import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from ehrsequencing.batches import Batch
from ehrsequencing.config import OptimizerConfig
from ehrsequencing.models import backends
from ehrsequencing.models.behrt import BEHRTConfig
from ehrsequencing.models.behrt_survival import BEHRTForSurvival
from ehrsequencing.models.dropout import Dropout
from ehrsequencing.models.pretraining import IGNORE, BEHRTForMaskedLM
from ehrsequencing.training.pacing import make_optimizer
from tiny_batches import random_batch

CODES, LENGTHS = 1_000, (200, 60, 60, 45, 30, 30, 30, 20, 20, 20, 10, 10)
SIZES = ("small", "medium")
USEFUL = {"small": 2.5e6, "medium": 13.1e6}
"""FLOPs of forward and backward a real token, without attention: six a weight that every token passes."""


def skewed(vocab: int = CODES) -> Batch:
    """Records of LENGTHS: padded to the longest, three quarters would be padding."""
    batch = random_batch(rows=len(LENGTHS), length=max(LENGTHS), vocab=vocab)
    mask = torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS)[:, None]
    code = torch.where(batch.code == 0, 10, batch.code)  # real where random_batch was shorter
    arrays = {item.name: getattr(batch, item.name) for item in fields(batch)} | {"code": code, "mask": mask}
    visit = (torch.arange(max(LENGTHS)) + 2).div(3, rounding_mode="floor").expand_as(mask)
    return Batch(**{name: x * mask for name, x in (arrays | {"visit": visit}).items()})


def model_of(size: str, **settings) -> BEHRTForSurvival:
    torch.manual_seed(0)
    config = BEHRTConfig.of_size(size, CODES, value_codes=(5, 9, 20), head="residual", **settings)
    return BEHRTForSurvival(config).train()


def flops(model, batch: Batch) -> float:
    with FlopCounterMode(display=False) as counter:
        model(batch).sum().backward()
    return counter.get_total_flops() / sum(LENGTHS)


def saved_bytes(model, batch: Batch) -> int:
    """Of the distinct tensors, weights apart, that the graph keeps for the way back."""
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, int] = {}

    def pack(x: torch.Tensor) -> torch.Tensor:
        if x.untyped_storage().data_ptr() not in weights:
            kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with saved_tensors_hooks(pack, lambda x: x):
        result = model(batch)  # keeps the graph, so that no address is used twice
    assert result.requires_grad
    return sum(kept.values())


class Calls(TorchDispatchMode):
    """How often each operation is called."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: dict[str, int] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = str(func.overloadpacket)
        self.counts[name] = self.counts.get(name, 0) + 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("size", SIZES)
def test_flat_records_cost_what_their_real_tokens_cost(size, monkeypatch):
    packed = flops(model_of(size, relations=()), skewed())
    assert packed < USEFUL[size]
    monkeypatch.setattr(backends, "fitting", lambda *_: "padded")
    assert flops(model_of(size, relations=()), skewed()) > 3 * packed  # what the bound would catch


@pytest.mark.parametrize("architecture", ["behrt", "hierarchical"])
@pytest.mark.parametrize("training", [True, False])
def test_block_causal_records_cost_no_more_outside_attention(architecture, training):
    """They are attended in whole tiles; all else is computed for real tokens, or visits, alone."""
    settings = {"architecture": architecture, "relations": ()}
    both = [model_of("small", **settings, attention=mask).train(training) for mask in ("bidirectional", "block_causal")]
    plain, causal = (flops(model, skewed()) for model in both)
    assert causal < 1.03 * plain


@pytest.mark.parametrize("size", SIZES)
def test_the_hierarchical_encoder_costs_a_third_of_it(size):
    """Three tokens a visit: the blocks see a third of the places."""
    assert flops(model_of(size, architecture="hierarchical"), skewed()) < 0.45 * USEFUL[size]


def test_activations_are_kept_of_real_tokens_only(monkeypatch):
    batch = skewed()
    packed = saved_bytes(model_of("medium", relations=()), batch)
    assert packed < 64_000 * sum(LENGTHS)  # bytes a token, of four layers of width 256
    monkeypatch.setattr(backends, "fitting", lambda *_: "padded")
    assert saved_bytes(model_of("medium", relations=()), batch) > 2.5 * packed


def test_a_packed_layer_is_one_kernel_a_length_and_no_copy_of_masks():
    batch, model = skewed(), model_of("small", relations=())
    with Calls() as seen:
        model(batch).sum().backward()
    lengths, layers = len(set(LENGTHS)), 3
    forward = seen.counts["aten._scaled_dot_product_flash_attention_for_cpu"]
    backward = seen.counts["aten._scaled_dot_product_flash_attention_for_cpu_backward"]
    assert forward == backward == lengths * layers
    assert "aten.bernoulli_" not in seen.counts  # dropout draws cheap bits
    assert sum(seen.counts.values()) < 2_000
    assert seen.counts.get("aten._local_scalar_dense", 0) <= 2 * lengths + 4  # reads of single numbers


def test_masked_codes_ask_for_logits_at_the_selected_places_only():
    batch, vocab = skewed(), 5_000
    torch.manual_seed(0)
    model = BEHRTForMaskedLM(BEHRTConfig.small(vocab, architecture="hierarchical"))
    targets = torch.full_like(batch.code, IGNORE)
    targets[batch.mask] = torch.where(torch.arange(int(batch.mask.sum())) % 7 == 3, batch.code[batch.mask], IGNORE)
    guessed = int((targets != IGNORE).sum())
    with FlopCounterMode(display=False) as counter:
        model(batch, targets).loss.backward()
    decoder = 6 * guessed * 64 * vocab
    assert decoder < counter.get_total_flops() < decoder + 0.6 * USEFUL["small"] * sum(LENGTHS)


def test_the_optimiser_is_one_call_a_group():
    model = model_of("small")
    optimizer = make_optimizer(model, OptimizerConfig())
    model(skewed()).sum().backward()
    with Calls() as seen:
        optimizer.step()
    assert seen.counts["aten._fused_adamw_"] == len(optimizer.param_groups)


def test_dropout_keeps_the_share_and_the_mean():
    torch.manual_seed(0)
    x = torch.ones(1_000_003, requires_grad=True)
    for p in (0.1, 0.5, 0.9):
        dropped = Dropout(p).train()(x)
        assert float((dropped == 0).float().mean()) == pytest.approx(p, abs=2e-3)
        assert float(dropped.detach().max()) == pytest.approx(1 / (1 - p), rel=1e-4)
        (gradient,) = torch.autograd.grad(dropped.sum(), x)
        assert torch.equal(gradient, dropped)
    assert np.isclose(float(Dropout(1.0).train()(x.detach()).sum()), 0)
    assert Dropout(0.5).eval()(x) is x
    first, again = (_seeded(Dropout(0.3).train(), x) for _ in range(2))
    assert torch.equal(first, again)


def _seeded(module, x):
    torch.manual_seed(5)
    return module(x).detach()
