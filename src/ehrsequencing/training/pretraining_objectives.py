"""The pretraining objectives, one entry each: what it needs of a step, its head, its loss on a micro-batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, huber_loss

from ehrsequencing.device import compute_on, constant, device_of, moved, on_host
from ehrsequencing.errors import EhrError
from ehrsequencing.models.piecewise import marginal_log_rates, piecewise_nll, quantile_edges
from ehrsequencing.models.pretraining import IGNORE, hits, selected
from ehrsequencing.models.pretraining_heads import NextVisitHead, SummaryHead, TimeToEventHead, ValueHead
from ehrsequencing.tokens import Tokenizer
from ehrsequencing.training.futures import (
    frequent_codes,
    next_codes,
    visit_log_odds,
    waits,
)
from ehrsequencing.training.pretraining_parts import Future, MicroBatch, Term, Training
from ehrsequencing.training.summaries import Summary, summarise

SUMMARY_WEIGHTS, VALUE_WEIGHT = (0.5, 4.0, 4.0), 2.0
"""Of squared errors of log counts, last and first recency, and of standardised values, beside presence in nats."""
FIT_ROWS = 5_000
"""Records at most from which the pieces and marginal rates of time-to-event are taken."""


Loss = Callable[[Training, nn.Module | None, MicroBatch], Term]


@dataclass(frozen=True)
class PretrainingObjective:
    """An objective as data.

    Attributes:
        future: whether it predicts what comes after a moment (then bidirectional records are cut there).
        pooled: whether it reads the record's pooled vector.
        named: whether it asks for codes by name, so that a task's own outcome is to be left out.
        make_head: its head, fitted to the training records' marginals; None where the encoder's own serves.
        loss: on a micro-batch: the mean, and over how many things.
        facts: what the record of the pretraining tells of it.
    """

    name: str
    why: str
    future: bool
    loss: Loss
    pooled: bool = False
    named: bool = False
    make_head: Callable[[Training, Tokenizer], nn.Module] | None = None
    facts: Callable[[nn.Module, Tokenizer], dict[str, Any]] = lambda head, tokenizer: {}


def _masked_codes(training: Training, head: nn.Module | None, part: MicroBatch) -> Term:
    """Cross-entropy of the code at each selected position; nats a position."""
    model = training.model
    places, truth = selected(part.targets != IGNORE, part.targets)  # [M], [M]
    if len(truth) == 0:
        return Term(torch.zeros(()), 0)
    device = device_of(model)
    with compute_on(device).autocast():
        logits = model.mlm_head(part.encoded.at(moved(places, device)))  # [M,V]
    figures, there = {}, moved(truth, device)
    if not torch.is_grad_enabled():
        common = int((truth == training.most_frequent).sum())
        figures = {"accuracy": hits(logits, there), "most_frequent_code": common}
    return Term(cross_entropy(logits.float(), there), len(truth), dict(figures))


def _masked_values(training: Training, head: nn.Module | None, part: MicroBatch) -> Term:
    """Huber loss of the standardised value at each selected position that carried one.

    The encoder does not see the value there, nor mostly the code; the head is told the code.
    """
    places, truth = selected((part.targets != IGNORE) & part.batch.has_value, part.batch.value)  # [M], [M]
    if len(truth) == 0:
        return Term(torch.zeros(()), 0)
    device = device_of(training.model)
    codes = training.model.behrt.embeddings.code_embedding(moved(part.targets.flatten()[places], device))  # [M,W]
    guess = cast(ValueHead, head)(part.encoded.at(moved(places, device)), codes)  # [M]
    median = huber_loss(torch.zeros_like(truth), truth, reduction="sum")
    return Term(huber_loss(guess, moved(truth, device)), len(truth), {"masked_values_median": float(median)})


def _next_visit(training: Training, head: nn.Module | None, part: MicroBatch) -> Term:
    """Binary cross-entropy over the vocabulary, of every visit that has a next one; nats a code that stands in it."""
    own, future = cast(NextVisitHead, head), cast(Future, part.future)
    truth = next_codes(future.store, future.moments, training.sizes.vocab_size)  # [Q,V]
    asked = np.flatnonzero(truth.any(axis=1))
    truth = truth[asked] & training.predicted
    if not truth.any():
        return Term(torch.zeros(()), 0)
    device = device_of(own)
    vectors = future.vectors[moved(torch.from_numpy(asked), device)]  # [Q,F]
    logits = own(vectors, training.model.behrt.embeddings.code_embedding.weight)  # [Q,V]
    wanted = moved(torch.from_numpy(truth), device).float()  # [Q,V]
    figures = (
        {} if torch.is_grad_enabled() else {"next_visit_marginal": float(_bce(own.bias.expand_as(logits), wanted, own))}
    )
    return Term(_bce(logits, wanted, own) / int(truth.sum()), int(truth.sum()), figures)


def _bce(logits: Float[Tensor, "Q V"], truth: Float[Tensor, "Q V"], head: NextVisitHead) -> Float[Tensor, ""]:
    weight = head.predicted.to(logits.dtype)  # [V]
    return binary_cross_entropy_with_logits(logits, truth, weight.expand_as(logits), reduction="sum")


def _time_to_event(training: Training, head: nn.Module | None, part: MicroBatch) -> Term:
    """Piecewise-exponential −log L of the time to each code's next occurrence; nats an occurrence that was seen."""
    own, future = cast(TimeToEventHead, head), cast(Future, part.future)
    found = waits(future.store, future.moments, on_host(own, "codes").numpy(), training.sizes.vocab_size)
    if not found.event.any():
        return Term(torch.zeros(()), 0)
    told = (found.duration, found.event, found.seen)
    duration, event, seen = (moved(torch.from_numpy(part), device_of(own)) for part in told)  # [Q,N]
    duration = duration.float()
    loss = piecewise_nll(own(future.vectors, seen), duration, event, own.edges).sum()
    figures = {}
    if not torch.is_grad_enabled():
        marginal = piecewise_nll(own.marginal(seen), duration, event, own.edges).sum()
        figures = {"time_to_event_biases": float(marginal)}
    count = int(found.event.sum())
    return Term(loss / count, count, figures)


