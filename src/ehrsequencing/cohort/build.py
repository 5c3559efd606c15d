"""From a MEDS dataset and a task to a cohort: the story, one step a function."""

from __future__ import annotations

from pathlib import Path

import polars as pl

from ehrsequencing.cohort.attrition import Attrition, aligned, for_people
from ehrsequencing.cohort.predicates import describe_predicate
from ehrsequencing.cohort.result import SCHEMA, Cohort
from ehrsequencing.cohort.rows import Question, label_rows
from ehrsequencing.cohort.splits import periods, subject_splits
from ehrsequencing.cohort.subgroups import subgroups
from ehrsequencing.cohort.subjects import KEYS
from ehrsequencing.cohort.times import midnight
from ehrsequencing.config import TRAIN, CalendarConfig, IndexConfig, TaskConfig
from ehrsequencing.errors import EhrError, Exit
from ehrsequencing.events import MedsDataset


def build_cohort(
    dataset: MedsDataset,
    task: TaskConfig,
    *,
    split_seed: int = 0,
    calendar: CalendarConfig | None = None,
    visit_column: str | None = None,
    learning: bool = True,
) -> Cohort:
    """Apply the task's rules to every subject, in their order, and read what happened to those who are left.

    Args:
        split_seed: makes the splits of a dataset that brings none, or of a task with ``split_by``; draws the rows of
            ``{event: random}``.
        calendar: splits by prediction_time instead; training and tuning rows are followed up to ``held_out`` at most.
        visit_column: the column of the events whose values are visits, as the tokenizer has it; None: calendar days.
        learning: whether a model is to be fitted, so that the training split must have outcomes.

    Raises:
        EhrError: (COHORT) a predicate names no code that occurs; nobody is left; no outcome in the training split
            (within ``horizon_days``, where given) that is to be learned from; a row twice in the label file.
    """
    if calendar is not None and task.split_by is not None:
        what = "split_by divides by hash, a calendar split by date"
        raise EhrError(what, f"task {task.name}, split_by", "leave out one of the two", code=Exit.CONFIG)
    censor = None if calendar is None else midnight(calendar.held_out, "split.calendar.held_out")
    resolved = with_labels_beside(dataset, task)
    question = Question.of(_scans(dataset), resolved, visit_column=visit_column, seed=split_seed, follow_up=True)
    rows = label_rows(question, censor_before=censor)
    attrition = question.attrition
    _refuse_empty(rows, task, attrition)
    if calendar is None:
        rows = _with_splits(rows, dataset, task, split_seed)
        table = at_evaluation(rows, task, attrition)
    else:
        rows, table = _by_period(rows, task, calendar, attrition)
    _refuse_empty(table, task, attrition)
    table = _typed(table)
    if learning:
        _refuse_without_events(table, task)
    visits = _typed(rows) if task.predict_at == "every_visit" else None
    where = f"task {task.name}, subgroups"
    groups = subgroups(question.known, question.codes, table, task.subgroups, where=where, must_occur=learning)
    return Cohort(table, attrition.table(), task, visits, groups)


def prediction_rows(
    dataset: MedsDataset,
    task: TaskConfig,
    labels: Path | None = None,
    *,
    split_seed: int = 0,
    visit_column: str | None = None,
) -> pl.DataFrame:
    """``subject_id, prediction_time`` of everybody a model for ``task`` may be asked about, sorted by both.

    The index rule (or the rows of the label file given) with every rule that does not need the future; a prediction at
    every visit gives every such visit.

    Raises:
        EhrError: (COHORT) nobody is left, with the attrition table.
    """
    return eligible(dataset, task, labels, split_seed=split_seed, visit_column=visit_column)[0]


