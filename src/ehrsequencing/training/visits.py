"""What a fine-tuning step minimises with a prediction at every visit: each patient counts once, however often seen."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from ehrsequencing.batches import SurvivalData, Targets, VisitData
from ehrsequencing.config import TRAIN, TUNING
from ehrsequencing.device import moved
from ehrsequencing.models.losses import ranking_loss, survival_nll
from ehrsequencing.training.objectives import Forward, SurvivalObjective
from ehrsequencing.training.resume import digest_of


class VisitObjective(SurvivalObjective):
    """Hybrid loss over the training patients' visits, judged where the tuning patients are evaluated.

    A row of the loop is a patient. Its visits share total weight 1 in the likelihood, so that long records do not
    outvote short ones. The ranking term compares one visit a patient, drawn anew in every step: two visits of one
    patient make no pair, and a patient is in no more pairs for being seen more often. ``forward`` takes positions of
    visits.
    """

    def __init__(self, data: SurvivalData, visits: VisitData, forward: Forward, lambda_rank: float) -> None:
        super().__init__(data, forward, lambda_rank)
        self.visits = visits
        self.begin, self.count = visits.patients(TRAIN)
        self.tuning = visits.evaluated[data.index(TUNING)]
        self.n_rows = len(self.begin)

    def loss(self, rows: Int64[np.ndarray, " b"]) -> Float[Tensor, ""]:
        """The loss of one optimiser step over all visits of the given patients."""
        count = self.count[rows]  # [b]
        first = np.cumsum(count) - count  # [b] of each patient, among the step's visits
        at = np.repeat(self.begin[rows] - first, count) + np.arange(count.sum())  # [n] positions of visits
        logits, t = self.forward(at), self.visits.targets(at)  # [n, K]
        each = survival_nll(logits, t.bin, t.fraction.to(logits.dtype), t.event)  # [n]
        share = torch.from_numpy(np.repeat(1 / (count * len(count)), count)).to(each.dtype)  # [n]
        drawn = torch.from_numpy(first) + (torch.rand(len(count)) * torch.from_numpy(count)).long()  # [b]
        own = logits[moved(drawn, logits.device)]  # [b, K]
        self._seen.append((at[drawn.numpy()], own.detach()))
        return (moved(share, each.device) * each).sum() + self._ranking(own, t.take(drawn))

    def _ranking(self, logits: Float[Tensor, "b K *R"], t: Targets) -> Tensor | float:
        if self.lambda_rank == 0:
            return 0.0
        rank, n_pairs = ranking_loss(logits, t.bin, t.fraction.to(logits.dtype), t.event, t.duration)
        self.steps_without_pairs += int(n_pairs == 0)
        return self.lambda_rank * rank if n_pairs else 0.0

    def fingerprint(self) -> str:
        """Of the evaluated rows, and of every visit's window, place and outcome."""
        visits = self.visits
        outcomes = [visits.rows["duration"].to_numpy(), visits.rows["event"].to_numpy()]
        parts = [visits.places.fingerprint, visits.evaluated, self.begin, self.count]
        return digest_of([super().fingerprint(), *parts, *outcomes])

    def _seen_targets(self, rows: Int64[np.ndarray, " b"]) -> Targets:
        return self.visits.targets(rows)
