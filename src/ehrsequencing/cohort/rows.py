"""From events and a task to labelled rows: candidates, the facts about them, the rules in order, what happened."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import polars as pl

from ehrsequencing.cohort import rules, subjects
from ehrsequencing.cohort.attrition import Attrition
from ehrsequencing.cohort.cut import ever_readable
from ehrsequencing.cohort.index import earliest, index_times
from ehrsequencing.cohort.known import as_known
from ehrsequencing.cohort.labels import read_labels
from ehrsequencing.cohort.predicates import compile_predicate, distinct_codes
from ehrsequencing.cohort.times import days, midnight
from ehrsequencing.config import FollowUpEnd, IndexConfig, Predicate, TaskConfig
from ehrsequencing.progress import stages

NO_MOMENTS = pl.DataFrame(schema={"subject_id": pl.Int64, "time": pl.Datetime("us")})
NO_VISITS = pl.DataFrame(schema={"subject_id": pl.Int64, "first": pl.Datetime("us"), "last": pl.Datetime("us")})


@dataclass(frozen=True)
class Question:
    """A task asked of one dataset.

    Attributes:
        events: as recorded. ``known``: the same at the times they became known.
        parts: the events again in groups that share no subject, which are read one after the other.
        codes: those that occur.
        visit_column: what a visit is; None: a calendar day.
        seed: draws the rows of ``{event: random}``.
        follow_up: whether there is any; without it (new data) nothing after prediction_time is looked for, and a few
            patients need not have every code.
    """

    task: TaskConfig
    events: pl.LazyFrame
    known: pl.LazyFrame
    parts: Sequence[pl.LazyFrame]
    codes: Sequence[str]
    visit_column: str | None
    seed: int
    follow_up: bool
    attrition: Attrition = field(default_factory=Attrition)

    @classmethod
    def of(
        cls, parts: Sequence[pl.LazyFrame], task: TaskConfig, *, visit_column: str | None, seed: int, follow_up: bool
    ) -> Question:
        events = pl.concat(parts)
        known = as_known(events, task.delay, visit_column)
        question = cls(task, events, known, parts, distinct_codes(events), visit_column, seed, follow_up)
        question.refuse_unused_predicates()
        return question

    def of_part(self, events: pl.LazyFrame) -> Question:
        """The same asked of one of the parts, with a count of its own."""
        known = as_known(events, self.task.delay, self.visit_column)
        return replace(self, events=events, known=known, parts=(events,), attrition=Attrition())

    def predicate(self, predicate: Predicate, where: str) -> pl.Expr:
        place = f"task {self.task.name}, {where}"
        return compile_predicate(predicate, self.codes, place, must_occur=self.follow_up)

    def refuse_unused_predicates(self) -> None:
        """EhrError where ``input.exclude`` or ``delay`` name no code that occurs."""
        for number, predicate in enumerate(self.task.input.exclude):
            self.predicate(predicate, f"input.exclude.{number}")
        for number, delay in enumerate(self.task.delay):
            self.predicate(delay, f"delay.{number}")

    @property
    def readable(self) -> pl.LazyFrame:
        return self.known.filter(ever_readable(self.task.input, self.codes))


def label_rows(question: Question, *, censor_before: dt.datetime | None = None) -> pl.DataFrame:
    """The rows that the rules leave (subject_id, prediction_time and the facts about them), sorted by both.

    With follow-up they carry ``duration`` (days) and ``event`` (0 censored, 1 the outcome, 2, … the competing events).
    Rows before ``censor_before`` are followed up to it at most. Memory holds the facts of one part at a time.
    """
    parts = [question.of_part(events) for events in question.parts]
    done = stages("reading events", 1 + 4 * len(parts))
    people = _people(question)
    done()
    found = [_label_part(part, own, censor_before, done) for part, own in zip(parts, people, strict=True)]
    question.attrition.add([part.attrition for part in parts])
    rows = pl.concat(found)
    rows = _with_outcome(rows, len(question.task.causes)) if question.follow_up else rows
    return rows.sort(subjects.KEYS)


class _People(NamedTuple):
    """Whom a part is about.

    Attributes:
        facts: ``subjects.landmarks`` of those recorded, ``data_end`` being the last record of anybody in any part.
        ids: theirs and, in the first part, those of a label file that are recorded nowhere.
    """

    facts: pl.DataFrame
    ids: pl.DataFrame


def _people(question: Question) -> list[_People]:
    outcome = question.predicate(question.task.outcome, "outcome")
    each = [subjects.landmarks(events, outcome) for events in question.parts]
    everybody = pl.concat(each)
    end = everybody["last_record"].max()
    dated = [facts.with_columns(pl.lit(end, pl.Datetime("us")).alias("data_end")) for facts in each]
    found = [_People(facts, facts.select("subject_id")) for facts in dated]
    if question.task.index.labels is not None:
        asked = read_labels(question.task.index.labels).select("subject_id").unique()
        strangers = asked.join(everybody, on="subject_id", how="anti")
        found[0] = _People(found[0].facts, pl.concat([found[0].ids, strangers]))
    return found


def _label_part(
    question: Question, people: _People, censor_before: dt.datetime | None, done: Callable[[], None]
) -> pl.DataFrame:
    task, attrition = question.task, question.attrition
    moments = _moments(question)
    done()
    visits = _visits(question)
    done()
    rows = attrition.start(_candidates(question, people, moments, visits))
    rows = attrition.apply(rows, rules.index_rules(task, follow_up=question.follow_up))
    rows = _with_history(rows, question, visits)
    done()
    rows = attrition.apply(rows, [*rules.require_rules(task.require), *rules.exclude_rules(task)])
    rows = _with_events(rows, question, moments, censor_before)
    rows = attrition.apply(rows, rules.outcome_rules(task, follow_up=question.follow_up))
    done()
    return rows


def _moments(question: Question) -> dict[str, pl.DataFrame]:
    """Times of the index event, of each cause (``cause_1``, …) and of the end of follow-up."""
    task = question.task
    wanted = {
        f"cause_{number}": question.predicate(predicate, where)
        for number, (where, predicate) in enumerate(_causes(task).items(), start=1)
    }
    for name, index in (("index", task.index), ("evaluate_at", task.evaluate_at)):
        if index is not None and index.code is not None:
            wanted[name] = question.predicate(Predicate(code=index.code), f"{name}.code")
    end = task.follow_up.end
    if isinstance(end, FollowUpEnd) and end.code is not None and question.follow_up:
        wanted["end"] = question.predicate(Predicate(code=end.code), "follow_up.end.code")
    return subjects.moments(question.events, wanted)


def _causes(task: TaskConfig) -> dict[str, Predicate]:
    return {"outcome": task.outcome, **{f"competing.{name}": event for name, event in task.competing.items()}}


def _visits(question: Question) -> pl.DataFrame:
    """Every visit, where something in the task asks for visits."""
    task = question.task
    every = task.predict_at == "every_visit"
    counted = task.require.visits > 0 or task.require.history_days > 0
    by_history = any(i is not None and i.after_history_days is not None for i in (task.index, task.evaluate_at))
    if every or counted or by_history:
        return subjects.visits(question.readable, question.visit_column)
    return NO_VISITS


def _candidates(
    question: Question, people: _People, moments: dict[str, pl.DataFrame], visits: pl.DataFrame
) -> pl.DataFrame:
    """Everybody, once for each prediction_time (null: none), with ``recorded`` and ``index_time``."""
    task = question.task

    def times(name: str, index: IndexConfig) -> pl.DataFrame:
        found = index_times(index, people.facts, moments.get(name, NO_MOMENTS), visits, question.seed)
        return found.join(people.ids, on="subject_id", how="semi", maintain_order="left")

    found = times("index", task.index)
    everybody = people.facts.with_columns(recorded=pl.lit(True))
    if task.predict_at == "index":
        rows = everybody.join(found, on="subject_id", how="full", coalesce=True)
        return rows.with_columns(prediction_time="index_time").sort("subject_id", "index_time")
    rows = everybody.join(earliest(found), on="subject_id", how="full", coalesce=True)
    evaluated = found if task.evaluate_at is None else times("evaluate_at", task.evaluate_at)
    evaluated = earliest(evaluated).rename({"index_time": "evaluate_time"})
    rows = rows.join(evaluated, on="subject_id", how="left", coalesce=True)
    ends = visits.select("subject_id", prediction_time="last").unique()
    later = ends.join(rows.select("subject_id", "index_time"), on="subject_id")
    later = later.filter(pl.col("prediction_time") >= pl.col("index_time")).drop("index_time")
    return rows.join(later, on="subject_id", how="left").sort("subject_id", "prediction_time")


def _with_history(rows: pl.DataFrame, question: Question, visits: pl.DataFrame) -> pl.DataFrame:
    """``first_readable``, ``visits`` (so far, within the look-back) and, for each ``exclude``, when it became known."""
    task = question.task
    begin = visits.group_by("subject_id").agg(first_readable=pl.col("first").min())
    rows = rows.join(begin, on="subject_id", how="left", maintain_order="left")
    rows = rows.with_columns(visits=_visits_so_far(rows, question, visits))
    if not task.exclude:
        return rows
    predicates = {f"exclude_{i}": question.predicate(item, f"exclude.{i}") for i, item in enumerate(task.exclude)}
    return rows.join(
        subjects.first_known(question.known, predicates), on="subject_id", how="left", maintain_order="left"
    )


def _visits_so_far(rows: pl.DataFrame, question: Question, visits: pl.DataFrame) -> pl.Series:
    lookback = question.task.input.lookback_days
    if lookback is None or question.task.require.visits == 0:
        return subjects.count_up_to(rows, visits.select("subject_id", time="first"))
    stretches = subjects.in_sight(question.readable, question.visit_column, lookback)
    gone = stretches.select("subject_id", time=pl.col("last") + dt.timedelta(days=lookback))
    entered = subjects.count_up_to(rows, stretches.select("subject_id", time="first"))
    return entered.cast(pl.Int64) - subjects.count_up_to(rows, gone, strictly=True).cast(pl.Int64)


def _with_events(
    rows: pl.DataFrame, question: Question, moments: dict[str, pl.DataFrame], censor_before: dt.datetime | None
) -> pl.DataFrame:
    """The next event of each cause (``cause_1``, …), ``end`` of follow-up, and, with a prediction at every visit,
    ``stopped``: the first event of any cause after the index."""
    names = [name for name in moments if name.startswith("cause_")]
    if question.task.predict_at == "every_visit":
        begin = rows.select("subject_id", prediction_time="index_time")
        stops = [subjects.next_after(begin, moments[name]).alias(name) for name in names]
        rows = rows.with_columns(pl.DataFrame(stops).select(pl.min_horizontal(names)).to_series().alias("stopped"))
    if not question.follow_up:
        return rows
    later = [subjects.next_after(rows, moments[name]).alias(name) for name in names]
    ends = ["last_record", "death"]
    end = question.task.follow_up.end
    if "end" in moments:
        rows = rows.with_columns(subjects.next_after(rows, moments["end"]).alias("end_event"))
        ends.append("end_event")
    limits = [_moment(midnight(end.date, "follow_up.end.date"))] if isinstance(end, FollowUpEnd) and end.date else []
    if censor_before is not None:
        limits.append(pl.when(pl.col("prediction_time") < censor_before).then(_moment(censor_before)))
    return rows.with_columns(later).with_columns(end=pl.min_horizontal(*ends, *limits))


def _moment(time: dt.datetime) -> pl.Expr:
    return pl.lit(time, dtype=pl.Datetime("us"))


def _with_outcome(rows: pl.DataFrame, n_causes: int) -> pl.DataFrame:
    """``duration`` in days to the earliest event of any cause, or to the end of follow-up; ``event`` says which.

    Of events at the same time the outcome counts, then the competing ones in the task's order. Events after the end of
    follow-up are none.
    """
    names = [f"cause_{number}" for number in range(1, n_causes + 1)]
    first = pl.min_horizontal(names)
    cause = pl.coalesce(pl.when(pl.col(name) == first).then(number) for number, name in enumerate(names, start=1))
    happened = (first <= pl.col("end")).fill_null(False)
    return rows.with_columns(
        event=pl.when(happened).then(cause).otherwise(0).cast(pl.Int8),
        duration=days(pl.when(happened).then(first).otherwise("end") - pl.col("prediction_time")),
    )
