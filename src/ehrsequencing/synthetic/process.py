"""Patients whose next visit depends on what is recorded so far and on nothing hidden: state, visit, hazard."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float64, Int64

from ehrsequencing.config import DAYS_PER_YEAR
from ehrsequencing.synthetic import vocabulary as v
from ehrsequencing.synthetic.hazard import (
    EFFECTS,
    PRESSURE_CENTRE,
    PRESSURE_UNIT,
    REFERENCE_AGE,
    SLOPE_CENTRE,
    SLOPE_CLIP,
    SLOPE_SPAN_DAYS,
    SLOPE_UNIT,
)
from ehrsequencing.synthetic.population import CONDITIONS, DRUGS, Condition, Drug

RATE_PER_DAY = 1.0 / 4_000.0
"""The constant baseline of the outcome's hazard; e^η multiplies it."""
SHORTEST_GAP, MEAN_GAP, GAP_PER_CONDITION = 14.0, 170.0, 0.88
"""Days between visits: at least, and on average beyond that; every chronic condition shortens the average."""
RECODED, MEASURED = 0.10, 0.60
ADMITTED_PER_YEAR = {v.INFARCTION: (0.10, 3.0, v.CORONARY), v.PNEUMONIA: (0.15, 2.0, v.COPD)}
"""Admissions a year, how many times as many with a condition, and that condition."""
INTENSIVE_SHARE = {v.INFARCTION: 0.6, v.PNEUMONIA: 0.4}
STARTED_PER_YEAR, TREATED_PER_VISIT = {False: 0.25, True: 0.05}, 0.45
"""How often a drug without (False) or with an indication is started for another reason; and, where indicated."""
FIRSTS = tuple(c.code for c in CONDITIONS) + tuple(d.code for d in DRUGS)
"""Codes whose first record matters."""


@dataclass
class State:
    """All that the future depends on, of n patients at a visit; every number of it can be read off their record.

    Attributes:
        age_days: at the visit.
        first: days since the first record of a code, by code; -inf where there is none.
        last: days since the last record of a drug; inf where there is none.
        load: Σ w·e^(−Δ/decay) over the admissions for a code (``hazard.decayed``).
        pressure, filtration: the last recorded value; NaN before the first.
        sums: of the filtration rates: count, Σx, Σy, Σx², Σxy with x in years of age; and days since the first and the
            last of them.
    """

    age_days: Float64[np.ndarray, " n"]
    male: Bool[np.ndarray, " n"]
    first: dict[str, Float64[np.ndarray, " n"]]
    last: dict[str, Float64[np.ndarray, " n"]]
    load: dict[str, Float64[np.ndarray, " n"]]
    pressure: Float64[np.ndarray, " n"]
    filtration: Float64[np.ndarray, " n"]
    sums: Float64[np.ndarray, "n seven"]

    @classmethod
    def newborn(cls, age_days: Float64[np.ndarray, " n"], male: Bool[np.ndarray, " n"]) -> State:
        """Before the first visit: nothing is recorded."""
        n = len(age_days)
        return cls(
            age_days=age_days.astype(np.float64),
            male=male,
            first={code: np.full(n, -np.inf) for code in FIRSTS},
            last={drug.code: np.full(n, np.inf) for drug in DRUGS},
            load={code: np.zeros(n) for code in ADMITTED_PER_YEAR},
            pressure=np.full(n, np.nan),
            filtration=np.full(n, np.nan),
            sums=np.zeros((n, 7)),
        )

    def has(self, code: str) -> Bool[np.ndarray, " n"]:
        """Whether a code was ever recorded."""
        return np.isfinite(self.first[code])

    def columns(self) -> dict[str, np.ndarray]:
        """The state as flat columns, for a table; ``of_columns`` reads it back."""
        return {
            "age_days": self.age_days,
            "male": self.male,
            **{f"first {code}": days for code, days in self.first.items()},
            **{f"last {code}": days for code, days in self.last.items()},
            **{f"load {code}": load for code, load in self.load.items()},
            "pressure": self.pressure,
            "filtration": self.filtration,
            **{f"sum {number}": self.sums[:, number] for number in range(7)},
        }

    @classmethod
    def of_columns(cls, table: Mapping[str, np.ndarray], rows: Int64[np.ndarray, " k"]) -> State:
        """The state of the given rows of a table, each as often as it is named."""
        return cls(
            age_days=table["age_days"][rows],
            male=table["male"][rows],
            first={code: table[f"first {code}"][rows] for code in FIRSTS},
            last={drug.code: table[f"last {drug.code}"][rows] for drug in DRUGS},
            load={code: table[f"load {code}"][rows] for code in ADMITTED_PER_YEAR},
            pressure=table["pressure"][rows],
            filtration=table["filtration"][rows],
            sums=np.stack([table[f"sum {number}"][rows] for number in range(7)], axis=1),
        )


