"""What ten outcomes cost: ten heads on one encoding, ten encodings, one joint fine-tuning, ten fine-tunings.

    python benchmarks/outcomes.py

Patients are simulated; the first outcome is the simulator's own, the nine others are the first occurrence, after the
same prediction_time, of the nine diagnoses, medications and admissions that most training patients go on to have. CPU
seconds of one thread; reading and preparing records are left out (they are the same). Pretraining and fine-tuning are
short, so that the whole takes a few minutes: the C beside the seconds is no comparison of finished models.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import readme
import torch
from threadpoolctl import threadpool_limits

from ehrsequencing.batches import SurvivalData
from ehrsequencing.bundle import Encoder
from ehrsequencing.cohort import Cohort, build_cohort
from ehrsequencing.config import (
    TRAIN,
    BudgetConfig,
    ModelConfig,
    Predicate,
    PretrainConfig,
    SimulateConfig,
    TaskConfig,
    load_task,
)
from ehrsequencing.errors import EhrError
from ehrsequencing.events import MedsDataset
from ehrsequencing.study.outcomes import prepare_outcomes
from ehrsequencing.study.steps import pretrain
from ehrsequencing.synthetic import simulate
from ehrsequencing.training.finetune import FeatureCache, FineTuned, finetune
from ehrsequencing.training.outcomes import finetune_outcomes
from ehrsequencing.training.recipes import RECIPES

KEPT = readme.RESULTS / "outcomes.json"
PATIENTS, SEED, OUTCOMES, CANDIDATES = 1_000, 0, 10, 40
KINDS = ("ICD10CM//", "ATC//", "ADMISSION//")
PRETRAINING, EPOCHS = 2, 3
RECIPE = RECIPES["medium"].within(BudgetConfig(max_epochs=EPOCHS, patience=EPOCHS))[0]
Fits = dict[str, FineTuned]


def cohorts_of(dataset: MedsDataset) -> list[Cohort]:
    """Of the simulator's task, and of those of the most frequent codes that most training patients go on to have."""
    own = load_task(dataset.root / "task.yaml")
    first = build_cohort(dataset, own)
    dated = dataset.scan().drop_nulls("time").group_by("code").agg(pl.col("subject_id").n_unique()).collect()
    codes = dated.sort(["subject_id", "code"], descending=[True, False])["code"].to_list()
    codes = [code for code in codes if code.startswith(KINDS)][:CANDIDATES]
    found = [cohort for code in codes if (cohort := _cohort(dataset, own, code)) is not None]
    return [first, *sorted(found, key=_events, reverse=True)[: OUTCOMES - 1]]


def _cohort(dataset: MedsDataset, own: TaskConfig, code: str) -> Cohort | None:
    if own.outcome.code == code:
        return None
    name = code.replace("//", "-")
    try:
        return build_cohort(dataset, own.model_copy(update={"name": name, "outcome": Predicate(code=code)}))
    except EhrError:
        return None  # nobody is left, or nobody has it afterwards


def _events(cohort: Cohort) -> int:
    seen = (pl.col("split") == TRAIN) & (pl.col("event") == 1) & (pl.col("duration") <= cohort.task.horizon_days)
    return cohort.table.filter(seen).height


def measured(run: Callable[[], Fits]) -> tuple[float, Fits]:
    """CPU seconds of a run, and what it fitted."""
    begin = time.process_time()
    fits = run()
    return time.process_time() - begin, fits


def singly(datas: dict[str, SurvivalData], strategy: str, encoder: Encoder) -> Fits:
    """Each outcome by itself, the encoder run anew for each."""
    return {
        name: finetune(data, strategy, RECIPE, encoder.model, seed=SEED, cache=FeatureCache())
        for name, data in datas.items()
    }


def at_once(datas: dict[str, SurvivalData], strategy: str, encoder: Encoder) -> Fits:
    """All outcomes at once."""
    return finetune_outcomes(datas, strategy, RECIPE, encoder.model, seed=SEED)


WAYS = {
    "ten penalised heads on one encoding": (at_once, "frozen-ridge"),
    "ten penalised heads, each encoding anew": (singly, "frozen-ridge"),
    f"one joint LoRA, {EPOCHS} epochs": (at_once, "lora"),
    f"ten LoRA fine-tunings, {EPOCHS} epochs each": (singly, "lora"),
}


def run() -> dict[str, Any]:
    """Everything, in one process."""
    with tempfile.TemporaryDirectory() as folder:
        dataset = simulate(Path(folder) / "meds", SimulateConfig(patients=PATIENTS, seed=SEED))
        encoder = pretrain(
            dataset, PretrainConfig(epochs=PRETRAINING), model=ModelConfig(architecture="behrt"), seed=SEED
        )
        prepared = prepare_outcomes(dataset, cohorts_of(dataset), encoder)
    datas = {name: each.data for name, each in prepared.items()}
    found: dict[str, Any] = {
        "outcomes": {name: [each.n_labelled, each.n_labelled_events] for name, each in prepared.items()},
        "patients": PATIENTS,
        "seed": SEED,
        "ways": {},
    }
    singly({"warm-up": next(iter(datas.values()))}, "frozen-ridge", encoder)
    for way, (fit, strategy) in WAYS.items():
        seconds, fits = measured(lambda fit=fit, strategy=strategy: fit(datas, strategy, encoder))
        c = [fits[name].tuning(data)["tuning_c"] for name, data in datas.items()]
        found["ways"][way] = {"cpu_seconds": seconds, "mean_tuning_c": float(np.mean(c))}
        print(f"{way}: {seconds:.1f} s")
    return found


def page(found: dict[str, Any]) -> str:
    """The table and what was measured."""
    ways = found["ways"]
    lines = [[w, f"{f['cpu_seconds']:.1f}", f"{f['mean_tuning_c']:.3f}"] for w, f in ways.items()]
    sizes = [n for n, _ in found["outcomes"].values()]
    events = [n for _, n in found["outcomes"].values()]
    told = (
        f"{found['made']} Seed {found['seed']}, {found['patients']:,} simulated patients; "
        f"{len(sizes)} cohorts of {min(sizes):,} to {max(sizes):,} labelled patients (train + tuning) with "
        f"{min(events)} to {max(events)} outcomes."
    )
    shared, anew, joint, ten = (figures["cpu_seconds"] for figures in ways.values())
    ratios = (
        f"Ten outcomes on frozen features cost {anew / shared:.1f} times less with one encoding than with ten, and "
        f"{ten / shared:.0f} times less than ten LoRA fine-tunings of {EPOCHS} epochs each. One joint LoRA costs "
        f"{ten / joint:.1f} times less than ten."
    )
    heads = ["ten outcomes", "CPU seconds", "mean tuning C"]
    return "\n\n".join([readme.table(heads, lines), ratios, told])


if __name__ == "__main__":
    torch.set_num_threads(1)
    with threadpool_limits(1):
        result = run()
    result["made"] = readme.made()
    KEPT.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    readme.publish("outcomes", page(result))
