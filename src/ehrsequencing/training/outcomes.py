"""Fine-tunes one encoder for several outcomes, a hazard head each: on shared features, or all trained jointly."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32
from torch import Tensor

from ehrsequencing.batches import SurvivalData
from ehrsequencing.config import ModelConfig
from ehrsequencing.device import compute
from ehrsequencing.models.behrt import BEHRTModel
from ehrsequencing.models.footprint import FootprintAudit, footprint
from ehrsequencing.models.forward import encode
from ehrsequencing.models.heads import LinearHead
from ehrsequencing.models.strategies import Strategy, find_strategy
from ehrsequencing.training.candidates import resume_of, try_each, why_kept
from ehrsequencing.training.finetune import (
    FineTuned,
    Start,
    dropouts,
    finetune,
    head_logits,
    new_model,
    schedule_of,
)
from ehrsequencing.training.joint import JointSurvival, OutcomesObjective
from ehrsequencing.training.loop import Epoch, Progress, Tick, silent, train, trainable_state
from ehrsequencing.training.recipes import Recipe
from ehrsequencing.training.resume import Resume
from ehrsequencing.training.union import SharedFeatures, UnionRows, refuse_unlike

JOINTLY = "trained jointly with {} other outcome{}: epochs, seconds and the score that kept an epoch are those of all"
BY_SCORE = "epochs were selected by discrimination alone: choosing among them by calibration is for one outcome"


def finetune_outcomes(
    datas: Mapping[str, SurvivalData],
    strategy: Strategy | str,
    recipe: Recipe,
    encoder: BEHRTModel,
    *,
    seed: int = 0,
    dropout: float | None = None,
    code_dropout: float = ModelConfig().code_dropout,
    attention: str | None = None,
    progress: Progress = silent,
    resume: Resume | None = None,
) -> dict[str, FineTuned]:
    """One encoder for several outcomes, a hazard head each; returns an ordinary fine-tuned model for every outcome.

    A strategy that leaves the encoder as it is runs it once over the union of all rows, and fits each head by itself:
    the same as ``finetune`` of each outcome, at the cost of one encoding. A strategy that moves the encoder trains one
    for all (Caruana 1997, Multitask Learning): a step draws patients from the union of the training rows, its loss is
    the mean, over the outcomes that have rows in it, of each head's hybrid loss, and an epoch's score is the mean over
    the outcomes of Harrell's C on tuning. Each returned model then carries a copy of the joint encoder.

    Args:
        datas: by the outcome's name, as ``prepare_outcomes`` makes them: one tokenizer, records cut alike; rows,
            durations, grids and causes may differ.
        encoder: copied, never changed.
        seed, dropout, code_dropout, attention, resume: as in ``finetune``.

    >>> datas = {name: each.data for name, each in prepare_outcomes(...).items()}  # doctest: +SKIP
    >>> fitted = finetune_outcomes(datas, "lora", RECIPES["medium"], encoder.model)  # doctest: +SKIP
    >>> fitted["heart-failure"].tuning(datas["heart-failure"])["tuning_c"]  # doctest: +SKIP
    0.78

    Raises:
        EhrError: no outcome, predictions at every visit, or records cut otherwise (exit 10); a subject that one outcome
            trains on and another holds out (exit 15).
    """
    refuse_unlike(datas)
    strategy = find_strategy(strategy)
    shared = SharedFeatures(UnionRows.of(datas))
    if not strategy.cached_features:
        about = recipe, encoder, seed, dropouts(dropout, code_dropout), attention, shared, progress
        return _best_of(
            datas, strategy, lambda each: _fit_jointly(datas, each, *about, resume_of(each, strategy, resume))
        )
    return {
        name: finetune(
            data,
            strategy,
            recipe,
            encoder,
            seed=seed,
            dropout=dropout,
            code_dropout=code_dropout,
            attention=attention,
            cache=shared.of(name),
            progress=_of_outcome(name, progress),
            resume=None if resume is None else resume.within(name),
        )
        for name, data in datas.items()
    }


def _best_of(
    datas: Mapping[str, SurvivalData], strategy: Strategy, fit: Callable[[Strategy], dict[str, FineTuned]]
) -> dict[str, FineTuned]:
    """Of the strategy's candidates, the one of the lowest mean tuning likelihood loss over the outcomes."""
    tried, lost = try_each(strategy, fit)
    kept, fits = min(
        tried, key=lambda one: float(np.mean([one[1][name].tuning(data)["tuning_nll"] for name, data in datas.items()]))
    )
    alone = len(strategy.candidates) == 1
    told = [] if alone else [*lost, f"{why_kept(strategy, kept)}, on average over the outcomes"]
    seconds = sum(found[name].seconds for _, found in tried for name in list(datas)[:1])
    return {
        name: replace(each, strategy=strategy, seconds=seconds, notes=[*each.notes, *told])
        for name, each in fits.items()
    }


