"""A table of subject_id, time, code (and numeric_value) becomes a MEDS dataset."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa

from ehrsequencing.config import SUBJECTS_PER_SHARD
from ehrsequencing.errors import EhrError, nearest
from ehrsequencing.events.dataset import CORE, MedsDataset
from ehrsequencing.events.subjects import hash_ids, write_id_map
from ehrsequencing.events.times import as_timestamps
from ehrsequencing.events.writing import fill, staged, write_parquet

_KINDS = {"code": "text", "numeric_value": "numbers"}
REJECTS = {"file": pl.String, "row": pl.Int64, "reason": pl.String}


def from_dataframe(
    frame: pl.DataFrame | Any,
    out: Path | str,
    *,
    name: str = "dataframe",
    keep: tuple[str, ...] = (),
    salt: str = "",
) -> MedsDataset:
    """Write a polars or pandas table of events as a MEDS dataset.

    Args:
        frame: columns subject_id (integers, or text that is hashed to integers), time (dates, datetimes or ISO text;
            empty = static; zones are converted to UTC), code, and optionally numeric_value (NaN = none).
        out: the dataset's folder.
        name: the dataset's name.
        keep: further columns to keep as they are. Any other column is refused, so that no identifier slips in.
        salt: a secret key for hashed ids.

    Rows that cannot be read (no subject, no code, a time or value that is none) are set aside with their row number
    (from 0) and the reason in ``rejects/<name>.parquet``; ``check`` counts them. Where ids were text, the way back is
    in ``<out>.private/subject_ids.parquet``, outside the dataset; do not share it.

    Raises:
        EhrError: a column is missing, of an impossible type or not expected; no row can be read; unwritable ``out``.
    """
    out, table = Path(out), _as_polars(frame)
    _check_columns(table, keep, name)
    _require_kinds(table, keep, name)
    source = table["subject_id"].cast(pl.String) if _is_text(table["subject_id"]) else None
    table = table.with_columns(_subject_ids(table["subject_id"], name, salt), pl.col("code").cast(pl.String))
    table = _read_columns(table, name)
    good = table.filter(pl.col("reason").is_null())
    rejects = table.filter(pl.col("reason").is_not_null())
    rejects = rejects.select(pl.lit(name).alias("file"), pl.col("row").cast(pl.Int64), "reason")
    _refuse_empty(good, rejects, name)
    with staged(out) as folder:
        fill(folder, _shards(good.select(*CORE, *keep)), name=name)
        write_rejects(folder, name, rejects)
        if source is not None:
            ids = pl.DataFrame({"source": source, "subject": table["subject_id"]}).drop_nulls().unique()
            write_id_map(out, ids["source"], ids["subject"])
    return MedsDataset.open(out)


def _refuse_empty(good: pl.DataFrame, rejects: pl.DataFrame, name: str) -> None:
    """EhrError where no row can be used, with the reasons: there will be no dataset to keep them in."""
    if good.height:
        return
    if rejects.is_empty():
        raise EhrError("the table has no rows", name, "a dataset needs at least one event")
    counts = rejects["reason"].value_counts().sort("count", "reason", descending=[True, False])
    told = "; ".join(f"{count:,} times {reason}" for reason, count in counts.iter_rows())
    rows = ", ".join(map(str, rejects["row"].head(3)))
    raise EhrError(f"no row can be read: {told}", f"{name}, rows {rows} …", "mend these columns; rows count from 0")


def write_rejects(folder: Path, table: str, rejects: pl.DataFrame) -> None:
    """Write the rows set aside (file, row, reason; never their content) to ``rejects/<table>.parquet``, if any."""
    if rejects.height:
        (folder / "rejects").mkdir(exist_ok=True)
        typed = rejects.select(pl.col(column).cast(dtype) for column, dtype in REJECTS.items())
        write_parquet(typed, folder / f"rejects/{table}.parquet")


def _as_polars(frame: Any) -> pl.DataFrame:
    if isinstance(frame, pl.DataFrame):
        return frame
    if type(frame).__module__.partition(".")[0] == "pandas":
        return _from_pandas(frame)
    found = f"{type(frame).__module__}.{type(frame).__name__}"
    raise EhrError(f"expected a polars or pandas DataFrame, found {found}", "", "convert the table first")


def _from_pandas(frame: Any) -> pl.DataFrame:
    """Column by column, so that one of mixed values (numbers beside text, say) is named."""
    columns = {}
    for column in frame.columns:
        try:
            columns[str(column)] = pl.from_pandas(frame[column])
        except (TypeError, ValueError, OverflowError, pa.ArrowException, pl.exceptions.PolarsError) as error:
            what = f"column '{column}' holds values of several kinds: {str(error).splitlines()[0]}"
            raise EhrError(what, "pandas", "give every value of a column one type, ids as text for instance") from None
    return pl.DataFrame(columns)


def _check_columns(table: pl.DataFrame, keep: tuple[str, ...], name: str) -> None:
    for column in ("subject_id", "time", "code", *keep):
        if column not in table.columns:
            close = nearest(column, table.columns, 1)
            fix = f"did you mean '{close[0]}'? Rename it" if close else f"found: {', '.join(table.columns)}"
            raise EhrError(f"column '{column}' is missing", name, fix)
    strangers = [column for column in table.columns if column not in (*CORE, *keep)]
    if strangers:
        what = f"unexpected columns: {', '.join(strangers)}"
        raise EhrError(what, name, "drop them, or name those to keep in keep=(...); identifiers do not belong here")


def _is_text(column: pl.Series) -> bool:
    return column.dtype == pl.String or isinstance(column.dtype, pl.Categorical | pl.Enum)


def _subject_ids(column: pl.Series, name: str, salt: str) -> pl.Series:
    if column.dtype.is_integer() or _is_integral(column):
        return column.cast(pl.Int64, strict=False).alias("subject_id")
    if not _is_text(column):
        what = f"column 'subject_id' should hold integers or text, found {column.dtype}"
        raise EhrError(what, name, "convert the ids to integers or text first")
    texts = column.cast(pl.String).replace({"": None})
    known = texts.drop_nulls().unique().sort()
    numbers = pl.Series(hash_ids(known, salt=salt, where=name), dtype=pl.Int64)
    return texts.replace_strict(known, numbers, return_dtype=pl.Int64, default=None).alias("subject_id")


def _is_integral(column: pl.Series) -> bool:
    """Whole numbers that became floats for the sake of an empty cell; beyond 2^53 floats no longer tell ids apart."""
    if not column.dtype.is_float():
        return False
    known = column.drop_nulls().drop_nans()
    return bool(((known == known.round()) & (known.abs() < 2.0**53)).all())


def _require_kinds(table: pl.DataFrame, keep: tuple[str, ...], name: str) -> None:
    """EhrError where code is no text or number_value no number, as in a column of lists."""
    value = table.schema.get("numeric_value", pl.Null())
    scalar = value.is_numeric() or value in (pl.Null, pl.Boolean) or _is_text(table["numeric_value"])
    for column, good in {
        "code": _is_text(table["code"]) or table.schema["code"].is_integer() or table.schema["code"] == pl.Null,
        "numeric_value": scalar,
        **{column: table.schema[column] != pl.Object for column in keep},
    }.items():
        if not good:
            what = f"column '{column}' should hold {_KINDS.get(column, 'plain values')}, found {table.schema[column]}"
            raise EhrError(what, name, "convert the column first: one plain value a row")


def _read_columns(table: pl.DataFrame, name: str) -> pl.DataFrame:
    """Typed core columns, the row number, and the reason why a row cannot be used (null where it can)."""
    try:
        times = as_timestamps(table["time"])
    except TypeError:
        what = f"column 'time' should hold dates, datetimes or ISO text, found {table['time'].dtype}"
        raise EhrError(what, name, "convert it to dates first") from None
    values = table["numeric_value"] if "numeric_value" in table.columns else pl.Series([None] * table.height)
    numbers = values.cast(pl.Float64, strict=False).fill_nan(None).cast(pl.Float32).alias("numeric_value")
    given = values.cast(pl.String, strict=False).str.strip_chars() if _is_text(values) else values
    unreadable = given.is_not_null() & (
        numbers.is_null() & ~_is_missing(given) | numbers.is_infinite().fill_null(False)
    )
    written = table["time"].is_not_null() & (table["time"].cast(pl.String) != "")
    reasons = (
        pl.when(pl.col("subject_id").is_null())
        .then(pl.lit("subject_id is empty or no 64-bit integer"))
        .when(pl.col("code").is_null() | (pl.col("code") == ""))
        .then(pl.lit("code is empty"))
        .when(written & times.is_null())
        .then(pl.lit("time is not a date"))
        .when(unreadable)
        .then(pl.lit("numeric_value is not a finite number"))
        .alias("reason")
    )
    return table.with_columns(times, numbers).with_columns(reasons).with_row_index("row")


def _is_missing(given: pl.Series) -> pl.Series:
    return (given == "") if given.dtype == pl.String else given.cast(pl.Float64, strict=False).is_nan().fill_null(False)


def _shards(events: pl.DataFrame) -> list[pl.DataFrame]:
    events = events.sort("subject_id", maintain_order=True)
    shard = (pl.col("subject_id").rle_id() // SUBJECTS_PER_SHARD).alias("_shard")
    return events.with_columns(shard).partition_by("_shard", include_key=False, maintain_order=True)
