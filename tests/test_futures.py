"""What comes after a moment, against plain loops; the likelihood of piecewise-constant hazards, against known truth."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from ehrsequencing.batches import collate
from ehrsequencing.models.piecewise import exposures, marginal_log_rates, piecewise_nll, quantile_edges
from ehrsequencing.training.futures import (
    Moments,
    cut_after,
    frequent_codes,
    next_codes,
    one_moment_a_row,
    several_moments,
    visit_log_odds,
    waits,
)
from planted import planted


def random_records(n=30, seed=0, codes="ABCDEFGH"):
    g = np.random.default_rng(seed)
    records = []
    for _ in range(n):
        days = np.cumsum(g.integers(1, 90, size=g.integers(1, 9)))
        records.append([(float(day), list(g.choice(list(codes), size=g.integers(1, 4)))) for day in days])
    return records


@pytest.fixture(scope="module")
def records():
    return random_records()


@pytest.fixture(scope="module")
def world(records):
    return planted(records, static=["SEX//F"] * len(records))


def test_times_and_next_visits_are_those_of_a_plain_loop(records, world):
    tokenizer, store = world
    codes = np.array([tokenizer.encode(code) for code in "ABCDEFGH"])
    moments = several_moments(store, np.random.default_rng(0), 3)
    assert len(moments) > 40
    found = waits(store, moments, codes, tokenizer.vocab_size)
    following = next_codes(store, moments, tokenizer.vocab_size)
    for q, (row, visit) in enumerate(zip(moments.row, moments.visit, strict=True)):
        record = records[row]
        now, end = record[visit - 1][0], record[-1][0]
        assert set(np.flatnonzero(following[q])) == {tokenizer.encode(code) for code in record[visit][1]}
        for c, code in enumerate("ABCDEFGH"):
            later = [day for day, held in record[visit:] if code in held]
            assert found.event[q, c] == bool(later)
            assert found.duration[q, c] == pytest.approx(min(later, default=end) - now, abs=1e-3)
            assert found.seen[q, c] == any(code in held for _, held in record[:visit])


def test_moments_are_different_visits_with_something_after(world):
    _, store = world
    moments = several_moments(store, np.random.default_rng(1), 3)
    pairs = set(zip(moments.row.tolist(), moments.visit.tolist(), strict=True))
    n_visits = np.maximum.reduceat(store.visit, store.offsets[:-1])
    assert len(pairs) == len(moments)
    assert (moments.visit < n_visits[moments.row]).all()
    assert np.array_equal(np.bincount(moments.row, minlength=len(store)), np.minimum(n_visits - 1, 3))


def test_every_visit_but_the_last_is_cut_at_and_half_lie_between_visits(world):
    _, store = world
    n_visits = np.maximum.reduceat(store.visit, store.offsets[:-1])
    seen, between = [], 0
    for seed in range(60):
        moments = one_moment_a_row(store, np.random.default_rng(seed))
        several = n_visits > 1
        assert np.array_equal(moments.row, np.arange(len(store)))
        assert (moments.visit[several] < n_visits[several]).all()
        assert (moments.visit[several] >= 1).all()
        assert np.array_equal(moments.visit[~several], n_visits[~several])
        cut = cut_after(store, moments)
        between += int((cut.gap[cut.offsets[:-1]][several] > 0).sum())
        seen += [(row, visit) for row, visit in enumerate(moments.visit) if several[row]]
    assert len(set(seen)) == (n_visits - 1).sum()
    assert 0.4 < between / len(seen) < 0.6


def test_a_cut_record_reads_as_if_it_ended_there(records, world):
    """The same tokens as of records that were recorded up to the cut only."""
    tokenizer, store = world
    chosen = [row for row, record in enumerate(records) if len(record) > 2]
    own = store.take(np.array(chosen))
    row = np.repeat(np.arange(len(own)), own.lengths)
    ends = np.array([own.day[(row == r) & (own.visit == 2)].min() for r in range(len(chosen))], dtype=np.float64)
    cut = cut_after(own, Moments(np.arange(len(chosen)), np.full(len(chosen), 2), ends))
    short_tokenizer, short = planted([records[r][:2] for r in chosen], static=["SEX//F"] * len(chosen))
    names = np.array(tokenizer.codes)[cut.code]
    order = np.lexsort((names, cut.visit, np.repeat(np.arange(len(cut)), cut.lengths)))
    other = np.array(short_tokenizer.codes)[short.code]
    again = np.lexsort((other, short.visit, np.repeat(np.arange(len(short)), short.lengths)))
    assert np.array_equal(cut.offsets, short.offsets)
    assert np.array_equal(names[order], other[again])
    for name in ("visit", "gap", "day"):
        ours, theirs = getattr(cut, name)[order], getattr(short, name)[again]
        assert np.allclose(ours, theirs, atol=1e-3), name


def test_nothing_after_the_cut_is_read(world):
    """Other codes, values and times after it leave the batch as it is, to the bit."""
    _, store = world
    moments = one_moment_a_row(store, np.random.default_rng(3))
    row = np.repeat(np.arange(len(store)), store.lengths)
    later = store.visit > moments.visit[row]
    assert later.any()
    other = replace(
        store,
        code=np.where(later, store.code[::-1], store.code),
        value=np.where(later, np.float32(9), store.value),
        day=np.where(later, store.day / 2, store.day),
        gap=np.where(later, np.float32(1), store.gap),
        age=np.where(later, np.float32(99), store.age),
    )
    one, two = (collate(cut_after(each, moments), np.arange(len(store))) for each in (store, other))
    for name in ("code", "value", "has_value", "age", "age_known", "visit", "gap", "mask"):
        assert torch.equal(getattr(one, name), getattr(two, name)), name


def test_frequent_codes_go_by_subjects_and_leave_out_static_and_excluded_ones():
    tokenizer, store = planted(
        [[(0, ["A", "A", "A", "B"]), (9, ["A"])], [(0, ["B", "C"])], [(0, ["B", "C"])]], static=["SEX//F"] * 3
    )
    predicted = np.arange(tokenizer.vocab_size) >= 4
    codes, subjects = frequent_codes(store, 2, predicted)
    assert [tokenizer.codes[code] for code in codes] == ["B", "C"]
    assert subjects.tolist() == [3, 2]
    predicted[tokenizer.encode("B")] = False
    assert [tokenizer.codes[code] for code in frequent_codes(store, 9, predicted)[0]] == ["C", "A"]


def test_log_odds_are_of_visits_that_follow_another():
    tokenizer, store = planted([[(0, ["A"]), (5, ["A", "B", "B"]), (9, ["B"]), (12, ["C"])]])
    odds = visit_log_odds(store, tokenizer.vocab_size)
    for code, count in (("A", 1), ("B", 2), ("C", 1)):
        assert odds[tokenizer.encode(code)] == pytest.approx(math.log((count + 0.5) / (3 - count + 0.5)))


def test_the_likelihood_is_that_of_a_numerical_integral():
    g = np.random.default_rng(0)
    edges, log_rate = np.array([0.0, 1.0, 2.5, 7.0]), g.normal(size=(50, 4))
    duration, event = g.exponential(4, size=50), g.random(50) < 0.5
    rate = np.exp(log_rate)
    for i in range(50):
        grid = np.linspace(0, duration[i], 20_001)
        middle = (grid[1:] + grid[:-1]) / 2
        hazard = rate[i, np.searchsorted(edges, middle, side="left") - 1]
        expected = hazard.sum() * (grid[1] - grid[0])
        expected -= event[i] * log_rate[i, np.searchsorted(edges, duration[i], side="left") - 1]
        found = piecewise_nll(*map(torch.tensor, (log_rate[i], duration[i], event[i], edges)))
        assert float(found) == pytest.approx(expected, abs=2e-3)


def test_an_event_on_an_edge_belongs_to_the_piece_that_ends_there():
    edges = torch.tensor([0.0, 2.0])
    nll = piecewise_nll(torch.tensor([0.0, 5.0]), torch.tensor(2.0), torch.tensor(True), edges)
    assert float(nll) == pytest.approx(2.0)
    assert exposures(torch.tensor(0.0), edges).sum() == 0


def exponential(n, rates, seed=0, censor=0.01):
    """Times under rate a day by kind, censored exponentially."""
    g = np.random.default_rng(seed)
    kind = g.integers(0, 2, size=(n, 1))
    time, end = g.exponential(1 / np.array(rates)[kind]), g.exponential(1 / censor, size=(n, 1))
    return np.minimum(time, end), time <= end, kind


def test_biases_are_the_true_rates_of_either_kind():
    rates = (0.002, 0.02)
    duration, event, kind = exponential(40_000, rates)
    edges = quantile_edges(duration[event], 4)
    assert len(edges) == 4
    found = np.exp(marginal_log_rates(duration, event, kind, 2, edges))
    assert np.allclose(found[0], rates[0], rtol=0.12)
    assert np.allclose(found[1], rates[1], rtol=0.06)


def test_the_true_rate_scores_best():
    duration, event, _ = exponential(20_000, (0.02, 0.02))
    clock, came = torch.tensor(duration[:, 0]), torch.tensor(event[:, 0])
    edges = torch.tensor([0.0, 20.0, 60.0], dtype=torch.float64)

    def score(rate):
        return float(piecewise_nll(torch.full((len(clock), 3), math.log(rate)), clock, came, edges).mean())

    best = min(score(rate) for rate in (0.005, 0.015, 0.03, 0.08))
    assert score(0.02) < best


def test_a_rate_without_events_is_finite_and_below_the_others():
    duration, event = np.full((50, 2), 100.0), np.zeros((50, 2), dtype=bool)
    event[:, 1] = True
    found = marginal_log_rates(duration, event, np.zeros((50, 2), dtype=np.int64), 2, np.array([0.0, 30.0]))
    assert np.isfinite(found).all()
    assert (found[0, 0] < found[0, 1]).any()
    assert found[0, 1, 1] == pytest.approx(math.log(50 / (50 * 70)), abs=0.1)
