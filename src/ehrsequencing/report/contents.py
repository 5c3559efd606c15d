"""What the report shows, as plain data: nothing in it identifies a patient or a folder of this machine."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float64

from ehrsequencing.cohort.attrition import AttritionGroup

KINDS = ("oracle", "strategy", "control", "baseline")
"""The order of the comparison table."""


@dataclass(frozen=True)
class Interval:
    """An estimate with its 95% interval; NaN where it was not computed."""

    value: float
    low: float = math.nan
    high: float = math.nan

    @classmethod
    def of(cls, data: Mapping[str, Any] | None) -> Interval:
        found = [(data or {}).get(key) for key in ("value", "low", "high")]
        return cls(*(math.nan if number is None else float(number) for number in found))

    @property
    def width(self) -> float:
        return self.high - self.low


@dataclass(frozen=True)
class Row:
    """One model of the comparison."""

    model: str
    kind: str
    why: str
    seeds: tuple[int, ...]
    trainable: int | None
    total: int | None
    seconds: float | None
    alpha: float | None
    notes: tuple[str, ...]
    metrics: Mapping[str, Interval]
    best: bool = False
    best_ibs: bool = False

    @property
    def blend(self) -> bool:
        return "+" in self.model

    @property
    def uno_c(self) -> Interval:
        return self.metrics.get("uno_c", Interval(math.nan))


@dataclass(frozen=True)
class Difference:
    """A paired difference ``model`` minus ``against`` on the same patients, by metric."""

    model: str
    against: str
    metrics: Mapping[str, Interval]

    @property
    def uno_c(self) -> Interval:
        return self.metrics.get("uno_c", Interval(math.nan))


@dataclass(frozen=True)
class Run:
    """One training: what was recorded at every epoch (counted from 1; arrays of one length) and which was kept."""

    model: str
    seed: int
    fold: int | None
    epoch: Float64[np.ndarray, " e"]
    tuning_c: Float64[np.ndarray, " e"]
    tuning_brier: Float64[np.ndarray, " e"]
    train_c: Float64[np.ndarray, " e"]
    selected: int | None


@dataclass(frozen=True)
class Calibration:
    """Groups of patients by predicted risk at the horizon: mean prediction against what was observed, as risks."""

    model: str
    predicted: Float64[np.ndarray, " g"]
    observed: Float64[np.ndarray, " g"]
    low: Float64[np.ndarray, " g"]
    high: Float64[np.ndarray, " g"]


@dataclass(frozen=True)
class RiskCurve:
    """What was observed of one third of the patients, as far as MIN_CELL are at risk; ``at_risk`` is for people.

    ``share`` is Kaplan–Meier's of those without the outcome or, with competing events, Aalen–Johansen's of those with.
    """

    label: str
    times: Float64[np.ndarray, " m"]
    share: Float64[np.ndarray, " m"]
    low: Float64[np.ndarray, " m"]
    high: Float64[np.ndarray, " m"]
    at_risk: tuple[str, ...]


@dataclass(frozen=True)
class RiskThirds:
    """The three curves of one model and the times (days) at which the numbers at risk stand."""

    model: str
    seed: int
    ticks: Float64[np.ndarray, " k"]
    curves: tuple[RiskCurve, ...]
    competing: bool = False


@dataclass(frozen=True)
class Incidence:
    """One cause's cumulative incidence: Aalen–Johansen of the evaluated patients, and models' mean predictions."""

    cause: str
    times: Float64[np.ndarray, " m"]
    observed: Float64[np.ndarray, " m"]
    low: Float64[np.ndarray, " m"]
    high: Float64[np.ndarray, " m"]
    predicted: Mapping[str, Float64[np.ndarray, " m"]]


@dataclass(frozen=True)
class Trajectory:
    """An example patient's predicted risk of the outcome within the horizon, at each of their visits."""

    patient: int
    days: Float64[np.ndarray, " v"]
    risk: Float64[np.ndarray, " v"]


@dataclass(frozen=True)
class Summary:
    """Everything the report shows; nothing in it identifies a patient or a folder of this machine."""

    study: str
    task: Mapping[str, Any]
    first_line: str
    findings: tuple[str, ...]
    power: tuple[str, ...]
    n: str
    events: str
    split: str
    folds: int | None
    parts: tuple[tuple[str, str, str], ...]
    tau: float
    horizon: float
    warnings: tuple[str, ...]
    recipe: Mapping[str, Any]
    interval: str
    rows: tuple[Row, ...]
    differences: tuple[Difference, ...]
    against: str | None
    start: str = ""
    attrition: tuple[AttritionGroup, ...] = ()
    runs: tuple[Run, ...] = ()
    calibration: tuple[Calibration, ...] = ()
    thirds: tuple[RiskThirds, ...] = ()
    causes: tuple[tuple[str, str], ...] = ()
    incidence: tuple[Incidence, ...] = ()
    trajectories: tuple[Trajectory, ...] = ()
    tokens: Mapping[str, Any] = field(default_factory=dict)
    provenance: tuple[tuple[str, str], ...] = ()
    missing: Mapping[str, str] = field(default_factory=dict)
