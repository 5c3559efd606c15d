"""What a fine-tuning step minimises and an epoch is judged by, on tokens or on cached features alike."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from ehrsequencing.batches import SurvivalData, Targets
from ehrsequencing.config import TRAIN, TUNING
from ehrsequencing.evaluation.metrics import harrell_c, integrated_brier
from ehrsequencing.models.losses import hybrid_loss
from ehrsequencing.nonparametric import censoring_distribution, for_outcome
from ehrsequencing.timegrid import TimeGrid
from ehrsequencing.training.resume import Snapshot, digest_of

Forward = Callable[[np.ndarray], Tensor]
"""Positions of rows of a SurvivalData to hazard logits [n, K], or [n, K, R] with competing causes."""


NO_PAIR = "no comparable pair in the tuning split: epochs were selected by likelihood"


class TuningScore:
    """Discrimination, accuracy and likelihood on the tuning split, whatever model made the logits."""

    def __init__(self, data: SurvivalData) -> None:
        train = data.targets(data.index(TRAIN))
        self.grid: TimeGrid = data.grid
        self.targets: Targets = data.targets(data.index(TUNING))
        self.censoring = censoring_distribution(train.duration.numpy(), train.event.numpy())
        self.duration, self.event = self.targets.duration.numpy(), self.targets.event.numpy()
        duration, event = for_outcome(self.duration, self.event, self.grid.tau)
        self.can_rank = bool((duration > duration[event == 1].min(initial=np.inf)).any())

    def __call__(self, logits: Float64[np.ndarray, "m K *R"]) -> dict[str, float]:
        """``tuning_c``, ``tuning_brier`` (integrated to τ), ``tuning_nll`` and the ``score`` that selects epochs.

        The score is Harrell's C; where the tuning split has no comparable pair, the likelihood stands in. With
        competing causes C and Brier are those of the outcome (its incidence), the likelihood is of all causes.
        """
        times, tau = self.grid.curve_times(), self.grid.tau
        several = logits.ndim == 3
        survival = 1.0 - self.grid.cif(logits, times)[:, :, 0] if several else self.grid.survival(logits, times)
        nll = float(self.grid.nll(logits, self.duration, self.event).mean())
        brier = integrated_brier(self.duration, self.event, survival, times, self.censoring, tau)
        if not self.can_rank:
            return {"tuning_brier": brier, "tuning_nll": nll, "score": -nll}
        c = harrell_c(*for_outcome(self.duration, self.event, tau), self.grid.risk(logits))
        return {"tuning_c": c, "tuning_brier": brier, "tuning_nll": nll, "score": c}


class SurvivalObjective:
    """Hybrid loss on the training split, judged on the tuning split; ``forward`` makes the logits."""

    def __init__(self, data: SurvivalData, forward: Forward, lambda_rank: float) -> None:
        self.train, self.tuning = data.index(TRAIN), data.index(TUNING)
        self.targets, self.score = data.targets(self.train), TuningScore(data)
        self.data, self.forward, self.lambda_rank = data, forward, lambda_rank
        self.n_rows = len(self.train)
        self.steps_without_pairs = 0
        self.tuning_logits: list[Float64[np.ndarray, "m K *R"]] = []
        self._seen: list[tuple[Int64[np.ndarray, " b"], Tensor]] = []

    def loss(self, rows: Int64[np.ndarray, " b"]) -> Float[Tensor, ""]:
        """The hybrid loss of one optimiser step; the ranking term sees every patient of it."""
        t = self.targets.take(rows)
        logits = self.forward(self.train[rows])  # [b, K, *R]
        fraction, duration = t.fraction.to(logits.dtype), t.duration
        result = hybrid_loss(logits, t.bin, fraction, t.event, duration, self.lambda_rank)
        self.steps_without_pairs += int(self.lambda_rank > 0 and result.n_pairs == 0)
        self._seen.append((rows, logits.detach()))
        return result.loss

    @property
    def notes(self) -> list[str]:
        """What had to be left out or judged otherwise than planned, in words."""
        told = []
        if self.steps_without_pairs:
            told.append(f"{self.steps_without_pairs} steps had no comparable pair: the ranking term was left out")
        if not self.score.can_rank:
            told.append(NO_PAIR)
        return told

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Metrics on the tuning split; the logits are kept for choosing among checkpoints."""
        logits = self.forward(self.tuning).double().cpu().numpy()  # [m, K, *R]
        self.tuning_logits.append(logits)
        return {**self._train_c(), **self.score(logits)}

    def fingerprint(self) -> str:
        """Of the tokens, the outcomes on their grid, the division, and the ranking term's weight."""
        own, tuned = self.targets, self.score
        outcomes = [own.duration.numpy(), own.event.numpy(), tuned.duration, tuned.event]
        parts = [self.data.tokens.fingerprint, self.data.grid.fingerprint, self.train, self.tuning]
        return digest_of([*parts, *outcomes, float(self.lambda_rank)])

    def state(self) -> Snapshot:
        """What was counted, and the logits of this epoch's steps and of earlier epochs' tuning rows."""
        tensors: dict[str, Tensor] = {}
        if self._seen:
            tensors["rows"] = torch.from_numpy(np.concatenate([rows for rows, _ in self._seen]))
            tensors["logits"] = torch.cat([logits for _, logits in self._seen])
        if self.tuning_logits:
            tensors["tuning"] = torch.from_numpy(np.stack(self.tuning_logits))
        return Snapshot(tensors, {"steps_without_pairs": self.steps_without_pairs})

    def restore(self, state: Snapshot) -> None:
        """Count and collect on from where ``state`` was taken."""
        kept = state.tensors
        self.steps_without_pairs = state.facts["steps_without_pairs"]
        self._seen = [(kept["rows"].numpy(), kept["logits"])] if "rows" in kept else []
        self.tuning_logits = list(kept["tuning"].numpy()) if "tuning" in kept else []

    def _train_c(self) -> dict[str, float]:
        """Harrell's C of the epoch's own steps, dropout on, weights moving; beside tuning C it shows overfitting."""
        seen, self._seen = self._seen, []
        if not seen:
            return {}
        t = self._seen_targets(np.concatenate([rows for rows, _ in seen]))
        grid = self.score.grid
        risk = grid.risk(torch.cat([logits for _, logits in seen]).double().cpu().numpy())
        return {"train_c": harrell_c(*for_outcome(t.duration.numpy(), t.event.numpy(), grid.tau), risk)}

    def _seen_targets(self, rows: Int64[np.ndarray, " b"]) -> Targets:
        """The outcomes of rows that a step has seen."""
        return self.targets.take(rows)
