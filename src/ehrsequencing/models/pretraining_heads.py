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


class SummaryHead(nn.Module):
    """A pooled vector to the summary of its record: of N codes four figures each, of V codes with values three each
    (``training.summaries`` names them).

    Linear, so that what it reads lies in the pooled vector as a linear head of hazards can read it, too.
    """

    slot: Tensor
    value_slot: Tensor

    def __init__(self, config: BEHRTConfig, n_codes: int, n_values: int) -> None:
        super().__init__()
        self.sizes = (n_codes, n_values)
        self.norm = nn.LayerNorm(3 * config.hidden_size)
        self.dense = nn.Linear(3 * config.hidden_size, 4 * n_codes + 3 * n_values)
        self.register_buffer("slot", torch.full((config.vocab_size,), -1, dtype=torch.long))
        self.register_buffer("value_slot", torch.full((config.vocab_size,), -1, dtype=torch.long))

    def forward(self, vectors: Float[Tensor, "B F"]) -> tuple[Float[Tensor, "B 4 N"], Float[Tensor, "B 3 V"]]:
        """Log odds of each code's presence with its count and recencies, and what is said of values."""
        return self._parts(self.dense(self.norm(vectors)))

    def marginal(self) -> tuple[Float[Tensor, "1 4 N"], Float[Tensor, "1 3 V"]]:
        """The biases alone."""
        return self._parts(self.dense.bias[None])

    def _parts(self, out: Float[Tensor, "B out"]) -> tuple[Float[Tensor, "B 4 N"], Float[Tensor, "B 3 V"]]:
        n, v = self.sizes
        return out[:, : 4 * n].unflatten(1, (4, n)), out[:, 4 * n :].unflatten(1, (3, v))

    @torch.no_grad()
    def set_codes(self, codes: Int[Tensor, " N"], value_codes: Int[Tensor, " V"]) -> None:
        """Which ids are asked about, and which of their values."""
        self.slot[codes] = torch.arange(len(codes))
        self.value_slot[value_codes] = torch.arange(len(value_codes))

    @classmethod
    def like(cls, config: BEHRTConfig, state: Mapping[str, Tensor]) -> SummaryHead:
        """A head with the shapes of a saved one's tensors."""
        return cls(config, int(state["slot"].max()) + 1, int(state["value_slot"].max()) + 1)


def heads_like(config: BEHRTConfig, tensors: Mapping[str, Tensor]) -> nn.ModuleDict:
    """The heads whose state was saved as ``name.tensor``."""
    makers = {
        "masked-values": lambda state: ValueHead(config),
        "next-visit": lambda state: NextVisitHead(config),
        "record-summary": lambda state: SummaryHead.like(config, state),
        "time-to-event": lambda state: TimeToEventHead.like(config, state),
    }
    heads = nn.ModuleDict()
    for name in sorted({key.split(".")[0] for key in tensors}):
        state = {key.removeprefix(f"{name}."): tensor for key, tensor in tensors.items() if key.startswith(f"{name}.")}
        heads[name] = makers[name](state)
        heads[name].load_state_dict(state)
    return heads
