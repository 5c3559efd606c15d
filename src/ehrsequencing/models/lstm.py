"""The visit LSTM: a recurrent network over visits under the same hazard head, on the same tokens as the transformer."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Float64, Int64
from torch import Tensor, nn

from ehrsequencing.models.behrt import age_features
from ehrsequencing.models.configuration import BEHRTConfig
from ehrsequencing.models.heads import HazardHead
from ehrsequencing.tokens import TokenStore

ROWS_AT_ONCE = 256
"""Records in one forward pass when only scoring."""
BUCKET_SHARE, BUCKET_ROWS = 0.6, 12
"""A bucket takes records of at least this share of its longest one's steps, and at least so many records."""
_TIME_FEATURES = 15
"""Of a step: 13 of age, the gap, the number of tokens."""


@dataclass(frozen=True, eq=False)
class VisitBatch:
    """B records as S steps of T tokens together, without padding.

    The steps of a record are its visits in order and last the present: ``[CLS]``, with the age at prediction_time
    and the days since the last event, and the static codes.

    Attributes:
        code, value: of each token, step by step; value 0 where there is none.
        tokens: how many tokens each step has.
        age, age_known, gap: of each step; years (0 where unknown) and days since the visit before.
        steps: how many steps each record has.
    """

    code: Int64[Tensor, " T"]
    value: Float32[Tensor, " T"]
    tokens: Int64[Tensor, " S"]
    age: Float32[Tensor, " S"]
    age_known: Bool[Tensor, " S"]
    gap: Float32[Tensor, " S"]
    steps: Int64[Tensor, " B"]

    @classmethod
    def of(cls, store: TokenStore, rows: Int64[np.ndarray, " B"]) -> VisitBatch:
        """The given rows of ``store``, in their order."""
        part = store.take(rows)
        row = np.repeat(np.arange(len(rows)), part.lengths)  # [T]
        step = np.where(part.visit == 0, part.visit.max(initial=0) + 1, part.visit)  # [T] the present comes last
        order = np.lexsort((step, row))  # [T]
        row, step = row[order], step[order]
        begin = np.flatnonzero(np.diff(row, prepend=-1) | np.diff(step, prepend=-1))  # [S]
        age = part.age[order][begin]  # [S]
        return cls(
            code=torch.from_numpy(part.code[order].astype(np.int64)),
            value=torch.from_numpy(np.nan_to_num(part.value[order])),
            tokens=torch.from_numpy(np.diff(begin, append=len(row))),
            age=torch.from_numpy(np.nan_to_num(age)),
            age_known=torch.from_numpy(~np.isnan(age)),
            gap=torch.from_numpy(part.gap[order][begin]),
            steps=torch.from_numpy(np.bincount(row[begin], minlength=len(rows))),
        )

    def __len__(self) -> int:
        return self.steps.shape[0]


