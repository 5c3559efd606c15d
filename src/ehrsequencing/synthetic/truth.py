"""The simulator's truth: each patient's exact log hazard, survival curve and cumulative incidences."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
from jaxtyping import Float64

from ehrsequencing.config import OUTCOME
from ehrsequencing.errors import EhrError, Exit

TRUTH_FILE = "truth.parquet"
DEATH_CAUSE = "death"
"""The name of the competing event in the simulator's task."""
QUADRATURE_NODES = 32
"""Gauss–Legendre nodes between neighbouring times of a cumulative incidence; it is then exact to 1e-9."""
_NEEDED = ("subject_id", "prediction_time", "log_hazard", "duration", "event")


def read_truth(folder: Path | str) -> pl.DataFrame:
    """The truth of a simulated dataset, one row a patient (or a visit, asked at every one), sorted by both.

    Columns: subject_id, prediction_time, log_hazard, and what was drawn: duration (days), event (1 outcome, 2 competing
    death, 0 censored). Asked once a patient: baseline_shape, baseline_scale_days; with competing death also
    death_log_hazard, death_shape, death_scale_days. Asked at every visit: the state that ``landmark_survival`` reads.

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
    return truth.sort("subject_id", "prediction_time")


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


def has_causes(truth: pl.DataFrame) -> bool:
    """Whether death competes in this truth."""
    return "death_log_hazard" in truth.columns


def true_cif(truth: pl.DataFrame, times_days: Float64[np.ndarray, " m"]) -> dict[str, Float64[np.ndarray, "n m"]]:
    """CIF_r(t | history) = ∫₀ᵗ h_r(u) exp(−H₁(u) − H₂(u)) du of the outcome (1) and of death (2).

    By Gauss–Legendre quadrature between neighbouring times. The absolute error is below 1e-9, so that the two and
    ``true_event_free`` sum to 1 within that.

    Args:
        truth: of a simulation with competing death.
        times_days: days, at least 0, in any order.

    >>> row = pl.DataFrame({"log_hazard": [0.0], "baseline_shape": [1.0], "baseline_scale_days": [100.0],
    ...     "death_log_hazard": [0.0], "death_shape": [1.0], "death_scale_days": [300.0]})
    >>> {cause: value.round(4).tolist() for cause, value in true_cif(row, np.array([75.0])).items()}
    {'outcome': [[0.4741]], 'death': [[0.158]]}
    """
    node, weight = np.polynomial.legendre.leggauss(QUADRATURE_NODES)
    root = np.asarray(times_days, dtype=np.float64) ** 0.2  # in w = t^(1/5) the integrand is smooth at 0, too
    cif = {cause: np.zeros((truth.height, root.size)) for cause in (OUTCOME, DEATH_CAUSE)}
    total, start = dict.fromkeys(cif, np.zeros(truth.height)), 0.0
    for place in np.argsort(root, kind="stable"):
        half = (root[place] - start) / 2
        w = start + half * (node + 1)  # [q]
        free = true_event_free(truth, w**5) * (weight * half * 5 * w**4)  # [n, q]
        for cause, hazard in zip(cif, _hazards(truth, w**5), strict=True):
            total[cause] = total[cause] + (hazard * free).sum(axis=1)  # [n]
            cif[cause][:, place] = total[cause]
        start = root[place]
    return cif


def true_event_free(truth: pl.DataFrame, times_days: Float64[np.ndarray, " m"]) -> Float64[np.ndarray, "n m"]:
    """Probability of neither outcome nor, where it competes, death up to each time."""
    survival = true_survival(truth, times_days)
    return survival * true_survival(_as_outcome(truth), times_days) if has_causes(truth) else survival


def _as_outcome(truth: pl.DataFrame) -> pl.DataFrame:
    """Death's hazard in the columns of the outcome's."""
    return truth.select(
        log_hazard="death_log_hazard", baseline_shape="death_shape", baseline_scale_days="death_scale_days"
    )


def _hazards(truth: pl.DataFrame, days: Float64[np.ndarray, " q"]) -> list[Float64[np.ndarray, "n q"]]:
    """h(t) = e^η · (shape / scale) · (t / scale)^(shape − 1) of the outcome and of death, days above 0."""
    hazards = []
    for cause in (truth, _as_outcome(truth)):
        eta, shape, scale = (
            cause[n].to_numpy()[:, None] for n in ("log_hazard", "baseline_shape", "baseline_scale_days")
        )
        hazards.append(np.exp(eta) * shape / scale * (days / scale) ** (shape - 1))  # [n, q]
    return hazards
