"""Where and how precisely encoders compute: the choice, refusals, half precision, compiled blocks, no host syncs."""

from __future__ import annotations

from dataclasses import fields

import jaxtyping
import numpy as np
import pytest
import torch
import torch.nn.attention.flex_attention as flex_module

from ehrsequencing import device
from ehrsequencing.device import KINDS, Compute, at_work, choose, compute, computing, constant, moved, on_host
from ehrsequencing.errors import EhrError, Exit
from ehrsequencing.models import backends
from ehrsequencing.models.behrt_survival import BEHRTForSurvival
from ehrsequencing.models.footprint import FootprintAudit
from ehrsequencing.models.losses import hybrid_loss
from ehrsequencing.outline import Outline
from tiny_batches import random_batch, shake, tiny_config

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device: nothing to compare with")
CPU = torch.device("cpu")


def test_auto_takes_cuda_where_there_is_one(monkeypatch):
    expected = "cuda" if torch.cuda.is_available() else "cpu"
    assert choose().device.type == expected
    assert choose("cpu") == Compute(CPU, half=False, compiler=None)
    assert choose("cpu", "bf16").half


@pytest.mark.parametrize(
    ("asked", "code", "word"),
    [
        ({"device": "tpu"}, Exit.CONFIG, "one of auto, cuda, cpu"),
        ({"device": "cpu", "precision": "fp8"}, Exit.CONFIG, "fp32"),
        ({"device": "cpu", "compiled": True}, Exit.ENVIRONMENT, "CUDA"),
        pytest.param(
            {"device": "cuda"},
            Exit.ENVIRONMENT,
            "--device cpu",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here"),
        ),
    ],
)
def test_what_cannot_be_had_is_refused(asked, code, word):
    with pytest.raises(EhrError, match=word) as refused:
        choose(**asked)
    assert refused.value.code == code


def test_a_choice_holds_within_its_block():
    before = compute()
    with computing(Compute(CPU, half=True)):
        assert compute().half
        assert device.compute_on(torch.device("cuda")) == Compute(torch.device("cuda"))
    assert compute() == before


def test_every_kind_of_device_says_why_and_how_much_it_takes_at_once():
    assert all(kind.why and kind.token_budget > 0 for kind in KINDS.values())
    assert Compute(CPU).token_budget == KINDS["cpu"].token_budget


def test_a_module_comes_back_from_work():
    module = torch.nn.Linear(2, 2)
    parameter = module.weight
    with at_work(module, CPU):
        assert module.weight is parameter
    assert module.weight is parameter


def test_tensors_that_are_there_are_not_moved():
    x = torch.ones(2)
    assert moved(x, CPU) is x
    assert constant((1.0, 2.0), CPU) is constant((1.0, 2.0), CPU)
    module = torch.nn.BatchNorm1d(2)
    assert on_host(module, "running_mean") is module.running_mean


def test_an_outline_is_what_mask_and_visit_numbers_say():
    batch = random_batch(rows=5, length=11)
    outline = batch.outline
    assert torch.equal(torch.from_numpy(outline.places), batch.mask.flatten().nonzero()[:, 0])
    assert outline.n_visits == int(batch.visit.max()) + 1
    for row in range(len(batch)):
        own = batch.visit[row][batch.mask[row]]
        sizes = torch.bincount(own, minlength=outline.n_visits)
        assert outline.visit_sizes[row].tolist() == sizes.tolist()
        assert outline.visits.lengths[row] == len(own.unique())
    wide = batch.widened(20)
    assert wide.outline.width == 20
    assert np.array_equal(wide.outline.lengths, outline.lengths)
    assert not outline.full
    assert Outline(np.array([2]), np.array([0, 1]), 2).full


def test_an_outline_is_never_that_of_other_records():
    """It is kept while a batch is widened, and read anew where its parts were replaced."""
    from dataclasses import replace

    batch = random_batch(rows=3, length=9)
    whole = batch.outline
    shorter = replace(batch, mask=batch.mask & (torch.arange(9) < 4))
    assert shorter.outline.lengths.max() == 4 < whole.lengths.max()
    assert {item.name for item in fields(batch)} == set(vars(batch)) - {"outline"}