Visit = dict[str, np.ndarray]
"""What a visit records: bool[n] by code, and float64[n] (NaN = not measured) for the two laboratory codes."""


def log_hazard_of_state(state: State) -> Float64[np.ndarray, " n"]:
    """η at the visit: the terms of ``hazard.log_hazard_of``, from the state alone."""
    eta = EFFECTS.intercept + EFFECTS.age_decade * (state.age_days / DAYS_PER_YEAR - REFERENCE_AGE) / 10.0
    eta = eta + EFFECTS.male * state.male
    eta = eta + sum(effect * state.has(code) for code, effect in EFFECTS.chronic)
    eta = eta + sum(effect * np.log1p(state.load[code]) for code, _, effect, _ in EFFECTS.acute)
    for condition, drug, effect, decay in EFFECTS.treatments:
        treated = state.has(drug) & (state.first[drug] < state.first[condition])
        eta = eta + effect * np.where(treated, np.exp(-state.last[drug] / decay), 0.0)
    for before, after, effect, window in EFFECTS.order:
        eta = eta + effect * _order(state, before, after, window)
    known = np.isfinite(state.pressure)
    eta = eta + EFFECTS.pressure * np.where(known, (state.pressure - PRESSURE_CENTRE) / PRESSURE_UNIT, 0.0)
    return eta + EFFECTS.slope * _trend(state)


def _order(state: State, before: str, after: str, window: float | None) -> Float64[np.ndarray, " n"]:
    both = state.has(before) & state.has(after)
    a, b = (np.where(both, state.first[code], 0.0) for code in (before, after))
    return np.sign(a - b) * (1.0 if window is None else np.exp(-np.minimum(a, b) / window))


def _trend(state: State) -> Float64[np.ndarray, " n"]:
    count, x, y, xx, xy, first, last = state.sums.T
    usable = (count >= 3) & (first - last >= SLOPE_SPAN_DAYS)
    size = np.maximum(count, 1)
    slope = (xy - x * y / size) / np.where(usable, xx - x * x / size, 1.0)
    return np.where(usable, np.clip((slope - SLOPE_CENTRE) / SLOPE_UNIT, -SLOPE_CLIP, SLOPE_CLIP), 0.0)


def draw_gap(rng: np.random.Generator, state: State) -> Float64[np.ndarray, " n"]:
    """Whole days until the next visit: the more chronic conditions are recorded, the sooner."""
    burden = np.sum([state.has(condition.code) for condition in CONDITIONS], axis=0)
    return SHORTEST_GAP + np.floor(rng.exponential(MEAN_GAP, len(burden)) * GAP_PER_CONDITION**burden)


def next_visit(rng: np.random.Generator, state: State, gap: Float64[np.ndarray, " n"]) -> tuple[State, Visit]:
    """The state ``gap`` days later, at the next visit, and what that visit records."""
    age, years = state.age_days + gap, np.minimum(gap / DAYS_PER_YEAR, 1.0)
    visit: Visit = {}
    for condition in CONDITIONS:
        visit[condition.code] = _coded(rng, state, condition, age)
    for drug in DRUGS:
        visit[drug.code] = _dispensed(rng, state, drug, years, visit)
    visit |= _admissions(rng, state, years)
    measured = rng.random(len(gap)) < MEASURED
    visit[v.PRESSURE] = np.where(measured, _next_pressure(rng, state), np.nan)
    visit[v.FILTRATION] = np.where(measured, _next_filtration(rng, state, years), np.nan)
    return _after(state, gap, visit), visit


def _coded(rng: np.random.Generator, state: State, condition: Condition, age: np.ndarray) -> np.ndarray:
    """A condition coded anew, at a Weibull hazard in age that its recorded parent multiplies, or once more."""
    scale = DAYS_PER_YEAR * condition.median_age / np.log(2.0) ** (1.0 / condition.shape)
    hazard = (age / scale) ** condition.shape - (state.age_days / scale) ** condition.shape
    if condition.parent is not None:
        hazard = hazard * np.where(state.has(condition.parent), condition.factor, 1.0)
    chance = np.where(state.has(condition.code), RECODED, -np.expm1(-hazard))
    return rng.random(len(age)) < chance


