"""Fine-tuning steps, from a textbook loop to the product, one change at a time: steps.py [--quick].

Every variant takes the same 32 patients in turn (forward, hybrid loss, backward, clipping, AdamW); tokens counted are
real ones. CPU seconds of one thread; the ratio is the median over the turns of paired ratios. Writes
results/steps.json and the tables of README.md.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

import numpy as np
import readme
import torch
from machine import environment, sentence
from textbook import Textbook
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from workload import (
    BATCH,
    LONGEST,
    N_BINS,
    SEED,
    cpu,
    flops,
    gemm_rate,
    lengths,
    outcomes,
    records,
    valued_codes,
)

from ehrsequencing.batches import Batch, collate
from ehrsequencing.config import TOKEN_BUDGET, OptimizerConfig
from ehrsequencing.models import backends, behrt
from ehrsequencing.models.behrt import BEHRTConfig
from ehrsequencing.models.behrt_survival import BEHRTForSurvival
from ehrsequencing.models.dropout import Dropout
from ehrsequencing.models.forward import in_micro_batches
from ehrsequencing.models.losses import hybrid_loss
from ehrsequencing.tokens import N_SPECIAL
from ehrsequencing.training.pacing import make_optimizer

N_CODES, LAMBDA_RANK = 1_000, 0.1
TURNS = {("log-normal", "small"): 7, ("log-normal", "medium"): 5, ("uniform", "small"): 3, ("uniform", "medium"): 3}
REFERENCE, PRODUCT = "textbook, attention by torch, padded to 512", "+ fused AdamW: the product"


@dataclass(frozen=True)
class Variant:
    """How records are put together, what of the product is undone, and which model it is.

    Attributes:
        together: ``512``, ``longest``, ``buckets`` (padded, cut by padded tokens) or ``packed``.
        undone: of ``one node``, ``dropout``, ``fused``.
    """

    together: str = "packed"
    undone: tuple[str, ...] = ()
    model: str = "behrt"
    settings: Mapping[str, Any] = field(default_factory=lambda: {"architecture": "behrt", "relations": ()})


ALL = ("one node", "dropout", "fused")
VARIANTS: Mapping[str, Variant] = {
    "textbook, attention written out, padded to 512": Variant("512", ALL, "textbook"),
    REFERENCE: Variant("512", ALL, "textbook, fused attention"),
    "our model (more features), padded to 512": Variant("512", ALL),
    "padded to the batch's longest": Variant("longest", ALL),
    "sorted into buckets": Variant("buckets", ALL),
    "packed": Variant("packed", ALL),
    "+ attention and rotation as one node of the graph each": Variant("packed", ALL[1:]),
    "+ dropout from cheap bits": Variant("packed", ALL[2:]),
    PRODUCT: Variant(),
    "the product with its head relations": Variant(settings={"architecture": "behrt"}),
    "another model: hierarchical, the default": Variant(settings={"architecture": "hierarchical"}),
}
OURS_PADDED, HIERARCHICAL = "our model (more features), padded to 512", "another model: hierarchical, the default"
UNIFORM = [REFERENCE, OURS_PADDED, PRODUCT, HIERARCHICAL]
REMEMBERED = [REFERENCE, OURS_PADDED, PRODUCT, HIERARCHICAL]
"""Where nothing is padded, what pads less is left out; so it is where memory is looked at."""


class SplitAttention:
    """One call of scaled_dot_product_attention a length, each with its views and pieces in the graph."""

    @staticmethod
    def apply(q: Tensor, k: Tensor, v: Tensor, groups: Any, biases: Any) -> Tensor:
        sizes = [rows * length for rows, length in groups]
        parts = zip(groups, biases, q.split(sizes, 2), k.split(sizes, 2), v.split(sizes, 2), strict=True)
        mixed = []
        for group, bias, *part in parts:
            own = (x[0].unflatten(1, group).transpose(0, 1) for x in part)
            mixed.append(scaled_dot_product_attention(*own, attn_mask=bias).transpose(0, 1).flatten(1, 2)[None])
        return torch.cat(mixed, dim=2)


def plain_rotate(x: Tensor, turn: tuple[Tensor, Tensor]) -> Tensor:
    """The rotation as the formula says it."""
    cos, sin = turn
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1)


@contextmanager
def as_in(variant: Variant) -> Iterator[None]:
    """The product with some of its parts undone."""
    with ExitStack() as stack:
        if variant.together != "packed":
            stack.enter_context(patch.object(backends, "fitting", lambda *_: "padded"))
        if "one node" in variant.undone:
            stack.enter_context(patch.object(backends, "PackedAttention", SplitAttention))
            stack.enter_context(patch.object(behrt, "rotate", plain_rotate))
        if "dropout" in variant.undone:
            stack.enter_context(patch.object(Dropout, "forward", nn.Dropout.forward))
        yield


class Step:
    """A variant's model and optimiser; called with rows, it takes one step over them."""

    def __init__(self, variant: Variant, size: str, uniform: bool, turns: int) -> None:
        torch.manual_seed(SEED)
        n = BATCH * turns
        self.variant, self.store, self.targets = variant, records(lengths(n, uniform), N_CODES), outcomes(n)
        config = BEHRTConfig.of_size(
            size,
            N_SPECIAL + N_CODES,
            value_codes=valued_codes(N_CODES),
            n_bins=N_BINS,
            head="residual",
            hazards="proportional",
            **variant.settings,
        )
        plain = variant.model.startswith("textbook")
        self.model: nn.Module = (
            Textbook(config, LONGEST, "fused" in variant.model) if plain else BEHRTForSurvival(config)
        )
        self.model.train()
        self.optimizer: torch.optim.Optimizer = make_optimizer(self.model, OptimizerConfig())
        if "fused" in variant.undone:
            self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-3)

    def __call__(self, rows: np.ndarray) -> None:
        with as_in(self.variant):
            self.optimizer.zero_grad(set_to_none=True)
            t, logits = self.targets.take(rows), self.logits(rows)
            loss = hybrid_loss(logits, t.bin, t.fraction.to(logits.dtype), t.event, t.duration, LAMBDA_RANK).loss
            loss.backward()
            nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            self.optimizer.step()

    def logits(self, rows: np.ndarray) -> Tensor:
        """Hazard logits [b, K] of a step."""
        if self.variant.together == "packed":
            return in_micro_batches(self.model, self.store, rows)[:, 0]
        if self.variant.together == "buckets":
            order = rows[np.argsort(-self.store.lengths[rows], kind="stable")]
            parts = [collate(self.store, part) for part in buckets(self.store.lengths, order)]
            back = np.argsort(order)[np.argsort(np.argsort(rows))]
            return torch.cat([self.model(part)[:, 0] for part in parts])[torch.from_numpy(back)]
        batch = collate(self.store, rows)
        wide: Batch = batch.widened(LONGEST) if self.variant.together == "512" else batch
        found: Tensor = self.model(wide)
        return found if found.ndim == 2 else found[:, 0]


