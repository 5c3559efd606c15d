"""Summary -> inline SVG: text stays text, every figure carries a title and a description, one color a model."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

from ehrsequencing.config import DAYS_PER_YEAR
from ehrsequencing.report.summary import Calibration, RiskThirds, Row, Run, Summary

INK, FAINT, RULE = "#1d2126", "#6b727b", "#d9dde2"
COLORS = {
    "oracle": "#1d2126",
    "frozen": "#2a8c82",
    "frozen-ridge": "#7cb39a",
    "lora": "#1f5fa8",
    "full": "#6a4c9c",
    "from-scratch": "#c07aa6",
    "frozen-random": "#8d97a3",
    "kaplan-meier": "#b3aea4",
    "age-sex": "#9a8468",
    "cox": "#b8641b",
    "boosting": "#a3343c",
    "wide": "#8a7a1f",
}
OTHER_COLORS = ("#4f86c6", "#3d6b4f", "#b07d2b", "#7f5a83", "#5b7f95", "#9c5b4a")
MARKERS = {"oracle": "*", "strategy": "o", "control": "o", "baseline": "s"}
THIRD_COLORS = ("#8fb8de", "#4a86bd", "#173f6e")
THIRD_LINES = ((0, (1, 1)), (0, (5, 1.5)), "solid")
PANELS_A_ROW = 5
WIDTH = 8.6
"""Inches; the page shows a figure 1.4 times as large, so that 8 points read as 11 pixels."""
FONTS = "system-ui, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
FOREST_TITLE = "Uno C of every model with 95% intervals"
_STYLE: Any = {
    "svg.fonttype": "none",
    "font.family": "DejaVu Sans",
    "font.size": 8.0,
    "axes.titlesize": 8.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 8.0,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.unicode_minus": True,
    "text.color": INK,
    "text.parse_math": False,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.major.size": 3,
    "ytick.major.size": 3,
    "legend.frameon": False,
    "legend.fontsize": 7.5,
}


def color(model: str) -> str:
    """A model's color, the same in every figure; a blend has that of its deep part.

    >>> color("lora+wide") == color("lora")
    True
    """
    name = model.split("+")[0]
    return COLORS.get(name) or OTHER_COLORS[sum(name.encode()) % len(OTHER_COLORS)]


def forest(rows: Sequence[Row], against: str | None = None) -> Markup:
    """Uno C of every model with its interval; the best simple model's value is a line through all."""
    return _inline(_forest(rows, against), "forest", FOREST_TITLE, _forest_words(rows))


def save_forest(rows: Sequence[Row], out: Path, form: str) -> None:
    """The forest figure as a file of its own, ``form`` svg or png, on white."""
    figure = _forest(rows, None)
    if form == "svg":
        out.write_text(_svg(figure, "forest", FOREST_TITLE, _forest_words(rows), alone=True), encoding="utf-8")
        return
    with mpl.rc_context(_STYLE):
        figure.savefig(out, format=form, dpi=200, facecolor="white")


def _forest_words(rows: Sequence[Row]) -> str:
    return "; ".join(f"{row.model} {row.uno_c.value:.3f}" for row in rows if math.isfinite(row.uno_c.value))


def _forest(scored: Sequence[Row], against: str | None) -> Figure:
    rows = [row for row in scored if math.isfinite(row.uno_c.value)]
    with mpl.rc_context(_STYLE):
        places = _places(rows)
        figure, axes = _beside_names(rows, 0.62 + 0.205 * (max(places, default=0) + 1), right=1.45)
        reference = next((row for row in rows if row.model == against), None)
        if reference is not None:
            axes.axvline(reference.uno_c.value, color=color(reference.model), linewidth=0.7, linestyle=(0, (4, 3)))
        for y, row in zip(places, rows, strict=True):
            _interval(axes, row, y)
            known = math.isfinite(row.uno_c.low)
            text = f"{row.uno_c.value:.3f}" + (f"  ({row.uno_c.low:.3f}–{row.uno_c.high:.3f})" if known else "")
            weight = "bold" if row.best else "normal"
            axes.annotate(text, (1.02, y), xycoords=("axes fraction", "data"), va="center_baseline", fontweight=weight)
        axes.set_yticks(places, [row.model for row in rows])
        for label, row in zip(axes.get_yticklabels(), rows, strict=True):
            label.set_fontweight("bold" if row.best else "normal")
        axes.set_ylim(max(places, default=0) + 0.7, -0.7)
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        axes.grid(axis="x", color=RULE, linewidth=0.5)
        axes.set_axisbelow(True)
        axes.set_xlabel("Uno C (higher is better; 0.5 ranks like a coin)")
    return figure


