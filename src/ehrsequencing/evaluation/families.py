"""Families of figures: each reads one model's predictions and gives its figures on every resample."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from ehrsequencing.evaluation import influence
from ehrsequencing.evaluation.antolini import TimeRanking
from ehrsequencing.evaluation.concordance import concordant_sums, no_pairs
from ehrsequencing.evaluation.evaluated import Evaluated, SurvivalPredictions, at, outcome_free_at
from ehrsequencing.evaluation.metrics import brier_terms, check_survival, integrated_brier_terms
from ehrsequencing.evaluation.roc import mean_auc, resampled_auc, rocs_of

ANTOLINI_WORK = 5e10
"""Pairs times resamples up to which Antolini's C is computed anew on every resample: two seconds of one core."""
LINEARISED = (
    "resamples to first order, by influence functions: all pairs of so many patients are not looked at anew on each"
)
NO_AUC = "nobody is known to have had the outcome by then, or everybody"
NO_SCALE = "the training outcome's own curve makes no error by then"


class Noted(NamedTuple):
    """Figures on every resample, and what there is to say of how they were made."""

    figures: np.ndarray
    note: str


Figures = Mapping[str, np.ndarray | Noted | str]
"""By metric: float64[1 + resamples], or the reason why the predictions do not allow it."""
Family = Callable[[Evaluated, SurvivalPredictions], Figures]


def concordance(patients: Evaluated, predictions: SurvivalPredictions) -> Figures:
    """``harrell_c`` and ``uno_c``, also ``@<days>``: up to there, ranked by the predicted risk of the outcome by then.

    NaN in a resample without comparable pairs.
    """
    found: dict[str, np.ndarray | Noted | str] = {}
    for horizon, risk in risks(patients, predictions).items():
        names = patients.concordances(horizon)
        if isinstance(risk, str):
            found |= dict.fromkeys(names, risk)
            continue
        known = [name for name in names if np.isfinite(patients.comparable[name][0])]
        if horizon is None and len(known) < len(names):
            raise no_pairs()
        found |= {name: no_pairs_by(horizon) for name in names if name not in known}
        if not known:
            continue
        rank, kinds = patients.pairs.ranks(risk), [patients.pair_weights[name] for name in known]
        sums = [concordant_sums(patients.pairs, rank, kinds, drawn) for drawn in patients.weights()]
        for name, concordant in zip(known, np.concatenate(sums).T, strict=True):
            found[name] = concordant / patients.comparable[name]
    return found


def no_pairs_by(horizon: float | None) -> str:
    """Why there is no concordance up to a horizon; Uno's looks at outcomes before it, Harrell's also at those on it."""
    return f"no two patients can be compared by {horizon:g} days"


def risks(patients: Evaluated, predictions: SurvivalPredictions) -> dict[float | None, np.ndarray | str]:
    """What ranks patients over the whole follow-up (None), and up to each horizon; or why there is no such thing."""
    found: dict[float | None, np.ndarray | str] = {None: predictions.risk}
    for horizon in patients.horizons:
        why = patients.no_point(predictions, horizon)
        found[horizon] = why or 1.0 - outcome_free_at(predictions, np.array([float(horizon)]))[:, 0]
    return found


def antolini(patients: Evaluated, predictions: SurvivalPredictions) -> Figures:
    """``antolini_c``; where ``ANTOLINI_WORK`` is passed its resamples are to first order, and a note says so."""
    if (why := patients.no_curve(predictions)) is not None:
        return {"antolini_c": why}
    ranking = time_ranking(patients, predictions)
    if float(patients.pairs.outcome.sum()) * patients.duration.size * len(patients.counts) > ANTOLINI_WORK:
        found = influence.antolini_influence(ranking)
        linear = np.concatenate([found.on(drawn) for drawn in patients.weights()])
        return {"antolini_c": Noted(linear, LINEARISED)}
    sums = np.concatenate([ranking.concordant_sums(drawn) for drawn in patients.weights()])
    return {"antolini_c": sums / patients.comparable["harrell_c"]}


