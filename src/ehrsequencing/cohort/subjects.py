"""Facts that the rules read, from streaming passes over the events: an aggregate a subject, moments, visits."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping

import polars as pl

from ehrsequencing.events import BIRTH, DEATH

ALWAYS = dt.datetime(1, 1, 1)
"""The time that stands for "static": known at every prediction_time."""
KEYS = ("subject_id", "prediction_time")
VISIT = "_visit"


def landmarks(events: pl.LazyFrame, outcome: pl.Expr) -> pl.DataFrame:
    """``subject_id, birth, death, first_outcome, last_record``, null where there is none, sorted by subject.

    ``birth, death, first_outcome`` are the first such times (an outcome without a time is ``ALWAYS``).
    """
    code, time = pl.col("code"), pl.col("time")
    columns = events.select(
        "subject_id",
        birth=pl.when(code == BIRTH).then(time),
        death=pl.when(code == DEATH).then(time),
        first_outcome=pl.when(outcome).then(time.fill_null(ALWAYS)),
        last_record=time,
    )
    first = pl.col("birth", "death", "first_outcome").min()
    facts = columns.group_by("subject_id").agg(first, pl.col("last_record").max())
    return facts.collect(engine="streaming").sort("subject_id")


def first_known(known: pl.LazyFrame, predicates: Mapping[str, pl.Expr]) -> pl.DataFrame:
    """``subject_id`` and, under each name, when such a row first became known (``ALWAYS`` for a static one)."""
    time = pl.col("time").fill_null(ALWAYS)
    columns = known.select("subject_id", **{name: pl.when(hit).then(time) for name, hit in predicates.items()})
    firsts = columns.group_by("subject_id").agg(pl.col(name).min() for name in predicates)
    return firsts.collect(engine="streaming")


def moments(events: pl.LazyFrame, predicates: Mapping[str, pl.Expr]) -> dict[str, pl.DataFrame]:
    """Under each name the distinct ``subject_id, time`` of the dated events it names, sorted by both."""
    hits = events.filter(pl.col("time").is_not_null()).select("subject_id", "time", **predicates)
    found = hits.filter(pl.any_horizontal(list(predicates))).collect(engine="streaming")
    keys = ("subject_id", "time")
    return {name: found.filter(name).select(keys).unique().sort(keys) for name in predicates}


def visits(readable: pl.LazyFrame, visit_column: str | None) -> pl.DataFrame:
    """``subject_id, first, last``: one row a visit, from the dated events a model may ever read (births, deaths apart).

    A visit is a value of ``visit_column``, or a calendar day where that is absent or null.
    """
    spans = _dated(readable, visit_column).group_by("subject_id", VISIT)
    found = spans.agg(first=pl.col("time").min(), last=pl.col("time").max()).collect(engine="streaming")
    return found.select("subject_id", "first", "last").sort("subject_id", "first", "last")


def in_sight(readable: pl.LazyFrame, visit_column: str | None, lookback_days: float) -> pl.DataFrame:
    """``subject_id, first, last``: stretches of visits without a gap longer than the look-back.

    At a time t the look-back shows something of a visit if t lies between ``first`` and ``last`` + look-back of one of
    its stretches, and never in two of them.
    """
    keys = ("subject_id", VISIT)
    times = _dated(readable, visit_column).unique().collect(engine="streaming").sort(*keys, "time")
    gap = pl.col("time").diff().over(keys)
    opens = (gap > dt.timedelta(days=lookback_days)).fill_null(True).cum_sum()
    stretches = times.with_columns(_stretch=opens).group_by(*keys, "_stretch")
    return stretches.agg(first=pl.col("time").min(), last=pl.col("time").max()).select("subject_id", "first", "last")


def next_after(rows: pl.DataFrame, moments: pl.DataFrame) -> pl.Series:
    """For each of ``rows``, in order, the first of its subject's moments strictly after prediction_time."""
    return _as_of(rows, moments.with_columns(found="time"), "forward", strictly=True)


def count_up_to(rows: pl.DataFrame, times: pl.DataFrame, *, strictly: bool = False) -> pl.Series:
    """For each of ``rows``, in order, how many of its subject's ``time`` lie at or before prediction_time."""
    ordered = times.sort("subject_id", "time").with_columns(found=pl.col("time").cum_count().over("subject_id"))
    return _as_of(rows, ordered, "backward", strictly=strictly).fill_null(0)


def last_up_to(rows: pl.DataFrame, table: pl.DataFrame) -> pl.Series:
    """For each of ``rows``, in order, ``found`` of its subject's last row of ``table`` (subject_id, time, found) at or
    before prediction_time; of several at one time the last by ``found``."""
    return _as_of(rows, table.sort("subject_id", "time", "found"), "backward", strictly=False)


def _as_of(rows: pl.DataFrame, table: pl.DataFrame, strategy: str, *, strictly: bool) -> pl.Series:
    """``found`` of the nearest row of ``table`` (subject_id, time, found) on one side of prediction_time."""
    left = rows.select(KEYS).with_row_index("_row").sort("prediction_time")
    right = table.select("subject_id", "time", "found").sort("time", maintain_order=True)
    joined = left.join_asof(
        right,
        left_on="prediction_time",
        right_on="time",
        by="subject_id",
        strategy=strategy,  # type: ignore[arg-type]
        allow_exact_matches=not strictly,
        check_sortedness=False,
    )
    return joined.sort("_row")["found"]


def _dated(readable: pl.LazyFrame, visit_column: str | None) -> pl.LazyFrame:
    """``subject_id, time, _visit`` of dated events, births and deaths apart."""
    clinical = readable.filter(pl.col("time").is_not_null() & ~pl.col("code").is_in([BIRTH, DEATH]).fill_null(False))
    day = pl.col("time").dt.date()
    if visit_column is None:
        return clinical.select("subject_id", "time", day.alias(VISIT))
    day = day.cast(pl.String)
    own = pl.lit("visit ") + pl.col(visit_column).cast(pl.String)
    return clinical.select("subject_id", "time", pl.coalesce(own, day).alias(VISIT))
