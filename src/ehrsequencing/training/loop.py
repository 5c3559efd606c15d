"""The one training loop: pretraining, fine-tuning and the head alone differ only in the objective they bring."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn

from ehrsequencing.batches import epoch_batches
from ehrsequencing.config import OptimizerConfig
from ehrsequencing.errors import EhrError, Exit
from ehrsequencing.models.strategies import FootprintAudit

NO_DECAY = ("bias", "norm", "embedding")


@runtime_checkable
class Objective(Protocol):
    """What a step minimises and what an epoch is judged by."""

    n_rows: int

    def loss(self, rows: np.ndarray) -> Tensor:
        """The scalar loss of one optimiser step over the training rows at positions ``rows``."""

    def validate(self) -> dict[str, float]:
        """Metrics after an epoch, model in eval mode; ``score`` (higher is better) selects the checkpoint."""


@dataclass(frozen=True)
class Tick:
    """Where a long job stands, for whoever draws the progress."""

    title: str
    done: float
    total: float
    note: str = ""


Progress = Callable[[Tick], None]


def silent(tick: Tick) -> None:
    """A progress listener that shows nothing."""


@dataclass(frozen=True)
class Schedule:
    """How long and how fast: epochs, patience (None: no early stopping), patients a step, optimiser, seed."""

    epochs: int
    batch_size: int
    optimizer: OptimizerConfig
    patience: int | None = None
    seed: int = 0


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


def make_optimizer(model: nn.Module, config: OptimizerConfig) -> torch.optim.AdamW:
    """AdamW over the trainable tensors; biases, norms and embeddings are not decayed."""
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    decayed = [p for name, p in named if not any(part in name for part in NO_DECAY)]
    plain = [p for name, p in named if any(part in name for part in NO_DECAY)]
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    return torch.optim.AdamW([group for group in groups if group["params"]], lr=config.learning_rate)


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
) -> list[Epoch]:
    """Train ``model`` in place and leave it at the selected epoch; returns the history.

    Stops when ``score`` has not improved for ``schedule.patience`` epochs. ``choose`` may pick another epoch than the
    best-scoring one (all states are then kept until the end). ``audit`` is asserted at the end of the first epoch.
    """
    torch.manual_seed(schedule.seed)
    generator = np.random.default_rng(schedule.seed)
    steps_per_epoch = math.ceil(objective.n_rows / schedule.batch_size)
    optimizer = make_optimizer(model, schedule.optimizer)
    factor = warmup_cosine(schedule.epochs * steps_per_epoch, schedule.optimizer.warmup_fraction)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    checkpoints, history = Checkpoints(), []
    for epoch in range(schedule.epochs):
        started = time.perf_counter()
        batches = epoch_batches(objective.n_rows, schedule.batch_size, generator)
        ticking = _ticks(batches, title, epoch, steps_per_epoch, schedule.epochs, progress)
        loss = _one_epoch(model, objective, ticking, optimizer, scheduler, schedule.optimizer.clip_norm, audit, title)
        if audit is not None and epoch == 0:
            audit.assert_after_epoch(model)
        model.eval()
        metrics = objective.validate()
        rate = optimizer.param_groups[0]["lr"]
        history.append(Epoch(epoch, loss, rate, time.perf_counter() - started, metrics))
        checkpoints.offer(epoch, metrics["score"], model, keep_all=choose is not None)
        shown = "  ".join(f"{name} {value:.4f}" for name, value in metrics.items() if name != "score")
        progress(Tick(title, epoch + 1, schedule.epochs, f"epoch {epoch + 1}: loss {loss:.4f}  {shown}"))
        if schedule.patience is not None and epoch - checkpoints.best_epoch >= schedule.patience:
            break
    selected = checkpoints.best_epoch if choose is None else choose(history)
    restore(model, checkpoints.kept[selected])
    history[selected].best = True
    progress(Tick(title, schedule.epochs, schedule.epochs, f"kept epoch {selected + 1} of {len(history)}"))
    return history


def _ticks(
    batches: Iterator[np.ndarray], title: str, epoch: int, steps: int, epochs: int, progress: Progress
) -> Iterator[np.ndarray]:
    for step, rows in enumerate(batches):
        yield rows
        progress(Tick(title, epoch + (step + 1) / (steps + 1), epochs))


def _one_epoch(
    model: nn.Module,
    objective: Objective,
    batches: Iterator[np.ndarray],
    optimizer: torch.optim.Optimizer,
    scheduler: torch.optim.lr_scheduler.LRScheduler,
    clip_norm: float,
    audit: FootprintAudit | None,
    title: str,
) -> float:
    model.train()
    losses, parameters = [], [p for group in optimizer.param_groups for p in group["params"]]
    for rows in batches:
        optimizer.zero_grad(set_to_none=True)
        loss = objective.loss(rows)
        losses.append(loss.detach())
        if loss.requires_grad:  # a step may have nothing to learn from, as when no code was selected
            loss.backward()
            if audit is not None:
                audit.observe(model)
            nn.utils.clip_grad_norm_(parameters, clip_norm)
            optimizer.step()
        scheduler.step()
    mean = float(torch.stack(losses).mean())
    if not math.isfinite(mean):
        raise EhrError(f"the training loss became {mean}", title, "lower the learning rate", code=Exit.DATA)
    return mean
