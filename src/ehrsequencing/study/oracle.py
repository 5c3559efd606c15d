"""The row of a simulated study that no model can beat: the simulator's own hazards as predictions."""

from __future__ import annotations

import numpy as np
import polars as pl
from jaxtyping import Float64, Int64

from ehrsequencing.batches import SurvivalData
from ehrsequencing.config import OUTCOME
from ehrsequencing.events import MedsDataset
from ehrsequencing.predictions import Predictions
from ehrsequencing.synthetic import (
    has_causes,
    has_states,
    landmark_survival,
    read_truth,
    true_cif,
    true_event_free,
    true_survival,
)
from ehrsequencing.synthetic.truth import TRUTH_FILE
from ehrsequencing.timegrid import truncate

ORACLE = "oracle"
BRANCHES = 200
"""Futures drawn from each row where the truth is by branches."""
WHY = "the simulator's true hazards: the best any model can do"
KEYS = ["subject_id", "prediction_time"]


def oracle_predictions(
    dataset: MedsDataset, data: SurvivalData, at: Int64[np.ndarray, " m"]
) -> tuple[Predictions, tuple[str, ...]] | None:
    """The truth for the rows ``at``, and notes; None where nothing was simulated or the cohort asks something else."""
    if not (dataset.root / TRUTH_FILE).is_file():
        return None
    rows = data.rows[at]
    truth = rows.select(KEYS).join(read_truth(dataset.root), on=KEYS, how="inner", maintain_order="left")
    if truth.height < rows.height or not _same_question(truth, rows, data):
        return None
    risk, survival, cif, notes = _answer(truth, data)
    predictions = Predictions(
        subject_id=truth["subject_id"].to_numpy(),
        prediction_time=truth["prediction_time"].to_numpy(),
        risk=risk,
        horizon_days=data.grid.curve_times(),
        survival=survival,
        cif=cif,
        cohort_fingerprint=data.cohort_fingerprint,
        model=ORACLE,
    )
    return predictions, notes


def _same_question(truth: pl.DataFrame, rows: pl.DataFrame, data: SurvivalData) -> bool:
    """Whether the cohort asks what the simulator drew: equal durations and events, truncated at τ."""
    drawn = truth["event"].cast(pl.Int64).to_numpy()
    if len(data.causes) == 1:
        drawn = (drawn == 1).astype(np.int64)
    elif not has_causes(truth):
        return False
    duration, event = truncate(truth["duration"].to_numpy(), drawn, data.grid.tau)
    return np.allclose(duration, rows["duration"].to_numpy()) and np.array_equal(event, rows["event"].to_numpy())


def _answer(
    truth: pl.DataFrame, data: SurvivalData
) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray], tuple[str, ...]]:
    """risk (n,), survival (n, m), incidences (n, m) by cause, notes.

    The risk is η; with causes, or at every visit, the time lost to the outcome within τ.
    """
    times = data.grid.curve_times()
    if has_states(truth):
        survival, error = landmark_survival(truth, times, branches=BRANCHES)
        note = f"the truth by {BRANCHES} branches a visit, Monte-Carlo standard error at most {error.max():.3f}"
        return _time_lost(1.0 - survival, times), survival, {}, (note,)
    if len(data.causes) == 1:
        return truth["log_hazard"].to_numpy(), true_survival(truth, times), {}, ()
    cif = dict(zip(data.causes, true_cif(truth, times).values(), strict=True))
    return _time_lost(cif[OUTCOME], times), true_event_free(truth, times), cif, ()


def _time_lost(incidence: Float64[np.ndarray, "n m"], times: Float64[np.ndarray, " m"]) -> Float64[np.ndarray, " n"]:
    """∫₀^τ of the outcome's incidence, by trapezia from 0."""
    return np.trapezoid(np.pad(incidence, ((0, 0), (1, 0))), np.append(0.0, times), axis=1)
