"""Competing risks cause by cause: two exponential causes, whose incidences are known, are recovered under censoring."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace

import numpy as np
import pytest

from ehrsequencing.errors import EhrError, Exit
from ehrsequencing.evaluation.causes import cause_figures, codes_for_cause, for_cause, predictions_for_cause
from ehrsequencing.evaluation.compare import Evaluation
from ehrsequencing.evaluation.incidence import incidence
from ehrsequencing.evaluation.metrics import harrell_c
from ehrsequencing.nonparametric import for_outcome
from ehrsequencing.predictions import Predictions

TAU, T, N, BOOT = 1500.0, 800.0, 4000, 100
CAUSES = ("outcome", "death")
FAMILIES = ("concordance", "errors", "calibration", "whole_curve")
TIMES = np.linspace(0, TAU, 101)[1:]


@dataclass(frozen=True)
class World:
    """Constant hazards of two causes, (n, 2) a day, and what happened: uncensored, and as it was seen."""

    hazards: np.ndarray
    duration: np.ndarray
    event: np.ndarray
    seen_duration: np.ndarray
    seen_event: np.ndarray

    @classmethod
    def draw(cls, n: int, seed: int) -> World:
        rng = np.random.default_rng(seed)
        shared, own = rng.normal(size=(n, 1)), rng.normal(size=(n, 2))
        hazards = np.exp(0.4 * shared + np.array([0.9, 0.6]) * own) / np.array([2500.0, 2000.0])
        total = hazards.sum(axis=1)
        duration = rng.exponential(1 / total)
        event = 1 + (rng.uniform(size=n) > hazards[:, 0] / total).astype(np.int64)
        leaves = rng.exponential(2500, n)
        seen = np.minimum(duration, leaves), np.where(duration <= leaves, event, 0)
        return cls(hazards, duration, event, *seen)

    def evaluation(self, cause: str, n_boot: int = BOOT) -> Evaluation:
        outcome = self.seen_duration, self.seen_event
        return for_cause(
            CAUSES, cause, *outcome, train_duration=outcome[0], train_event=outcome[1], tau=TAU, horizons=(T,),
            n_boot=n_boot,
        )  # fmt: skip


def cifs(hazards: np.ndarray, times: np.ndarray = TIMES) -> np.ndarray:
    """λ_r/(λ₁ + λ₂) · (1 − e^{−(λ₁ + λ₂)t}), (n, m, 2)."""
    total = hazards.sum(axis=1, keepdims=True)
    return (hazards / total)[:, None, :] * (1 - np.exp(-total * times))[:, :, None]


def predictions(hazards: np.ndarray, risk: np.ndarray | None = None) -> Predictions:
    curves, n = cifs(hazards), len(hazards)
    return Predictions(
        np.arange(n),
        np.full(n, np.datetime64("2020-01-01", "us")),
        np.zeros(n) if risk is None else risk,
        TIMES,
        1 - curves.sum(axis=2),
        cif={cause: curves[:, :, r] for r, cause in enumerate(CAUSES)},
    )


DISTORTED = {
    "too high": lambda h: 1.7 * h,
    "too low": lambda h: 0.55 * h,
    "too extreme": lambda h: h**1.5 / 1e-3**0.5,
    "too timid": lambda h: h**0.5 * 5e-4**0.5,
    "causes exchanged": lambda h: h[:, ::-1],
    "the other cause forgotten": lambda h: np.column_stack([h[:, 0], np.full(len(h), 1e-9)]),
}


@pytest.fixture(scope="module")
def world() -> World:
    return World.draw(N, 0)


@pytest.fixture(scope="module", params=CAUSES)
def judged(request, world):
    """A cause's name, its place, an evaluation of it, and the truth's scores there."""
    evaluation = world.evaluation(request.param)
    truth = predictions_for_cause(predictions(world.hazards), request.param, TAU)
    return request.param, CAUSES.index(request.param), evaluation, evaluation.score(truth, only=FAMILIES)


def test_the_true_incidences_are_calibrated_for_each_cause_within_standard_errors(judged) -> None:
    figures = judged[3].figures
    for name, truth in {"slope": 1.0, "intercept": 0.0, "oe": 1.0}.items():
        values = figures[f"{name}@800"]
        assert abs(values[0] - truth) < 3 * values[1:].std(), name
    assert figures["ici@800"][0] < 0.02
    assert figures["km_calibration"][0] < 0.02


def test_the_ici_of_the_truth_goes_to_zero() -> None:
    found = []
    for n in (1_000, 20_000):
        world = World.draw(n, 1)
        for cause in CAUSES:
            scored = world.evaluation(cause, 0).score(
                predictions_for_cause(predictions(world.hazards), cause, TAU), only=("calibration",)
            )
            found.append(scored.figures["ici@800"][0])
    assert max(found[2:]) < 0.01
    assert np.mean(found[2:]) < 0.5 * np.mean(found[:2])


def test_the_truth_scores_best_on_every_error_of_each_cause(judged, world) -> None:
    cause, place, evaluation, truth = judged
    for name, distort in DISTORTED.items():
        if name == "the other cause forgotten" and place == 1:
            continue
        wrong = predictions_for_cause(predictions(distort(world.hazards)), cause, TAU)
        worse = evaluation.score(wrong, only=("errors", "calibration"))
        for metric in ("ibs", "brier@800"):
            gain = worse.figures[metric] - truth.figures[metric]  # paired
            assert gain[0] > 2 * gain[1:].std(), (name, metric)
        assert worse.figures["ici@800"][0] > 2 * truth.figures["ici@800"][0], name


def test_uno_c_under_censoring_is_the_uncensored_wolbers_c(judged) -> None:
    _, place, _, truth = judged
    big = World.draw(60_000, 5)
    event = codes_for_cause(big.event, place + 1)
    lost = np.trapezoid(np.pad(cifs(big.hazards)[:, :, place], ((0, 0), (1, 0))), dx=TAU / 100, axis=1)
    expected = harrell_c(*for_outcome(big.duration, event, TAU), lost)
    found = truth.figures["uno_c"]
    assert 0.6 < expected < 0.8
    assert abs(found[0] - expected) < 3 * found[1:].std()


def test_aalen_johansen_is_the_true_incidence_and_censoring_rivals_is_not(judged, world) -> None:
    cause, place, evaluation, _ = judged
    times = np.array([200.0, T, TAU])
    truth = cifs(world.hazards, times)[:, :, place].mean(axis=0)
    found = incidence(evaluation.duration, evaluation.event, times, evaluation.counts)
    assert (np.abs(found[0] - truth) < 3 * found[1:].std(axis=0)).all()
    naive = incidence(evaluation.duration, np.where(evaluation.event == 1, 1, 0), times)
    assert naive[0, -1] > truth[-1] + 0.04
    scored = evaluation.score(predictions_for_cause(predictions(world.hazards), cause, TAU), only=("calibration",))
    assert scored.figures["oe@800"][0] == pytest.approx(found[0, 1] / truth[1], abs=1e-3)


def test_the_true_survival_scores_best_under_censoring_with_one_cause() -> None:
    rng = np.random.default_rng(2)
    hazard = np.exp(rng.normal(size=N)) / 2000
    failure, leaves = rng.exponential(1 / hazard), rng.exponential(1500, N)
    duration, event = np.minimum(failure, leaves), (failure <= leaves).astype(np.int64)
    evaluation = Evaluation.of(
        duration, event, train_duration=duration, train_event=event, tau=TAU, horizons=(T,), n_boot=BOOT
    )

    def score(hazard: np.ndarray):
        model = predictions(np.column_stack([hazard, np.full(N, 1e-12)]))
        return evaluation.score(replace(model, cif={}), only=("errors",)).figures

    truth = score(hazard)
    for wrong in (1.7 * hazard, 0.55 * hazard, hazard**1.5 / 5e-4**0.5, hazard**0.5 * 5e-4**0.5):
        for metric in ("ibs", "brier@800"):
            gain = score(wrong)[metric] - truth[metric]
            assert gain[0] > 2 * gain[1:].std(), metric


def test_a_table_of_every_cause_but_the_outcome_and_the_outcome_is_as_ever(world) -> None:
    rows = slice(0, 600)
    outcome = world.seen_duration[rows], world.seen_event[rows]
    about = {"train_duration": outcome[0], "train_event": outcome[1], "tau": TAU, "horizons": (T,), "n_boot": 20}
    model = predictions(world.hazards[rows])
    models = {"truth": [model], "two seeds": [model, predictions(1.1 * world.hazards[rows])]}
    models["no incidences"] = [replace(model, cif={})]
    found = cause_figures(CAUSES, models, *outcome, **about)
    assert list(found) == ["death"]
    assert [row["model"] for row in found["death"]] == list(models)
    by_hand = for_cause(CAUSES, "death", *outcome, **about).score(predictions_for_cause(model, "death", TAU))
    assert found["death"][0]["metrics"] == {name: each.to_json() for name, each in by_hand.intervals().items()}
    assert {"uno_c", "ibs", "brier@800", "ici@800", "oe@800", "slope@800"} <= set(found["death"][1]["metrics"])
    assert not found["death"][2]["metrics"]
    assert "cumulative incidence of 'death'" in found["death"][2]["not_computed"]["all"]
    json.dumps(found, allow_nan=False)

    itself = for_cause(CAUSES, "outcome", *outcome, **about).score(predictions_for_cause(model, "outcome", TAU))
    plain = Evaluation.of(*outcome, **about).score(model)
    for name in ("ibs", "brier@800", "ici@800"):
        np.testing.assert_array_equal(itself.figures[name], plain.figures[name])
    assert cause_figures(CAUSES[:1], models, outcome[0], (outcome[1] > 0).astype(np.int64), **about) == {}


def test_a_cause_that_nobody_had_is_named_not_scored(world) -> None:
    outcome = world.seen_duration[:300], np.where(world.seen_event[:300] == 2, 0, world.seen_event[:300])
    found = cause_figures(
        CAUSES, {"truth": [predictions(world.hazards[:300])]}, *outcome, train_duration=outcome[0],
        train_event=outcome[1], tau=TAU, n_boot=5,
    )  # fmt: skip
    assert found["death"][0]["metrics"] == {}
    assert "no two patients can be compared" in found["death"][0]["not_computed"]["all"]


def test_time_lost_ranks_and_the_two_incidences_change_places(world) -> None:
    model = predictions(world.hazards[:50])
    death = predictions_for_cause(model, "death", TAU)
    np.testing.assert_array_equal(death.cif["outcome"], model.cif["death"])
    np.testing.assert_array_equal(death.cif["death"], model.cif["outcome"])
    np.testing.assert_array_equal(death.survival, model.survival)
    total = world.hazards[:50].sum(axis=1)
    exact = world.hazards[:50, 1] / total * (TAU - (1 - np.exp(-total * TAU)) / total)
    np.testing.assert_allclose(death.risk, exact, rtol=2e-3)
    with pytest.raises(EhrError, match="no cumulative incidence of 'stroke'") as error:
        predictions_for_cause(model, "stroke", TAU)
    assert error.value.code is Exit.BUNDLE
    np.testing.assert_array_equal(codes_for_cause(np.array([0, 1, 2, 3]), 2), [0, 2, 1, 3])
