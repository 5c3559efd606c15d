"""How many subjects each rule removes, and why; for people, with small cells suppressed."""

from __future__ import annotations

import re
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

    def add(self, parts: Sequence[Attrition]) -> None:
        """The counts of groups that share no subject, each under the same rules, added up."""
        for steps in zip(*(part.steps for part in parts), strict=True):
            name, _, _, why, _, _ = steps[0]
            removed, remaining, rows_removed, rows = (sum(step[at] for step in steps) for at in (1, 2, 4, 5))
            self.steps.append((name, removed, remaining, why, rows_removed, rows))

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


def cell(count: int) -> str:
    """A count of patients for people; below MIN_CELL only that it is.

    >>> cell(7), cell(0), cell(1234)
    ('<10', '0', '1,234')
    """
    return f"<{MIN_CELL}" if 0 < count < MIN_CELL else f"{count:,}"


@dataclass(frozen=True)
class AttritionGroup:
    """Consecutive rules that share one printed count: one rule, or several where a single count would be small."""

    rules: tuple[tuple[str, str], ...]
    removed: str
    remaining: str


def suppress_attrition(steps: Sequence[tuple[str, str, int, int]]) -> tuple[str, list[AttritionGroup]]:
    """Counts of an attrition table of which none below MIN_CELL is printed or can be had by subtraction.

    A rule that removed fewer than MIN_CELL shares one count with its neighbours, until the shared count is large
    enough; where that is impossible, the starting number is withheld.

    Args:
        steps: (rule, why, removed, remaining) in order; a first one that removes nobody is the start.
    Returns:
        The starting number and the groups, as printed.

    >>> start, groups = suppress_attrition([("age", "", 4, 996), ("history", "", 96, 900), ("washout", "", 50, 850)])
    >>> start, [(len(group.rules), group.removed, group.remaining) for group in groups]
    ('1,000', [(2, '100', '900'), (1, '50', '850')])
    """
    if not steps:
        return "", []
    start = steps[0][2] + steps[0][3]
    groups = _merge_small(steps[1:] if steps[0][2] == 0 else steps)
    shown = [
        AttritionGroup(
            tuple((rule, why) for rule, why, _, _ in group),
            "withheld" if 0 < group[-1][3] < MIN_CELL else cell(sum(step[2] for step in group)),
            cell(group[-1][3]),
        )
        for group in groups
    ]
    withheld = 0 < start - steps[-1][3] < MIN_CELL
    return ("withheld" if withheld else cell(start)), shown


def _merge_small(steps: Sequence[tuple[str, str, int, int]]) -> list[list[tuple[str, str, int, int]]]:
    """Neighbouring steps joined until each group removed nothing or at least MIN_CELL; one group where they cannot."""
    groups: list[list[tuple[str, str, int, int]]] = []
    open_group: list[tuple[str, str, int, int]] = []
    for step in steps:
        open_group.append(step)
        total = sum(s[2] for s in open_group)
        if total == 0 or total >= MIN_CELL:
            groups.append(open_group)
            open_group = []
    while open_group:
        if not groups or sum(s[2] for s in open_group) >= MIN_CELL:
            groups.append(open_group)
            break
        open_group = groups.pop() + open_group
    return groups


def for_people(attrition: pl.DataFrame) -> pl.DataFrame:
    """``rule, removed, remaining, why`` as text, small counts suppressed; of rules that share one, the last has it."""
    steps = attrition.select("rule", "why", "removed", "remaining").rows()
    start, groups = suppress_attrition(steps)
    rows = [(steps[0][0], "0", start, steps[0][1])] if steps else []
    for group in groups:
        rows += [(rule, "", "", why) for rule, why in group.rules[:-1]]
        rows.append((group.rules[-1][0], group.removed, group.remaining, group.rules[-1][1]))
    return pl.DataFrame(rows, schema=dict.fromkeys(("rule", "removed", "remaining", "why"), pl.String), orient="row")


def aligned(table: pl.DataFrame) -> str:
    """A table of text as aligned columns, numbers to the right."""
    columns = [[name, *table[name].cast(pl.String).fill_null("").to_list()] for name in table.columns]
    numeric = [all(re.fullmatch(r"([~<]?[\d,]+|withheld)?", text) for text in column[1:]) for column in columns]
    widths = [max(map(len, column)) for column in columns]
    lines = (
        "  ".join(
            text.rjust(width) if right else text.ljust(width)
            for text, width, right in zip(row, widths, numeric, strict=True)
        )
        for row in zip(*columns, strict=True)
    )
    return "\n".join(line.rstrip() for line in lines)
