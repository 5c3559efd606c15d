"""Adapts an encoder to one outcome by a strategy: cached features for a frozen encoder, tokens for the others."""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32, Float64, Int64
from torch import Tensor, nn

from ehrsequencing.batches import SurvivalData, VisitData
from ehrsequencing.config import TRAIN, TUNING, ModelConfig, OptimizerConfig
from ehrsequencing.device import compute, device_of
from ehrsequencing.errors import EhrError, Exit
from ehrsequencing.evaluation.metrics import harrell_c
from ehrsequencing.models.behrt import BEHRTModel
from ehrsequencing.models.behrt_survival import BEHRTForSurvival
from ehrsequencing.models.footprint import FootprintAudit, footprint
from ehrsequencing.models.forward import (
    encode,
    encode_visits,
    hazard_logits,
    in_micro_batches,
    pairs_of,
    visit_features,
    visit_logits,
)
from ehrsequencing.models.heads import LinearHead
from ehrsequencing.models.strategies import Strategy, find_strategy
from ehrsequencing.models.wide import RidgeHazard, fit_ridge_hazard
from ehrsequencing.nonparametric import for_outcome
from ehrsequencing.training.candidates import resume_of, try_each, why_kept
from ehrsequencing.training.checkpoints import calibrated_among_the_best
from ehrsequencing.training.loop import Epoch, Progress, Schedule, State, Tick, restore, silent, train, trainable_state
from ehrsequencing.training.objectives import SurvivalObjective, TuningScore
from ehrsequencing.training.pacing import Pacing
from ehrsequencing.training.recipes import Recipe
from ehrsequencing.training.resume import Resume, module_digest
from ehrsequencing.training.visits import VisitObjective

EVEN_ROWS, MOST_EVEN = 40_000, 8
"""A convex fit reads about so many visits in all, at most so many of one patient."""


class FeatureCache:
    """Pooled features of whole token stores, computed once per encoder: keyed by weights, tokens and mask."""

    def __init__(self) -> None:
        self._kept: dict[str, Float32[Tensor, "N F"]] = {}
        self._pairs: dict[str, Float32[Tensor, "N P"]] = {}
        self.encoder_passes = 0

    def get(self, model: BEHRTForSurvival, data: SurvivalData) -> Float32[Tensor, "N F"]:
        """What the head reads of every row of ``data``, or of all of its visits, in eval mode."""
        pooled, pairs = self.pooled(model, data), model.config.pairs
        key = f"{_read_by(data)}/{pairs}"
        if pairs and key not in self._pairs:
            self._pairs[key] = pairs_of(model, data.tokens, np.arange(len(data)))
        return torch.cat([pooled, self._pairs[key]], dim=1) if pairs else pooled

    def pooled(self, model: BEHRTForSurvival, data: SurvivalData) -> Float32[Tensor, "N F"]:
        """Pooled vectors of every row of ``data``, or of all of its visits, under the model's encoder, in eval mode."""
        read = _read_by(data) if data.visits is None else data.visits.places.fingerprint
        key = f"{module_digest(model.behrt)}/{read}/{model.config.attention}"
        if key not in self._kept:
            self._kept[key] = (
                encode(model, data.tokens, np.arange(len(data)))
                if data.visits is None
                else encode_visits(model, data.visits.places)
            )
            self.encoder_passes += 1
        return self._kept[key]


def _read_by(data: SurvivalData) -> str:
    """Of the tokens of ``data`` and the order of its rows."""
    tokens = data.tokens
    order = tokens.subject_id.tobytes() + tokens.prediction_time.astype("datetime64[us]").tobytes()
    return f"{tokens.fingerprint}/{hashlib.blake2b(order, digest_size=16).hexdigest()}"


