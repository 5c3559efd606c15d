"""The deep part as a function of its tokens' content, and the contents that stand for an unknown record."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ehrsequencing.batches import Batch
from ehrsequencing.models.behrt import BEHRTEmbeddings
from ehrsequencing.models.behrt_survival import BEHRTForSurvival
from ehrsequencing.tokens import CLS, MASK, N_SPECIAL, PAD, TokenStore

BATCH_FIELDS = tuple(item.name for item in fields(Batch))


def content_of(embeddings: BEHRTEmbeddings, batch: Batch) -> Float[Tensor, "B L W"]:
    """What each token says: its code's vector and its value's term. When it was said (age, gap, visit, position) is not
    part of it."""
    vectors = embeddings.code_embedding(batch.code)  # [B,L,W]
    table = embeddings.value_embedding
    return vectors if table is None else vectors + embeddings.value_term(batch, table)


def is_content(batch: Batch) -> Bool[Tensor, "B L"]:
    """True at tokens of the record: neither [CLS] nor padding."""
    return batch.mask & (batch.code != CLS) & (batch.code != PAD)


@contextmanager
def replaced_content(model: BEHRTForSurvival, content: Float[Tensor, "B L W"]) -> Iterator[None]:
    """Within the block the encoder reads ``content`` in place of the codes' vectors; the model itself is not changed.

    Tokens of the batch must carry no values (their terms are in the content).
    """
    embeddings: BEHRTEmbeddings = model.behrt.embeddings
    embeddings.given_content = content
    try:
        yield
    finally:
        embeddings.given_content = None


@contextmanager
def reading(model: BEHRTForSurvival) -> Iterator[None]:
    """The model in eval mode (no dropout), and afterwards in the mode it was in."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


def deep_logits(model: BEHRTForSurvival, content: Float[Tensor, "B L W"], batch: Batch) -> Float[Tensor, "B K *R"]:
    """Hazard logits at prediction_time, or, with predictions at every visit, at the last visit of each record."""
    silent = replace(batch, value=torch.zeros_like(batch.value), has_value=torch.zeros_like(batch.has_value))
    with replaced_content(model, content):
        features = model.features(silent)  # [B,F] or [B,V,F]
    if features.ndim == 3:
        last = batch.visit.amax(dim=1)  # [B]
        features = features[torch.arange(len(last)), last]
    return model.hazard_head(features)[:, 0]


class Baseline(NamedTuple):
    """What stands for a code that is not known, and what a reader is told of it."""

    words: str
    vector: Callable[[BEHRTEmbeddings, TokenStore], Float[Tensor, " W"]]


def _mask(embeddings: BEHRTEmbeddings, store: TokenStore) -> Float[Tensor, " W"]:
    return embeddings.code_embedding.weight[MASK]


def _zero(embeddings: BEHRTEmbeddings, store: TokenStore) -> Float[Tensor, " W"]:
    return torch.zeros_like(embeddings.code_embedding.weight[MASK])


def _mean(embeddings: BEHRTEmbeddings, store: TokenStore) -> Float[Tensor, " W"]:
    codes = torch.from_numpy(store.code[store.code >= N_SPECIAL].astype("int64"))
    return embeddings.code_embedding.weight[codes].mean(dim=0)


BASELINES: Mapping[str, Baseline] = {
    "mask": Baseline("every code of the record unknown ([MASK]), its times kept", _mask),
    "zero": Baseline("every code's vector zero, its times kept", _zero),
    "mean": Baseline("every code the average code of these records, its times kept", _mean),
}
"""The first is used; the others are kept for comparison (docs/adr/0005)."""


@dataclass(frozen=True)
class DeepInput:
    """Records as captum takes them: content, the baseline's content, and the batch's tensors that stay as they are."""

    content: Float[Tensor, "B L W"]
    baseline: Float[Tensor, "B L W"]
    batch: Batch

    @classmethod
    @torch.no_grad()
    def of(cls, model: BEHRTForSurvival, batch: Batch, vector: Float[Tensor, " W"]) -> DeepInput:
        """[CLS] and padding are the same in content and baseline."""
        content = content_of(model.behrt.embeddings, batch)  # [B,L,W]
        return cls(content, torch.where(is_content(batch)[..., None], vector, content), batch)

    @property
    def beside(self) -> tuple[Tensor, ...]:
        """The batch's tensors, in the order of ``BATCH_FIELDS``."""
        return tuple(getattr(self.batch, name) for name in BATCH_FIELDS)
