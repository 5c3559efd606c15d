"""The rules of docs/reference/task-language.md once more: slowly, in plain Python, one subject at a time."""

from __future__ import annotations

import datetime as dt
import math
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from ehrsequencing.config import CodeMatch, Predicate, TaskConfig

DAY = dt.timedelta(days=1)


@dataclass(frozen=True)
class Row:
    """One line of a record."""

    time: dt.datetime | None
    code: str
    value: float | None


@dataclass(frozen=True)
class Label:
    """What the reference says of a subject who stays."""

    prediction_time: dt.datetime
    duration: float
    event: int


def label(record: list[Row], task: TaskConfig, labelled: dt.datetime | None = None) -> Label | str:
    """The subject's label, or the name of the first rule that removes the subject."""
    birth, death = first(record, "MEDS_BIRTH"), first(record, "MEDS_DEATH")
    needs_age = (task.index.age, task.require.age_min, task.require.age_max) != (None, None, None)
    if needs_age and birth is None:
        return "no birth"
    asked = prediction_time(record, task, birth, labelled)
    if asked is None:
        return "no index"
    if birth is not None and asked < birth:
        return "before birth"
    if death is not None and death <= asked:
        return "dead"
    dated = [row.time for row in record if row.time is not None]
    if not dated or asked > max(dated):
        return "record over"
    rule = unmet_requirement(record, task, asked, birth)
    if rule is not None:
        return rule
    past = [row for row in record if row.time is None or row.time <= asked]
    for number, predicate in enumerate(task.exclude, start=1):
        if any(matches(row, predicate) for row in past):
            return f"exclude {number}"
    if task.washout and any(matches(row, task.outcome) for row in past):
        return "washout"
    return follow(record, task, asked, min(max(dated), death or dt.datetime.max))


def prediction_time(
    record: list[Row], task: TaskConfig, birth: dt.datetime | None, labelled: dt.datetime | None
) -> dt.datetime | None:
    index = task.index
    if index.age is not None and birth is not None:
        return birthday(birth, index.age)
    if index.date is not None:
        return start_of(index.date)
    if index.code is not None:
        times = [row.time for row in record if row.time is not None and matches(row, Predicate(code=index.code))]
        return min(times, default=None)
    return labelled


def unmet_requirement(record: list[Row], task: TaskConfig, asked: dt.datetime, birth: dt.datetime | None) -> str | None:
    require = task.require
    if require.age_min is not None and birth is not None and asked < birthday(birth, require.age_min):
        return "age_min"
    if require.age_max is not None and birth is not None:
        limit = require.age_max + 1 if require.age_max == int(require.age_max) else require.age_max
        if asked >= birthday(birth, limit):
            return "age_max"
    begin = dt.datetime.min if task.input.from_ is None else start_of(task.input.from_)
    readable = [
        row.time
        for row in record
        if row.time is not None and begin <= row.time <= asked and row.code not in ("MEDS_BIRTH", "MEDS_DEATH")
    ]
    if require.history_days > 0 and (not readable or (asked - min(readable)) / DAY < require.history_days):
        return "history_days"
    if len({time.date() for time in readable}) < require.visits:
        return "visits"
    return None


def follow(record: list[Row], task: TaskConfig, asked: dt.datetime, end: dt.datetime) -> Label | str:
    if end <= asked:
        return "no follow-up"
    later = [row.time for row in record if row.time is not None and asked < row.time <= end]
    outcomes = [row.time for row in record if row.time in later and matches(row, task.outcome)]
    if outcomes:
        return Label(asked, (min(outcomes) - asked) / DAY, 1)
    return Label(asked, (end - asked) / DAY, 0)


def matches(row: Row, predicate: Predicate) -> bool:
    if not names(predicate.code, row.code):
        return False
    if predicate.value_min is None and predicate.value_max is None:
        return True
    if row.value is None or math.isnan(row.value):
        return False
    low = -math.inf if predicate.value_min is None else predicate.value_min
    high = math.inf if predicate.value_max is None else predicate.value_max
    return low <= row.value <= high


def names(match: str | CodeMatch, code: str) -> bool:
    if isinstance(match, str):
        return code == match
    if match.any is not None:
        return code in match.any
    if match.prefix is not None:
        return code[: len(match.prefix)] == match.prefix
    return re.search(match.regex or "", code) is not None


def birthday(birth: dt.datetime, years: float) -> dt.datetime:
    whole = int(years)
    try:
        day = dt.datetime(birth.year + whole, birth.month, birth.day)
    except ValueError:
        day = dt.datetime(birth.year + whole, 2, 28)
    return day + (years - whole) * 365.25 * DAY


def first(record: Iterable[Row], code: str) -> dt.datetime | None:
    return min((row.time for row in record if row.time is not None and row.code == code), default=None)


def start_of(date: dt.date | dt.datetime) -> dt.datetime:
    return date if isinstance(date, dt.datetime) else dt.datetime.combine(date, dt.time())


def cohort(records: dict[int, list[Row]], task: TaskConfig) -> tuple[dict[int, Label], Counter[str]]:
    """Everybody's label, and how many each rule removed."""
    results = {subject: label(record, task) for subject, record in records.items()}
    kept = {subject: result for subject, result in results.items() if isinstance(result, Label)}
    return kept, Counter(result for result in results.values() if isinstance(result, str))