@dataclass
class FineTuned:
    """A fitted model with its raw hazard logits for every row of the data, and how it came about.

    Attributes:
        logits: float64 [N, K], or [N, K, R] with competing causes, before any blending or recalibration.
        counts: parameters, ``trainable`` and ``total`` at least.
        history: one record an epoch; empty for a head fitted to convergence.
    """

    strategy: Strategy
    model: BEHRTForSurvival
    logits: Float64[np.ndarray, "N K *R"]
    counts: dict[str, int]
    history: list[Epoch]
    seconds: float
    notes: list[str] = field(default_factory=list)

    def tuning(self, data: SurvivalData) -> dict[str, float]:
        """``tuning_c``, ``tuning_brier``, ``tuning_nll`` of the model as kept."""
        return TuningScore(data)(self.logits[data.index(TUNING)])

    def train_c(self, data: SurvivalData) -> float:
        """Harrell's C on the training rows, in eval mode."""
        rows = data.index(TRAIN)
        targets = data.targets(rows)
        outcome = for_outcome(targets.duration.numpy(), targets.event.numpy(), data.grid.tau)
        return harrell_c(*outcome, data.grid.risk(self.logits[rows]))


def finetune(
    data: SurvivalData,
    strategy: Strategy | str,
    recipe: Recipe,
    encoder: BEHRTModel,
    *,
    seed: int = 0,
    dropout: float | None = None,
    code_dropout: float = ModelConfig().code_dropout,
    attention: str | None = None,
    cache: FeatureCache | None = None,
    progress: Progress = silent,
    resume: Resume | None = None,
) -> FineTuned:
    """Fit one strategy on the training split, stopped and selected on the tuning split; held-out rows are only scored.

    ``encoder`` is copied, never changed; a strategy with a random encoder takes its sizes alone. One pretrained under
    another mask than the predictions need is refused unless ``attention`` names a mask (see ``from_encoder``).
    ``resume`` says where the loop's state is saved as it goes, and taken up again after a killed run.
    """
    started = time.perf_counter()
    strategy, cache = find_strategy(strategy), cache or FeatureCache()
    overrides = dropouts(dropout, code_dropout)
    about = recipe, encoder, seed, overrides, attention, cache, progress
    tried, lost = try_each(strategy, lambda each: _fit(data, each, *about, resume_of(each, strategy, resume)))
    best = min((fit for _, fit in tried), key=lambda fit: fit.tuning(data)["tuning_nll"])
    told = [why_kept(strategy, best.strategy)] if len(strategy.candidates) > 1 else []
    fitted = replace(best, strategy=strategy, notes=[*best.notes, *lost, *told])
    spent = sum(epoch.seconds for _, fit in tried for epoch in fit.history)  # part of it before a kill, perhaps
    return replace(fitted, seconds=max(spent, time.perf_counter() - started))


def _fit(
    data: SurvivalData,
    strategy: Strategy,
    recipe: Recipe,
    encoder: BEHRTModel,
    seed: int,
    overrides: dict[str, Any],
    attention: str | None,
    cache: FeatureCache,
    progress: Progress,
    resume: Resume | None,
) -> FineTuned:
    model = new_model(data, strategy, encoder, seed, overrides, attention)
    ridge = start_head(model, data, cache)
    if ridge is not None and strategy.head == "linear":
        return _fit_linear(model, data, strategy, ridge, cache, progress)
    fitted = _fit_by_loop(model, data, strategy, recipe, seed, cache, progress, resume)
    return replace(fitted, notes=[*([] if ridge is None else ridge.notes), *fitted.notes])


def dropouts(dropout: float | None, code_dropout: float | None) -> dict[str, Any]:
    """The shares that replace those of the encoder's configuration; None leaves one as it is."""
    shares = {"dropout": dropout, "head_dropout": dropout, "code_dropout": code_dropout}
    return {name: share for name, share in shares.items() if share is not None}


def new_model(
    data: SurvivalData,
    strategy: Strategy,
    encoder: BEHRTModel,
    seed: int,
    overrides: dict[str, Any],
    attention: str | None,
) -> BEHRTForSurvival:
    """A copy of the encoder under the strategy, with a new head of the sizes that ``data`` asks for."""
    torch.manual_seed(seed)
    shape = {"n_bins": data.grid.n_bins, "n_causes": data.n_causes, "pairs": pair_ids(data)}
    overrides = {**overrides, **shape, "head": strategy.head, "hazards": strategy.hazards}
    predict_at = "index" if data.visits is None else "every_visit"
    return BEHRTForSurvival.from_encoder(
        encoder, strategy=strategy, predict_at=predict_at, attention=attention, **overrides
    )


