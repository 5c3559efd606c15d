"""The simulator's truth: each patient's exact log hazard and survival curve."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
from jaxtyping import Float64

from ehrsequencing.errors import EhrError, Exit

TRUTH_FILE = "truth.parquet"
_NEEDED = ("subject_id", "prediction_time", "log_hazard", "baseline_shape", "baseline_scale_days", "duration", "event")


def read_truth(folder: Path | str) -> pl.DataFrame:
    """The truth of a simulated dataset, one row a patient, sorted by subject_id.

    Columns: subject_id, prediction_time, log_hazard, baseline_shape, baseline_scale_days, and what was drawn: duration
    (days), event (1 outcome, 2 competing death, 0 censored). With competing death also death_log_hazard, death_shape,
    death_scale_days.

    Raises:
        EhrError: (DATA) ``folder`` is no dataset of the simulator.
    """
    path = Path(folder) / TRUTH_FILE
    if not path.is_file():
        raise EhrError(
            f"{TRUTH_FILE} is missing", str(folder), "give a folder made by `ehrseq simulate`", code=Exit.DATA
        )
    try:
        truth = pl.read_parquet(path)
    except (OSError, pl.exceptions.PolarsError) as error:
        raise EhrError(f"not a parquet file: {error}", str(path), "simulate again", code=Exit.DATA) from None
    missing = [name for name in _NEEDED if name not in truth.columns]
    if missing:
        raise EhrError(f"column {missing[0]} is missing", str(path), "simulate again", code=Exit.DATA)
    return truth.sort("subject_id")


def true_survival(truth: pl.DataFrame, times_days: Float64[np.ndarray, " m"]) -> Float64[np.ndarray, "n m"]:
    """S(t | history) = exp(-(t / scale)^shape · exp(log_hazard)) of each row of ``truth`` at each time.

    With competing death this is the outcome's own (cause-specific) survival: what it would be, were there no death.

    >>> row = pl.DataFrame({"log_hazard": [0.0], "baseline_shape": [1.0], "baseline_scale_days": [100.0]})
    >>> true_survival(row, np.array([0.0, 100.0])).round(3).tolist()
    [[1.0, 0.368]]
    """
    columns = ("log_hazard", "baseline_shape", "baseline_scale_days")
    log_hazard, shape, scale = (truth[name].to_numpy()[:, None] for name in columns)  # [n, 1]
    return np.exp(-((times_days[None, :] / scale) ** shape) * np.exp(log_hazard))  # [n, m]
