"""Do the 95% intervals cover, and how often is the rule of three words wrong? By simulation with a known truth.

    python benchmarks/intervals.py coverage [--repetitions 300]     each figure's interval, by bootstrap and influence
    python benchmarks/intervals.py seeds [--repetitions 300]        intervals over several training seeds
    python benchmarks/intervals.py rule [--repetitions 400]         climb, stay, underpowered at known gains
    python benchmarks/intervals.py page                             writes the tables anew from what was kept

Every run keeps its figures in ``benchmarks/results/intervals.json``, cell by cell, and rewrites its tables in the README. A
cell that is there with as many repetitions is not run again.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import numpy as np
import readme
from worlds import HALF, TAU, Drawn, Model, World, evaluation, with_gain

from ehrsequencing.evaluation.compare import Evaluation, Interval
from ehrsequencing.evaluation.verdict import judge

KEPT = readme.RESULTS / "intervals.json"
SIZES = (300, 1_000, 3_000, 10_000)
WORDS = ("climb", "stay", "underpowered")
RESAMPLES = {"coverage": 400, "seeds": 400, "rule": 400}
BLOCKS, BLOCK = 8, 100_000
"""Patients on whom the truth is found: so many blocks of so many."""
Cell = dict[str, Any]


# --- coverage --------------------------------------------------------------------------------------------------------

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


def coverage(n: int, share: float, repetitions: int, n_boot: int = RESAMPLES["coverage"]) -> list[Cell]:
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
SEEDS = (1, 3, 5, 10)


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


def over_seeds(wobble: str, n: int, n_seeds: int, repetitions: int, n_boot: int = RESAMPLES["seeds"]) -> list[Cell]:
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


# --- the rule of three words -----------------------------------------------------------------------------------------

CASES: Mapping[str, Mapping[str, Any]] = {
    "different models": {"nested": False, "correlation": 0.9},
    "nearly the same model": {"nested": False, "correlation": 0.98},
    "more information": {"nested": True},
}
"""How the dearer model differs from the cheaper one."""
GAINS: Mapping[str, Sequence[float]] = {
    "different models": (0.0, 0.005, 0.01, 0.02),
    "nearly the same model": (0.0,),
    "more information": (0.005, 0.02),
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


def rule(case: str, gain: float, n: int, repetitions: int, n_boot: int = RESAMPLES["rule"]) -> list[Cell]:
    """How often each word is said."""
    said = Counter(word(gained(case, gain), n, 7_000 * n + k, n_boot) for k in range(repetitions))
    rates = {each: said[each] / repetitions for each in WORDS}
    return [{"part": "rule", "case": case, "gain": gain, "n": n, "repetitions": repetitions, **rates}]


# --- running and telling ---------------------------------------------------------------------------------------------

Job = tuple[Cell, Callable[..., list[Cell]]]


def jobs(part: str) -> Iterator[Job]:
    """What identifies each cell, and what makes it given the repetitions; small samples first."""
    for key in CELLS[part]():
        yield key, partial(MAKE[part], **key)


CELLS: Mapping[str, Callable[[], list[Cell]]] = {
    "coverage": lambda: [{"n": n, "share": share} for n in SIZES for share in SHARES],
    "seeds": lambda: [{"n": n, "wobble": size, "n_seeds": k} for n in SIZES[1:3] for size in WOBBLE for k in SEEDS],
    "rule": lambda: [
        {"n": n, "case": case, "gain": gain} for n in SIZES for case, gains in GAINS.items() for gain in gains
    ],
}
MAKE: Mapping[str, Callable[..., list[Cell]]] = {"coverage": coverage, "seeds": over_seeds, "rule": rule}


def is_of(cell: Cell, part: str, key: Cell) -> bool:
    """Whether a cell is one of a job's."""
    return cell["part"] == part and all(cell[name] == value for name, value in key.items())


def run(part: str, repetitions: int, sizes: Sequence[int]) -> None:
    """Every cell of a part that is not there yet; kept as each is done."""
    for key, make in jobs(part):
        cells = read()
        known = [cell for cell in cells if is_of(cell, part, key)]
        if key["n"] not in sizes or (known and min(cell["repetitions"] for cell in known) >= 0.9 * repetitions):
            continue
        made = make(repetitions=repetitions)
        others = [cell for cell in read() if not is_of(cell, part, key)]
        KEPT.write_text("[\n" + ",\n".join(map(json.dumps, others + made)) + "\n]\n", encoding="utf-8")
        for cell in made:
            print(json.dumps(cell), flush=True)