def pair_ids(data: SurvivalData) -> list[list[str | int]]:
    """The pairs of ``data`` as a model reads them: of codes that the tokenizer knows, at the index."""
    number = {code: at for at, code in enumerate(data.tokenizer.codes)}
    known = [pair for pair in data.pairs if pair.first in number and pair.second in number]
    return [[pair.kind, number[pair.first], number[pair.second]] for pair in known if data.visits is None]


def start_head(model: BEHRTForSurvival, data: SurvivalData, cache: FeatureCache) -> RidgeHazard | None:
    """Where a head starts, from the training rows: its standardiser, the marginal hazards, and the convex fit (which is
    returned) where it has a linear part."""
    _prepare_head(model, data, cache)
    if not isinstance(model.hazard_head, LinearHead):
        return None
    ridge = _fit_ridge(model, data, cache)
    model.hazard_head.set_ridge(ridge)
    return ridge


def _prepare_head(model: BEHRTForSurvival, data: SurvivalData, cache: FeatureCache) -> None:
    """Standardise features by the training rows under the encoder as it starts; bias at the marginal hazard."""
    rows = data.index(TRAIN)
    learned = rows if data.visits is None else data.visits.index(TRAIN)
    features = cache.get(model, data)[torch.from_numpy(learned)]
    targets = data.targets(rows)
    marginal = data.grid.marginal_logits(targets.duration.numpy(), targets.event.numpy(), data.n_causes)
    mean, std = features.mean(dim=0), features.std(dim=0)
    own = len(mean) - len(model.config.pairs)
    mean[own:], std[own:] = 0, 1  # columns of pairs lie in [-1, 1], mostly at 0: scaled, a rare one would dominate
    model.hazard_head.set_standardiser(mean, std)
    model.hazard_head.set_marginal(torch.from_numpy(marginal).float())


def _fit_ridge(model: BEHRTForSurvival, data: SurvivalData, cache: FeatureCache) -> RidgeHazard:
    """The convex fit on the features of the encoder as it starts; the penalty is chosen on tuning."""
    tuning_rows, visits = data.index(TUNING), data.visits
    x = cache.get(model, data).numpy()
    train_rows = data.index(TRAIN) if visits is None else _even_visits(visits)
    return fit_ridge_hazard(
        x[train_rows],
        (data if visits is None else visits).targets(train_rows),
        x[_places(data, tuning_rows)],
        data.targets(tuning_rows),
        n_bins=data.grid.n_bins,
        n_causes=data.n_causes,
        per_bin=model.config.head_hazards == "per_bin",
        patient=None if visits is None else visits.rows["subject_id"].to_numpy()[train_rows],
        found=len(model.config.pairs),
    )


def _fit_linear(
    model: BEHRTForSurvival,
    data: SurvivalData,
    strategy: Strategy,
    ridge: RidgeHazard,
    cache: FeatureCache,
    progress: Progress,
) -> FineTuned:
    """The head as the convex fit set it: nothing is left to train."""
    counts = model.get_trainable_parameters()
    progress(Tick(strategy.name, 0, 1, _footprint(model, strategy)))
    logits = head_logits(model, cache.get(model, data)[_places(data)])
    progress(Tick(strategy.name, 1, 1, f"penalty {ridge.penalty:.2g} chosen on tuning"))
    return FineTuned(strategy, model, logits, counts, [], 0.0, list(ridge.notes))


def _fit_by_loop(
    model: BEHRTForSurvival,
    data: SurvivalData,
    strategy: Strategy,
    recipe: Recipe,
    seed: int,
    cache: FeatureCache,
    progress: Progress,
    resume: Resume | None,
) -> FineTuned:
    objective = _objective(model, data, strategy, recipe, cache)
    schedule = schedule_of(strategy, recipe, seed, model.config.num_hidden_layers)
    audit = FootprintAudit(model)
    counts = model.get_trainable_parameters()
    progress(Tick(strategy.name, 0, recipe.epochs, _footprint(model, strategy)))
    choose = calibrated_among_the_best(objective) if recipe.checkpoint == "c_index+calibration" else None
    start = Start.of(model, data, cache) if isinstance(model.hazard_head, LinearHead) else None
    device = device_of(model) if strategy.cached_features else compute().device  # a head alone keeps no GPU busy
    history = train(model, objective, schedule, title=strategy.name, progress=progress, audit=audit, choose=choose,
                    resume=resume, device=device)  # fmt: skip
    notes = [*audit.notes, *objective.notes, *schedule.pacing.held_to_the_end(len(history))]
    notes += [] if start is None else start.keep_if_better(model, history)
    model.eval()
    if strategy.cached_features:
        logits = head_logits(model, cache.get(model, data)[_places(data)])
    elif data.visits is None:
        logits = hazard_logits(model, data.tokens, np.arange(len(data)))
    else:
        logits = visit_logits(model, data.visits.places.take(data.visits.evaluated))
    return FineTuned(strategy, model, logits, counts, history, 0.0, notes)


