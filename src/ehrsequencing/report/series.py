"""Curves the report draws, as arrays: over time, over predicted risk, over thresholds, over a patient's visits."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float64


@dataclass(frozen=True)
class Smooth:
    """A smooth of the observed risk on the predicted one, with its band."""

    predicted: Float64[np.ndarray, " g"]
    observed: Float64[np.ndarray, " g"]
    low: Float64[np.ndarray, " g"]
    high: Float64[np.ndarray, " g"]


@dataclass(frozen=True)
class Calibration:
    """Groups of patients by predicted risk at the horizon: mean prediction against what was observed, as risks."""

    model: str
    predicted: Float64[np.ndarray, " g"]
    observed: Float64[np.ndarray, " g"]
    low: Float64[np.ndarray, " g"]
    high: Float64[np.ndarray, " g"]
    horizon: float = math.nan
    smooth: Smooth | None = None


@dataclass(frozen=True)
class OverTime:
    """A figure of every shown model at equal times up to τ; ``reference`` is what a curve for all reaches."""

    measure: str
    times: Float64[np.ndarray, " m"]
    curves: Mapping[str, Float64[np.ndarray, " m"]]
    reference: Float64[np.ndarray, " m"] | None = None


@dataclass(frozen=True)
class Decision:
    """Net benefit at each threshold of risk by the horizon: of every shown model, of treating all, of treating none.

    ``gains`` are each model's value, low and high of what it gains over the better of treating all and treating none.
    """

    horizon: float
    thresholds: Float64[np.ndarray, " k"]
    models: Mapping[str, Float64[np.ndarray, " k"]]
    treat_all: Float64[np.ndarray, " k"]
    gains: Mapping[str, Float64[np.ndarray, "3 k"]] = field(default_factory=dict)


@dataclass(frozen=True)
class Examples:
    """Predicted curves of a few evaluated patients, numbered by rising risk; ``labels`` say where each stands."""

    times: Float64[np.ndarray, " m"]
    labels: tuple[str, ...]
    curves: Mapping[str, Float64[np.ndarray, "k m"]]
    competing: bool = False


@dataclass(frozen=True)
class RiskCurve:
    """What was observed of a third or half of the patients, as far as MIN_CELL are at risk; ``at_risk`` is for people.

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
    """The curves of one model, by third of risk or by half, and the times (days) at which the numbers at risk stand."""

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
