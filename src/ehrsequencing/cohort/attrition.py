"""How many subjects each rule removes, and why; for people, with small cells suppressed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import polars as pl

from ehrsequencing.config import MIN_CELL

SCHEMA = {"rule": pl.String, "removed": pl.Int64, "remaining": pl.Int64, "why": pl.String}


@dataclass(frozen=True)
class Rule:
    """One reason to leave a subject out: ``removes`` is true on the subjects it concerns (null means false)."""

    name: str
    why: str
    removes: pl.Expr


@dataclass
class Attrition:
    """Applies rules to a table of subjects, in order, and remembers what each removed."""

    rows: list[tuple[str, int, int, str]] = field(default_factory=list)

    def start(self, subjects: pl.DataFrame) -> pl.DataFrame:
        """Record where the counting starts."""
        self.rows.append(("subjects", 0, subjects.height, "everybody in the data"))
        return subjects

    def apply(self, subjects: pl.DataFrame, rules: Sequence[Rule]) -> pl.DataFrame:
        """The subjects that every rule leaves, each rule counted on what the ones before it left."""
        for rule in rules:
            kept = subjects.filter(~rule.removes.fill_null(False))
            self.rows.append((rule.name, subjects.height - kept.height, kept.height, rule.why))
            subjects = kept
        return subjects

    def table(self) -> pl.DataFrame:
        """``rule, removed, remaining, why``, one row a rule; exact counts, for programs."""
        return pl.DataFrame(self.rows, schema=SCHEMA, orient="row")


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
