"""`--strategy auto`: what is trained, when it escalates, and that it says why."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from ehrsequencing.evaluation.compare import Evaluation, Scores
from ehrsequencing.evaluation.verdict import judge
from ehrsequencing.models.strategies import STRATEGIES
from ehrsequencing.study import auto
from ehrsequencing.training.recipes import RECIPES


class Fake:
    """A fit with written figures."""

    def __init__(self, name: str, tuning_c: float, train_c: float, nll: float = 1.0) -> None:
        self.strategy = STRATEGIES[name]
        self.figures = {"tuning_c": tuning_c, "tuning_nll": nll}
        self._train_c = train_c

    def tuning(self, data):
        return self.figures

    def train_c(self, data):
        return self._train_c


def run(monkeypatch, recipe, fits, cox=0.75):
    monkeypatch.setattr(auto, "cox_tuning_c", lambda data: cox)
    trained: list[str] = []

    def fit(name):
        trained.append(name)
        return fits[name]

    said: list[str] = []
    plain = auto.choose.__wrapped__ if hasattr(auto.choose, "__wrapped__") else auto.choose
    chosen = plain(None, RECIPES[recipe], fit, said.append)
    return chosen.fitted.strategy.name, trained, " ".join(said)


@pytest.fixture(autouse=True)
def _unchecked(monkeypatch):
    """The fakes stand for data and fits; run-time types are checked in the tests with real ones."""
    for name in ("choose", "_better_head", "_escalate", "_lora_against_full"):
        function = getattr(auto, name)
        monkeypatch.setattr(auto, name, getattr(function, "__wrapped__", function))
    monkeypatch.setattr(auto, "Chosen", lambda fitted, sentences: SimpleNamespace(fitted=fitted, sentences=sentences))


def test_a_medium_cohort_trains_lora_alone(monkeypatch):
    name, trained, said = run(monkeypatch, "medium", {"lora": Fake("lora", 0.7, 0.8)})
    assert (name, trained) == ("lora", ["lora"])
    assert "default" in said


def test_a_small_cohort_keeps_the_better_frozen_head(monkeypatch):
    fits = {"frozen": Fake("frozen", 0.76, 0.8, 1.2), "frozen-ridge": Fake("frozen-ridge", 0.76, 0.8, 1.1)}
    name, trained, said = run(monkeypatch, "small", fits)
    assert (name, trained) == ("frozen-ridge", ["frozen", "frozen-ridge"])
    assert "does not underfit" in said


def test_underfitting_climbs_to_lora_8_then_16(monkeypatch):
    fits = {
        "frozen": Fake("frozen", 0.70, 0.71),
        "frozen-ridge": Fake("frozen-ridge", 0.70, 0.71, 1.1),
        "lora-8": Fake("lora-8", 0.72, 0.73),
        "lora": Fake("lora", 0.74, 0.78),
    }
    name, trained, said = run(monkeypatch, "small", fits)
    assert (name, trained) == ("lora", ["frozen", "frozen-ridge", "lora-8", "lora"])
    assert "frozen underfits" in said
    assert "lora-8 underfits" in said


def test_an_escalation_that_does_not_help_is_not_kept(monkeypatch):
    fits = {
        "frozen": Fake("frozen", 0.70, 0.71),
        "frozen-ridge": Fake("frozen-ridge", 0.70, 0.71, 1.1),
        "lora-8": Fake("lora-8", 0.69, 0.73),
        "lora": Fake("lora", 0.68, 0.78),
    }
    assert run(monkeypatch, "small", fits)[0] == "frozen"


def figures(gain: float, spread: float, ibs: float = 0.15):
    rng = np.random.default_rng(0)
    noise = rng.normal(0, spread, 400)
    duration, event = np.array([1.0, 2.0, 3.0]), np.array([1, 1, 0])
    place = Evaluation.of(duration, event, train_duration=duration, train_event=event, tau=2.5, n_boot=0)
    base = Scores(place, {"uno_c": np.full(401, 0.7), "ibs": np.full(401, 0.15)}, {})
    other = np.concatenate([[0.7 + gain], 0.7 + gain + noise])
    return base, Scores(place, {"uno_c": other, "ibs": np.full(401, ibs)}, {})


@pytest.mark.parametrize(
    ("gain", "spread", "ibs", "word"),
    [
        (0.03, 0.005, 0.150, "climb"),
        (0.03, 0.005, 0.160, "underpowered"),
        (0.0, 0.001, 0.150, "stay"),
        (0.0, 0.001, 0.140, "underpowered"),
        (0.01, 0.02, 0.150, "underpowered"),
        (-0.02, 0.002, 0.150, "stay"),
    ],
)
def test_the_rule_of_three_words(gain, spread, ibs, word):
    verdict = judge(*figures(gain, spread, ibs))
    assert verdict.word == word
    assert word in str(verdict)


@pytest.mark.parametrize(("full_gain", "kept"), [(0.03, "full"), (0.0, "lora")])
def test_a_large_cohort_takes_full_only_where_the_evidence_says_climb(monkeypatch, full_gain, kept):
    base, same = figures(0.0, 0.001)
    full = Scores(base.evaluation, figures(full_gain, 0.002)[1].figures, {})
    same = Scores(base.evaluation, same.figures, {})
    monkeypatch.setattr(auto, "score_on_tuning", lambda data, fits: {"lora-8": base, "lora": same, "full": full})
    fits = {name: Fake(name, 0.7, 0.8) for name in ("lora-8", "lora", "full")}
    name, trained, said = run(monkeypatch, "large", fits)
    assert name == kept
    assert trained == ["lora-8", "lora", "full"]
    assert ("saturated" in said) == (kept == "full")