def _record_summary(training: Training, head: nn.Module | None, part: MicroBatch) -> Term:
    """How well the pooled vector tells its record's summary: nats of presence and squared errors, a code present.

    The encoder reads the record with some of its codes hidden, and is asked about all of them.
    """
    own, vectors = cast(SummaryHead, head), cast(Tensor, part.vectors)
    slots = on_host(own, "slot"), on_host(own, "value_slot")
    truth = summarise(part.batch, part.days, slots[0], own.sizes[0], slots[1], own.sizes[1])
    codes, values = own(vectors)  # [B,4,N], [B,3,V]
    count = int(truth.codes[:, 0].sum())
    truth = Summary(*(moved(each, codes.device) for each in (truth.codes, truth.values, truth.valued)))
    if count == 0:
        return Term(torch.zeros(()), 0)
    biases = {} if torch.is_grad_enabled() else {"record_summary_biases": float(_misses(truth, *own.marginal()))}
    return Term(_misses(truth, codes, values) / count, count, biases)


def _misses(truth: Summary, codes: Float[Tensor, "B 4 N"], values: Float[Tensor, "B 3 V"]) -> Float[Tensor, ""]:
    """Summed loss of what is told of the records."""
    codes = codes.expand_as(truth.codes)  # [B,4,N]
    present = binary_cross_entropy_with_logits(codes[:, 0], truth.codes[:, 0], reduction="sum")
    weights = constant(SUMMARY_WEIGHTS, codes.device)
    figures = (weights[:, None] * (codes[:, 1:] - truth.codes[:, 1:]) ** 2).sum()
    return present + figures + VALUE_WEIGHT * (truth.valued[:, None] * (values - truth.values) ** 2).sum()


