"""Figures with one row a thing: performance by subgroup, and the codes that move predictions most."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
from markupsafe import Markup
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from ehrsequencing.report.contents import Attributions, CodeEffect, Group, Interval, Subgroup
from ehrsequencing.report.drawing import FAINT, RULE, STYLE, WIDTH, color, inline

LONGEST = 46
"""Characters of a label; longer ones are cut."""
POINTS = FuncFormatter(lambda share, _: f"{100 * share:+.3g}".replace("-", "−") if share else "0")
NOTHING = Interval(math.nan)


def subgroups(found: Sequence[Subgroup], model: str, measures: Sequence[tuple[str, str, float | None]]) -> Markup:
    """One model's figures by subgroup with 95% intervals, one panel a measure.

    Args:
        measures: (metric, what the axis says, where a line stands).
    """
    rows = [(f"{each.name}: {group.name}", group) for each in found for group in each.groups if model in group.metrics]
    places = [float(k) for k in range(len(rows))]
    with mpl.rc_context(STYLE):
        figure, panels = _named_rows([label for label, _ in rows], len(measures))
        for axes, (metric, said, line) in zip(panels, measures, strict=True):
            if line is not None:
                axes.axvline(line, color=FAINT, linewidth=0.7, linestyle=(0, (4, 3)))
            for y, (_, group) in zip(places, rows, strict=True):
                _interval(axes, _figure(group, model, metric), y, color(model))
            axes.set_xlabel(said)
            axes.grid(axis="x", color=RULE, linewidth=0.5)
            axes.xaxis.set_major_locator(MaxNLocator(4))
    described = "; ".join(f"{label} {_figure(group, model, measures[0][0]).value:.3f}" for label, group in rows)
    return inline(figure, "subgroups", f"{model} by subgroup", f"{measures[0][1]}: {described}.")


def _figure(group: Group, model: str, metric: str) -> Interval:
    return group.metrics.get(model, {}).get(metric, NOTHING)


def _interval(axes: Any, found: Interval, y: float, tone: str) -> None:
    if math.isfinite(found.low):
        axes.plot([found.low, found.high], [y, y], color=tone, linewidth=1.4, solid_capstyle="butt")
    if math.isfinite(found.value):
        axes.plot(found.value, y, "o", color=tone, markersize=5)


def influence(found: Attributions, horizon: str) -> Markup:
    """The most influential codes: mean attribution to the risk of the patients who have the code."""
    labels = [_label(code) for code in found.codes]
    with mpl.rc_context(STYLE):
        figure, (axes,) = _named_rows(labels, 1)
        axes.axvline(0, color=FAINT, linewidth=0.7)
        for y, code in enumerate(found.codes):
            axes.barh(y, code.mean, height=0.62, color=color(found.model), alpha=0.85 if code.mean > 0 else 0.45)
        axes.xaxis.set_major_formatter(POINTS)
        axes.set_xlabel(f"mean attribution to the risk by {horizon}, percentage points")
        axes.grid(axis="x", color=RULE, linewidth=0.5)
        axes.set_axisbelow(True)
    described = "; ".join(f"{code.code} {100 * code.mean:+.2f} points" for code in found.codes)
    return inline(figure, "influence", "The most influential codes", described)


def _label(code: CodeEffect) -> str:
    """
    >>> _label(CodeEffect("ICD10CM//E11", "Type 2 diabetes mellitus without any complication", "40", 0.1, 0.1))
    'Type 2 diabetes mellitus without any complica…'
    """
    text = code.description or code.code
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"


def _named_rows(labels: Sequence[str], columns: int) -> tuple[Figure, Any]:
    """A figure with ``columns`` axes that share the named rows, the first row on top."""
    height = 0.62 + 0.205 * len(labels)
    figure = Figure(figsize=(WIDTH, height))
    left = min(0.2 + 0.068 * max(map(len, labels), default=0), 0.45 * WIDTH)
    margins = {
        "left": left / WIDTH, "right": 0.985, "bottom": 0.45 / height, "top": 1 - 0.05 / height, "wspace": 0.08,
    }  # fmt: skip
    panels = figure.subplots(1, columns, sharey=True, squeeze=False, gridspec_kw=margins)[0]
    panels[0].set_yticks(range(len(labels)), list(labels))
    panels[0].set_ylim(len(labels) - 0.4, -0.6)
    for axes in panels:
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
    return figure, panels
