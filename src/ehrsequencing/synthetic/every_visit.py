"""Simulated patients asked about at every visit: the hazard follows the record, and each visit's truth is known."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import polars as pl
from jaxtyping import Float64, Int64

from ehrsequencing.config import DAYS_PER_YEAR, SimulateConfig
from ehrsequencing.events import BIRTH
from ehrsequencing.progress import tracked
from ehrsequencing.synthetic import population
from ehrsequencing.synthetic import vocabulary as v
from ehrsequencing.synthetic.blocks import BLOCK, STATIC, as_events, join, tidy
from ehrsequencing.synthetic.hospital import HOSPITALS
from ehrsequencing.synthetic.population import DAY, Draw, People
from ehrsequencing.synthetic.process import RATE_PER_DAY, State, Visit, draw_gap, log_hazard_of_state, next_visit
from ehrsequencing.synthetic.vocabulary import Vocabulary

FOLLOWED_YEARS = (3.0, 12.0)
"""From the first visit to the end of follow-up."""
CLOCK = 10 * 3600
"""Seconds after midnight of every event, so that days between visits are whole."""
BRANCHES = 200
ROWS_AT_ONCE = 20_000
"""Futures drawn together."""


@dataclass(frozen=True)
class Moment:
    """One visit of every patient of a block: ``day`` since the first one, the state then, the days until the next."""

    day: Float64[np.ndarray, " n"]
    state: State
    visit: Visit
    gap: Float64[np.ndarray, " n"]


def blocks(config: SimulateConfig, vocabulary: Vocabulary) -> Iterator[tuple[pl.DataFrame, pl.DataFrame]]:
    """(MEDS events, truth) of each block of patients, the last one cut to the number asked for."""
    count = -(-config.patients // BLOCK)
    for number in tracked(range(count), "simulating patients", [1.0] * count):
        last = min((number + 1) * BLOCK, config.patients)
        events, truth = _block(config, vocabulary, number)
        yield events.filter(pl.col("subject_id") <= last), truth.filter(pl.col("subject_id") <= last)


def _block(config: SimulateConfig, vocabulary: Vocabulary, number: int) -> tuple[pl.DataFrame, pl.DataFrame]:
    rng = np.random.Generator(np.random.Philox(np.random.SeedSequence(config.seed, spawn_key=(number, 1))))
    people = population.draw_people(rng, BLOCK, HOSPITALS[config.hospital])
    end = np.round(rng.uniform(*FOLLOWED_YEARS, BLOCK) * DAYS_PER_YEAR)  # whole days
    moments = _live(rng, people, end)
    outcome = _draw_outcome(rng, moments, end)
    subjects = number * BLOCK + 1 + np.arange(BLOCK)
    draws = [*_recorded(moments, end, vocabulary.ids), *_noise(rng, people, moments, end, vocabulary)]
    draws += _milestones(people, outcome, end, vocabulary.ids)
    return as_events(tidy(join(draws)), people, subjects, vocabulary), _truth(moments, outcome, end, people, subjects)


def _live(rng: np.random.Generator, people: People, end: Float64[np.ndarray, " n"]) -> list[Moment]:
    """Visits until everybody's follow-up has ended; the last one of each is at its end."""
    age = people.age_days.astype(np.float64)
    state, visit = next_visit(rng, State.newborn(np.zeros(people.n), people.male), age)
    day, moments = np.zeros(people.n), []
    while (day < end).any():
        gap = np.minimum(draw_gap(rng, state), np.maximum(end - day, 0.0))
        moments.append(Moment(day, state, visit, gap))
        state, visit = next_visit(rng, state, gap)
        day = day + gap
    moments.append(Moment(day, state, visit, np.zeros(people.n)))
    return moments


def _draw_outcome(
    rng: np.random.Generator, moments: list[Moment], end: Float64[np.ndarray, " n"]
) -> Float64[np.ndarray, " n"]:
    """The whole day of the outcome; inf where it does not come before the end of follow-up."""
    needed, day = rng.exponential(1.0, len(end)), np.full(len(end), np.inf)
    passed = np.zeros(len(end))
    for moment in moments:
        rate = RATE_PER_DAY * np.exp(log_hazard_of_state(moment.state))
        until = np.ceil((needed - passed) / rate)
        here = ~np.isfinite(day) & (until <= moment.gap) & (moment.gap > 0)
        day = np.where(here, moment.day + np.maximum(until, 1.0), day)
        passed = passed + rate * moment.gap
    return day


def _here(moments: list[Moment], end: Float64[np.ndarray, " n"]) -> Iterator[tuple[Moment, Int64[np.ndarray, " k"]]]:
    """Each moment with the patients for whom it is a visit: up to the one at the end of their follow-up."""
    going_on = np.ones(len(end), dtype=bool)
    for moment in moments:
        yield moment, np.flatnonzero(going_on)
        going_on = going_on & (moment.gap > 0)


def _recorded(moments: list[Moment], end: Float64[np.ndarray, " n"], ids: dict[str, int]) -> list[Draw]:
    """What the visits record, but for clinic and noise."""
    draws = []
    for moment, rows in _here(moments, end):
        for code, found in moment.visit.items():
            measured = found.dtype == np.float64
            seen = rows[np.isfinite(found[rows]) if measured else found[rows]]
            value = found[seen] if measured else np.full(len(seen), np.nan)
            draws.append(Draw(seen, _second(moment.day[seen]), np.full(len(seen), ids[code]), value))
    return draws


