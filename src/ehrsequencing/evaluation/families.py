"""Families of figures: each reads one model's predictions and gives its figures on every resample."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from ehrsequencing.evaluation.evaluated import Evaluated, SurvivalPredictions, outcome_free_at
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
from ehrsequencing.nonparametric import for_outcome

Figures = Mapping[str, np.ndarray | str]
"""By metric: float64[1 + resamples], or the reason why the predictions do not allow it."""
Family = Callable[[Evaluated, SurvivalPredictions], Figures]


def at(metric: str, horizon: float) -> str:
    """The key of a metric at a horizon.

    >>> at("brier", 365.0), at("auc", 1826.25)
    ('brier@365', 'auc@1826.25')
    """
    return f"{metric}@{horizon:.10g}"


def concordance(patients: Evaluated, predictions: SurvivalPredictions) -> Figures:
    """``harrell_c`` and ``uno_c``; NaN in a resample without comparable pairs."""
    rank = np.unique(check_risk(predictions.risk, patients.duration.size), return_inverse=True)[1].astype(np.int32)

    def score(rows: np.ndarray) -> np.ndarray:  # ½, 1 or 0 for each pair, by its risks
        higher, equal = rank < rank[rows, None], rank == rank[rows, None]  # (e, n)
        return higher + np.float32(0.5) * equal

    comparable = _pair_sums(patients, lambda rows: np.ones((rows.size, 1), dtype=np.float32))
    if (comparable[:, 0] == 0).any():
        raise no_pairs()
    harrell, uno = np.divide(_pair_sums(patients, score), np.where(comparable > 0, comparable, np.nan))
    return {"harrell_c": harrell, "uno_c": uno}


def errors(patients: Evaluated, predictions: SurvivalPredictions) -> Figures:
    """``ibs`` and ``brier@<days>``."""
    outcome, terms, reasons = (patients.duration, patients.event), {}, {}
    if (why := patients.no_curve(predictions)) is None:
        times = patients.curve_times
        curve = outcome_free_at(predictions, times)  # (n, 100)
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
    if not terms:
        return reasons
    return dict(zip(terms, patients.means(np.stack(list(terms.values()), axis=1)), strict=True)) | reasons


def _pair_sums(patients: Evaluated, score: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Σ w_i w_j A_ij over outcomes i and the rows j that outlived them; for Harrell's C, and with Uno's weights.

    A = ``score(rows)`` for a block of events. A·w for all resamples w at once is one matrix product; counts and
    halves stay exact in float32. Whoever had a competing event outlives all events; where it came before the event
    the pair has another weight (``early_excess``).
    """
    duration, event = patients.duration, patients.event
    group = survival_groups(*for_outcome(duration, event, patients.tau)).astype(np.int32)  # (n,)
    competing, result, outcomes = np.flatnonzero(event > 1), [], np.flatnonzero(event == 1)
    step = max(1, PAIRS_AT_ONCE // duration.size)
    for weights in patients.weights():  # (b, n)
        sums = np.zeros((2, weights.shape[0]))
        for start in range(0, outcomes.size, step):
            rows = outcomes[start : start + step]
            outlived = (group > group[rows, None]) & (patients.stratum == patients.stratum[rows, None])  # (e, n)
            pairs = outlived * score(rows)  # (e, n)
            product = (weights[:, rows] * (weights @ pairs.T)).astype(np.float64)  # (b, e)
            if competing.size:
                excess = early_excess(duration[rows], duration[competing], patients.censoring)  # (e, c)
                early = weights[:, rows] * (weights[:, competing] @ (pairs[:, competing] * excess).T)  # (b, e)
            else:
                early = np.zeros(1)
            uno = uno_weights(duration[rows], patients.censoring, patients.tau)  # (e,)
            sums += product.sum(axis=1), (product + early) @ uno
        result.append(sums)
    return np.concatenate(result, axis=1)  # (2, 1 + B)