def _summary_head(training: Training, tokenizer: Tokenizer) -> SummaryHead:
    codes, _ = frequent_codes(
        training.store, training.config.summary_codes, training.predicted, training.rows, dated_only=False
    )
    if len(codes) == 0:
        raise EhrError("no code to sum up", "record-summary", "leave this objective out")
    valued = [code for code in tokenizer.value_codes if training.predicted[code]]
    head = SummaryHead(training.sizes, len(codes), len(valued))
    head.set_codes(torch.from_numpy(codes), torch.tensor(valued, dtype=torch.long))
    return head


def _refuse_single_visits(training: Training, name: str) -> None:
    if training.most_visits < 2:
        raise EhrError("no record has a second visit to predict", name, "leave this objective out")


def _value_head(training: Training, tokenizer: Tokenizer) -> ValueHead:
    if not training.has_values:
        raise EhrError("no value to guess in the records", "masked-values", "leave this objective out")
    return ValueHead(training.sizes)


def _next_visit_head(training: Training, tokenizer: Tokenizer) -> NextVisitHead:
    _refuse_single_visits(training, "next-visit")
    head = NextVisitHead(training.sizes)
    log_odds = visit_log_odds(training.store, training.sizes.vocab_size, training.rows)
    head.set_marginal(torch.from_numpy(log_odds).float(), torch.from_numpy(training.predicted))
    return head


def _time_to_event_head(training: Training, tokenizer: Tokenizer) -> TimeToEventHead:
    _refuse_single_visits(training, "time-to-event")
    config = training.config
    codes, _ = frequent_codes(training.store, config.n_codes, training.predicted, training.rows)
    if len(codes) == 0:
        raise EhrError("no dated code to predict", "time-to-event", "leave this objective out, or exclude fewer codes")
    generator = np.random.default_rng(training.seed)
    rows = training.rows[np.sort(generator.permutation(len(training.rows))[:FIT_ROWS])]
    store = training.store.take(rows)
    found = waits(store, training.moments(store, generator), codes, training.sizes.vocab_size)
    edges = quantile_edges(found.duration[found.event], config.n_pieces)
    head = TimeToEventHead(training.sizes, len(codes), len(edges), config.rank)
    rates = marginal_log_rates(found.duration, found.event, found.seen.astype(np.int64), head.kinds, edges)
    head.set_marginal(torch.from_numpy(codes), torch.from_numpy(edges).float(), torch.from_numpy(rates).float())
    return head


def _time_to_event_facts(head: nn.Module, tokenizer: Tokenizer) -> dict[str, Any]:
    own = cast(TimeToEventHead, head)
    return {
        "codes": [tokenizer.codes[code] for code in own.codes.tolist()],
        "pieces_begin_days": [round(edge, 4) for edge in own.edges.tolist()],
    }


def _value_facts(head: nn.Module, tokenizer: Tokenizer) -> dict[str, Any]:
    return {"codes_with_values": len(tokenizer.value_codes)}


OBJECTIVES: Mapping[str, PretrainingObjective] = {
    entry.name: entry
    for entry in (
        PretrainingObjective(
            "masked-codes",
            "guess hidden codes from those around them (Devlin et al. 2019): what goes together",
            future=False,
            loss=_masked_codes,
        ),
        PretrainingObjective(
            "masked-values",
            "guess hidden standardised values, told their codes: how ill, not only with what",
            future=False,
            loss=_masked_values,
            make_head=_value_head,
            facts=_value_facts,
        ),
        PretrainingObjective(
            "next-visit",
            "predict which codes the next visit holds: what comes next, whenever it comes",
            future=True,
            named=True,
            loss=_next_visit,
            make_head=_next_visit_head,
        ),
        PretrainingObjective(
            "time-to-event",
            "predict the time to the next occurrence of each frequent code (Steinberg et al. 2023, MOTOR): what comes, "
            "and when, as the tasks ask",
            future=True,
            named=True,
            loss=_time_to_event,
            make_head=_time_to_event_head,
            facts=_time_to_event_facts,
        ),
        PretrainingObjective(
            "record-summary",
            "tell from the pooled vector which codes the record holds, how often and how recently first and last, and "
            "how values run: what a statistician would ask of it lies ready for a linear head",
            future=False,
            pooled=True,
            named=True,
            loss=_record_summary,
            make_head=_summary_head,
        ),
    )
}