def buckets(length: np.ndarray, order: np.ndarray) -> Iterator[np.ndarray]:
    """Rows longest first, cut by padded tokens."""
    while len(order):
        size = max(TOKEN_BUDGET // length[order[0]], 1)
        yield order[:size]
        order = order[size:]


def race(case: str, size: str, turns: int, threads: int, names: list[str]) -> dict[str, Any]:
    """Each variant on each turn's patients; seconds of each, tokens of each turn, FLOPs of a turn, GEMM rates."""
    torch.set_num_threads(threads)
    steps = {name: Step(VARIANTS[name], size, case == "uniform", turns) for name in names}
    rows = [np.arange(turn * BATCH, (turn + 1) * BATCH) for turn in range(turns)]
    some = steps[names[-1]].store.lengths
    for step in steps.values():  # warm up on four records
        step(rows[0][np.argsort(some[rows[0]])[:4]])
    found: dict[str, Any] = {"tokens": [int(some[at].sum()) for at in rows], "gemm": [], "cpu": {}, "wall": {}}
    for at in rows:
        for name, step in steps.items():
            found["gemm"].append(gemm_rate())
            spent, wall = cpu(lambda step=step, at=at: step(at))
            found["cpu"].setdefault(name, []).append(spent)
            found["wall"].setdefault(name, []).append(wall)
    found["flops"] = {
        name: [flops(lambda step=steps[name], at=at: step(at)) for at in rows]
        for name in names
        if VARIANTS[name].together == "packed" and not VARIANTS[name].undone
    }
    return found


def remembered(name: str) -> dict[str, float]:
    """MB that one step of the medium model adds to a process of its own, log-normal lengths."""
    asked = [sys.executable, __file__, "--remember", name]
    return dict(json.loads(subprocess.run(asked, capture_output=True, text=True, check=True).stdout))


def remember(name: str) -> None:
    """In a process of its own: the highest resident memory after a step, less that before it."""
    torch.set_num_threads(1)
    step = Step(VARIANTS[name], "medium", False, 1)
    step(np.arange(2))
    with open("/proc/self/clear_refs", "w", encoding="ascii") as file:
        file.write("5")  # the highest so far is forgotten
    before = resident("VmRSS")
    step(np.arange(BATCH))
    print(json.dumps({"mb": (resident("VmHWM") - before) / 1024}))


def resident(key: str) -> int:
    """kB of this process, now (VmRSS) or at most (VmHWM)."""
    with open("/proc/self/status", encoding="ascii") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(key))


def profile(size: str, architecture: str, undone: tuple[str, ...]) -> dict[str, float]:
    """Shares of the CPU time of a step by kind of operation."""
    settings = {"architecture": "behrt", "relations": ()} if architecture == "behrt" else {"architecture": architecture}
    step = Step(Variant("packed", undone, settings=settings), size, False, 2)
    step(np.arange(BATCH))
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as found:
        step(np.arange(BATCH, 2 * BATCH))
    spent = dict.fromkeys(KINDS, 0.0)
    for event in found.key_averages():
        kind = next((kind for kind, marks in KINDS.items() if any(mark in event.key for mark in marks)), "the rest")
        spent[kind] += event.self_cpu_time_total
    total = sum(spent.values())
    return {kind: value / total for kind, value in spent.items()}


