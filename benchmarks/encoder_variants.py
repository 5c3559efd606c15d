"""Variants of the hierarchical encoder that `benchmarks/ablations.py` tries: what is pooled, and what a value says."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor, nn

from ehrsequencing.batches import Batch
from ehrsequencing.models import behrt, hierarchical
from ehrsequencing.models.configuration import BEHRTConfig
from ehrsequencing.models.hierarchical import AttentionPool, EncodedVisits, HierarchicalBEHRT, VisitEmbeddings
from ehrsequencing.models.pooling import Encoded
from ehrsequencing.models.states import pool

Change = Callable[[], Any]
"""A context in which encoders are made and read otherwise."""


@contextmanager
def unchanged() -> Iterator[None]:
    """The product's own."""
    yield


def swapped(owner: Any, name: str, other: Any) -> Change:
    """The change by which ``owner`` has ``other`` under ``name``."""

    @contextmanager
    def change() -> Iterator[None]:
        own = getattr(owner, name)
        setattr(owner, name, other)
        try:
            yield
        finally:
            setattr(owner, name, own)

    return change


def last_visit(record: EncodedVisits) -> Tensor:
    """Visit 0 and the last visit."""
    rows = torch.arange(len(record.seen))
    last = record.states[rows, record.seen.sum(dim=1) - 1]  # [B,H]
    return torch.cat([record.states[:, 0], last, last], dim=-1)


def mean_alone(record: EncodedVisits) -> Tensor:
    """The mean over visits in the place of all three parts."""
    width = record.states.shape[-1]
    return pool(record.states, record.seen)[:, width : 2 * width].repeat(1, 3)


@dataclass(frozen=True, eq=False)
class EncodedByAttention(EncodedVisits):
    """Visits among which a learned score chooses."""

    over: AttentionPool

    def pooled(self) -> Tensor:
        """Visit 0, the visits weighted by a softmax of a learned score, and their maximum."""
        plain = pool(self.states, self.seen)  # [B,3H]
        width = self.states.shape[-1]
        row = torch.arange(len(self.seen))[:, None].expand_as(self.seen)[self.seen]  # [S]
        states = self.states[self.seen]  # [S,H]
        weight = self.over.weights(states, row, len(self.seen))  # [S,heads]
        parts = (states.unflatten(-1, (self.over.heads, -1)) * weight[..., None]).flatten(1)  # [S,H]
        mixed = states.new_zeros(len(self.seen), width).index_add(0, row, parts)  # [B,H]
        return torch.cat([plain[:, :width], mixed, plain[:, 2 * width :]], dim=-1)


class AttentionPooled(HierarchicalBEHRT):
    """A learned pooling over visits in the place of their mean; it is learned by the record's summary."""

    def _build(self, config: BEHRTConfig) -> None:
        super()._build(config)
        self.record_pool = AttentionPool(config)

    def encoded(self, batch: Batch) -> Encoded:
        found = super().encoded(batch)
        own = {item.name: getattr(found, item.name) for item in fields(EncodedVisits)}
        return EncodedByAttention(**own, over=self.record_pool)


class DeltaEmbeddings(VisitEmbeddings):
    """A value beside what it was at first and the time before: two more vectors a code, scaled by the differences."""

    def __init__(self, config: BEHRTConfig) -> None:
        super().__init__(config)
        n, width = max(len(config.value_codes), 1), config.embedding_size
        self.since_first, self.since_previous = nn.Embedding(n, width), nn.Embedding(n, width)

    def value_term(self, batch: Batch, table: nn.Embedding) -> Tensor:
        first, previous = deltas(batch)
        term = super().value_term(batch, table)
        for delta, own in ((first, self.since_first), (previous, self.since_previous)):
            term = term + super().value_term(replace(batch, value=delta), own)
        return term


def deltas(batch: Batch) -> tuple[Tensor, Tensor]:
    """Each value less the first one of its code in the record, and less the one before; 0 where it is the first."""
    rows = torch.arange(len(batch))[:, None].expand_as(batch.code)
    flat = (rows * (int(batch.code.max()) + 1) + batch.code)[batch.has_value]  # [n] one number a record and code
    value = batch.value[batch.has_value]  # [n]
    order = flat.argsort(stable=True)
    key, own = flat[order], value[order]
    opens = torch.ones_like(key, dtype=torch.bool)
    opens[1:] = key[1:] != key[:-1]
    start = torch.where(opens, torch.arange(len(key)), 0).cummax(0).values if len(key) else key
    before = torch.where(opens, own, torch.cat([own[:1], own[:-1]]))
    found = []
    for other in (own[start], before):
        delta = torch.zeros_like(batch.value)
        sorted_back = torch.empty_like(own)
        sorted_back[order] = own - other
        delta[batch.has_value] = sorted_back
        found.append(delta)
    return found[0], found[1]


VARIANTS: dict[str, Change] = {
    "": unchanged,
    "last visit": swapped(EncodedVisits, "pooled", last_visit),
    "mean alone": swapped(EncodedVisits, "pooled", mean_alone),
    "attention over visits": swapped(hierarchical, "HierarchicalBEHRT", AttentionPooled),
    "value deltas": swapped(hierarchical, "VisitEmbeddings", DeltaEmbeddings),
    "no rotation": swapped(behrt, "rotate", lambda x, turn: x),
}
