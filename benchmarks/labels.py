"""What is pretraining worth where few patients are labelled? Five draws of 250, 500 and 1,000 labels, one large pool.

    python benchmarks/labels.py [--patients 6000] [--draws 5]      runs what is missing, then rewrites the page

One encoder reads the whole records of all training subjects of the pool (never those of a tuning or held-out subject);
a second one only what they had before their own prediction_time. Each draw labels other subjects of train + tuning; all
draws and models are scored on the same held-out patients, once. Every fit is kept as it is done.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import readme
import torch
from scipy.stats import norm, t

from ehrsequencing.baselines import BASELINES
from ehrsequencing.batches import SurvivalData
from ehrsequencing.bundle import Encoder
from ehrsequencing.cohort import Cohort, build_cohort, cut
from ehrsequencing.config import (
    HELD_OUT,
    TRAIN,
    BudgetConfig,
    ModelConfig,
    PretrainConfig,
    SimulateConfig,
    load_task,
)
from ehrsequencing.evaluation.compare import Evaluation, QuickScores
from ehrsequencing.evaluation.influence import Influence, over_seeds
from ehrsequencing.events import MedsDataset
from ehrsequencing.inference import to_predictions
from ehrsequencing.models.blend import blend
from ehrsequencing.models.wide import fit_wide
from ehrsequencing.predictions import Predictions
from ehrsequencing.study.assemble import choose_alpha_on_tuning
from ehrsequencing.study.data import kept_from_outcomes, limit_labelled, prepare
from ehrsequencing.study.oracle import oracle_predictions
from ehrsequencing.study.steps import pretrain
from ehrsequencing.synthetic import simulate
from ehrsequencing.tokens import tokenize
from ehrsequencing.training.finetune import FeatureCache, finetune
from ehrsequencing.training.pretrain import pretrain as run_pretraining
from ehrsequencing.training.recipes import RECIPES

COHORT_SEED, LABELS = 301, (250, 500, 1_000)
KEPT = readme.RESULTS / "labels"
RECIPE = RECIPES["small"].within(BudgetConfig(max_epochs=20, patience=5))[0]


@dataclass(frozen=True)
class Arm:
    """A strategy on one of the encoders."""

    strategy: str
    encoder: str
    why: str


ARMS: Mapping[str, Arm] = {
    "frozen-ridge": Arm("frozen-ridge", "whole", "pretrained features, convex head"),
    "frozen-ridge, pre-index": Arm("frozen-ridge", "before", "the same, pretrained on records up to prediction_time"),
    "frozen-random": Arm("frozen-random", "whole", "features of a random encoder"),
    "lora": Arm("lora", "whole", "adapters over the pretrained encoder"),
    "from-scratch": Arm("from-scratch", "whole", "everything trained from random weights"),
}
WIDE, BLEND, COX, ORACLE = "wide", "frozen-ridge+wide", "cox", "oracle"
PAIRS = (
    ("frozen-random", "frozen-ridge"),
    ("from-scratch", "frozen-ridge"),
    ("from-scratch", "lora"),
    ("frozen-ridge, pre-index", "frozen-ridge"),
    (WIDE, BLEND),
    (COX, BLEND),
)


@dataclass(frozen=True)
class World:
    """The pool, everybody labelled, and both encoders."""

    dataset: MedsDataset
    cohort: Cohort
    encoders: Mapping[str, Encoder]


def make_world(patients: int, folder: Path) -> World:
    """Simulate, and pretrain both encoders under one tokenizer."""
    dataset = simulate(folder / "meds", SimulateConfig(patients=patients, seed=COHORT_SEED))
    cohort = build_cohort(dataset, load_task(folder / "meds" / "task.yaml"))
    makers = {"whole": partial(pretrain, dataset, input=cohort.task)}
    makers["before"] = lambda: before_the_index(dataset, cohort, encoders["whole"])
    encoders: dict[str, Encoder] = {}
    for name, make in makers.items():
        place = KEPT / f"encoder-{name}-{patients}"
        if not place.is_dir():
            make().save(place)
            print(f"pretrained: {name}", flush=True)
        encoders[name] = Encoder.load(place)
    return World(dataset, cohort, encoders)


def before_the_index(dataset: MedsDataset, cohort: Cohort, whole: Encoder) -> Encoder:
    """An encoder that reads training subjects up to their prediction_time alone, codes as in ``whole``."""
    rows = cohort.table.filter(pl.col("split") == TRAIN).select("subject_id", "prediction_time")
    history = cut(dataset.scan(), rows, cohort.task).collect(engine="streaming")
    store = tokenize(history, rows, whole.tokenizer)
    config = kept_from_outcomes(PretrainConfig(), dataset, cohort.task)
    result = run_pretraining(store, whole.tokenizer, config, ModelConfig())
    return Encoder(result.model, whole.tokenizer, result.record, Encoder.hashes(rows["subject_id"].to_numpy()))


def fits(world: World, cohort: Cohort, draw: int) -> Mapping[str, Callable[[], Predictions]]:
    """Held-out predictions of each model on one draw of labels."""

    @cache
    def data_of(encoder: str) -> SurvivalData:
        return prepare(world.dataset, cohort, world.encoders[encoder]).data

    features = FeatureCache()

    @cache
    def logits(name: str) -> np.ndarray:
        arm = ARMS[name]
        model = world.encoders[arm.encoder].model
        return finetune(data_of(arm.encoder), arm.strategy, RECIPE, model, seed=draw, cache=features).logits

    def written(name: str, found: np.ndarray) -> Predictions:
        data = data_of("whole")
        at = data.index(HELD_OUT)
        return to_predictions(found[at], data.rows[at], data.grid, name, "")

    @cache
    def wide() -> np.ndarray:
        return fit_wide(data_of("whole")).logits(data_of("whole").features.values)

    def blended() -> np.ndarray:
        alpha = choose_alpha_on_tuning(data_of("whole"), logits("frozen-ridge"), wide())
        return blend(logits("frozen-ridge"), wide(), alpha)

    def cox() -> Predictions:
        data = data_of("whole")
        at, fitted = data.index(HELD_OUT), BASELINES[COX].fit(data, 0)
        plain = written(COX, wide())
        return replace(plain, risk=fitted.risk[at], survival=fitted.survival[at])

    makers = {name: (lambda name=name: written(name, logits(name))) for name in ARMS}
    return {
        **makers,
        WIDE: lambda: written(WIDE, wide()),
        BLEND: lambda: written(BLEND, blended()),
        COX: cox,
        ORACLE: lambda: oracle_predictions(world.dataset, data_of("whole"), data_of("whole").index(HELD_OUT))[0],
    }


def run(world: World, patients: int, draws: int) -> dict[tuple[int, str], list[Predictions]]:
    """Predictions by number of labels and model, one a draw; what is on disk is not made again."""
    found: dict[tuple[int, str], list[Predictions]] = {}
    for draw in range(draws):
        for labels in LABELS:
            cohort = limit_labelled(world.cohort, labels, draw)
            for name, make in fits(world, cohort, draw).items():
                place = KEPT / f"{patients}-{labels}-{draw}-{name}.parquet"
                if not place.is_file():
                    make().write(place)
                found.setdefault((labels, name), []).append(Predictions.read(place))
            print(f"{labels} labels, draw {draw}", flush=True)
    return found


def evaluation_of(cohort: Cohort, tau: float) -> tuple[Evaluation, np.ndarray]:
    """The held-out patients, the censoring distribution being that of all training rows."""
    held, train = (cohort.table.filter(pl.col("split") == part) for part in (HELD_OUT, TRAIN))
    return Evaluation.of(
        held["duration"].to_numpy(),
        held["event"].to_numpy(),
        train_duration=train["duration"].to_numpy(),
        train_event=train["event"].to_numpy(),
        tau=tau,
        n_boot=0,
        subject_id=held["subject_id"].to_numpy(),
    ), held["subject_id"].to_numpy()


def interval(draws: Sequence[Influence]) -> dict[str, float]:
    """The mean over draws, and a 95% interval: normal over patients, t over so few draws."""
    mean = over_seeds(draws)
    half = math.hypot(
        norm.ppf(0.975) * float(np.sqrt((mean.terms**2).sum())),
        t.ppf(0.975, max(len(draws) - 1, 1)) * math.sqrt(mean.seed_variance),
    )
    return {"value": mean.value, "low": mean.value - half, "high": mean.value + half}


def judge(found: dict[tuple[int, str], list[Predictions]], cohort: Cohort) -> dict[str, Any]:
    """Uno's C and IBS of every model, and the differences that are asked about, with intervals."""
    tau = float(next(iter(found.values()))[0].horizon_days[-1])
    evaluation, subjects = evaluation_of(cohort, tau)
    scores: dict[tuple[int, str], QuickScores] = {}
    for key, draws in found.items():
        order = [np.argsort(one.subject_id)[np.searchsorted(np.sort(one.subject_id), subjects)] for one in draws]
        scores[key] = evaluation.quick([one.take(at) for one, at in zip(draws, order, strict=True)])
    figures = {
        f"{labels} {name}": {metric: interval(each.figures[metric]) for metric in ("uno_c", "ibs")}
        for (labels, name), each in scores.items()
    }
    differences = {
        f"{labels} {b} - {a}": interval([x - y for x, y in zip(
            scores[labels, b].figures["uno_c"], scores[labels, a].figures["uno_c"], strict=True)])
        for labels in LABELS
        for a, b in PAIRS
    }  # fmt: skip
    return {"n": len(subjects), "figures": figures, "differences": differences}