def _beside_names(rows: Sequence[Row], height: float, *, right: float = 0.1, columns: int = 1) -> tuple[Figure, Any]:
    """A figure with one axes (or an array of ``columns``) and room on the left for the longest model name; inches."""
    figure = Figure(figsize=(WIDTH, height))
    left = 0.2 + 0.068 * max((len(row.model) for row in rows), default=0)
    margins = {
        "left": left / WIDTH,
        "right": 1 - right / WIDTH,
        "bottom": 0.45 / height,
        "top": 1 - 0.05 / height,
        "wspace": 0.04,
    }
    return figure, figure.subplots(1, columns, sharey=True, gridspec_kw=margins)


def _places(rows: Sequence[Row]) -> list[float]:
    """Heights of the rows, with a gap wherever the kind changes."""
    places: list[float] = []
    for previous, row in zip([None, *rows[:-1]], rows, strict=True):
        places.append(0.0 if previous is None else places[-1] + (1.6 if previous.kind != row.kind else 1.0))
    return places


def _interval(axes: Axes, row: Row, y: float) -> None:
    tone = color(row.model)
    if math.isfinite(row.uno_c.low):
        axes.plot([row.uno_c.low, row.uno_c.high], [y, y], color=tone, linewidth=1.4, solid_capstyle="butt")
    marker = "D" if row.blend else MARKERS.get(row.kind, "o")
    face = "white" if row.kind == "control" else tone
    size = {"*": 9.0, "D": 4.4, "s": 4.8}.get(marker, 5.4)
    axes.plot(row.uno_c.value, y, marker=marker, markersize=size, color=tone, markerfacecolor=face, markeredgewidth=1.1)


def training(runs: Sequence[Run]) -> list[Markup]:
    """C-index and Brier score at every epoch, one column a model, one line a training, the kept epoch as a dot."""
    models = list(dict.fromkeys(run.model for run in runs))
    models.sort(key=lambda m: list(COLORS).index(m) if m in COLORS else len(COLORS))
    blocks = [models[i : i + PANELS_A_ROW] for i in range(0, len(models), PANELS_A_ROW)]
    return [_training_block(block, runs, f"training{i}") for i, block in enumerate(blocks)]


def _training_block(models: Sequence[str], runs: Sequence[Run], name: str) -> Markup:
    with mpl.rc_context(_STYLE):
        columns = max(len(models), 3)
        figure = Figure(figsize=(WIDTH, 3.7))
        margins = {"left": 0.082, "right": 0.995, "bottom": 0.12, "top": 0.935, "wspace": 0.08, "hspace": 0.07}
        grid = figure.subplots(2, columns, sharey="row", sharex="col", squeeze=False, gridspec_kw=margins)
        for column, model in enumerate(models):
            own = [run for run in runs if run.model == model]
            grid[0, column].set_title(model)
            _training_panel(grid[0, column], own, "tuning_c", "train_c")
            _training_panel(grid[1, column], own, "tuning_brier", None)
            grid[1, column].set_xlabel("epoch")
            grid[1, column].xaxis.set_major_locator(MaxNLocator(4, integer=True))
        for axes in grid[:, len(models) :].flat:
            axes.set_axis_off()
        _robust_limits(grid[0, 0], [(r.tuning_c, r.train_c) for r in runs])
        _robust_limits(grid[1, 0], [(r.tuning_brier,) for r in runs])
        grid[0, 0].set_ylabel("C-index")
        grid[1, 0].set_ylabel("Brier score")
    described = "; ".join(_run_words(run) for run in runs if run.model in models)
    return _inline(figure, name, "C-index and Brier score by training epoch", f"Kept epochs: {described}.")


def _training_panel(axes: Axes, runs: Sequence[Run], tuning: str, train: str | None) -> None:
    tone, many = color(runs[0].model), len(runs) > 3
    axes.grid(color=RULE, linewidth=0.4)
    epochs = _joined([run.epoch for run in runs])
    if train is not None:
        values = _joined([getattr(run, train) for run in runs])
        axes.plot(epochs, values, color=tone, linewidth=0.7, alpha=0.5, linestyle=(0, (2, 1.5)))
    values = _joined([getattr(run, tuning) for run in runs])
    axes.plot(epochs, values, color=tone, linewidth=0.6 if many else 1.1, alpha=0.55 if many else 0.95)
    kept = [(run.epoch[run.selected], getattr(run, tuning)[run.selected]) for run in runs if run.selected is not None]
    size = 3.0 if many else 4.5
    axes.plot(*np.array(kept).reshape(-1, 2).T, "o", color=tone, ms=size, mec="white", mew=0.6)


