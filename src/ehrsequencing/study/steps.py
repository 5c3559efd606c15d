"""The verbs that stand alone: one step on the files of the step before."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from ehrsequencing.batches import SurvivalData
from ehrsequencing.bundle import ENCODER_MARKER, MARKER, Encoder
from ehrsequencing.cohort import Cohort, build_cohort
from ehrsequencing.config import (
    HELD_OUT,
    TRAIN,
    TUNING,
    BudgetConfig,
    InputConfig,
    ModelConfig,
    PretrainConfig,
    SplitConfig,
    StrategyConfig,
    TaskConfig,
    TokensConfig,
    load_task,
    parse,
)
from ehrsequencing.errors import EhrError, Exit, nearest
from ehrsequencing.evaluation.compare import Interval, evaluate
from ehrsequencing.events import MedsDataset
from ehrsequencing.files import workplace
from ehrsequencing.inference import to_predictions
from ehrsequencing.models.own_strategies import read_strategy
from ehrsequencing.models.strategies import Strategy, find_strategy
from ehrsequencing.models.wide import fit_wide
from ehrsequencing.study.assemble import make_bundle
from ehrsequencing.study.auto import choose
from ehrsequencing.study.data import (
    cut_short,
    divisions,
    kept_from_outcomes,
    limit_labelled,
    prepare,
    pretraining_records,
    refuse_empty_splits,
)
from ehrsequencing.training.finetune import FeatureCache, FineTuned, finetune
from ehrsequencing.training.loop import Progress, silent
from ehrsequencing.training.pretrain import pretrain as run_pretraining
from ehrsequencing.training.pretraining_objectives import OBJECTIVES
from ehrsequencing.training.recipes import choose_recipe
from ehrsequencing.training.resume import Resume
from ehrsequencing.training.told import learned

Say = Callable[[str], None]


def write_encoder(
    meds: Path,
    out: Path,
    *,
    task: Path | None = None,
    epochs: int | None = None,
    max_steps: int | None = None,
    size: str = "small",
    architecture: str | None = None,
    attention: str = "bidirectional",
    objectives: Sequence[str] = (),
    code_vectors: Path | None = None,
    split: SplitConfig = SplitConfig(),
    seed: int = 0,
    progress: Progress = silent,
) -> str:
    """``ehrseq pretrain``: an encoder from the training subjects' records; returns what it learned.

    Killed, it goes on from ``OUT.partial/`` when the same command is given again, to the same weights.
    """
    asked = {"epochs": epochs, "max_steps": max_steps, "objectives": weights_of(objectives) if objectives else None}
    given = {name: value for name, value in asked.items() if value is not None}
    pretraining = parse(PretrainConfig, given, "--objective, --epochs, --max-steps")
    vectors = None if code_vectors is None else str(code_vectors)
    shape = {"size": size, "architecture": architecture, "attention": attention, "code_vectors": vectors}
    shape = {name: value for name, value in shape.items() if value is not None}
    model = parse(ModelConfig, shape, "--size, --architecture, --attention, --code-vectors")
    with workplace(Path(out), ENCODER_MARKER, "pretrain") as place:
        encoder = pretrain(
            MedsDataset.open(meds),
            pretraining,
            model=model,
            input=InputConfig() if task is None else load_task(task),
            split=split,
            seed=seed,
            progress=progress,
            resume=Resume(place / "loop"),
            folder=place / "tokens",
        )
        encoder.save(out)
    record = encoder.record
    return (
        f"encoder in {out}: {record['subjects']:,} records, {record['tokens']:,} tokens, "
        f"{encoder.tokenizer.vocab_size:,} codes; {learned(record, brackets=True)}"
    )


def weights_of(objectives: Sequence[str]) -> dict[str, float]:
    """Objectives given as ``name`` or ``name=weight``.

    >>> weights_of(["masked-codes", "time-to-event=0.5"])
    {'masked-codes': 1.0, 'time-to-event': 0.5}

    Raises:
        EhrError: exit 2 for an unknown name, a weight that is no positive number, or a name given twice.
    """
    weights: dict[str, float] = {}
    for given in objectives:
        name, equals, weight = given.partition("=")
        if name not in OBJECTIVES:
            close = nearest(name, OBJECTIVES, 1) or list(OBJECTIVES)
            what = f"unknown objective '{name}'"
            raise EhrError(what, "--objective", f"try {', '.join(close)}", code=Exit.USAGE)
        if name in weights:
            raise EhrError(f"'{name}' is given twice", "--objective", "give it once, with its weight", code=Exit.USAGE)
        try:
            weights[name] = float(weight) if equals else 1.0
        except ValueError:
            weights[name] = math.nan
        if not 0 < weights[name] < math.inf:
            what = f"the weight of '{name}' is no positive number: '{weight}'"
            raise EhrError(what, "--objective", f"write {name}=0.5", code=Exit.USAGE)
    return weights


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
    resume: Resume | None = None,
    folder: Path | None = None,
) -> Encoder:
    """An encoder pretrained on the training subjects' whole records, under a task's ``input`` and ``delay`` rules.

    The tokens of a large dataset lie in ``folder`` meanwhile; without one they are kept in memory.

    By the calendar, training subjects are those with rows of the task in the training period (without a task, those
    whose records begin in it), and their records end with it.
    """
    task = input if isinstance(input, TaskConfig) else None
    if split.calendar is None:
        dataset.refuse_unnamed_split(TRAIN)
    cohort = None
    if task is not None and split.calendar is not None:
        cohort = build_cohort(dataset, task, calendar=split.calendar, visit_column=tokens.visit_column)
    subjects = divisions(dataset, None, split, task=task, cohort=cohort)[0].train_subjects()
    tokenizer, store = pretraining_records(
        dataset, subjects, input, tokens, model.attention, calendar=split.calendar, folder=folder
    )
    config = kept_from_outcomes(config, dataset, input)
    result = run_pretraining(store, tokenizer, config, model, seed=seed, progress=progress, resume=resume)
    record = {**result.record, "split": split.model_dump(mode="json")}
    return Encoder(result.model, tokenizer, record, np.sort(Encoder.hashes(store.subject_id)), result.heads)


def evaluate_held_out(data: SurvivalData, fitted: FineTuned, *, n_boot: int = 1_000) -> dict[str, Interval]:
    """Discrimination and accuracy of a fitted model on the held-out rows, with intervals, before recalibration."""
    at, train = data.index(HELD_OUT), data.targets(data.index(TRAIN))
    outcome = data.targets(at)
    return evaluate(
        to_predictions(
            fitted.logits[at], data.rows[at], data.grid, fitted.strategy.name, data.cohort_fingerprint, data.causes
        ),
        outcome.duration.numpy(),
        outcome.event.numpy(),
        train_duration=train.duration.numpy(),
        train_event=train.event.numpy(),
        tau=data.grid.tau,
        n_boot=n_boot,
        subject_id=data.rows[at]["subject_id"].to_numpy(),
    )


def write_bundle(
    meds: Path,
    task: Path,
    out: Path,
    *,
    encoder: Path,
    strategy: str = "auto",
    settings: Sequence[str] = (),
    attention: str | None = None,
    budget: BudgetConfig = BudgetConfig(),
    labelled: int | None = None,
    split: SplitConfig = SplitConfig(),
    seed: int = 0,
    progress: Progress = silent,
    say: Say = lambda text: None,
) -> str:
    """``ehrseq finetune``: one bundle by one strategy, or by the recipe's choice; returns what came out.

    ``settings`` (``KEY=VALUE``) change the strategy (``StrategyConfig``).

    Killed, it goes on from ``OUT.partial/`` when the same command is given again, to the same weights.
    """
    chosen = wanted_strategy(strategy, settings)
    with workplace(Path(out), MARKER, "finetune") as place:
        return _write_bundle(
            meds, task, out, Resume(place), encoder, chosen, attention, budget, labelled, split, seed, progress, say
        )


def wanted_strategy(name: str, settings: Sequence[str]) -> Strategy | None:
    """The strategy that was asked for, with its changes; None where the recipe is to choose (``auto``)."""
    if settings:
        return changed_strategy(name, settings)
    return None if name == "auto" else find_strategy(name)


def learning_cohort(
    dataset: MedsDataset, task: TaskConfig, encoder: Encoder, labelled: int | None, split: SplitConfig, say: Say
) -> Cohort:
    """The task's cohort for fine-tuning: the encoder's visits, at most ``labelled`` subjects, no empty split."""
    cohort = build_cohort(
        dataset,
        task,
        split_seed=split.seed,
        calendar=split.calendar,
        visit_column=encoder.tokenizer.config.visit_column,
    )
    cohort = limit_labelled(cohort, labelled, split.seed)
    say(cohort.describe())
    refuse_empty_splits(cohort)
    return cohort


def changed_strategy(name: str, settings: Sequence[str]) -> Strategy:
    """A strategy with settings given as ``KEY=VALUE``, values as in YAML.

    >>> changed_strategy("lora", ["lora_rank=32", "lora_targets=feed_forward"]).lora_rank
    32

    Raises:
        EhrError: exit 2 for ``auto`` or a setting without ``=``; exit 10 as ``read_strategy``.
    """
    if name == "auto":
        fix = "name the strategy they change (--strategy lora)"
        raise EhrError("settings are of one strategy, but auto chooses among several", "--set", fix, code=Exit.USAGE)
    given: dict[str, Any] = {}
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals or not value.strip() or key in ("name", "like"):
            raise EhrError(f"expected KEY=VALUE, found '{setting}'", "--set", "write lora_rank=32", code=Exit.USAGE)
        if key in given:
            raise EhrError(f"{key} is set twice", "--set", "set it once", code=Exit.USAGE)
        try:
            given[key] = yaml.safe_load(value)
        except yaml.YAMLError:
            what = f"the value of {key} is no YAML: '{value}'"
            raise EhrError(what, "--set", "write numbers, words or [lists]", code=Exit.USAGE) from None
    return read_strategy(parse(StrategyConfig, {"name": f"{name}-changed", "like": name, **given}, "--set"), "--set")


def _write_bundle(
    meds: Path,
    task: Path,
    out: Path,
    resume: Resume,
    encoder: Path,
    strategy: Strategy | None,
    attention: str | None,
    budget: BudgetConfig,
    labelled: int | None,
    split: SplitConfig,
    seed: int,
    progress: Progress,
    say: Say,
) -> str:
    dataset, pretrained = MedsDataset.open(meds), Encoder.load(encoder)
    config = load_task(task)
    cohort = learning_cohort(dataset, config, pretrained, labelled, split, say)
    prepared = prepare(dataset, cohort, pretrained)
    data = prepared.data
    say(cut_short(data.tokens, data.tokenizer))
    choice = choose_recipe(prepared.n_labelled, prepared.n_labelled_events, prepared.events(TUNING))
    recipe, departures = choice.recipe.within(budget)
    say("\n".join([choice.text(), *(f"  departure     {text}" for text in departures)]))
    cache = FeatureCache()

    def fit(chosen: str | Strategy) -> FineTuned:
        strategy = find_strategy(chosen)
        return finetune(
            data,
            strategy,
            recipe,
            pretrained.model,
            seed=seed,
            attention=attention,
            cache=cache,
            progress=progress,
            resume=resume.within(strategy.name),
        )

    if strategy is None:
        chosen = choose(data, recipe, fit, say)
        fitted, sentences = chosen.fitted, chosen.sentences
    else:
        fitted, sentences = fit(strategy), (f"{strategy.name} was asked for: {strategy.why}.",)
    wide = fit_wide(data)
    facts = {"seed": seed, "split": split.model_dump(mode="json"), "recipe": recipe.name, "choice": list(sentences)}
    bundle = make_bundle(prepared, config, fitted, wide, facts)
    bundle.save(out)
    rows = ", ".join(f"{name} (α {row.alpha:g})" for name, row in bundle.rows.items())
    return f"bundle in {out}: {fitted.strategy.name}; tuning {bundle.facts['tuning_text']}; rows {rows}"
