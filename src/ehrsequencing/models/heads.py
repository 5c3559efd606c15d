"""Hazard heads: pooled features of a patient to hazard logits, as a small MLP, a penalised linear model, or both.

With R competing causes a head has an output for every bin and cause, [B, 1, K, R]; with one cause, [B, 1, K]. Its
hazards are *proportional* (what the features say moves the logits of all bins alike, beside an intercept a bin) or
*per bin* (every bin reads the features with weights of its own).
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ehrsequencing.models.configuration import BEHRTConfig
from ehrsequencing.models.dropout import Dropout
from ehrsequencing.models.wide import RidgeHazard

RESIDUAL_STD = 0.005
"""Of the residual MLP's last weights at the start: near zero, yet its first layer has a gradient from step 1."""
MIN_STD = 1e-6
"""A pooled feature that varies less than this on the training rows is centred only."""


def _shapes(config: BEHRTConfig, *kinds: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Of one patient's logits, (K, *R), and of what the features say of them: the same under ``kinds``, or (1, *R)."""
    causes = () if config.n_causes == 1 else (config.n_causes,)
    logits = (config.n_bins, *causes)
    return logits, logits if config.head_hazards in kinds else (1, *causes)


class StandardisedHead(nn.Module):
    """What every head begins with: pooled features centred and scaled by the training rows' figures (buffers)."""

    mean: Tensor
    std: Tensor

    def __init__(self, config: BEHRTConfig) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(config.n_features))
        self.register_buffer("std", torch.ones(config.n_features))

    def standardised(self, features: Float[Tensor, "B F"]) -> Float[Tensor, "B F"]:
        """(x − mean)/std."""
        return (features - self.mean) / self.std

    @torch.no_grad()
    def set_standardiser(self, mean: Float[Tensor, " F"], std: Float[Tensor, " F"]) -> None:
        """Centre and scale the features by these figures of the training rows; constant features are centred only."""
        self.mean.copy_(mean)
        self.std.copy_(torch.where(std < MIN_STD, torch.ones_like(std), std))


class HazardHead(StandardisedHead):
    """3H → hidden → K with LayerNorm, GELU and dropout; where hazards are proportional, → 1, and an intercept a bin."""

    def __init__(self, config: BEHRTConfig) -> None:
        super().__init__(config)
        self.shape, self.said = _shapes(config, "per_bin")
        self.dense = nn.Linear(len(self.mean), config.head_hidden)
        self.norm = nn.LayerNorm(config.head_hidden)
        self.activation, self.dropout = nn.GELU(), Dropout(config.head_dropout)
        per_bin = self.said == self.shape
        self.hazard = nn.Linear(config.head_hidden, math.prod(self.said), bias=per_bin)
        self.intercept = None if per_bin else nn.Parameter(torch.zeros(self.shape))

    def forward(self, features: Float[Tensor, "B F"]) -> Float[Tensor, "B 1 K *R"]:
        """Hazard logits φ of the K bins (and R causes) at the one prediction_time of each patient."""
        x = self.standardised(features)  # [B,3H]
        x = self.dropout(self.activation(self.norm(self.dense(x))))  # [B,hidden]
        said = self.hazard(x).unflatten(1, (1, *self.said))  # [B,1,K or 1,*R]
        return said if self.intercept is None else self.intercept + said

    @torch.no_grad()
    def set_marginal(self, logits: Float[Tensor, " K *R"]) -> None:
        """Start the bias at the training outcome's marginal hazards, so that epoch 1 begins at Kaplan–Meier (or
        Aalen–Johansen)."""
        bias = self.hazard.bias if self.intercept is None else self.intercept
        bias.copy_(logits.reshape(bias.shape))


class LinearHead(StandardisedHead):
    """φ_k = b_k + w·z of standardised features z, or b_k + w_k·z per bin, set from a convex fit; one w a cause."""

    def __init__(self, config: BEHRTConfig) -> None:
        super().__init__(config)
        self.shape, said = _shapes(config, "per_bin")
        self.per_bin = said == self.shape
        self.weight = nn.Parameter(torch.zeros(len(self.mean), *(said if self.per_bin else said[1:])))
        self.bias = nn.Parameter(torch.zeros(self.shape))

    def forward(self, features: Float[Tensor, "B F"]) -> Float[Tensor, "B 1 K *R"]:
        """Hazard logits φ of the K bins (and R causes) at the one prediction_time of each patient."""
        return self.linear(self.standardised(features))  # [B,1,K,*R]

    def linear(self, z: Float[Tensor, "B F"]) -> Float[Tensor, "B 1 K *R"]:
        """b_k + w·z, or b_k + w_k·z, of standardised features."""
        said = z @ self.weight.flatten(1) if self.weight.ndim > 1 else z @ self.weight  # [B], [B,R] or [B,K·R]
        if self.per_bin:
            return (self.bias + said.unflatten(1, self.shape))[:, None]
        return (self.bias + said[:, None])[:, None]

    @torch.no_grad()
    def set_marginal(self, logits: Float[Tensor, " K *R"]) -> None:
        """Start the bias at the training outcome's marginal hazards."""
        self.bias.copy_(logits)

    @torch.no_grad()
    def set_ridge(self, ridge: RidgeHazard) -> None:
        """Take a fitted penalised model over, its own standardiser included."""
        parts = (ridge.mean, ridge.std, ridge.weight, ridge.bias)
        mean, std, weight, bias = (torch.from_numpy(part).float() for part in parts)
        self.set_standardiser(mean, std)
        self.weight.copy_(torch.where((std > 0)[(..., *[None] * (weight.ndim - 1))], weight, torch.zeros_like(weight)))
        self.bias.copy_(bias)


class ResidualHead(LinearHead):
    """The penalised linear head, and a small MLP beside it: φ = b + w·z + MLP(z) with z = (x − mean)/std.

    It starts where the convex fit on the frozen features ends (the MLP starts near zero), so that fine-tuning begins
    with what pretraining already gives and does not first distort it (Kumar et al. 2022, arXiv:2202.10054).
    """

    def __init__(self, config: BEHRTConfig) -> None:
        super().__init__(config)
        self.said = _shapes(config, "per_bin", "mixed")[1]
        self.dense = nn.Linear(len(self.mean), config.head_hidden)
        self.norm = nn.LayerNorm(config.head_hidden)
        self.activation, self.dropout = nn.GELU(), Dropout(config.head_dropout)
        self.hazard = nn.Linear(config.head_hidden, math.prod(self.said), bias=False)

    def forward(self, features: Float[Tensor, "B F"]) -> Float[Tensor, "B 1 K *R"]:
        """Hazard logits φ of the K bins (and R causes) at the one prediction_time of each patient."""
        z = self.standardised(features)  # [B,3H]
        x = self.dropout(self.activation(self.norm(self.dense(z))))  # [B,hidden]
        return self.linear(z) + self.hazard(x).unflatten(1, (1, *self.said))  # [B,1,K,*R]


HEADS: Mapping[str, type[HazardHead] | type[LinearHead]] = {
    "mlp": HazardHead,
    "linear": LinearHead,
    "residual": ResidualHead,
}
