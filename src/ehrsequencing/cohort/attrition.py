"""How many subjects each rule removes, and why; for people, with small cells suppressed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import polars as pl

from ehrsequencing.config import MIN_CELL

SCHEMA = {
    "rule": pl.String,
    "removed": pl.Int64,
    "remaining": pl.Int64,
    "why": pl.String,
    "rows_removed": pl.Int64,
    "rows": pl.Int64,
}


@dataclass(frozen=True)
class Rule:
    """One reason to leave a row out: ``removes`` is true on the rows it concerns (null means false)."""

    name: str
    why: str
    removes: pl.Expr


@dataclass
class Attrition:
    """Applies rules to a table of rows (subject and prediction_time), in order, and remembers what each removed.

    ``removed`` and ``remaining`` count subjects: a rule removes a subject with its last row.
    """

    steps: list[tuple[str, int, int, str, int, int]] = field(default_factory=list)

    def start(self, rows: pl.DataFrame) -> pl.DataFrame:
        """Record where the counting starts."""
        self.steps.append(("subjects", 0, _subjects(rows), "everybody in the data", 0, rows.height))
        return rows

    def apply(self, rows: pl.DataFrame, rules: Sequence[Rule]) -> pl.DataFrame:
        """The rows that every rule leaves, each rule counted on what the ones before it left."""
        for rule in rules:
            rows = self.record(rule.name, rule.why, rows, rows.filter(~rule.removes.fill_null(False)))
        return rows

    def record(self, name: str, why: str, before: pl.DataFrame, after: pl.DataFrame) -> pl.DataFrame:
        """Count what a step made of the rows, and give back what it left."""
        people = _subjects(after)
        self.steps.append((name, _subjects(before) - people, people, why, before.height - after.height, after.height))
        return after

    def table(self) -> pl.DataFrame:
        """``rule, removed, remaining, why, rows_removed, rows``, one row a rule; exact counts, for programs."""
        return pl.DataFrame(self.steps, schema=SCHEMA, orient="row")


def _subjects(rows: pl.DataFrame) -> int:
    return rows["subject_id"].n_unique()


def suppress(counts: Sequence[int]) -> list[str]:
    """Counts of patients as text for people: below MIN_CELL they read "<10", and then every other one is rounded to
    tens ("~720"), since a suppressed cell could be had again by subtraction.

    >>> suppress([724, 3, 0, 721])
    ['~720', '<10', '0', '~720']
    >>> suppress([724, 24, 700])
    ['724', '24', '700']
    """
    small = any(0 < count < MIN_CELL for count in counts)
    return [_shown(count, small) for count in counts]


def _shown(count: int, rounded: bool) -> str:
    if 0 < count < MIN_CELL:
        return f"<{MIN_CELL}"
    return f"~{round(count / MIN_CELL) * MIN_CELL}" if rounded and count else str(count)


def for_people(attrition: pl.DataFrame) -> pl.DataFrame:
    """The attrition table with its counts as text, suppressed together."""
    counts = suppress([*attrition["removed"], *attrition["remaining"]])
    removed, remaining = counts[: attrition.height], counts[attrition.height :]
    return attrition.with_columns(removed=pl.Series(removed), remaining=pl.Series(remaining))


def aligned(table: pl.DataFrame) -> str:
    """A table of text as aligned columns, numbers to the right."""
    columns = [[name, *table[name].cast(pl.String).fill_null("").to_list()] for name in table.columns]
    numeric = [all(cell.lstrip("~<").isdigit() for cell in column[1:]) for column in columns]
    widths = [max(map(len, column)) for column in columns]
    lines = (
        "  ".join(
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(row, widths, numeric, strict=True)
        )
        for row in zip(*columns, strict=True)
    )
    return "\n".join(line.rstrip() for line in lines)
