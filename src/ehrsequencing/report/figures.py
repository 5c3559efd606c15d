"""Summary -> inline SVG: text stays text, every figure carries a title and a description, one color a model."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

from ehrsequencing.report.contents import Row, Run
from ehrsequencing.report.drawing import COLORS, FAINT, PERCENT, RULE, STYLE, WIDTH, color, inline, svg
from ehrsequencing.report.series import Calibration

MARKERS = {"oracle": "*", "strategy": "o", "ensemble": "o", "control": "o", "baseline": "s"}
PANELS_A_ROW = 5
FOREST_TITLE = "Uno C of every model with 95% intervals"


def forest(rows: Sequence[Row], against: str | None = None) -> Markup:
    """Uno C of every model with its interval; the best simple model's value is a line through all."""
    return inline(_forest(rows, against), "forest", FOREST_TITLE, _forest_words(rows))


def save_forest(rows: Sequence[Row], out: Path, form: str) -> None:
    """The forest figure as a file of its own, ``form`` svg or png, on white."""
    figure = _forest(rows, None)
    if form == "svg":
        out.write_text(svg(figure, "forest", FOREST_TITLE, _forest_words(rows), alone=True), encoding="utf-8")
        return
    with mpl.rc_context(STYLE):
        figure.savefig(out, format=form, dpi=200, facecolor="white")


def _forest_words(rows: Sequence[Row]) -> str:
    return "; ".join(f"{row.model} {row.uno_c.value:.3f}" for row in rows if math.isfinite(row.uno_c.value))


def _forest(scored: Sequence[Row], against: str | None) -> Figure:
    rows = [row for row in scored if math.isfinite(row.uno_c.value)]
    with mpl.rc_context(STYLE):
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
    with mpl.rc_context(STYLE):
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
    return inline(figure, name, "C-index and Brier score by training epoch", f"Kept epochs: {described}.")


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


def calibration(curves: Sequence[Calibration], horizon: str, name: str = "calibration") -> Markup:
    """Observed against predicted risk at the horizon, one panel a model: groups with 95% intervals, and the smooth."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 3.0))
        margins = {"left": 0.075, "right": 0.99, "bottom": 0.15, "top": 0.925, "wspace": 0.08}
        columns = max(len(curves), 3)
        panels = figure.subplots(1, columns, sharex=True, sharey=True, squeeze=False, gridspec_kw=margins)[0]
        top = min(1.0, 1.05 * max(float(max(np.max(c.high), np.max(c.predicted))) for c in curves))
        for axes, curve in zip(panels, curves, strict=False):
            _calibration_panel(axes, curve, top)
        panels[0].set(xlim=(0, top), ylim=(0, top), ylabel="observed risk")
        for axes in panels[len(curves) :]:
            axes.set_axis_off()
        for axis in (panels[0].xaxis, panels[0].yaxis):
            axis.set_major_locator(MaxNLocator(5))
            axis.set_major_formatter(PERCENT)
    described = "; ".join(f"{c.model}: {_calibration_words(c)}" for c in curves)
    return inline(figure, name, f"Observed against predicted risk at {horizon}", described)


def _calibration_panel(axes: Axes, curve: Calibration, top: float) -> None:
    tone, smooth = color(curve.model), curve.smooth
    axes.plot([0, top], [0, top], color=FAINT, linewidth=0.7, linestyle=(0, (4, 3)))
    if smooth is not None:
        axes.fill_between(smooth.predicted, smooth.low, smooth.high, color=tone, alpha=0.18, linewidth=0)
        axes.plot(smooth.predicted, smooth.observed, color=tone, linewidth=1.4)
    bars = np.stack([curve.observed - curve.low, curve.high - curve.observed]).clip(min=0)  # (2, g)
    axes.errorbar(
        curve.predicted, curve.observed, bars, fmt="o" if smooth is not None else "o-", color=tone, markersize=4,
        linewidth=0.9, elinewidth=0.9, markeredgecolor="white", markeredgewidth=0.5,
    )  # fmt: skip
    axes.set_title(curve.model)
    axes.set_box_aspect(1)
    axes.set_xlabel("predicted risk")
    axes.grid(color=RULE, linewidth=0.4)


def _calibration_words(curve: Calibration) -> str:
    pairs = zip(curve.predicted, curve.observed, strict=True)
    return ", ".join(f"{predicted:.0%} predicted, {observed:.0%} observed" for predicted, observed in pairs)


def footprint(rows: Sequence[Row]) -> Markup | None:
    """Trained parameters and training time of each model, logarithmic; None where nothing was counted."""
    shown = [row for row in rows if row.kind != "oracle" and (row.trainable or row.seconds)]
    if not shown:
        return None
    with mpl.rc_context(STYLE):
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
    return inline(figure, "footprint", "Trained parameters and time of each model", described)


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