def eligible(
    dataset: MedsDataset,
    task: TaskConfig,
    labels: Path | None = None,
    *,
    split_seed: int = 0,
    visit_column: str | None = None,
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """The same as :func:`prediction_rows`, with the attrition table."""
    if labels is None:
        asked = with_labels_beside(dataset, task)
    else:
        asked = task.model_copy(
            update={"index": IndexConfig(labels=labels), "predict_at": "index", "evaluate_at": None}
        )
    question = Question.of(_scans(dataset), asked, visit_column=visit_column, seed=split_seed, follow_up=False)
    rows = label_rows(question)
    _refuse_empty(rows, task, question.attrition)
    return rows.select(KEYS), question.attrition.table()


def _scans(dataset: MedsDataset) -> list[pl.LazyFrame]:
    return [part.scan() for part in dataset.parts()]


def with_labels_beside(dataset: MedsDataset, task: TaskConfig) -> TaskConfig:
    """The task, relative label files looked for in the dataset's folder first, then where the program runs."""
    found = {}
    for name in ("index", "evaluate_at"):
        index: IndexConfig | None = getattr(task, name)
        if index is not None and index.labels is not None and (dataset.root / index.labels).exists():
            found[name] = index.model_copy(update={"labels": dataset.root / index.labels})
    return task.model_copy(update=found)


def _typed(rows: pl.DataFrame) -> pl.DataFrame:
    return rows.select(pl.col(name).cast(dtype) for name, dtype in SCHEMA.items())


def at_evaluation(rows: pl.DataFrame, task: TaskConfig, attrition: Attrition) -> pl.DataFrame:
    """With a prediction at every visit, each subject's first row at or after ``evaluate_at``; otherwise every row."""
    if task.predict_at == "index":
        return rows
    due = rows.filter(pl.col("prediction_time") >= pl.col("evaluate_time"))
    first = due.unique("subject_id", keep="first", maintain_order=True)
    why = "no such visit at or after evaluate_at; of the others the first one is evaluated"
    return attrition.record("evaluate_at", why, rows, first)


def _by_period(
    rows: pl.DataFrame, task: TaskConfig, calendar: CalendarConfig, attrition: Attrition
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """The rows of each subject's own period, and those of them that are evaluated.

    Its period is that of its first row or, where ``evaluate_at`` is an age or a date still to come, of that day. Both
    are the same whatever happens later. The visit that is evaluated is not: were it to decide, whoever lives to be
    evaluated late would leave the training period, and those who have the outcome before would stay in it.
    """
    rows = rows.with_columns(periods(rows["prediction_time"], calendar))
    decides = pl.col("prediction_time").first().over("subject_id")
    due = task.evaluate_at
    if due is not None and (due.age is not None or due.date is not None):
        decides = pl.max_horizontal(decides, "evaluate_time")
    own = rows.filter(rows["split"] == periods(rows.select(decides).to_series(), calendar))
    why = "rows in another period of the calendar split than the subject's own"
    attrition.record("period", why, rows, own)
    return own, at_evaluation(own, task, attrition)


def _with_splits(rows: pl.DataFrame, dataset: MedsDataset, task: TaskConfig, seed: int) -> pl.DataFrame:
    split = pl.Series("split", subject_splits(dataset, rows["subject_id"].to_numpy(), seed, task.split_by).tolist())
    missing = rows.filter(split == "")["subject_id"].n_unique()
    if missing:
        what = f"{missing} of the {rows['subject_id'].n_unique()} subjects of the cohort have no split"
        fix = "complete metadata/subject_splits.parquet, or remove it to have splits made"
        raise EhrError(what, str(dataset.root), fix)
    return rows.with_columns(split)


def _refuse_empty(rows: pl.DataFrame, task: TaskConfig, attrition: Attrition) -> None:
    if rows.is_empty():
        table = aligned(for_people(attrition.table()))
        fix = "loosen the rule that removes most"
        raise EhrError(f"nobody is left in the cohort\n{table}", f"task {task.name}", fix, code=Exit.COHORT)


def _refuse_without_events(table: pl.DataFrame, task: TaskConfig) -> None:
    horizon = float("inf") if task.horizon_days is None else task.horizon_days
    happened = table.filter((pl.col("event") == 1) & (pl.col("duration") <= horizon))
    if TRAIN not in happened["split"]:
        within = "" if task.horizon_days is None else f" within {horizon:g} days"
        what = f"no outcome ({describe_predicate(task.outcome)}){within} in the training split"
        fix = f"{happened.height} in the other splits, {table.height} rows in all: take another outcome or horizon"
        raise EhrError(what, f"task {task.name}", fix, code=Exit.COHORT)
