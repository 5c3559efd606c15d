"""What the report shows, as plain data: nothing in it identifies a patient or a folder of this machine."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float64

from ehrsequencing.cohort.attrition import AttritionGroup
from ehrsequencing.report.series import (
    Calibration,
    Decision,
    Examples,
    Incidence,
    OverTime,
    RiskThirds,
    Trajectory,
)

KINDS = ("oracle", "strategy", "ensemble", "predictions", "control", "baseline")
"""The order of the comparison table; ``predictions`` are anybody's, scored from a file."""


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
    checks: Mapping[str, Any] = field(default_factory=dict)
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
    """A paired difference ``model`` minus ``against`` on the same patients, by metric.

    ``word`` is the rule's (climb, stay, underpowered) on Uno C, ``one_sided`` that difference with the two one-sided
    95% bounds it was said on, ``why`` the reason code of underpowered (``evaluation.verdict.Why``); empty and NaN where
    the pair was not judged, or is of an older file.
    """

    model: str
    against: str
    metrics: Mapping[str, Interval]
    word: str = ""
    one_sided: Interval = Interval(math.nan)
    why: str = ""

    @property
    def uno_c(self) -> Interval:
        return self.metrics.get("uno_c", Interval(math.nan))


@dataclass(frozen=True)
class Recalibrated:
    """A model's agreement at the horizon as trained and as recalibrated on the tuning patients, by name."""

    model: str
    horizon: float
    before: Mapping[str, Interval]
    after: Mapping[str, Interval]


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
class Group:
    """One group of patients with its counts for people, and each model's figures; none for a small group."""

    name: str
    n: str
    events: str
    metrics: Mapping[str, Mapping[str, Interval]]


@dataclass(frozen=True)
class Subgroup:
    """The groups one characteristic makes."""

    name: str
    groups: tuple[Group, ...]


@dataclass(frozen=True)
class CodeEffect:
    """How much a code moves the predicted risk of the patients who have it."""

    code: str
    description: str
    patients: str
    mean: float
    mean_abs: float


@dataclass(frozen=True)
class ExplainedVisit:
    """A visit's part in a patient's risk, and its codes' own."""

    when: str
    attribution: float
    codes: tuple[tuple[str, str, float], ...]


@dataclass(frozen=True)
class Explained:
    """An example patient's risk, what it is set against, and where the difference comes from."""

    patient: int
    risk: float
    baseline_risk: float
    visits: tuple[ExplainedVisit, ...]


@dataclass(frozen=True)
class Attributions:
    """Why a model predicts what it predicts."""

    model: str
    horizon: float
    patients: str
    baseline: str
    completeness: float
    codes: tuple[CodeEffect, ...]
    examples: tuple[Explained, ...]


@dataclass(frozen=True)
class Source:
    """Where the patients come from: in words, the years of prediction and the follow-up, none of it a person's."""

    data: str
    simulated: bool
    years: str
    follow_up: str
    split: str


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
    horizons: tuple[float, ...]
    warnings: tuple[str, ...]
    recipe: Mapping[str, Any]
    interval: str
    rows: tuple[Row, ...]
    differences: tuple[Difference, ...]
    against: str | None
    source: Source
    sample_size: Mapping[str, Any] = field(default_factory=dict)
    limitations: tuple[str, ...] = ()
    start: str = ""
    aside: str = ""
    """Eligible patients this study did not label, as a count for people."""
    attrition: tuple[AttritionGroup, ...] = ()
    runs: tuple[Run, ...] = ()
    over_time: tuple[OverTime, ...] = ()
    calibration: tuple[Calibration, ...] = ()
    recalibrated: tuple[Recalibrated, ...] = ()
    decisions: tuple[Decision, ...] = ()
    thirds: tuple[RiskThirds, ...] = ()
    examples: Examples | None = None
    causes: tuple[tuple[str, str], ...] = ()
    cause_figures: tuple[tuple[str, tuple[Row, ...]], ...] = ()
    incidence: tuple[Incidence, ...] = ()
    trajectories: tuple[Trajectory, ...] = ()
    subgroups: tuple[Subgroup, ...] = ()
    attributions: Attributions | None = None
    casemix: Mapping[str, Any] = field(default_factory=dict)
    tokens: Mapping[str, Any] = field(default_factory=dict)
    provenance: tuple[tuple[str, str], ...] = ()
    missing: Mapping[str, str] = field(default_factory=dict)

    @property
    def pooled(self) -> bool:
        """Whether the predictions are of several models, one a fold."""
        return self.split == "out_of_fold" or self.folds is not None

    @property
    def competing(self) -> bool:
        return len(self.causes) > 1

    @property
    def own_models(self) -> bool:
        """Whether the models were made here, so that the page can say how; of a file of predictions it cannot."""
        return not any(row.kind == "predictions" for row in self.rows)