def _joined(series: Sequence[np.ndarray]) -> np.ndarray:
    """Several lines as one, broken by NaN."""
    return np.concatenate([np.append(values, np.nan) for values in series])


def _robust_limits(axes: Axes, series: Iterable[Sequence[np.ndarray]]) -> None:
    """All but the wildest percent of the values in view."""
    values = np.concatenate([v for group in series for v in group])
    values = values[np.isfinite(values)]
    if values.size:
        low, high = np.quantile(values, [0.01, 0.99])
        margin = max(0.08 * (high - low), 1e-3)
        axes.set_ylim(low - margin, high + margin)


def _run_words(run: Run) -> str:
    fold = "" if run.fold is None else f" fold {run.fold}"
    kept = "none marked" if run.selected is None else f"epoch {run.epoch[run.selected]:.0f}"
    return f"{run.model} seed {run.seed}{fold} {kept}"


def calibration(curves: Sequence[Calibration], horizon: str) -> Markup:
    """Observed (Kaplan–Meier, 95% interval) against predicted risk at the horizon, one panel a model."""
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(WIDTH, 3.0))
        margins = {"left": 0.075, "right": 0.99, "bottom": 0.15, "top": 0.925, "wspace": 0.08}
        panels = figure.subplots(1, max(len(curves), 3), sharex=True, sharey=True, squeeze=False, gridspec_kw=margins)[
            0
        ]
        top = min(1.0, 1.05 * max(float(max(np.max(c.high), np.max(c.predicted))) for c in curves))
        for axes, curve in zip(panels, curves, strict=False):
            axes.plot([0, top], [0, top], color=FAINT, linewidth=0.7, linestyle=(0, (4, 3)))
            bars = np.stack([curve.observed - curve.low, curve.high - curve.observed]).clip(min=0)  # (2, g)
            axes.errorbar(
                curve.predicted, curve.observed, bars, fmt="o-", color=color(curve.model), markersize=4, linewidth=0.9,
                elinewidth=0.9, markeredgecolor="white", markeredgewidth=0.5,
            )  # fmt: skip
            axes.set_title(curve.model)
            axes.set_box_aspect(1)
            axes.set_xlabel("predicted risk")
            axes.grid(color=RULE, linewidth=0.4)
        panels[0].set(xlim=(0, top), ylim=(0, top), ylabel="observed risk")
        for axes in panels[len(curves) :]:
            axes.set_axis_off()
        for axis in (panels[0].xaxis, panels[0].yaxis):
            axis.set_major_locator(MaxNLocator(5))
            axis.set_major_formatter(FuncFormatter(lambda x, _: f"{100 * x:g}%"))
    described = "; ".join(f"{c.model}: {_calibration_words(c)}" for c in curves)
    return _inline(figure, "calibration", f"Observed against predicted risk at {horizon}", described)


def _calibration_words(curve: Calibration) -> str:
    pairs = zip(curve.predicted, curve.observed, strict=True)
    return ", ".join(f"{predicted:.0%} predicted, {observed:.0%} observed" for predicted, observed in pairs)


def thirds(panels: Sequence[RiskThirds]) -> Markup:
    """Kaplan–Meier curves by third of predicted risk, with the numbers at risk below."""
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(WIDTH, 3.5))
        left = (0.115, 0.615)
        lowest = min(float(np.min(curve.low)) for panel in panels for curve in panel.curves)
        for x, panel in zip(left, panels, strict=False):
            axes = figure.add_axes((x, 0.37, 0.365, 0.54))
            _thirds_panel(axes, panel, max(0.0, lowest - 0.02))
    described = "; ".join(
        f"{p.model}: " + ", ".join(f"{c.label} {c.survival[-1]:.0%}" for c in p.curves) for p in panels
    )
    return _inline(figure, "thirds", "Kaplan–Meier by third of predicted risk", f"Event-free at the end: {described}.")


