"""Heads of the pretraining objectives beside masked codes: values, the next visit's codes, the time to each code."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from ehrsequencing.models.configuration import BEHRTConfig

START_STD = 0.01
"""Of the weights by which a head departs from its marginal bias at the start: close to it, and yet felt below."""


class ValueHead(nn.Module):
    """Hidden state and the code's own vector to the standardised value that was hidden there."""

    def __init__(self, config: BEHRTConfig) -> None:
        super().__init__()
        width = config.embedding_size
        self.dense = nn.Linear(config.hidden_size, width)
        self.code = nn.Linear(width, width, bias=False)
        self.activation, self.norm = nn.GELU(), nn.LayerNorm(width)
        self.value = nn.Linear(width, 1)
        for layer in (self.dense, self.code):
            nn.init.normal_(layer.weight, std=1 / math.sqrt(layer.in_features))
        nn.init.normal_(self.value.weight, std=START_STD)
        nn.init.zeros_(self.dense.bias)
        nn.init.zeros_(self.value.bias)

    def forward(self, hidden: Float[Tensor, "M H"], code: Float[Tensor, "M W"]) -> Float[Tensor, " M"]:
        """Values in standard units, of the given positions only."""
        x = self.norm(self.activation(self.dense(hidden) + self.code(code)))  # [M,W]
        return self.value(x)[:, 0]


class _Reading(nn.Module):
    """A linear map of pooled vectors whose outputs, not weights, move by about the learning rate a step.

    Pooled vectors of different records share a large mean; without the scale each step of Adam would move all outputs
    at once by the learning rate times their width.
    """

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.scale = 1 / math.sqrt(width)
        self.dense = nn.Linear(width, out)
        nn.init.normal_(self.dense.weight, std=START_STD / self.scale)
        nn.init.zeros_(self.dense.bias)

    def forward(self, vectors: Float[Tensor, "Q F"]) -> Float[Tensor, "Q out"]:
        return self.dense(vectors * self.scale)


class NextVisitHead(nn.Module):
    """A pooled vector to a logit for each code of the vocabulary: through the code vectors (tied), plus a bias a code.

    ``predicted`` tells which codes are asked about at all.
    """

    predicted: Tensor

    def __init__(self, config: BEHRTConfig) -> None:
        super().__init__()
        self.reading = _Reading(3 * config.hidden_size, config.embedding_size)
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))
        self.register_buffer("predicted", torch.ones(config.vocab_size, dtype=torch.bool))

    def forward(self, vectors: Float[Tensor, "Q F"], codes: Float[Tensor, "V W"]) -> Float[Tensor, "Q V"]:
        """Logits of each code's standing in the next visit."""
        return self.reading(vectors) @ codes.T + self.bias  # [Q,V]

    @torch.no_grad()
    def set_marginal(self, log_odds: Float[Tensor, " V"], predicted: Bool[Tensor, " V"]) -> None:
        """Start at each code's log odds of standing in a visit."""
        self.bias.copy_(log_odds)
        self.predicted.copy_(predicted)


class TimeToEventHead(nn.Module):
    """A pooled vector to log hazards a day of N codes over P pieces, of low rank (Steinberg et al. 2023, MOTOR).

    log λ[c, p] = bias[s, c, p] + ⟨M_p(vector), code_s(c)⟩, the rank being the length of both; s tells whether the
    record has had the code before (1) or not (0): a first occurrence and a recurrence are two tasks.
    """

    edges: Tensor
    codes: Tensor
    kinds: ClassVar[int] = 2

    def __init__(self, config: BEHRTConfig, n_codes: int, n_pieces: int, rank: int) -> None:
        super().__init__()
        self.reading = _Reading(3 * config.hidden_size, n_pieces * rank)
        self.code_embedding = nn.Parameter(torch.empty(self.kinds, n_codes, rank))
        self.bias = nn.Parameter(torch.zeros(self.kinds, n_codes, n_pieces))
        self.register_buffer("edges", torch.zeros(n_pieces))
        self.register_buffer("codes", torch.zeros(n_codes, dtype=torch.long))
        nn.init.normal_(self.code_embedding, std=1 / math.sqrt(rank))

    def forward(self, vectors: Float[Tensor, "Q F"], seen: Bool[Tensor, "Q N"]) -> Float[Tensor, "Q N P"]:
        """Log hazards a day from the moment of each vector on."""
        by_piece = self.reading(vectors).unflatten(1, (len(self.edges), -1))  # [Q,P,rank]
        both = torch.einsum("qpr,snr->qsnp", by_piece, self.code_embedding) + self.bias  # [Q,S,N,P]
        return torch.where(seen[..., None], both[:, 1], both[:, 0])

    def marginal(self, seen: Bool[Tensor, "Q N"]) -> Float[Tensor, "Q N P"]:
        """The biases alone."""
        return torch.where(seen[..., None], self.bias[1], self.bias[0])

    @torch.no_grad()
    def set_marginal(
        self, codes: Int[Tensor, " N"], edges: Float[Tensor, " P"], log_rate: Float[Tensor, "S N P"]
    ) -> None:
        """Which codes, where the pieces begin (days), and the marginal log rates that the biases start at."""
        self.codes.copy_(codes)
        self.edges.copy_(edges)
        self.bias.copy_(log_rate)

    @classmethod
    def like(cls, config: BEHRTConfig, state: Mapping[str, Tensor]) -> TimeToEventHead:
        """A head with the shapes of a saved one's tensors."""
        return cls(config, len(state["codes"]), len(state["edges"]), state["code_embedding"].shape[-1])


def heads_like(config: BEHRTConfig, tensors: Mapping[str, Tensor]) -> nn.ModuleDict:
    """The heads whose state was saved as ``name.tensor``."""
    makers = {
        "masked-values": lambda state: ValueHead(config),
        "next-visit": lambda state: NextVisitHead(config),
        "time-to-event": lambda state: TimeToEventHead.like(config, state),
    }
    heads = nn.ModuleDict()
    for name in sorted({key.split(".")[0] for key in tensors}):
        state = {key.removeprefix(f"{name}."): tensor for key, tensor in tensors.items() if key.startswith(f"{name}.")}
        heads[name] = makers[name](state)
        heads[name].load_state_dict(state)
    return heads
