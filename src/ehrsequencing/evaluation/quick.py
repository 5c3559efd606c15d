"""Families of figures with their influence functions: intervals without resampling."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from ehrsequencing.evaluation import families
from ehrsequencing.evaluation.evaluated import Evaluated, SurvivalPredictions, at
from ehrsequencing.evaluation.influence import (
    Influence,
    antolini_influence,
    auc_influence,
    concordance_influence,
    mean_influence,
    ratio_influence,
    weighted_influence,
)
from ehrsequencing.evaluation.roc import rocs_of

Influences = Mapping[str, Influence | str]
"""By metric: the figure with its influence, or the reason why the predictions do not allow it."""
QuickFamily = Callable[[Evaluated, SurvivalPredictions], Influences]


def concordance(patients: Evaluated, predictions: SurvivalPredictions) -> Influences:
    """As ``families.concordance``."""
    found: dict[str, Influence | str] = {}
    for horizon, risk in families.risks(patients, predictions).items():
        for name in patients.concordances(horizon):
            if isinstance(risk, str):
                found[name] = risk
            elif horizon is not None and not np.isfinite(patients.comparable[name][0]):
                found[name] = families.no_pairs_by(horizon)
            else:
                found[name] = concordance_influence(patients.pairs, risk, patients.pair_weights[name])
    return found


def antolini(patients: Evaluated, predictions: SurvivalPredictions) -> Influences:
    """As ``families.antolini``."""
    why = patients.no_curve(predictions)
    return {"antolini_c": why or antolini_influence(families.time_ranking(patients, predictions))}


def auc(patients: Evaluated, predictions: SurvivalPredictions) -> Influences:
    """As ``families.auc``."""
    found: dict[str, Influence | str] = dict(families.auc_reasons(patients, predictions))
    for horizon in patients.horizons:
        if at("auc", horizon) not in found:
            found[at("auc", horizon)] = _aucs(patients, predictions, np.array([float(horizon)]))[0] or families.NO_AUC
    if "mean_auc" not in found:
        values = _aucs(patients, predictions, patients.auc_times)
        weights = -np.diff(patients.outcome_free(patients.auc_times), prepend=1.0)
        known = [(value, weight) for value, weight in zip(values, weights, strict=True) if value and weight > 0]
        figures, shares = [value for value, _ in known], np.array([weight for _, weight in known])
        found["mean_auc"] = weighted_influence(figures, shares) if known else families.NO_AUC
    return found


def _aucs(patients: Evaluated, predictions: SurvivalPredictions, times: np.ndarray) -> list[Influence | None]:
    return [auc_influence(roc) for roc in rocs_of(*families.auc_inputs(patients, predictions, times))]


def errors(patients: Evaluated, predictions: SurvivalPredictions) -> Influences:
    """As ``families.errors``."""
    terms, reasons = families.error_terms(patients, predictions)
    found: dict[str, Influence | str] = {}
    for name, why in reasons.items():
        found |= {name: why, f"scaled_{name}": why}
    for name, values in terms.items():
        figure, null = mean_influence(values), mean_influence(patients.null_terms[name])
        found[name] = figure
        scaled = ratio_influence(null - figure, null) if null.value > 0 else families.NO_SCALE
        found[f"scaled_{name}"] = scaled
    return found
