"""Fine-tuning steps on a GPU: tokens a second, MFU, bandwidth, from padded rows to compiled packs: gpu.py [--rehearse].

MFU is the FLOPs of the useful tokens (products and attention over what is seen, forward and backward; nothing for
padding, nothing that is computed twice) against the rate of a large matrix product, measured in the same run and
precision. Bandwidth is the least traffic of a step (every product's operands once, the optimiser's state) against that
of a large copy. Writes results/gpu.json and the tables of README.md; without a CUDA device it says so and ends.
``--rehearse`` goes the whole way on a CPU with tiny models, so that it is known to run; its figures are not kept.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import numpy as np
import readme
import torch
from machine import environment, sentence
from torch import nn
from workload import N_BINS, SEED, lengths, outcomes, records, valued_codes

from ehrsequencing.batches import collate
from ehrsequencing.config import OptimizerConfig
from ehrsequencing.device import Compute, choose, computing
from ehrsequencing.models import backends
from ehrsequencing.models.attention import Reading
from ehrsequencing.models.behrt import BEHRTConfig
from ehrsequencing.models.behrt_survival import BEHRTForSurvival
from ehrsequencing.models.forward import in_micro_batches
from ehrsequencing.models.losses import hybrid_loss
from ehrsequencing.tokens import N_SPECIAL
from ehrsequencing.training.pacing import make_optimizer

N_CODES, LAMBDA_RANK, AIM = 20_000, 0.1, 0.45


@dataclass(frozen=True)
class Rung:
    """A way to take the step.

    Attributes:
        backend: of attention; None is whichever the table says fits.
        compiled: the encoder's blocks.
        relations: heads as a new encoder's; otherwise every head reads the whole record.
        portion: of the device's token budget, so that padding fits its memory, too.
    """

    why: str
    backend: str | None = None
    compiled: bool = False
    relations: bool = True
    portion: float = 1.0


LADDER = {
    "padded": Rung("rows padded to the longest, and a mask", backend="padded", portion=0.25),
    "packed": Rung("one row of all records"),
    "packed, no relations": Rung("the same, every head reading its whole record", relations=False),
    "compiled": Rung("packed, blocks compiled", compiled=True),
    "compiled, no relations": Rung("the same, every head reading its whole record", compiled=True, relations=False),
}


@dataclass(frozen=True)
class Plan:
    """How much is measured: sizes of models, steps timed, tokens a step, side of the product, elements of the copy."""

    sizes: tuple[str, ...]
    steps: int
    tokens: int
    side: int
    copied: int
    compiler: str


FULL = Plan(("small", "medium", "base"), 20, 32_768, 8_192, 1 << 28, "inductor")
TINY = Plan(("small",), 1, 400, 128, 1 << 16, "eager")


def seconds(call: Callable[[], Any], device: torch.device, times: int) -> float:
    """Of one call, the median of several, the device having finished."""
    took = []
    for _ in range(times):
        _finish(device)
        start = time.perf_counter()
        call()
        _finish(device)
        took.append(time.perf_counter() - start)
    return statistics.median(took)


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def gemm_rate(plan: Plan, choice: Compute) -> float:
    """FLOPs a second of a large matrix product in the precision of the encoder."""
    kind = torch.bfloat16 if choice.half else torch.float32
    a, b = (torch.randn(plan.side, plan.side, device=choice.device, dtype=kind) for _ in range(2))
    torch.mm(a, b)
    return 2 * plan.side**3 / seconds(lambda: torch.mm(a, b), choice.device, 20)


def copy_rate(plan: Plan, choice: Compute) -> float:
    """Bytes a second of a large copy, read and written."""
    a = torch.zeros(plan.copied, device=choice.device)
    b = torch.empty_like(a)
    b.copy_(a)
    return 2 * a.numel() * a.element_size() / seconds(lambda: b.copy_(a), choice.device, 20)


def weights_of(model: BEHRTForSurvival) -> int:
    """Elements of the matrices that every token passes."""
    layers = [model.behrt.embeddings.projection, *model.behrt.layers.modules()]
    return sum(layer.weight.numel() for layer in layers if isinstance(layer, nn.Linear))


def useful_flops(model: BEHRTForSurvival, store: Any) -> int:
    """Of a step: six a weight and token, and twelve a channel of every key that a query of some head sees."""
    config = model.config
    found = backends.spans(collate(store, np.arange(len(store))), Reading(config.head_relations))
    heads = config.head_relations or ("record",) * config.num_attention_heads
    seen = sum(int((found[name].end - found[name].first).sum()) for name in heads)
    channels = config.hidden_size // config.num_attention_heads
    return 6 * weights_of(model) * int(store.offsets[-1]) + 12 * channels * seen * config.num_hidden_layers


def least_bytes(model: BEHRTForSurvival, tokens: int, half: bool) -> int:
    """Of a step: each product's weights, inputs and outputs once forward and twice backward; AdamW's seven tensors."""
    size = 2 if half else 4
    linear = [layer for layer in model.behrt.layers.modules() if isinstance(layer, nn.Linear)]
    moved = sum(layer.weight.numel() + tokens * (layer.in_features + layer.out_features) for layer in linear)
    return 3 * size * moved + 7 * 4 * sum(p.numel() for p in model.parameters())


class Step:
    """A model of a size under a rung; called, it takes one step over the same records."""

    def __init__(self, size: str, rung: Rung, plan: Plan, choice: Compute) -> None:
        torch.manual_seed(SEED)
        drawn = lengths(plan.tokens)
        count = max(int(np.searchsorted(np.cumsum(drawn), plan.tokens)), 4)
        self.store, self.targets, self.rows = records(drawn[:count], N_CODES), outcomes(count), np.arange(count)
        settings = {"architecture": "behrt", **({} if rung.relations else {"relations": ()})}
        config = BEHRTConfig.of_size(
            size, N_SPECIAL + N_CODES, value_codes=valued_codes(N_CODES), n_bins=N_BINS, **settings
        )
        self.model = BEHRTForSurvival(config).train().to(choice.device)
        self.optimizer = make_optimizer(self.model, OptimizerConfig())
        self.budget = int(choice.token_budget * rung.portion)

    def __call__(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        logits, t = in_micro_batches(self.model, self.store, self.rows, self.budget)[:, 0], self.targets
        hybrid_loss(logits, t.bin, t.fraction.to(logits.dtype), t.event, t.duration, LAMBDA_RANK).loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()


@contextlib.contextmanager
def as_in(rung: Rung, plan: Plan, choice: Compute) -> Iterator[Compute]:
    """The device and attention of a rung."""
    with contextlib.ExitStack() as stack:
        if rung.backend is not None:
            stack.enter_context(patch.object(backends, "fitting", lambda *_: rung.backend))
        compiler = plan.compiler if rung.compiled else None
        yield stack.enter_context(computing(Compute(choice.device, choice.half, compiler)))


def measure(size: str, rung: Rung, plan: Plan, choice: Compute, rates: dict[str, float]) -> dict[str, Any]:
    """One cell of the table; a model or batch that does not fit says so."""
    try:
        with as_in(rung, plan, choice) as own:
            step = Step(size, rung, plan, own)
            for _ in range(3):  # kernels are compiled, memory is found
                step()
            took = seconds(step, own.device, plan.steps)
            backend = backends.fitting(own.device, Reading(step.model.config.head_relations))
    except torch.OutOfMemoryError:
        return {"out_of_memory": True}
    tokens = int(step.store.offsets[-1])
    moved, work = least_bytes(step.model, tokens, choice.half), useful_flops(step.model, step.store)
    return {
        "backend": backend,
        "tokens": tokens,
        "records": len(step.store),
        "seconds": took,
        "tokens_per_second": tokens / took,
        "useful_flops": work,
        "mfu": work / took / rates["gemm"],
        "bytes_per_second": moved / took,
        "bandwidth_share": moved / took / rates["copy"],
        "peak_bytes": torch.cuda.max_memory_allocated() if choice.device.type == "cuda" else 0,
    }


def run(plan: Plan, choice: Compute) -> dict[str, Any]:
    """Every rung of every size, the rates of the device measured beside each size."""
    found: dict[str, Any] = {}
    for size in plan.sizes:
        rates = {"gemm": gemm_rate(plan, choice), "copy": copy_rate(plan, choice)}
        cells = {}
        for name, rung in LADDER.items():
            if choice.device.type == "cuda":
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats()
            cells[name] = measure(size, rung, plan, choice, rates)
            print(size, name, json.dumps(cells[name]), flush=True)
        found[size] = {"rates": rates, "rungs": cells}
    return found


def page(facts: dict[str, Any], found: dict[str, Any]) -> str:
    """The tables of README.md."""
    heads = ["encoder", "step", "attention", "tokens/s", "MFU", "bandwidth, of a copy's", "memory"]
    lines = []
    for size, own in found.items():
        for name, cell in own["rungs"].items():
            if "out_of_memory" in cell:
                lines.append([size, name, "", "out of memory", "", "", ""])
                continue
            lines.append(
                [size, name, cell["backend"], f"{cell['tokens_per_second']:,.0f}", f"{cell['mfu']:.1%}",
                 f"{cell['bytes_per_second'] / 1e9:,.0f} GB/s, {cell['bandwidth_share']:.0%}",
                 f"{cell['peak_bytes'] / 2**30:.1f} GiB"]
            )  # fmt: skip
    rates = "; ".join(
        f"{size}: {own['rates']['gemm'] / 1e12:,.0f} TFLOP/s, {own['rates']['copy'] / 1e9:,.0f} GB/s"
        for size, own in found.items()
    )
    shares = [cell.get("mfu", 0.0) for cell in found["base"]["rungs"].values()] if "base" in found else []
    reached = f"{'met' if max(shares) >= AIM else 'missed'}, {max(shares):.1%}" if shares else "not measured"
    verdict = f"Aim: an MFU of {AIM:.0%} for base: {reached}."
    where = f"{facts['device']}, {facts['precision']}; products and copies of the same run: {rates}."
    return "\n\n".join([readme.table(heads, lines), verdict, where, sentence(facts)])


def main() -> None:
    """Measure and publish, rehearse, or say that there is no device."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rehearse", action="store_true", help="the whole way on a CPU, tiny; nothing is kept")
    rehearsal = parser.parse_args().rehearse
    if not rehearsal and not torch.cuda.is_available():
        print("skipped: no CUDA device (--rehearse goes the whole way on a CPU)")
        return
    choice, plan = (choose("cpu", "bf16"), TINY) if rehearsal else (choose("cuda"), FULL)
    found = run(plan, choice)
    name = "cpu" if rehearsal else torch.cuda.get_device_name()
    facts = {**environment(), "device": name, "precision": "bf16" if choice.half else "fp32"}
    facts |= {"cuda": torch.version.cuda, "bf16": choice.half}
    text = page(facts, found)
    if rehearsal:
        print(f"rehearsal, not to be published:\n\n{text}")
        return
    (readme.RESULTS / "gpu.json").write_text(json.dumps({"facts": facts, "sizes": found}, indent=1) + "\n")
    readme.publish("gpu", text)
    print(text)


if __name__ == "__main__":
    main()
