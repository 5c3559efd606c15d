"""Where prediction_time comes from: candidates of each index kind, before any rule."""

from __future__ import annotations

import datetime as dt

import polars as pl

from ehrsequencing.cohort.labels import read_labels
from ehrsequencing.cohort.times import birthday, midnight
from ehrsequencing.config import IndexConfig
from ehrsequencing.events import rank_hash

LOOKS_AHEAD = ("last", "random")
"""Kinds of event index whose choice among several depends on what is recorded after it."""


def index_times(
    index: IndexConfig, people: pl.DataFrame, moments: pl.DataFrame, visits: pl.DataFrame, seed: int
) -> pl.DataFrame:
    """``subject_id, index_time`` of everybody who has one; several rows a subject where the index says so.

    Args:
        people: ``subject_id, birth``.
        moments: ``subject_id, time`` of the index event, sorted (empty for other kinds).
        visits: ``subject_id, first, last`` (empty for other kinds than ``after_history_days``).
    """
    if index.age is not None:
        found = people.select("subject_id", index_time=birthday(pl.col("birth"), index.age))
    elif index.date is not None:
        date = pl.lit(midnight(index.date, "index.date"), dtype=pl.Datetime("us"))
        found = people.select("subject_id", index_time=date)
    elif index.labels is not None:
        found = read_labels(index.labels).rename({"prediction_time": "index_time"})
    elif index.after_history_days is not None:
        found = _after_history(visits, index.after_history_days)
    else:
        found = _chosen(index.event or "first", moments, seed).rename({"time": "index_time"})
    return found.drop_nulls()


def earliest(times: pl.DataFrame) -> pl.DataFrame:
    """One row a subject: its first index_time."""
    return times.group_by("subject_id").agg(pl.col("index_time").min()).sort("subject_id")


def _after_history(visits: pl.DataFrame, days: float) -> pl.DataFrame:
    """The end of the first visit that ends so many days after the subject's first record."""
    begin = pl.col("first").min().over("subject_id")
    enough = visits.filter(pl.col("last") - begin >= dt.timedelta(days=days))
    return enough.group_by("subject_id").agg(index_time=pl.col("last").min()).sort("subject_id")


def _chosen(event: str, moments: pl.DataFrame, seed: int) -> pl.DataFrame:
    """The first, last, each or a random one of a subject's sorted moments."""
    if event == "each":
        return moments
    place, count = pl.int_range(pl.len()).over("subject_id"), pl.len().over("subject_id")
    if event == "random":
        draw = pl.Series(rank_hash(moments["subject_id"].to_numpy(), seed, "index"), dtype=pl.Float64)
        return moments.filter(place == (draw * moments.select(count).to_series()).floor().cast(pl.Int64))
    return moments.filter(place == (0 if event == "first" else count - 1))
