"""Calibration for people to read: observed against predicted risk in groups, and its figures with intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float64, Int64

from ehrsequencing.evaluation.agreement import AT_A_TIME, calibration_figures
from ehrsequencing.evaluation.compare import Evaluation, Scores
from ehrsequencing.evaluation.evaluated import SurvivalPredictions, at, outcome_free_at
from ehrsequencing.evaluation.incidence import incidence
from ehrsequencing.evaluation.metrics import check_survival
from ehrsequencing.evaluation.resampling import LEVEL, Interval, over_seeds, resample_counts
from ehrsequencing.nonparametric import AalenJohansen, Events, KaplanMeier, check_causes


@dataclass(frozen=True, eq=False)
class CalibrationCurve:
    """Observed against predicted risk of the event by a time, in groups of rising predicted risk.

    Attributes:
        predicted: float64[g], mean predicted risk of the group.
        observed: float64[g], one minus its Kaplan–Meier estimate, or with competing events its Aalen–Johansen estimate
            of the outcome's incidence; NaN where nobody in it was followed that long.
        low, high: float64[g], the interval of ``observed``.
        n: int64[g], patients in the group.
    """

    predicted: Float64[np.ndarray, " g"]
    observed: Float64[np.ndarray, " g"]
    low: Float64[np.ndarray, " g"]
    high: Float64[np.ndarray, " g"]
    n: Int64[np.ndarray, " g"]


def calibration_curve(
    duration: Float64[np.ndarray, " n"],
    event: Events,
    survival_at_t: Float64[np.ndarray, " n"],
    t: float,
    *,
    groups: int = 10,
    fewest: int = 0,
    n_boot: int = 0,
    seed: int = 0,
    level: float = LEVEL,
) -> CalibrationCurve:
    """The calibration curve at ``t`` days.

    Groups are quantiles of the predicted risk; equal predictions are never split, so that there may be fewer.

    Args:
        duration, event, survival_at_t: one a patient; the last is the predicted S(t), or with competing events
            1 − CIF(t) of the outcome.
        t: days.
        groups: how many, at most.
        fewest: neighbouring groups are merged until each has so many patients with the event by ``t``, and so many
            without; one group is left where there are too few for two.
        n_boot: 0 for the estimate's own interval (log−log); otherwise resamples of the patients inside each group.
            A group in which nobody or everybody had the event always has the exact limit of ``KaplanMeier.interval``,
            because its resamples are all alike.
        seed: of the resamples.
        level: of the interval.

    Raises:
        EhrError: survival that is not a probability (exit 13).
    """
    duration, event = check_causes(duration, event)
    risk = 1.0 - check_survival(survival_at_t[:, None], duration.size)[:, 0]  # (n,)
    causes = max(int(event.max()), 1)
    cuts = np.unique(np.quantile(risk, np.arange(1, groups) / groups, method="inverted_cdf"))
    member = np.unique(np.searchsorted(cuts, risk, side="left"), return_inverse=True)[1]  # (n,)
    member = _merged(member, (event == 1) & (duration <= t), fewest)
    rows = []
    for g in range(int(member.max()) + 1):
        own = member == g
        rows.append((risk[own].mean(), *_observed(duration[own], event[own], causes, t, n_boot, seed, level)))
    predicted, observed, low, high = np.array(rows, dtype=np.float64).T
    return CalibrationCurve(predicted, observed, low, high, np.bincount(member))


def _merged(member: Int64[np.ndarray, " n"], had: np.ndarray, fewest: int) -> Int64[np.ndarray, " n"]:
    """Group numbers after merging from the lowest risk up; what is left over at the end joins the last group."""
    groups = int(member.max()) + 1
    of_group = np.stack([np.bincount(member[who], minlength=groups) for who in (had, ~had)])  # (2, g)
    found, number, sums = np.zeros(groups, dtype=np.int64), 0, np.zeros(2, dtype=np.int64)
    for g in range(groups):
        found[g] = number
        sums = sums + of_group[:, g]
        if (sums >= fewest).all():
            number, sums = number + 1, np.zeros(2, dtype=np.int64)
    return np.minimum(found, max(number - 1, 0))[member]


def _observed(
    duration: np.ndarray, event: np.ndarray, causes: int, t: float, n_boot: int, seed: int, level: float
) -> tuple[float, float, float]:
    """The observed risk by t and its limits."""
    risk, low, high = _incidence(duration, event, causes, t, level)
    if float(duration.max()) < t and KaplanMeier.fit(duration, event).at(t) > 0:
        return np.nan, np.nan, np.nan
    if n_boot > 0 and 0 < risk < 1:
        risks = incidence(duration, event, np.array([float(t)]), resample_counts(duration.size, n_boot, seed)[1:])[:, 0]
        low, high = (float(q) for q in np.nanquantile(risks, [(1 - level) / 2, (1 + level) / 2]))
    return risk, low, high


def _incidence(
    duration: np.ndarray, event: np.ndarray, causes: int, t: float, level: float
) -> tuple[float, float, float]:
    """The outcome's incidence by t with its limits: Kaplan–Meier for one cause, else Aalen–Johansen."""
    at = np.array([float(t)])
    if causes == 1:
        km = KaplanMeier.fit(duration, event)
        low, high = (1.0 - float(limit[0]) for limit in reversed(km.interval(at, level)))
        return 1.0 - float(km.at(t)), low, high
    incidence = AalenJohansen.fit(duration, event, causes)
    low, high = (float(limit[0, 0]) for limit in incidence.interval(at, level))
    return float(incidence.at(at)[0, 0]), low, high


