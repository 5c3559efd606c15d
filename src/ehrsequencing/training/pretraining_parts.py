"""What pretraining objectives are handed and hand back: whose records, a micro-batch after the encoder, terms, sums."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import cast

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Int64
from torch import Tensor

from ehrsequencing.batches import Batch
from ehrsequencing.config import PretrainConfig
from ehrsequencing.models.configuration import BEHRTConfig
from ehrsequencing.models.pooling import Encoded
from ehrsequencing.models.pretraining import BEHRTForMaskedLM
from ehrsequencing.tokens import N_SPECIAL, UNK, Tokenizer, TokenStore
from ehrsequencing.training.futures import Moments, one_moment_a_row, several_moments


@dataclass(frozen=True, eq=False)
class Training:
    """What heads are made from: the training subjects' own records, how they are coded, and the settings.

    Attributes:
        predicted: which ids may be asked for by name: no special token, none of the excluded codes.
        rows: of ``store``; the others are no training subjects'.
    """

    model: BEHRTForMaskedLM
    store: TokenStore
    config: PretrainConfig
    seed: int
    predicted: Bool[np.ndarray, " V"]
    most_frequent: int
    rows: Int64[np.ndarray, " m"]

    @classmethod
    def of(
        cls,
        model: BEHRTForMaskedLM,
        store: TokenStore,
        tokenizer: Tokenizer,
        config: PretrainConfig,
        seed: int,
        rows: Int64[np.ndarray, " m"] | None = None,
    ) -> Training:
        """Of the given rows of ``store``; None is all of them."""
        vocab = model.config.vocab_size
        rows = np.arange(len(store)) if rows is None else rows
        counts = store.code_counts(vocab, rows)[N_SPECIAL:]
        predicted = np.arange(vocab) >= N_SPECIAL
        excluded = excluded_ids(tokenizer, config.exclude_codes)
        predicted[excluded] = False
        return cls(model, store, config, seed, predicted, N_SPECIAL + int(counts.argmax()), rows)

    @property
    def sizes(self) -> BEHRTConfig:
        """Of the encoder."""
        return cast(BEHRTConfig, self.model.config)

    @property
    def causal(self) -> bool:
        """Whether the encoder reads under the block-causal mask."""
        return bool(self.sizes.attention == "block_causal")

    @property
    def most_visits(self) -> int:
        """Of one record."""
        groups = map(self.store.take, self.store.groups(self.rows))
        return max((int(own.visit.max(initial=0)) for own in groups), default=0)

    @property
    def has_values(self) -> bool:
        """Whether any token carries a value."""
        return any(np.isfinite(own.value).any() for own in map(self.store.take, self.store.groups(self.rows)))

    def moments(self, store: TokenStore, generator: np.random.Generator) -> Moments:
        """After which visits the future is predicted: several of a record, or the one at which it is cut."""
        if self.causal:
            return several_moments(store, generator, self.config.visits_per_record)
        return one_moment_a_row(store, generator)


def excluded_ids(tokenizer: Tokenizer, codes: tuple[str, ...]) -> list[int]:
    """The ids that the excluded codes are read as: their own, or that of the ancestor a rare code falls back to."""
    ids = {tokenizer.encode(code) for code in codes}
    return sorted(ids - {UNK})


@dataclass(frozen=True, eq=False)
class Future:
    """Q moments in the whole rows of a store, and the encoder's pooled vector of what is known at each."""

    store: TokenStore
    moments: Moments
    vectors: Float[Tensor, "Q F"]


@dataclass(frozen=True, eq=False)
class MicroBatch:
    """One micro-batch after the encoder; what is not of the encoder is on the host.

    Attributes:
        batch: the records as they are before masking.
        targets: the codes to guess, IGNORE elsewhere.
        encoded: the records as the encoder read them masked.
        days: before prediction_time (the cut), of every token; infinite where it has no time.
        vectors: the pooled vector of each record (block-causal: of its last visit), where an objective asks for it.
        future: where some objective predicts it.
    """

    batch: Batch
    targets: Int[Tensor, "B L"]
    encoded: Encoded
    days: Float[Tensor, "B L"]
    vectors: Float[Tensor, "B F"] | None = None
    future: Future | None = None


@dataclass
class Term:
    """A mean loss over ``count`` things guessed, and sums over them of figures for people."""

    mean: Tensor
    count: int
    figures: dict[str, float] = field(default_factory=dict)


@dataclass
class Sum:
    """Terms of several micro-batches together."""

    total: Tensor = field(default_factory=lambda: torch.zeros(()))
    count: int = 0
    figures: dict[str, float] = field(default_factory=dict)

    def add(self, term: Term) -> None:
        """Join a micro-batch; in double precision where nothing is learned from it."""
        mean = term.mean if torch.is_grad_enabled() else term.mean.double()
        self.total, self.count = self.total + mean * term.count, self.count + term.count
        for name, value in term.figures.items():
            self.figures[name] = self.figures.get(name, 0.0) + value

    @property
    def mean(self) -> Tensor:
        """Over all of them; 0, without gradient, where there was none."""
        return self.total / max(self.count, 1)
