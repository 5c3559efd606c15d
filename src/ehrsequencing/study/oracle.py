"""The row of a simulated study that no model can beat: the simulator's own hazards as predictions."""

from __future__ import annotations

import numpy as np
import polars as pl
from jaxtyping import Int64

from ehrsequencing.batches import SurvivalData
from ehrsequencing.events import MedsDataset
from ehrsequencing.predictions import Predictions
from ehrsequencing.synthetic import has_causes, read_truth, true_cif, true_event_free, true_survival
from ehrsequencing.synthetic.truth import TRUTH_FILE
from ehrsequencing.timegrid import truncate

ORACLE = "oracle"
WHY = "the simulator's true hazards: the best any model can do"
KEYS = ["subject_id", "prediction_time"]


def oracle_predictions(dataset: MedsDataset, data: SurvivalData, at: Int64[np.ndarray, " m"]) -> Predictions | None:
    """The truth for the rows ``at``; None where the dataset was not simulated, or the cohort asks something else."""
    if not (dataset.root / TRUTH_FILE).is_file():
        return None
    rows = data.rows[at]
    truth = rows.select(KEYS).join(read_truth(dataset.root), on=KEYS, how="inner", maintain_order="left")
    if truth.height < rows.height or not _same_question(truth, rows, data):
        return None
    return _predict(truth, data)


def _same_question(truth: pl.DataFrame, rows: pl.DataFrame, data: SurvivalData) -> bool:
    """Whether the cohort asks what the simulator drew: equal durations and events, truncated at τ."""
    drawn = truth["event"].cast(pl.Int64).to_numpy()
    if len(data.causes) == 1:
        drawn = (drawn == 1).astype(np.int64)
    elif not has_causes(truth):
        return False
    duration, event = truncate(truth["duration"].to_numpy(), drawn, data.grid.tau)
    return np.allclose(duration, rows["duration"].to_numpy()) and np.array_equal(event, rows["event"].to_numpy())


def _predict(truth: pl.DataFrame, data: SurvivalData) -> Predictions:
    """With competing death the incidences, and the time they cost within τ as the risk; else the outcome's survival."""
    times = data.grid.curve_times()
    if len(data.causes) == 1:
        risk, survival, cif = truth["log_hazard"].to_numpy(), true_survival(truth, times), {}
    else:
        cif, survival = true_cif(truth, times), true_event_free(truth, times)
        step = np.diff(times, prepend=0.0)  # equal steps: ∫₀^τ CIF by trapezia
        risk = cif[data.causes[0]] @ step - cif[data.causes[0]][:, -1] * step[-1] / 2
    return Predictions(
        subject_id=truth["subject_id"].to_numpy(),
        prediction_time=truth["prediction_time"].to_numpy(),
        risk=risk,
        horizon_days=times,
        survival=survival,
        cif=dict(zip(data.causes, cif.values(), strict=True)) if cif else {},
        cohort_fingerprint=data.cohort_fingerprint,
        model=ORACLE,
    )
