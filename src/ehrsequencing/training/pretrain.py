"""Pretrains an encoder on unlabelled records by masked codes, and says how much it learned."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from ehrsequencing.batches import collate, cut_at_random, micro_batches
from ehrsequencing.config import TOKEN_BUDGET, ModelConfig, PretrainConfig
from ehrsequencing.errors import EhrError
from ehrsequencing.models.behrt import BEHRTConfig
from ehrsequencing.models.pretraining import BEHRTForMaskedLM, mask_tokens
from ehrsequencing.models.strategies import FootprintAudit
from ehrsequencing.tokens import N_SPECIAL, Tokenizer, TokenStore
from ehrsequencing.training.loop import Epoch, Progress, Schedule, silent, train
from ehrsequencing.training.resume import Resume, Snapshot, digest_of

VALIDATION_SEED = 7
"""Validation masks are drawn from this seed at every epoch, so that epochs are compared on the same positions."""


@dataclass
class Pretrained:
    """A pretrained model and the record of how it came about (JSON-able)."""

    model: BEHRTForMaskedLM
    record: dict[str, Any]


class MaskedCodes:
    """The masked-code objective: random cuts, fresh masks every step, loss a selected position.

    Under the block-causal mask nothing is cut: every visit is already guessed as if its record ended there.
    """

    def __init__(
        self, model: BEHRTForMaskedLM, store: TokenStore, train_rows: Int64[np.ndarray, " n"],
        valid_rows: Int64[np.ndarray, " m"], config: PretrainConfig, seed: int,
    ) -> None:  # fmt: skip
        self.model, self.store, self.config = model, store, config
        self.train_rows, self.valid_rows = train_rows, valid_rows
        self.n_rows = len(train_rows)
        self.vocab_size = model.config.vocab_size
        self.cuts, self.masks = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
        counts = np.bincount(store.take(train_rows).code, minlength=self.vocab_size)[N_SPECIAL:]
        self.most_frequent = N_SPECIAL + int(counts.argmax())

    def loss(self, rows: Int64[np.ndarray, " b"]) -> Float[Tensor, ""]:
        """Mean cross-entropy over all selected positions of the step."""
        own = self.train_rows[rows]
        causal = self.model.config.attention == "block_causal"
        cut = self.store.take(own) if causal else cut_at_random(self.store, own, self.cuts, self.config.cut_fraction)
        total, count = torch.zeros(()), 0
        for part in micro_batches(cut, np.arange(len(cut)), TOKEN_BUDGET):
            masked, targets = mask_tokens(collate(cut, part), self.vocab_size, self.masks, self.config.mask_fraction)
            out = self.model(masked, targets)
            total, count = total + out.loss * out.n_selected, count + out.n_selected
        return total / max(count, 1)

    def fingerprint(self) -> str:
        """Of the records, their division, and the settings."""
        rows = [self.train_rows, self.valid_rows]
        return digest_of([self.store.fingerprint, *rows, self.config.model_dump(mode="json"), self.vocab_size])

    def state(self) -> Snapshot:
        """The generators of cuts and masks."""
        return Snapshot({"masks": self.masks.get_state()}, {"cuts": self.cuts.bit_generator.state})

    def restore(self, state: Snapshot) -> None:
        """Draw on from where ``state`` was taken."""
        self.masks.set_state(state.tensors["masks"])
        self.cuts.bit_generator.state = state.facts["cuts"]

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Loss and accuracy on the validation subjects' whole records, and the rate of always guessing one code."""
        masks = torch.Generator().manual_seed(VALIDATION_SEED)
        loss, correct, majority, count = 0.0, 0, 0, 0
        for part in micro_batches(self.store, self.valid_rows, TOKEN_BUDGET):
            batch = collate(self.store, part)
            masked, targets = mask_tokens(batch, self.vocab_size, masks, self.config.mask_fraction)
            out = self.model(masked, targets)
            loss, correct, count = (
                loss + float(out.loss) * out.n_selected,
                correct + out.n_correct,
                count + out.n_selected,
            )
            majority += int((targets == self.most_frequent).sum())
        n = max(count, 1)
        return {
            "validation_loss": loss / n,
            "accuracy": correct / n,
            "most_frequent_code": majority / n,
            "score": -loss / n,
        }


def pretrain(
    store: TokenStore,
    tokenizer: Tokenizer,
    config: PretrainConfig,
    size: ModelConfig,
    *,
    seed: int = 0,
    progress: Progress = silent,
    resume: Resume | None = None,
) -> Pretrained:
    """Masked-code pretraining on the records of ``store``, all of them training subjects' own.

    A share of the subjects is kept for validation; the epoch with the lowest validation loss is kept. ``resume`` says
    where the state is saved as it goes, and taken up again after a killed run.

    Raises:
        EhrError: fewer than two records with a code to guess (exit 11).
    """
    usable = np.flatnonzero(store.lengths > 1)
    subject = store.subject_id[usable]  # a subject's windows stay together
    if len(np.unique(subject)) < 2 or tokenizer.vocab_size <= N_SPECIAL:
        raise EhrError(
            f"only {len(np.unique(subject))} records with {tokenizer.vocab_size - N_SPECIAL} known codes to learn from",
            "pretraining records",
            "lower tokens.min_subjects or bring more records",
        )
    torch.manual_seed(seed)
    model = BEHRTForMaskedLM(
        BEHRTConfig.of_size(
            size.size,
            tokenizer.vocab_size,
            value_codes=tokenizer.value_codes,
            dropout=size.dropout,
            attention=size.attention,
        )
    )
    order = np.random.default_rng(seed).permutation(np.unique(subject))
    validates = np.isin(subject, order[: max(1, round(config.validation_fraction * len(order)))])
    objective = MaskedCodes(model, store, usable[~validates], usable[validates], config, seed)
    schedule = Schedule(config.epochs, config.batch_size, config.optimizer, None, seed)
    history = train(model, objective, schedule, title="pretraining", progress=progress, audit=FootprintAudit(model),
                    resume=resume)  # fmt: skip
    model.eval()
    return Pretrained(model, _record(history, objective, store, config, seed))


def _record(
    history: list[Epoch], objective: MaskedCodes, store: TokenStore, config: PretrainConfig, seed: int
) -> dict[str, Any]:
    best = next(epoch for epoch in history if epoch.best)
    return {
        "objective": "masked codes",
        "attention": objective.model.config.attention,
        "subjects": len(np.unique(store.subject_id)),
        "validation_subjects": len(np.unique(store.subject_id[objective.valid_rows])),
        "tokens": int(store.offsets[-1]),
        "tokens_fingerprint": store.fingerprint,
        "settings": config.model_dump(mode="json"),
        "seed": seed,
        "seconds": sum(epoch.seconds for epoch in history),
        **{name: best.metrics[name] for name in ("validation_loss", "accuracy", "most_frequent_code")},
        "history": [epoch.to_dict() for epoch in history],
    }