def schedule_of(strategy: Strategy, recipe: Recipe, seed: int, n_layers: int) -> Schedule:
    """The loop's schedule under a strategy and a recipe, for an encoder of so many layers."""
    optimizer = OptimizerConfig(
        learning_rate=strategy.learning_rate, weight_decay=recipe.weight_decay, clip_norm=recipe.clip_norm
    )
    pacing = Pacing(strategy.encoder_rate, strategy.unfreeze_every, n_layers)
    if strategy.unfreeze_every >= recipe.epochs:
        what = f"{recipe.epochs} epochs end before any layer moves: unfreeze_every is {strategy.unfreeze_every}"
        raise EhrError(what, strategy.name, "unfreeze sooner, or train longer", code=Exit.CONFIG)
    return Schedule(recipe.epochs, recipe.batch_size, optimizer, recipe.patience, seed, pacing)


@dataclass(frozen=True)
class Start:
    """A model as it starts from the convex fit, and its score on tuning: a checkpoint like every epoch's."""

    state: State
    score: float

    @classmethod
    def of(cls, model: BEHRTForSurvival, data: SurvivalData, cache: FeatureCache) -> Start:
        logits = head_logits(model, cache.get(model, data)[_places(data, data.index(TUNING))])
        return cls(trainable_state(model), TuningScore(data)(logits)["score"])

    def keep_if_better(self, model: nn.Module, history: list[Epoch]) -> list[str]:
        """Put the start back where no epoch scored as high; says so."""
        if max(epoch.metrics["score"] for epoch in history) > self.score:
            return []
        restore(model, self.state)
        for epoch in history:
            epoch.best = False
        return ["no epoch did better on tuning than the convex fit it started from, which is kept"]


def _objective(
    model: BEHRTForSurvival, data: SurvivalData, strategy: Strategy, recipe: Recipe, cache: FeatureCache
) -> SurvivalObjective:
    """A frozen encoder runs once and the loop moves the head on cached features; otherwise it runs on tokens."""
    visits = data.visits
    if strategy.cached_features:
        features = cache.get(model, data)
        forward = lambda rows: model.hazards(features[torch.from_numpy(rows)])  # noqa: E731
    elif visits is not None:
        forward = lambda rows: model.hazards(visit_features(model, visits.places.take(rows)))  # noqa: E731
    else:
        forward = lambda rows: in_micro_batches(model, data.tokens, rows)[:, 0]  # noqa: E731
    if visits is not None:
        return VisitObjective(data, visits, forward, recipe.lambda_rank)
    return SurvivalObjective(data, forward, recipe.lambda_rank)


def _places(data: SurvivalData, rows: Int64[np.ndarray, " n"] | None = None) -> Int64[np.ndarray, " n"]:
    """Where the features of rows of ``data`` (all, unless given) stand in the cache."""
    rows = np.arange(len(data)) if rows is None else rows
    return rows if data.visits is None else data.visits.evaluated[rows]


def _even_visits(visits: VisitData) -> Int64[np.ndarray, " k"]:
    """As many visits of every training patient, so that each patient weighs the same in a fit without weights."""
    patients = len(visits.patients(TRAIN)[0])
    return visits.evenly(TRAIN, int(np.clip(EVEN_ROWS // max(patients, 1), 1, MOST_EVEN)))


@torch.no_grad()
def head_logits(model: BEHRTForSurvival, features: Float32[Tensor, "N F"]) -> Float64[np.ndarray, "N K *R"]:
    """Hazard logits of pooled features, in eval mode."""
    model.eval()
    return model.hazards(features).double().numpy()


def _footprint(model: BEHRTForSurvival, strategy: Strategy) -> str:
    return footprint(model) if strategy.head != "linear" else f"{footprint(model)}, by a convex fit"
