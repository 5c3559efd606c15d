"""Intervals cover as often as they say, and the rule of three words errs as seldom as it must: small simulations.

The whole of it, at more sizes and with more repetitions, is ``benchmarks/intervals.py``.
"""

from __future__ import annotations

from collections import Counter

import interval_trials
import intervals
import numpy as np
import pytest
import readme
from rule_trials import WORDS, Pair, word
from worlds import TAU, World

from ehrsequencing.evaluation.metrics import harrell_c

SHARE, FAMILIES = 0.3, ("concordance", "errors")
EQUAL = Pair.of(World({"q": 1.0, "a": 1 / 9, "b": 1 / 9, "rest": 0.3}, 0.2))
BETTER = Pair.of(World({"q": 1.0, "a": 1 / 9, "b": 0.297, "rest": 0.3}, 0.2))
"""Two models of equal C, and a dearer one that gains .02 (tuned by ``worlds.with_gain``)."""


def band(rate: float, repetitions: int, errors: float = 3.0) -> float:
    """So many standard errors of a share."""
    return errors * float(np.sqrt(rate * (1 - rate) / repetitions))


def test_a_world_has_the_share_of_events_it_is_asked_for_and_calibrated_models() -> None:
    world = World({"seen": 1.0, "rest": 0.3}, SHARE)
    drawn = world.draw(60_000, np.random.default_rng(0))
    duration, event = drawn.observed
    assert ((event == 1) & (duration <= TAU)).mean() == pytest.approx(SHARE, abs=0.006)
    model = world.model(["seen"])
    score = model.score(drawn)
    for part in np.array_split(np.argsort(score), 5):
        predicted = 1 - model.curves(score[part])[:, -1].mean()
        assert (drawn.failure[part] <= TAU).mean() == pytest.approx(predicted, abs=0.014)  # 3 standard errors


def test_the_models_of_the_rule_differ_by_the_gain_they_are_said_to_have() -> None:
    for pair, gain in ((EQUAL, 0.0), (BETTER, 0.02)):
        drawn = pair.world.draw(200_000, np.random.default_rng(1))
        cheaper, dearer = (harrell_c(*drawn.uncensored, one.score(drawn)) for one in (pair.cheaper, pair.dearer))
        assert dearer - cheaper == pytest.approx(gain, abs=0.002)


@pytest.mark.slow
def test_intervals_cover_the_truth_about_as_often_as_they_say(monkeypatch: pytest.MonkeyPatch) -> None:
    """200 samples of 400 patients; 95% within 3 binomial standard errors, .904 to .996; both ways to an interval."""
    monkeypatch.setattr(interval_trials, "BLOCKS", 1)
    monkeypatch.setattr(interval_trials, "FAMILIES", FAMILIES)
    monkeypatch.setattr(interval_trials, "QUICK", FAMILIES)
    interval_trials.truth.cache_clear()
    cells = interval_trials.coverage(400, SHARE, 200, n_boot=200)
    interval_trials.truth.cache_clear()
    assert {cell["way"] for cell in cells} == {"bootstrap", "influence"}
    assert {"harrell_c", "uno_c", "ibs", "brier@500"} <= {cell["metric"] for cell in cells}
    for cell in cells:
        assert cell["repetitions"] == 200
        assert cell["covered"] == pytest.approx(0.95, abs=band(0.95, 200)), cell


@pytest.mark.slow
def test_the_rule_seldom_climbs_for_nothing_and_seldom_stays_where_much_is_gained() -> None:
    """100 samples of 1,000 patients, 200 with the outcome: at most 5% are wrong, and 3 standard errors of 5%."""
    most, repetitions = 0.05 + band(0.05, 100), 100
    nothing = Counter(word(EQUAL, 1_000, seed, 200) for seed in range(repetitions))
    much = Counter(word(BETTER, 1_000, seed, 200) for seed in range(repetitions))
    assert nothing["climb"] <= most * repetitions
    assert much["stay"] <= most * repetitions
    assert much["climb"] > nothing["climb"]


@pytest.mark.slow
def test_of_few_patients_the_rule_says_that_it_cannot_tell() -> None:
    said = Counter(word(BETTER, 300, seed, 200) for seed in range(50))
    assert said["underpowered"] > 25


def test_tables_are_made_of_cells_and_touch_nothing_else() -> None:
    cells = [
        {"part": "rule", "case": "different models", "gain": 0.0, "n": 300, "repetitions": 400,
         **dict(zip(WORDS, (0.04, 0.06, 0.9), strict=True))},
        {"part": "coverage", "metric": "uno_c", "share": 0.1, "way": "bootstrap", "n": 300, "truth": 0.7,
         "covered": 0.94, "repetitions": 300},
    ]  # fmt: skip
    assert "| different models | 0 | 300 | 4.0 ± 1.0 | 6.0 ± 1.2 | 90.0 ± 1.5 |" in intervals.rule_table(cells)
    assert "| `uno_c` | 0.7000 | 10% | bootstrap | 94.0 |" in intervals.coverage_table(cells)
    page = readme.PAGE.read_text(encoding="utf-8")
    for script in ("external", "intervals"):
        head = page.split(readme.begin(script))[0]
        assert readme.rewrite(page, script, "new").startswith(head)
