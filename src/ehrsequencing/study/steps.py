"""The verbs that stand alone: one step on the files of the step before."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from ehrsequencing.batches import SurvivalData
from ehrsequencing.bundle import ENCODER_MARKER, MARKER, Encoder
from ehrsequencing.cohort import Cohort, build_cohort
from ehrsequencing.cohort.result import TABLE as COHORT_MARKER
from ehrsequencing.config import (
    HELD_OUT,
    TRAIN,
    TUNING,
    BudgetConfig,
    InputConfig,
    ModelConfig,
    PretrainConfig,
    SplitConfig,
    TaskConfig,
    TokensConfig,
    load_task,
    parse,
)
from ehrsequencing.errors import EhrError, Exit
from ehrsequencing.evaluation.compare import INTERVAL_MEANING, Interval, evaluate
from ehrsequencing.events import MedsDataset
from ehrsequencing.files import refuse_unwritable
from ehrsequencing.inference import to_predictions
from ehrsequencing.models.strategies import find_strategy
from ehrsequencing.models.wide import fit_wide
from ehrsequencing.predictions import Predictions
from ehrsequencing.study.assemble import make_bundle
from ehrsequencing.study.auto import choose
from ehrsequencing.study.data import divisions, limit_labelled, prepare, pretraining_records, refuse_empty_splits
from ehrsequencing.timegrid import TimeGrid, choose_tau
from ehrsequencing.training.finetune import FeatureCache, FineTuned, finetune
from ehrsequencing.training.loop import Progress, silent
from ehrsequencing.training.pretrain import pretrain as run_pretraining
from ehrsequencing.training.recipes import choose_recipe

Say = Callable[[str], None]


def write_cohort(
    meds: Path,
    task: Path,
    out: Path,
    *,
    split: SplitConfig = SplitConfig(),
    visit_column: str | None = None,
) -> Cohort:
    """``ehrseq cohort``: the cohort with the time grid of its training split."""
    refuse_unwritable(Path(out), COHORT_MARKER)
    cohort = build_cohort(
        MedsDataset.open(meds),
        load_task(task),
        split_seed=split.seed,
        calendar=split.calendar,
        visit_column=visit_column,
    )
    cohort.write(out, beside={"grid.json": _grid(cohort).to_json()})
    return cohort


def _grid(cohort: Cohort) -> TimeGrid:
    train = cohort.table.filter(pl.col("split") == TRAIN)
    duration, event = train["duration"].to_numpy(), train["event"].to_numpy()
    return TimeGrid.fit(duration, event, choose_tau(duration, event, cohort.task.horizon_days))


def write_encoder(
    meds: Path,
    out: Path,
    *,
    task: Path | None = None,
    epochs: int | None = None,
    size: str = "small",
    attention: str = "bidirectional",
    split: SplitConfig = SplitConfig(),
    seed: int = 0,
    progress: Progress = silent,
) -> str:
    """``ehrseq pretrain``: an encoder from the training subjects' records; returns what it learned."""
    refuse_unwritable(Path(out), ENCODER_MARKER)
    encoder = pretrain(
        MedsDataset.open(meds),
        PretrainConfig() if epochs is None else PretrainConfig(epochs=epochs),
        model=parse(ModelConfig, {"size": size, "attention": attention}, "--size, --attention"),
        input=InputConfig() if task is None else load_task(task),
        split=split,
        seed=seed,
        progress=progress,
    )
    encoder.save(out)
    record = encoder.record
    return (
        f"encoder in {out}: {record['subjects']:,} records, {record['tokens']:,} tokens, "
        f"{encoder.tokenizer.vocab_size:,} codes; masked codes guessed {record['accuracy']:.1%} of the time "
        f"(the most frequent code alone: {record['most_frequent_code']:.1%})"
    )


