"""The rules of docs/reference/task-language.md once more: slowly, in plain Python, one subject at a time."""

from __future__ import annotations

import datetime as dt
import hashlib
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from ehrsequencing.config import CodeMatch, DelayConfig, IndexConfig, Predicate, TaskConfig

DAY = dt.timedelta(days=1)


@dataclass(frozen=True)
class Row:
    """One line of a record."""

    time: dt.datetime | None
    code: str
    value: float | None
    visit: str | None = None


@dataclass(frozen=True)
class Label:
    """What the reference says of a row that stays."""

    prediction_time: dt.datetime
    duration: float
    event: int


@dataclass
class Subject:
    """One subject's record and what the task makes of it."""

    record: list[Row]
    task: TaskConfig
    number: int = 0
    by_column: bool = False

    @property
    def birth(self) -> dt.datetime | None:
        return first(self.record, "MEDS_BIRTH")

    @property
    def death(self) -> dt.datetime | None:
        return first(self.record, "MEDS_DEATH")

    @property
    def last(self) -> dt.datetime | None:
        return max((row.time for row in self.record if row.time is not None), default=None)

    def known(self) -> list[Row]:
        """The record at the times it became known; what comes after its visit leaves the visit."""
        found = []
        for row in self.record:
            time = row.time
            if time is not None and row.code != "MEDS_BIRTH":
                over = self.visit_end(row)
                time = max([row.time, *(self.until(row, delay) for delay in self.task.delay if matches(row, delay))])
                row = replace(row, time=time, visit=row.visit if over is None or time <= over else None)
            found.append(row)
        return found

    def visit_end(self, row: Row) -> dt.datetime | None:
        if not self.by_column or row.visit is None:
            return None
        return max(other.time for other in self.record if other.visit == row.visit and other.time is not None)

    def until(self, row: Row, delay: DelayConfig) -> dt.datetime:
        if delay.days is not None:
            return row.time + delay.days * DAY
        end_of_day = start_of(row.time.date()) + DAY - dt.timedelta(microseconds=1)
        return (self.visit_end(row) or end_of_day) if delay.until == "end_of_visit" else end_of_day

    def ever_readable(self) -> list[Row]:
        begin = dt.datetime.min if self.task.input.from_ is None else start_of(self.task.input.from_)
        return [
            row
            for row in self.known()
            if row.code == "MEDS_BIRTH"
            or ((row.time is None or row.time >= begin) and not any(matches(row, p) for p in self.task.input.exclude))
        ]

    def read(self, asked: dt.datetime) -> list[Row]:
        """What the cut lets through."""
        days = self.task.input.lookback_days
        begin = dt.datetime.min if days is None else asked - days * DAY
        rows = self.ever_readable()
        return [r for r in rows if r.time is None or (r.time <= asked and (r.time >= begin or r.code == "MEDS_BIRTH"))]

    def visits(self, rows: list[Row]) -> dict[str, list[dt.datetime]]:
        """The times of each visit's records, births and deaths apart."""
        found: dict[str, list[dt.datetime]] = {}
        for row in rows:
            if row.time is not None and row.code not in ("MEDS_BIRTH", "MEDS_DEATH"):
                column = row.visit if self.by_column else None
                found.setdefault(str(row.time.date()) if column is None else f"visit {column}", []).append(row.time)
        return found

    def times_of(self, *predicates: Predicate) -> list[dt.datetime]:
        return sorted({row.time for row in self.record if row.time and any(matches(row, p) for p in predicates)})

    def index(self, index: IndexConfig) -> list[dt.datetime]:
        """The times of the index, before anything else."""
        if index.age is not None:
            return [] if self.birth is None else [birthday(self.birth, index.age)]
        if index.date is not None:
            return [start_of(index.date)]
        if index.after_history_days is not None:
            ends = sorted(max(times) for times in self.visits(self.ever_readable()).values())
            begin = min((min(times) for times in self.visits(self.ever_readable()).values()), default=None)
            return [end for end in ends if end - begin >= index.after_history_days * DAY][:1]
        times = self.times_of(Predicate(code=index.code))
        if not times or index.event == "each":
            return times
        return [times[{"first": 0, "last": -1}.get(index.event, int(draw(self.number) * len(times)))]]

    def candidates(self) -> list[dt.datetime]:
        index = self.index(self.task.index)
        if self.task.predict_at == "index" or not index:
            return index
        ends = {max(times) for times in self.visits(self.ever_readable()).values()}
        return sorted(end for end in ends if end >= min(index))

    def rules(self) -> list[tuple[str, Callable[[dt.datetime], bool]]]:
        """The rules in order; each says of a prediction_time whether it goes."""
        task, require = self.task, self.task.require
        birth, death, last = self.birth, self.death, self.last
        rules = [
            ("before birth", lambda at: birth is not None and at < birth),
            ("dead", lambda at: death is not None and death <= at),
            ("record over", lambda at: last is None or at > last),
        ]
        if require.age_min is not None:
            rules.append(("age_min", lambda at: at < birthday(birth, require.age_min)))
        if require.age_max is not None:
            whole = require.age_max == int(require.age_max)
            rules.append(("age_max", lambda at: at >= birthday(birth, require.age_max + (1 if whole else 0))))
        if require.history_days > 0:
            rules.append(("history_days", self.short_history))
        if require.visits > 0:
            rules.append(("visits", lambda at: len(self.visits(self.read(at))) < require.visits))
        for number, predicate in enumerate(task.exclude, start=1):
            rules.append((f"exclude {number}", lambda at, p=predicate: self.holds(self.known(), p, at)))
        if task.washout:
            rules.append(("washout", lambda at: self.holds(self.record, task.outcome, at)))
        if task.predict_at == "every_visit":
            rules.append(("after outcome", self.after_outcome))
        return [*rules, ("no follow-up", lambda at: self.end(at) <= at)]

    def short_history(self, at: dt.datetime) -> bool:
        times = [time for times in self.visits(self.ever_readable()).values() for time in times if time <= at]
        return not times or (at - min(times)) / DAY < self.task.require.history_days

    @staticmethod
    def holds(rows: list[Row], predicate: Predicate, at: dt.datetime) -> bool:
        return any(matches(row, predicate) for row in rows if row.time is None or row.time <= at)

    def after_outcome(self, at: dt.datetime) -> bool:
        index = min(self.index(self.task.index))
        return any(index < time <= at for time in self.times_of(self.task.outcome, *self.task.competing.values()))

    def end(self, at: dt.datetime) -> dt.datetime:
        ends = [self.last, self.death or dt.datetime.max]
        end = self.task.follow_up.end
        if not isinstance(end, str) and end.date is not None:
            ends.append(start_of(end.date))
        if not isinstance(end, str) and end.code is not None:
            ends += [time for time in self.times_of(Predicate(code=end.code)) if time > at]
        return min(ends)

    def follow(self, at: dt.datetime) -> Label:
        end = self.end(at)
        found = []
        for event, predicate in enumerate((self.task.outcome, *self.task.competing.values()), start=1):
            found += [(time, event) for time in self.times_of(predicate) if at < time <= end]
        time, event = min(found, default=(end, 0))
        return Label(at, (time - at) / DAY, event)

    def labels(self) -> list[Label] | str:
        """The rows that stay, or the name of the rule that removes the last one."""
        task = self.task
        evaluate_age = None if task.evaluate_at is None else task.evaluate_at.age
        ages = (task.index.age, task.require.age_min, task.require.age_max, evaluate_age)
        if self.birth is None and any(age is not None for age in ages):
            return "no birth"
        if not self.index(task.index):
            return "no index"
        rows = self.candidates()
        if not rows:
            return "no visit"
        for name, goes in self.rules():
            rows = [row for row in rows if not goes(row)]
            if not rows:
                return name
        return [self.follow(row) for row in rows]

    def evaluated(self, rows: list[Label]) -> list[Label]:
        """Of every visit the first at or after evaluate_at."""
        if self.task.predict_at == "index":
            return rows
        due = self.index(self.task.evaluate_at or self.task.index)
        return [row for row in rows if due and row.prediction_time >= min(due)][:1]


def draw(subject: int) -> float:
    """A number in [0, 1) from the subject and the split seed, 0."""
    digest = hashlib.blake2b(f"index/0/{subject}".encode(), digest_size=8).digest()
    return (int.from_bytes(digest, "big") >> 11) / 2**53


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


def cohort(
    records: dict[int, list[Row]], task: TaskConfig, *, by_column: bool = False
) -> tuple[dict[int, list[Label]], Counter[str]]:
    """Everybody's rows, and how many subjects each rule removed."""
    results = {number: Subject(record, task, number, by_column).labels() for number, record in records.items()}
    kept = {number: result for number, result in results.items() if not isinstance(result, str)}
    return kept, Counter(result for result in results.values() if isinstance(result, str))
