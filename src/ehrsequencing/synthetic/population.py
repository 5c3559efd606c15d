"""Who the simulated patients are and what their records hold: visits, diagnoses, refills, admissions, laboratory.

Everything is drawn a block of patients at a time, in arrays; seconds count from each patient's prediction_time.
"""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float64, Int64

from ehrsequencing.config import DAYS_PER_YEAR
from ehrsequencing.synthetic import vocabulary as v
from ehrsequencing.synthetic.hospital import Hospital
from ehrsequencing.synthetic.vocabulary import Vocabulary

DAY = 86_400
AGE_SPREAD = 9.0
FIRST_PREDICTION, LAST_PREDICTION = dt.date(2008, 1, 1), dt.date(2014, 12, 31)
HISTORY_YEARS = (4.0, 10.0)
FOLLOW_UP_YEARS = (1.0, 8.0)
VISITS_SPREAD, VISITS_RANGE = 0.85, (2, 120)
FEWER_VISITS = 0.20
"""The old and frail come to the clinic less: otherwise the mere length of a record would tell who is ill."""
FOLLOW_UP_VISITS_PER_YEAR = 0.4
NOISE_PER_VISIT, PANEL_SHARE, RECODED_SHARE = 0.8, 0.4, 0.10
USUAL_CODES, USUAL_SHARE, PREFERENCE = 2, 0.7, 0.05
REPORTED_LATER = 0.35
"""Share of dispensings and admissions that are still recorded after prediction_time."""


@dataclass(frozen=True)
class People:
    """n patients of one block; days and seconds relative to prediction_time (negative = before)."""

    prediction_day: Int64[np.ndarray, " n"]  # days since 1970-01-01; prediction_time is its midnight
    age_days: Int64[np.ndarray, " n"]
    male: Bool[np.ndarray, " n"]
    start_day: Int64[np.ndarray, " n"]  # the record begins here, < 0
    end: Int64[np.ndarray, " n"]  # seconds: independent censoring, > 0
    frailty: Float64[np.ndarray, " n"]
    hospital: Hospital

    @property
    def n(self) -> int:
        """How many patients."""
        return len(self.male)


class Draw(NamedTuple):
    """Flat events: patient number, second, code id, value (NaN = none)."""

    patient: Int64[np.ndarray, " events"]
    second: Int64[np.ndarray, " events"]
    code: Int64[np.ndarray, " events"]
    value: Float64[np.ndarray, " events"]


@dataclass(frozen=True)
class Condition:
    """A chronic condition: Weibull onset age, speeded up by frailty and by the condition it follows from."""

    code: str
    median_age: float
    shape: float
    frailty: float
    parent: str | None = None
    factor: float = 1.0


@dataclass(frozen=True)
class Drug:
    """A drug: started after its indication, or for another reason; refilled until it is stopped."""

    code: str
    indication: str | None
    treated_share: float
    other_share: float
    mean_years: float
    refill_days: int


CONDITIONS = (
    Condition(v.HYPERTENSION, 60.0, 6.0, 0.4),
    Condition(v.DIABETES, 70.0, 6.0, 0.5, v.HYPERTENSION, 1.6),
    Condition(v.CORONARY, 69.0, 7.0, 0.5, v.DIABETES, 2.0),
    Condition(v.COPD, 78.0, 5.0, 0.5),
    Condition(v.KIDNEY, 66.0, 9.0, 0.4, v.DIABETES, 2.0),
    Condition(v.FIBRILLATION, 66.0, 9.0, 0.3, v.HYPERTENSION, 1.5),
)
DRUGS = (
    Drug(v.ACE_INHIBITOR, v.HYPERTENSION, 0.75, 0.15, 3.0, 180),
    Drug(v.STATIN, v.CORONARY, 0.75, 0.15, 3.0, 180),
    Drug(v.NSAID, None, 0.0, 0.65, 4.0, 400),
    Drug(v.ASPIRIN, None, 0.0, 0.65, 4.0, 400),
)
ADMISSIONS = ((v.INFARCTION, 0.22, 0.6), (v.PNEUMONIA, 0.25, 0.4))
"""Code, admissions a year, share in intensive care."""


def draw_people(rng: np.random.Generator, n: int, hospital: Hospital) -> People:
    """Demographics, the length of the record, and independent uniform censoring."""
    first, last = FIRST_PREDICTION.toordinal(), LAST_PREDICTION.toordinal()
    prediction_day = rng.integers(first, last, n, endpoint=True) - dt.date(1970, 1, 1).toordinal()
    age = np.clip(rng.normal(hospital.age_mean, AGE_SPREAD, n), 40.0, 88.0)
    history, follow_up = rng.uniform(*HISTORY_YEARS, n), rng.uniform(*FOLLOW_UP_YEARS, n)
    return People(
        prediction_day=prediction_day,
        age_days=np.round(age * DAYS_PER_YEAR).astype(np.int64),
        male=rng.random(n) < 0.5,
        start_day=-np.round(history * DAYS_PER_YEAR).astype(np.int64),
        end=np.round(follow_up * DAYS_PER_YEAR * DAY).astype(np.int64),
        frailty=rng.normal(hospital.illness, 1.0, n),
        hospital=hospital,
    )


