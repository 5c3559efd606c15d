"""No step asks its device for a number, and none mixes devices: told by torch's device without data, on any machine.

On ``meta`` a tensor has a shape and a device but no content: whatever would wait for a GPU (reading a value, indexing
by a mask, counting) raises there, as does arithmetic between two devices.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from ehrsequencing.batches import SurvivalData, Targets, VisitPlaces
from ehrsequencing.config import ModelConfig, PretrainConfig
from ehrsequencing.device import Compute, device_of
from ehrsequencing.models import backends
from ehrsequencing.models.behrt_survival import BEHRTForSurvival
from ehrsequencing.models.footprint import FootprintAudit
from ehrsequencing.models.forward import in_micro_batches, visit_features
from ehrsequencing.models.losses import hybrid_loss
from ehrsequencing.training import pretrain as pretraining
from ehrsequencing.training import pretraining_objectives
from tiny_batches import tiny_config

META = torch.device("meta")


@pytest.fixture(autouse=True)
def flat_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Records lie as on CUDA; of the kernel only the shape matters."""
    monkeypatch.setattr(backends, "fitting", lambda *_: "flex")
    monkeypatch.setattr(backends, "flex", lambda q, k, v, flat: q * k * v)
    monkeypatch.setattr(Compute, "token_budget", 200)


def settings_of(attention: str) -> dict[str, str]:
    return {"predict_at": "every_visit", "attention": attention} if attention == "block_causal" else {}


@pytest.mark.parametrize("causes", [1, 2])
@pytest.mark.parametrize("architecture", ["behrt", "hierarchical"])
@pytest.mark.parametrize("attention", ["bidirectional", "block_causal"])
def test_a_fine_tuning_step(data: SurvivalData, architecture, attention, causes):
    config = tiny_config(
        vocab_size=data.tokenizer.vocab_size, value_codes=data.tokenizer.value_codes, architecture=architecture,
        relations=("record", "past", "past", "record"), code_dropout=0.3, head="residual", n_causes=causes,
        **settings_of(attention),
    )  # fmt: skip
    model = BEHRTForSurvival(config).train().to(META)
    audit, rows = FootprintAuditOnMeta(model), np.arange(24)
    if attention == "block_causal":  # three visits a record, each a prediction
        places = VisitPlaces(data.tokens, np.repeat(rows, 3), np.tile([0, 1, 0], len(rows)))
        logits = model.hazards(visit_features(model, places))  # [n, K, *R]
    else:
        logits = in_micro_batches(model, data.tokens, rows)[:, 0]  # [b, K, *R]
    assert logits.device == META
    hybrid_loss(logits, *outcomes(len(logits), config.n_bins), 0.3).loss.backward()
    audit.observe(model)
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    assert all(p.grad is None or p.grad.device == META for p in model.parameters())


class FootprintAuditOnMeta(FootprintAudit):
    """Without the digests of frozen tensors, which are taken once, before training."""

    def __post_init__(self) -> None:
        self._frozen: dict[str, bytes] = {}
        self._waiting = {name for name, _ in self.model.named_parameters()}
        self._seen: dict[str, torch.Tensor] = {}
        self._steps = 0


def outcomes(n: int, n_bins: int) -> tuple[torch.Tensor, ...]:
    """Bin, fraction, event, duration, on the host."""
    at = torch.arange(n)
    targets = Targets(at.double() + 1, at % 2, at % n_bins, torch.full((n,), 0.5, dtype=torch.float64))
    return targets.bin, targets.fraction.float(), targets.event, targets.duration


EVERYTHING = {"masked-codes": 1.0, "masked-values": 1.0, "next-visit": 1.0, "time-to-event": 1.0, "record-summary": 1.0}


@pytest.mark.parametrize("objectives", [{"masked-codes": 1.0, "record-summary": 1.0}, EVERYTHING])
@pytest.mark.parametrize("architecture", ["behrt", "hierarchical"])
@pytest.mark.parametrize("attention", ["bidirectional", "block_causal"])
def test_a_pretraining_step(data: SurvivalData, architecture, attention, objectives, monkeypatch):
    """Of the objectives' own buffers copies are on the host already: they are fetched once a run."""

    class DoneError(Exception):
        """The step was taken."""

    def one_step(learner, objective, schedule, **options):
        kept = {id(m): dict(m.named_buffers()) for m in learner.modules()}
        monkeypatch.setattr(pretraining_objectives, "on_host", lambda module, name: kept[id(module)][name])
        learner.train().to(META)
        loss = objective.loss(np.arange(16))
        loss.backward()
        assert loss.device == device_of(learner) == META
        raise DoneError

    monkeypatch.setattr(pretraining, "train", one_step)
    config = PretrainConfig(objectives=objectives, n_codes=5, n_pieces=3, rank=4, summary_codes=6)
    size = ModelConfig(architecture=architecture, attention=attention)
    with pytest.raises(DoneError):
        pretraining.pretrain(data.tokens, data.tokenizer, config, size)
