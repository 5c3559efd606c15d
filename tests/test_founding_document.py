"""The founding document's code, run as it is written there, does what its text says."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
import torch

from ehrsequencing.models.behrt import BEHRTConfig
from ehrsequencing.models.behrt_survival import BEHRTForSurvival
from ehrsequencing.models.lora import is_adapter
from tiny_batches import random_batch, shake

FREEZE = """\
for param in model.behrt.parameters():
    param.requires_grad = False
# Only hazard_head parameters are updated
"""
LORA = """\
from ehrsequencing.models.lora import apply_lora_to_behrt
model.behrt = apply_lora_to_behrt(model.behrt, rank=16, alpha=32)
"""
FOOTPRINT = """\
params = model.get_trainable_parameters()
print(f"Trainable: {params['trainable']:,} / {params['total']:,}")
"""
VOCAB = 1_004


@pytest.fixture
def model():
    torch.manual_seed(0)
    model = BEHRTForSurvival(BEHRTConfig.small(VOCAB))
    shake(model)
    return model


def moved_by_training(model) -> set[str]:
    batch = random_batch(vocab=VOCAB, value_codes=())
    before = {name: t.clone() for name, t in model.state_dict().items()}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(2):
        optimizer.zero_grad()
        model(batch).square().mean().backward()
        optimizer.step()
    return {name for name, t in model.state_dict().items() if not torch.equal(t, before[name])}


@pytest.mark.parametrize("snippet", [FREEZE, LORA, FOOTPRINT], ids=["freeze", "lora", "footprint"])
def test_the_snippets_are_the_documents_own(snippet):
    document = Path(os.environ.get("EHR_DATA", "../shared/data")).parent / "seed" / "optimization_strategies.md"
    if not document.exists():
        pytest.skip(f"the founding document is not at {document}")
    text = "\n".join(line.strip() for line in document.read_text(encoding="utf-8").splitlines())
    for line in snippet.splitlines():
        assert line.strip() in text
    code = r"^(for .+:|from .+ import .+|param\..+|model\..+ = .+|params = .+|print\(.+\))$"
    known = {line.strip() for s in (FREEZE, LORA, FOOTPRINT) for line in s.splitlines()}
    assert set(re.findall(code, text, flags=re.MULTILINE)) <= known  # no snippet of the document is left out
    assert re.findall(code, text, flags=re.MULTILINE)


def test_the_freezing_loop_leaves_only_the_head_to_train(model):
    exec(FREEZE, {"model": model})
    assert model.get_trainable_parameters()["trainable"] == 16_300
    assert moved_by_training(model) == {f"hazard_head.{name}" for name, _ in model.hazard_head.named_parameters()}


def test_freeze_behrt_does_the_same_as_the_loop(model):
    exec(FREEZE, {"model": model})
    by_argument = BEHRTForSurvival(BEHRTConfig.small(VOCAB), freeze_behrt=True)
    assert by_argument.get_trainable_parameters() == model.get_trainable_parameters()


def test_the_lora_call_adapts_the_encoder_in_place(model):
    behrt, full = model.behrt, model.get_trainable_parameters()["total"]
    batch = random_batch(vocab=VOCAB, value_codes=())
    model.eval()
    before = model(batch)
    exec(LORA, {"model": model})
    assert model.behrt is behrt
    assert torch.equal(model(batch), before)
    assert 0.10 < model.get_trainable_parameters()["trainable"] / full < 0.20
    moved = moved_by_training(model.train())
    assert {name for name in moved if name.startswith("behrt.")} == {
        name for name, _ in model.named_parameters() if is_adapter(name)
    }
    exec(LORA, {"model": model})  # a second run of the same cell does no harm


def test_use_lora_does_the_same_as_the_call(model):
    exec(LORA, {"model": model})
    by_argument = BEHRTForSurvival(BEHRTConfig.small(VOCAB), use_lora=True)
    assert by_argument.get_trainable_parameters() == model.get_trainable_parameters()


def test_the_footprint_print_runs(model, capsys):
    exec(FOOTPRINT, {"model": model})
    assert capsys.readouterr().out == "Trainable: 497,580 / 497,580\n"


def test_trainable_parameters_grow_from_frozen_to_lora_to_full():
    counts = [
        BEHRTForSurvival(BEHRTConfig.small(VOCAB), **choice).get_trainable_parameters()["trainable"]
        for choice in ({"freeze_behrt": True}, {"use_lora": True}, {})
    ]
    assert counts == [16_300, 65_452, 497_580]


def test_the_places_the_document_names_exist():
    import ehrsequencing.models.behrt_survival
    import ehrsequencing.models.lora

    for module, name in ((ehrsequencing.models.behrt_survival, "behrt_survival"), (ehrsequencing.models.lora, "lora")):
        assert Path(module.__file__).as_posix().endswith(f"src/ehrsequencing/models/{name}.py")
    root = Path(ehrsequencing.models.lora.__file__).parents[3]
    assert (root / "examples" / "survival_analysis").is_dir()
