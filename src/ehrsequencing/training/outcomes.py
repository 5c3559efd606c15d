"""Fine-tunes one encoder for several outcomes, a hazard head each: on shared features, or all trained jointly."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float32, Int64
from torch import Tensor, nn

from ehrsequencing.batches import SurvivalData
from ehrsequencing.config import ModelConfig
from ehrsequencing.models.behrt import BEHRTModel
from ehrsequencing.models.behrt_survival import BEHRTForSurvival
from ehrsequencing.models.forward import encode, in_micro_batches
from ehrsequencing.models.heads import LinearHead
from ehrsequencing.models.strategies import FootprintAudit, Strategy, find_strategy, footprint
from ehrsequencing.training.finetune import (
    FineTuned,
    Start,
    dropouts,
    finetune,
    head_logits,
    new_model,
    schedule_of,
    start_head,
)
from ehrsequencing.training.loop import Epoch, Progress, Tick, silent, train, trainable_state
from ehrsequencing.training.objectives import NO_PAIR, Forward, SurvivalObjective
from ehrsequencing.training.recipes import Recipe
from ehrsequencing.training.resume import Resume, Snapshot, digest_of
from ehrsequencing.training.union import SharedFeatures, UnionRows, refuse_unlike

JOINTLY = "trained jointly with {} other outcome{}: epochs, seconds and the score that kept an epoch are those of all"
UNRANKED = "no comparable pair in its tuning split: the other outcomes selected the epochs"
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
        overrides = dropouts(dropout, code_dropout)
        return _fit_jointly(datas, strategy, recipe, encoder, seed, overrides, attention, shared, progress, resume)
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


def _of_outcome(name: str, progress: Progress) -> Progress:
    """Tells the progress of one outcome's fit under its name."""
    return lambda tick: progress(replace(tick, title=f"{name}: {tick.title}"))


class JointSurvival(nn.Module):
    """One encoder (``behrt``) under the heads of several outcomes; ``views`` are survival models made of its parts.

    The heads are numbered, since a task's name may hold what a module's may not.
    """

    def __init__(self, views: Mapping[str, BEHRTForSurvival]) -> None:
        super().__init__()
        self.views = dict(views)
        self.behrt = self.any_view.behrt
        self.heads = nn.ModuleList(view.hazard_head for view in views.values())

    @property
    def any_view(self) -> BEHRTForSurvival:
        """One of the views: all of them have the same encoder."""
        return next(iter(self.views.values()))

    def train(self, mode: bool = True) -> JointSurvival:
        """Training mode for the encoder, the heads and the views."""
        super().train(mode)
        for view in self.views.values():
            view.train(mode)
        return self

    def features(self, rows: UnionRows, at: Int64[np.ndarray, " n"]) -> Float[Tensor, "n F"]:
        """Pooled vectors of the union's rows ``at``; graphs are kept."""
        return in_micro_batches(self.any_view.features, rows.tokens, at)

    @classmethod
    def start(
        cls,
        datas: Mapping[str, SurvivalData],
        shared: SharedFeatures,
        make: Callable[[SurvivalData], BEHRTForSurvival],
    ) -> tuple[JointSurvival, dict[str, list[str]]]:
        """One encoder, and each head where its own training rows let it start; with the notes of the convex fits."""
        views = {name: make(data) for name, data in datas.items()}
        behrt = next(iter(views.values())).behrt
        notes: dict[str, list[str]] = {}
        for name, view in views.items():
            view.behrt = behrt
            ridge = start_head(view, datas[name], shared.of(name))
            notes[name] = [] if ridge is None else list(ridge.notes)
        return cls(views), notes


class _Encoded:
    """The pooled vectors of the rows that are in hand, found by their places in the union."""

    def __init__(self, n: int) -> None:
        self._at = np.full(n, -1, dtype=np.int64)
        self._features = torch.zeros(0)

    def hold(self, rows: Int64[np.ndarray, " n"], features: Float[Tensor, "n F"]) -> None:
        self._at[:] = -1
        self._at[rows] = np.arange(len(rows))
        self._features = features

    def of(self, rows: Int64[np.ndarray, " m"]) -> Float[Tensor, "m F"]:
        return self._features[torch.from_numpy(self._at[rows])]


@dataclass(frozen=True, eq=False)
class _Outcome:
    """One outcome's own objective, and which of its training rows each row of the union is (−1: none)."""

    objective: SurvivalObjective
    position: Int64[np.ndarray, " N"]

    @classmethod
    def of(cls, objective: SurvivalObjective, place: Int64[np.ndarray, " n"], size: int) -> _Outcome:
        position = np.full(size, -1, dtype=np.int64)
        position[place[objective.train]] = np.arange(objective.n_rows)
        return cls(objective, position)

    def among(self, rows: Int64[np.ndarray, " b"]) -> Int64[np.ndarray, " k"]:
        """Positions of its own training rows among rows of the union, in their order."""
        own = self.position[rows]
        return own[own >= 0]


