"""Figures by subgroup against figures of the group alone; small groups say nothing; no small count can be had."""

from __future__ import annotations

import itertools
import json
import re

import numpy as np
import pytest

from ehrsequencing.errors import EhrError
from ehrsequencing.evaluation.compare import Evaluation
from ehrsequencing.evaluation.metrics import brier, uno_c
from ehrsequencing.evaluation.subgroups import MAX_GROUPS, score_subgroups, suppressed_groups
from ehrsequencing.nonparametric import KaplanMeier
from ehrsequencing.timegrid import truncate
from test_compare import TAU, noisy, patients, predict, prepare

N, DAY = 400, 1000.0
SEX = np.where(np.arange(N) % 3 == 0, "F", "M")


@pytest.fixture(scope="module")
def drawn() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return patients(N, 4)


@pytest.fixture(scope="module")
def evaluation(drawn) -> Evaluation:
    return prepare(*drawn[:2], patients(500, 9)[:2], horizons=(DAY,), n_boot=80)


def test_figures_are_those_of_the_group_alone(drawn, evaluation) -> None:
    duration, event, truth = drawn
    model = predict(truth)
    [found] = score_subgroups(evaluation, {"true": model, "noisy": [noisy(truth, 1, s) for s in (0, 1)]}, {"sex": SEX})
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert found["name"] == "sex"
    assert [group["group"] for group in found["groups"]] == ["F", "M"]
    for group in found["groups"]:
        own = group["group"] == SEX
        d, e = truncate(duration[own], event[own], TAU)
        assert (group["n"], group["events"]) == (own.sum(), e.sum())
        figures = group["metrics"]["true"]
        assert set(figures) == {"uno_c", "oe@1000", "brier@1000", "slope@1000"}
        free = model.survival_at(np.array([DAY]))[own, 0]
        assert figures["uno_c"]["value"] == pytest.approx(uno_c(d, e, truth[own], evaluation.censoring, TAU))
        assert figures["brier@1000"]["value"] == pytest.approx(brier(d, e, free, DAY, evaluation.censoring))
        observed = 1 - float(KaplanMeier.fit(d, e).at(DAY))
        assert figures["oe@1000"]["value"] == pytest.approx(observed / (1 - free).mean())
        for figure in figures.values():
            assert figure["low"] < figure["value"] < figure["high"]
        assert figures["slope@1000"]["value"] > group["metrics"]["noisy"]["slope@1000"]["value"]
        assert figures["uno_c"]["value"] > group["metrics"]["noisy"]["uno_c"]["value"]


def test_a_model_that_is_wrong_in_one_group_only_is_seen_there(drawn, evaluation) -> None:
    """Risks three times too high in the odd rows' hazard: O/E well under 1 in them, about 1 in the others."""
    truth = drawn[2]
    half = np.where(np.arange(N) % 2 == 0, "right", "wrong")
    [found] = score_subgroups(evaluation, {"m": predict(truth + np.log(3) * (half == "wrong"))}, {"half": half})
    right, wrong = (group["metrics"]["m"]["oe@1000"] for group in found["groups"])
    assert right["low"] < 1 < right["high"]
    assert wrong["high"] < 0.9


def test_small_groups_are_kept_with_their_reason(drawn, evaluation) -> None:
    event = truncate(*drawn[:2], TAU)[1]
    label = np.where(SEX == "F", "F", "M").astype("<U20")
    label[np.flatnonzero(event == 0)[:30]] = "without outcome"
    label[np.flatnonzero(label == "F")[:9]] = "nine patients"
    [found] = score_subgroups(evaluation, {"m": predict(drawn[2])}, {"sex": label})
    told = {group["group"]: group for group in found["groups"]}
    assert list(told) == ["F", "M", "nine patients", "without outcome"]
    assert told["nine patients"]["reason"] == "fewer than 10 patients"
    assert told["without outcome"]["reason"] == "fewer than 10 outcomes"
    assert told["nine patients"]["metrics"] == {}
    assert "reason" not in told["F"]
    assert sum(group["n"] for group in found["groups"]) == N


def test_the_names_of_several_rare_groups_are_told_of_nobody(drawn, evaluation) -> None:
    label = np.where(SEX == "F", "F", "M").astype("<U20")
    label[:9], label[9:14] = "nine patients", "five patients"
    [found] = score_subgroups(evaluation, {"m": predict(drawn[2])}, {"sex": label})
    assert [(group["group"], group["n"]) for group in found["groups"]][-1] == ("other", 14)
    assert not any("patients" in group["group"] for group in found["groups"])


def test_a_group_that_cannot_be_compared_has_its_other_figures() -> None:
    """Everybody in it has the outcome on the same day: no pair, no slope; the Brier score is there."""
    duration, event = np.append(np.full(20, 30.0), patients(100)[0]), np.append(np.ones(20, int), patients(100)[1])
    score = np.append(np.zeros(20), patients(100)[2])
    evaluation = prepare(duration, event, horizons=(DAY,), n_boot=20)
    [found] = score_subgroups(evaluation, {"m": predict(score)}, {"g": ["alike"] * 20 + ["other people"] * 100})
    alike = found["groups"][0]
    assert (alike["n"], alike["events"]) == (20, 20)
    assert set(alike["metrics"]["m"]) == {"oe@1000", "brier@1000"}
    json.dumps(found, allow_nan=False)


def test_ten_patients_with_ten_outcomes_give_no_traceback() -> None:
    duration, event, truth = patients(200)
    first = np.flatnonzero(event == 1)[:10]
    label = np.full(200, "many")
    label[first] = "ten"
    evaluation = prepare(duration, np.where(duration > TAU, 0, event), horizons=(DAY,), n_boot=200)
    [found] = score_subgroups(evaluation, {"m": predict(truth)}, {"g": label})
    ten = found["groups"][1]
    assert ten["group"] == "ten"
    assert "brier@1000" in ten["metrics"].get("m", {"brier@1000": None})
    json.dumps(found, allow_nan=False)