@pytest.mark.parametrize("architecture", ["behrt", "hierarchical"])
@pytest.mark.parametrize("attention", ["bidirectional", "block_causal"])
def test_bfloat16_reads_almost_the_same(architecture, attention):
    """Under autocast hazards move by no more than bfloat16's rounding, states and gradients stay in float32."""
    torch.manual_seed(0)
    where = {"predict_at": "every_visit"} if attention == "block_causal" else {}
    relations = ("record", "past", "past", "record")
    settings = {"architecture": architecture, "attention": attention, "relations": relations, **where}
    model, batch = BEHRTForSurvival(tiny_config(**settings)).eval(), random_batch(length=30)
    shake(model)
    whole = model(batch)
    with computing(Compute(CPU, half=True)):
        half = model(batch)
    assert half.dtype == torch.float32
    assert not torch.equal(half, whole)
    torch.testing.assert_close(half, whole, rtol=5e-2, atol=5e-2)
    half.square().mean().backward()
    gradients = [p.grad for p in model.behrt.parameters() if p.grad is not None]
    assert gradients
    assert all(g.dtype == torch.float32 and bool(g.isfinite().all()) for g in gradients)


@pytest.mark.filterwarnings("ignore")
def test_compiled_blocks_are_the_blocks(monkeypatch):
    """Traced as for CUDA (a flat row, FlexAttention inside), run by the tracer's own eager back-end."""
    monkeypatch.setattr(flex_module, "_validate_device", lambda *_: None)
    monkeypatch.setattr(backends, "fitting", lambda *_: "flex")
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # its checks cannot be traced
    torch.manual_seed(0)
    model = BEHRTForSurvival(tiny_config(relations=("record", "past", "visit", "past"), num_hidden_layers=3)).eval()
    shake(model)
    with torch.no_grad():
        for length in (20, 30):
            batch = random_batch(length=length)
            plain = model(batch)
            with computing(Compute(CPU, compiler="eager")):
                torch.testing.assert_close(model(batch), plain, rtol=1e-5, atol=1e-5)


def test_an_audit_notes_gradients_where_they_are():
    """On a device it asks once, at the end; on the host at once. Both know the same."""
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 1))
    audit = FootprintAudit(model)
    model[0](torch.ones(1, 2)).sum().backward()
    audit.observe(model)
    assert audit.state()["waiting"] == ["1.bias", "1.weight"]


def survival_step(model: BEHRTForSurvival, place: torch.device) -> torch.Tensor:
    batch = random_batch(rows=8, length=30)
    n = len(batch)
    logits = model(batch)[:, 0]
    outcome = torch.arange(n) % 6, torch.full((n,), 0.5), torch.arange(n) % 2, torch.arange(n).double()
    assert logits.device == place
    return hybrid_loss(logits, *outcome, 0.3).loss


@needs_cuda
@pytest.mark.parametrize("architecture", ["behrt", "hierarchical"])
def test_a_step_on_cuda_never_waits_and_is_that_of_the_cpu(architecture):
    torch.manual_seed(0)
    relations = ("record", "past", "past", "record")
    model = BEHRTForSurvival(tiny_config(architecture=architecture, relations=relations)).eval()
    shake(model)
    expected = survival_step(model, CPU)
    with computing(choose("cuda", "fp32")) as chosen, at_work(model, chosen.device):
        survival_step(model, chosen.device).backward()  # kernels are compiled, constants moved
        torch.cuda.set_sync_debug_mode("error")
        try:
            loss = survival_step(model, chosen.device)
            loss.backward()
        finally:
            torch.cuda.set_sync_debug_mode("default")
        torch.testing.assert_close(loss.cpu(), expected, rtol=1e-4, atol=1e-4)
