"""Fits the visit LSTM through the one loop: same tokens, objective, grid and selection as every strategy."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float64

from ehrsequencing.batches import SurvivalData
from ehrsequencing.config import TRAIN, ModelConfig, OptimizerConfig
from ehrsequencing.models.behrt import BEHRTConfig
from ehrsequencing.models.footprint import FootprintAudit
from ehrsequencing.models.lstm import VisitBatch, VisitLSTM, lstm_features, lstm_logits
from ehrsequencing.training.loop import Epoch, Progress, Schedule, silent, train
from ehrsequencing.training.objectives import SurvivalObjective
from ehrsequencing.training.recipes import Recipe
from ehrsequencing.training.resume import Resume

TITLE = "lstm"


@dataclass(frozen=True)
class FittedLSTM:
    """A fitted network with its raw hazard logits for every row of the data."""

    model: VisitLSTM
    logits: Float64[np.ndarray, "N K *R"]
    history: list[Epoch]
    notes: tuple[str, ...]

    @property
    def n_parameters(self) -> int:
        """Trained numbers."""
        return sum(parameter.numel() for parameter in self.model.parameters())


def fit_visit_lstm(
    data: SurvivalData,
    recipe: Recipe,
    *,
    size: ModelConfig = ModelConfig(),
    seed: int = 0,
    progress: Progress = silent,
    resume: Resume | None = None,
) -> FittedLSTM:
    """Train on the training rows; the epoch with the best tuning C is kept; held-out rows are only scored.

    Loss, epochs, patience, batch and regularisation are the recipe's, sizes and dropout the encoder's.
    """
    torch.manual_seed(seed)
    model = VisitLSTM(_config(data, size))
    rows, everybody = data.index(TRAIN), np.arange(len(data))
    start, targets = lstm_features(model, data.tokens, rows), data.targets(rows)
    marginal = data.grid.marginal_logits(targets.duration.numpy(), targets.event.numpy(), data.n_causes)
    model.hazard_head.set_standardiser(start.mean(dim=0), start.std(dim=0))
    model.hazard_head.set_marginal(torch.from_numpy(marginal).float())
    objective = SurvivalObjective(data, lambda at: model(VisitBatch.of(data.tokens, at))[:, 0], recipe.lambda_rank)
    optimizer = OptimizerConfig(weight_decay=recipe.weight_decay, clip_norm=recipe.clip_norm)
    schedule = Schedule(recipe.epochs, recipe.batch_size, optimizer, recipe.patience, seed)
    audit = FootprintAudit(model)
    history = train(model, objective, schedule, title=TITLE, progress=progress, audit=audit, resume=resume)
    notes = (*audit.notes, *objective.notes)
    return FittedLSTM(model, lstm_logits(model, data.tokens, everybody), history, notes)


def _config(data: SurvivalData, size: ModelConfig) -> BEHRTConfig:
    tokenizer = data.tokenizer
    return BEHRTConfig.of_size(
        size.size,
        tokenizer.vocab_size,
        value_codes=tokenizer.value_codes,
        dropout=size.dropout,
        head_dropout=size.dropout,
        n_bins=data.grid.n_bins,
        n_causes=data.n_causes,
    )
