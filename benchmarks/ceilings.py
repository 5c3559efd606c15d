"""What could a model reach that knows the simulator's hazard but for one kind of term? Ceilings, nothing is trained.

python benchmarks/ceilings.py [--seeds 201 202 203]
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import readme

from ehrsequencing.cohort import build_cohort, cut
from ehrsequencing.config import SimulateConfig, load_task
from ehrsequencing.evaluation.metrics import harrell_c
from ehrsequencing.nonparametric import for_outcome
from ehrsequencing.synthetic import simulate
from ehrsequencing.synthetic.hazard import log_hazard_terms

PATIENTS = 6_000
KINDS = {
    "age": "age and sex",
    "male": "age and sex",
    "pressure": "last value",
    "slope": "trend of values",
    "chronic": "chronic codes",
    "acute": "acute episodes and the ward beside them",
    "treatment": "treatment after diagnosis, fading",
    "order": "which of two codes came first",
}


def ceilings(seed: int) -> dict[str, float]:
    """Harrell's C of the true log hazard, whole and without each kind of term, over all patients of a simulation."""
    with tempfile.TemporaryDirectory() as folder:
        dataset = simulate(Path(folder) / "meds", SimulateConfig(patients=PATIENTS, seed=seed))
        cohort = build_cohort(dataset, load_task(Path(folder) / "meds" / "task.yaml"))
        rows = cohort.table
        terms = log_hazard_terms(cut(dataset.scan(), rows, cohort.task).collect(), rows)
    tau = cohort.task.horizon_days
    outcome = for_outcome(rows["duration"].to_numpy(), rows["event"].to_numpy(), tau)
    whole = np.sum(list(terms.values()), axis=0)
    found = {"everything": harrell_c(*outcome, whole)}
    for kind in dict.fromkeys(KINDS.values()):
        own = np.sum([value for name, value in terms.items() if KINDS.get(name.split()[0]) == kind], axis=0)
        found[kind] = harrell_c(*outcome, whole - own)
        found[f"share: {kind}"] = float(np.cov(own, whole)[0, 1] / whole.var(ddof=1))
    return found


def page(found: Mapping[str, Mapping[str, float]]) -> str:
    """The figures as text."""

    def mean(name: str) -> float:
        return float(np.mean([each[name] for each in found.values()]))

    lines = [["nothing", "", f"{mean('everything'):.3f}"]]
    lines += [[kind, f"{mean(f'share: {kind}'):.2f}", f"{mean(kind):.3f}"] for kind in dict.fromkeys(KINDS.values())]
    about = f"{PATIENTS:,} patients of each of the simulator's seeds {', '.join(found)}, all of them; means over seeds."
    return "\n\n".join(
        [readme.table(["not known", "share of the log hazard's variance", "Harrell C"], lines), about, readme.made([])]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[201, 202, 203])
    found = {str(seed): ceilings(seed) for seed in parser.parse_args().seeds}
    (readme.RESULTS / "ceilings.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    readme.publish("ceilings", page(found))


if __name__ == "__main__":
    main()
