"""Every figure with its interval, and paired differences of models, by one patient bootstrap shared by all models."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float64, Int64, UInt8

from ehrsequencing.config import CURVE_POINTS, MIN_CURVE_POINTS
from ehrsequencing.errors import EhrError, Exit
from ehrsequencing.evaluation.agreement import calibration_index
from ehrsequencing.evaluation.metrics import (
    PAIRS_AT_ONCE,
    brier_terms,
    check_risk,
    early_excess,
    integrated_brier_terms,
    no_pairs,
    survival_groups,
    uno_weights,
)
from ehrsequencing.horizon import check_horizon
from ehrsequencing.nonparametric import Events, KaplanMeier, censoring_distribution, for_outcome
from ehrsequencing.progress import tracked
from ehrsequencing.timegrid import truncate

LEVEL = 0.95
INTERVAL_MEANING = (
    "95% percentile intervals of a patient bootstrap: evaluated patients are drawn with replacement, the same draws "
    "for every model, and where a model has several seeds these are drawn too and their figures averaged. They cover "
    "the chance in who was evaluated and in the training seeds, not in who was trained on: the training patients, the "
    "split and the censoring distribution are held fixed."
)
WEIGHTS_AT_ONCE = 25_000_000
"""Resampled patient weights held in memory at a time."""


@runtime_checkable
class SurvivalPredictions(Protocol):
    """What is read of predictions, whoever made them: one row a patient and prediction_time."""

    @property
    def subject_id(self) -> np.ndarray: ...
    @property
    def prediction_time(self) -> np.ndarray: ...
    @property
    def risk(self) -> np.ndarray: ...
    @property
    def horizon_days(self) -> np.ndarray: ...
    @property
    def cif(self) -> Mapping[str, np.ndarray]: ...
    def survival_at(self, times: np.ndarray) -> np.ndarray: ...
    def outcome_risk_at(self, times: np.ndarray) -> np.ndarray: ...


def outcome_free_at(predictions: SurvivalPredictions, times: Float64[np.ndarray, " m"]) -> Float64[np.ndarray, "n m"]:
    """The predicted probability of no outcome up to each time: S(t), or with competing events 1 − CIF(t)."""
    return 1.0 - predictions.outcome_risk_at(times) if predictions.cif else predictions.survival_at(times)


@dataclass(frozen=True)
class Interval:
    """A figure and its interval; without resamples ``low`` and ``high`` are None.

    ``skipped`` counts the resamples in which the figure does not exist (no comparable pairs).
    """

    value: float
    low: float | None
    high: float | None
    skipped: int = 0

    def to_json(self) -> dict[str, float | int | None]:
        """Plain data; ``skipped`` is named only where it happened."""
        data: dict[str, float | int | None] = {"value": self.value, "low": self.low, "high": self.high}
        return data | ({"skipped": self.skipped} if self.skipped else {})

    @classmethod
    def of(cls, figures: Float64[np.ndarray, " resamples"], level: float = LEVEL) -> Interval:
        """``figures[0]`` is the figure itself, the others its resamples; NaN where one does not exist.

        >>> Interval.of(np.array([0.7, 0.6, 0.8, np.nan]))
        Interval(value=0.7, low=0.605, high=0.795, skipped=1)
        """
        seen = figures[1:][np.isfinite(figures[1:])]
        skipped = figures.size - 1 - seen.size
        if seen.size == 0:
            return cls(float(figures[0]), None, None, skipped)
        low, high = np.quantile(seen, [(1 - level) / 2, (1 + level) / 2])
        return cls(float(figures[0]), float(low), float(high), skipped)


@dataclass(frozen=True, eq=False)
class Scores:
    """One model's figures on the patients themselves (entry 0) and on every resample.

    Attributes:
        evaluation: where they were made; only scores of the same one can be compared.
        figures: metric → float64[1 + resamples].
        not_computed: metric → why the predictions do not allow it.
    """

    evaluation: Evaluation
    figures: Mapping[str, Float64[np.ndarray, " resamples"]]
    not_computed: Mapping[str, str]

    def intervals(self, level: float = LEVEL) -> dict[str, Interval]:
        """metric → value with interval."""
        return {metric: Interval.of(figures, level) for metric, figures in self.figures.items()}


@dataclass(frozen=True, eq=False)
class Evaluation:
    """The evaluated patients, the horizon, and the resamples that every model is scored on.

    Attributes:
        duration, event: the outcome of the evaluated rows, truncated at τ; 1 the outcome, 2, 3, … competing events.
        censoring: Ĝ of the training outcome.
        tau: the horizon in days.
        horizons: days at which the Brier score is reported.
        counts: uint8[1 + resamples, n], how often each row was drawn; row 0 is everybody once.
        seed: of the resamples.
        stratum: int64[n]; C counts pairs within a stratum only (folds: risks of different fits are not on one scale).
        subject_id: int64[n], whose rows these are, where that is known.
    """

    duration: Float64[np.ndarray, " n"]
    event: Int64[np.ndarray, " n"]
    censoring: KaplanMeier
    tau: float
    horizons: tuple[float, ...]
    counts: UInt8[np.ndarray, "resamples n"]
    seed: int
    stratum: Int64[np.ndarray, " n"]
    subject_id: Int64[np.ndarray, " n"] | None = None

    @classmethod
    def of(
        cls,
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
        stratum: Int64[np.ndarray, " n"] | None = None,
    ) -> Evaluation:
        """Prepare to score models on these patients.

        Args:
            duration, event: outcome of the evaluated patients.
            train_duration, train_event: outcome of the training split, for Ĝ.
            tau: the horizon in days, of every figure but the Brier score at a horizon.
            horizons: days, each at most τ.
            n_boot: resamples; 0 for figures without intervals.
            seed: of the resamples.
            subject_id: whose rows these are: predictions must be for the same, and a patient's rows are drawn together.
            stratum: the fold of each patient, where predictions of several fits are pooled.

        Raises:
            EhrError: a horizon that training follow-up does not support or that is past τ (exit 12).
        """
        censoring = censoring_distribution(train_duration, train_event)
        check_horizon(tau, censoring)
        for horizon in horizons:
            check_horizon(horizon, censoring, "reported horizon")
            if horizon > tau:
                what = f"the reported horizon of {horizon:g} days is past τ, {tau:g} days"
                raise EhrError(what, "horizons_days", "report horizons up to the task's", code=Exit.COHORT)
        duration, event = truncate(duration, event, tau)
        counts = resample_counts(duration.size, n_boot, seed, subject_id)
        stratum = np.zeros(duration.size, dtype=np.int64) if stratum is None else stratum
        return cls(duration, event, censoring, float(tau), tuple(horizons), counts, seed, stratum, subject_id)

    def score(self, predictions: SurvivalPredictions | Sequence[SurvivalPredictions]) -> Scores:
        """Every figure of a model on every resample; a list holds the same model's seeds.

        Raises:
            EhrError: rows that do not match the outcome, broken predictions (exit 13), no comparable pair (exit 12).
        """
        seeds = [predictions] if isinstance(predictions, SurvivalPredictions) else list(predictions)
        self._check_rows(seeds)
        missing = {name: why for each in seeds for name, why in self._missing(each).items()}
        ranking = np.stack([self._concordance(each.risk) for each in seeds])  # (S, 2, 1 + B)
        figures = {"harrell_c": ranking[:, 0], "uno_c": ranking[:, 1]}
        errors = [self._error_terms(each, missing) for each in seeds]  # (n,) a metric
        figures |= {name: self._means([terms[name] for terms in errors]) for name in errors[0]}
        for horizon in self.horizons:
            if brier_name(horizon) not in missing:
                figures[ici_name(horizon)] = np.stack([self._calibration(each, horizon) for each in seeds])
        return Scores(self, {name: self._over_seeds(values) for name, values in figures.items()}, missing)

    def _check_rows(self, seeds: Sequence[SurvivalPredictions]) -> None:
        first, n = seeds[0], self.duration.size
        wanted = first.subject_id if self.subject_id is None else self.subject_id
        for each in seeds:
            same = np.array_equal(each.subject_id, wanted)
            if each.subject_id.size != n or not same or not np.array_equal(each.prediction_time, first.prediction_time):
                others = " others" if not same else " others' prediction_time"
                raise EhrError(
                    f"expected the same {n:,} subjects in every seed's predictions, found {each.subject_id.size:,}"
                    + ("" if each.subject_id.size != n else others),
                    "predictions",
                    "predict every seed on the same rows, in the same order",
                    code=Exit.BUNDLE,
                )

    def _missing(self, predictions: SurvivalPredictions) -> dict[str, str]:
        """metric → why the curve does not allow it: too few points for the IBS, or it ends too early."""
        given, end = predictions.horizon_days.size, float(np.max(predictions.horizon_days, initial=0.0))
        reasons = {}
        if end < self.tau * (1 - 1e-9) or given < MIN_CURVE_POINTS:
            reasons["ibs"] = (
                f"needs at least {MIN_CURVE_POINTS} curve points reaching {self.tau:g} days; "
                f"the predictions have {given}, reaching {end:g}"
            )
        for horizon in self.horizons:
            exact = np.isclose(predictions.horizon_days, horizon, rtol=1e-9, atol=0).any()
            if end < horizon * (1 - 1e-9) or (given < MIN_CURVE_POINTS and not exact):
                reasons[brier_name(horizon)] = f"the predictions have no point at {horizon:g} days"
        return reasons

    def _error_terms(
        self, predictions: SurvivalPredictions, missing: Mapping[str, str]
    ) -> dict[str, Float64[np.ndarray, " n"]]:
        """Each row's share of the integrated Brier score and of the Brier score at each horizon."""
        outcome, terms = (self.duration, self.event), {}
        if "ibs" not in missing:
            times = np.linspace(0.0, self.tau, CURVE_POINTS + 1)[1:]
            curve = outcome_free_at(predictions, times)  # (n, 100)
            terms["ibs"] = integrated_brier_terms(*outcome, curve, times, self.censoring, self.tau)
        for horizon in self.horizons:
            if (name := brier_name(horizon)) not in missing:
                at = np.array([float(horizon)])
                terms[name] = brier_terms(*outcome, outcome_free_at(predictions, at), at, self.censoring)[:, 0]
        return terms

    def _calibration(self, predictions: SurvivalPredictions, horizon: float) -> Float64[np.ndarray, " resamples"]:
        free = outcome_free_at(predictions, np.array([horizon]))[:, 0]  # (n,)
        outcome = (self.duration, self.event, free, horizon, self.censoring)
        return np.concatenate([calibration_index(*outcome, weights) for weights in self._weights()])

    def _means(self, terms: Sequence[np.ndarray]) -> Float64[np.ndarray, "seeds resamples"]:
        columns = np.stack(terms, axis=1)  # (n, S)
        sums = [weights @ columns / weights.sum(axis=1, keepdims=True) for weights in self._weights()]
        return np.concatenate(sums).T

    def _concordance(self, risk: np.ndarray) -> Float64[np.ndarray, "two resamples"]:
        """Harrell's and Uno's C on every resample; NaN where it has no comparable pair."""
        rank = np.unique(check_risk(risk, self.duration.size), return_inverse=True)[1].astype(np.int32)

        def score(rows: np.ndarray) -> np.ndarray:  # ½, 1 or 0 for each pair, by its risks
            higher, equal = rank < rank[rows, None], rank == rank[rows, None]  # (e, n)
            return higher + np.float32(0.5) * equal

        return np.divide(self._pair_sums(score), self._comparable)

    @cached_property
    def _comparable(self) -> Float64[np.ndarray, "two resamples"]:
        """The weight of all comparable pairs, the same for every model; NaN for none."""
        sums = self._pair_sums(lambda rows: np.ones((rows.size, 1), dtype=np.float32))
        if (sums[:, 0] == 0).any():
            raise no_pairs()
        return np.where(sums > 0, sums, np.nan)

    def _pair_sums(self, score: Callable[[np.ndarray], np.ndarray]) -> Float64[np.ndarray, "two resamples"]:
        """Σ w_i w_j A_ij over outcomes i and the rows j that outlived them; for Harrell's C, and with Uno's weights.

        A = ``score(rows)`` for a block of events. A·w for all resamples w at once is one matrix product; counts and
        halves stay exact in float32. Whoever had a competing event outlives all events; where it came before the event
        the pair has another weight (``early_excess``).
        """
        group = survival_groups(*for_outcome(self.duration, self.event, self.tau)).astype(np.int32)  # (n,)
        competing, result = np.flatnonzero(self.event > 1), []
        for weights in self._weights():  # (b, n)
            sums = np.zeros((2, weights.shape[0]))
            for rows in self._event_rows():
                outlived = (group > group[rows, None]) & (self.stratum == self.stratum[rows, None])  # (e, n)
                pairs = outlived * score(rows)  # (e, n)
                product = (weights[:, rows] * (weights @ pairs.T)).astype(np.float64)  # (b, e)
                if competing.size:
                    excess = early_excess(self.duration[rows], self.duration[competing], self.censoring)  # (e, c)
                    early = weights[:, rows] * (weights[:, competing] @ (pairs[:, competing] * excess).T)  # (b, e)
                else:
                    early = np.zeros(1)
                uno = uno_weights(self.duration[rows], self.censoring, self.tau)  # (e,)
                sums += product.sum(axis=1), (product + early) @ uno
            result.append(sums)
        return np.concatenate(result, axis=1)  # (2, 1 + B)

    def _over_seeds(self, values: Float64[np.ndarray, "seeds resamples"]) -> Float64[np.ndarray, " resamples"]:
        """The mean over seeds; in a resample, over as many seeds drawn with replacement."""
        n_seeds, size = values.shape
        drawn = np.random.default_rng([self.seed, n_seeds]).integers(0, n_seeds, (size, n_seeds))
        drawn[0] = np.arange(n_seeds)
        return np.take_along_axis(values.T, drawn, axis=1).mean(axis=1)

    def _weights(self) -> Iterator[np.ndarray]:
        step = max(1, WEIGHTS_AT_ONCE // self.duration.size)
        starts = range(0, self.counts.shape[0], step)
        for start in tracked(starts, "resampling patients", [1.0] * len(starts)):
            yield self.counts[start : start + step].astype(np.float32)  # (b, n)

    def _event_rows(self) -> Iterator[np.ndarray]:
        rows, step = np.flatnonzero(self.event == 1), max(1, PAIRS_AT_ONCE // self.duration.size)
        for start in range(0, rows.size, step):
            yield rows[start : start + step]


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
    """``harrell_c``, ``uno_c``, ``ibs``, ``brier@<days>``, ``ici@<days>`` of one model or its seeds, with intervals.

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
    return f"brier@{horizon:.10g}"


def ici_name(horizon: float) -> str:
    """The key of the integrated calibration index at a horizon.

    >>> ici_name(365.0)
    'ici@365'
    """
    return brier_name(horizon).replace("brier", "ici")


def resample_counts(
    n: int, n_boot: int, seed: int, cluster: Int64[np.ndarray, " n"] | None = None
) -> UInt8[np.ndarray, "resamples n"]:
    """How often each of ``n`` rows is in each bootstrap resample; row 0 is the sample itself.

    Args:
        n: rows.
        n_boot: resamples, drawn with replacement, as many patients as there are.
        seed: equal seeds give equal resamples.
        cluster: whose row each is, where patients have several; a patient's rows are drawn together.

    >>> resample_counts(3, 2, seed=0).sum(axis=1)
    array([3, 3, 3], dtype=uint64)
    """
    owner = np.arange(n) if cluster is None else np.unique(cluster, return_inverse=True)[1]  # (n,)
    size = int(owner.max()) + 1
    rng = np.random.default_rng([seed, size])
    counts = np.ones((n_boot + 1, n), dtype=np.uint8)
    for row in range(1, n_boot + 1):
        counts[row] = np.bincount(rng.integers(0, size, size), minlength=size)[owner]
    return counts
