"""How long a study will take on this machine: tokens to be read, times the measured pace of a training step."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
import polars as pl

from ehrsequencing.batches import collate, micro_batches
from ehrsequencing.cohort import Cohort, cut
from ehrsequencing.config import TOKEN_BUDGET, TRAIN, StudyConfig, TaskConfig
from ehrsequencing.events import MedsDataset
from ehrsequencing.inference import read_visits
from ehrsequencing.models.behrt import BEHRTConfig
from ehrsequencing.models.behrt_survival import BEHRTForSurvival
from ehrsequencing.models.own_strategies import read_strategy
from ehrsequencing.study.data import Division, pretraining_records
from ehrsequencing.tokens import Tokenizer, TokenStore, tokenize
from ehrsequencing.training.recipes import Recipe

TRIAL_SECONDS = 3.0
PRETRAINING_FACTOR = 1.3
"""A masked-code step costs this many fine-tuning steps of the same tokens (head over the vocabulary)."""


def estimate(
    study: StudyConfig,
    dataset: MedsDataset,
    task: TaskConfig,
    cohorts: Sequence[Cohort],
    parts: Sequence[Division],
    recipe: Recipe,
) -> str:
    """What would be fitted, and at most how many minutes that takes here (early stopping usually ends sooner)."""
    tokenizer, records = pretraining_records(
        dataset,
        parts[0].train_subjects(),
        task,
        study.tokens,
        study.model.attention,
        calendar=study.split.calendar,
    )
    store, learning = _learned(study, dataset, task, cohorts[0], tokenizer)
    pace = tokens_per_second(store, study, tokenizer.vocab_size, tokenizer.value_codes)
    pretraining = PRETRAINING_FACTOR * int(records.offsets[-1]) * study.pretrain.epochs
    strategies = [read_strategy(given) for given in study.strategies]
    moving = sum(len(strategy.candidates) for strategy in strategies if not strategy.cached_features)
    tuning = learning * recipe.epochs * moving * len(study.seeds)
    minutes = (pretraining + tuning) * len(parts) / pace / 60
    names = ", ".join(each.name for each in strategies)
    lines = [
        f"would pretrain {len(parts)} encoder(s): {int(records.offsets[-1]):,} tokens, {study.pretrain.epochs} epochs",
        f"would fit {names} with {len(study.seeds)} seed(s) on {learning:,} training tokens, "
        f"at most {recipe.epochs} epochs",
        f"would fit {', '.join(study.baselines)}",
        f"measured pace: {pace:,.0f} tokens a second in training; at most about {max(minutes, 0.1):.1f} minutes in all",
    ]
    return "\n".join(lines)


def _learned(
    study: StudyConfig, dataset: MedsDataset, task: TaskConfig, cohort: Cohort, tokenizer: Tokenizer
) -> tuple[TokenStore, int]:
    """What a model reads of the cohort, and how many tokens of it in training: windows, where every visit is one."""
    if cohort.visits is not None:
        store = read_visits(dataset, cohort.visits, task, tokenizer).tokens
        train = cohort.visits.filter(pl.col("split") == TRAIN)["subject_id"].unique()
        return store, int(store.lengths[np.isin(store.subject_id, train.to_numpy())].sum())
    rows = cohort.table
    history = cut(dataset.scan(), rows, task, visit_column=study.tokens.visit_column)
    store = tokenize(history.collect(engine="streaming"), rows, tokenizer)
    return store, int(store.lengths[(rows["split"] == TRAIN).to_numpy()].sum())


def tokens_per_second(store: TokenStore, study: StudyConfig, vocab_size: int, value_codes: tuple[int, ...]) -> float:
    """Tokens trained on in a second, by a few real steps on the study's own records."""
    kind = {"architecture": study.model.architecture, "attention": study.model.attention}
    config = BEHRTConfig.of_size(study.model.size, vocab_size, value_codes=value_codes, **kind)
    model = BEHRTForSurvival(config)
    rows = np.random.default_rng(0).permutation(len(store))[:256]
    parts = micro_batches(store, rows, TOKEN_BUDGET // 4)
    tokens, started = 0, time.perf_counter()
    for part in parts:
        model(collate(store, part)).sum().backward()
        tokens += int(store.lengths[part].sum())
        if time.perf_counter() - started > TRIAL_SECONDS:
            break
    return tokens / (time.perf_counter() - started)
