"""Every figure with its interval, and paired differences of models, by one patient bootstrap shared by all models."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

import numpy as np
from jaxtyping import Float64, Int64

from ehrsequencing.errors import EhrError, Exit
from ehrsequencing.evaluation import agreement, dcalibration, families, influence, quick
from ehrsequencing.evaluation.evaluated import Evaluated as Evaluated
from ehrsequencing.evaluation.evaluated import SurvivalPredictions as SurvivalPredictions
from ehrsequencing.evaluation.evaluated import outcome_free_at as outcome_free_at
from ehrsequencing.evaluation.families import Family, Noted
from ehrsequencing.evaluation.influence import Influence
from ehrsequencing.evaluation.quick import QuickFamily
from ehrsequencing.evaluation.resampling import INTERVAL_MEANING as INTERVAL_MEANING
from ehrsequencing.evaluation.resampling import LEVEL, Interval, over_seeds
from ehrsequencing.evaluation.resampling import resample_counts as resample_counts
from ehrsequencing.nonparametric import Events

FAMILIES: Mapping[str, Family] = {
    "concordance": families.concordance,
    "antolini": families.antolini,
    "auc": families.auc,
    "errors": families.errors,
    "calibration": agreement.calibration,
    "whole_curve": agreement.whole_curve,
}
"""What a model is scored by: a function of the evaluated patients and one seed's predictions a family of figures."""
CHECKS: Mapping[str, Callable[[Evaluated, Sequence[SurvivalPredictions]], Mapping[str, Any] | str]] = {
    "d_calibration": dcalibration.check,
}
"""What is reported of a model's seeds and never decides anything: plain data, or why there is none."""
QUICK: Mapping[str, QuickFamily] = {
    "concordance": quick.concordance,
    "antolini": quick.antolini,
    "auc": quick.auc,
    "errors": quick.errors,
}
"""The families whose influence functions are known; calibration's figures need the bootstrap."""
RANKING = ("harrell_c", "uno_c", "antolini_c", "auc", "mean_auc")
"""Metrics, without their horizon, that read the order of predictions alone; they lie in (0, 1), higher is better."""


NOWHERE = "it does not exist on these patients"


def base_name(metric: str) -> str:
    """A metric's name without its horizon.

    >>> base_name("brier@365"), base_name("uno_c")
    ('brier', 'uno_c')
    """
    return metric.split("@")[0]


@dataclass(frozen=True, eq=False)
class Scores:
    """One model's figures on the patients themselves (entry 0) and on every resample.

    Attributes:
        evaluation: where they were made; only scores of the same one can be compared.
        figures: metric → float64[1 + resamples].
        not_computed: metric or check → why the predictions do not allow it.
        notes: metric → what there is to say of how it was made.
        checks: goodness-of-fit tests and the like, of everybody: plain data.
    """

    evaluation: Evaluation
    figures: Mapping[str, Float64[np.ndarray, " resamples"]]
    not_computed: Mapping[str, str]
    notes: Mapping[str, str] = field(default_factory=dict)
    checks: Mapping[str, Any] = field(default_factory=dict)

    def intervals(self, level: float = LEVEL) -> dict[str, Interval]:
        """metric → value with interval."""
        return {metric: Interval.of(figures, level) for metric, figures in self.figures.items()}

    def above(self, other: Scores, metric: str, level: float) -> Interval:
        """By how much the metric is higher here, on the same resamples."""
        return Interval.of(self.figures[metric] - other.figures[metric], level)


@dataclass(frozen=True, eq=False)
class QuickScores:
    """One model's figures with their influence functions, one a seed.

    Attributes:
        evaluation, not_computed: as in ``Scores``.
        figures: metric → the figure of each seed.
    """

    evaluation: Evaluation
    figures: Mapping[str, tuple[Influence, ...]]
    not_computed: Mapping[str, str]

    def intervals(self, level: float = LEVEL) -> dict[str, Interval]:
        """metric → value with interval."""
        return {
            metric: self._interval(influence.over_seeds(self.figures[metric]), level, metric) for metric in self.figures
        }

    def above(self, other: QuickScores, metric: str, level: float) -> Interval:
        """By how much the metric is higher here, on the same patients."""
        mine, theirs = self.figures[metric], other.figures[metric]
        if len(mine) == len(theirs):
            difference = influence.over_seeds([a - b for a, b in zip(mine, theirs, strict=True)])
        else:
            difference = influence.over_seeds(mine) - influence.over_seeds(theirs)
        return self._interval(difference, level)

    def _interval(self, figure: Influence, level: float, metric: str = "") -> Interval:
        scale = "logit" if base_name(metric) in RANKING else "plain"
        return influence.influence_interval(figure, self.evaluation.subject_id, level=level, scale=scale)


