"""Example patients for the report: how the predicted risk of a few moved over their visits, without ids or dates."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import polars as pl
from jaxtyping import Float64, Int64

from ehrsequencing.batches import VisitData
from ehrsequencing.bundle import Bundle
from ehrsequencing.config import HELD_OUT, MIN_CELL
from ehrsequencing.inference import to_predictions
from ehrsequencing.models.forward import visit_logits

EXAMPLES, LEAST_VISITS = 6, 3
"""Patients shown, and the visits one needs to be an example."""
US_PER_DAY = 86_400_000_000


def best_bundle(folders: Sequence[Path]) -> Bundle | None:
    """Of these bundles the one with the lowest tuning likelihood loss."""
    bundles = [Bundle.load(folder) for folder in folders]
    return min(bundles, key=lambda bundle: bundle.facts["tuning"]["tuning_nll"], default=None)


def example_trajectories(bundle: Bundle, visits: VisitData) -> pl.DataFrame | None:
    """``patient`` (1, 2, …: no ids), ``days_since_first_visit`` (whole days), ``risk_at_horizon`` of held-out ones.

    The examples are spread evenly over the risk at the last visit, its extremes left out. None where under MIN_CELL
    patients could be examples: too few to hide among.
    """
    begin, count = visits.patients(HELD_OUT)
    begin, count = begin[count >= LEAST_VISITS], count[count >= LEAST_VISITS]
    if len(begin) < MIN_CELL:
        return None
    last = _risk(bundle, visits, begin + count - 1)  # [p]
    order = np.argsort(last, kind="stable")
    chosen = order[np.floor((np.arange(EXAMPLES) + 0.5) / EXAMPLES * len(order)).astype(np.int64)]
    parts = []
    for number, patient in enumerate(chosen, start=1):
        at = np.arange(begin[patient], begin[patient] + count[patient])
        moment = visits.rows["prediction_time"].to_physical().to_numpy()[at]
        days = np.round((moment - moment[0]) / US_PER_DAY).astype(np.int64)
        columns = {"days_since_first_visit": days, "risk_at_horizon": _risk(bundle, visits, at)}
        parts.append(pl.DataFrame({"patient": np.full(len(at), number), **columns}))
    return pl.concat(parts)


def _risk(bundle: Bundle, visits: VisitData, at: Int64[np.ndarray, " n"]) -> Float64[np.ndarray, " n"]:
    """The predicted chance of the outcome by the horizon."""
    name, row = bundle.row(None)
    logits = row.logits(visit_logits(bundle.model, visits.places.take(at)), None)
    predictions = to_predictions(logits, visits.rows[at], bundle.grid, name, "")
    return predictions.outcome_risk_at(np.array([bundle.grid.tau]))[:, 0]
