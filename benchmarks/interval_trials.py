"""How often an interval holds what it estimates: each figure by itself, and averages over training seeds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
from worlds import HALF, TAU, Drawn, Model, World, evaluation

from ehrsequencing.evaluation.compare import Evaluation, Interval

RESAMPLES = 250
BLOCKS, BLOCK = 8, 100_000
"""Patients on whom the truth is found: so many blocks of so many."""
Cell = dict[str, Any]
SHARES = (0.1, 0.3)
FAMILIES = ("concordance", "auc", "errors", "calibration")
QUICK = ("concordance", "auc", "errors")
REPORTED = (
    *("harrell_c", "uno_c", "uno_c@500", "auc@500", "mean_auc", "ibs", "brier@500", "scaled_ibs"),
    *("slope@500", "intercept@500", "oe@500", "ici@500", "e90@500"),
)
LARGEST = 3_000
"""Patients up to whom the bootstrap is tried for coverage."""


@cache
def misfit(share: float) -> tuple[World, Model]:
    """A world and a model that sees most of what matters, its curves too extreme and too low."""
    world = World({"seen": 1.0, "rest": 0.3}, share)
    return world, world.model(["seen"], spread=1.25, shift=-0.1)


@cache
def truth(share: float) -> dict[str, float]:
    """metric → what it estimates: its value on very many patients whom nobody lost before TAU.

    Harrell's C alone depends on who is censored, and is taken with the censoring.
    """
    world, model = misfit(share)
    rng, found = np.random.default_rng(99), []
    for _ in range(BLOCKS):
        drawn = world.draw(BLOCK, rng)
        figures = _figures(drawn.uncensored, model, drawn)
        found.append({**figures, "harrell_c": _figures(drawn.observed, model, drawn, ("concordance",))["harrell_c"]})
    return {metric: float(np.mean([block[metric] for block in found])) for metric in found[0]}


def _figures(
    outcome: tuple[np.ndarray, np.ndarray], model: Model, drawn: Drawn, families: Sequence[str] = FAMILIES
) -> dict[str, float]:
    made = Evaluation.of(
        *outcome, train_duration=outcome[0], train_event=outcome[1], tau=TAU, horizons=(HALF,), n_boot=0
    )
    return {metric: float(values[0]) for metric, values in made.score(model.predict(drawn), families).figures.items()}


def intervals(n: int, share: float, seed: int, n_boot: int) -> dict[str, dict[str, Interval]]:
    """way → metric → interval, on one sample of ``n`` patients."""
    world, model = misfit(share)
    made, drawn = evaluation(world, n, np.random.default_rng(seed), n_boot=n_boot, horizons=(HALF,))
    predictions = model.predict(drawn)
    resampled = {"bootstrap": made.score(predictions, FAMILIES).intervals()} if n_boot else {}
    return {**resampled, "influence": made.quick(predictions, QUICK).intervals()}


def coverage(n: int, share: float, repetitions: int, n_boot: int = RESAMPLES) -> list[Cell]:
    """How often each metric's interval holds the truth, missing it below or above, and how wide it is."""
    n_boot = n_boot if n <= LARGEST else 0
    true, seen = truth(share), [intervals(n, share, 1_000 * n + k, n_boot) for k in range(repetitions)]
    cells = []
    for way in seen[0]:
        for metric in (each for each in REPORTED if each in seen[0][way]):
            found = [one[way][metric] for one in seen if metric in one[way] and one[way][metric].low is not None]
            low, high = (np.array([getattr(each, end) for each in found]) for end in ("low", "high"))
            cells.append(
                {
                    "part": "coverage", "n": n, "share": share, "way": way, "metric": metric,
                    "truth": true[metric], "mean": float(np.mean([each.value for each in found])),
                    "covered": float(np.mean((low <= true[metric]) & (true[metric] <= high))),
                    "below": float(np.mean(high < true[metric])), "above": float(np.mean(low > true[metric])),
                    "width": float(np.mean(high - low)), "repetitions": len(found),
                }
            )  # fmt: skip
    return cells


