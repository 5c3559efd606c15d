"""One block of simulated patients: their records, and the outcome drawn from the hazard those records imply."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import polars as pl
from jaxtyping import Bool, Float64, Int64

from ehrsequencing.config import DAYS_PER_YEAR, SimulateConfig
from ehrsequencing.events import BIRTH, DEATH
from ehrsequencing.progress import tracked
from ehrsequencing.synthetic import population
from ehrsequencing.synthetic import vocabulary as v
from ehrsequencing.synthetic.hazard import (
    DEATH_BASELINE,
    Recorded,
    Weibull,
    death_log_hazard_of,
    log_hazard_of,
)
from ehrsequencing.synthetic.hospital import HOSPITALS
from ehrsequencing.synthetic.population import DAY, Draw, People
from ehrsequencing.synthetic.vocabulary import Vocabulary

BLOCK = 1_000
"""Patients drawn together, always as many: so that neither shards nor the number of patients change a patient."""
STATIC = np.iinfo(np.int64).min
"""In place of a second: recorded without a time."""


@dataclass(frozen=True)
class Outcome:
    """What happens after prediction_time, in seconds from it; the largest int64 where there is no death."""

    log_hazard: Float64[np.ndarray, " n"]
    death_log_hazard: Float64[np.ndarray, " n"]
    outcome: Int64[np.ndarray, " n"]
    death: Int64[np.ndarray, " n"]
    censoring: Int64[np.ndarray, " n"]

    @property
    def last(self) -> Int64[np.ndarray, " n"]:
        """The last record: death, or the end of follow-up whether or not the outcome came before it."""
        return np.minimum(self.death, self.censoring)

    @property
    def duration(self) -> Float64[np.ndarray, " n"]:
        """Days to the first of outcome, death and censoring."""
        return np.minimum(self.outcome, self.last) / DAY

    @property
    def event(self) -> Int64[np.ndarray, " n"]:
        """1 outcome, 2 competing death, 0 censored."""
        return np.where(self.outcome <= self.last, 1, np.where(self.death <= self.censoring, 2, 0))


def blocks(config: SimulateConfig, vocabulary: Vocabulary) -> Iterator[tuple[pl.DataFrame, pl.DataFrame]]:
    """(MEDS events, truth) of each block of patients, the last one cut to the number asked for."""
    count = -(-config.patients // BLOCK)
    for number in tracked(range(count), "simulating patients", [1.0] * count):
        wanted = min(BLOCK, config.patients - number * BLOCK)
        events, truth = _block(config, vocabulary, number)
        last = int(truth["subject_id"][wanted - 1])
        yield events.filter(pl.col("subject_id") <= last), truth.head(wanted)


def _block(config: SimulateConfig, vocabulary: Vocabulary, number: int) -> tuple[pl.DataFrame, pl.DataFrame]:
    hospital = HOSPITALS[config.hospital]
    key = (number, *hospital.stream)
    rng = np.random.Generator(np.random.Philox(np.random.SeedSequence(config.seed, spawn_key=key)))
    people = population.draw_people(rng, BLOCK, hospital)
    records = tidy(draw_records(rng, people, vocabulary))
    outcome = draw_outcome(rng, people, records, vocabulary, config.competing_death)
    lived = tidy(join([_until(records, outcome.last), *_milestones(people, outcome, vocabulary.ids)]))
    subjects = number * BLOCK + 1 + np.arange(BLOCK)
    return as_events(lived, people, subjects, vocabulary), _truth(outcome, people, subjects, config.competing_death)


def draw_records(rng: np.random.Generator, people: People, vocabulary: Vocabulary) -> Draw:
    """Everything that is recorded before and after prediction_time, but for birth, sex, outcome and death."""
    ids = vocabulary.ids
    visits = population.draw_visits(rng, people)
    diagnoses, diagnosed = population.draw_diagnoses(rng, visits, population.draw_onsets(rng, people), ids)
    refills = population.draw_refills(rng, people, diagnosed, ids)
    admissions = population.draw_admissions(rng, people, ids)
    laboratory = population.draw_laboratory(rng, people, visits, ids)
    return join(
        [*diagnoses, *refills, *admissions, *laboratory, *population.draw_noise(rng, people, visits, vocabulary)]
    )


def draw_outcome(
    rng: np.random.Generator, people: People, records: Draw, vocabulary: Vocabulary, competing_death: bool
) -> Outcome:
    """Outcome and death times by inversion, given what is recorded up to prediction_time and nothing else."""
    known = records.second <= 0
    patient, second, code, value = (column[known] for column in records)
    events = Recorded(people.n, patient, -second / DAY, code, value, vocabulary.ids)
    age = people.age_days / DAYS_PER_YEAR
    log_hazard, death_log_hazard = log_hazard_of(events, age, people.male), death_log_hazard_of(events, age)
    outcome = _draw_seconds(rng, people.hospital.baseline, log_hazard)
    death = _draw_seconds(rng, DEATH_BASELINE, death_log_hazard)
    if not competing_death:
        death = np.full(people.n, np.iinfo(np.int64).max)
    return Outcome(log_hazard, death_log_hazard, outcome, death, people.end)


def join(draws: list[Draw]) -> Draw:
    """Several draws as one."""
    return Draw(*(np.concatenate(columns) for columns in zip(*draws, strict=True)))


def tidy(draw: Draw) -> Draw:
    """By patient, time and code; a code at most once at a time."""
    ordered = np.lexsort((draw.code, draw.second, draw.patient))
    keys = np.stack([draw.patient[ordered], draw.second[ordered], draw.code[ordered]])
    fresh = np.concatenate([[True], (keys[:, 1:] != keys[:, :-1]).any(axis=0)])
    return Draw(*(column[ordered][fresh] for column in draw))


def _draw_seconds(
    rng: np.random.Generator, baseline: Weibull, log_hazard: Float64[np.ndarray, " n"]
) -> Int64[np.ndarray, " n"]:
    days = baseline.inverse(rng.exponential(1.0, len(log_hazard)) / np.exp(log_hazard))
    return np.maximum(np.ceil(days * DAY), 1).astype(np.int64)


def _until(draw: Draw, last: Int64[np.ndarray, " n"]) -> Draw:
    inside: Bool[np.ndarray, " events"] = draw.second <= last[draw.patient]
    return Draw(*(column[inside] for column in draw))


def _milestones(people: People, outcome: Outcome, ids: dict[str, int]) -> list[Draw]:
    """Sex (static), birth, the outcome where it is seen, death where it is seen."""
    everybody = np.arange(people.n)
    seen, dead = everybody[outcome.event == 1], everybody[outcome.death <= outcome.censoring]
    sex = np.where(people.male, ids[v.MALE], ids[v.FEMALE])
    nothing = np.full(people.n, np.nan)
    return [
        Draw(everybody, np.full(people.n, STATIC), sex, nothing),
        population.without_value(everybody, -people.age_days * DAY, ids[BIRTH]),
        population.without_value(seen, outcome.outcome[seen], ids[v.OUTCOME]),
        population.without_value(dead, outcome.death[dead], ids[DEATH]),
    ]


def as_events(draw: Draw, people: People, subjects: Int64[np.ndarray, " n"], vocabulary: Vocabulary) -> pl.DataFrame:
    """A tidy draw as MEDS events."""
    static = draw.second == STATIC
    second = np.where(static, 0, draw.second) + people.prediction_day[draw.patient] * DAY
    time = pl.Series(second * 1_000_000).cast(pl.Datetime("us"))
    value = pl.Series(draw.value.astype(np.float32), nan_to_null=True)
    return pl.DataFrame(
        {
            "subject_id": subjects[draw.patient],
            "time": time.set(pl.Series(static), None),
            "code": pl.Series(vocabulary.names).gather(draw.code),
            "numeric_value": value,
        }
    )


def _truth(outcome: Outcome, people: People, subjects: Int64[np.ndarray, " n"], competing_death: bool) -> pl.DataFrame:
    table = pl.DataFrame(
        {
            "subject_id": subjects,
            "prediction_time": pl.Series(people.prediction_day * DAY * 1_000_000).cast(pl.Datetime("us")),
            "log_hazard": outcome.log_hazard,
            "baseline_shape": np.full(people.n, people.hospital.baseline.shape),
            "baseline_scale_days": np.full(people.n, people.hospital.baseline.scale_days),
            "duration": outcome.duration,
            "event": outcome.event.astype(np.int8),
        }
    )
    if not competing_death:
        return table
    return table.with_columns(
        death_log_hazard=pl.Series(outcome.death_log_hazard),
        death_shape=pl.lit(DEATH_BASELINE.shape),
        death_scale_days=pl.lit(DEATH_BASELINE.scale_days),
    )