AnyScores = TypeVar("AnyScores", Scores, QuickScores)


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
        seeds = self._seeds(predictions)
        found = [self._read(FAMILIES, only, each) for each in seeds]
        missing = {name: value for each in found for name, value in each.items() if isinstance(value, str)}
        notes = {name: value.note for name, value in found[0].items() if isinstance(value, Noted)}
        figures = {
            name: over_seeds(np.stack([_bare(each[name]) for each in found]), self.seed)
            for name in found[0]
            if name not in missing
        }
        missing |= {name: NOWHERE for name, values in figures.items() if not np.isfinite(values[0])}
        figures = {name: values for name, values in figures.items() if name not in missing}
        checks = {name: check(self, seeds) for name, check in CHECKS.items()} if "calibration" in only else {}
        missing |= {name: why for name, why in checks.items() if isinstance(why, str)}
        return Scores(
            self, figures, missing, notes, {name: data for name, data in checks.items() if name not in missing}
        )

    def quick(
        self,
        predictions: SurvivalPredictions | Sequence[SurvivalPredictions],
        only: Collection[str] = tuple(QUICK),
    ) -> QuickScores:
        """Figures whose intervals come from influence functions: no resamples are needed (``n_boot=0``).

        Args, Raises: as ``score``, the families being those of ``QUICK``.
        """
        found = [self._read(QUICK, only, each) for each in self._seeds(predictions)]
        missing = {name: value for each in found for name, value in each.items() if isinstance(value, str)}
        figures = {name: tuple(each[name] for each in found) for name in found[0] if name not in missing}
        return QuickScores(self, figures, missing)

    def _seeds(self, predictions: SurvivalPredictions | Sequence[SurvivalPredictions]) -> list[SurvivalPredictions]:
        seeds = [predictions] if isinstance(predictions, SurvivalPredictions) else list(predictions)
        self.check_rows(seeds)
        return seeds

    def _read(
        self, table: Mapping[str, Callable[..., Mapping[str, Any]]], only: Collection[str], one: SurvivalPredictions
    ) -> dict[str, Any]:
        """One seed's figures of several families, in the table's order."""
        chosen = [family for name, family in table.items() if name in only]
        return {metric: value for family in chosen for metric, value in family(self, one).items()}


def _bare(figures: np.ndarray | Noted) -> np.ndarray:
    return figures.figures if isinstance(figures, Noted) else figures


class IntervalKind(NamedTuple):
    """A way to an interval: how a model is scored, whether resamples are drawn for it, and what it means."""

    score: Callable[[Evaluation, SurvivalPredictions | Sequence[SurvivalPredictions]], Scores | QuickScores]
    resamples: bool
    meaning: str


INTERVALS: Mapping[str, IntervalKind] = {
    "bootstrap": IntervalKind(Evaluation.score, True, INTERVAL_MEANING),
    "influence": IntervalKind(Evaluation.quick, False, influence.INFLUENCE_MEANING),
}


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
    interval: str = "bootstrap",
) -> dict[str, Interval]:
    """The figures of all families for one model or its seeds, with intervals.

    For several models make one ``Evaluation`` and score them all. What the intervals cover: ``INTERVALS``, whose
    ``influence`` is the quick alternative; it has no calibration figures.

    Raises:
        EhrError: as ``Evaluation.of`` and ``Evaluation.score``, or no such ``interval`` (exit 2).
    """
    kind = _interval_kind(interval)
    evaluation = Evaluation.of(
        duration,
        event,
        train_duration=train_duration,
        train_event=train_event,
        tau=tau,
        horizons=horizons,
        n_boot=n_boot * kind.resamples,
        seed=seed,
        subject_id=subject_id,
    )
    return kind.score(evaluation, predictions).intervals()


def _interval_kind(name: str) -> IntervalKind:
    if name not in INTERVALS:
        raise EhrError(f"no interval '{name}'", "interval", f"one of: {', '.join(INTERVALS)}", code=Exit.USAGE)
    return INTERVALS[name]


def paired_difference(a: AnyScores, b: AnyScores, metric: str = "uno_c", level: float = LEVEL) -> Interval:
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
    return b.above(a, metric, level)
