"""One encoder under the heads of several outcomes, and the objective by which all of them are trained together."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from ehrsequencing.batches import SurvivalData
from ehrsequencing.device import moved
from ehrsequencing.models.behrt_survival import BEHRTForSurvival
from ehrsequencing.models.forward import in_micro_batches, pairs_of
from ehrsequencing.training.finetune import head_logits, start_head
from ehrsequencing.training.objectives import NO_PAIR, Forward, SurvivalObjective
from ehrsequencing.training.resume import Snapshot, digest_of
from ehrsequencing.training.union import SharedFeatures, UnionRows

UNRANKED = "no comparable pair in its tuning split: the other outcomes selected the epochs"


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

    @property
    def config(self) -> BEHRTConfig:
        """Of the encoder, and of one of the heads."""
        return self.any_view.config

    def train(self, mode: bool = True) -> JointSurvival:
        """Training mode for the encoder, the heads and the views."""
        super().train(mode)
        for view in self.views.values():
            view.train(mode)
        return self

    def pooled(self, rows: UnionRows, at: Int64[np.ndarray, " n"]) -> Float[Tensor, "n F"]:
        """Pooled vectors of the union's rows ``at``; graphs are kept."""
        return in_micro_batches(self.any_view.pooled, rows.tokens, at)

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
        return self._features[moved(torch.from_numpy(self._at[rows]), self._features.device)]


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
        self.pairs = {
            name: pairs_of(model.views[name], data.tokens, np.arange(len(data))) for name, data in datas.items()
        }
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
        return lambda rows: view.hazards(self.beside(name, self._encoded.of(place[rows]), rows))

    def beside(self, name: str, pooled: Float[Tensor, "n F"], rows: Int64[np.ndarray, " n"]) -> Float[Tensor, "n F2"]:
        """Pooled vectors of rows of an outcome's data, with what their tokens say of its pairs."""
        return torch.cat([pooled, moved(self.pairs[name][torch.from_numpy(rows)], pooled.device)], dim=1)

    def _union(self, of: Callable[[SurvivalObjective], Int64[np.ndarray, " n"]]) -> Int64[np.ndarray, " m"]:
        parts = [self.rows.places[name][of(outcome.objective)] for name, outcome in self.outcomes.items()]
        return np.unique(np.concatenate(parts))

    def loss(self, rows: Int64[np.ndarray, " b"]) -> Float[Tensor, ""]:
        """The mean of the losses of the outcomes that have rows in the step; every patient is encoded once."""
        at = self.train[rows]
        self._encoded.hold(at, self.model.pooled(self.rows, at))  # [b, F]
        losses = [each.objective.loss(own) for each in self.outcomes.values() if len(own := each.among(at))]
        return torch.stack(losses).mean()

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Every outcome's figures as ``NAME/figure``, their means over the outcomes, and the ``score``."""
        self._encoded.hold(self.tuning, self.model.pooled(self.rows, self.tuning))  # [m, F]
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
            view, tuning = self.model.views[name], each.objective.tuning
            pooled = shared.all(view)[torch.from_numpy(self.rows.places[name][tuning])]
            found[name] = each.objective.score(head_logits(view, self.beside(name, pooled, tuning)))
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
