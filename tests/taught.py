"""A bundle whose deep part was taught the simulator's own log hazard: what attributions should find in it is known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import torch

from ehrsequencing.batches import SurvivalData, collate
from ehrsequencing.bundle import Bundle, Encoder, Row
from ehrsequencing.cohort import build_cohort
from ehrsequencing.config import HELD_OUT, TRAIN, SimulateConfig, SplitConfig, TokensConfig, load_task
from ehrsequencing.events import MedsDataset
from ehrsequencing.models.behrt import BEHRTConfig
from ehrsequencing.models.behrt_survival import BEHRTForSurvival
from ehrsequencing.models.forward import hazard_logits
from ehrsequencing.models.pretraining import BEHRTForMaskedLM
from ehrsequencing.models.wide import fit_wide
from ehrsequencing.study.data import divisions, prepare, pretraining_records
from ehrsequencing.synthetic import read_truth, simulate

PATIENTS, STEPS, BATCH, RATE = 1_000, 150, 32, 1e-2


def taught_bundle(folder: Path) -> tuple[Bundle, MedsDataset, float]:
    """The bundle, its dataset, and how the deep part correlates with the true log hazard on held-out patients."""
    dataset = simulate(folder / "meds", SimulateConfig(patients=PATIENTS, seed=11, noise_codes=10))
    task = load_task(dataset.root / "task.yaml")
    train = divisions(dataset, None, SplitConfig())[0].train_subjects()
    tokenizer, _ = pretraining_records(dataset, train, task, TokensConfig(max_tokens=64))
    torch.manual_seed(0)
    encoder = Encoder(BEHRTForMaskedLM(_config(tokenizer)), tokenizer, {}, np.zeros(0))
    prepared = prepare(dataset, build_cohort(dataset, task), encoder)
    data = prepared.data
    model = BEHRTForSurvival.from_encoder(encoder.model, n_bins=data.grid.n_bins)
    learned = _teach(model, data, _log_hazard(dataset, data))
    rows = {"taught": Row(1.0, None), "taught+wide": Row(0.5, None), "wide": Row(0.0, None)}
    wide = fit_wide(data)
    return Bundle(task, tokenizer, prepared.features, data.grid, model, wide, rows, {"seed": 0}), dataset, learned


def _config(tokenizer) -> BEHRTConfig:
    sizes = {"embedding_size": 32, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4}
    known = {"vocab_size": tokenizer.vocab_size, "value_codes": tokenizer.value_codes}
    return BEHRTConfig(**known, **sizes, intermediate_size=64, dropout=0.0)


def _log_hazard(dataset: MedsDataset, data: SurvivalData) -> torch.Tensor:
    keys = ["subject_id", "prediction_time"]
    truth = data.rows.select(keys).join(read_truth(dataset.root), on=keys, how="left", maintain_order="left")
    return torch.tensor(truth["log_hazard"].cast(pl.Float32).to_list())


def _teach(model: BEHRTForSurvival, data: SurvivalData, log_hazard: torch.Tensor) -> float:
    at, draw = data.index(TRAIN), np.random.default_rng(0)
    targets = data.targets(at)
    base = torch.from_numpy(data.grid.marginal_logits(targets.duration.numpy(), targets.event.numpy())).float()
    model.hazard_head.set_marginal(base)
    wanted = log_hazard - log_hazard[at].mean()
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=STEPS)
    model.train()
    for _ in range(STEPS):
        rows = draw.choice(at, BATCH, replace=False)
        optimizer.zero_grad()
        raised = (model(collate(data.tokens, rows))[:, 0] - base).mean(dim=1)
        (raised - wanted[rows]).square().mean().backward()
        optimizer.step()
        schedule.step()
    model.eval()
    held = data.index(HELD_OUT)
    return float(np.corrcoef(hazard_logits(model, data.tokens, held).mean(axis=1), log_hazard[held])[0, 1])
