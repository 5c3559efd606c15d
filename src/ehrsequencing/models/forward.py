"""Runs a model over rows of a token store, in micro-batches of similar length, results in the order of the rows."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float, Float32, Float64, Int64
from torch import Tensor

from ehrsequencing.batches import Batch, VisitPlaces, collate, micro_batches
from ehrsequencing.device import at_work, compute, moved
from ehrsequencing.models.behrt_survival import BEHRTForSurvival
from ehrsequencing.models.pair_reader import read_pairs
from ehrsequencing.progress import tracked
from ehrsequencing.tokens import TokenStore

READING = "reading records"


def in_micro_batches(
    function: Callable[[Batch], Tensor],
    store: TokenStore,
    rows: Int64[np.ndarray, " n"],
    budget: int | None = None,
    title: str = "",
) -> Float[Tensor, n * rest]:
    """``function`` of every row, first axis in the order of ``rows`` (each at most once); graphs are kept.

    ``budget`` is in tokens a micro-batch; None is the device's own. With a ``title`` its progress is told under it.
    """  # fmt: skip
    parts = micro_batches(store, rows, budget or compute().token_budget)
    todo = tracked(parts, title, [float(store.lengths[part].sum()) for part in parts]) if title else parts
    outputs = torch.cat([function(collate(store, part)) for part in todo])  # [n, ...] sorted by length
    place = np.empty(len(rows), dtype=np.int64)
    place[np.argsort(rows, kind="stable")] = np.argsort(np.concatenate(parts), kind="stable")
    return outputs[_there(place, outputs)]


@torch.no_grad()
def encode(model: BEHRTForSurvival, store: TokenStore, rows: Int64[np.ndarray, " n"]) -> Float32[Tensor, "n F"]:
    """Pooled vectors [n, 3H] in eval mode: what of the hazard head's input the encoder makes."""
    return _in_eval(model, lambda: in_micro_batches(model.pooled, store, rows, title=READING))


def pairs_of(model: BEHRTForSurvival, store: TokenStore, rows: Int64[np.ndarray, " n"]) -> Float32[Tensor, "n P"]:
    """What the tokens of each row say of the model's pairs; P may be 0."""
    if not model.config.pairs:
        return torch.zeros(len(rows), 0)
    return in_micro_batches(lambda batch: read_pairs(batch, model.config.pairs), store, rows)


def visit_features(model: BEHRTForSurvival, visits: VisitPlaces, budget: int | None = None) -> Float[Tensor, "n F"]:
    """The pooled vectors of the visits, each window of their records encoded once; graphs are kept."""
    found, where = [], []
    for part in micro_batches(visits.tokens, np.unique(visits.window), budget or compute().token_budget):
        at = np.flatnonzero(np.isin(visits.window, part))
        order = np.argsort(part)
        local = order[np.searchsorted(part, visits.window[at], sorter=order)]
        pooled = model.features(collate(visits.tokens, part))  # [b,V,F]
        found.append(pooled[_there(local, pooled), _there(visits.visit[at], pooled)])
        where.append(at)
    together = torch.cat(found)
    return together[_there(np.argsort(np.concatenate(where)), together)]


def _there(index: Int64[np.ndarray, " n"], x: Tensor) -> Int64[Tensor, " n"]:
    return moved(torch.from_numpy(index), x.device)


@torch.no_grad()
def encode_visits(model: BEHRTForSurvival, visits: VisitPlaces) -> Float32[Tensor, "n F"]:
    """Pooled vectors of the visits in eval mode: what the hazard head reads."""
    return _in_eval(model, lambda: visit_features(model, visits))


@torch.no_grad()
def visit_logits(model: BEHRTForSurvival, visits: VisitPlaces) -> Float64[np.ndarray, "n K *R"]:
    """Hazard logits of the visits in eval mode, as float64 for the arithmetic of survival."""
    return _in_eval(model, lambda: model.hazards(visit_features(model, visits))).double().numpy()


@torch.no_grad()
def hazard_logits(
    model: BEHRTForSurvival, store: TokenStore, rows: Int64[np.ndarray, " n"]
) -> Float64[np.ndarray, "n K *R"]:
    """Hazard logits at prediction_time in eval mode, as float64 for the arithmetic of survival."""
    logits = _in_eval(model, lambda: in_micro_batches(model, store, rows, title=READING))  # [n, 1, K, *R]
    return logits[:, 0].double().numpy()


def _in_eval(model: BEHRTForSurvival, run: Callable[[], Tensor]) -> Tensor:
    """On the device that computes; the result, and the model, are back where they were."""
    training = model.training
    model.eval()
    try:
        with at_work(model, compute().device):
            return run().cpu()
    finally:
        model.train(training)
