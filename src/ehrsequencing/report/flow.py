"""The flow of patients as a diagram: who was in the records, whom each rule removed, who was evaluated."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence

from markupsafe import Markup, escape

from ehrsequencing.cohort.attrition import AttritionGroup
from ehrsequencing.report.contents import Summary
from ehrsequencing.report.drawing import opening

WIDTH, LINE, PAD, GAP = 860, 17, 9, 16
MAIN, ASIDE = (20, 330), (430, 420)
"""Left edge and width of the boxes of those who stay, and of those who leave."""
CHARACTERS = {MAIN[1]: 42, ASIDE[1]: 54}


def flow(summary: Summary) -> Markup:
    """Boxes from top to bottom, with a box to the right for everybody who left; counts are suppressed already."""
    parts, y = [_box(MAIN, 0, [f"In the records: {summary.start}"])], _height(1) + GAP
    previous = _height(1)
    for lines, remaining in _steps(summary):
        aside = _height(len(lines))
        parts += [_box(ASIDE, y, lines), _line(MAIN[0] + MAIN[1] / 2, previous, y + aside + GAP)]
        parts.append(_arrow(MAIN[0] + MAIN[1] / 2, y + aside / 2, ASIDE[0]))
        y += aside + GAP
        if remaining:
            parts.append(_box(MAIN, y, [f"Remaining: {remaining}"]))
            previous = y + _height(1)
            y = previous + GAP
        else:
            previous = y
    ends = [*((part.capitalize(), n, events) for part, n, events in summary.parts), _evaluated(summary)]
    parts += _ends(ends, previous, y)
    height = y + _height(2) + 4
    title = "Flow of patients"
    return Markup(opening("flow", title, _words(summary, ends), f"0 0 {WIDTH} {height:g}")) + Markup("").join(
        [*parts, Markup("</svg>")]
    )


def _steps(summary: Summary) -> Iterator[tuple[list[str], str]]:
    """Who left at each step, in lines, and who remained."""
    for group in _lossy(summary):
        lines = _wrapped([f"{rule}: {why}" if why else rule for rule, why in group.rules], ASIDE[1])
        lines[0] = f"Left out{' together' if len(group.rules) > 1 else ''}: {group.removed}"
        yield lines, group.remaining
    if summary.aside:
        yield [f"Not labelled in this study: {summary.aside}", "their records serve pretraining alone"], ""


def _lossy(summary: Summary) -> list[AttritionGroup]:
    """The rules that anybody was lost to; the table has the others, too."""
    return [group for group in summary.attrition if group.removed != "0"]


def _evaluated(summary: Summary) -> tuple[str, str, str]:
    name = "Evaluated out of fold" if summary.split == "out_of_fold" else "Evaluated"
    return name, summary.n, summary.events


def _ends(ends: Sequence[tuple[str, str, str]], above: float, y: float) -> list[Markup]:
    """The boxes at the bottom, side by side."""
    width = (WIDTH - 20 - GAP * (len(ends) - 1)) / max(len(ends), 3)
    parts = []
    for k, (name, n, events) in enumerate(ends):
        left = 10 + k * (width + GAP)
        parts.append(_box((left, width), y, [f"{name}: {n}", f"with the outcome: {events}"]))
    parts.append(_line(MAIN[0] + MAIN[1] / 2, above, y))
    return parts


def _wrapped(texts: Sequence[str], width: int) -> list[str]:
    """A first line left free, then every text in lines that fit."""
    return ["", *(line for text in texts for line in textwrap.wrap(text, CHARACTERS[width]) or [""])]


def _height(lines: int) -> float:
    return 2 * PAD + LINE * lines - 3


def _box(place: tuple[float, float], y: float, lines: Sequence[str]) -> Markup:
    left, width = place
    rows = Markup("").join(
        Markup('<text x="{}" y="{}"{}>{}</text>').format(
            f"{left + 11:g}", f"{y + PAD + LINE * k + 11:g}", Markup(' class="lead"') if k == 0 else "", escape(line)
        )
        for k, line in enumerate(lines)
    )
    return (
        Markup('<rect class="box" x="{}" y="{}" width="{}" height="{}" rx="3"/>').format(
            f"{left:g}", f"{y + 1:g}", f"{width:g}", f"{_height(len(lines)):g}"
        )
        + rows
    )


def _line(x: float, start: float, end: float) -> Markup:
    return Markup('<path class="edge" d="M{0} {1}V{2}"/>').format(f"{x:g}", f"{start + 1:g}", f"{end + 1:g}")


def _arrow(x: float, y: float, end: float) -> Markup:
    return Markup('<path class="edge" d="M{0} {1}H{2}m-5 -4l5 4l-5 4"/>').format(f"{x:g}", f"{y:g}", f"{end:g}")


def _words(summary: Summary, ends: Sequence[tuple[str, str, str]]) -> str:
    left = [f"{', '.join(rule for rule, _ in group.rules)} left out {group.removed}" for group in _lossy(summary)]
    final = [f"{name.lower()} {n}, {events} with the outcome" for name, n, events in ends]
    return "; ".join([f"{summary.start} in the records", *left, *final])
