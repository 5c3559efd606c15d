"""Whether a file holds MEDS 0.4 events, from its footer alone; what is wrong is said in the words of the standard."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from ehrsequencing.errors import EhrError, nearest

_WANTED = {"subject_id": "int64", "time": "timestamp[us] without time zone", "code": "string"}
_OLDER = {
    "patient_id": "a shard of MEDS 0.3 or older: its subjects are called patient_id",
    "events": "a shard of MEDS 0.2 or older: one row a patient, events nested in it",
}
_RENEW = {
    "patient_id": "rename patient_id to subject_id in every shard and in the splits, as MEDS 0.4 asks",
    "events": "write one row an event (subject_id, time, code, numeric_value), as MEDS 0.4 asks",
}


def check_schema(path: Path) -> None:
    """EhrError (exit 11) where a shard lacks a MEDS column, has it in another type, or lacks ids or codes in rows."""
    schema = read_schema(path)
    for column in _WANTED:
        if column not in schema:
            raise _older(schema, path) or missing_column(column, list(schema), path)
    text = (pl.String(), pl.Categorical())
    right = {
        "subject_id": schema["subject_id"] == pl.Int64,
        "time": schema["time"] == pl.Datetime("us", None),
        "code": schema["code"] in text or isinstance(schema["code"], pl.Enum),
    }
    for column, wanted in _WANTED.items():
        if not right[column]:
            what = f"column '{column}' should be {wanted}, found {schema[column]}"
            raise EhrError(what, str(path), _fix_type(column, schema[column]))
    value = schema.get("numeric_value", pl.Float32())
    if not (value.is_numeric() or value == pl.Null):
        raise EhrError(f"column 'numeric_value' should be float32, found {value}", str(path), "write it as float32")
    for column in ("subject_id", "code"):
        _refuse_nulls(path, column)


def read_schema(path: Path) -> dict[str, Any]:
    """Columns and types; EhrError (exit 11) where the file is no parquet or was cut short."""
    try:
        return dict(pl.read_parquet_schema(path))
    except (pl.exceptions.PolarsError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise EhrError(f"not readable as parquet: {reason}", str(path), "write the file again") from None


def missing_column(column: str, found: list[str], path: Path) -> EhrError:
    """The error for a column that is not there; the nearest one is named."""
    close = nearest(column, found, 1)
    fix = f"did you mean '{close[0]}'? Rename it" if close else f"found: {', '.join(found)}"
    return EhrError(f"column '{column}' is missing", str(path), fix)


def _older(schema: dict[str, Any], path: Path) -> EhrError | None:
    for column, what in _OLDER.items():
        if column in schema:
            return EhrError(what, str(path), _RENEW[column])
    return None


def _fix_type(column: str, found: Any) -> str:
    if column == "subject_id" and found == pl.String:
        return "MEDS ids are int64: let ehrsequencing.events.from_dataframe hash text ids, or number them"
    if column == "time" and getattr(found, "time_zone", None) is not None:
        return "convert the times to one zone (UTC, or local time throughout) and write them without it"
    return "write the column in the type MEDS 0.4 asks for"


def _refuse_nulls(path: Path, column: str) -> None:
    """From the statistics in the footer; the column is read only where its writer left none."""
    try:
        nulls = _counted(path, column)
        if nulls is None:
            nulls = int(
                pl.scan_parquet(path, hive_partitioning=False).select(pl.col(column).null_count()).collect().item()
            )
    except (pl.exceptions.PolarsError, pa.ArrowException, OSError) as error:
        raise EhrError(f"not readable as parquet: {str(error).splitlines()[0]}", str(path), "write it again") from None
    if nulls:
        fix = "find out whose events they are, or set these rows aside"
        raise EhrError(f"{nulls:,} rows have no {column}", str(path), fix)


def _counted(path: Path, column: str) -> int | None:
    metadata = pq.read_metadata(path)
    names = [metadata.schema.column(number).path for number in range(metadata.num_columns)]
    groups = [metadata.row_group(group).column(names.index(column)) for group in range(metadata.num_row_groups)]
    counts = [group.statistics.null_count if group.is_stats_set else None for group in groups]
    known = [count for count in counts if count is not None]
    return sum(known) if len(known) == len(counts) else None
