"""How often the rule of three words says each of them, where the true gain is known."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from worlds import Model, World, evaluation, with_gain

from ehrsequencing.evaluation.verdict import judge

RESAMPLES = 400
WORDS = ("climb", "stay", "underpowered")
Cell = dict[str, Any]
CASES: Mapping[str, Mapping[str, Any]] = {
    "different models": {"nested": False, "correlation": 0.9},
    "nearly the same model": {"nested": False, "correlation": 0.98},
    "more information": {"nested": True},
}
"""How the dearer model differs from the cheaper one."""
GAINS: Mapping[str, Sequence[float]] = {
    "different models": (0.0, 0.005, 0.01, 0.02),
    "nearly the same model": (0.0,),
    "more information": (0.02,),
}


@dataclass(frozen=True)
class Pair:
    """A world with a cheaper and a dearer model."""

    world: World
    cheaper: Model
    dearer: Model

    @classmethod
    def of(cls, world: World) -> Pair:
        """The cheaper sees q and a, the dearer q and b."""
        return cls(world, world.model(["q", "a"]), world.model(["q", "b"]))


@cache
def gained(case: str, gain: float) -> Pair:
    """The tuned world of a case, and its models."""
    return Pair.of(with_gain(gain, **CASES[case]))


def word(pair: Pair, n: int, seed: int, n_boot: int) -> str:
    """What the rule says of one sample of ``n`` evaluated patients."""
    made, drawn = evaluation(pair.world, n, np.random.default_rng(seed), n_boot=n_boot)
    scores = (made.score(model.predict(drawn), ("concordance", "errors")) for model in (pair.cheaper, pair.dearer))
    return judge(*scores).word


def rule(case: str, gain: float, n: int, repetitions: int, n_boot: int = RESAMPLES) -> list[Cell]:
    """How often each word is said."""
    said = Counter(word(gained(case, gain), n, 7_000 * n + k, n_boot) for k in range(repetitions))
    rates = {each: said[each] / repetitions for each in WORDS}
    return [{"part": "rule", "case": case, "gain": gain, "n": n, "repetitions": repetitions, **rates}]
