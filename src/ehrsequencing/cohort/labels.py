"""MEDS label files: read as prediction times, written from outcomes within a horizon."""

from __future__ import annotations

from pathlib import Path

import meds
import polars as pl
import pyarrow.parquet as pq

from ehrsequencing.errors import EhrError, Exit

MICROSECONDS = pl.Datetime("us")


def read_labels(path: Path) -> pl.DataFrame:
    """``subject_id, prediction_time`` of a MEDS label file, or of a folder of them (shards), sorted by both; a subject
    may be asked about several times.

    Raises:
        EhrError: (DATA) no such file, a column missing, null or of the wrong type; (COHORT) a row twice.
    """
    files = sorted(path.rglob("*.parquet")) if path.is_dir() else [path]
    if not files or not files[0].is_file():
        raise EhrError("there is no label file", str(path), "check the path: parquet, as ACES writes it")
    rows = pl.concat([_read_one(file) for file in files]).sort("subject_id", "prediction_time")
    repeated = rows.height - rows.n_unique()
    if repeated:
        what = f"expected distinct subjects and times, found {repeated} rows that repeat another"
        raise EhrError(what, str(path), "keep each subject_id and prediction_time once", code=Exit.COHORT)
    return rows


def _read_one(file: Path) -> pl.DataFrame:
    try:
        frame = pl.read_parquet(file)
    except (OSError, pl.exceptions.PolarsError) as error:
        raise EhrError(f"not a parquet file: {error}", str(file), "give a MEDS label file") from error
    missing = [name for name in ("subject_id", "prediction_time") if name not in frame.columns]
    if missing:
        found = ", ".join(frame.columns)
        raise EhrError(f"column {missing[0]} is missing (found: {found})", str(file), "add the column")
    time = frame.schema["prediction_time"]
    if not frame.schema["subject_id"].is_integer() or not isinstance(time, pl.Datetime) or time.time_zone is not None:
        found = f"{frame.schema['subject_id']} and {time}"
        fix = "write them as MEDS does: int64, and timestamp[us] without a zone"
        raise EhrError(f"subject_id and prediction_time are {found}", str(file), fix)
    rows = frame.select(pl.col("subject_id").cast(pl.Int64), pl.col("prediction_time").cast(MICROSECONDS))
    if rows.null_count().sum_horizontal().item():
        raise EhrError("subject_id or prediction_time is null in some rows", str(file), "remove those rows")
    return rows


def within_horizon(table: pl.DataFrame, horizon_days: float) -> pl.DataFrame:
    """``subject_id, prediction_time, boolean_value``: the outcome within the horizon. Subjects censored before it are
    left out, since theirs is not known; after a competing event it is known that none will come.

    >>> import datetime as dt
    >>> day = dt.datetime(2013, 1, 1)
    >>> followed = {"duration": [30.0, 20.0, 90.0, 30.0], "event": [1, 0, 1, 0]}
    >>> table = pl.DataFrame({"subject_id": [1, 2, 3, 4], "prediction_time": [day] * 4, **followed})
    >>> within_horizon(table, 30.0).select("subject_id", "boolean_value").rows()
    [(1, True), (3, False), (4, False)]
    """
    duration, event = pl.col("duration"), pl.col("event") == 1
    decided = table.filter((pl.col("event") > 0) | (duration >= horizon_days))
    return decided.select("subject_id", "prediction_time", boolean_value=event & (duration <= horizon_days))


def write_labels(labels: pl.DataFrame, file: Path) -> None:
    """Write a file that holds exactly the MEDS label schema."""
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(meds.LabelSchema.align(labels.to_arrow()), file)