def read() -> list[Cell]:
    """All cells that were kept."""
    return json.loads(KEPT.read_text(encoding="utf-8")) if KEPT.exists() else []


def rate(value: float, repetitions: int) -> str:
    """A share with its Monte Carlo standard error, in per cent.

    >>> rate(0.05, 400)
    '5.0 ± 1.1'
    """
    return f"{100 * value:.1f} ± {100 * np.sqrt(value * (1 - value) / repetitions):.1f}"


def coverage_table(cells: Sequence[Cell]) -> str:
    """One line a metric, event share and way; one column a size."""
    own = [cell for cell in cells if cell["part"] == "coverage"]
    sizes = sorted({cell["n"] for cell in own})
    lines = []
    for metric in REPORTED:
        for share in SHARES:
            for way in ("bootstrap", "influence"):
                row = {c["n"]: c for c in own if (c["metric"], c["share"], c["way"]) == (metric, share, way)}
                if row:
                    known = [f"{100 * row[n]['covered']:.1f}" if n in row else "–" for n in sizes]
                    true = f"{next(iter(row.values()))['truth']:.4f}"
                    lines.append([f"`{metric}`", true, f"{share:.0%}", way, *known])
    return readme.table(["figure", "truth", "events", "interval", *(f"n = {n:,}" for n in sizes)], lines)


def seeds_table(cells: Sequence[Cell]) -> str:
    """One line a metric, wobble, size and way; one column a number of seeds."""
    own, lines = [cell for cell in cells if cell["part"] == "seeds"], []
    for metric in ("uno_c", "ibs"):
        for wobble in WOBBLE:
            for n in sorted({cell["n"] for cell in own}):
                for way in ("bootstrap", "influence"):
                    key = {"metric": metric, "wobble": wobble, "n": n, "way": way}
                    row = {cell["n_seeds"]: cell for cell in own if is_of(cell, "seeds", key)}
                    if row:
                        spread = f"{next(iter(row.values()))['spread']:.4f}"
                        known = [f"{100 * row[k]['covered']:.1f}" if k in row else "–" for k in SEEDS]
                        lines.append([f"`{metric}`", spread, f"{n:,}", way, *known])
    heads = ["figure", "spread between seeds", "n", "interval", *(f"{k} seed{'s' * (k > 1)}" for k in SEEDS)]
    return readme.table(heads, lines)


def rule_table(cells: Sequence[Cell]) -> str:
    """One line a case, gain and size."""
    own = sorted((c for c in cells if c["part"] == "rule"), key=lambda c: (list(CASES).index(c["case"]), c["gain"]))
    lines = [
        [c["case"], f"{c['gain']:g}", f"{c['n']:,}", *(rate(c[each], c["repetitions"]) for each in WORDS)] for c in own
    ]
    return readme.table(["dearer model", "true gain in Uno C", "evaluated", *WORDS], lines)


def page(cells: Sequence[Cell]) -> str:
    """Everything between the markers."""
    least = {part: min((c["repetitions"] for c in cells if c["part"] == part), default=0) for part in RESAMPLES}
    return "\n\n".join(
        [
            readme.made(),
            f"**Coverage of 95% intervals, per cent** (at least {least['coverage']} samples, standard error about 1.3; "
            f"{RESAMPLES['coverage']} resamples; τ = {TAU:g} days, a horizon of {HALF:g}; the model's curves are too "
            "extreme on purpose, so that it is not the zero of a calibration figure that must be covered):",
            coverage_table(cells),
            "**Coverage of what a training procedure gives on average over its seeds, per cent** (at least "
            f"{least['seeds']} samples; a fifth have the outcome):",
            seeds_table(cells),
            f"**How often the rule says each word, per cent ± Monte Carlo standard error** (at least {least['rule']} "
            f"samples of evaluated patients, a fifth with the outcome, {RESAMPLES['rule']} resamples; both models are "
            "calibrated; different models' scores are correlated at .9, nearly the same ones' at .98, where none gains):",
            rule_table(cells),
        ]
    )


def main() -> None:
    """Run a part, keep it, tell it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", choices=[*RESAMPLES, "page"])
    parser.add_argument("--repetitions", type=int, default=None, help="samples a cell")
    parser.add_argument("--sizes", type=int, nargs="*", default=SIZES, help="evaluated patients")
    arguments = parser.parse_args()
    if arguments.part != "page":
        default = 400 if arguments.part == "rule" else 300
        run(arguments.part, arguments.repetitions or default, arguments.sizes)
    readme.publish("intervals", page(read()))


if __name__ == "__main__":
    main()
