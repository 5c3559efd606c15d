"""Hazard heads: pooled features of a patient to hazard logits, as a small MLP or as a penalised linear model.

With R competing causes a head has an output for every bin and cause, [B, 1, K, R]; with one cause, [B, 1, K].
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ehrsequencing.models.configuration import BEHRTConfig
from ehrsequencing.models.wide import RidgeHazard

RESIDUAL_STD = 0.005
"""Of the residual MLP's last weights at the start: near zero, yet its first layer has a gradient from step 1."""
MIN_STD = 1e-6
"""A pooled feature that varies less than this on the training rows is centred only."""


def _shape(config: BEHRTConfig) -> tuple[int, ...]:
    """Of one patient's logits: (K,), or (K, R) where R causes compete."""
    return (config.n_bins,) if config.n_causes == 1 else (config.n_bins, config.n_causes)


class HazardHead(nn.Module):
    """Pooled features to hazard logits: standardised (buffers), then 3H → hidden → K with LayerNorm, GELU, dropout."""

    mean: Tensor
    std: Tensor

    def __init__(self, config: BEHRTConfig) -> None:
        super().__init__()
        width = 3 * config.hidden_size
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("std", torch.ones(width))
        self.dense = nn.Linear(width, config.head_hidden)
        self.norm = nn.LayerNorm(config.head_hidden)
        self.activation, self.dropout = nn.GELU(), nn.Dropout(config.head_dropout)
        self.shape = _shape(config)
        self.hazard = nn.Linear(config.head_hidden, math.prod(self.shape))

    def forward(self, features: Float[Tensor, "B F"]) -> Float[Tensor, "B 1 K *R"]:
        """Hazard logits φ of the K bins (and R causes) at the one prediction_time of each patient."""
        x = (features - self.mean) / self.std  # [B,3H]
        x = self.dropout(self.activation(self.norm(self.dense(x))))  # [B,hidden]
        return self.hazard(x).unflatten(1, (1, *self.shape))  # [B,1,K,*R]

    @torch.no_grad()
    def set_marginal(self, logits: Float[Tensor, " K *R"]) -> None:
        """Start the bias at the training outcome's marginal hazards, so that epoch 1 begins at Kaplan–Meier (or
        Aalen–Johansen)."""
        self.hazard.bias.copy_(logits.flatten())

    @torch.no_grad()
    def set_standardiser(self, mean: Float[Tensor, " F"], std: Float[Tensor, " F"]) -> None:
        """Centre and scale the features by these figures of the training rows; constant features are centred only."""
        self.mean.copy_(mean)
        self.std.copy_(torch.where(std < MIN_STD, torch.ones_like(std), std))


class LinearHead(nn.Module):
    """φ_k = b_k + w·(x − mean)/std: one weight vector shared by the bins, set from a convex fit; one a cause."""

    mean: Tensor
    std: Tensor

    def __init__(self, config: BEHRTConfig) -> None:
        super().__init__()
        width = 3 * config.hidden_size
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("std", torch.ones(width))
        shape = _shape(config)
        self.weight = nn.Parameter(torch.zeros(width, *shape[1:]))
        self.bias = nn.Parameter(torch.zeros(shape))

    def forward(self, features: Float[Tensor, "B F"]) -> Float[Tensor, "B 1 K *R"]:
        """Hazard logits φ of the K bins (and R causes) at the one prediction_time of each patient."""
        return self.linear((features - self.mean) / self.std)  # [B,1,K,*R]

    def linear(self, z: Float[Tensor, "B F"]) -> Float[Tensor, "B 1 K *R"]:
        """b_k + w·z of standardised features."""
        return (self.bias + (z @ self.weight)[:, None])[:, None]

    @torch.no_grad()
    def set_marginal(self, logits: Float[Tensor, " K *R"]) -> None:
        """Start the bias at the training outcome's marginal hazards."""
        self.bias.copy_(logits)

    @torch.no_grad()
    def set_standardiser(self, mean: Float[Tensor, " F"], std: Float[Tensor, " F"]) -> None:
        """Centre and scale the features; constant features are centred only."""
        self.mean.copy_(mean)
        self.std.copy_(torch.where(std < MIN_STD, torch.ones_like(std), std))

    @torch.no_grad()
    def set_ridge(self, ridge: RidgeHazard) -> None:
        """Take a fitted penalised model over, its own standardiser included."""
        parts = (ridge.mean, ridge.std, ridge.weight, ridge.bias)
        mean, std, weight, bias = (torch.from_numpy(part).float() for part in parts)
        self.set_standardiser(mean, std)
        self.weight.copy_(torch.where((std > 0)[(..., *[None] * (weight.ndim - 1))], weight, torch.zeros_like(weight)))
        self.bias.copy_(bias)


class ResidualHead(LinearHead):
    """The penalised linear head, and a small MLP beside it: φ_k = b_k + w·z + MLP(z)_k with z = (x − mean)/std.

    It starts where the convex fit on the frozen features ends (the MLP starts near zero), so that fine-tuning begins
    with what pretraining already gives and does not first distort it (Kumar et al. 2022, arXiv:2202.10054).
    """

    def __init__(self, config: BEHRTConfig) -> None:
        super().__init__(config)
        self.shape = _shape(config)
        self.dense = nn.Linear(len(self.mean), config.head_hidden)
        self.norm = nn.LayerNorm(config.head_hidden)
        self.activation, self.dropout = nn.GELU(), nn.Dropout(config.head_dropout)
        self.hazard = nn.Linear(config.head_hidden, math.prod(self.shape), bias=False)

    def forward(self, features: Float[Tensor, "B F"]) -> Float[Tensor, "B 1 K *R"]:
        """Hazard logits φ of the K bins (and R causes) at the one prediction_time of each patient."""
        z = (features - self.mean) / self.std  # [B,3H]
        x = self.dropout(self.activation(self.norm(self.dense(z))))  # [B,hidden]
        return self.linear(z) + self.hazard(x).unflatten(1, (1, *self.shape))  # [B,1,K,*R]


HEADS: Mapping[str, type[HazardHead] | type[LinearHead]] = {
    "mlp": HazardHead,
    "linear": LinearHead,
    "residual": ResidualHead,
}
