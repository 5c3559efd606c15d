"""Runs a model over rows of a token store, in micro-batches of similar length, results in the order of the rows."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float, Float32, Float64, Int64
from torch import Tensor

from ehrsequencing.batches import Batch, collate, micro_batches
from ehrsequencing.config import TOKEN_BUDGET
from ehrsequencing.models.behrt_survival import BEHRTForSurvival
from ehrsequencing.tokens import TokenStore


def in_micro_batches(
    function: Callable[[Batch], Tensor], store: TokenStore, rows: Int64[np.ndarray, " n"], budget: int = TOKEN_BUDGET
) -> Float[Tensor, n * rest]:
    """``function`` of every row, first axis in the order of ``rows`` (each at most once); graphs are kept."""
    parts = micro_batches(store, rows, budget)
    outputs = torch.cat([function(collate(store, part)) for part in parts])  # [n, ...] sorted by length
    place = np.empty(len(rows), dtype=np.int64)
    place[np.argsort(rows, kind="stable")] = np.argsort(np.concatenate(parts), kind="stable")
    return outputs[torch.from_numpy(place)]


@torch.no_grad()
def encode(model: BEHRTForSurvival, store: TokenStore, rows: Int64[np.ndarray, " n"]) -> Float32[Tensor, "n F"]:
    """Pooled features [n, 3H] in eval mode: what the hazard head reads."""
    return _in_eval(model, lambda: in_micro_batches(model.features, store, rows))


@torch.no_grad()
def hazard_logits(
    model: BEHRTForSurvival, store: TokenStore, rows: Int64[np.ndarray, " n"]
) -> Float64[np.ndarray, "n K *R"]:
    """Hazard logits at prediction_time in eval mode, as float64 for the arithmetic of survival."""
    logits = _in_eval(model, lambda: in_micro_batches(model, store, rows))  # [n, 1, K, *R]
    return logits[:, 0].double().numpy()


def _in_eval(model: BEHRTForSurvival, run: Callable[[], Tensor]) -> Tensor:
    training = model.training
    model.eval()
    try:
        return run()
    finally:
        model.train(training)
