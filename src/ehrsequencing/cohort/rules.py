"""The rules that leave subjects out of a cohort, in the order in which they are applied and counted."""

from __future__ import annotations

import polars as pl

from ehrsequencing.cohort.attrition import Rule
from ehrsequencing.cohort.predicates import describe_match, describe_predicate
from ehrsequencing.cohort.times import after_age, birthday, days
from ehrsequencing.config import IndexConfig, RequireConfig, TaskConfig

prediction_time = pl.col("prediction_time")


def birth_rules(task: TaskConfig) -> list[Rule]:
    """Subjects without a birth go where the task needs an age."""
    if task.index.age is None and task.require.age_min is None and task.require.age_max is None:
        return []
    return [Rule("no birth", "the task needs an age and there is no MEDS_BIRTH", pl.col("birth").is_null())]


def index_rules(index: IndexConfig, *, follow_up: bool) -> list[Rule]:
    """Subjects without a prediction_time, or with one at which nobody could have been asked about them.

    With ``follow_up`` the record must reach prediction_time. Without it (new data, no outcome yet) only a birthday must
    have come by the last record of anybody; a date or a label file says by itself that one asks on that day.
    """
    rules = [
        *_no_index(index),
        Rule("before birth", "prediction_time before birth", prediction_time < pl.col("birth")),
        Rule("dead", "dead at or before prediction_time", pl.col("death") <= prediction_time),
    ]
    if follow_up:
        over = pl.col("last_record").is_null() | (prediction_time > pl.col("last_record"))
        rules.append(Rule("record over", "prediction_time after the last record", over))
    elif index.age is not None:
        why = "prediction_time after the last record of anybody"
        rules.append(Rule("not reached", why, prediction_time > pl.col("data_end")))
    return rules


def require_rules(require: RequireConfig) -> list[Rule]:
    """What must be there at prediction_time, in the part of the record that models may read."""
    birth, rules = pl.col("birth"), []
    if require.age_min is not None:
        why = f"younger than {require.age_min:g} years at prediction_time"
        rules.append(Rule("age_min", why, birthday(birth, require.age_min) > prediction_time))
    if require.age_max is not None:
        why = f"older than {require.age_max:g} years at prediction_time"
        rules.append(Rule("age_max", why, prediction_time >= after_age(birth, require.age_max)))
    if require.history_days > 0:
        why = f"less than {require.history_days:g} days of readable history"
        short = pl.col("first_readable").is_null() | (
            days(prediction_time - pl.col("first_readable")) < require.history_days
        )
        rules.append(Rule("history_days", why, short))
    if require.visits > 0:
        why = f"fewer than {require.visits} readable visits (days with a record)"
        rules.append(Rule("visits", why, pl.col("visits") < require.visits))
    return rules


def exclude_rules(task: TaskConfig) -> list[Rule]:
    """One rule an ``exclude`` predicate."""
    return [
        Rule(
            f"exclude {i + 1}", f"{describe_predicate(predicate)} at or before prediction_time", pl.col(f"exclude_{i}")
        )
        for i, predicate in enumerate(task.exclude)
    ]


def outcome_rules(task: TaskConfig) -> list[Rule]:
    """Washout, and subjects of whom nothing is known after prediction_time."""
    rules = [Rule("no follow-up", "follow-up ends at prediction_time", pl.col("end") <= prediction_time)]
    if task.washout:
        rules.insert(0, Rule("washout", "the outcome at or before prediction_time", pl.col("outcome_known")))
    return rules


def _no_index(index: IndexConfig) -> list[Rule]:
    """A date is everybody's, and a birthday everybody's with a birth."""
    if index.code is not None:
        return [Rule("no index", f"never has {describe_match(index.code)}", prediction_time.is_null())]
    if index.labels is not None:
        return [Rule("no index", "not in the label file", prediction_time.is_null())]
    return []
