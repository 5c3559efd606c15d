"""The one training loop: pretraining, fine-tuning and the head alone differ only in the objective they bring."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn

from ehrsequencing.batches import epoch_batches
from ehrsequencing.config import OptimizerConfig
from ehrsequencing.device import at_work, compute_on, device_of
from ehrsequencing.errors import EhrError, Exit
from ehrsequencing.models.footprint import FootprintAudit
from ehrsequencing.progress import Progress, Tick, silent
from ehrsequencing.training.pacing import EVEN, Pacing, hold_back, make_optimizer
from ehrsequencing.training.resume import (
    Resume,
    Snapshot,
    StateStore,
    optimizer_state,
    random_state,
    restore_optimizer,
    restore_random,
    run_fingerprint,
)


@runtime_checkable
class Objective(Protocol):
    """What a step minimises and what an epoch is judged by."""

    n_rows: int

    def loss(self, rows: np.ndarray) -> Tensor:
        """The scalar loss of one optimiser step over the training rows at positions ``rows``."""

    def validate(self) -> dict[str, float]:
        """Metrics after an epoch, model in eval mode; ``score`` (higher is better) selects the checkpoint."""

    def fingerprint(self) -> str:
        """Of its data and settings: a state is taken up only under the same one."""

    def state(self) -> Snapshot:
        """Whatever in it moves from step to step (generators, counts, what ``validate`` collects), not the model."""

    def restore(self, state: Snapshot) -> None:
        """Put back what ``state`` gave."""


@dataclass(frozen=True)
class Schedule:
    """How long and how fast: epochs, patience (None: no early stopping), patients a step, optimiser, seed, which
    parts go slower, and the most steps in all (None: all epochs are whole)."""

    epochs: int
    batch_size: int
    optimizer: OptimizerConfig
    patience: int | None = None
    seed: int = 0
    pacing: Pacing = EVEN
    max_steps: int | None = None

    def steps(self, n_rows: int) -> int:
        """Optimiser steps in all, over so many rows."""
        every = self.epochs * math.ceil(n_rows / self.batch_size)
        return every if self.max_steps is None else min(every, self.max_steps)


@dataclass
class Epoch:
    """One line of a training history."""

    epoch: int
    train_loss: float
    learning_rate: float
    seconds: float
    metrics: dict[str, float] = field(default_factory=dict)
    best: bool = False

    def to_dict(self) -> dict[str, Any]:
        record = asdict(self)
        return {**{k: v for k, v in record.items() if k != "metrics"}, **self.metrics}


State = dict[str, Tensor]


@dataclass
class Checkpoints:
    """Keeps the state to return to: the best score, unless ``choose`` later prefers another kept epoch."""

    kept: dict[int, State] = field(default_factory=dict)
    best_epoch: int = -1
    best_score: float = -math.inf

    def offer(self, epoch: int, score: float, model: nn.Module, keep_all: bool) -> bool:
        improved = score > self.best_score
        if improved:
            self.best_epoch, self.best_score = epoch, score
        if improved and not keep_all:
            self.kept.clear()
        if improved or keep_all:
            self.kept[epoch] = trainable_state(model)
        return improved


def trainable_state(model: nn.Module) -> State:
    """Copies of the tensors that training moves; frozen ones need no keeping."""
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


def restore(model: nn.Module, state: State) -> None:
    """Put a kept state back."""
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, value in state.items():
            parameters[name].copy_(value)


def warmup_cosine(total_steps: int, warmup_fraction: float) -> Callable[[int], float]:
    """Learning-rate factor of a step: linear from above zero to 1, then half a cosine down to zero.

    >>> factor = warmup_cosine(100, 0.1)
    >>> factor(0) > 0, factor(9), round(factor(99), 3)
    (True, 1.0, 0.0)
    """
    warmup = max(1, int(total_steps * warmup_fraction))

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        return 0.5 * (1 + math.cos(math.pi * (step + 1 - warmup) / max(1, total_steps - warmup)))

    return factor


def train(
    model: nn.Module,
    objective: Objective,
    schedule: Schedule,
    *,
    title: str = "training",
    progress: Progress = silent,
    audit: FootprintAudit | None = None,
    choose: Callable[[list[Epoch]], int] | None = None,
    resume: Resume | None = None,
    device: torch.device | None = None,
) -> list[Epoch]:
    """Train ``model`` in place and leave it at the selected epoch; returns the history.

    It is trained on ``device``, or where it is, and afterwards is where it was.

    Stops when ``score`` has not improved for ``schedule.patience`` epochs. ``choose`` may pick another epoch than the
    best-scoring one (all states are then kept until the end). ``audit`` is asserted at the end of the first epoch.
    With ``resume``, the state is saved as the loop goes, and a run that was killed goes on from its last saving, in
    mid-epoch, to the same bytes (the same number of threads provided).

    Raises:
        EhrError: the loss, or every epoch's score, was not a number (exit 11).
    """
    with at_work(model, device or device_of(model)):
        run = _Run(model, objective, schedule, title, progress, audit, choose is not None)
        store = None if resume is None else StateStore(resume, run.fingerprint())
        finished = store is not None and run.take_up(store)
        while not (finished or run.over()):
            run.one_epoch(store)
        return run.finish(choose, store)


def _is_told(metric: str) -> bool:
    """Whether a line of progress shows it: not the score, nor what is of one of several outcomes (``NAME/figure``)."""
    return metric != "score" and "/" not in metric


class _Run:
    """Everything that moves while a model is trained, and how it is put away and taken up again."""

    def __init__(
        self,
        model: nn.Module,
        objective: Objective,
        schedule: Schedule,
        title: str,
        progress: Progress,
        audit: FootprintAudit | None,
        keep_all: bool,
    ) -> None:
        self.model, self.objective, self.schedule = model, objective, schedule
        self.title, self.progress, self.audit, self.keep_all = title, progress, audit, keep_all
        self.device = device_of(model)
        torch.manual_seed(schedule.seed)
        self.generator = np.random.default_rng(schedule.seed)
        self.steps = math.ceil(objective.n_rows / schedule.batch_size)
        self.optimizer = make_optimizer(model, schedule.optimizer, schedule.pacing)
        self.total = schedule.steps(objective.n_rows)
        self.epochs = math.ceil(self.total / self.steps)
        factor = warmup_cosine(self.total, schedule.optimizer.warmup_fraction)
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(self.optimizer, factor)
        self.checkpoints, self.history = Checkpoints(), list[Epoch]()
        self.selected: int | None = None
        self._begin_epoch()

    def _begin_epoch(self) -> None:
        """The order of the epoch's rows is drawn from the generator as it is now."""
        self.order = self.generator.bit_generator.state
        self.losses: list[Tensor] = []
        self.spent, self.started = 0.0, time.perf_counter()

    def over(self) -> bool:
        """All epochs done, or no patience left."""
        epoch, patience = len(self.history) - 1, self.schedule.patience
        since = max(self.checkpoints.best_epoch, self.schedule.pacing.last_thaw)  # nobody waits for what cannot move
        impatient = patience is not None and epoch >= 0 and epoch - since >= patience
        return impatient or len(self.history) == self.epochs

    def one_epoch(self, store: StateStore | None) -> None:
        """The epoch's remaining steps, then its validation."""
        epoch = len(self.history)
        self.model.train()
        self.generator.bit_generator.state = self.order
        batches = epoch_batches(self.objective.n_rows, self.schedule.batch_size, self.generator)
        steps = min(self.steps, self.total - epoch * self.steps)
        for rows in itertools.islice(batches, len(self.losses), steps):
            self._step(rows)
            self.progress(Tick(self.title, epoch + len(self.losses) / (steps + 1), self.epochs))
            self._save_if_due(store)
        loss = self._mean_loss()
        if self.audit is not None and epoch == 0:
            self.audit.assert_after_epoch(self.model)
        self.model.eval()
        self._record(epoch, loss, self.objective.validate())
        self._begin_epoch()
        self._save_if_due(store)

    def _step(self, rows: np.ndarray) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.objective.loss(rows)
        self.losses.append(loss.detach())
        if loss.requires_grad:  # a step may have nothing to learn from, as when no code was selected
            loss.backward()
            if self.audit is not None:
                self.audit.observe(self.model)
            hold_back(self.optimizer, len(self.history))
            parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
            nn.utils.clip_grad_norm_(parameters, self.schedule.optimizer.clip_norm)
            self.optimizer.step()
        self.scheduler.step()

    def _mean_loss(self) -> float:
        mean = float(torch.stack(self.losses).mean())
        if not math.isfinite(mean):
            raise EhrError(f"the training loss became {mean}", self.title, "lower the learning rate", code=Exit.DATA)
        return mean

    def _record(self, epoch: int, loss: float, metrics: dict[str, float]) -> None:
        seconds = self.spent + time.perf_counter() - self.started
        rate = max(group["lr"] for group in self.optimizer.param_groups)
        self.history.append(Epoch(epoch, loss, rate, seconds, metrics))
        self.checkpoints.offer(epoch, metrics["score"], self.model, keep_all=self.keep_all)
        shown = "  ".join(f"{name} {value:.4f}" for name, value in metrics.items() if _is_told(name))
        said = f"epoch {epoch + 1}: loss {loss:.4f}  {shown}"
        self.progress(Tick(self.title, epoch + 1, self.epochs, said))

    def finish(self, choose: Callable[[list[Epoch]], int] | None, store: StateStore | None) -> list[Epoch]:
        """Leave the model at the selected epoch, and keep the finished state where one is kept."""
        if self.selected is None:
            self.selected = self.checkpoints.best_epoch if choose is None else choose(self.history)
            if self.selected not in self.checkpoints.kept:
                what = "the validation score was not a number in any epoch"
                raise EhrError(what, self.title, "lower the learning rate", code=Exit.DATA)
            self.checkpoints.kept = {self.selected: self.checkpoints.kept[self.selected]}
            self.history[self.selected].best = True
            if store is not None:
                store.save(self.snapshot(), self.checkpoints.kept)
        restore(self.model, self.checkpoints.kept[self.selected])
        said = f"kept epoch {self.selected + 1} of {len(self.history)}"
        self.progress(Tick(self.title, self.epochs, self.epochs, said))
        return self.history

    def _save_if_due(self, store: StateStore | None) -> None:
        if store is not None and store.due():
            store.save(self.snapshot(), self.checkpoints.kept)

    def fingerprint(self) -> str:
        """What a state must have been saved under to be taken up by this run."""
        settings = {**vars(self.schedule), "pacing": vars(self.schedule.pacing)}
        settings["optimizer"] = self.schedule.optimizer.model_dump(mode="json")
        settings |= {"title": self.title, "keep_all": self.keep_all, "compute": str(compute_on(self.device))}
        return run_fingerprint(self.model, settings, self.objective.fingerprint())

    def snapshot(self) -> Snapshot:
        """The whole state but the kept epochs; taken between two steps."""
        found = Snapshot({f"model/{name}": value for name, value in trainable_state(self.model).items()})
        found.tensors["losses"] = torch.stack(self.losses) if self.losses else torch.zeros(0)
        found.tensors |= random_state(self.device)
        found.facts = {
            "model": {},
            "order": self.order,
            "scheduler": self.scheduler.state_dict(),
            "spent": self.spent + time.perf_counter() - self.started,
            "history": [vars(epoch) for epoch in self.history],
            "best": [self.checkpoints.best_epoch, self.checkpoints.best_score],
            "selected": self.selected,
            "audit": None if self.audit is None else self.audit.state(),
        }
        found.join("optimizer", optimizer_state(self.optimizer))
        found.join("objective", self.objective.state())
        return found

    def take_up(self, store: StateStore) -> bool:
        """Go on from a kept state, where there is one of this very run; True where it had finished."""
        kept = store.load()
        if kept is None:
            if store.note:
                self.progress(Tick(self.title, 0, self.epochs, store.note))
            return False
        state, self.checkpoints.kept = kept
        facts = state.facts
        restore(self.model, state.part("model").tensors)
        restore_optimizer(self.optimizer, state.part("optimizer"))
        self.scheduler.load_state_dict(facts["scheduler"])
        self.objective.restore(state.part("objective"))
        self.order, self.losses = facts["order"], list(state.tensors["losses"].to(self.device))
        self.generator.bit_generator.state = self.order
        self.history = [Epoch(**epoch) for epoch in facts["history"]]
        self.checkpoints.best_epoch, self.checkpoints.best_score = facts["best"]
        if self.audit is not None:
            self.audit.restore(facts["audit"])
        restore_random(state.tensors, self.device)
        self.selected, self.spent, self.started = facts["selected"], facts["spent"], time.perf_counter()
        epoch, step = len(self.history) + 1, len(self.losses)
        said = "finished earlier" if self.selected is not None else f"resumed in epoch {epoch}, after {step} steps"
        self.progress(Tick(self.title, epoch - 1, self.epochs, said))
        return self.selected is not None