@dataclass(frozen=True)
class CalibrationSummary:
    """Calibration at a time; a perfect model has slope 1, intercept 0 and observed = expected.

    Attributes:
        figures: each figure of ``calibration_figures`` with its interval; its value is NaN where it does not exist.
    """

    figures: Mapping[str, Interval]

    @classmethod
    def of(cls, figures: Mapping[str, Float64[np.ndarray, " resamples"]]) -> CalibrationSummary:
        """From every figure on every resample."""
        return cls({name: Interval.of(values) for name, values in figures.items()})

    @property
    def slope(self) -> float:
        """Of the outcome on the logit of the predicted risk; below 1 the predictions are too extreme."""
        return self.figures["slope"].value

    @property
    def intercept(self) -> float:
        """With the slope held at 1, the shift of the logit that would make predictions right on average."""
        return self.figures["intercept"].value

    @property
    def observed(self) -> float:
        """One minus the Kaplan–Meier estimate of everybody; with competing events Aalen–Johansen."""
        return self.figures["observed"].value

    @property
    def expected(self) -> float:
        """The mean predicted risk."""
        return self.figures["expected"].value

    def to_json(self) -> dict[str, dict[str, Any]]:
        """Plain data; a value that does not exist is None."""
        return {name: _plain(interval) for name, interval in self.figures.items()}


def _plain(interval: Interval) -> dict[str, Any]:
    """JSON has no NaN."""
    data = interval.to_json()
    return {key: None if isinstance(value, float) and not np.isfinite(value) else value for key, value in data.items()}


def calibration_summary(
    duration: Float64[np.ndarray, " n"],
    event: Events,
    survival_at_t: Float64[np.ndarray, " n"],
    t: float,
    censoring: KaplanMeier,
    counts: np.ndarray | None = None,
) -> CalibrationSummary:
    """``calibration_figures`` at ``t`` days, with intervals where there are ``counts``; errors as there."""
    return CalibrationSummary.of(calibration_figures(duration, event, survival_at_t, t, censoring, counts))


def calibration_at_horizons(
    scores: Scores, predictions: SurvivalPredictions | Sequence[SurvivalPredictions]
) -> dict[float, CalibrationSummary]:
    """Calibration of a model, or of its seeds on average, at every horizon that its predictions reach.

    Args:
        scores: of the family ``calibration``, or of all.
        predictions: those that were scored.
    """
    seeds = [predictions] if isinstance(predictions, SurvivalPredictions) else list(predictions)
    patients, found = scores.evaluation, {}
    for place, horizon in enumerate(patients.horizons):
        if any(patients.no_point(each, horizon) is not None for each in seeds):
            continue
        risk = np.stack([1.0 - outcome_free_at(each, np.array([float(horizon)]))[:, 0] for each in seeds], axis=1)
        more = {"observed": patients.observed[:, place], "expected": over_seeds(patients.means(risk), patients.seed)}
        none = np.full(len(patients.counts), np.nan)
        found[horizon] = CalibrationSummary.of(
            {name: scores.figures.get(at(name, horizon), none) for name in AT_A_TIME} | more
        )
    return found


def before_after(
    raw: SurvivalPredictions | Sequence[SurvivalPredictions],
    final: SurvivalPredictions | Sequence[SurvivalPredictions],
    evaluation: Evaluation,
) -> dict[float, dict[str, CalibrationSummary]]:
    """Calibration ``before`` and ``after`` recalibration at every horizon, on the same patients and resamples.

    Args:
        raw, final: one model's predictions without and with its recalibration, one a seed.
        evaluation: of patients who had no part in the recalibration.

    Raises:
        EhrError: rows that do not match the outcome, broken predictions (exit 13).
    """
    first, second = (
        calibration_at_horizons(evaluation.score(each, only=("calibration",)), each) for each in (raw, final)
    )
    return {days: {"before": first[days], "after": second[days]} for days in first if days in second}