class VisitLSTM(nn.Module):
    """Mean of a visit's code vectors (with values), its age and gap → LSTM over visits → hazard head.

    The head reads the last state, the mean and the maximum of a record's states: 3H wide, as the transformer's does.
    Sizes are those of the encoder's configuration (``embedding_size``, ``hidden_size``, ``dropout`` and the head's).
    """

    value_slot: Tensor

    def __init__(self, config: BEHRTConfig) -> None:
        super().__init__()
        E, H = config.embedding_size, config.hidden_size
        self.config = config
        self.code_embedding = nn.Embedding(config.vocab_size, E)
        nn.init.normal_(self.code_embedding.weight, std=E**-0.5)
        self.value_embedding = nn.Embedding(len(config.value_codes), E) if config.value_codes else None
        slot = torch.full((config.vocab_size,), -1, dtype=torch.long)
        slot[torch.as_tensor(config.value_codes, dtype=torch.long)] = torch.arange(len(config.value_codes))
        self.register_buffer("value_slot", slot)
        self.norm, self.dropout = nn.LayerNorm(E), nn.Dropout(config.dropout)
        self.lstm = nn.LSTM(E + _TIME_FEATURES, H)
        with torch.no_grad():
            # a forget gate that starts open (Jozefowicz et al. 2015)
            dict(self.lstm.named_parameters())["bias_hh_l0"][H : 2 * H].fill_(1.0)
        self.hazard_head = HazardHead(config)

    def forward(self, batch: VisitBatch) -> Float[Tensor, "B 1 K *R"]:
        """Hazard logits of each patient at its prediction_time."""
        return self.hazard_head(self.features(batch))

    def features(self, batch: VisitBatch) -> Float[Tensor, "B F"]:
        """Last state, mean and maximum of each record's states."""
        x = self._steps(batch)  # [S,D]
        begin = batch.steps.cumsum(0) - batch.steps  # [B]
        rows = buckets(batch.steps)
        pooled = torch.cat([self._bucket(x, begin[part], batch.steps[part]) for part in rows])  # [B,3H]
        return pooled[torch.argsort(torch.cat(rows))]

    def _bucket(
        self, x: Float[Tensor, "S D"], begin: Int64[Tensor, " b"], steps: Int64[Tensor, " b"]
    ) -> Float[Tensor, "b F"]:
        at = torch.arange(int(steps.max()))[:, None]  # [L,1]
        real = (at < steps)[..., None]  # [L,b,1]
        states = self.lstm(x[begin + torch.minimum(at, steps - 1)])[0]  # [L,b,H]; what follows the end is not read
        last = states[steps - 1, torch.arange(len(steps))]  # [b,H]
        mean = (states * real).sum(dim=0) / steps[:, None]  # [b,H]
        return torch.cat([last, mean, states.masked_fill(~real, -torch.inf).amax(dim=0)], dim=-1)

    def _steps(self, batch: VisitBatch) -> Float[Tensor, "S D"]:
        x = self.code_embedding(batch.code)  # [T,E]
        if self.value_embedding is not None:
            slot = self.value_slot[batch.code]  # [T]
            value = torch.where(slot >= 0, batch.value, torch.zeros_like(batch.value))  # [T]
            x = x + value[:, None] * self.value_embedding(slot.clamp_min(0))  # [T,E]
        x = self.dropout(self.norm(torch.segment_reduce(x, "mean", lengths=batch.tokens)))  # [S,E]
        age = age_features(batch.age[None], batch.age_known[None])[0]  # [S,13]
        size = torch.stack([batch.gap.clamp_min(0), batch.tokens.float()], dim=-1).log1p() / 8  # [S,2]
        return torch.cat([x, age, size], dim=-1)  # [S,D]


def buckets(steps: Int64[Tensor, " B"]) -> list[Int64[Tensor, " b"]]:
    """The records, longest first, in groups of similar length: padding inside a group costs little.

    (A packed sequence needs no padding, but its backward pass on a CPU grows with the square of the steps.)

    >>> [part.tolist() for part in buckets(torch.tensor([2] * 12 + [90] * 13))]
    [[12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24], [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]]
    """
    order = torch.argsort(steps, descending=True, stable=True)  # [B]
    falling, parts, begin = steps[order], [], 0
    while begin < len(order):
        similar = int((falling[begin:] >= BUCKET_SHARE * falling[begin]).sum())
        size = max(similar, BUCKET_ROWS)
        parts.append(order[begin : begin + size])
        begin += size
    return parts


@torch.no_grad()
def lstm_features(model: VisitLSTM, store: TokenStore, rows: Int64[np.ndarray, " n"]) -> Float32[Tensor, "n F"]:
    """What the hazard head reads of the given rows, in their order, in eval mode."""
    model.eval()
    parts = [VisitBatch.of(store, rows[at : at + ROWS_AT_ONCE]) for at in range(0, len(rows), ROWS_AT_ONCE)]
    return torch.cat([model.features(part) for part in parts])


@torch.no_grad()
def lstm_logits(model: VisitLSTM, store: TokenStore, rows: Int64[np.ndarray, " n"]) -> Float64[np.ndarray, "n K *R"]:
    """Hazard logits of the given rows by bin (and cause), in their order, in eval mode; in float64."""
    features = lstm_features(model, store, rows)  # [n,3H]
    return model.hazard_head(features)[:, 0].double().numpy()
