"""From a MEDS dataset and a task to a cohort: the story, one step a function."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from ehrsequencing.cohort import subjects as facts
from ehrsequencing.cohort.attrition import Attrition, Rule, aligned, for_people
from ehrsequencing.cohort.labels import read_labels
from ehrsequencing.cohort.predicates import compile_predicate, describe_predicate
from ehrsequencing.cohort.result import SCHEMA, Cohort
from ehrsequencing.cohort.rules import birth_rules, exclude_rules, index_rules, outcome_rules, require_rules
from ehrsequencing.cohort.times import birthday, days, midnight
from ehrsequencing.config import TRAIN, IndexConfig, Predicate, TaskConfig
from ehrsequencing.errors import EhrError, Exit
from ehrsequencing.events import MedsDataset, assign_splits

ROWS = ["subject_id", "prediction_time"]
NO_RECORDS = Rule("no records", "in the label file, but not in the data", pl.col("recorded").is_null())


def build_cohort(dataset: MedsDataset, task: TaskConfig, *, split_seed: int = 0) -> Cohort:
    """Apply the task's rules to every subject, in their order, and read what happened to those who are left.

    Splits are the dataset's own where it brings some, otherwise made from ``split_seed`` and the subject's id.

    Raises:
        EhrError: (COHORT) a predicate names no code that occurs; nobody is left; no outcome in the training split
            (within ``horizon_days``, where given); a subject twice in the label file.
    """
    people, attrition = label_subjects(dataset.scan(), with_labels_beside(dataset, task))
    _refuse_empty(people, task, attrition)
    table = _with_splits(people, dataset, split_seed).select(pl.col(n).cast(t) for n, t in SCHEMA.items())
    _refuse_without_events(table, task)
    return Cohort(table, attrition.table(), task)


def label_subjects(events: pl.LazyFrame, task: TaskConfig) -> tuple[pl.DataFrame, Attrition]:
    """``subject_id, prediction_time, duration, event`` (and the facts behind them) of whom the rules leave, if any."""
    predicates = Predicates.compile(task, facts.distinct_codes(events), follow_up=True)
    attrition = Attrition()
    people = _eligible(events, task, task.index, predicates, attrition, follow_up=True)
    people = people.with_columns(end=pl.min_horizontal("last_record", "death"))
    return _with_outcome(attrition.apply(people, outcome_rules(task))), attrition


def prediction_rows(dataset: MedsDataset, task: TaskConfig, labels: Path | None = None) -> pl.DataFrame:
    """``subject_id, prediction_time`` of everybody a model for ``task`` may be asked about, sorted by subject.

    The index rule (or the label file given) with ``require`` and ``exclude``; no outcome or follow-up is needed.

    Raises:
        EhrError: (COHORT) nobody is left, with the attrition table.
    """
    return eligible(dataset, task, labels)[0]


def eligible(dataset: MedsDataset, task: TaskConfig, labels: Path | None = None) -> tuple[pl.DataFrame, pl.DataFrame]:
    """The same as :func:`prediction_rows`, with the attrition table."""
    events = dataset.scan()
    predicates = Predicates.compile(task, facts.distinct_codes(events), follow_up=False)
    attrition = Attrition()
    index = with_labels_beside(dataset, task).index if labels is None else IndexConfig(labels=labels)
    people = _eligible(events, task, index, predicates, attrition, follow_up=False)
    _refuse_empty(people, task, attrition)
    return people.select(ROWS), attrition.table()


def with_labels_beside(dataset: MedsDataset, task: TaskConfig) -> TaskConfig:
    """The task, a relative label file looked for in the dataset's folder first, then where the program runs."""
    labels = task.index.labels
    if labels is None or not (dataset.root / labels).exists():
        return task
    return task.model_copy(update={"index": task.index.model_copy(update={"labels": dataset.root / labels})})


