"""C-index against lifelines and scikit-survival, and the bootstrap with and without numba: concordance.py [OUT.json].

Writes OUT.json (benchmarks/results/concordance.json) and the tables of benchmarks/README.md. CPU time of one thread,
the median of several runs, the libraries in turn so that a busy machine slows all of them alike.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
from lifelines.utils import concordance_index
from machine import environment, sentence
from readme import RESULTS, publish
from sksurv.metrics import concordance_index_censored, concordance_index_ipcw
from sksurv.util import Surv
from threadpoolctl import threadpool_limits

from ehrsequencing.evaluation import antolini, roc, sweep
from ehrsequencing.evaluation.compare import Evaluation
from ehrsequencing.evaluation.concordance import harrell_c, uno_c
from ehrsequencing.nonparametric import censoring_distribution
from ehrsequencing.predictions import Predictions

SIZES, SEED, TAU, REPEATS, QUADRATIC = (2_000, 20_000, 100_000), 0, 1_500.0, 5, 50_000
"""Patients; of the data; days; runs of each; patients from which what looks at every pair runs once."""
RESAMPLES, RESAMPLED = 1_000, 20_000
LIBRARIES = ("ehrsequencing", "numpy", "numba", "lifelines", "scikit-survival")
COMPILED = ((sweep, "kernel"), (sweep, "single_kernel"), (antolini, "kernel"), (roc, "kernel"))
"""Where compiled code is asked for."""
FAMILIES = ("concordance", "antolini", "auc", "errors")

Outcome = tuple[np.ndarray, np.ndarray, np.ndarray]


def patients(n: int) -> Outcome:
    """duration, event and risk: exponential times, about half of them censored, untied."""
    rng = np.random.default_rng([SEED, n])
    truth = rng.normal(size=n)
    failure, censoring = rng.exponential(1000 * np.exp(-truth)), rng.exponential(1800, n)
    return np.minimum(failure, censoring), (failure <= censoring).astype(np.int64), truth + rng.normal(size=n)


def contenders(duration: np.ndarray, event: np.ndarray, risk: np.ndarray) -> dict[str, Callable[[], float]]:
    """What is timed, by name, the two definitions of C apart."""
    y, happened = Surv.from_arrays(event, duration), event.astype(bool)
    censoring = censoring_distribution(duration, event)
    return {
        "ehrsequencing": lambda: harrell_c(duration, event, risk),
        "ehrsequencing, without numba": without_numba(lambda: harrell_c(duration, event, risk)),
        "lifelines": lambda: float(concordance_index(duration, -risk, event)),
        "scikit-survival": lambda: float(concordance_index_censored(happened, duration, risk)[0]),
        "ehrsequencing, Uno": lambda: uno_c(duration, event, risk, censoring, TAU),
        "scikit-survival, Uno": lambda: float(concordance_index_ipcw(y, y, risk, tau=TAU)[0]),
    }


def without_numba(call: Callable[[], Any]) -> Callable[[], Any]:
    """The same by the NumPy twins."""

    def twin() -> Any:
        with ExitStack() as stack:
            for module, name in COMPILED:
                stack.enter_context(patch.object(module, name, lambda: None))
            return call()

    return twin


def timed(call: Callable[[], Any]) -> tuple[float, Any]:
    """CPU seconds of this process, and what came back."""
    start = time.process_time()
    found = call()
    return time.process_time() - start, found


def race(n: int) -> dict[str, dict[str, Any]]:
    """Median CPU seconds and value of each contender at n patients, in turn."""
    calls = contenders(*patients(n))
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    values: dict[str, float] = {}
    for turn in range(REPEATS):
        for name, call in calls.items():
            if turn and n > QUADRATIC and name.startswith("scikit-survival"):
                continue
            took, values[name] = timed(call)
            seconds[name].append(took)
    return {
        name: {"seconds": float(np.median(seconds[name])), "runs": len(seconds[name]), "value": values[name]}
        for name in calls
    }


def check(found: Mapping[str, Mapping[str, Any]]) -> None:
    """Refuse timings of things that do not agree."""
    ours = found["ehrsequencing"]["value"]
    for name in ("ehrsequencing, without numba", "lifelines", "scikit-survival"):
        if abs(found[name]["value"] - ours) > 1e-9:
            raise SystemExit(f"{name} gives {found[name]['value']!r}, ehrsequencing {ours!r}")


def bootstrap() -> dict[str, dict[str, float]]:
    """CPU seconds of each family of figures on all resamples of a model, with and without numba."""
    duration, event, risk = patients(RESAMPLED)
    model = predictions(risk)
    place = Evaluation.of(
        duration,
        event,
        train_duration=duration,
        train_event=event,
        tau=TAU,
        horizons=(365.0, 1_000.0),
        n_boot=RESAMPLES,
    )
    place.score(model, only=FAMILIES)  # compiles, and sums what is the same for every model
    ways = {"with numba": lambda call: call, "without numba": without_numba}
    found = {
        way: {name: timed(turn(lambda name=name: place.score(model, only=(name,))))[0] for name in FAMILIES}
        for way, turn in ways.items()
    }
    quick, _ = timed(lambda: place.quick(model))
    return found | {"influence functions": {"all": quick}}


def predictions(risk: np.ndarray) -> Predictions:
    """Curves of constant hazards."""
    times, n = np.linspace(0, TAU, 101)[1:], risk.size
    survival = np.exp(-np.exp(risk / 2)[:, None] * times / 1000)
    return Predictions(np.arange(n), np.zeros(n, dtype="datetime64[us]"), risk, times, survival)


def tables(found: Mapping[str, Any]) -> str:
    """For people."""
    about, sizes = found["environment"], found["concordance"]
    names = list(next(iter(sizes.values())))
    lines = [
        "CPU seconds of one C-index, one thread, after compilation:",
        "",
        f"| | {' | '.join(f'{int(n):,} patients' for n in sizes)} |",
        f"| --- |{' ---: |' * len(sizes)}",
        *(f"| {name} | {' | '.join(_seconds(sizes[n][name]['seconds']) for n in sizes)} |" for name in names),
        "",
        f"CPU seconds of {RESAMPLES:,} resamples of {RESAMPLED:,} patients, one model, by family of figures "
        "(τ and two horizons):",
        "",
        f"| | {' | '.join(FAMILIES)} |",
        f"| --- |{' ---: |' * len(FAMILIES)}",
        *(
            f"| {way} | {' | '.join(_seconds(found['bootstrap'][way][name]) for name in FAMILIES)} |"
            for way in ("with numba", "without numba")
        ),
        "",
        f"Influence functions, all of these figures but no resamples: "
        f"{_seconds(found['bootstrap']['influence functions']['all'])} s. Antolini's C at this size is resampled to "
        "first order.",
        "",
        f"{sentence(about)} Medians of {REPEATS} runs in turn (scikit-survival at 100,000: one). All Harrell values "
        "agree to 1e-9.",
    ]
    return "\n".join(lines)


def _seconds(value: float) -> str:
    return f"{value:.4f}" if value < 0.1 else f"{value:.2f}"


def main(out: Path) -> None:
    """Run everything, check that values agree, write JSON and tables."""
    harrell_c(*patients(sweep.COMPILED_FROM))  # compiles
    found: dict[str, Any] = {"environment": environment(LIBRARIES, SEED), "concordance": {}}
    for n in SIZES:
        found["concordance"][str(n)] = race(n)
        check(found["concordance"][str(n)])
    found["bootstrap"] = bootstrap()
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    publish("concordance", tables(found))
    print(tables(found))


if __name__ == "__main__":
    with threadpool_limits(1):
        main(Path(sys.argv[1]) if len(sys.argv) > 1 else RESULTS / "concordance.json")