class OutcomesObjective:
    """The mean of several outcomes' hybrid losses over one encoding of a step's patients; each judged on its tuning."""

    def __init__(
        self, model: JointSurvival, datas: Mapping[str, SurvivalData], rows: UnionRows, lambda_rank: float
    ) -> None:
        self.model, self.rows, self._encoded = model, rows, _Encoded(len(rows))
        self.outcomes = {
            name: _Outcome.of(SurvivalObjective(data, self._forward(name), lambda_rank), rows.places[name], len(rows))
            for name, data in datas.items()
        }
        self.train = self._union(lambda objective: objective.train)
        self.tuning = self._union(lambda objective: objective.tuning)
        self.n_rows = len(self.train)

    def _forward(self, name: str) -> Forward:
        """From rows of the outcome's data, which are in hand, to its logits."""
        view, place = self.model.views[name], self.rows.places[name]
        return lambda rows: view.hazards(self._encoded.of(place[rows]))

    def _union(self, of: Callable[[SurvivalObjective], Int64[np.ndarray, " n"]]) -> Int64[np.ndarray, " m"]:
        parts = [self.rows.places[name][of(outcome.objective)] for name, outcome in self.outcomes.items()]
        return np.unique(np.concatenate(parts))

    def loss(self, rows: Int64[np.ndarray, " b"]) -> Float[Tensor, ""]:
        """The mean of the losses of the outcomes that have rows in the step; every patient is encoded once."""
        at = self.train[rows]
        self._encoded.hold(at, self.model.features(self.rows, at))  # [b, F]
        losses = [each.objective.loss(own) for each in self.outcomes.values() if len(own := each.among(at))]
        return torch.stack(losses).mean()

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Every outcome's figures as ``NAME/figure``, their means over the outcomes, and the ``score``."""
        self._encoded.hold(self.tuning, self.model.features(self.rows, self.tuning))  # [m, F]
        found = {name: each.objective.validate() for name, each in self.outcomes.items()}
        named = {f"{name}/{key}": value for name, own in found.items() for key, value in own.items() if key != "score"}
        return {**named, **_means(found), "score": self.score(found)}

    def score(self, found: Mapping[str, Mapping[str, float]]) -> float:
        """Mean Harrell's C of the outcomes that have a comparable pair on tuning; without any, minus the mean NLL."""
        c = [own["tuning_c"] for own in found.values() if "tuning_c" in own]
        return float(np.mean(c)) if c else -float(np.mean([own["tuning_nll"] for own in found.values()]))

    def start_score(self, shared: SharedFeatures) -> float:
        """The score of the heads as they start, on the features of the encoder as it starts."""
        found = {}
        for name, each in self.outcomes.items():
            view, place = self.model.views[name], torch.from_numpy(self.rows.places[name][each.objective.tuning])
            found[name] = each.objective.score(head_logits(view, shared.all(view)[place]))
        return self.score(found)

    def notes(self, name: str) -> list[str]:
        """What had to be left out or judged otherwise than planned for one outcome."""
        own = self.outcomes[name].objective
        ranked = any(each.objective.score.can_rank for each in self.outcomes.values())
        return [UNRANKED if ranked and note == NO_PAIR else note for note in own.notes]

    def fingerprint(self) -> str:
        """Of the outcomes' names, data and settings, in their order."""
        return digest_of([[name, each.objective.fingerprint()] for name, each in self.outcomes.items()])

    def state(self) -> Snapshot:
        """The outcomes' own states."""
        found = Snapshot()
        for name, each in self.outcomes.items():
            found.join(name, each.objective.state())
        return found

    def restore(self, state: Snapshot) -> None:
        """Go on from what ``state`` gave."""
        for name, each in self.outcomes.items():
            each.objective.restore(state.part(name))


def _means(found: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Of each figure, over the outcomes that have it."""
    names = dict.fromkeys(key for own in found.values() for key in own if key != "score")
    return {key: float(np.mean([own[key] for own in found.values() if key in own])) for key in names}


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
    history = train(joint, objective, schedule_of(strategy, recipe, seed), title=title, progress=progress, audit=audit,
                    resume=resume)  # fmt: skip
    common = [*audit.notes, *([] if start is None else start.keep_if_better(joint, history)), *_asides(recipe, datas)]
    joint.eval()
    features = encode(joint.any_view, shared.rows.tokens, np.arange(len(shared.rows)))  # [N, F]
    seconds = max(sum(epoch.seconds for epoch in history), time.perf_counter() - started)
    return {
        name: _one_of(joint, name, features[torch.from_numpy(shared.rows.places[name])], strategy, history, seconds,
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