def time_ranking(patients: Evaluated, predictions: SurvivalPredictions) -> TimeRanking:
    """Who ranks above whom at each time, by curves at the predictions' own points up to τ."""
    given = predictions.horizon_days
    times = np.append(given[given < patients.tau * (1 - 1e-9)], patients.tau)
    curves = check_survival(outcome_free_at(predictions, times), patients.duration.size)
    return TimeRanking(patients.pairs, times, curves)


def auc(patients: Evaluated, predictions: SurvivalPredictions) -> Figures:
    """``mean_auc`` over 20 equal points on (0, τ], and ``auc@<days>``, of the predicted risk by each time.

    In the mean each point weighs the outcomes that fall due since the one before on the training outcome's own curve,
    which, like Ĝ, is held fixed over resamples.
    """
    reasons = auc_reasons(patients, predictions)
    horizons = [h for h in patients.horizons if at("auc", h) not in reasons]
    over = patients.auc_times if "mean_auc" not in reasons else np.zeros(0)
    times = np.append(over, horizons)
    if times.size == 0:
        return reasons
    rocs = rocs_of(*auc_inputs(patients, predictions, times))
    values = np.concatenate([resampled_auc(rocs, drawn) for drawn in patients.weights()])  # (1 + B, m)
    figures = {at("auc", h): values[:, over.size + k] for k, h in enumerate(horizons)}
    if over.size:
        figures["mean_auc"] = mean_auc(values[:, : over.size], patients.outcome_free(over))
    return reasons | {name: each if np.isfinite(each[0]) else NO_AUC for name, each in figures.items()}


def auc_reasons(patients: Evaluated, predictions: SurvivalPredictions) -> dict[str, str]:
    """Which AUCs the predictions do not allow, and why."""
    reasons = {"mean_auc": patients.no_curve(predictions)}
    reasons |= {at("auc", horizon): patients.no_point(predictions, horizon) for horizon in patients.horizons}
    return {name: why for name, why in reasons.items() if why is not None}


def auc_inputs(patients: Evaluated, predictions: SurvivalPredictions, times: np.ndarray) -> tuple:
    """The arguments of ``rocs_of``, the risk at each time being that of the outcome by then."""
    risk = 1.0 - outcome_free_at(predictions, times)  # (n, m)
    return patients.duration, patients.event, risk, times, patients.censoring, patients.stratum


def errors(patients: Evaluated, predictions: SurvivalPredictions) -> Figures:
    """``ibs``, ``brier@<days>``; ``scaled_ibs``, ``scaled_brier@<days>``: the share saved of the training curve's."""
    terms, reasons = error_terms(patients, predictions)
    missing = reasons | {f"scaled_{name}": why for name, why in reasons.items()}
    if not terms:
        return missing
    means = dict(zip(terms, patients.means(np.stack(list(terms.values()), axis=1)), strict=True))
    scaled = {f"scaled_{name}": _scaled(error, patients.null_errors[name]) for name, error in means.items()}
    return means | scaled | missing


def _scaled(error: np.ndarray, null: np.ndarray) -> np.ndarray | str:
    """1 − error / null on every resample."""
    scaled = 1.0 - np.divide(error, null, out=np.full(error.size, np.nan), where=null > 0)
    return scaled if np.isfinite(scaled[0]) else NO_SCALE


def error_terms(patients: Evaluated, predictions: SurvivalPredictions) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Each row's share of ``ibs`` and of ``brier@<days>``, and why one cannot be had."""
    outcome, terms, reasons = (patients.duration, patients.event), {}, {}
    if (why := patients.no_curve(predictions)) is None:
        curve, times = outcome_free_at(predictions, patients.curve_times), patients.curve_times  # (n, 100)
        terms["ibs"] = integrated_brier_terms(*outcome, curve, times, patients.censoring, patients.tau)
    else:
        reasons["ibs"] = why
    for horizon in patients.horizons:
        if (why := patients.no_point(predictions, horizon)) is None:
            when = np.array([float(horizon)])
            free = outcome_free_at(predictions, when)
            terms[at("brier", horizon)] = brier_terms(*outcome, free, when, patients.censoring)[:, 0]
        else:
            reasons[at("brier", horizon)] = why
    return terms, reasons
