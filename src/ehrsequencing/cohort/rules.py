"""The rules that leave rows out of a cohort, in the order in which they are applied and counted."""

from __future__ import annotations

import polars as pl

from ehrsequencing.cohort.attrition import Rule
from ehrsequencing.cohort.index import LOOKS_AHEAD
from ehrsequencing.cohort.predicates import describe_match, describe_predicate
from ehrsequencing.cohort.times import after_age, birthday, days
from ehrsequencing.config import IndexConfig, RequireConfig, TaskConfig

prediction_time = pl.col("prediction_time")


def index_rules(task: TaskConfig, *, follow_up: bool) -> list[Rule]:
    """Rows without a prediction_time, or with one at which nobody could have been asked about the subject.

    With ``follow_up`` the record must reach prediction_time. Without it (new data, no outcome yet) only a birthday must
    have come by the last record of anybody; a date or a label file says by itself that one asks on that day.
    """
    why = "in the label file, but not in the data"
    found = [Rule("no records", why, pl.col("recorded").is_null())] if task.index.labels is not None else []
    found += [*_no_birth(task), *_no_index(task.index)]
    if task.predict_at == "every_visit":
        found.append(Rule("no visit", "no visit at or after the index", prediction_time.is_null()))
    found += [
        Rule("before birth", "prediction_time before birth", prediction_time < pl.col("birth")),
        Rule("dead", "dead at or before prediction_time", pl.col("death") <= prediction_time),
    ]
    if follow_up:
        over = pl.col("last_record").is_null() | (prediction_time > pl.col("last_record"))
        found.append(Rule("record over", "prediction_time after the last record", over))
    elif task.index.age is not None:
        why = "prediction_time after the last record of anybody"
        found.append(Rule("not reached", why, prediction_time > pl.col("data_end")))
    return found


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
        history = days(prediction_time - pl.col("first_readable"))
        short = history.is_null() | (history < require.history_days)
        rules.append(Rule("history_days", why, short))
    if require.visits > 0:
        why = f"fewer than {require.visits} readable visits"
        rules.append(Rule("visits", why, pl.col("visits") < require.visits))
    return rules


def exclude_rules(task: TaskConfig) -> list[Rule]:
    """One rule an ``exclude`` predicate."""
    return [
        Rule(
            f"exclude {i + 1}",
            f"{describe_predicate(predicate)} at or before prediction_time",
            pl.col(f"exclude_{i}") <= prediction_time,
        )
        for i, predicate in enumerate(task.exclude)
    ]


def outcome_rules(task: TaskConfig, *, follow_up: bool) -> list[Rule]:
    """Washout, visits after what was to be predicted, and rows of which nothing is known after prediction_time."""
    rules = []
    if task.washout:
        why = "the outcome at or before prediction_time"
        rules.append(Rule("washout", why, pl.col("first_outcome") <= prediction_time))
    if task.predict_at == "every_visit":
        why = "visits at or after the first outcome or competing event after the index"
        rules.append(Rule("after outcome", why, pl.col("stopped") <= prediction_time))
    if follow_up:
        rules.append(Rule("no follow-up", "follow-up ends at prediction_time", pl.col("end") <= prediction_time))
    return rules


def _no_birth(task: TaskConfig) -> list[Rule]:
    """Subjects without a birth go where the task needs an age."""
    ages = (task.index.age, task.require.age_min, task.require.age_max, task.evaluate_at and task.evaluate_at.age)
    if all(age is None for age in ages):
        return []
    return [Rule("no birth", "the task needs an age and there is no MEDS_BIRTH", pl.col("birth").is_null())]


def _no_index(index: IndexConfig) -> list[Rule]:
    """A date is everybody's, and a birthday everybody's with a birth."""
    missing = pl.col("index_time").is_null()
    if index.code is not None:
        why = f"never has {describe_match(index.code)}"
        if index.event in LOOKS_AHEAD:
            why += f"; the {index.event} of several is chosen by what is recorded after it: it looks ahead"
        return [Rule("no index", why, missing)]
    if index.labels is not None:
        return [Rule("no index", "not in the label file", missing)]
    if index.after_history_days is not None:
        return [Rule("no index", f"no visit with {index.after_history_days:g} days of history", missing)]
    return []
