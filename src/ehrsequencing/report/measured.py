"""Curves of the shown models: AUC and Brier score over time, smooth calibration, net benefit, example patients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from jaxtyping import Float64

from ehrsequencing.config import MIN_CELL
from ehrsequencing.evaluation.calibration import calibration_summary
from ehrsequencing.evaluation.compare import outcome_free_at
from ehrsequencing.evaluation.decision import NetBenefit, default_thresholds, net_benefit
from ehrsequencing.evaluation.metrics import brier_terms
from ehrsequencing.evaluation.resampling import resample_counts
from ehrsequencing.evaluation.roc import auc_over_time
from ehrsequencing.evaluation.smooth import smooth_calibration
from ehrsequencing.nonparametric import AalenJohansen, KaplanMeier
from ehrsequencing.predictions import Predictions
from ehrsequencing.report.contents import Interval, Recalibrated
from ehrsequencing.report.patients import Learned, Shown, calibrate
from ehrsequencing.report.series import Calibration, Decision, Examples, OverTime, Smooth

TIME_POINTS, CURVE_POINTS, THRESHOLDS, RESAMPLES = 20, 51, 50, 200
EXAMPLE_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
AGREEMENT = {"slope": "slope", "intercept": "intercept", "oe": "observed / expected"}


def over_time(models: Sequence[Shown], learned: Learned, tau: float, *, pooled: bool = False) -> tuple[OverTime, ...]:
    """AUC and Brier score at equal times up to τ, the latter beside that of one curve for all, the training patients'
    own; models whose curves end before τ are left out.

    Where predictions of several folds are ``pooled``, each of another model, their risks are not of one scale: there is
    no AUC then, which would compare patients across folds.
    """
    whole = [each for each in models if _reaches(each.predictions, tau)]
    if not whole:
        return ()
    times = np.linspace(0.0, tau, TIME_POINTS + 1)[1:]  # (m,)
    error = {each.model: _brier(each, each.free_at(times), times, learned.censoring) for each in whole}
    first, causes = whole[0], max(int(learned.event.max()), 1)
    everybody = 1.0 - AalenJohansen.fit(learned.duration, learned.event, causes).at(times)[:, 0]  # (m,)
    reference = _brier(first, np.tile(everybody, (len(first.duration), 1)), times, learned.censoring)
    errors = OverTime("brier", times, error, reference)
    if pooled:
        return (errors,)
    auc = {each.model: _auc(each, times, learned.censoring) for each in whole}
    return OverTime("auc", times, auc), errors


def _auc(each: Shown, times: np.ndarray, censoring: KaplanMeier) -> Float64[np.ndarray, " m"]:
    return auc_over_time(each.duration, each.event, 1.0 - each.free_at(times), times, censoring)


def _brier(each: Shown, free: np.ndarray, times: np.ndarray, censoring: KaplanMeier) -> Float64[np.ndarray, " m"]:
    return brier_terms(each.duration, each.event, free, times, censoring).mean(axis=0)


def _reaches(predictions: Predictions, tau: float) -> bool:
    return bool(predictions.horizon_days.size) and float(predictions.horizon_days[-1]) >= tau * (1 - 1e-9)


def calibrations(models: Sequence[Shown], horizons: Sequence[float], censoring: KaplanMeier) -> tuple[Calibration, ...]:
    """Groups and a smooth for every model and horizon that has patients and events enough."""
    drawn = []
    for horizon in horizons:
        for each in models:
            if not _reaches(each.predictions, horizon):
                continue
            groups = calibrate(each.model, each.predictions, each.duration, each.event, horizon)
            if groups is not None:
                drawn.append(replace(groups, smooth=_smooth(each, horizon, censoring)))
    return tuple(drawn)


def _smooth(each: Shown, horizon: float, censoring: KaplanMeier) -> Smooth | None:
    """None where no smooth exists."""
    free = each.free_at(np.array([horizon]))[:, 0]  # (n,)
    subjects = each.predictions.subject_id
    found = smooth_calibration(each.duration, each.event, free, horizon, censoring, RESAMPLES, subject_id=subjects)
    return Smooth(found.predicted, found.observed, found.low, found.high) if found.predicted.size > 1 else None


def recalibrations(models: Sequence[Shown], horizon: float, censoring: KaplanMeier) -> tuple[Recalibrated, ...]:
    """Agreement at the horizon before and after recalibration, of the models that have predictions of both."""
    return tuple(
        Recalibrated(
            each.model,
            horizon,
            _agreement(each, each.raw, horizon, censoring),
            _agreement(each, each.predictions, horizon, censoring),
        )
        for each in models
        if each.raw is not None and _reaches(each.raw, horizon)
    )


def _agreement(each: Shown, predictions: Predictions, t: float, censoring: KaplanMeier) -> dict[str, Interval]:
    """With intervals from the same resamples of patients, whatever the predictions."""
    free = outcome_free_at(predictions, np.array([t]))[:, 0]  # (n,)
    counts = resample_counts(len(each.duration), RESAMPLES, 0, each.predictions.subject_id)
    found = calibration_summary(each.duration, each.event, free, t, censoring, counts)
    return {said: Interval.of(found.figures[name].to_json()) for name, said in AGREEMENT.items()}


def decisions(models: Sequence[Shown], horizons: Sequence[float], censoring: KaplanMeier) -> tuple[Decision, ...]:
    """Net benefit by threshold at every horizon that the models' curves reach."""
    drawn = []
    for horizon in horizons:
        known = {each.model: each for each in models if _reaches(each.predictions, horizon)}
        if not known:
            continue
        free = {model: each.free_at(np.array([horizon]))[:, 0] for model, each in known.items()}
        wanted = default_thresholds(_alike(free), THRESHOLDS)
        found = {
            model: net_benefit(
                each.duration,
                each.event,
                free[model],
                horizon,
                censoring,
                wanted,
                n_boot=RESAMPLES,
                subject_id=each.predictions.subject_id,
            )
            for model, each in known.items()
        }
        treat_all = next(iter(found.values())).treat_all
        if any(np.isfinite(each.model).any() for each in found.values()):
            lines = {model: each.model for model, each in found.items()}
            drawn.append(
                Decision(horizon, wanted, lines, treat_all, {model: _gain(each) for model, each in found.items()})
            )
    return tuple(drawn)