# --- several seeds ---------------------------------------------------------------------------------------------------

WOBBLE, DIRECTIONS = {"small": 0.25, "large": 0.6}, 2
SEEDS = (1, 3, 5)


def wobbly(drawn: Drawn, seed: np.ndarray, wobble: float) -> np.ndarray:
    """The score that one training seed gives: the true one, moved along directions that mean nothing."""
    noise = np.stack([drawn.parts[f"noise{k}"] for k in range(DIRECTIONS)])
    return drawn.parts["seen"] + wobble * seed @ noise / np.sqrt(DIRECTIONS)


@cache
def noisy_world() -> tuple[World, Model]:
    """A fifth have the outcome; ``noise`` parts are known of everybody and drive nothing."""
    world = World({"seen": 1.0, "rest": 0.3}, 0.2)
    return world, world.model(["seen"])


def draw_noisy(world: World, n: int, rng: np.random.Generator) -> Drawn:
    """Patients with noise parts."""
    drawn = world.draw(n, rng)
    noise = {f"noise{k}": rng.normal(size=n) for k in range(DIRECTIONS)}
    return Drawn({**drawn.parts, **noise}, drawn.failure, drawn.censoring)


@cache
def expected(wobble: float) -> dict[str, float]:
    """The figures that the training procedure gives on average over its seeds, and their spread between seeds.

    A score depends on its seed through the length of the move alone, which has Rayleigh's distribution: its deciles'
    midpoints stand for the seeds.
    """
    world, model = noisy_world()
    rng, names = np.random.default_rng(5), ("uno_c", "ibs")
    lengths = np.sqrt(-2 * np.log(1 - (np.arange(10) + 0.5) / 10))
    found = np.zeros((len(lengths), len(names)))
    for _ in range(blocks := 4):
        drawn = draw_noisy(world, BLOCK, rng)
        outcome = drawn.uncensored
        made = Evaluation.of(*outcome, train_duration=outcome[0], train_event=outcome[1], tau=TAU, n_boot=0)
        for row, length in enumerate(lengths):
            one = model.of_score(wobbly(drawn, np.array([length, 0.0]), wobble))
            figures = made.score(one, ("concordance", "errors")).figures
            found[row] += [figures[name][0] / blocks for name in names]
    spread = zip((f"{name} spread" for name in names), found.std(axis=0), strict=True)
    return dict(zip(names, found.mean(axis=0).tolist(), strict=True)) | {name: float(value) for name, value in spread}


def over_seeds(wobble: str, n: int, n_seeds: int, repetitions: int, n_boot: int = RESAMPLES) -> list[Cell]:
    """How often an interval over ``n_seeds`` seeds holds what the procedure gives on average."""
    world, model = noisy_world()
    true, held = expected(WOBBLE[wobble]), Counter[tuple[str, str]]()
    for k in range(repetitions):
        rng = np.random.default_rng([n, n_seeds, k])
        drawn, train = draw_noisy(world, n, rng), world.draw(4 * n, rng).observed
        made = Evaluation.of(
            *drawn.observed, train_duration=train[0], train_event=train[1], tau=TAU, n_boot=n_boot, seed=k
        )
        files = [model.of_score(wobbly(drawn, rng.normal(size=DIRECTIONS), WOBBLE[wobble])) for _ in range(n_seeds)]
        families = ("concordance", "errors")
        found = {
            "bootstrap": made.score(files, families).intervals(),
            "influence": made.quick(files, families).intervals(),
        }
        for way, figures in found.items():
            for metric in ("uno_c", "ibs"):
                held[way, metric] += figures[metric].low <= true[metric] <= figures[metric].high
    return [
        {
            "part": "seeds", "wobble": wobble, "spread": true[f"{metric} spread"], "n": n, "n_seeds": n_seeds,
            "way": way, "metric": metric, "covered": count / repetitions, "repetitions": repetitions,
        }
        for (way, metric), count in held.items()
    ]  # fmt: skip