def test_patients_are_counted_not_rows(drawn) -> None:
    duration, event, truth = drawn
    owner = np.arange(N) // 2
    model = predict(truth)
    evaluation = prepare(duration, event, horizons=(DAY,), n_boot=10, subject_id=owner)
    twice = model.prediction_time + (np.arange(N) % 2).astype("timedelta64[D]")
    model = type(model)(owner, twice, model.risk, model.horizon_days, model.survival)
    [found] = score_subgroups(evaluation, {"m": model}, {"g": np.where(owner < 9, "few", "many")})
    few, many = found["groups"]
    assert (few["n"], few["reason"], many["n"]) == (9, "fewer than 10 patients", N // 2 - 9)


def test_many_groups_are_taken_together(drawn, evaluation) -> None:
    label = [f"ward {min(i // 12, 25):02}" for i in range(N)]
    [found] = score_subgroups(evaluation, {}, {"ward": label}, n_boot=0)
    assert len(found["groups"]) == MAX_GROUPS
    assert found["groups"][-1]["group"] == "other"
    assert sum(group["n"] for group in found["groups"]) == N


def test_order_of_bands_and_no_resamples(drawn, evaluation) -> None:
    bands = ["80 or over", "under 18", "40 to 49", "unknown"]
    found = score_subgroups(evaluation, {"m": predict(drawn[2])}, {"age": [bands[i % 4] for i in range(N)]}, n_boot=0)
    assert [group["group"] for group in found[0]["groups"]] == ["under 18", "40 to 49", "80 or over", "unknown"]
    figure = found[0]["groups"][0]["metrics"]["m"]["uno_c"]
    assert (figure["low"], figure["high"]) == (None, None)


def test_competing_events(drawn) -> None:
    duration, event, truth = drawn
    event = np.where((event == 1) & (np.arange(N) % 4 == 0), 2, event)
    evaluation = prepare(duration, event, horizons=(DAY,), n_boot=10)
    [found] = score_subgroups(evaluation, {"m": predict(truth)}, {"sex": SEX})
    cut = truncate(duration, event, TAU)[1]
    assert [group["events"] for group in found["groups"]] == [(cut[each == SEX] == 1).sum() for each in ("F", "M")]


def test_groups_of_other_rows_are_refused(drawn, evaluation) -> None:
    with pytest.raises(ValueError, match="expected a group for each of 400 rows"):
        score_subgroups(evaluation, {}, {"sex": ["F", "M"]})
    with pytest.raises(EhrError, match="expected the same"):
        score_subgroups(evaluation, {"m": predict(drawn[2][::-1][:399])}, {"sex": SEX})


def counts(*cells: tuple[int, int]) -> list[dict[str, int]]:
    return [{"n": n, "events": events} for n, events in cells]


def test_cells_without_small_counts_are_exact() -> None:
    assert suppressed_groups(counts((1_200, 100), (300, 50))) == [("1,200", "100"), ("300", "50")]
    assert suppressed_groups(counts((1_200, 100), (0, 0))) == [("1,200", "100"), ("0", "0")]
    assert suppressed_groups([]) == []


def test_a_single_small_cell_takes_another_with_it() -> None:
    assert suppressed_groups(counts((8, 2), (992, 200))) == [("<10", "<10"), ("withheld", "withheld")]
    found = suppressed_groups(counts((500, 60), (80, 4), (90, 30), (400, 90)))
    assert [cell.n for cell in found] == ["500", "80", "90", "400"]
    assert [cell.events for cell in found] == ["60", "<10", "withheld", "90"]
    found = suppressed_groups(counts((500, 60), (80, 75), (90, 30)))  # five without the outcome
    assert [cell.events for cell in found] == ["60", "withheld", "withheld"]


@pytest.mark.parametrize("seed", range(6))
def test_no_small_count_can_be_had_by_subtraction(seed: int) -> None:
    """Of random partitions, the hidden cells of each kind leave several solutions to who knows all totals: at least two
    of them are hidden, with 20 or more in all."""
    rng = np.random.default_rng(seed)
    for _ in range(60):
        n = rng.choice([0, 3, 8, 12, 15, 40, 300], size=int(rng.integers(2, 6)))
        if n.sum() < 40:
            continue
        events = rng.binomial(n, rng.choice([0.05, 0.3, 0.95]))
        cells = suppressed_groups(counts(*zip(n.tolist(), events.tolist(), strict=True)))
        assert not any(re.fullmatch("[1-9]", text) for cell in cells for text in cell)
        no_n = np.array([cell.n in ("<10", "withheld") for cell in cells])
        no_events = np.array([cell.events in ("<10", "withheld") for cell in cells])
        assert (no_events | ~no_n).all()
        for hidden, values in ((no_n, n), (no_events, events), (no_events, n - events)):
            if hidden.any() and values.sum() >= 20:
                assert values[hidden].sum() >= 20
                assert hidden.sum() >= 2
        shown = ~no_events
        assert not (((n - events) > 0) & ((n - events) < 10) & shown).any()


def test_hidden_cells_have_several_solutions() -> None:
    """By enumeration: F 8 of 300 in all, three groups; whoever knows the totals cannot tell the small one."""
    cells = suppressed_groups(counts((8, 3), (12, 5), (280, 90)))
    assert [cell.n for cell in cells] == ["<10", "withheld", "280"]
    fits = [pair for pair in itertools.product(range(1, 10), range(10, 21)) if sum(pair) == 300 - 280]
    assert len(fits) >= 5
