"""Pretrains an encoder on unlabelled records by a mix of objectives, and says how much it learned."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from ehrsequencing.batches import Batch, collate, cut_at_random, days_ago, micro_batches
from ehrsequencing.config import ModelConfig, PretrainConfig
from ehrsequencing.device import compute, device_of, moved
from ehrsequencing.errors import EhrError
from ehrsequencing.models.behrt import BEHRTConfig
from ehrsequencing.models.code_vectors import CodeVectors, start_from_vectors
from ehrsequencing.models.footprint import FootprintAudit
from ehrsequencing.models.pooling import Encoded
from ehrsequencing.models.pretraining import IGNORE, BEHRTForMaskedLM, mask_tokens
from ehrsequencing.models.strategies import hold_still
from ehrsequencing.tokens import N_SPECIAL, Tokenizer, TokenStore
from ehrsequencing.training.futures import Moments, cut_after
from ehrsequencing.training.loop import Epoch, Progress, Schedule, silent, train
from ehrsequencing.training.pretraining_objectives import OBJECTIVES
from ehrsequencing.training.pretraining_parts import Future, MicroBatch, Sum, Training, excluded_ids
from ehrsequencing.training.resume import Resume, Snapshot, digest_of

VALIDATION_SEED = 7
"""Validation masks are drawn from this seed at every epoch, so that epochs are compared on the same positions."""


@dataclass
class Pretrained:
    """A pretrained model, the heads of its objectives, and the record of how it came about (JSON-able)."""

    model: BEHRTForMaskedLM
    record: dict[str, Any]
    heads: nn.ModuleDict


class _Learner(nn.Module):
    """Encoder and heads as the one module that the loop trains; what no objective uses is held still."""

    def __init__(self, model: BEHRTForMaskedLM, heads: nn.ModuleDict, names: Collection[str]) -> None:
        super().__init__()
        self.model, self.heads = model, heads
        if "masked-codes" not in names:
            hold_still(model.mlm_head, but=model.behrt)


class Mixture:
    """The weighted sum of any objectives of the table, over one encoder pass a micro-batch.

    Of a step, each objective's loss is a mean over the things it guesses (selected positions, occurrences), whichever
    micro-batch they are in. Bidirectional records are cut: where an objective predicts the future each after a random
    visit, otherwise a share of them at a random time. Under the block-causal mask nothing is cut: every visit is read
    as if its record ended there.
    """

    def __init__(
        self,
        training: Training,
        heads: nn.ModuleDict,
        train_rows: Int64[np.ndarray, " n"],
        store: TokenStore,
        valid_rows: Int64[np.ndarray, " m"],
    ) -> None:
        self.training, self.heads, self.store = training, heads, store
        self.model, self.config = training.model, training.config
        self.train_rows, self.valid_rows = train_rows, valid_rows
        self.n_rows = len(train_rows)
        self.weights: dict[str, float] = {
            name: float(weight) for name, weight in sorted(self.config.objectives.items())
        }
        self.future = any(OBJECTIVES[name].future for name in self.weights)
        self.pooled = any(OBJECTIVES[name].pooled for name in self.weights)
        self.masked = any(not OBJECTIVES[name].future for name in self.weights)
        self.cuts = np.random.default_rng(training.seed)
        self.masks = torch.Generator().manual_seed(training.seed)
        self.guessed = dict.fromkeys(self.weights, 0)

    def loss(self, rows: Int64[np.ndarray, " b"]) -> Float[Tensor, ""]:
        """The weighted sum of the objectives' means over the step."""
        terms = self._terms(self.store.take(self.train_rows[rows]), self.cuts, self.masks, self.config.cut_fraction)
        for name, term in terms.items():
            self.guessed[name] += term.count
        found = [_weighted(term.mean, self.weights[name]) for name, term in terms.items()]
        device = device_of(self.model)
        return found[0] if len(found) == 1 else torch.stack([moved(term, device) for term in found]).sum()

    def _terms(
        self, whole: TokenStore, cuts: np.random.Generator, masks: torch.Generator, cut_fraction: float
    ) -> dict[str, Sum]:
        """Every objective's sums over the given records."""
        read, moments = self._read(whole, cuts, cut_fraction)
        terms: dict[str, Sum] = {name: Sum() for name in self.weights}
        for rows in micro_batches(read, np.arange(len(read)), compute().token_budget):
            part = self._encoded(whole, read, moments, rows, masks)
            if part is None:
                continue
            for name, together in terms.items():
                head = self.heads[name] if name in self.heads else None  # noqa: SIM401
                found = OBJECTIVES[name].loss(self.training, head, part)
                if found.count:
                    together.add(found)
        return terms

    def _read(
        self, whole: TokenStore, cuts: np.random.Generator, cut_fraction: float
    ) -> tuple[TokenStore, Moments | None]:
        """The records as they are read, and the moments after which the future is predicted."""
        moments = self.training.moments(whole, cuts) if self.future else None
        if self.training.causal:
            return whole, moments
        if moments is not None:
            return cut_after(whole, moments), moments
        every = np.arange(len(whole))
        return (cut_at_random(whole, every, cuts, cut_fraction) if cut_fraction else whole), None

    def _encoded(
        self,
        whole: TokenStore,
        read: TokenStore,
        moments: Moments | None,
        rows: Int64[np.ndarray, " b"],
        masks: torch.Generator,
    ) -> MicroBatch | None:
        """A micro-batch through the encoder; None where there is nothing in it to guess."""
        batch = collate(read, rows)
        shown, targets = batch, torch.full_like(batch.code, IGNORE)
        if self.masked:
            shown, targets = mask_tokens(batch, self.model.config.vocab_size, masks, self.config.mask_fraction)
        local = np.full(len(read), -1)
        local[rows] = np.arange(len(rows))
        own = None if moments is None else moments.take(np.flatnonzero(local[moments.row] >= 0))
        if not bool((targets != IGNORE).any()) and not own and not self.pooled:
            return None
        encoded = self.model.behrt.encoded(shown)
        days = days_ago(read, rows)  # [B,L]
        pooled = self._pooled(encoded, batch) if self.pooled else None  # [B,F]
        if own is None:
            return MicroBatch(batch, targets, encoded, days, pooled)
        device = device_of(self.model)
        at = moved(torch.from_numpy(local[own.row]), device)  # [Q]
        if self.training.causal:
            vectors = encoded.pooled_visits()[at, moved(torch.from_numpy(own.visit), device)]  # [Q,F]
        else:
            vectors = encoded.pooled()[at]  # [Q,F]
        return MicroBatch(batch, targets, encoded, days, pooled, Future(whole, own, vectors))

    def _pooled(self, encoded: Encoded, batch: Batch) -> Float[Tensor, "B F"]:
        """The vector of each record as fine-tuning reads it; under the block-causal mask that of its last visit."""
        if not self.training.causal:
            return encoded.pooled()
        visits = encoded.pooled_visits()  # [B,V,F]
        rows = torch.arange(len(batch), device=visits.device)
        return visits[rows, moved(batch.visit.amax(dim=1), visits.device)]  # [B,F]

    def idle(self) -> dict[str, str]:
        """Heads whose objective has not found a single thing to guess so far."""
        return {f"heads.{name}.": "nothing to guess in the records" for name, n in self.guessed.items() if n == 0}

    def fingerprint(self) -> str:
        """Of the records, their division, and the settings."""
        rows = [self.train_rows, self.valid_rows]
        vocab_size = self.model.config.vocab_size
        return digest_of([self.store.fingerprint, *rows, self.config.model_dump(mode="json"), vocab_size])

    def state(self) -> Snapshot:
        """The generators of cuts and masks, and how much was guessed."""
        facts = {"cuts": self.cuts.bit_generator.state, "guessed": self.guessed}
        return Snapshot({"masks": self.masks.get_state()}, facts)

    def restore(self, state: Snapshot) -> None:
        """Draw on from where ``state`` was taken."""
        self.masks.set_state(state.tensors["masks"])
        self.cuts.bit_generator.state = state.facts["cuts"]
        self.guessed = dict(state.facts["guessed"])

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Each objective's mean loss on the validation subjects, and what guessing without a model would give; of one
        with nothing to guess there, no figure.

        Masks and cuts are the same at every epoch; where no objective predicts the future, records are read whole.
        """
        masks, cuts = torch.Generator().manual_seed(VALIDATION_SEED), np.random.default_rng(VALIDATION_SEED)
        terms = self._terms(self.store.take(self.valid_rows), cuts, masks, 0.0)
        losses = {name: float(term.mean) for name, term in terms.items() if term.count}
        loss = sum(self.weights[name] * value for name, value in losses.items())
        figures = {
            figure: value / max(term.count, 1) for term in terms.values() for figure, value in term.figures.items()
        }
        alone = list(self.weights) == ["masked-codes"]
        named = {} if alone else {f"{name.replace('-', '_')}_loss": value for name, value in losses.items()}
        return {"validation_loss": loss, **named, **figures, "score": -loss}


def _weighted(loss: Tensor, weight: float) -> Tensor:
    return loss if weight == 1 else loss * weight


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
    """Pretraining on the records of ``store``, all of them training subjects' own.

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
            architecture=size.architecture,
        )
    )
    vectors = _given_vectors(model, tokenizer, store, size.code_vectors)
    order = np.random.default_rng(seed).permutation(np.unique(subject))
    n_validate = min(max(1, round(config.validation_fraction * len(order))), config.validation_subjects)
    validates = np.isin(subject, order[:n_validate])
    train_rows = usable[~validates]
    training = Training.of(model, store, tokenizer, config, seed, train_rows)
    makers = {name: OBJECTIVES[name].make_head for name in sorted(config.objectives)}
    heads = nn.ModuleDict({name: make(training, tokenizer) for name, make in makers.items() if make is not None})
    objective = Mixture(training, heads, train_rows, store, usable[validates])
    learner = _Learner(model, heads, config.objectives)
    schedule = Schedule(config.epochs, config.batch_size, config.optimizer, None, seed, max_steps=config.max_steps)
    audit = FootprintAudit(learner, excused=objective.idle)
    history = train(learner, objective, schedule, title="pretraining", progress=progress, audit=audit, resume=resume,
                    device=compute().device)  # fmt: skip
    learner.eval()
    notes = {"notes": audit.notes} if audit.notes else {}
    return Pretrained(
        model, _record(history, schedule.steps(len(train_rows)), objective, store, tokenizer) | vectors | notes, heads
    )


