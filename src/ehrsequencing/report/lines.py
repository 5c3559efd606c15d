"""Figures with one line a model: performance over time, net benefit over thresholds, curves of example patients."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib as mpl
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ehrsequencing.cohort.words import in_days
from ehrsequencing.report.drawing import FAINT, INK, OTHER_COLORS, PERCENT, RULE, STYLE, WIDTH, color, inline, time_unit
from ehrsequencing.report.series import Decision, Examples, OverTime

DASHES: tuple[object, ...] = ("solid", (0, (5, 1.5)), (0, (1, 1.2)))
"""One a model, in order, so that lines are told apart without color."""
EXAMPLE_COLORS = tuple(OTHER_COLORS[k] for k in (0, 1, 2, 3, 5))
PANELS_A_ROW = 2
MEASURES = {"auc": "AUC (cases by t against patients event-free at t)", "brier": "Brier score"}
LOWEST_SHOWN = -0.2
"""Of the range of net benefit above zero, how much is shown below it: treating all falls without end."""


def over_time(panel: OverTime) -> Markup:
    """One measure over time, one line a model, and what a curve for all reaches."""
    unit, size = time_unit(float(panel.times[-1]))
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 2.7))
        axes = figure.add_axes((0.075, 0.17, 0.70, 0.78))
        for (model, values), dashes in zip(panel.curves.items(), DASHES, strict=False):
            axes.plot(panel.times / size, values, color=color(model), linestyle=dashes, linewidth=1.5, label=model)
        if panel.reference is not None:
            axes.plot(panel.times / size, panel.reference, color=FAINT, linewidth=1.0, label="one curve for all")
        axes.set_xlim(0, panel.times[-1] / size)
        axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0), handlelength=2.6)
        axes.grid(axis="y", color=RULE, linewidth=0.4)
        axes.set_xlabel(f"{unit} since prediction_time")
        axes.set_ylabel(MEASURES[panel.measure].split(" (")[0])
    ends = ((model, values[np.isfinite(values)]) for model, values in panel.curves.items())
    described = "; ".join(f"{model} {values[-1]:.3f} at the end" for model, values in ends if values.size)
    return inline(figure, f"{panel.measure}-time", f"{MEASURES[panel.measure]} over time", described)


def decisions(panels: Sequence[Decision]) -> Markup:
    """Net benefit by threshold, one panel a horizon."""
    with mpl.rc_context(STYLE):
        shown = panels[-PANELS_A_ROW:]
        figure = Figure(figsize=(WIDTH, 3.1))
        margins = {"left": 0.085, "right": 0.99, "bottom": 0.15, "top": 0.92, "wspace": 0.22}
        grid = figure.subplots(1, max(len(shown), PANELS_A_ROW), squeeze=False, gridspec_kw=margins)[0]
        for axes, panel in zip(grid, shown, strict=False):
            _decision_panel(axes, panel)
        grid[0].set_ylabel("net benefit")
        for axes in grid[len(shown) :]:
            axes.set_axis_off()
    described = "; ".join(_decision_words(panel) for panel in shown)
    return inline(figure, "decision", "Net benefit by threshold", described)


def _decision_panel(axes: Axes, panel: Decision) -> None:
    axes.plot(
        panel.thresholds, panel.treat_all, color=FAINT, linewidth=1.0, linestyle=(0, (6, 2, 1, 2)), label="treat all"
    )
    axes.axhline(0, color=INK, linewidth=0.8, label="treat none")
    for (model, values), dashes in zip(panel.models.items(), DASHES, strict=False):
        axes.plot(panel.thresholds, values, color=color(model), linestyle=dashes, linewidth=1.5, label=model)
        if model in panel.gains:
            low, high = np.maximum(panel.treat_all, 0.0) + panel.gains[model][1:]
            axes.fill_between(panel.thresholds, low, high, color=color(model), alpha=0.12, linewidth=0)
    finite = np.concatenate([panel.treat_all, *panel.models.values()])
    top = max(float(np.nanmax(finite, initial=0.0)), 1e-3)
    axes.set_ylim(LOWEST_SHOWN * top, 1.08 * top)
    axes.set_xlim(0, panel.thresholds[-1])
    axes.xaxis.set_major_formatter(PERCENT)
    axes.set_title(f"at {in_days(panel.horizon)}")
    axes.set_xlabel("threshold: risk from which one would act")
    axes.grid(color=RULE, linewidth=0.4)
    axes.legend(loc="upper right", handlelength=2.6)


def _decision_words(panel: Decision) -> str:
    parts = []
    for model, values in panel.models.items():
        known = np.flatnonzero(np.isfinite(values))
        if known.size:
            last = known[-1]
            parts.append(f"{model} {values[known[0]]:.3f} to {values[last]:.3f} at {panel.thresholds[last]:.0%}")
    return f"at {in_days(panel.horizon)}, from the lowest threshold to the highest with patients: {', '.join(parts)}"


def examples(shown: Examples) -> Markup:
    """Predicted curves of example patients, one panel a model, one line a patient."""
    unit, size = time_unit(float(shown.times[-1]))
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 2.9))
        margins = {"left": 0.075, "right": 0.79, "bottom": 0.16, "top": 0.915, "wspace": 0.08}
        panels = figure.subplots(1, 2, sharex=True, sharey=True, squeeze=False, gridspec_kw=margins)[0]
        for axes, (model, curves) in zip(panels, shown.curves.items(), strict=False):
            for k, (label, curve) in enumerate(zip(shown.labels, curves, strict=True)):
                risk, dashes = 1.0 - curve if shown.competing else curve, DASHES[k % len(DASHES)]
                tone = EXAMPLE_COLORS[k % len(EXAMPLE_COLORS)]
                axes.plot(shown.times / size, risk, color=tone, linestyle=dashes, linewidth=1.4, label=label)
            axes.set_title(model)
            axes.set_xlim(0, shown.times[-1] / size)
            axes.grid(axis="y", color=RULE, linewidth=0.4)
            axes.set_xlabel(f"{unit} since prediction_time")
        panels[0].set_ylabel("predicted incidence" if shown.competing else "predicted event-free share")
        panels[0].yaxis.set_major_formatter(PERCENT)
        panels[len(shown.curves) - 1].legend(loc="upper left", bbox_to_anchor=(1.01, 1.0))
        for axes in panels[len(shown.curves) :]:
            axes.set_axis_off()
    described = "; ".join(_example_words(model, curves, shown) for model, curves in shown.curves.items())
    return inline(figure, "examples", "Predicted curves of example patients", described)


def _example_words(model: str, curves: np.ndarray, shown: Examples) -> str:
    ends = ", ".join(f"{label} {1 - curve[-1]:.0%}" for label, curve in zip(shown.labels, curves, strict=True))
    return f"{model}, risk at the end: {ends}"