KINDS: Mapping[str, tuple[str, ...]] = {
    "attention kernels": ("flash_attention",),
    "matrix products": ("aten::mm", "aten::addmm", "aten::bmm"),
    "dropout": ("random_", "aten::lt", "bernoulli", "dropout"),
    "optimiser": ("AdamW", "adamw", "_foreach", "aten::addcdiv", "aten::lerp"),
    "norms and activations": ("layer_norm", "gelu"),
    "embeddings": ("embedding",),
    "the rest": (),
}


def summary(found: Mapping[str, Any], name: str) -> dict[str, float]:
    """Useful tokens a CPU second, how often the reference fits in, the share of the GEMM rate."""
    spent, tokens = np.array(found["cpu"][name]), np.array(found["tokens"])
    result = {"tokens_per_second": float(np.median(tokens / spent))}
    for other in (REFERENCE, next(iter(VARIANTS))):
        if other in found["cpu"]:
            each = np.array(found["cpu"][other]) / spent
            result |= {f"times {other}": float(np.median(each)), f"least {other}": float(each.min())}
            result[f"most {other}"] = float(each.max())
    if name in found["flops"]:
        per_turn = np.array(found["gemm"]).reshape(len(tokens), -1)
        rate = per_turn[:, list(found["cpu"]).index(name)]
        result["gemm_share"] = float(np.median(np.array(found["flops"][name]) / spent / rate))
        result["gemm_share_best"] = float(np.max(np.array(found["flops"][name]) / spent / np.median(per_turn)))
    return result


def tables(found: Mapping[str, Any]) -> str:
    """For people."""
    parts = []
    written = next(iter(VARIANTS))
    for title, case in found["cases"].items():
        lines = []
        for name, figures in case["summary"].items():
            share = f"{figures['gemm_share']:.0%}" if "gemm_share" in figures else ""
            times = [_ratio(figures, other) for other in (REFERENCE, written)]
            lines.append([name, f"{figures['tokens_per_second']:,.0f}", *times, share])
        heads = ["variant", "useful tokens a CPU second", "times the textbook, attention by torch"]
        heads += ["times the textbook, written out", "of GEMM"]
        parts += [f"{title}, {case['turns']} turns:", readme.table(heads, lines)]
    wall = [
        [size, *(f"{np.median(case['wall'][name]):.2f}" for name in case["wall"])]
        for size, case in found["two_threads"].items()
    ]
    names = list(next(iter(found["two_threads"].values()))["wall"])
    parts += ["Wall seconds of a step, two threads, log-normal lengths:", readme.table(["size", *names], wall)]
    memory = [[name, f"{value['mb']:,.0f}"] for name, value in found["memory"].items()]
    parts += ["Memory that a medium step adds, log-normal lengths:", readme.table(["variant", "MB"], memory)]
    shares = [[name, *(f"{value:.0%}" for value in part.values())] for name, part in found["profile"].items()]
    parts += ["Where the CPU time of a packed step goes (profiler on):", readme.table(["step", *KINDS], shares)]
    rate = np.median([r for case in found["cases"].values() for r in case["gemm"]]) / 1e9
    parts += [f"GEMM rate at the time: {rate:.0f} GFLOP/s a thread (median). {sentence(found['environment'])}"]
    return "\n\n".join(parts)


def _ratio(figures: Mapping[str, float], other: str) -> str:
    """Median of the turns, and the range where they differ."""
    if f"times {other}" not in figures:
        return ""
    least, median, most = (f"{figures[f'{name} {other}']:.1f}" for name in ("least", "times", "most"))
    return median if least == most else f"{median} ({least}–{most})"


def main(quick: bool) -> None:
    """Run everything, write JSON and tables."""
    found: dict[str, Any] = {"environment": environment(), "cases": {}, "two_threads": {}, "profile": {}}
    for (case, size), turns in TURNS.items():
        names = UNIFORM if case == "uniform" else list(VARIANTS)
        part = race(case, size, 1 if quick else turns, 1, names)
        part |= {"turns": len(part["tokens"]), "summary": {name: summary(part, name) for name in names}}
        found["cases"][f"{size}, {case} lengths"] = part
        print(json.dumps(part["summary"], indent=1), flush=True)
    found["memory"] = {name: remembered(name) for name in REMEMBERED}
    for size in ("small", "medium"):
        names = [REFERENCE, PRODUCT, HIERARCHICAL]
        found["two_threads"][size] = race("log-normal", size, 1 if quick else 5, 2, names)
    torch.set_num_threads(1)
    for size in ("small", "medium"):
        for kind in ("behrt", "hierarchical"):
            for when, undone in (("before", ALL), ("after", ())):
                found["profile"][f"{size} {kind}, {when}"] = profile(size, kind, undone)
    readme.RESULTS.mkdir(exist_ok=True)
    (readme.RESULTS / "steps.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    readme.publish("steps", tables(found))
    print(tables(found))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--remember"]:
        remember(sys.argv[2])
    else:
        main("--quick" in sys.argv)