def _thirds_panel(axes: Axes, panel: RiskThirds, bottom: float) -> None:
    unit, size = ("years", DAYS_PER_YEAR) if panel.ticks[-1] >= 2 * DAYS_PER_YEAR else ("days", 1.0)
    for curve, tone, line in zip(panel.curves, THIRD_COLORS, THIRD_LINES, strict=True):
        axes.fill_between(curve.times / size, curve.low, curve.high, step="post", color=tone, alpha=0.16, linewidth=0)
        axes.step(
            curve.times / size,
            curve.survival,
            where="post",
            color=tone,
            linewidth=1.5,
            linestyle=line,
            label=curve.label,
        )
    axes.legend(loc="lower left", handlelength=2.6)
    axes.set_title(panel.model)
    axes.set_ylim(bottom, 1.005)
    axes.set_xlim(0, panel.ticks[-1] / size)
    axes.set_xticks(panel.ticks / size, [f"{t:.3g}" for t in panel.ticks / size])
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{100 * y:g}%"))
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


def footprint(rows: Sequence[Row]) -> Markup | None:
    """Trained parameters and training time of each model, logarithmic; None where nothing was counted."""
    shown = [row for row in rows if row.kind != "oracle" and (row.trainable or row.seconds)]
    if not shown:
        return None
    with mpl.rc_context(_STYLE):
        figure, (left, right) = _beside_names(shown, 0.55 + 0.2 * len(shown), columns=2)
        _dots(
            left,
            shown,
            [float(row.trainable or 0) for row in shown],
            "trained parameters",
        )
        _dots(right, shown, [row.seconds or 0.0 for row in shown], "seconds")
        left.set_yticks(range(len(shown)), [row.model for row in shown])
        left.set_ylim(len(shown) - 0.4, -0.6)
    described = "; ".join(f"{r.model} {r.trainable or 0:,} parameters, {r.seconds or 0:.0f} s" for r in shown)
    return _inline(figure, "footprint", "Trained parameters and time of each model", described)


def _dots(axes: Axes, rows: Sequence[Row], values: Sequence[float], label: str) -> None:
    axes.set_xscale("log")
    for y, (row, value) in enumerate(zip(rows, values, strict=True)):
        axes.axhline(y, color=RULE, linewidth=0.5, zorder=0)
        if value > 0:
            face = "white" if row.kind == "control" else color(row.model)
            marker = "D" if row.blend else MARKERS.get(row.kind, "o")
            axes.plot(value, y, marker=marker, color=color(row.model), markerfacecolor=face, markersize=5)
    axes.set_xlabel(label)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.xaxis.set_major_locator(LogLocator(numticks=6))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.0f}" if x >= 1 else f"{x:g}"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_minor_formatter(NullFormatter())


def draw(summary: Summary, horizon: str) -> dict[str, Any]:
    """Every figure the summary has the data for, by name."""
    scored = any(math.isfinite(row.uno_c.value) for row in summary.rows)
    return {
        "forest": forest(summary.rows, summary.against) if scored else None,
        "training": training(summary.runs),
        "calibration": calibration(summary.calibration, horizon) if summary.calibration else None,
        "thirds": thirds(summary.thirds) if summary.thirds else None,
        "footprint": footprint(summary.rows),
    }


def _inline(figure: Figure, name: str, title: str, description: str) -> Markup:
    return Markup(_svg(figure, name, title, description))


def _svg(figure: Figure, name: str, title: str, description: str, *, alone: bool = False) -> str:
    """The figure as an <svg> element without any address, its ids unique in the page; or as a file of its own."""
    buffer = io.StringIO()
    with mpl.rc_context(_STYLE | {"svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", transparent=not alone, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.S)
    box = re.search(r'viewBox="([^"]+)"', text)
    body = text[text.index(">") + 1 :]
    body = body.replace("xlink:href", "href").replace('id="', f'id="{name}-').replace('href="#', f'href="#{name}-')
    body = body.replace("url(#", f"url(#{name}-")
    body = body.replace("'DejaVu Sans'", FONTS)
    size = f'xmlns="http://www.w3.org/2000/svg" width="{100 * WIDTH:.0f}" ' if alone else ""
    opening = (
        f'<svg {size}viewBox="{box[1] if box else ""}" role="img" aria-labelledby="{name}-title {name}-desc">'
        f'<title id="{name}-title">{escape(title)}</title><desc id="{name}-desc">{escape(description)}</desc>'
    )
    return opening + body
