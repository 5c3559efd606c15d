"""The one cut: which rows of a record a model may read at prediction_time. Nothing else filters on prediction_time."""

from __future__ import annotations

import numpy as np
import polars as pl
from jaxtyping import Int64

from ehrsequencing.cohort.times import midnight
from ehrsequencing.config import InputConfig, TaskConfig
from ehrsequencing.events import BIRTH


def known() -> pl.Expr:
    """True on rows known at ``prediction_time``: at or before it, or static (null time)."""
    return pl.col("time").is_null() | (pl.col("time") <= pl.col("prediction_time"))


def readable(config: InputConfig) -> pl.Expr:
    """True on known rows that the task's ``input`` leaves in; static rows and births always stay."""
    if config.from_ is None:
        return known()
    start = midnight(config.from_, "input.from")
    return known() & (pl.col("time").is_null() | (pl.col("time") >= start) | (pl.col("code") == BIRTH))


def cut(events: pl.LazyFrame, rows: pl.DataFrame, task: TaskConfig | InputConfig) -> pl.LazyFrame:
    """The events that may be read for each prediction, in the order of ``events``.

    Args:
        events: MEDS events, any extra columns.
        rows: one row a prediction, with ``subject_id`` and ``prediction_time``; other columns are not read.
        task: a task, or its ``input``.

    Returns:
        ``subject_id, prediction_time, time, code, numeric_value`` and the extra columns of ``events``; rows with
        ``time <= prediction_time`` or null time, from ``input.from`` on. A prediction without such rows has none.

    >>> import datetime as dt
    >>> day = lambda d: dt.datetime(2013, 1, d)
    >>> events = pl.LazyFrame({"subject_id": [7, 7, 7], "time": [None, day(1), day(3)], "code": ["SEX//F", "A", "B"],
    ...                        "numeric_value": [None, 1.0, None]})
    >>> rows = pl.DataFrame({"subject_id": [7], "prediction_time": [day(2)]})
    >>> cut(events, rows, InputConfig()).collect()["code"].to_list()
    ['SEX//F', 'A']
    """
    config = task.input if isinstance(task, TaskConfig) else task
    predictions = rows.lazy().select("subject_id", "prediction_time")
    joined = events.join(predictions, on="subject_id", how="inner", maintain_order="left")
    columns = pl.col("subject_id", "prediction_time", "time", "code", "numeric_value")
    others = pl.all().exclude("subject_id", "prediction_time", "time", "code", "numeric_value")
    return joined.filter(readable(config)).select(columns, others)


def whole_records(events: pl.LazyFrame, subject_ids: Int64[np.ndarray, " n"], input: InputConfig) -> pl.LazyFrame:
    """The same cut with prediction_time at each subject's last event: whole records, for pretraining.

    Subjects without a dated event have no such time and are left out.
    """
    wanted = events.filter(pl.col("subject_id").is_in(subject_ids))
    last = wanted.group_by("subject_id").agg(prediction_time=pl.col("time").max())
    rows = last.drop_nulls().collect(engine="streaming").sort("subject_id")
    return cut(events, rows, input)
