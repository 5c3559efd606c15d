"""Deaths known by their date alone: they must not come before the records of their own day."""

from __future__ import annotations

import datetime as dt

import polars as pl

DEATH = "MEDS_DEATH"
_DEATH_DAY = pl.col("time").dt.date() == pl.col("death").dt.date()


def bare_date(time: pl.Expr) -> pl.Expr:
    """True at midnight sharp, which is how a date without a clock time is stamped."""
    return time.dt.time() == dt.time(0)


def late_records(events: pl.LazyFrame) -> pl.DataFrame:
    """``subject_id, time, until`` of deaths at midnight sharp with records later that day; ``until`` is the last.

    >>> day = dt.datetime(2020, 1, 1)
    >>> events = pl.LazyFrame({"subject_id": [1, 1], "time": [day, day.replace(hour=9)], "code": [DEATH, "LAB"]})
    >>> late_records(events)["until"].to_list()
    [datetime.datetime(2020, 1, 1, 9, 0)]
    """
    at_midnight = (pl.col("code") == DEATH) & bare_date(pl.col("time"))
    deaths = events.filter(at_midnight).select("subject_id", death="time").unique().collect(engine="streaming")
    later = (
        events.select("subject_id", "time")
        .join(deaths.lazy(), on="subject_id", how="inner")
        .filter((pl.col("time") > pl.col("death")) & _DEATH_DAY)
        .group_by("subject_id", "death")
        .agg(until=pl.col("time").max())
    )
    empty = pl.DataFrame(schema={"subject_id": pl.Int64, "time": pl.Datetime("us"), "until": pl.Datetime("us")})
    if deaths.is_empty():
        return empty
    return later.select("subject_id", time="death", until="until").collect(engine="streaming").sort("subject_id")


def in_order(events: pl.LazyFrame, late: pl.DataFrame) -> pl.LazyFrame:
    """The events, each death of ``late`` at the last record of its day; rows stay where they stand."""
    if late.is_empty():
        return events
    moved = late.lazy().with_columns(code=pl.lit(DEATH))
    joined = events.join(moved, on=["subject_id", "time", "code"], how="left", maintain_order="left")
    return joined.with_columns(time=pl.coalesce("until", "time")).drop("until")
