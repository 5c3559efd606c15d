"""The outcome's exact log hazard as a function of the recorded history, and its known baseline."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl
from jaxtyping import Bool, Float64, Int64

from ehrsequencing.config import DAYS_PER_YEAR
from ehrsequencing.events import BIRTH
from ehrsequencing.synthetic import vocabulary as v


@dataclass(frozen=True)
class Weibull:
    """A baseline with cumulative hazard (t / scale) ** shape, t in days.

    >>> float(Weibull(shape=2.0, scale_days=100.0).cumulative(np.array([200.0]))[0])
    4.0
    """

    shape: float
    scale_days: float

    def cumulative(self, days: Float64[np.ndarray, " *k"]) -> Float64[np.ndarray, " *k"]:
        """H0(t)."""
        return (days / self.scale_days) ** self.shape

    def inverse(self, hazard: Float64[np.ndarray, " *k"]) -> Float64[np.ndarray, " *k"]:
        """The t at which H0(t) equals ``hazard``: inversion sampling with a unit exponential."""
        return self.scale_days * hazard ** (1.0 / self.shape)


@dataclass(frozen=True)
class Effects:
    """Every coefficient of the log hazard (docs/explanation/simulator.md gives the formula)."""

    intercept: float = -1.15
    age_decade: float = 0.30
    male: float = 0.20
    chronic: tuple[tuple[str, float], ...] = (
        (v.HYPERTENSION, 0.30),
        (v.DIABETES, 0.50),
        (v.CORONARY, 0.50),
        (v.COPD, 0.30),
        (v.KIDNEY, 0.20),
        (v.FIBRILLATION, 0.20),
    )
    acute: tuple[tuple[str, str, float, float], ...] = (
        (v.INFARCTION, v.WARD, 2.2, 365.0),
        (v.PNEUMONIA, v.INTENSIVE, 2.2, 240.0),
    )
    otherwise: float = 0.15
    treatments: tuple[tuple[str, str, float, float], ...] = (
        (v.HYPERTENSION, v.ACE_INHIBITOR, -0.9, 365.0),
        (v.CORONARY, v.STATIN, -0.9, 365.0),
    )
    order: tuple[tuple[str, str, float, float | None], ...] = (
        (v.KIDNEY, v.NSAID, 0.8, None),
        (v.FIBRILLATION, v.ASPIRIN, -0.9, 5 * DAYS_PER_YEAR),
    )
    pressure: float = 0.30
    slope: float = -0.30


_US_PER_DAY = 86_400_000_000
EFFECTS = Effects()
BASELINE = Weibull(shape=1.2, scale_days=3_200.0)
DEATH_BASELINE = Weibull(shape=1.3, scale_days=9_000.0)
REFERENCE_AGE = 63.0
PRESSURE_CENTRE, PRESSURE_UNIT = 135.0, 18.0
SLOPE_CENTRE, SLOPE_UNIT, SLOPE_CLIP, SLOPE_SPAN_DAYS = -1.0, 3.0, 2.0, 90.0


@dataclass(frozen=True)
class Recorded:
    """Recorded events of n patients up to their prediction_time, flat: what the log hazard reads, and all it reads."""

    n: int
    patient: Int64[np.ndarray, " events"]
    days_ago: Float64[np.ndarray, " events"]
    code: np.ndarray  # ids[events]
    value: Float64[np.ndarray, " events"]
    ids: dict[str, int]

    def having(self, code: str) -> Bool[np.ndarray, " events"]:
        """Which events carry ``code``."""
        return self.code == self.ids.get(code, -1)

    def first(self, code: str) -> Float64[np.ndarray, " n"]:
        """Days since the first record of ``code``; -inf where there is none."""
        days, rows = np.full(self.n, -np.inf), self.having(code)
        np.maximum.at(days, self.patient[rows], self.days_ago[rows])
        return days

    def last(self, code: str) -> Float64[np.ndarray, " n"]:
        """Days since the last record of ``code``; inf where there is none."""
        days, rows = np.full(self.n, np.inf), self.having(code)
        np.minimum.at(days, self.patient[rows], self.days_ago[rows])
        return days

    def total(
        self, rows: Bool[np.ndarray, " events"], weights: Float64[np.ndarray, " some"]
    ) -> Float64[np.ndarray, " n"]:
        """Sum of ``weights`` (one an event in ``rows``) over each patient."""
        return np.bincount(self.patient[rows], weights=weights, minlength=self.n).astype(np.float64)

    def count(self, rows: Bool[np.ndarray, " events"]) -> Float64[np.ndarray, " n"]:
        """How many events in ``rows`` each patient has."""
        return self.total(rows, np.ones(np.count_nonzero(rows)))


def decayed(
    events: Recorded, code: str, together: str, otherwise: float, decay_days: float
) -> Float64[np.ndarray, " n"]:
    """Sum of w·exp(-days ago / decay_days) over the records of ``code``.

    w is 1 where ``together`` is recorded at the same time, else ``otherwise``.
    """
    rows, beside = events.having(code), events.having(together)
    moment = events.patient + 1j * events.days_ago
    weight = np.where(np.isin(moment[rows], moment[beside]), 1.0, otherwise)
    return events.total(rows, weight * np.exp(-events.days_ago[rows] / decay_days))


def protection(events: Recorded, condition: str, drug: str, decay_days: float) -> Float64[np.ndarray, " n"]:
    """exp(-days since the last refill / decay_days) if the first refill came after the first diagnosis, else 0."""
    diagnosis, start = events.first(condition), events.first(drug)
    treated = (start < diagnosis) & np.isfinite(start)
    return np.where(treated, np.exp(-events.last(drug) / decay_days), 0.0)


def order(events: Recorded, before: str, after: str, decay_days: float | None) -> Float64[np.ndarray, " n"]:
    """+1 if ``before`` was first recorded strictly earlier than ``after``, -1 if strictly later, else 0.

    With ``decay_days`` it is multiplied by exp(-days since the later of the two / decay_days).
    """
    a, b = events.first(before), events.first(after)
    both = np.isfinite(a) & np.isfinite(b)
    sign = np.where(both, np.sign(np.where(both, a, 0.0) - np.where(both, b, 0.0)), 0.0)
    if decay_days is None:
        return sign
    later = np.where(both, np.minimum(a, b), 0.0)
    return sign * np.exp(-later / decay_days)


def latest_value(events: Recorded, code: str, centre: float, unit: float) -> Float64[np.ndarray, " n"]:
    """(last value of ``code`` - centre) / unit, the mean of values at the same last time; 0 where there is none."""
    rows = events.having(code) & np.isfinite(events.value)
    rows &= events.days_ago == events.last(code)[events.patient]
    count = events.count(rows)
    mean = events.total(rows, events.value[rows]) / np.maximum(count, 1)
    return np.where(count > 0, (mean - centre) / unit, 0.0)


def trend(events: Recorded, code: str) -> Float64[np.ndarray, " n"]:
    """Standardised, clipped least-squares slope a year of the values of ``code``; 0 under 3 or within 90 days."""
    rows = events.having(code) & np.isfinite(events.value)
    patient, x, y = events.patient[rows], -events.days_ago[rows] / DAYS_PER_YEAR, events.value[rows]
    count = events.count(rows)
    x = x - (events.total(rows, x) / np.maximum(count, 1))[patient]
    y = y - (events.total(rows, y) / np.maximum(count, 1))[patient]
    spread = events.total(rows, x * x)
    usable = (count >= 3) & (events.first(code) - events.last(code) >= SLOPE_SPAN_DAYS)
    slope = events.total(rows, x * y) / np.where(usable, spread, 1.0)
    standard = np.clip((slope - SLOPE_CENTRE) / SLOPE_UNIT, -SLOPE_CLIP, SLOPE_CLIP)
    return np.where(usable, standard, 0.0)


def terms(
    events: Recorded, age: Float64[np.ndarray, " n"], male: Bool[np.ndarray, " n"], effects: Effects = EFFECTS
) -> dict[str, Float64[np.ndarray, " n"]]:
    """Each term of the log hazard by name; their sum is the log hazard."""
    parts = {
        "intercept": np.full(events.n, effects.intercept),
        "age": effects.age_decade * (age - REFERENCE_AGE) / 10.0,
        "male": effects.male * male,
        "pressure": effects.pressure * latest_value(events, v.PRESSURE, PRESSURE_CENTRE, PRESSURE_UNIT),
        "slope": effects.slope * trend(events, v.FILTRATION),
    }
    for code, effect in effects.chronic:
        parts[f"chronic {code}"] = effect * np.isfinite(events.first(code))
    for code, together, effect, decay in effects.acute:
        parts[f"acute {code}"] = effect * np.log1p(decayed(events, code, together, effects.otherwise, decay))
    for condition, drug, effect, decay in effects.treatments:
        parts[f"treatment {drug}"] = effect * protection(events, condition, drug, decay)
    for before, after, effect, window in effects.order:
        parts[f"order {before} {after}"] = effect * order(events, before, after, window)
    return parts


def log_hazard_of(
    events: Recorded, age: Float64[np.ndarray, " n"], male: Bool[np.ndarray, " n"], effects: Effects = EFFECTS
) -> Float64[np.ndarray, " n"]:
    """The log hazard ratio: the sum of all terms."""
    return np.sum(list(terms(events, age, male, effects).values()), axis=0)


def death_log_hazard_of(events: Recorded, age: Float64[np.ndarray, " n"]) -> Float64[np.ndarray, " n"]:
    """The log hazard ratio of competing death: age and chronic lung disease."""
    return 0.9 * (age - REFERENCE_AGE) / 10.0 + 0.5 * np.isfinite(events.first(v.COPD))


def log_hazard(history: pl.DataFrame, rows: pl.DataFrame) -> Float64[np.ndarray, " n"]:
    """The log hazard of any records written in the simulator's codes: the formula itself, for counterfactuals.

    Args, as ``log_hazard_terms``.
    """
    return np.sum(list(log_hazard_terms(history, rows).values()), axis=0)


def log_hazard_terms(history: pl.DataFrame, rows: pl.DataFrame) -> dict[str, Float64[np.ndarray, " n"]]:
    """Each term of the log hazard of records by name (``terms``); their sum is ``log_hazard``.

    Args:
        history: subject_id, prediction_time, time (null = static), code, numeric_value, nothing after prediction_time.
        rows: subject_id, prediction_time; the result follows this order.
    """
    numbered = rows.select("subject_id").with_row_index("patient").cast({"patient": pl.Int64})
    history = history.join(numbered, on="subject_id", how="inner", maintain_order="left")
    ago = history.select((pl.col("prediction_time") - pl.col("time")).dt.total_microseconds()).to_series()
    days_ago = ago.cast(pl.Float64).fill_null(float("nan")).to_numpy() / _US_PER_DAY
    names = sorted(set(history["code"]))
    ids = {name: number for number, name in enumerate(names)}
    code = history["code"].replace_strict(ids, return_dtype=pl.Int32).to_numpy() if names else np.zeros(0, np.int32)
    value = history["numeric_value"].cast(pl.Float64).fill_null(float("nan")).to_numpy()
    events = Recorded(rows.height, history["patient"].to_numpy(), days_ago, code, value, ids)
    male = events.count(events.having(v.MALE)) > 0
    return terms(events, events.first(BIRTH) / DAYS_PER_YEAR, male)
