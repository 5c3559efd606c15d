"""Records and expected labels written as tables in a test's text, parsed here."""

from __future__ import annotations

import datetime as dt
from pathlib import Path
from typing import Any

import polars as pl

from ehrsequencing.config import TaskConfig, parse
from ehrsequencing.events import MedsDataset, write_dataset

EVENTS = {"subject_id": pl.Int64, "time": pl.Datetime("us"), "code": pl.String, "numeric_value": pl.Float32}
READINGS = {"subject_id": pl.Int64, "time": pl.Datetime("us"), "code": pl.String}
LABELS = {"subject_id": pl.Int64, "prediction_time": pl.Datetime("us"), "duration": pl.Float64, "event": pl.Int8}


TWO_PATIENTS = """
subject_id | time       | code
1          | 2010-01-01 | ICD10CM//I21.4
1          | 2013-02-01 | OUT
2          | 2010-01-01 | ICD10CM//I21.9
2          | 2013-02-01 | A
"""


def task(**settings: Any) -> TaskConfig:
    """A task that asks on 2013-01-01 for the code OUT and requires nothing, but for the given settings."""
    defaults: dict[str, Any] = {"name": "spec", "index": {"date": dt.date(2013, 1, 1)}, "outcome": "OUT"}
    return parse(TaskConfig, defaults | {"require": {"visits": 0}} | settings, "test")


def rows(text: str) -> list[dict[str, str | None]]:
    """The rows of a table with ``|`` between cells, by column name; an empty cell is None, ``#`` starts a comment.

    >>> rows('''
    ... subject_id | code
    ... 1          | A     # a comment
    ... 2          |
    ... ''')
    [{'subject_id': '1', 'code': 'A'}, {'subject_id': '2', 'code': None}]
    """
    lines = [line.split("#")[0] for line in text.splitlines()]
    cells = [[cell.strip() or None for cell in line.split("|")] for line in lines if line.strip()]
    header = [name or "" for name in cells[0]]
    return [dict(zip(header, row, strict=True)) for row in cells[1:]]


def table(text: str, schema: dict[str, pl.DataType]) -> pl.DataFrame:
    """The table as a frame: times in ISO form, a column that is absent from the text is null."""
    columns = {
        name: pl.Series(name, [_value(row.get(name), dtype) for row in rows(text)], dtype)
        for name, dtype in schema.items()
    }
    return pl.DataFrame(columns)


def events(text: str) -> pl.DataFrame:
    """MEDS events: ``subject_id | time | code | numeric_value``; further columns as text."""
    return table(text, {**dict.fromkeys(rows(text)[0], pl.String), **EVENTS}).select(*EVENTS, pl.all().exclude(*EVENTS))


def labels(text: str) -> pl.DataFrame:
    """A cohort's rows: ``subject_id | prediction_time | duration | event``, and ``split`` where the table has it."""
    return table(text, LABELS | ({"split": pl.String} if "split" in rows(text)[0] else {}))


def groups(text: str) -> pl.DataFrame:
    """A cohort's subgroups: ``subject_id | prediction_time``, all others text."""
    keys = {name: LABELS[name] for name in ("subject_id", "prediction_time")}
    return table(text, dict.fromkeys(rows(text)[0], pl.String) | keys)


def readings(text: str) -> pl.DataFrame:
    """What a model reads, sorted: ``subject_id | time | code``."""
    return table(text, READINGS).sort(pl.all())


def dataset(text: str, folder: Path, splits: dict[int, str] | None = None) -> MedsDataset:
    """The events as a MEDS dataset on disk; everybody is in the training split unless said otherwise."""
    return on_disk(events(text), folder, splits)


def on_disk(frame: pl.DataFrame, folder: Path, splits: dict[int, str] | None = None) -> MedsDataset:
    """Write events as a MEDS dataset with one shard and a split for each subject."""
    subjects = sorted(frame["subject_id"].unique())
    given = [(splits or {}).get(subject, "train") for subject in subjects]
    own = pl.DataFrame({"subject_id": subjects, "split": given}, schema={"subject_id": pl.Int64, "split": pl.String})
    return write_dataset(folder, [frame], name="test", splits=own)


def _value(cell: str | None, dtype: pl.DataType) -> object:
    if cell is None or dtype == pl.String:
        return cell
    if dtype == pl.Datetime("us"):
        return dt.datetime.fromisoformat(cell)
    return float(cell) if dtype.is_float() else int(cell)