def pretrain(
    dataset: MedsDataset,
    config: PretrainConfig = PretrainConfig(),
    *,
    model: ModelConfig = ModelConfig(),
    tokens: TokensConfig = TokensConfig(),
    input: TaskConfig | InputConfig = InputConfig(),
    split: SplitConfig = SplitConfig(),
    seed: int = 0,
    progress: Progress = silent,
) -> Encoder:
    """An encoder pretrained on the training subjects' whole records, under a task's ``input`` and ``delay`` rules.

    By the calendar, training subjects are those with rows of the task in the training period (without a task, those
    whose records begin in it), and their records end with it.
    """
    task = input if isinstance(input, TaskConfig) else None
    cohort = None
    if task is not None and split.calendar is not None:
        cohort = build_cohort(dataset, task, calendar=split.calendar, visit_column=tokens.visit_column)
    subjects = divisions(dataset, None, split, task=task, cohort=cohort)[0].train_subjects()
    tokenizer, store = pretraining_records(dataset, subjects, input, tokens, model.attention, calendar=split.calendar)
    result = run_pretraining(store, tokenizer, config, model, seed=seed, progress=progress)
    record = {**result.record, "split": split.model_dump(mode="json")}
    return Encoder(result.model, tokenizer, record, np.sort(Encoder.hashes(store.subject_id)))


def evaluate_held_out(data: SurvivalData, fitted: FineTuned, *, n_boot: int = 1_000) -> dict[str, Interval]:
    """Discrimination and accuracy of a fitted model on the held-out rows, with intervals, before recalibration."""
    at, train = data.index(HELD_OUT), data.targets(data.index(TRAIN))
    outcome = data.targets(at)
    return evaluate(
        to_predictions(fitted.logits[at], data.rows[at], data.grid, fitted.strategy.name, data.cohort_fingerprint),
        outcome.duration.numpy(),
        outcome.event.numpy(),
        train_duration=train.duration.numpy(),
        train_event=train.event.numpy(),
        tau=data.grid.tau,
        n_boot=n_boot,
    )


def write_bundle(
    meds: Path,
    task: Path,
    out: Path,
    *,
    encoder: Path,
    strategy: str = "auto",
    budget: BudgetConfig = BudgetConfig(),
    labelled: int | None = None,
    split: SplitConfig = SplitConfig(),
    seed: int = 0,
    progress: Progress = silent,
    say: Say = lambda text: None,
) -> str:
    """``ehrseq finetune``: one bundle by one strategy, or by the recipe's choice; returns what came out."""
    if strategy != "auto":
        find_strategy(strategy)
    refuse_unwritable(Path(out), MARKER)
    dataset, pretrained = MedsDataset.open(meds), Encoder.load(encoder)
    config = load_task(task)
    cohort = build_cohort(
        dataset,
        config,
        split_seed=split.seed,
        calendar=split.calendar,
        visit_column=pretrained.tokenizer.config.visit_column,
    )
    cohort = limit_labelled(cohort, labelled, split.seed)
    say(cohort.describe())
    refuse_empty_splits(cohort)
    prepared = prepare(dataset, cohort, pretrained)
    data = prepared.data
    choice = choose_recipe(prepared.n_labelled, prepared.n_labelled_events, prepared.events(TUNING))
    recipe, departures = choice.recipe.within(budget)
    say("\n".join([choice.text(), *(f"  departure     {text}" for text in departures)]))
    cache = FeatureCache()

    def fit(name: str) -> FineTuned:
        return finetune(data, find_strategy(name), recipe, pretrained.model, seed=seed, cache=cache, progress=progress)

    if strategy == "auto":
        chosen = choose(data, recipe, fit, say)
        fitted, sentences = chosen.fitted, chosen.sentences
    else:
        fitted, sentences = fit(strategy), (f"{strategy} was asked for.",)
    wide = fit_wide(data)
    facts = {"seed": seed, "split": split.model_dump(mode="json"), "recipe": recipe.name, "choice": list(sentences)}
    bundle = make_bundle(prepared, config, fitted, wide, facts)
    bundle.save(out)
    rows = ", ".join(f"{name} (α {row.alpha:g})" for name, row in bundle.rows.items())
    return f"bundle in {out}: {fitted.strategy.name}; tuning {bundle.facts['tuning_text']}; rows {rows}"


