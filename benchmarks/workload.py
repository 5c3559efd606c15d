"""What the benchmarks of training steps share: records, FLOPs of the useful tokens, the machine's own rate."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from ehrsequencing.batches import Targets
from ehrsequencing.tokens import CLS, N_SPECIAL, TokenStore

SEED, BATCH, LONGEST, N_BINS = 0, 32, 512, 20
MEDIAN, P99, NORMAL_99 = 60, 483, 2.3263
"""Tokens of a record, log-normal."""
TOKENS_A_VISIT, DAYS_A_VISIT, VALUED = 6, 60.0, 5
"""One code in VALUED carries values."""


def lengths(n: int, uniform: bool = False) -> np.ndarray:
    """Tokens of n records: log-normal up to LONGEST, or all LONGEST."""
    if uniform:
        return np.full(n, LONGEST)
    draw = np.random.default_rng(SEED).normal(size=n)
    return np.clip(np.round(MEDIAN * np.exp(math.log(P99 / MEDIAN) / NORMAL_99 * draw)), 4, LONGEST).astype(np.int64)


def records(length: np.ndarray, n_codes: int) -> TokenStore:
    """Random records of these lengths: codes of uneven frequency, six tokens a visit, some values."""
    rng = np.random.default_rng(SEED)
    offsets = np.append(0, np.cumsum(length)).astype(np.int64)
    n, first = offsets[-1], offsets[:-1]
    inside = np.arange(n) - np.repeat(first, length)
    cls = inside == 0
    code = N_SPECIAL + np.floor(n_codes * rng.random(n) ** 3).astype(np.int32)
    opens = ((rng.random(n) < 1 / TOKENS_A_VISIT) | (inside == 1)) & ~cls
    visits = np.cumsum(opens)
    leads = np.maximum.accumulate(np.where(opens | cls, np.arange(n), 0))
    ago = (np.repeat(length, length) - inside) * np.float32(DAYS_A_VISIT / TOKENS_A_VISIT)
    return TokenStore(
        code=np.where(cls, CLS, code).astype(np.int32),
        value=np.where((code % VALUED == 0) & ~cls, rng.normal(size=n), np.nan).astype(np.float32),
        age=(60 - ago / 365.25).astype(np.float32),
        visit=(visits - np.repeat(visits[first], length)).astype(np.int32),
        gap=rng.exponential(DAYS_A_VISIT, n).astype(np.float32)[leads],
        day=np.where(cls, 0, ago).astype(np.float32),
        offsets=offsets,
        subject_id=np.arange(len(length)),
        prediction_time=np.zeros(len(length), "datetime64[us]"),
        truncated=np.zeros(len(length), dtype=bool),
    )


def outcomes(n: int) -> Targets:
    """Random outcomes, half of them events, on a grid of N_BINS."""
    rng = np.random.default_rng(SEED)
    duration, event = torch.tensor(rng.exponential(500, n)), torch.tensor(rng.integers(0, 2, n))
    return Targets(duration, event, torch.tensor(rng.integers(0, N_BINS, n)), torch.tensor(rng.random(n)))


def valued_codes(n_codes: int) -> list[int]:
    """The ids that carry values."""
    return [code for code in range(N_SPECIAL, N_SPECIAL + n_codes) if code % VALUED == 0]


def flops(call: Callable[[], Any]) -> int:
    """FLOPs of the matrix products of a call, attention included: 4 L²D forward and 8 L²D backward a head (what a
    kernel computes anew on the way back is no useful work)."""
    attention = torch.ops.aten
    mapping: dict[Any, Any] = {
        attention._scaled_dot_product_flash_attention_for_cpu: lambda q, k, *_, **__: 4 * math.prod(q) * k[2],
        attention._scaled_dot_product_flash_attention_for_cpu_backward: lambda g, q, k, *_, **__: (
            8 * math.prod(q) * k[2]
        ),
    }
    with FlopCounterMode(display=False, custom_mapping=mapping) as counter:
        call()
    return int(counter.get_total_flops())


def gemm_rate(size: int = 1_536, times: int = 2) -> float:
    """FLOPs a CPU second of a large product in float32: what this machine can do at this moment."""
    a, b = torch.ones(size, size), torch.ones(size, size)
    torch.mm(a, b)
    took, _ = cpu(lambda: [torch.mm(a, b) for _ in range(times)])
    return times * 2 * size**3 / took


def cpu(call: Callable[[], Any]) -> tuple[float, float]:
    """CPU and wall seconds of a call."""
    wall, start = time.perf_counter(), time.process_time()
    call()
    return time.process_time() - start, time.perf_counter() - wall


def clip(parameters: list[Tensor]) -> None:
    """As the product clips."""
    torch.nn.utils.clip_grad_norm_(parameters, 1.0)
