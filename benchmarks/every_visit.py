"""What a hazard at every visit costs: against re-encoding each prefix, and against one hazard at the index.

Records are random, lengths log-normal, three tokens a visit; the model is `small` at 1,000 codes; one thread.
Re-encoding reads every prefix that ends with a visit, by the same kind of encoder, packed, one hazard each. CPU
seconds, everything in turn; ratios are medians over the turns. every_visit.py [--quick].
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import readme
import torch
from machine import environment, sentence
from workload import LONGEST, SEED, cpu, lengths

from ehrsequencing.batches import collate, micro_batches
from ehrsequencing.config import TOKEN_BUDGET
from ehrsequencing.models.behrt import BEHRTConfig
from ehrsequencing.models.behrt_survival import BEHRTForSurvival
from ehrsequencing.tokens import CLS, N_SPECIAL, TokenStore

CODES, TOKENS_A_VISIT, PATIENTS, REENCODED, TURNS = 1_000, 3, 96, 32, 7
AT_VISITS = {"attention": "block_causal", "predict_at": "every_visit"}
PASSES = ("training: index", "training: every visit", "prediction: index", "prediction: every visit")
ONCE, ANEW = "one block-causal pass", "each prefix anew"


def records(patients: int) -> TokenStore:
    """Random records of whole visits behind a [CLS]."""
    visits = np.clip(lengths(patients), 4, LONGEST - TOKENS_A_VISIT) // TOKENS_A_VISIT
    return stored([np.arange(TOKENS_A_VISIT * int(n) + 1) for n in visits])


def stored(places: list[np.ndarray]) -> TokenStore:
    """A store of rows that hold these places of a record (0 is [CLS])."""
    place = np.concatenate(places)
    drawn = np.random.default_rng(SEED).integers(N_SPECIAL, CODES, len(place))
    n = len(places)
    return TokenStore(
        code=np.where(place == 0, CLS, drawn).astype(np.int32),
        value=np.full(len(place), np.nan, np.float32),
        age=np.full(len(place), 60, np.float32),
        visit=((place + TOKENS_A_VISIT - 1) // TOKENS_A_VISIT).astype(np.int32),
        gap=np.full(len(place), 30, np.float32),
        day=np.zeros(len(place), np.float32),
        offsets=np.append(0, np.cumsum([len(p) for p in places])),
        subject_id=np.arange(n),
        prediction_time=np.zeros(n, "datetime64[us]"),
        truncated=np.zeros(n, bool),
    )


def prefixes(store: TokenStore) -> TokenStore:
    """A row for every visit of every record: what a model that predicts at an index must read instead."""
    return stored([np.arange(end) for n in store.lengths for end in range(TOKENS_A_VISIT + 1, n + 1, TOKENS_A_VISIT)])


def model(architecture: str, **settings: str) -> BEHRTForSurvival:
    """A new one, small."""
    torch.manual_seed(SEED)
    config = BEHRTConfig.small(CODES + N_SPECIAL, architecture=architecture, **settings)
    return BEHRTForSurvival(config)


def one_pass(network: BEHRTForSurvival, store: TokenStore, *, learn: bool) -> None:
    """Hazards of all rows; with their gradients, where it learns."""
    network.train(learn)
    with torch.set_grad_enabled(learn):
        for part in micro_batches(store, np.arange(len(store)), TOKEN_BUDGET):
            logits = network(collate(store, part))
            if learn:
                logits.sum().backward()


def race(architecture: str, turns: int) -> dict[str, Any]:
    """CPU seconds of each pass by turn, and the tokens of each."""
    index, visits = model(architecture), model(architecture, **AT_VISITS)
    store = records(PATIENTS)
    some = store.take(np.arange(REENCODED))
    each = prefixes(some)
    jobs: Mapping[str, tuple[BEHRTForSurvival, TokenStore, bool]] = {
        **dict(
            zip(
                PASSES, [(network, store, learn) for learn in (True, False) for network in (index, visits)], strict=True
            )
        ),
        ONCE: (visits, some, False),
        ANEW: (index, each, False),
    }
    runs: dict[str, Callable[[], None]] = {
        name: lambda network=network, rows=rows, learn=learn: one_pass(network, rows, learn=learn)
        for name, (network, rows, learn) in jobs.items()
    }
    for run in runs.values():  # warm up
        run()
    spent: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(turns):
        for name, run in runs.items():
            spent[name].append(cpu(run)[0])
    tokens = {name: int(rows.offsets[-1]) for name, (_, rows, _) in jobs.items()}
    return {"seconds": spent, "tokens": tokens, "longest": int(store.lengths.max())}


def ratio(found: Mapping[str, Any], dear: str, cheap: str, digits: int = 1) -> str:
    """Median of the turns' ratios, and the smallest and largest one."""
    each = np.array(found["seconds"][dear]) / np.array(found["seconds"][cheap])
    return f"{np.median(each):.{digits}f} ({each.min():.{digits}f}–{each.max():.{digits}f})"


def tables(found: Mapping[str, Any]) -> str:
    """For people."""
    parts = []
    heads = ["encoder", "each prefix anew, times one pass", "its tokens, times"]
    lines = []
    for name, part in found["races"].items():
        tokens = part["tokens"]
        lines.append([f"`{name}`", ratio(part, ANEW, ONCE), f"{tokens[ANEW] / tokens[ONCE]:.1f}"])
    parts += [f"Hazards at every visit of {REENCODED} records:", readme.table(heads, lines)]
    heads = ["µs a token", *PASSES, "every visit, times index: training", "prediction"]
    lines = []
    for name, part in found["races"].items():
        each = [f"{np.median(part['seconds'][key]) / part['tokens'][key] * 1e6:.0f}" for key in PASSES]
        lines.append([f"`{name}`", *each, ratio(part, PASSES[1], PASSES[0], 2), ratio(part, PASSES[3], PASSES[2], 2)])
    parts += [f"One pass over {PATIENTS} records:", readme.table(heads, lines)]
    facts = next(iter(found["races"].values()))
    turns = len(facts["seconds"][ONCE])
    parts += [
        f"Medians of {turns} turns; the longest record has {facts['longest']} tokens. {sentence(found['environment'])}"
    ]
    return "\n\n".join(parts)


def main(quick: bool) -> None:
    """Run everything, write JSON and tables."""
    torch.set_num_threads(1)
    races = {name: race(name, 1 if quick else TURNS) for name in ("behrt", "hierarchical")}
    found = {"environment": environment(), "races": races}
    (readme.RESULTS / "every_visit.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    readme.publish("every_visit", tables(found))
    print(tables(found))


if __name__ == "__main__":
    main("--quick" in sys.argv)
