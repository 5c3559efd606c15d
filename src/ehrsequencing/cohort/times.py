"""Calendar arithmetic of the task language: dates are midnights, birthdays are exact, durations are days."""

from __future__ import annotations

import datetime as dt

import polars as pl

from ehrsequencing.config import DAYS_PER_YEAR
from ehrsequencing.errors import EhrError, Exit

US_PER_DAY = 86_400_000_000


def midnight(date: dt.date | dt.datetime, where: str) -> dt.datetime:
    """A date is the midnight at which that day begins; a date and time is itself.

    Raises:
        EhrError: (CONFIG) the time has a time zone: MEDS times have none.

    >>> midnight(dt.date(2013, 1, 1), "index.date")
    datetime.datetime(2013, 1, 1, 0, 0)
    """
    if not isinstance(date, dt.datetime):
        return dt.datetime(date.year, date.month, date.day)
    if date.tzinfo is not None:
        fix = "write it in the data's local time, without a zone"
        raise EhrError(f"{date} has a time zone, the times of MEDS data have none", where, fix, code=Exit.CONFIG)
    return date


def birthday(birth: pl.Expr, years: float) -> pl.Expr:
    """The midnight at which the birthday begins.

    Whole years go by the calendar, a fraction of one as a part of 365.25 days.
    Those born on 29 February have their birthday on 28 February in other years.

    >>> born = pl.DataFrame({"birth": [dt.datetime(1960, 2, 29, 4, 30)]})
    >>> born.select(birthday(pl.col("birth"), 50.0)).item()
    datetime.datetime(2010, 2, 28, 0, 0)
    """
    whole = int(years)
    fraction = dt.timedelta(days=(years - whole) * DAYS_PER_YEAR)
    return birth.dt.truncate("1d").dt.offset_by(f"{whole}y") + pl.lit(fraction, dtype=pl.Duration("us"))


def after_age(birth: pl.Expr, age_max: float) -> pl.Expr:
    """From when one is too old for ``age_max``; whole numbers are completed years: 65 ends at the 66th birthday."""
    return birthday(birth, age_max + 1 if float(age_max).is_integer() else age_max)


def days(duration: pl.Expr) -> pl.Expr:
    """A polars duration as days, float64: the same bits however many rows there are, which dividing would not give."""
    return duration.dt.total_microseconds().cast(pl.Float64) * (1 / US_PER_DAY)
