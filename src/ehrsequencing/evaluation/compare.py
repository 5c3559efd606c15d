"""Every figure with its interval, and paired differences of models, by one patient bootstrap shared by all models."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float64, Int64

from ehrsequencing.errors import EhrError, Exit
from ehrsequencing.evaluation import agreement, dcalibration, families
from ehrsequencing.evaluation.evaluated import Evaluated as Evaluated
from ehrsequencing.evaluation.evaluated import SurvivalPredictions as SurvivalPredictions
from ehrsequencing.evaluation.evaluated import outcome_free_at as outcome_free_at
from ehrsequencing.evaluation.families import Family, at
from ehrsequencing.evaluation.resampling import INTERVAL_MEANING as INTERVAL_MEANING
from ehrsequencing.evaluation.resampling import LEVEL, Interval, over_seeds
from ehrsequencing.evaluation.resampling import resample_counts as resample_counts
from ehrsequencing.nonparametric import Events

FAMILIES: Mapping[str, Family] = {
    "concordance": families.concordance,
    "errors": families.errors,
    "calibration": agreement.calibration,
    "whole_curve": agreement.whole_curve,
}
"""What a model is scored by: a function of the evaluated patients and one seed's predictions a family of figures."""
CHECKS: Mapping[str, Callable[[Evaluated, Sequence[SurvivalPredictions]], Mapping[str, Any] | str]] = {
    "d_calibration": dcalibration.check,
}
"""What is reported of a model's seeds and never decides anything: plain data, or why there is none."""


@dataclass(frozen=True, eq=False)
class Scores:
    """One model's figures on the patients themselves (entry 0) and on every resample.

    Attributes:
        evaluation: where they were made; only scores of the same one can be compared.
        figures: metric → float64[1 + resamples].
        not_computed: metric or check → why the predictions do not allow it.
        checks: goodness-of-fit tests and the like, of everybody: plain data.
    """

    evaluation: Evaluation
    figures: Mapping[str, Float64[np.ndarray, " resamples"]]
    not_computed: Mapping[str, str]
    checks: Mapping[str, Any] = field(default_factory=dict)

    def intervals(self, level: float = LEVEL) -> dict[str, Interval]:
        """metric → value with interval."""
        return {metric: Interval.of(figures, level) for metric, figures in self.figures.items()}


@dataclass(frozen=True, eq=False)
class Evaluation(Evaluated):
    """Patients on whom models are scored: the same ones, and the same resamples, for every model."""

    def score(
        self,
        predictions: SurvivalPredictions | Sequence[SurvivalPredictions],
        only: Collection[str] = tuple(FAMILIES),
    ) -> Scores:
        """Every figure of a model on every resample; a list holds the same model's seeds.

        Args:
            predictions: of the evaluated rows, in their order.
            only: the families of figures that are wanted, of ``FAMILIES``.

        Raises:
            EhrError: rows that do not match the outcome, broken predictions (exit 13), no comparable pair (exit 12).
        """
        seeds = [predictions] if isinstance(predictions, SurvivalPredictions) else list(predictions)
        self.check_rows(seeds)
        found = [
            {name: value for family in only for name, value in FAMILIES[family](self, each).items()} for each in seeds
        ]
        missing = {name: value for each in found for name, value in each.items() if isinstance(value, str)}
        figures = {
            name: over_seeds(np.stack([each[name] for each in found]), self.seed)
            for name in found[0]
            if name not in missing
        }
        checks = {name: check(self, seeds) for name, check in CHECKS.items()} if "calibration" in only else {}
        missing |= {name: why for name, why in checks.items() if isinstance(why, str)}
        return Scores(self, figures, missing, {name: data for name, data in checks.items() if name not in missing})


def evaluate(
    predictions: SurvivalPredictions | Sequence[SurvivalPredictions],
    duration: Float64[np.ndarray, " n"],
    event: Events,
    *,
    train_duration: Float64[np.ndarray, " train"],
    train_event: np.ndarray,
    tau: float,
    horizons: Sequence[float] = (),
    n_boot: int = 1_000,
    seed: int = 0,
    subject_id: Int64[np.ndarray, " n"] | None = None,
) -> dict[str, Interval]:
    """The figures of all ``FAMILIES`` for one model or its seeds, with intervals.

    For several models make one ``Evaluation`` and score them all. What the intervals cover: ``INTERVAL_MEANING``.
    """
    evaluation = Evaluation.of(
        duration,
        event,
        train_duration=train_duration,
        train_event=train_event,
        tau=tau,
        horizons=horizons,
        n_boot=n_boot,
        seed=seed,
        subject_id=subject_id,
    )
    return evaluation.score(predictions).intervals()


def paired_difference(a: Scores, b: Scores, metric: str = "uno_c", level: float = LEVEL) -> Interval:
    """b − a in ``metric`` on the same patients and resamples; seeds are paired by their place where equally many.

    A one-sided 95% bound is an end of the interval at ``level`` 0.90.

    Raises:
        ValueError: the scores come from different evaluations.
        EhrError: a model has no such figure (exit 13), with the reason.
    """
    if a.evaluation is not b.evaluation:
        raise ValueError("only scores made by one Evaluation are paired")
    for scores in (a, b):
        if metric not in scores.figures:
            why = scores.not_computed.get(metric, f"known figures: {', '.join(scores.figures)}")
            raise EhrError(f"a model has no {metric}", "predictions", why, code=Exit.BUNDLE)
    return Interval.of(b.figures[metric] - a.figures[metric], level)


def brier_name(horizon: float) -> str:
    """The key of the Brier score at a horizon.

    >>> brier_name(365.0), brier_name(1826.25)
    ('brier@365', 'brier@1826.25')
    """
    return at("brier", horizon)


def ici_name(horizon: float) -> str:
    """The key of the integrated calibration index at a horizon.

    >>> ici_name(365.0)
    'ici@365'
    """
    return at("ici", horizon)
