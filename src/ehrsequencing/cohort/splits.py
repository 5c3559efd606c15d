"""Who trains, tunes and is judged: the dataset's own splits, hashes of subjects or groups, or the calendar."""

from __future__ import annotations

import numpy as np
import polars as pl
from jaxtyping import Int64, Shaped

from ehrsequencing.cohort.known import refuse_unknown_column
from ehrsequencing.cohort.predicates import compile_predicate, distinct_codes
from ehrsequencing.cohort.subjects import ALWAYS
from ehrsequencing.cohort.times import midnight
from ehrsequencing.config import HELD_OUT, TRAIN, TUNING, CalendarConfig, Predicate, SplitByConfig
from ehrsequencing.events import MedsDataset, assign_splits


def units(
    dataset: MedsDataset, subjects: Int64[np.ndarray, " n"], split_by: SplitByConfig | None
) -> Shaped[np.ndarray, " n"]:
    """What is hashed into splits and folds: each subject itself, or its group where ``split_by`` names groups.

    A subject's group is its first value (static ones first, then by time, then by text); without any it is by itself.

    Raises:
        EhrError: (DATA) no such column; (COHORT) no such code.
    """
    if split_by is None:
        return subjects
    found = _groups(dataset.scan(), split_by)
    joined = pl.DataFrame({"subject_id": subjects}).join(found, on="subject_id", how="left", maintain_order="left")
    alone = pl.col("subject_id").cast(pl.String)
    return joined.select(pl.coalesce(pl.lit("group ") + pl.col("group"), alone)).to_series().to_numpy().astype(np.str_)


def _groups(events: pl.LazyFrame, split_by: SplitByConfig) -> pl.DataFrame:
    """``subject_id, group`` of the subjects that have one."""
    if split_by.column is not None:
        refuse_unknown_column(events, split_by.column, "split_by.column")
        named = events.select("subject_id", "time", group=pl.col(split_by.column).cast(pl.String)).drop_nulls("group")
    else:
        predicate = Predicate(code=split_by.code or "")
        hit = compile_predicate(predicate, distinct_codes(events), "split_by.code")
        named = events.filter(hit).select("subject_id", "time", group="code")
    first = named.group_by("subject_id", "group").agg(pl.col("time").fill_null(ALWAYS).min())
    ordered = first.collect(engine="streaming").sort("subject_id", "time", "group")
    return ordered.unique("subject_id", keep="first", maintain_order=True).select("subject_id", "group")


def subject_splits(
    dataset: MedsDataset, subjects: Int64[np.ndarray, " n"], seed: int, split_by: SplitByConfig | None = None
) -> Shaped[np.ndarray, " n"]:
    """The split of each subject: the dataset's own ("" where it names none) unless groups are asked for, or by hash."""
    own = dataset.splits() if split_by is None else None
    if own is None:
        return assign_splits(units(dataset, subjects, split_by), seed)
    named = pl.DataFrame({"subject_id": subjects}).join(own, on="subject_id", how="left", maintain_order="left")
    return named["split"].fill_null("").to_numpy().astype(np.str_)


def periods(times: pl.Series, calendar: CalendarConfig) -> pl.Series:
    """The split of each time: training before ``tuning``, tuning before ``held_out``, held-out from then on."""
    bounds = [midnight(getattr(calendar, name), f"split.calendar.{name}") for name in (TUNING, HELD_OUT)]
    split = pl.when(pl.col("t") < bounds[0]).then(pl.lit(TRAIN)).when(pl.col("t") < bounds[1]).then(pl.lit(TUNING))
    return times.to_frame("t").select(split.otherwise(pl.lit(HELD_OUT)).alias("split")).to_series()