@dataclass(frozen=True)
class Predicates:
    """The task's predicates, compiled against the codes that occur."""

    index: pl.Expr | None
    exclude: list[pl.Expr]
    outcome: pl.Expr | None

    @classmethod
    def compile(cls, task: TaskConfig, codes: Sequence[str], *, follow_up: bool) -> Predicates:
        """On new data (no ``follow_up``) the outcome is not looked for, and a few patients need not have every code."""

        def compiled(predicate: Predicate, where: str) -> pl.Expr:
            return compile_predicate(predicate, codes, f"task {task.name}, {where}", must_occur=follow_up)

        code = task.index.code
        return cls(
            index=None if code is None else compiled(Predicate(code=code), "index.code"),
            exclude=[compiled(predicate, f"exclude.{i}") for i, predicate in enumerate(task.exclude)],
            outcome=compiled(task.outcome, "outcome") if follow_up else None,
        )


def _eligible(
    events: pl.LazyFrame,
    task: TaskConfig,
    index: IndexConfig,
    predicates: Predicates,
    attrition: Attrition,
    *,
    follow_up: bool,
) -> pl.DataFrame:
    """Subjects with a prediction_time whom neither ``require`` nor ``exclude`` leaves out, sorted by subject."""
    people = facts.landmarks(events, predicates.index if index.code is not None else None)
    people = _with_prediction_time(people, index, attrition)
    people = attrition.apply(people, birth_rules(task))
    people = attrition.apply(people, index_rules(index, follow_up=follow_up))
    seen = facts.at_prediction(events, people, task.input, predicates.exclude, predicates.outcome)
    people = people.join(seen, on="subject_id", how="left", maintain_order="left")
    return attrition.apply(people, [*require_rules(task.require), *exclude_rules(task)])


def _with_prediction_time(people: pl.DataFrame, index: IndexConfig, attrition: Attrition) -> pl.DataFrame:
    if index.labels is not None:
        labels = read_labels(index.labels)
        people = people.with_columns(recorded=pl.lit(True))
        people = people.join(labels, on="subject_id", how="full", coalesce=True).sort("subject_id")
        return attrition.apply(attrition.start(people), [NO_RECORDS])
    attrition.start(people)
    if index.age is not None:
        return people.with_columns(prediction_time=birthday(pl.col("birth"), index.age))
    if index.date is not None:
        return people.with_columns(prediction_time=pl.lit(midnight(index.date, "index.date"), dtype=pl.Datetime("us")))
    return people.with_columns(prediction_time=pl.col("index_event"))


def _with_outcome(people: pl.DataFrame) -> pl.DataFrame:
    """``duration`` in days to the outcome, or to the end of follow-up; an outcome recorded after death is none."""
    happened = pl.col("outcome_time").is_not_null() & (pl.col("outcome_time") <= pl.col("end"))
    stop = pl.when(happened).then("outcome_time").otherwise("end")
    return people.with_columns(event=happened, duration=days(stop - pl.col("prediction_time")))


def _with_splits(table: pl.DataFrame, dataset: MedsDataset, seed: int) -> pl.DataFrame:
    own = dataset.splits()
    if own is None:
        return table.with_columns(split=pl.Series(assign_splits(table["subject_id"].to_numpy(), seed)))
    table = table.join(own.select("subject_id", "split"), on="subject_id", how="left", maintain_order="left")
    missing = table["split"].null_count()
    if missing:
        what = f"{missing} of the {table.height} subjects of the cohort have no split"
        fix = "complete metadata/subject_splits.parquet, or remove it to have splits made"
        raise EhrError(what, str(dataset.root), fix)
    return table


def _refuse_empty(people: pl.DataFrame, task: TaskConfig, attrition: Attrition) -> None:
    if people.is_empty():
        table = aligned(for_people(attrition.table()))
        fix = "loosen the rule that removes most"
        raise EhrError(f"nobody is left in the cohort\n{table}", f"task {task.name}", fix, code=Exit.COHORT)


def _refuse_without_events(table: pl.DataFrame, task: TaskConfig) -> None:
    horizon = float("inf") if task.horizon_days is None else task.horizon_days
    happened = table.filter((pl.col("event") == 1) & (pl.col("duration") <= horizon))
    if TRAIN not in happened["split"]:
        within = "" if task.horizon_days is None else f" within {horizon:g} days"
        what = f"no outcome ({describe_predicate(task.outcome)}){within} in the training split"
        fix = f"{happened.height} in the other splits, {table.height} subjects in all: take another outcome or horizon"
        raise EhrError(what, f"task {task.name}", fix, code=Exit.COHORT)
