"""When a record became known: the task's ``delay``, applied once, before anything is cut or counted."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence

import polars as pl

from ehrsequencing.cohort.predicates import compile_predicate, distinct_codes
from ehrsequencing.config import DelayConfig
from ehrsequencing.errors import EhrError, Exit
from ehrsequencing.events import BIRTH

VISIT_END = "_visit_end"
LAST_INSTANT = dt.timedelta(days=1) - dt.timedelta(microseconds=1)


def as_known(events: pl.LazyFrame, delay: Sequence[DelayConfig], visit_column: str | None = None) -> pl.LazyFrame:
    """The events with ``time`` moved to when each became known; static rows and births stay where they are.

    Of several delays that name an event the longest counts. ``end_of_visit`` is the time of the visit's last event
    where the event carries a visit in ``visit_column``, otherwise the end of its day (23:59:59.999999). An event that
    becomes known after its visit ended leaves that visit: its ``visit_column`` is emptied.

    >>> events = pl.LazyFrame({"subject_id": [7], "time": [dt.datetime(2013, 1, 1)], "code": ["LAB"],
    ...                        "numeric_value": [1.0]})
    >>> as_known(events, (DelayConfig(code="LAB", days=2),)).collect()["time"].to_list()
    [datetime.datetime(2013, 1, 3, 0, 0)]
    """
    if not delay:
        return events
    codes = distinct_codes(events)
    columns = events.collect_schema().names()
    ends = _with_visit_ends(events, visit_column)
    moved = pl.max_horizontal("time", *(_known_time(item, codes) for item in delay))
    movable = pl.col("time").is_not_null() & (pl.col("code") != BIRTH)
    known = pl.when(movable).then(moved).otherwise("time")
    if visit_column is not None:
        over = (known > pl.max_horizontal("time", VISIT_END)).fill_null(False)
        ends = ends.with_columns(pl.when(~over).then(visit_column).alias(visit_column), time=known)
    else:
        ends = ends.with_columns(time=known)
    return ends.select(columns)


def refuse_unknown_column(events: pl.LazyFrame, column: str | None, where: str) -> None:
    """EhrError (exit 11) where the events bring no such column."""
    names = events.collect_schema().names()
    if column is not None and column not in names:
        raise EhrError(
            f"the events have no column '{column}' (found: {', '.join(names)})",
            where,
            "name a column that the events bring",
            code=Exit.DATA,
        )


def _with_visit_ends(events: pl.LazyFrame, visit_column: str | None) -> pl.LazyFrame:
    if visit_column is None:
        return events.with_columns(pl.lit(None, pl.Datetime("us")).alias(VISIT_END))
    refuse_unknown_column(events, visit_column, "visit_column")
    keys = ["subject_id", visit_column]
    ends = events.drop_nulls(visit_column).group_by(keys).agg(pl.col("time").max().alias(VISIT_END))
    return events.join(ends, on=keys, how="left", maintain_order="left")


def _known_time(delay: DelayConfig, codes: Sequence[str]) -> pl.Expr:
    """When the events that ``delay`` names become known; null on all others."""
    time, end_of_day = pl.col("time"), pl.col("time").dt.truncate("1d") + LAST_INSTANT
    if delay.days is not None:
        known = time + dt.timedelta(days=delay.days)
    elif delay.until == "end_of_visit":
        known = pl.coalesce(VISIT_END, end_of_day)
    else:
        known = end_of_day
    return pl.when(compile_predicate(delay, codes, "delay", must_occur=False)).then(known)
