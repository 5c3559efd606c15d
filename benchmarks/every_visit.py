"""What a hazard at every visit costs: block-causal against bidirectional, and against reading each prefix anew.

    python benchmarks/every_visit.py [--patients 96] [--seed 0]

Records are random codes, lengths log-normal (median 60 tokens, 99th percentile about 480), three tokens a visit; the
model is `small` at 1,000 codes; one thread. Seconds are CPU time, the best of three.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np
import torch

from ehrsequencing.batches import collate, micro_batches
from ehrsequencing.config import TOKEN_BUDGET
from ehrsequencing.models.behrt import BEHRTConfig
from ehrsequencing.models.behrt_survival import BEHRTForSurvival
from ehrsequencing.tokens import CLS, N_SPECIAL, TokenStore

CODES, TOKENS_A_VISIT, REPEATS = 1_000, 3, 3


def records(patients: int, seed: int) -> TokenStore:
    """Random records of whole visits behind a [CLS]."""
    rng = np.random.default_rng(seed)
    visits = np.clip(np.exp(rng.normal(np.log(60), 0.9, patients)) / TOKENS_A_VISIT, 1, 500 // TOKENS_A_VISIT)
    return stored([np.arange(TOKENS_A_VISIT * int(n) + 1) for n in visits], rng)


def stored(places: list[np.ndarray], rng: np.random.Generator) -> TokenStore:
    """A store of rows that hold these places of a record (0 is [CLS])."""
    place = np.concatenate(places)
    code = np.where(place == 0, CLS, rng.integers(N_SPECIAL, CODES, len(place))).astype(np.int32)
    n = len(places)
    return TokenStore(
        code=code,
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


def prefixes(store: TokenStore, rng: np.random.Generator) -> TokenStore:
    """A row for every visit of every record: what a model that predicts at an index must read instead."""
    return stored(
        [np.arange(end) for n in store.lengths for end in range(TOKENS_A_VISIT + 1, n + 1, TOKENS_A_VISIT)], rng
    )


def model(**settings: str) -> BEHRTForSurvival:
    torch.manual_seed(0)
    return BEHRTForSurvival(BEHRTConfig.small(CODES + N_SPECIAL, **settings))


def one_pass(network: BEHRTForSurvival, store: TokenStore, learn: bool) -> None:
    for part in micro_batches(store, np.arange(len(store)), TOKEN_BUDGET):
        logits = network(collate(store, part))
        if learn:
            logits.sum().backward()


def seconds(run: Callable[[], None]) -> float:
    """CPU seconds of the fastest run."""
    times = []
    for _ in range(REPEATS):
        started = time.process_time()
        run()
        times.append(time.process_time() - started)
    return min(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--patients", type=int, default=96)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    torch.set_num_threads(1)
    store = records(given.patients, given.seed)
    index, visits = model(), model(attention="block_causal", predict_at="every_visit")
    tokens = int(store.offsets[-1])
    print(f"{len(store)} records, {tokens:,} tokens, median {np.median(store.lengths):.0f}, most {store.lengths.max()}")
    for name, learn in (("training", True), ("prediction", False)):
        costs = []
        for network in (index, visits):
            network.train(learn)
            with torch.set_grad_enabled(learn):
                costs.append(seconds(lambda network=network, learn=learn: one_pass(network, store, learn)))
        print(f"{name}: bidirectional {costs[0] / tokens * 1e6:.1f} µs a token, one hazard a record; block-causal "
              f"{costs[1] / tokens * 1e6:.1f} µs, one at every visit: {costs[1] / costs[0]:.2f} times")  # fmt: skip
    some = store.take(np.arange(min(24, len(store))))
    each = prefixes(some, np.random.default_rng(given.seed))
    with torch.no_grad():
        once = seconds(lambda: one_pass(visits.eval(), some, False))
        anew = seconds(lambda: one_pass(index.eval(), each, False))
    ratio = each.offsets[-1] / some.offsets[-1]
    print(f"reading each prefix of {len(some)} records anew: {ratio:.1f} times the tokens, {anew / once:.1f} times the "
          f"time of one block-causal pass")  # fmt: skip


if __name__ == "__main__":
    main()
