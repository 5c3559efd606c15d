"""What a training step costs under either architecture, by length of record and tokens a visit.

    python benchmarks/hierarchical.py [--records 24] [--repeats 5] [--seed 0]

Both encoders are `small` at 1,000 codes with their own default head relations. A step is forward and backward over all
records in micro-batches: of fine-tuning (hazards at the index, or at every visit under the block-causal mask) and of
masked-code pretraining. CPU seconds of one thread, the median of several steps, the two encoders in turn.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import Any

import numpy as np
import readme
import torch

from ehrsequencing.batches import collate, micro_batches
from ehrsequencing.config import TOKEN_BUDGET
from ehrsequencing.models.architectures import ARCHITECTURES
from ehrsequencing.models.behrt import BEHRTConfig
from ehrsequencing.models.behrt_survival import BEHRTForSurvival
from ehrsequencing.models.pretraining import BEHRTForMaskedLM, mask_tokens
from ehrsequencing.tokens import CLS, N_SPECIAL, TokenStore

CODES, LONGEST, LONG_RECORDS = 1_000, 512, 8
Sizes = Callable[[np.random.Generator], np.ndarray]


def clinic(rng: np.random.Generator) -> np.ndarray:
    """Tokens of each visit of a record of log-normal length (median 60, 99th percentile about 480)."""
    return filled(min(int(np.exp(rng.normal(np.log(60), 0.9))) + 1, LONGEST - 1), rng.integers(1, 9, LONGEST))


def long(each: float, rng: np.random.Generator) -> np.ndarray:
    """Tokens of each visit of a record of LONGEST tokens, ``each`` a visit in the mean."""
    low = int(each)
    return filled(LONGEST - 1, low + (rng.random(LONGEST) < each - low).astype(np.int64))


def filled(length: int, sizes: np.ndarray) -> np.ndarray:
    """The first of ``sizes``, the last one cut, so that they make ``length`` tokens."""
    ends = np.minimum(np.cumsum(sizes), length)
    found = np.diff(ends, prepend=0)
    return found[found > 0]


RECORDS: Mapping[str, tuple[Sizes, bool]] = MappingProxyType(
    {
        "log-normal lengths, 1 to 8 tokens a visit": (clinic, False),
        "512 tokens, 1 a visit": (partial(long, 1), True),
        "512 tokens, 1.5 a visit": (partial(long, 1.5), True),
        "512 tokens, 4 a visit": (partial(long, 4), True),
        "512 tokens, 8 a visit": (partial(long, 8), True),
        "512 tokens, 32 a visit": (partial(long, 32), True),
    }
)
"""Kinds of records, and whether few of them are enough."""


def store_of(sizes: list[np.ndarray], rng: np.random.Generator) -> TokenStore:
    """Records of random codes behind a [CLS], a visit a month."""
    visit = np.concatenate([np.append(0, np.repeat(np.arange(1, len(own) + 1), own)) for own in sizes])
    n = len(visit)
    return TokenStore(
        code=np.where(visit == 0, CLS, rng.integers(N_SPECIAL, CODES, n)).astype(np.int32),
        value=np.full(n, np.nan, np.float32),
        age=np.full(n, 60, np.float32),
        visit=visit.astype(np.int32),
        gap=np.full(n, 30, np.float32),
        day=np.zeros(n, np.float32),
        offsets=np.append(0, np.cumsum([1 + own.sum() for own in sizes])),
        subject_id=np.arange(len(sizes)),
        prediction_time=np.zeros(len(sizes), "datetime64[us]"),
        truncated=np.zeros(len(sizes), bool),
    )


def config(architecture: str, **settings: str) -> BEHRTConfig:
    return BEHRTConfig.small(CODES + N_SPECIAL, architecture=architecture, **settings)


def tuning(architecture: str, **settings: str) -> Callable[[TokenStore, np.ndarray], torch.Tensor]:
    """What is summed over a micro-batch in fine-tuning."""
    model = BEHRTForSurvival(config(architecture, **settings)).train()
    return lambda store, rows: model(collate(store, rows)).sum()


def guessing(architecture: str) -> Callable[[TokenStore, np.ndarray], torch.Tensor]:
    """What is summed over a micro-batch in masked-code pretraining."""
    model = BEHRTForMaskedLM(config(architecture)).train()
    draw = torch.Generator().manual_seed(0)
    return lambda store, rows: model(*mask_tokens(collate(store, rows), model.config.vocab_size, draw)).loss


STEPS: Mapping[str, Callable[[str], Callable[[TokenStore, np.ndarray], torch.Tensor]]] = MappingProxyType(
    {
        "fine-tuning at the index": tuning,
        "fine-tuning at every visit": partial(tuning, attention="block_causal", predict_at="every_visit"),
        "masked codes": guessing,
    }
)


def seconds(loss: Callable[[TokenStore, np.ndarray], torch.Tensor], store: TokenStore) -> float:
    """CPU seconds of one step."""
    started = time.process_time()
    for rows in micro_batches(store, np.arange(len(store)), TOKEN_BUDGET):
        loss(store, rows).backward()
    return time.process_time() - started


def race(step: str, store: TokenStore, repeats: int) -> dict[str, float]:
    """Median CPU microseconds a token of each architecture, after one step that is not timed."""
    torch.manual_seed(0)
    losses = {name: STEPS[step](name) for name in ARCHITECTURES}
    runs: dict[str, list[float]] = {name: [] for name in losses}
    for turn in range(repeats + 1):
        for name, loss in losses.items():
            spent = seconds(loss, store)
            if turn:
                runs[name].append(spent)
    return {name: statistics.median(spent) / int(store.offsets[-1]) * 1e6 for name, spent in runs.items()}


def measured(records: int, repeats: int, seed: int) -> list[dict[str, Any]]:
    """One line a kind of record and step."""
    lines = []
    for kind, (sizes, few) in RECORDS.items():
        rng = np.random.default_rng(seed)
        store = store_of([sizes(rng) for _ in range(min(records, LONG_RECORDS) if few else records)], rng)
        facts = {"records": kind, "tokens": int(store.offsets[-1]), "longest": int(store.lengths.max())}
        facts["tokens_a_visit"] = round(float((store.lengths - 1).sum() / last_visits(store).sum()), 2)
        for step in STEPS:
            found = race(step, store, repeats)
            lines.append({**facts, "step": step, **found})
            print(f"{kind}, {step}: " + ", ".join(f"{name} {spent:.1f} µs a token" for name, spent in found.items()))
    return lines


def last_visits(store: TokenStore) -> np.ndarray:
    """The number of the last visit of each record."""
    return store.visit[store.offsets[1:] - 1]


def page(lines: list[dict[str, Any]], repeats: int) -> str:
    """The table: time of the hierarchical encoder over that of the flat one."""
    heads = ["records", *(f"{step}: behrt, hierarchical (µs a token), ratio" for step in STEPS)]
    rows = []
    for kind in RECORDS:
        own = {line["step"]: line for line in lines if line["records"] == kind}
        rows.append([kind, *(cell(own[step]) for step in STEPS)])
    return f"{readme.table(heads, rows)}\n\n{readme.made()} Medians of {repeats} steps, the encoders in turn."


def cell(line: Mapping[str, Any]) -> str:
    flat, deep = line["behrt"], line["hierarchical"]
    return f"{flat:.0f}, {deep:.0f}: {deep / flat:.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--records", type=int, default=24)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    torch.set_num_threads(1)
    lines = measured(given.records, given.repeats, given.seed)
    kept = {"made": readme.made(), "repeats": given.repeats, "seed": given.seed, "lines": lines}
    (readme.RESULTS / "hierarchical.json").write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
    content = page(lines, given.repeats)
    readme.publish("hierarchical", content)
    print(content)


if __name__ == "__main__":
    main()
