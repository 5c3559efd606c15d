"""The one cut: which rows of a record a model may read at prediction_time. Nothing else filters on prediction_time."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence

import numpy as np
import polars as pl
from jaxtyping import Int64

from ehrsequencing.cohort.known import as_known
from ehrsequencing.cohort.predicates import compile_predicate, distinct_codes
from ehrsequencing.cohort.times import midnight
from ehrsequencing.config import DelayConfig, InputConfig, TaskConfig
from ehrsequencing.events import BIRTH

CORE = ("subject_id", "prediction_time", "time", "code", "numeric_value")


def ever_readable(config: InputConfig, codes: Sequence[str]) -> pl.Expr:
    """True on rows that ``input.from`` and ``input.exclude`` leave in; births always stay, and static rows unless they
    are excluded by name."""
    kept = pl.lit(True)
    if config.from_ is not None:
        kept = pl.col("time").is_null() | (pl.col("time") >= midnight(config.from_, "input.from"))
    for number, predicate in enumerate(config.exclude):
        kept &= ~compile_predicate(predicate, codes, f"input.exclude.{number}", must_occur=False)
    return kept | (pl.col("code") == BIRTH)


def _in_sight(config: InputConfig) -> pl.Expr:
    """True on static rows, and on rows at or before ``prediction_time`` and within the look-back."""
    time, now = pl.col("time"), pl.col("prediction_time")
    known = time <= now
    if config.lookback_days is not None:
        known &= (time >= now - dt.timedelta(days=config.lookback_days)) | (pl.col("code") == BIRTH)
    return time.is_null() | known


def cut(
    events: pl.LazyFrame, rows: pl.DataFrame, task: TaskConfig | InputConfig, *, visit_column: str | None = None
) -> pl.LazyFrame:
    """The events that may be read for each prediction, in the order of ``events``.

    Args:
        events: MEDS events, any extra columns.
        rows: one row a prediction, with ``subject_id`` and ``prediction_time``; other columns are not read.
        task: a task, or its ``input`` (then nothing is delayed).
        visit_column: what a visit is for the task's ``delay``, as the tokenizer has it.

    Returns:
        ``subject_id, prediction_time, time, code, numeric_value`` and the extra columns of ``events``; rows with
        ``time <= prediction_time`` or null time that the task's ``input`` leaves in, ``time`` being when a row became
        known. A prediction without such rows has none.

    >>> day = lambda d: dt.datetime(2013, 1, d)
    >>> events = pl.LazyFrame({"subject_id": [7, 7, 7], "time": [None, day(1), day(3)], "code": ["SEX//F", "A", "B"],
    ...                        "numeric_value": [None, 1.0, None]})
    >>> rows = pl.DataFrame({"subject_id": [7], "prediction_time": [day(2)]})
    >>> cut(events, rows, InputConfig()).collect()["code"].to_list()
    ['SEX//F', 'A']
    """
    readable = readable_events(events, task, visit_column)
    predictions = rows.lazy().select("subject_id", "prediction_time")
    joined = readable.join(predictions, on="subject_id", how="inner", maintain_order="left")
    return joined.filter(_in_sight(_input(task))).select(pl.col(CORE), pl.all().exclude(CORE))


def whole_records(
    events: pl.LazyFrame,
    subject_ids: Int64[np.ndarray, " n"],
    task: TaskConfig | InputConfig,
    *,
    visit_column: str | None = None,
    before: dt.datetime | None = None,
) -> pl.LazyFrame:
    """The same cut with prediction_time at each subject's last event: whole records, for pretraining.

    Where ``before`` is given, records end before that moment. Subjects without a dated event have no such time and are
    left out. The look-back, which goes by prediction_time, does not apply.
    """
    input = _input(task).model_copy(update={"lookback_days": None})
    wanted = as_known(events.filter(pl.col("subject_id").is_in(subject_ids)), _delay(task), visit_column)
    dated = wanted if before is None else wanted.filter(pl.col("time") < before)
    last = dated.group_by("subject_id").agg(prediction_time=pl.col("time").max())
    rows = last.drop_nulls().collect(engine="streaming").sort("subject_id")
    return cut(wanted, rows, input)


def readable_events(events: pl.LazyFrame, task: TaskConfig | InputConfig, visit_column: str | None) -> pl.LazyFrame:
    """The events a model may ever read, each at the time it became known."""
    input = _input(task)
    known = as_known(events, _delay(task), visit_column)
    codes = distinct_codes(events) if input.exclude else ()
    return known.filter(ever_readable(input, codes))


def _input(task: TaskConfig | InputConfig) -> InputConfig:
    return task.input if isinstance(task, TaskConfig) else task


def _delay(task: TaskConfig | InputConfig) -> tuple[DelayConfig, ...]:
    return task.delay if isinstance(task, TaskConfig) else ()