def _noise(
    rng: np.random.Generator,
    people: People,
    moments: list[Moment],
    end: Float64[np.ndarray, " n"],
    vocabulary: Vocabulary,
) -> list[Draw]:
    visits = [(rows, _second(moment.day[rows])) for moment, rows in _here(moments, end)]
    patient, second = (np.concatenate(parts) for parts in zip(*visits, strict=True))
    return population.draw_noise(rng, people, (patient, second), vocabulary)


def _milestones(
    people: People, outcome: Float64[np.ndarray, " n"], end: Float64[np.ndarray, " n"], ids: dict[str, int]
) -> list[Draw]:
    """Sex (static), birth at the hour of the visits, the outcome where it is seen."""
    everybody, seen = np.arange(people.n), np.flatnonzero(outcome <= end)
    sex = np.where(people.male, ids[v.MALE], ids[v.FEMALE])
    return [
        Draw(everybody, np.full(people.n, STATIC), sex, np.full(people.n, np.nan)),
        population.without_value(everybody, CLOCK - people.age_days * DAY, ids[BIRTH]),
        population.without_value(seen, _second(outcome[seen]), ids[v.OUTCOME]),
    ]


def _second(day: Float64[np.ndarray, " k"]) -> Int64[np.ndarray, " k"]:
    return day.astype(np.int64) * DAY + CLOCK


def _truth(
    moments: list[Moment],
    outcome: Float64[np.ndarray, " n"],
    end: Float64[np.ndarray, " n"],
    people: People,
    subjects: Int64[np.ndarray, " n"],
) -> pl.DataFrame:
    """One row a visit before the outcome and the end: its hazard, what came, and the state its future depends on."""
    stop, parts = np.minimum(outcome, end), []
    for moment, rows in _here(moments, end):
        at = rows[moment.day[rows] < stop[rows]]
        second = people.prediction_day[at] * DAY + _second(moment.day[at])
        facts = {
            "subject_id": subjects[at],
            "prediction_time": pl.Series(second * 1_000_000).cast(pl.Datetime("us")),
            "log_hazard": log_hazard_of_state(moment.state)[at],
            "duration": (stop - moment.day)[at],
            "event": (outcome <= end)[at].astype(np.int8),
        }
        parts.append(pl.DataFrame(facts | {name: column[at] for name, column in moment.state.columns().items()}))
    return pl.concat(parts).sort("subject_id", "prediction_time")


def has_states(truth: pl.DataFrame) -> bool:
    """Whether a truth is of every visit, so that ``landmark_survival`` answers for it."""
    return "age_days" in truth.columns


def landmark_survival(
    landmarks: pl.DataFrame, times_days: Float64[np.ndarray, " m"], *, branches: int = BRANCHES, seed: int = 0
) -> tuple[Float64[np.ndarray, "n m"], Float64[np.ndarray, "n m"]]:
    """P(no outcome within t days | the record up to the visit), and its Monte-Carlo standard error.

    From each visit ``branches`` futures of the record are drawn by the very process that made it, and
    S_b(t) = exp(−∫₀ᵗ λ e^η_b) is averaged over them; the error is the standard deviation of the S_b over √branches.
    The outcome falls on whole days, so that S steps there.

    Args:
        landmarks: rows of a simulation's truth (``question: every_visit``).
        times_days: days, at least 0.
        branches: futures a row, at least 2.
        seed: of the futures; equal rows in equal order and an equal seed give equal results.
    """
    rng = np.random.Generator(np.random.Philox(seed))
    columns = {
        name: landmarks[name].to_numpy() for name in State.newborn(np.zeros(1), np.ones(1, dtype=bool)).columns()
    }
    size = max(1, ROWS_AT_ONCE // branches)
    means, errors = [np.zeros((0, len(times_days)))], [np.zeros((0, len(times_days)))]
    for start in range(0, landmarks.height, size):
        rows = np.arange(start, min(start + size, landmarks.height))
        curves = _branch(rng, State.of_columns(columns, np.repeat(rows, branches)), np.floor(times_days))
        curves = curves.reshape(len(rows), branches, -1)
        means.append(curves.mean(axis=1))
        errors.append(curves.std(axis=1, ddof=1) / np.sqrt(branches))
    return np.concatenate(means), np.concatenate(errors)


def _branch(rng: np.random.Generator, state: State, days: Float64[np.ndarray, " m"]) -> Float64[np.ndarray, "k m"]:
    """exp(−cumulative hazard) along one future of each patient."""
    hazard, day = np.zeros((len(state.age_days), len(days))), np.zeros(len(state.age_days))
    while (day < days.max(initial=0.0)).any():
        rate, gap = RATE_PER_DAY * np.exp(log_hazard_of_state(state)), draw_gap(rng, state)
        hazard += rate[:, None] * np.clip(days - day[:, None], 0.0, gap[:, None])
        state, _ = next_visit(rng, state, gap)
        day = day + gap
    return np.exp(-hazard)
