"""Masked-code pretraining (Devlin et al. 2019): what is masked, and the head that guesses it."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ehrsequencing.batches import Batch
from ehrsequencing.device import device_of, moved
from ehrsequencing.models.behrt import BEHRTConfig, BEHRTPreTrainedModel, make_encoder
from ehrsequencing.tokens import MASK, N_SPECIAL

IGNORE = -100
"""Target of a position that was not selected."""
SHARE_MASKED, SHARE_RANDOM = 0.8, 0.1
"""Of the selected positions: these become [MASK] or a random code, the rest stay as they are."""


def mask_tokens(
    batch: Batch, vocab_size: int, generator: torch.Generator, fraction: float = 0.15
) -> tuple[Batch, Int[Tensor, "B L"]]:
    """Select a fraction of the codes and hide them (80% [MASK], 10% a random code, 10% kept); returns batch, targets.

    Special tokens ([CLS], [UNK], padding) are never selected. The value goes at every selected position, since a
    standardised value would give its code away. Targets are the codes there, IGNORE elsewhere. The input is unchanged.
    """
    shape, device = batch.code.shape, batch.code.device
    draw = torch.rand(2, *shape, generator=generator).to(device)  # [2,B,L]
    other = torch.randint(N_SPECIAL, max(vocab_size, N_SPECIAL + 1), shape, generator=generator).to(device)  # [B,L]
    selected = batch.mask & (batch.code >= N_SPECIAL) & (draw[0] < fraction)  # [B,L]
    hidden = selected & (draw[1] < SHARE_MASKED)
    swapped = selected & ~hidden & (draw[1] < SHARE_MASKED + SHARE_RANDOM)
    code = torch.where(hidden, MASK, torch.where(swapped, other, batch.code))  # [B,L]
    value = batch.value.masked_fill(selected, 0.0)
    masked = replace(batch, code=code, value=value, has_value=batch.has_value & ~selected)
    return masked, torch.where(selected, batch.code, IGNORE)


def selected(where: Bool[Tensor, "B L"], values: Shaped[Tensor, "B L"]) -> tuple[Int[Tensor, " M"], Tensor]:
    """The places of the flattened [B, L] that are selected, and the values there."""
    places = where.flatten().nonzero()[:, 0]  # [M]
    return places, values.flatten()[places]


@torch.no_grad()
def hits(logits: Float[Tensor, "M V"], truth: Int[Tensor, " M"]) -> int:
    """How often no logit is above that of the truth (``argmax`` takes three times as long as ``amax`` on a CPU).

    >>> hits(torch.tensor([[0.0, 2.0], [0.0, 2.0]]), torch.tensor([1, 0]))
    1
    """
    return int((logits.gather(1, truth[:, None])[:, 0] >= logits.amax(dim=1)).sum())


class MaskedLMOutput(NamedTuple):
    """Mean cross-entropy (nats) over the selected positions, how many were guessed right, and how many there were."""

    loss: Tensor
    n_correct: int
    n_selected: int


class MLMHead(nn.Module):
    """Hidden states to code logits through the code embeddings themselves (tied), plus a bias a code."""

    def __init__(self, config: BEHRTConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.embedding_size)
        self.activation, self.norm = nn.GELU(), nn.LayerNorm(config.embedding_size)
        self.decoder = nn.Linear(config.embedding_size, config.vocab_size)

    def forward(self, hidden: Float[Tensor, "M H"]) -> Float[Tensor, "M V"]:
        """Logits over the vocabulary for the given positions only."""
        return self.decoder(self.norm(self.activation(self.dense(hidden))))  # [M,V]


class BEHRTForMaskedLM(BEHRTPreTrainedModel):
    """The encoder with a masked-code head, whose logits exist at the selected positions only."""

    _tied_weights_keys = {"mlm_head.decoder.weight": "behrt.embeddings.code_embedding.weight"}  # noqa: RUF012

    def __init__(self, config: BEHRTConfig) -> None:
        super().__init__(config)
        self.behrt = make_encoder(config)
        self.mlm_head = MLMHead(config)
        self.post_init()

    def forward(self, batch: Batch, targets: Int[Tensor, "B L"]) -> MaskedLMOutput:
        """Loss and hits at the positions whose target is not IGNORE; without any the loss is 0, without gradient."""
        places, truth = selected(targets != IGNORE, targets)  # [M], [M]
        if len(truth) == 0:
            return MaskedLMOutput(torch.zeros((), device=targets.device), 0, 0)
        device = device_of(self)
        logits = self.mlm_head(self.behrt.encoded(batch).at(moved(places, device)))  # [M,V]
        truth = moved(truth, device)
        return MaskedLMOutput(cross_entropy(logits.float(), truth), hits(logits, truth), len(truth))