def _given_vectors(
    model: BEHRTForMaskedLM, tokenizer: Tokenizer, store: TokenStore, file: str | None
) -> dict[str, Any]:
    """Start code embeddings from the file's vectors, where one is named; what the record tells of it."""
    if file is None:
        return {}
    given = CodeVectors.read(file)
    covered = start_from_vectors(model.behrt, tokenizer, store, given)
    return {"code_vectors": {"file": Path(file).name, "digest": digest_of([*given.codes, given.vectors]), **covered}}


def _record(
    history: list[Epoch], steps: int, objective: Mixture, store: TokenStore, tokenizer: Tokenizer
) -> dict[str, Any]:
    best = next(epoch for epoch in history if epoch.best)
    return {
        "objective": " + ".join(name.replace("-", " ") for name in objective.weights),
        "objectives": _told(objective, tokenizer),
        "architecture": objective.model.config.architecture,
        "attention": objective.model.config.attention,
        "records_of": "training subjects only",
        "subjects": len(np.unique(store.subject_id)),
        "validation_subjects": len(np.unique(store.subject_id[objective.valid_rows])),
        "tokens": int(store.offsets[-1]),
        "tokens_fingerprint": store.fingerprint,
        "settings": objective.config.model_dump(mode="json"),
        "seed": objective.training.seed,
        "steps": steps,
        "seconds": sum(epoch.seconds for epoch in history),
        **{name: value for name, value in best.metrics.items() if name != "score"},
        "history": [epoch.to_dict() for epoch in history],
    }


def _told(objective: Mixture, tokenizer: Tokenizer) -> dict[str, Any]:
    """Of each objective its weight, what it predicts, and the codes it was kept from."""
    told: dict[str, Any] = {}
    for name, weight in objective.weights.items():
        facts = OBJECTIVES[name].facts(objective.heads[name], tokenizer) if name in objective.heads else {}
        ids = excluded_ids(tokenizer, objective.config.exclude_codes)
        excluded = {"never_predicted": [tokenizer.codes[code] for code in ids]} if OBJECTIVES[name].named else {}
        told[name] = {"weight": weight, **facts, **excluded}
    return told