def page(found: dict[str, Any], patients: int, draws: int) -> str:
    """The figures as text."""

    def told(interval: Mapping[str, float], sign: str = "") -> str:
        return f"{interval['value']:{sign}.3f} ({interval['low']:{sign}.3f} to {interval['high']:{sign}.3f})"

    names = [*ARMS, WIDE, COX, BLEND, ORACLE]
    levels = [[f"`{name}`", *(told(found["figures"][f"{n} {name}"]["uno_c"]) for n in LABELS)] for name in names]
    gaps = [[f"`{b}` − `{a}`", *(told(found["differences"][f"{n} {b} - {a}"], "+") for n in LABELS)] for a, b in PAIRS]
    heads = ["Uno C", *(f"{n:,} labels" for n in LABELS)]
    about = (
        f"{patients:,} simulated patients (seed {COHORT_SEED}), {draws} draws of labels (train and tune as 70 to 15), "
        f"{found['n']:,} held-out patients, the same for all. Intervals are over patients (influence functions) "
        "and draws (t); each encoder was pretrained once, and what another seed would have given is not in them. At "
        f"most {RECIPE.epochs} epochs of fine-tuning; pretraining at its defaults on all training subjects."
    )
    return "\n\n".join(
        [readme.table(heads, levels), readme.table(["difference of Uno C", *heads[1:]], gaps), about, readme.made([])]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--patients", type=int, default=6_000)
    parser.add_argument("--draws", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    KEPT.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        world = make_world(options.patients, Path(folder))
        found = judge(run(world, options.patients, options.draws), world.cohort)
    if options.patients == parser.get_default("patients"):
        (readme.RESULTS / "labels.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        readme.publish("labels", page(found, options.patients, options.draws))
    else:
        print(page(found, options.patients, options.draws))


if __name__ == "__main__":
    main()
