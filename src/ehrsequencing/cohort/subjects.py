"""Per-subject facts that the rules read, from streaming passes over the events; nothing else is ever collected."""

from __future__ import annotations

import polars as pl

from ehrsequencing.cohort.cut import known, readable
from ehrsequencing.config import InputConfig
from ehrsequencing.events import BIRTH, DEATH


def landmarks(events: pl.LazyFrame, index_event: pl.Expr | None) -> pl.DataFrame:
    """``subject_id, birth, death, index_event`` (the first such times, null where there is none), ``last_record`` and
    ``data_end`` (the last record of anybody), sorted by subject."""
    code, time = pl.col("code"), pl.col("time")
    columns = events.select(
        "subject_id",
        birth=pl.when(code == BIRTH).then(time),
        death=pl.when(code == DEATH).then(time),
        last_record=time,
        index_event=pl.when(pl.lit(False) if index_event is None else index_event).then(time),
    )
    first = pl.col("birth", "death", "index_event").min()
    facts = columns.group_by("subject_id").agg(first, pl.col("last_record").max())
    people = facts.collect(engine="streaming").sort("subject_id")
    return people.with_columns(data_end=pl.col("last_record").max())


def at_prediction(
    events: pl.LazyFrame, rows: pl.DataFrame, input: InputConfig, exclude: list[pl.Expr], outcome: pl.Expr | None
) -> pl.DataFrame:
    """What is known of each of ``rows`` (subject_id, prediction_time) at that time, and what came after it.

    Returns:
        ``subject_id, first_readable`` (of the dated events a model may read, birth and death apart), ``visits``
        (calendar days with such an event), ``exclude_<i>`` (such a row is known), ``outcome_known`` and
        ``outcome_time`` (the first outcome strictly after prediction_time).
    """
    time = pl.col("time")
    history = readable(input) & time.is_not_null() & ~pl.col("code").is_in([BIRTH, DEATH])
    outcome = pl.lit(False) if outcome is None else outcome
    excluded = {f"exclude_{i}": predicate & known() for i, predicate in enumerate(exclude)}
    columns = events.join(rows.lazy().select("subject_id", "prediction_time"), on="subject_id").select(
        "subject_id",
        first_readable=pl.when(history).then(time),
        visits=pl.when(history).then(time.dt.date()),
        outcome_known=outcome & known(),
        outcome_time=pl.when(outcome & (time > pl.col("prediction_time"))).then(time),
        **excluded,
    )
    facts = columns.group_by("subject_id").agg(
        pl.col("first_readable", "outcome_time").min(),
        pl.col("visits").drop_nulls().n_unique(),
        pl.col("outcome_known", *excluded).any(),
    )
    return facts.collect(engine="streaming")


def distinct_codes(events: pl.LazyFrame) -> list[str]:
    """The codes that occur, sorted."""
    codes = events.select(pl.col("code").unique()).collect(engine="streaming")
    return codes["code"].drop_nulls().sort().to_list()