def _tau(cohort: Cohort, grid: Path) -> float:
    """The horizon the cohort was written with; worked out again where only the cohort itself is there."""
    if not grid.is_file():
        return _grid(cohort).tau
    try:
        return TimeGrid.from_json(json.loads(grid.read_text(encoding="utf-8"))).tau
    except (ValueError, TypeError, KeyError) as error:
        raise EhrError(f"not a time grid: {error}", str(grid), "make the cohort again", code=Exit.COHORT) from None


@dataclass(frozen=True)
class FileScores:
    """Figures of a predictions file on the patients of a split: ``n`` of its ``of`` patients have a prediction."""

    model: str
    split: str
    n: int
    of: int
    tau: float
    figures: dict[str, Interval]

    def text(self) -> str:
        """For people."""
        lines = [f"{self.n:,} of {self.of:,} patients of '{self.split}', horizon {self.tau:g} days"]
        if self.n < self.of:
            lines.append("warning: patients without a prediction were left out; that can flatter a model")
        for name, interval in self.figures.items():
            span = "" if interval.low is None else f"  (95% {interval.low:.4f} to {interval.high:.4f})"
            lines.append(f"  {name:<16}{interval.value:.4f}{span}")
        return "\n".join([*lines, INTERVAL_MEANING])

    def to_json(self) -> dict[str, Any]:
        """For programs."""
        metrics = {name: interval.to_json() for name, interval in self.figures.items()}
        facts = {name: getattr(self, name) for name in ("model", "split", "n", "of", "tau")}
        return {**facts, "metrics": metrics, "interval": INTERVAL_MEANING}


def evaluate_file(
    predictions: Path, cohort: Path, *, horizons: tuple[float, ...] = (), bootstrap: int = 1_000, split: str
) -> FileScores:
    """``ehrseq evaluate``: anybody's predictions on the patients of a cohort's split."""
    known, given = Cohort.read(cohort), Predictions.read(predictions)
    tau = _tau(known, Path(cohort) / "grid.json")
    for horizon in horizons:
        if not 0 < horizon <= tau:
            raise EhrError(
                f"the horizon of {horizon:g} days is not within the cohort's, 0 to {tau:g} days",
                "--horizon",
                f"give days above 0 and at most {tau:g}",
                code=Exit.USAGE,
            )
    judged = known.table.filter(pl.col("split") == split)
    train = known.table.filter(pl.col("split") == TRAIN)
    if given.cohort_fingerprint not in ("", known.fingerprint):
        raise EhrError(
            "the predictions were made for another cohort (its fingerprint differs)",
            str(predictions),
            "evaluate them on the cohort they were made for",
            code=Exit.BUNDLE,
        )
    columns = {"subject_id": given.subject_id, "made": given.prediction_time, "at": np.arange(len(given))}
    rows = pl.DataFrame(columns, schema_overrides={"made": pl.Datetime("us")})
    shared = judged.join(rows, on="subject_id", how="inner").sort("subject_id")
    elsewhen = shared.filter(pl.col("made") != pl.col("prediction_time")).height
    if elsewhen:
        raise EhrError(
            f"{elsewhen:,} predictions were made at another prediction_time than the cohort's",
            str(predictions),
            "predict at the cohort's own prediction_time",
            code=Exit.LEAKAGE,
        )
    if shared.height == 0:
        raise EhrError(
            f"none of the {len(given):,} predictions is for a patient of the cohort's '{split}' split",
            str(predictions),
            f"predict these patients, or choose another split ({', '.join(known.table['split'].unique().sort())})",
            code=Exit.BUNDLE,
        )
    figures = evaluate(
        given.take(shared["at"].to_numpy()),
        shared["duration"].to_numpy(),
        shared["event"].to_numpy(),
        train_duration=train["duration"].to_numpy(),
        train_event=train["event"].to_numpy(),
        tau=tau,
        horizons=horizons or (tau,),
        n_boot=bootstrap,
    )
    return FileScores(given.model, split, shared.height, judged.height, tau, figures)
