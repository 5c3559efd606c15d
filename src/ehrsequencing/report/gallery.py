"""Every figure of the page in its order: when it is drawn, what draws it, and the numbers beneath it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from markupsafe import Markup

from ehrsequencing.cohort.words import in_days
from ehrsequencing.report import bars, courses, figures, lines, numbers
from ehrsequencing.report.contents import Summary
from ehrsequencing.report.findings import best_of
from ehrsequencing.report.flow import flow
from ehrsequencing.report.numbers import Numbers


@dataclass(frozen=True)
class Drawn:
    """A figure as it stands on the page; the numbers are None where the table is on the page already."""

    svg: Markup
    numbers: Numbers | None
    number: int = 0
    what: str = ""


Drawing = Callable[[Summary], Iterator[Drawn]]


def _flow(s: Summary) -> Iterator[Drawn]:
    if s.attrition:
        yield Drawn(flow(s), None)


def _forest(s: Summary) -> Iterator[Drawn]:
    if any(math.isfinite(row.uno_c.value) for row in s.rows) and len(s.rows) > 1:
        yield Drawn(figures.forest(s.rows, s.against), numbers.of_forest(s.rows))


def _over_time(measure: str) -> Drawing:
    def draw(s: Summary) -> Iterator[Drawn]:
        for panel in s.over_time:
            if panel.measure == measure:
                yield Drawn(lines.over_time(panel), numbers.of_over_time(panel))

    return draw


def _training(s: Summary) -> Iterator[Drawn]:
    blocks = figures.training(s.runs) if s.runs else []
    for k, block in enumerate(blocks):
        yield Drawn(block, numbers.of_training(s.runs) if k == len(blocks) - 1 else None)


def _footprint(s: Summary) -> Iterator[Drawn]:
    drawn = figures.footprint(s.rows)
    if drawn is not None:
        yield Drawn(drawn, numbers.of_footprint(s.rows))


def _calibration(s: Summary) -> Iterator[Drawn]:
    for k, horizon in enumerate(dict.fromkeys(curve.horizon for curve in s.calibration)):
        curves = [curve for curve in s.calibration if curve.horizon == horizon]
        said = in_days(horizon)
        yield Drawn(
            figures.calibration(curves, said, f"calibration{k}"), numbers.of_calibration(curves), what=f"at {said}"
        )


def _incidence(s: Summary) -> Iterator[Drawn]:
    if s.incidence:
        yield Drawn(courses.incidence(s.incidence), numbers.of_incidence(s.incidence))


def _decision(s: Summary) -> Iterator[Drawn]:
    if s.decisions:
        yield Drawn(lines.decisions(s.decisions), numbers.of_decisions(s.decisions))


def _thirds(s: Summary) -> Iterator[Drawn]:
    if s.thirds:
        yield Drawn(courses.thirds(s.thirds), numbers.of_thirds(s.thirds))


def _examples(s: Summary) -> Iterator[Drawn]:
    if s.examples:
        yield Drawn(lines.examples(s.examples), numbers.of_examples(s.examples))


def _trajectories(s: Summary) -> Iterator[Drawn]:
    if s.trajectories:
        drawn = courses.trajectories(s.trajectories, in_days(s.horizon))
        yield Drawn(drawn, numbers.of_trajectories(s.trajectories))


def _subgroups(s: Summary) -> Iterator[Drawn]:
    model, measures = subgroup_model(s), subgroup_measures(s)
    if model and measures and any(model in group.metrics for each in s.subgroups for group in each.groups):
        drawn = bars.subgroups(s.subgroups, model, measures)
        yield Drawn(drawn, numbers.of_subgroups(s.subgroups, model, measures))


def _influence(s: Summary) -> Iterator[Drawn]:
    if s.attributions and s.attributions.codes:
        yield Drawn(bars.influence(s.attributions, in_days(s.attributions.horizon)), None)


FIGURES: dict[str, Drawing] = {
    "flow": _flow,
    "training": _training,
    "footprint": _footprint,
    "forest": _forest,
    "auc": _over_time("auc"),
    "brier": _over_time("brier"),
    "calibration": _calibration,
    "incidence": _incidence,
    "decision": _decision,
    "thirds": _thirds,
    "examples": _examples,
    "trajectories": _trajectories,
    "subgroups": _subgroups,
    "influence": _influence,
}
"""In the order of the page."""


def draw(summary: Summary) -> dict[str, tuple[Drawn, ...]]:
    """Every figure the summary has the data for, by name, numbered through the page; none of a name: an empty tuple."""
    number, gallery = 0, {}
    for name, drawing in FIGURES.items():
        shown = []
        for drawn in drawing(summary):
            number += 1
            shown.append(Drawn(drawn.svg, drawn.numbers, number, drawn.what))
        gallery[name] = tuple(shown)
    return gallery


def subgroup_model(summary: Summary) -> str:
    """Whose figures are drawn by subgroup: of files the one that was asked about, else the best model there."""
    present = {model for each in summary.subgroups for group in each.groups for model in group.metrics}
    asked = [row for row in summary.rows if row.kind == "predictions" and row.model in present]
    best = best_of(asked or [row for row in summary.rows if row.model in present])
    return best.model if best is not None else next(iter(sorted(present)), "")


def subgroup_measures(summary: Summary) -> list[tuple[str, str, float | None]]:
    """What is shown by subgroup: ranking, and calibration at the horizon, where any group has it."""
    horizon = in_days(summary.horizon)
    groups = [group for each in summary.subgroups for group in each.groups]
    known = {name for group in groups for figures in group.metrics.values() for name in figures}
    measures: list[tuple[str, str, float | None]] = [
        ("uno_c", "Uno C", None),
        (f"oe@{summary.horizon:.10g}", f"observed / expected at {horizon}", 1.0),
        (f"slope@{summary.horizon:.10g}", f"calibration slope at {horizon}", 1.0),
    ]
    return [measure for measure in measures if measure[0] in known]