def _of_outcome(name: str, progress: Progress) -> Progress:
    """Tells the progress of one outcome's fit under its name."""
    return lambda tick: progress(replace(tick, title=f"{name}: {tick.title}"))


def _fit_jointly(
    datas: Mapping[str, SurvivalData],
    strategy: Strategy,
    recipe: Recipe,
    encoder: BEHRTModel,
    seed: int,
    overrides: dict[str, Any],
    attention: str | None,
    shared: SharedFeatures,
    progress: Progress,
    resume: Resume | None,
) -> dict[str, FineTuned]:
    started = time.perf_counter()
    joint, told = JointSurvival.start(
        datas, shared, lambda data: new_model(data, strategy, encoder, seed, overrides, attention)
    )
    objective = OutcomesObjective(joint, datas, shared.rows, recipe.lambda_rank)
    audit, title = FootprintAudit(joint), f"{strategy.name}, {len(datas)} outcomes"
    start = _start(joint, objective, shared)
    progress(Tick(title, 0, recipe.epochs, footprint(joint)))
    schedule = schedule_of(strategy, recipe, seed, joint.any_view.config.num_hidden_layers)
    history = train(joint, objective, schedule, title=title, progress=progress, audit=audit, resume=resume,
                    device=compute().device)  # fmt: skip
    common = [*audit.notes, *schedule.pacing.held_to_the_end(len(history)), *_asides(recipe, datas)]
    common += [] if start is None else start.keep_if_better(joint, history)
    joint.eval()
    pooled = encode(joint.any_view, shared.rows.tokens, np.arange(len(shared.rows)))  # [N, F]
    features = {
        name: objective.beside(name, pooled[torch.from_numpy(shared.rows.places[name])], np.arange(len(data)))
        for name, data in datas.items()
    }
    seconds = max(sum(epoch.seconds for epoch in history), time.perf_counter() - started)
    return {
        name: _one_of(joint, name, features[name], strategy, history, seconds,
                      [*told[name], *objective.notes(name), *common])
        for name in datas
    }  # fmt: skip


def _one_of(
    joint: JointSurvival,
    name: str,
    features: Float32[Tensor, "n F"],
    strategy: Strategy,
    history: list[Epoch],
    seconds: float,
    notes: list[str],
) -> FineTuned:
    """One outcome's ordinary model: a copy of the joint encoder under its own head, with its own figures an epoch."""
    model = copy.deepcopy(joint.views[name])
    model.behrt.config = model.config  # the joint encoder has that of another head
    epochs = [replace(epoch, metrics=_own_figures(epoch.metrics, name)) for epoch in history]
    counts = model.get_trainable_parameters()
    return FineTuned(strategy, model, head_logits(model, features), counts, epochs, seconds, notes)


def _own_figures(metrics: Mapping[str, float], name: str) -> dict[str, float]:
    stem = f"{name}/"
    own = {key.removeprefix(stem): value for key, value in metrics.items() if key.startswith(stem)}
    return {**own, "score": metrics["score"]}


def _start(joint: JointSurvival, objective: OutcomesObjective, shared: SharedFeatures) -> Start | None:
    """The heads as the convex fits set them, to go back to where no epoch did better; None for heads without one."""
    if not all(isinstance(head, LinearHead) for head in joint.heads):
        return None
    return Start(trainable_state(joint), objective.start_score(shared))


def _asides(recipe: Recipe, datas: Mapping[str, SurvivalData]) -> list[str]:
    others = len(datas) - 1
    told = [JOINTLY.format(others, "" if others == 1 else "s")] if others else []
    return told if recipe.checkpoint == "c_index" else [*told, BY_SCORE]