def _dispensed(rng: np.random.Generator, state: State, drug: Drug, years: np.ndarray, visit: Visit) -> np.ndarray:
    """A drug given at the last visit is given on until stopped; otherwise it is started, sooner where indicated."""
    on = state.last[drug.code] == 0.0
    start = -np.expm1(-STARTED_PER_YEAR[drug.indication is not None] * years)
    if drug.indication is not None:
        start = np.where(state.has(drug.indication) | visit[drug.indication], TREATED_PER_VISIT, start)
    return rng.random(len(years)) < np.where(on, np.exp(-years / drug.mean_years), start)


def _admissions(rng: np.random.Generator, state: State, years: np.ndarray) -> Visit:
    """Acute events since the last visit, each with the kind of its admission; all are recorded at this visit."""
    found: Visit = {code: np.zeros(len(years), dtype=bool) for code in (v.INTENSIVE, v.WARD)}
    for code, (rate, factor, condition) in ADMITTED_PER_YEAR.items():
        often = rate * np.where(state.has(condition), factor, 1.0)
        found[code] = rng.random(len(years)) < -np.expm1(-often * years)
        severe = rng.random(len(years)) < INTENSIVE_SHARE[code]
        found[v.INTENSIVE] = found[v.INTENSIVE] | (found[code] & severe)
        found[v.WARD] = found[v.WARD] | (found[code] & ~severe)
    return found


def _next_pressure(rng: np.random.Generator, state: State) -> np.ndarray:
    last = np.where(np.isfinite(state.pressure), state.pressure, PRESSURE_CENTRE)
    drawn = PRESSURE_CENTRE + 0.7 * (last - PRESSURE_CENTRE) + rng.normal(0.0, 13.0, len(last))
    return np.round(np.clip(drawn, 80.0, 230.0))


def _next_filtration(rng: np.random.Generator, state: State, years: np.ndarray) -> np.ndarray:
    """A random walk that falls by 1 a year, by 3 with kidney disease."""
    n, known = len(years), np.isfinite(state.filtration)
    drift = np.where(state.has(v.KIDNEY), -3.0, -1.0)
    spread = np.where(known, 1.5 + 5.0 * np.sqrt(years), 12.0)
    drawn = np.where(known, state.filtration + drift * years, 75.0) + spread * rng.normal(0.0, 1.0, n)
    return np.round(np.clip(drawn, 5.0, 140.0))


def _after(state: State, gap: np.ndarray, visit: Visit) -> State:
    """The state once the visit is recorded."""
    first = {code: days + gap for code, days in state.first.items()}
    for code in FIRSTS:
        first[code] = np.where(visit[code] & ~state.has(code), 0.0, first[code])
    load = {}
    for code, harmful, _, decay in EFFECTS.acute:
        weight = np.where(visit[harmful], 1.0, EFFECTS.otherwise)
        load[code] = state.load[code] * np.exp(-gap / decay) + visit[code] * weight
    measured = np.isfinite(visit[v.PRESSURE])
    return State(
        age_days=state.age_days + gap,
        male=state.male,
        first=first,
        last={drug.code: np.where(visit[drug.code], 0.0, state.last[drug.code] + gap) for drug in DRUGS},
        load=load,
        pressure=np.where(measured, visit[v.PRESSURE], state.pressure),
        filtration=np.where(measured, visit[v.FILTRATION], state.filtration),
        sums=_with_filtration(state, gap, measured, visit[v.FILTRATION]),
    )


def _with_filtration(state: State, gap: np.ndarray, measured: np.ndarray, value: np.ndarray) -> np.ndarray:
    x, y = (state.age_days + gap) / DAYS_PER_YEAR - REFERENCE_AGE, np.where(measured, value, 0.0)
    added = np.stack([np.ones_like(x), x, y, x * x, x * y], axis=1) * measured[:, None]
    earliest = np.where(state.sums[:, 0] > 0, state.sums[:, 5] + gap, 0.0)
    latest = np.where(measured, 0.0, state.sums[:, 6] + gap)
    return np.concatenate([state.sums[:, :5] + added, earliest[:, None], latest[:, None]], axis=1)
