"""The plain model and loop that the steps are measured against: every record padded to one length, nothing else."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from ehrsequencing.batches import Batch
from ehrsequencing.models.behrt import BEHRTConfig

AGES, GAPS = 24, 16


class Attention(nn.Module):
    """Softmax(qkᵀ/√D + mask)v, written out with dropout as in the textbooks, or by torch's own function."""

    def __init__(self, width: int, heads: int, dropout: float, fused: bool) -> None:
        super().__init__()
        self.heads, self.fused = heads, fused
        self.q, self.k, self.v, self.out = (nn.Linear(width, width) for _ in range(4))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        q, k, v = (part(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (self.q, self.k, self.v))
        if self.fused:
            mixed = scaled_dot_product_attention(q, k, v, attn_mask=mask)
        else:
            scores = (q @ k.transpose(-1, -2)) / math.sqrt(q.shape[-1])
            weights = scores.masked_fill(~mask, -torch.inf).softmax(dim=-1)
            mixed = self.dropout(weights) @ v
        return self.out(mixed.transpose(1, 2).flatten(2))


class Layer(nn.Module):
    def __init__(self, config: BEHRTConfig, fused: bool) -> None:
        super().__init__()
        H, inner = config.hidden_size, config.intermediate_size
        self.attention = Attention(H, config.num_attention_heads, config.dropout, fused)
        self.first, self.second = nn.LayerNorm(H), nn.LayerNorm(H)
        self.feed = nn.Sequential(nn.Linear(H, inner), nn.GELU(), nn.Linear(inner, H))
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        x = x + self.dropout(self.attention(self.first(x), mask))
        return x + self.dropout(self.feed(self.second(x)))


class Textbook(nn.Module):
    """BEHRT's sum of embeddings (code, age, visit, position, gap), layers of the same sizes, mean, hazard head."""

    def __init__(self, config: BEHRTConfig, longest: int, fused: bool) -> None:
        super().__init__()
        W, H = config.embedding_size, config.hidden_size
        sizes = (config.vocab_size, AGES, config.max_visits, longest, GAPS)
        self.tables = nn.ModuleList(nn.Embedding(size, W) for size in sizes)
        self.norm, self.projection, self.dropout = nn.LayerNorm(W), nn.Linear(W, H), nn.Dropout(config.dropout)
        self.layers = nn.ModuleList(Layer(config, fused) for _ in range(config.num_hidden_layers))
        self.last, self.head = nn.LayerNorm(H), nn.Linear(H, config.n_bins)

    def forward(self, batch: Batch) -> Tensor:
        """Hazard logits [B, K]."""
        age = (batch.age / 5).long().clamp(0, AGES - 1)
        position = torch.arange(batch.code.shape[1]).expand_as(batch.code)
        visit = batch.visit.clamp_max(self.tables[2].num_embeddings - 1)
        gap = batch.gap.log1p().long().clamp(0, GAPS - 1)
        parts = zip(self.tables, (batch.code, age, visit, position, gap), strict=True)
        x = torch.stack([table(ids) for table, ids in parts]).sum(dim=0)
        x = self.projection(self.dropout(self.norm(x)))
        for layer in self.layers:
            x = layer(x, batch.mask[:, None, None, :])
        real = batch.mask[..., None]
        return self.head((self.last(x) * real).sum(dim=1) / real.sum(dim=1))
