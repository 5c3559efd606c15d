"""What a table of predictions must be like, whoever wrote it: EhrError (exit 13) names the column that is not."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import polars as pl
from jaxtyping import Float64, Int64

from ehrsequencing.config import OUTCOME
from ehrsequencing.errors import EhrError, Exit

TOLERANCE = 1e-6
"""By how much survival may leave [0, 1] or rise: rounding of single-precision models."""
SUM_TOLERANCE = 1e-4
"""By how much survival and the cumulative incidences of all causes may miss 1 when added."""
CIF = "cif_"
"""Columns of cumulative incidence: this and the cause's name."""
COLUMNS = ("subject_id", "prediction_time", "risk", "horizon_days", "survival")
MAX_ID = 2**63 - 1
ROWS_AT_ONCE = 50_000
"""Rows of which curves are made, checked and written together."""
_FIX = "write the file as docs describe: one row a subject and prediction_time, curves at the same rising horizons"


def row_blocks(n: int) -> Iterator[slice]:
    """Rows that are worked on together."""
    return (slice(begin, min(begin + ROWS_AT_ONCE, n)) for begin in range(0, max(n, 1), ROWS_AT_ONCE))


def _problem(column: str, what: str, where: str) -> EhrError:
    return EhrError(f"column '{column}': {what}", where, _FIX, code=Exit.BUNDLE)


def check_columns(frame: pl.DataFrame, columns: Sequence[str], where: str) -> pl.DataFrame:
    """These columns alone, once their types are as expected."""
    for column in columns:
        if column not in frame.columns:
            found = ", ".join(frame.columns)
            raise EhrError(f"column '{column}' is missing (found: {found})", where, _FIX, code=Exit.BUNDLE)
        dtype = frame.schema[column]
        inner = dtype.inner if isinstance(dtype, pl.List | pl.Array) else None
        good = {
            "subject_id": dtype.is_integer(),
            "prediction_time": isinstance(dtype, pl.Datetime) and dtype.time_zone is None,
            "risk": dtype.is_numeric(),
        }.get(column, inner is not None and inner.is_numeric())
        if not good:
            raise _problem(column, f"unexpected type {dtype}", where)
        if column == "subject_id" and frame.height and int(frame[column].max() or 0) > MAX_ID:  # type: ignore[arg-type]
            raise _problem(column, "ids beyond 64 signed bits", where)
        nulls = frame[column].null_count()
        if nulls:
            raise _problem(column, f"{nulls} values are missing", where)
    return frame.select(columns)


def lists_of(
    frame: pl.DataFrame, where: str
) -> tuple[Float64[np.ndarray, " m"], dict[str, Float64[np.ndarray, "n m"]]]:
    """The horizons all rows share, and the curves at them; refused where lists differ in length, horizons in value."""
    names = [name for name in frame.columns if name == "survival" or name.startswith(CIF)]
    lists = frame.select(pl.col("horizon_days", *names).cast(pl.List(pl.Float64)))
    lengths = lists["horizon_days"].list.len()
    if lengths.n_unique() > 1:
        raise _problem("horizon_days", f"lists of {lengths.n_unique()} different lengths", where)
    for name in names:
        unequal = int((lists[name].list.len() != lengths).sum())
        if unequal:
            raise _problem(name, f"{unequal} lists are not as long as horizon_days", where)
    shape = (frame.height, int(lengths[0]) if frame.height else 0)
    tables = {}
    for name in lists.columns:
        flat = lists[name].explode(empty_as_null=False)
        if flat.null_count():
            raise _problem(name, f"{flat.null_count()} values are missing", where)
        tables[name] = flat.to_numpy().reshape(shape)
    horizons = tables.pop("horizon_days")
    if frame.height and not (np.isfinite(horizons).all() and (horizons == horizons[0]).all()):
        raise _problem("horizon_days", "expected the same finite horizons in every row", where)
    return horizons[0] if frame.height else np.zeros(0), tables


def check_rows(
    subject_id: Int64[np.ndarray, " n"], prediction_time: np.ndarray, risk: Float64[np.ndarray, " n"], where: str
) -> None:
    """Distinct subjects and times, all there, and risks that are numbers."""
    keys = pl.DataFrame({"subject": subject_id, "time": prediction_time.astype("datetime64[us]")})
    repeated = keys.height - keys.n_unique()
    if repeated:
        raise _problem("subject_id", f"{repeated} rows repeat a subject at the same prediction_time", where)
    if np.isnat(prediction_time).any():
        raise _problem("prediction_time", "missing times", where)
    if not np.isfinite(risk).all():
        raise _problem("risk", f"{int((~np.isfinite(risk)).sum())} values are NaN or infinite", where)


def check_horizons(horizons: Float64[np.ndarray, " m"], where: str) -> None:
    """Days that rise."""
    if not (np.isfinite(horizons).all() and (np.diff(horizons, prepend=0.0) > 0).all()):
        raise _problem("horizon_days", "expected finite, strictly increasing days above 0", where)


def check_curve(column: str, values: Float64[np.ndarray, "n m"], direction: int, where: str) -> None:
    """Probabilities that never fall (``direction`` 1) or never rise (-1) with the horizon."""
    blocks = [values[rows] for rows in row_blocks(len(values))]
    bad, outside, wrong = sum(int((~np.isfinite(own)).sum()) for own in blocks), 0, 0
    for own in [] if bad else blocks:
        outside += int(((own < -TOLERANCE) | (own > 1 + TOLERANCE)).sum())
        wrong += int((direction * np.diff(own, axis=1) < -TOLERANCE).any(axis=1).sum())
    if bad:
        raise _problem(column, f"{bad} values are NaN or infinite", where)
    if outside:
        raise _problem(column, f"{outside} values outside [0, 1]", where)
    if wrong:
        moves = "increase" if direction < 0 else "decrease"
        raise _problem(column, f"{wrong} curves {moves} with the horizon", where)


def check_incidences(cif: Mapping[str, np.ndarray], survival: Float64[np.ndarray, "n m"], where: str) -> None:
    """Curves of the outcome and its rivals that rise and, with survival, add to 1."""
    if OUTCOME not in cif:
        raise _problem(CIF + OUTCOME, f"is missing beside {', '.join(CIF + cause for cause in cif)}", where)
    for cause, values in cif.items():
        if values.shape != survival.shape:
            raise _problem(CIF + cause, "expected as many values as survival has", where)
        check_curve(CIF + cause, values, 1, where)
    missed = np.abs(sum(cif.values()) + survival - 1.0).max(axis=1, initial=0.0) > SUM_TOLERANCE
    if missed.any():
        names = ", ".join(CIF + cause for cause in cif)
        what = f"with {names} {int(missed.sum())} rows do not add to 1: survival is of no event of any cause"
        raise _problem("survival", what, where)
