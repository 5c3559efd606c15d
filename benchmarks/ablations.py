"""Which pretraining gives the best frozen features? One factor at a time, several seeds, on a cohort of development.

    python benchmarks/ablations.py [TRIAL ...] [--seeds 0 1 2]     runs what is missing, then rewrites the page
    python benchmarks/ablations.py page                             only rewrites the page

Patients are simulated under a seed that nothing else uses. Encoders are pretrained at their defaults but for what a
trial changes, and read by the penalised linear head (`frozen-ridge`). Tuning rows alone are scored: the held-out ones
are never looked at. Each run is kept in ``benchmarks/results/ablations.json`` as it is done.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import readme
import torch
from scipy.stats import spearmanr, t
from torch import Tensor

from ehrsequencing.cohort import build_cohort
from ehrsequencing.config import TRAIN, TUNING, ModelConfig, PretrainConfig, SimulateConfig, load_task
from ehrsequencing.evaluation.metrics import harrell_c
from ehrsequencing.events import MedsDataset
from ehrsequencing.models import configuration
from ehrsequencing.models.blend import blend
from ehrsequencing.models.pooling import EncodedTokens
from ehrsequencing.models.states import pool
from ehrsequencing.models.wide import fit_wide
from ehrsequencing.nonparametric import for_outcome
from ehrsequencing.study.assemble import choose_alpha_on_tuning
from ehrsequencing.study.data import Prepared, prepare
from ehrsequencing.study.steps import pretrain
from ehrsequencing.synthetic import read_truth, simulate
from ehrsequencing.training.finetune import finetune
from ehrsequencing.training.recipes import RECIPES

KEPT = readme.RESULTS / "ablations.json"
PATIENTS, COHORT_SEED = 6_000, 201
REFERENCE = "behrt"
HIERARCHICAL = ModelConfig(architecture="hierarchical")
BOTH = {"masked-codes": 1.0, "record-summary": 1.0}


@dataclass(frozen=True)
class Trial:
    """What differs from the reference: the objectives, what the heads may read, the encoder, or what is pooled."""

    why: str
    objectives: dict[str, float] = field(default_factory=lambda: dict(BOTH))
    relations: tuple[str, ...] = configuration.HEAD_RELATIONS
    model: ModelConfig = ModelConfig(architecture="behrt")
    epochs: int = 10
    pooled: Callable[[EncodedTokens], Tensor] = EncodedTokens.pooled


def last_visit(record: EncodedTokens) -> Tensor:
    """[CLS], mean and maximum over the tokens of a record's last visit."""
    last = record.mask & (record.visit == record.visit.amax(dim=1, keepdim=True))  # [B,L]
    own = pool(record.tokens(), last)  # [B,3H]
    return torch.cat([record.tokens()[:, 0], own[:, record.tokens().shape[-1] :]], dim=-1)


def mean_alone(record: EncodedTokens) -> Tensor:
    """The mean over a record's tokens, in the place of all three parts."""
    width = record.tokens().shape[-1]
    return pool(record.tokens(), record.mask)[:, width : 2 * width].repeat(1, 3)


TRIALS: Mapping[str, Trial] = {
    REFERENCE: Trial("attention over tokens; masked codes and the record's summary; heads read by relation"),
    "no summary": Trial("masked codes alone", {"masked-codes": 1.0}),
    "no relations": Trial("every head reads the whole record", relations=()),
    "neither": Trial("masked codes alone, every head reads the whole record", {"masked-codes": 1.0}, ()),
    "summary alone": Trial("no masked codes", {"record-summary": 1.0}),
    "and values": Trial("masked values, too", {**BOTH, "masked-values": 1.0}),
    "and next visit": Trial("the next visit, too", {**BOTH, "next-visit": 1.0}),
    "and time to event": Trial("time to event, too", {**BOTH, "time-to-event": 1.0}),
    "last visit": Trial("[CLS], mean and maximum over the last visit alone", pooled=last_visit),
    "mean alone": Trial("the mean over all tokens alone", pooled=mean_alone),
    "hierarchical": Trial("visits pooled by attention, a timeline over them", model=HIERARCHICAL),
    "hierarchical, 20 epochs": Trial("the same for longer: the default", model=HIERARCHICAL, epochs=20),
}
FIGURES = ("c", "nll", "rho", "blend_c")


@cache
def world() -> tuple[MedsDataset, Any, np.ndarray]:
    """The records, the cohort, and the true log hazard of each of its rows."""
    folder = Path(tempfile.mkdtemp()) / "meds"
    dataset = simulate(folder, SimulateConfig(patients=PATIENTS, seed=COHORT_SEED))
    cohort = build_cohort(dataset, load_task(folder / "task.yaml"))
    keys = ["subject_id", "prediction_time"]
    truth = read_truth(folder).select(*keys, "log_hazard")
    return (
        dataset,
        cohort,
        cohort.table.join(truth, on=keys, how="left", maintain_order="left")["log_hazard"].to_numpy(),
    )