def opening_hours(rng: np.random.Generator, day: Int64[np.ndarray, " m"]) -> Int64[np.ndarray, " m"]:
    """A whole minute of the working day (8:00 to 17:00) on each ``day``, in seconds."""
    return day * DAY + 60 * rng.integers(8 * 60, 17 * 60, len(day))


def draw_visits(
    rng: np.random.Generator, people: People
) -> tuple[Int64[np.ndarray, " visits"], Int64[np.ndarray, " visits"]]:
    """Patient and second of every outpatient visit in order; the last one is at the end of follow-up."""
    own = people.hospital
    burden = people.frailty - own.illness + (people.age_days / DAYS_PER_YEAR - own.age_mean) / AGE_SPREAD
    usual = np.log(own.visits_median) - FEWER_VISITS * burden
    count = np.round(np.exp(rng.normal(usual, VISITS_SPREAD))).astype(np.int64)
    before = np.repeat(np.arange(people.n), np.clip(count, *VISITS_RANGE))
    day_before = -1 - np.floor(rng.random(len(before)) * -people.start_day[before]).astype(np.int64)
    years = people.end / (DAY * DAYS_PER_YEAR)
    after = np.repeat(np.arange(people.n), rng.poisson(FOLLOW_UP_VISITS_PER_YEAR * years))
    day_after = np.floor(rng.random(len(after)) * people.end[after] / DAY).astype(np.int64)
    patient = np.concatenate([before, after])
    second = opening_hours(rng, np.concatenate([day_before, day_after]))
    inside = second < people.end[patient]
    patient = np.concatenate([patient[inside], np.arange(people.n)])
    second = np.concatenate([second[inside], people.end])
    ordered = np.lexsort((second, patient))
    return patient[ordered], second[ordered]


def draw_onsets(rng: np.random.Generator, people: People) -> dict[str, Float64[np.ndarray, " n"]]:
    """Onset of each chronic condition in seconds: a Weibull in age whose hazard a parent's onset multiplies.

    Cumulative hazard: c·(a/s)^k up to the parent's onset p, and factor times as steep after it; inverted exactly.
    """
    onset_age: dict[str, Float64[np.ndarray, " n"]] = {}
    for condition in CONDITIONS:
        scale = condition.median_age / np.log(2.0) ** (1.0 / condition.shape)
        needed = rng.exponential(1.0, people.n) / np.exp(condition.frailty * people.frailty)
        parent = onset_age[condition.parent] if condition.parent else np.full(people.n, np.inf)
        at_parent = (parent / scale) ** condition.shape
        later = np.where(needed > at_parent, (needed - at_parent) / condition.factor, 0.0)
        onset_age[condition.code] = scale * (np.minimum(needed, at_parent) + later) ** (1.0 / condition.shape)
    return {code: (age * DAYS_PER_YEAR - people.age_days) * DAY for code, age in onset_age.items()}


def draw_diagnoses(
    rng: np.random.Generator,
    visits: tuple[Int64[np.ndarray, " visits"], Int64[np.ndarray, " visits"]],
    onsets: dict[str, Float64[np.ndarray, " n"]],
    ids: dict[str, int],
) -> tuple[list[Draw], dict[str, Float64[np.ndarray, " n"]]]:
    """Each condition coded at the first visit after its onset and some later ones; and that first second (or inf)."""
    patient, second = visits
    same = np.concatenate([[False], patient[1:] == patient[:-1]])
    draws, first = [], {}
    for code, onset in onsets.items():
        active = onset[patient] <= second
        earlier = np.concatenate([[False], active[:-1]]) & same
        new = active & ~earlier
        rows = new | (active & (rng.random(len(patient)) < RECODED_SHARE))
        draws.append(without_value(patient[rows], second[rows], ids[code]))
        first[code] = np.full(len(onset), np.inf)
        first[code][patient[new]] = second[new]
    return draws, first


def draw_refills(
    rng: np.random.Generator, people: People, diagnosed: dict[str, Float64[np.ndarray, " n"]], ids: dict[str, int]
) -> list[Draw]:
    """Dispensings from a drug's start until it is stopped."""
    draws = []
    for drug in DRUGS:
        elsewhere = people.start_day * (0.3 + 0.7 * rng.random(people.n))
        start = np.where(rng.random(people.n) < drug.other_share, elsewhere, np.inf)
        choice, delay = rng.random(people.n), rng.exponential(200.0, people.n)
        if drug.indication:
            indicated = np.isfinite(diagnosed[drug.indication]) & (choice < drug.treated_share)
            start = np.where(indicated, diagnosed[drug.indication] / DAY + delay, start)
        length = rng.exponential(drug.mean_years * DAYS_PER_YEAR, people.n)
        count = np.where(np.isfinite(start), 1 + np.floor(length / drug.refill_days), 0).astype(np.int64)
        patient = np.repeat(np.arange(people.n), count)
        number = np.arange(len(patient)) - np.repeat(np.cumsum(count) - count, count)
        late = rng.random(len(patient)) * 0.5 * drug.refill_days
        day = np.floor(start[patient] + number * drug.refill_days + np.where(number > 0, late, 0.0))
        second = opening_hours(rng, day.astype(np.int64))
        inside = _reported(rng, second, people.end[patient])
        draws.append(without_value(patient[inside], second[inside], ids[drug.code]))
    return draws