def _gain(found: NetBenefit) -> Float64[np.ndarray, "3 k"]:
    none = np.full(found.gain.size, np.nan)
    limits = (none if each is None else each for each in (found.gain_low, found.gain_high))
    return np.stack([found.gain, *limits])


def _alike(free: Mapping[str, np.ndarray]) -> Float64[np.ndarray, "models n"]:
    """The models' curves at a time as one matrix; of as many rows as the shortest, where files differ."""
    n = min(values.size for values in free.values())
    return np.stack([values[:n] for values in free.values()])


def examples(models: Sequence[Shown], tau: float) -> Examples | None:
    """Curves of the patients at quantiles of the first model's risk; None where there are too few to hide among."""
    whole = [each for each in models if _reaches(each.predictions, tau)]
    if not whole or len(whole[0].duration) < MIN_CELL * len(EXAMPLE_QUANTILES):
        return None
    first = whole[0].predictions
    same = [each for each in whole if np.array_equal(each.predictions.subject_id, first.subject_id)]
    order = np.argsort(first.risk, kind="stable")
    rows = order[[round(q * (len(order) - 1)) for q in EXAMPLE_QUANTILES]]
    times = np.linspace(0.0, tau, CURVE_POINTS)
    curves = {each.model: outcome_free_at(each.predictions.take(rows), times) for each in same[:2]}  # (k, m)
    labels = tuple(f"patient {k} (risk rank {q:.0%})" for k, q in enumerate(EXAMPLE_QUANTILES, start=1))
    return Examples(times, labels, curves, competing=bool(first.cif))