def score(prepared: Prepared, logits: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """C, mean NLL, and Spearman's correlation of risk and true log hazard, on the tuning rows."""
    data = prepared.data
    at = data.index(TUNING)
    targets = data.targets(at)
    risk = data.grid.risk(logits[at])
    duration, event = targets.duration.numpy(), targets.event.numpy()
    return {
        "c": harrell_c(*for_outcome(duration, event, data.grid.tau), risk),
        "nll": float(data.grid.nll(logits[at], duration, event).mean()),
        "rho": float(spearmanr(risk, truth[at]).statistic),
    }


def run(name: str, seed: int) -> dict[str, Any]:
    """One encoder, its frozen features, and their figures."""
    dataset, cohort, truth = world()
    trial = TRIALS[name]
    configuration.HEAD_RELATIONS, EncodedTokens.pooled = trial.relations, trial.pooled
    config = PretrainConfig(objectives=trial.objectives, epochs=trial.epochs)
    encoder = pretrain(dataset, config, model=trial.model, input=cohort.task, seed=seed)
    prepared = prepare(dataset, cohort, encoder)
    data, wide = prepared.data, wide_of(prepared)
    fitted = finetune(data, "frozen-ridge", RECIPES["medium"], encoder.model, seed=seed)
    alpha = choose_alpha_on_tuning(data, fitted.logits, wide)
    found = score(prepared, fitted.logits, truth)
    blended = score(prepared, blend(fitted.logits, wide, alpha), truth)
    facts = {"trial": name, "seed": seed, "alpha": alpha, "blend_c": blended["c"], "blend_rho": blended["rho"]}
    facts |= {"seconds": encoder.record["seconds"], "accuracy": encoder.record.get("accuracy")}
    sizes = {part: len(data.index(part)) for part in (TRAIN, TUNING)}
    return {**facts, **found, "sizes": sizes, "wide": score(prepared, wide, truth)}


_WIDE: list[np.ndarray] = []


def wide_of(prepared: Prepared) -> np.ndarray:
    """The wide companion's logits: the same for every encoder."""
    if not _WIDE:
        _WIDE.append(fit_wide(prepared.data).logits(prepared.data.features.values))
    return _WIDE[0]


def read() -> list[dict[str, Any]]:
    """What is kept."""
    return json.loads(KEPT.read_text(encoding="utf-8")) if KEPT.is_file() else []


def keep(found: dict[str, Any]) -> None:
    """Add one run to what is kept by now, perhaps by another process."""
    cells = [*read(), found]
    KEPT.write_text(
        json.dumps(sorted(cells, key=lambda c: (list(TRIALS).index(c["trial"]), c["seed"])), indent=1) + "\n"
    )


def difference(cells: Sequence[dict[str, Any]], name: str, figure: str) -> str:
    """Mean paired difference from the reference over the seeds that both have, with a 95% t interval."""
    value = {(cell["trial"], cell["seed"]): cell[figure] for cell in cells}
    seeds = [seed for trial, seed in value if trial == name and (REFERENCE, seed) in value]
    gaps = np.array([value[name, seed] - value[REFERENCE, seed] for seed in seeds])
    if name == REFERENCE or len(gaps) < 2:
        return ""
    half = float(t.ppf(0.975, len(gaps) - 1) * gaps.std(ddof=1) / np.sqrt(len(gaps)))
    return f"{gaps.mean():+.3f} ({gaps.mean() - half:+.3f} to {gaps.mean() + half:+.3f})"


def page() -> str:
    """What is kept, as text."""
    cells, lines = read(), []
    for name, trial in TRIALS.items():
        own = [cell for cell in cells if cell["trial"] == name]
        if own:
            mean = {figure: float(np.mean([cell[figure] for cell in own])) for figure in FIGURES}
            figures = [
                f"{mean[name]:.{digits}f}" for name, digits in (("c", 3), ("rho", 3), ("nll", 4), ("blend_c", 3))
            ]
            lines.append([f"`{name}`", trial.why, str(len(own)), *figures, difference(cells, name, "rho")])
    wide, sizes = cells[0]["wide"], cells[0]["sizes"]
    lines.append(["wide", "no encoder", "", f"{wide['c']:.3f}", f"{wide['rho']:.3f}", f"{wide['nll']:.4f}", "", ""])
    about = (
        f"{PATIENTS:,} simulated patients (seed {COHORT_SEED}), all labelled: {sizes[TRAIN]:,} train, "
        f"{sizes[TUNING]:,} tune and are scored. ρ is Spearman's correlation of the risk with the true log hazard; "
        "intervals are of t over training seeds alone."
    )
    heads = ["trial", "", "seeds", "C", "ρ", "NLL", "C, blended", "ρ − `behrt`"]
    return f"{readme.table(heads, lines)}\n\n{about}\n\n{readme.made([])}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trials", nargs="*", default=list(TRIALS), choices=[*TRIALS, "page"], metavar="TRIAL")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options = parser.parse_args()
    torch.set_num_threads(1)
    for seed in options.seeds:
        for name in (name for name in options.trials if name != "page"):
            if not any(cell["trial"] == name and cell["seed"] == seed for cell in read()):
                found = run(name, seed)
                keep(found)
                print(name, seed, {figure: round(found[figure], 4) for figure in FIGURES}, flush=True)
    readme.publish("ablations", page())


if __name__ == "__main__":
    main()
