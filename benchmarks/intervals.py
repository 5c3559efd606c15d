"""Do the 95% intervals cover, and how often is the rule of three words wrong? By simulation with a known truth.

    python benchmarks/intervals.py coverage [--repetitions 300]     each figure's interval, by bootstrap and influence
    python benchmarks/intervals.py seeds [--repetitions 300]        intervals over several training seeds
    python benchmarks/intervals.py rule [--repetitions 400]         climb, stay, underpowered at known gains
    python benchmarks/intervals.py page                             writes the tables anew from what was kept

Every run keeps its figures in ``benchmarks/results/intervals.json``, cell by cell, and rewrites its tables in the
README. A cell that is there with as many repetitions is not run again.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import interval_trials as trials
import numpy as np
import readme
from interval_trials import REPORTED, SEEDS, SHARES, WOBBLE, coverage, over_seeds
from rule_trials import CASES, GAINS, WORDS, rule
from rule_trials import RESAMPLES as RULE_RESAMPLES
from worlds import HALF, TAU

KEPT = readme.RESULTS / "intervals.json"
SIZES = (300, 1_000, 3_000, 10_000)
REPETITIONS = {"coverage": 300, "seeds": 300, "rule": 400}
Cell = dict[str, Any]
Job = tuple[Cell, Callable[..., list[Cell]]]


def jobs(part: str) -> Iterator[Job]:
    """What identifies each cell, and what makes it given the repetitions; small samples first."""
    for key in CELLS[part]():
        yield key, partial(MAKE[part], **key)


CELLS: Mapping[str, Callable[[], list[Cell]]] = {
    "coverage": lambda: [{"n": n, "share": share} for n in SIZES for share in SHARES],
    "seeds": lambda: [{"n": n, "wobble": size, "n_seeds": k} for n in SIZES[1:2] for size in WOBBLE for k in SEEDS],
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
    own = sorted(
        (c for c in cells if c["part"] == "rule"), key=lambda c: (list(CASES).index(c["case"]), c["gain"], c["n"])
    )
    lines = [
        [c["case"], f"{c['gain']:g}", f"{c['n']:,}", *(rate(c[each], c["repetitions"]) for each in WORDS)] for c in own
    ]
    return readme.table(["dearer model", "true gain in Uno C", "evaluated", *WORDS], lines)


def page(cells: Sequence[Cell]) -> str:
    """Everything between the markers."""
    least = {part: min((c["repetitions"] for c in cells if c["part"] == part), default=0) for part in REPETITIONS}
    parts = {
        "coverage": "**Coverage of 95% intervals, per cent** (at least "
        f"{least['coverage']} samples, standard error about 1.3; {trials.RESAMPLES} resamples; "
        f"τ = {TAU:g} days, a horizon of {HALF:g}; the model's curves are too "
        "extreme on purpose, so that it is not the zero of a calibration figure that must be covered):",
        "seeds": "**Coverage of what a training procedure gives on average over its seeds, per cent** (at least "
        f"{least['seeds']} samples; a fifth have the outcome):",
        "rule": f"**How often the rule says each word, per cent ± Monte Carlo standard error** (at least "
        f"{least['rule']} samples of evaluated patients, a fifth with the outcome, {RULE_RESAMPLES} resamples; "
        "both models are "
        "calibrated; without a gain different models' scores are correlated at .9, nearly the same ones' at .98):",
    }
    tables = {"coverage": coverage_table, "seeds": seeds_table, "rule": rule_table}
    known = [part for part in parts if least[part]]
    return "\n\n".join([readme.made(), *(text for part in known for text in (parts[part], tables[part](cells)))])


def main() -> None:
    """Run a part, keep it, tell it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", choices=[*REPETITIONS, "page"])
    parser.add_argument("--repetitions", type=int, default=None, help="samples a cell")
    parser.add_argument("--sizes", type=int, nargs="*", default=SIZES, help="evaluated patients")
    arguments = parser.parse_args()
    if arguments.part != "page":
        run(arguments.part, arguments.repetitions or REPETITIONS[arguments.part], arguments.sizes)
    readme.publish("intervals", page(read()))


if __name__ == "__main__":
    main()
