"""Simulated patients whose true figures are known, and models that see a part of what drives their outcome.

The log hazard is a sum of independent normal parts. A model's score is the sum of those it sees; its curve is the exact
probability given that score, the unseen parts integrated out, so that it is calibrated unless it is told otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from ehrsequencing.config import CURVE_POINTS
from ehrsequencing.evaluation.compare import Evaluation
from ehrsequencing.evaluation.metrics import harrell_c
from ehrsequencing.predictions import Predictions
from ehrsequencing.timegrid import truncate

TAU, HALF = 1_000.0, 500.0
TIMES = np.linspace(0, TAU, CURVE_POINTS + 1)[1:]
TRAINING = 4
"""Training patients an evaluated one, who give the censoring distribution, as in a split of 70 and 15%."""
_NODES, _WEIGHTS = np.polynomial.hermite_e.hermegauss(31)
_GRID = np.linspace(-8.0, 8.0, 641)


@dataclass(frozen=True)
class World:
    """Patients of one kind.

    Attributes:
        parts: variance of each independent part of the log hazard.
        share: of patients whose outcome is seen by TAU, censoring included.
    """

    parts: Mapping[str, float]
    share: float

    @cached_property
    def rate(self) -> float:
        """Hazard a day at a log hazard of 0 that gives ``share`` under uniform censoring from TAU/2 to 3·TAU."""
        low, high = -16.0, 0.0
        z = _NODES * np.sqrt(sum(self.parts.values()))
        followed = np.minimum(np.linspace(TAU / 2, 3 * TAU, 501), TAU)
        for _ in range(60):
            middle = (low + high) / 2
            gone = 1 - np.exp(-np.exp(middle + z)[:, None] * followed).mean(axis=1)
            low, high = (middle, high) if _WEIGHTS @ gone / _WEIGHTS.sum() < self.share else (low, middle)
        return float(np.exp(low))

    def draw(self, n: int, rng: np.random.Generator) -> Drawn:
        """``n`` patients with their parts, and when each would have the outcome and leave."""
        parts = {name: np.sqrt(variance) * rng.normal(size=n) for name, variance in self.parts.items()}
        failure = rng.exponential(1 / self.rate, n) * np.exp(-sum(parts.values()))
        return Drawn(parts, failure, rng.uniform(TAU / 2, 3 * TAU, n))

    def model(self, sees: Sequence[str], *, spread: float = 1.0, shift: float = 0.0) -> Model:
        """The model that sees these parts; its curves may be too extreme (``spread``) or too low (``shift``)."""
        unseen = sum(variance for name, variance in self.parts.items() if name not in sees)
        return Model(tuple(sees), self.rate, unseen, spread, shift)


@dataclass(frozen=True)
class Drawn:
    """Patients: the parts of their log hazard, and the two times of which the earlier is observed."""

    parts: Mapping[str, np.ndarray]
    failure: np.ndarray
    censoring: np.ndarray

    @property
    def observed(self) -> tuple[np.ndarray, np.ndarray]:
        """Duration and event."""
        event = (self.failure <= self.censoring).astype(np.int64)
        return np.minimum(self.failure, self.censoring), event

    @property
    def uncensored(self) -> tuple[np.ndarray, np.ndarray]:
        """Duration and event up to TAU, were nobody censored before."""
        return truncate(self.failure, np.ones(self.failure.size, dtype=np.int64), TAU)


@dataclass(frozen=True)
class Model:
    """A score, and the survival curve that goes with it."""

    sees: tuple[str, ...]
    rate: float
    unseen: float
    spread: float = 1.0
    shift: float = 0.0

    @cached_property
    def _table(self) -> np.ndarray:
        """float64[grid, times]: S(t | score), the unseen parts integrated out."""
        hazard = self.rate * np.exp(_GRID[:, None] + np.sqrt(self.unseen) * _NODES)  # (g, q)
        return np.exp(-hazard[:, :, None] * TIMES).transpose(0, 2, 1) @ (_WEIGHTS / _WEIGHTS.sum())

    def score(self, drawn: Drawn) -> np.ndarray:
        """Higher is sooner."""
        return np.sum([drawn.parts[name] for name in self.sees], axis=0)

    def curves(self, score: np.ndarray) -> np.ndarray:
        """float64[n, times], by linear interpolation between scores."""
        place = (np.clip(self.spread * score + self.shift, -7.9, 7.9) - _GRID[0]) / (_GRID[1] - _GRID[0])
        below = place.astype(np.int64)
        part = (place - below)[:, None]
        return (1 - part) * self._table[below] + part * self._table[below + 1]

    def predict(self, drawn: Drawn) -> Predictions:
        """Predictions of drawn patients."""
        return self.of_score(self.score(drawn))

    def of_score(self, score: np.ndarray) -> Predictions:
        """Predictions of given scores."""
        n = score.size
        return Predictions(np.arange(n), np.zeros(n, dtype="datetime64[us]"), score, TIMES, self.curves(score))


def evaluation(
    world: World, n: int, rng: np.random.Generator, *, n_boot: int, horizons: Sequence[float] = ()
) -> tuple[Evaluation, Drawn]:
    """``n`` evaluated patients, with Ĝ of training patients of the same kind."""
    drawn, train = world.draw(n, rng), world.draw(TRAINING * n, rng).observed
    made = Evaluation.of(
        *drawn.observed,
        train_duration=train[0],
        train_event=train[1],
        tau=TAU,
        horizons=horizons,
        n_boot=n_boot,
        seed=int(rng.integers(2**31)),
    )
    return made, drawn


def true_c(drawn: Drawn, score: np.ndarray) -> float:
    """What Uno's C at TAU estimates: C of uncensored patients followed to TAU."""
    return harrell_c(*drawn.uncensored, score)


def with_gain(gain: float, *, nested: bool, correlation: float = 0.9, share: float = 0.2, n: int = 400_000) -> World:
    """A world in which model b (sees q and b) has a C higher by ``gain`` than model a (sees q and a).

    ``nested``: a sees only q. Otherwise both have a part of their own, of which a's makes for the ``correlation`` of
    the two scores that equal models would have. Tuned on one large sample, whose noise in the difference of C is about
    a tenth of what 10,000 patients with a fifth as many outcomes have.
    """
    own = 0.0 if nested else 1 / correlation - 1
    base = World({"q": 1.0, "a": own, "b": own, "rest": 0.3}, share)
    if gain == 0:
        return base
    low, high = own, own + 0.6
    for _ in range(14):
        middle = (low + high) / 2
        world = replace(base, parts={**base.parts, "b": middle})
        drawn = world.draw(n, np.random.default_rng(7))
        found = true_c(drawn, world.model("qb").score(drawn)) - true_c(drawn, world.model("qa").score(drawn))
        low, high = (middle, high) if found < gain else (low, middle)
    return replace(base, parts={**base.parts, "b": high})
