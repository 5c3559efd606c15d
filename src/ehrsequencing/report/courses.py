"""Figures of courses over time: outcome by third of risk, incidence of each cause, risk over a patient's visits."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib as mpl
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ehrsequencing.report.drawing import (
    FAINT,
    INK,
    OTHER_COLORS,
    PERCENT,
    RULE,
    STYLE,
    THIRD_COLORS,
    WIDTH,
    color,
    inline,
    time_unit,
)
from ehrsequencing.report.series import Incidence, RiskThirds, Trajectory

THIRD_LINES = ((0, (1, 1)), (0, (5, 1.5)), "solid")
CAUSES_A_ROW = 3


def thirds(panels: Sequence[RiskThirds]) -> Markup:
    """Observed curves by third of predicted risk, with the numbers at risk below: falling, or with causes rising."""
    competing = any(panel.competing for panel in panels)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 3.5))
        left = (0.115, 0.615)
        lowest = min(float(np.min(curve.low)) for panel in panels for curve in panel.curves)
        highest = max(float(np.max(curve.high)) for panel in panels for curve in panel.curves)
        limits = (0.0, min(1.0, highest + 0.02)) if competing else (max(0.0, lowest - 0.02), 1.005)
        for x, panel in zip(left, panels, strict=False):
            axes = figure.add_axes((x, 0.37, 0.365, 0.54))
            _thirds_panel(axes, panel, limits)
    described = "; ".join(f"{p.model}: " + ", ".join(f"{c.label} {c.share[-1]:.0%}" for c in p.curves) for p in panels)
    name, end = ("Aalen–Johansen", "With the outcome") if competing else ("Kaplan–Meier", "Event-free")
    return inline(figure, "thirds", f"{name} by group of predicted risk", f"{end} at the end: {described}.")


def _thirds_panel(axes: Axes, panel: RiskThirds, limits: tuple[float, float]) -> None:
    unit, size = time_unit(panel.ticks[-1])
    tones, lines = (each[-len(panel.curves) :] for each in (THIRD_COLORS, THIRD_LINES))
    for curve, tone, line in zip(panel.curves, tones, lines, strict=True):
        axes.fill_between(curve.times / size, curve.low, curve.high, step="post", color=tone, alpha=0.16, linewidth=0)
        at = curve.times / size
        axes.step(at, curve.share, where="post", color=tone, linewidth=1.5, linestyle=line, label=curve.label)
    axes.legend(loc="upper left" if panel.competing else "lower left", handlelength=2.6)
    axes.set_title(panel.model)
    axes.set_ylim(*limits)
    axes.set_xlim(0, panel.ticks[-1] / size)
    axes.set_xticks(panel.ticks / size, [f"{t:.3g}" for t in panel.ticks / size])
    axes.yaxis.set_major_formatter(PERCENT)
    axes.grid(axis="y", color=RULE, linewidth=0.4)
    axes.set_xlabel(f"{unit} since prediction_time", labelpad=2)
    _numbers_at_risk(axes, panel, size)


def _numbers_at_risk(axes: Axes, panel: RiskThirds, size: float) -> None:
    x_data, y_axes = axes.get_xaxis_transform(), -0.33
    axes.text(-0.065, y_axes, "at risk", transform=axes.transAxes, ha="right", color=FAINT, fontsize=7)
    for k, curve in enumerate(panel.curves):
        y = y_axes - 0.085 * (k + 1)
        axes.text(-0.065, y, curve.label.split()[0], transform=axes.transAxes, ha="right", fontsize=7)
        for tick, count in zip(panel.ticks / size, curve.at_risk, strict=True):
            axes.text(float(tick), y, count, transform=x_data, ha="center", fontsize=7)


def incidence(causes: Sequence[Incidence]) -> Markup:
    """Cumulative incidence of each cause: Aalen–Johansen with its band, and the models' mean predictions."""
    shown = causes[:CAUSES_A_ROW]
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 3.0))
        margins = {"left": 0.075, "right": 0.99, "bottom": 0.15, "top": 0.925, "wspace": 0.08}
        columns = max(len(shown), 2)
        panels = figure.subplots(1, columns, sharex=True, sharey=True, squeeze=False, gridspec_kw=margins)[0]
        for axes, cause in zip(panels, shown, strict=False):
            _incidence_panel(axes, cause)
        panels[0].set_ylabel("cumulative incidence")
        panels[0].yaxis.set_major_formatter(PERCENT)
        panels[0].set_ylim(0, min(1.0, 1.05 * max(float(np.max(cause.high)) for cause in shown)))
        panels[0].legend(loc="upper left")
        for axes in panels[len(shown) :]:
            axes.set_axis_off()
    described = "; ".join(_incidence_words(cause) for cause in shown)
    return inline(figure, "incidence", "Cumulative incidence of each cause", f"At the end: {described}.")


def _incidence_panel(axes: Axes, cause: Incidence) -> None:
    unit, size = time_unit(float(cause.times[-1]))
    at = cause.times / size
    axes.fill_between(at, cause.low, cause.high, step="post", color=FAINT, alpha=0.18, linewidth=0)
    axes.step(at, cause.observed, where="post", color=INK, linewidth=1.4, label="observed")
    for model, curve in cause.predicted.items():
        axes.plot(at, curve, color=color(model), linewidth=1.2, linestyle=(0, (4, 2)), label=model)
    axes.set_title(cause.cause)
    axes.set_xlim(0, at[-1])
    axes.set_xlabel(f"{unit} since prediction_time")
    axes.grid(axis="y", color=RULE, linewidth=0.4)


def _incidence_words(cause: Incidence) -> str:
    predicted = ", ".join(f"{model} {curve[-1]:.0%}" for model, curve in cause.predicted.items())
    return f"{cause.cause} observed {cause.observed[-1]:.0%}, predicted by {predicted}"


def trajectories(patients: Sequence[Trajectory], horizon: str) -> Markup:
    """Predicted risk within the horizon at each visit of a few example patients, one line a patient."""
    unit, size = time_unit(max(float(patient.days[-1]) for patient in patients))
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 2.9))
        axes = figure.add_axes((0.075, 0.16, 0.80, 0.79))
        for patient, tone in zip(patients, OTHER_COLORS * len(patients), strict=False):
            name = f"patient {patient.patient}"
            axes.step(patient.days / size, patient.risk, where="post", color=tone, linewidth=1.1, label=name)
            axes.plot(patient.days / size, patient.risk, "o", color=tone, markersize=3.2, mec="white", mew=0.4)
        axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
        axes.set_ylim(0, min(1.0, 1.08 * max(float(np.max(patient.risk)) for patient in patients)))
        axes.yaxis.set_major_formatter(PERCENT)
        axes.grid(axis="y", color=RULE, linewidth=0.4)
        axes.set_xlabel(f"{unit} since the first visit shown")
        axes.set_ylabel(f"risk within {horizon}")
    described = "; ".join(
        f"patient {p.patient}: {len(p.days)} visits, {p.risk[0]:.0%} at the first, {p.risk[-1]:.0%} at the last"
        for p in patients
    )
    return inline(figure, "trajectories", "Predicted risk over the visits of example patients", described)