def draw_admissions(rng: np.random.Generator, people: People, ids: dict[str, int]) -> list[Draw]:
    """Acute events at constant rates varying between patients, each with the kind of its admission."""
    draws = []
    for code, rate, intensive in ADMISSIONS:
        end_day = people.end / DAY
        years = (end_day - people.start_day) / DAYS_PER_YEAR
        patient = np.repeat(np.arange(people.n), rng.poisson(rate * years * rng.gamma(2.0, 0.5, people.n)))
        span = (end_day - people.start_day)[patient]
        day = np.floor(people.start_day[patient] + rng.random(len(patient)) * span).astype(np.int64)
        second = day * DAY + 60 * rng.integers(0, 24 * 60, len(day))
        severe = rng.random(len(day)) < intensive
        inside = _reported(rng, second, people.end[patient])
        for rows, name in ((inside, code), (inside & severe, v.INTENSIVE), (inside & ~severe, v.WARD)):
            draws.append(without_value(patient[rows], second[rows], ids[name]))
    return draws


def draw_laboratory(
    rng: np.random.Generator,
    people: People,
    visits: tuple[Int64[np.ndarray, " visits"], Int64[np.ndarray, " visits"]],
    ids: dict[str, int],
) -> list[Draw]:
    """Blood pressure (a level that wanders) and filtration rate (a level and a straight trend) at some visits."""
    measured = rng.random(len(visits[0])) < PANEL_SHARE
    patient, second = visits[0][measured], visits[1][measured]
    years = second / (DAY * DAYS_PER_YEAR)
    pressure = rng.normal(135.0, 9.0, people.n)[patient] + rng.normal(0.0, 16.0, len(patient))
    level, slope = rng.normal(75.0, 12.0, people.n), rng.normal(-1.0, 3.5, people.n)
    filtration = level[patient] + slope[patient] * years + rng.normal(0.0, 3.0, len(patient))
    tables = ((v.PRESSURE, np.clip(pressure, 80, 230)), (v.FILTRATION, np.clip(filtration, 5, 140)))
    return [Draw(patient, second, np.full(len(patient), ids[code]), np.round(value)) for code, value in tables]


def draw_noise(
    rng: np.random.Generator,
    people: People,
    visits: tuple[Int64[np.ndarray, " visits"], Int64[np.ndarray, " visits"]],
    vocabulary: Vocabulary,
) -> list[Draw]:
    """Each visit's clinic (most patients keep to one) and codes of that clinic: few common and many rare ones.

    Most are the patient's usual codes there, so that a record resembles itself.
    """
    patient, second = visits
    groups = len(v.CLINICS)
    preference = np.cumsum(rng.dirichlet(np.full(groups, PREFERENCE), people.n), axis=1)  # [n, groups]
    chosen = np.minimum((rng.random(len(patient))[:, None] > preference[patient]).sum(axis=1), groups - 1)
    clinic = np.array([vocabulary.ids[f"VISIT//{name}"] for name in v.CLINICS])
    draws = [Draw(patient, second, clinic[chosen], np.full(len(patient), np.nan))]
    per_group = len(vocabulary.noise) // groups
    if per_group == 0:
        return draws
    visit = np.repeat(np.arange(len(patient)), rng.poisson(NOISE_PER_VISIT, len(patient)))
    usual = _ranks(rng, per_group, people.n * groups * USUAL_CODES).reshape(people.n, groups, USUAL_CODES)
    own = usual[patient[visit], chosen[visit], rng.integers(0, USUAL_CODES, len(visit))]
    rank = np.where(rng.random(len(visit)) < USUAL_SHARE, own, _ranks(rng, per_group, len(visit)))
    code = vocabulary.noise[rank * groups + chosen[visit]]
    return [*draws, Draw(patient[visit], second[visit], code.astype(np.int64), np.full(len(visit), np.nan))]


def _ranks(rng: np.random.Generator, n: int, size: int) -> Int64[np.ndarray, " size"]:
    """Ranks 0 … n − 1, each with a probability as 1/(rank + 1)."""
    share = np.cumsum(1.0 / np.arange(1, n + 1))
    return np.minimum(np.searchsorted(share / share[-1], rng.random(size)), n - 1)


def _reported(rng: np.random.Generator, second: Int64[np.ndarray, " m"], end: Int64[np.ndarray, " m"]) -> np.ndarray:
    """Which events are recorded: all up to prediction_time, some until the end of follow-up, none after."""
    return (second <= 0) | ((second < end) & (rng.random(len(second)) < REPORTED_LATER))


def without_value(patient: Int64[np.ndarray, " m"], second: Int64[np.ndarray, " m"], code: int) -> Draw:
    """Events of one code that carry no value."""
    return Draw(patient, second, np.full(len(patient), code), np.full(len(patient), np.nan))
