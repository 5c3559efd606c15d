"""The evaluated patients: their outcome, the horizon, and the resamples that every figure is made on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol, TypeVar, runtime_checkable

import numpy as np
from jaxtyping import Float64, Int64, UInt8

from ehrsequencing.config import CURVE_POINTS, MIN_CURVE_POINTS
from ehrsequencing.errors import EhrError, Exit
from ehrsequencing.evaluation.concordance import Pairs, PairWeights, comparable_sums
from ehrsequencing.evaluation.incidence import incidence
from ehrsequencing.evaluation.metrics import brier_terms, integrated_brier_terms
from ehrsequencing.evaluation.resampling import resample_counts
from ehrsequencing.horizon import check_horizon
from ehrsequencing.nonparametric import AalenJohansen, Events, KaplanMeier, censoring_distribution
from ehrsequencing.progress import tracked
from ehrsequencing.timegrid import truncate

Kind = TypeVar("Kind", bound="Evaluated")
WEIGHTS_AT_ONCE = 10_000_000
"""Resampled patient weights held in memory at a time."""
AUC_POINTS = 20
"""Equally spaced points on (0, τ] over which AUC(t) is averaged."""


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


def at(metric: str, horizon: float) -> str:
    """The key of a metric at a horizon.

    >>> at("brier", 365.0), at("auc", 1826.25)
    ('brier@365', 'auc@1826.25')
    """
    return f"{metric}@{horizon:.10g}"


def outcome_free_at(predictions: SurvivalPredictions, times: Float64[np.ndarray, " m"]) -> Float64[np.ndarray, "n m"]:
    """The predicted probability of no outcome up to each time: S(t), or with competing events 1 − CIF(t)."""
    return 1.0 - predictions.outcome_risk_at(times) if predictions.cif else predictions.survival_at(times)


@dataclass(frozen=True, eq=False)
class Evaluated:
    """The evaluated patients, the horizon, and the resamples that every model is scored on.

    Attributes:
        duration, event: the outcome of the evaluated rows, truncated at τ; 1 the outcome, 2, 3, … competing events.
        censoring: Ĝ of the training outcome.
        incidence: of the training outcome, the curve that is the same for all (Aalen–Johansen; Kaplan–Meier's where
            nothing competes): what scaled Brier scores are scaled by.
        tau: the horizon in days.
        horizons: days at which figures at a horizon are reported.
        counts: uint8[1 + resamples, n], how often each row was drawn; row 0 is everybody once.
        seed: of the resamples.
        stratum: int64[n]; pairs are compared within a stratum only (folds: risks of different fits are not on one
            scale).
        subject_id: int64[n], whose rows these are, where that is known.
    """

    duration: Float64[np.ndarray, " n"]
    event: Int64[np.ndarray, " n"]
    censoring: KaplanMeier
    incidence: AalenJohansen
    tau: float
    horizons: tuple[float, ...]
    counts: UInt8[np.ndarray, "resamples n"]
    seed: int
    stratum: Int64[np.ndarray, " n"]
    subject_id: Int64[np.ndarray, " n"] | None = None

    @classmethod
    def of(
        cls: type[Kind],
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
    ) -> Kind:
        """Prepare to score models on these patients.

        Args:
            duration, event: outcome of the evaluated patients.
            train_duration, train_event: outcome of the training split, for Ĝ and the curve that is the same for all.
            tau: the horizon in days, of every figure but those at a horizon.
            horizons: days, each at most τ.
            n_boot: resamples; 0 for figures without intervals, or with those of ``quick``.
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
        return cls(
            duration=duration,
            event=event,
            censoring=censoring,
            incidence=AalenJohansen.fit(train_duration, train_event),
            tau=float(tau),
            horizons=tuple(horizons),
            counts=resample_counts(duration.size, n_boot, seed, subject_id),
            seed=seed,
            stratum=np.zeros(duration.size, dtype=np.int64) if stratum is None else stratum,
            subject_id=subject_id,
        )

    @cached_property
    def curve_times(self) -> Float64[np.ndarray, " points"]:
        """The 100 equal points on (0, τ] at which errors are integrated."""
        return np.linspace(0.0, self.tau, CURVE_POINTS + 1)[1:]

    @cached_property
    def observed(self) -> Float64[np.ndarray, "resamples times"]:
        """The outcome's observed incidence on every resample: at the ``horizons``, then at the ``curve_times``."""
        times = np.concatenate([np.array(self.horizons, dtype=np.float64), self.curve_times])
        return incidence(self.duration, self.event, times, self.counts)

    @cached_property
    def auc_times(self) -> Float64[np.ndarray, " points"]:
        """The equal points on (0, τ] over which AUC(t) is averaged."""
        return np.linspace(0.0, self.tau, AUC_POINTS + 1)[1:]

    def outcome_free(self, times: Float64[np.ndarray, " m"]) -> Float64[np.ndarray, " m"]:
        """The training outcome's own curve: the share without the outcome up to each time."""
        return 1.0 - self.incidence.at(times)[:, 0]

    @cached_property
    def pairs(self) -> Pairs:
        """Who outlived whose outcome."""
        return Pairs.of(self.duration, self.event, self.stratum)

    @staticmethod
    def concordances(horizon: float | None) -> tuple[str, str]:
        """The keys of Harrell's and Uno's C, over the whole follow-up (None) or up to a horizon."""
        return ("harrell_c", "uno_c") if horizon is None else (at("harrell_c", horizon), at("uno_c", horizon))

    @cached_property
    def pair_weights(self) -> dict[str, PairWeights]:
        """What pairs weigh in each concordance."""
        found: dict[str, PairWeights] = {}
        for horizon in (None, *self.horizons):
            harrell, uno = self.concordances(horizon)
            end = self.tau if horizon is None else float(horizon)
            found |= {harrell: self.pairs.harrell(end), uno: self.pairs.uno(self.censoring, end)}
        return found

    @cached_property
    def comparable(self) -> dict[str, Float64[np.ndarray, " resamples"]]:
        """The weight of all comparable pairs by concordance, the same for every model; NaN for none."""
        kinds = list(self.pair_weights.values())
        sums = np.concatenate([comparable_sums(self.pairs, kinds, drawn) for drawn in self.weights()])
        return dict(zip(self.pair_weights, np.where(sums > 0, sums, np.nan).T, strict=True))

    @cached_property
    def null_terms(self) -> dict[str, Float64[np.ndarray, " n"]]:
        """Each row's share of ``ibs`` and ``brier@<days>`` of the training outcome's own curve."""
        times, n = self.curve_times, self.duration.size
        curve = np.tile(self.outcome_free(times), (n, 1))
        outcome = self.duration, self.event
        found = {"ibs": integrated_brier_terms(*outcome, curve, times, self.censoring, self.tau)}
        for horizon in self.horizons:
            when = np.array([float(horizon)])
            free = np.tile(self.outcome_free(when), (n, 1))
            found[at("brier", horizon)] = brier_terms(*outcome, free, when, self.censoring)[:, 0]
        return found

    @cached_property
    def null_errors(self) -> dict[str, Float64[np.ndarray, " resamples"]]:
        """``null_terms``' means on every resample."""
        return dict(zip(self.null_terms, self.means(np.stack(list(self.null_terms.values()), axis=1)), strict=True))

    def check_rows(self, seeds: Sequence[SurvivalPredictions]) -> None:
        """Refuse predictions whose rows are not the evaluated ones, in their order (EhrError, exit 13)."""
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

    def no_curve(self, predictions: SurvivalPredictions) -> str | None:
        """Why the predictions do not allow figures that read the whole curve up to τ; None where they do."""
        if (why := self._no_incidence(predictions)) is not None:
            return why
        given, end = predictions.horizon_days.size, float(np.max(predictions.horizon_days, initial=0.0))
        if end >= self.tau * (1 - 1e-9) and given >= MIN_CURVE_POINTS:
            return None
        return (
            f"needs at least {MIN_CURVE_POINTS} curve points reaching {self.tau:g} days; "
            f"the predictions have {given}, reaching {end:g}"
        )

    def no_point(self, predictions: SurvivalPredictions, horizon: float) -> str | None:
        """Why the predictions do not allow figures at a horizon; None where they do."""
        if (why := self._no_incidence(predictions)) is not None:
            return why
        given, end = predictions.horizon_days.size, float(np.max(predictions.horizon_days, initial=0.0))
        exact = np.isclose(predictions.horizon_days, horizon, rtol=1e-9, atol=0).any()
        if end >= horizon * (1 - 1e-9) and (given >= MIN_CURVE_POINTS or exact):
            return None
        return f"the predictions have no point at {horizon:g} days"

    def _no_incidence(self, predictions: SurvivalPredictions) -> str | None:
        """Where events compete 1 − S is the risk of any of them, not that of the outcome."""
        if predictions.cif or not (self.event > 1).any():
            return None
        return "events compete here, and the predictions have no cif_outcome (their survival is of no event at all)"

    def weights(self) -> Iterator[np.ndarray]:
        """``counts`` as float32, some resamples (b, n) at a time, about equally many."""
        blocks = np.array_split(self.counts, -(-self.counts.size // WEIGHTS_AT_ONCE))
        for block in tracked(blocks, "resampling patients", [1.0] * len(blocks)):
            yield block.astype(np.float32)  # (b, n)

    def means(self, terms: Float64[np.ndarray, "n k"]) -> Float64[np.ndarray, "k resamples"]:
        """The mean of each column over the patients of every resample."""
        sums = [weights @ terms / weights.sum(axis=1, keepdims=True) for weights in self.weights()]
        return np.concatenate(sums).T
