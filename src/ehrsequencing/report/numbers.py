"""The numbers behind every figure, as a table of text."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ehrsequencing.report.contents import Interval, Row, Run, Subgroup
from ehrsequencing.report.drawing import time_unit
from ehrsequencing.report.series import Calibration, Decision, Examples, Incidence, OverTime, RiskThirds, Trajectory

SMOOTH_POINTS, CURVE_POINTS, THRESHOLD_POINTS = 9, 11, 14
"""How many points of a curve its table names."""
NONE = "–"


@dataclass(frozen=True)
class Numbers:
    """A table; the first column names its rows."""

    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def number(value: float, digits: int = 3) -> str:
    """
    >>> number(-0.1234), number(-0.0004), number(float("nan"))
    ('−0.123', '0.000', '–')
    """
    return NONE if not math.isfinite(value) else f"{value:z.{digits}f}".replace("-", "−")


def plus(value: float, digits: int = 3) -> str:
    """With its sign, which what rounds to zero has none of.

    >>> plus(-0.1234), plus(0.2), plus(-0.0004), plus(0.0004)
    ('−0.123', '+0.200', '0.000', '0.000')
    """
    if not math.isfinite(value):
        return NONE
    said = f"{value:+z.{digits}f}".replace("-", "−")
    return said[1:] if not float(said.replace("−", "-")) else said


def percent(value: float, digits: int = 1) -> str:
    """
    >>> percent(0.1234), percent(float("nan"))
    ('12.3%', '–')
    """
    return NONE if not math.isfinite(value) else f"{100 * value:z.{digits}f}%".replace("-", "−")


def of_forest(rows: Sequence[Row]) -> Numbers:
    shown = [row for row in rows if math.isfinite(row.uno_c.value)]
    return Numbers(("Model", "Uno C", "low", "high"), tuple((row.model, *_interval(row.uno_c)) for row in shown))


def _interval(found: Interval, digits: int = 3) -> tuple[str, str, str]:
    return number(found.value, digits), number(found.low, digits), number(found.high, digits)


def of_training(runs: Sequence[Run]) -> Numbers:
    """The kept epoch of every training."""
    head = ("Model", "seed", "fold", "epochs", "kept", "tuning C-index", "tuning Brier score", "training C-index")
    return Numbers(head, tuple(_run(run) for run in runs))


def _run(run: Run) -> tuple[str, ...]:
    at = run.selected if run.selected is not None else -1
    kept = NONE if run.selected is None else f"{run.epoch[at]:.0f}"
    fold = NONE if run.fold is None else str(run.fold)
    figures = (number(float(values[at]), 4) for values in (run.tuning_c, run.tuning_brier, run.train_c))
    return run.model, str(run.seed), fold, str(len(run.epoch)), kept, *figures


def of_footprint(rows: Sequence[Row]) -> Numbers:
    shown = [row for row in rows if row.kind != "oracle" and (row.trainable or row.seconds)]
    return Numbers(
        ("Model", "trained parameters", "all parameters", "seconds"),
        tuple((row.model, _count(row.trainable), _count(row.total), _seconds(row.seconds)) for row in shown),
    )


def _count(value: int | None) -> str:
    return NONE if value is None else f"{value:,}"


def _seconds(value: float | None) -> str:
    return NONE if value is None else f"{value:,.1f}"


def of_over_time(panel: OverTime) -> Numbers:
    curves: dict[str, np.ndarray] = dict(panel.curves)
    if panel.reference is not None:
        curves["one curve for all"] = panel.reference
    return _by_time(panel.times, curves, 4)


def _by_time(times: np.ndarray, curves: Mapping[str, np.ndarray], digits: int) -> Numbers:
    unit, size = time_unit(float(times[-1]))
    rows = (
        (f"{time / size:.3g}", *(number(float(values[k]), digits) for values in curves.values()))
        for k, time in enumerate(times)
    )
    return Numbers((unit.capitalize(), *curves), tuple(rows))


def of_calibration(curves: Sequence[Calibration]) -> Numbers:
    head = ("Model", "part", "predicted", "observed", "low", "high")
    return Numbers(head, tuple(row for curve in curves for row in _calibration(curve)))


def _calibration(curve: Calibration) -> Iterator[tuple[str, ...]]:
    groups = np.stack([curve.predicted, curve.observed, curve.low, curve.high], axis=1)  # (g, 4)
    for k, row in enumerate(groups, start=1):
        yield curve.model, f"group {k}", *(percent(float(x)) for x in row)
    if curve.smooth is None:
        return
    smooth = curve.smooth
    lines = np.stack([smooth.predicted, smooth.observed, smooth.low, smooth.high], axis=1)  # (p, 4)
    for row in lines[_some(len(lines), SMOOTH_POINTS)]:
        yield curve.model, "smooth", *(percent(float(x)) for x in row)


def _some(size: int, wanted: int) -> np.ndarray:
    """Places of at most ``wanted`` points, the ends among them."""
    return np.unique(np.linspace(0, size - 1, min(size, wanted)).round().astype(np.int64))


def of_thirds(panels: Sequence[RiskThirds]) -> Numbers:
    unit, size = time_unit(float(panels[0].ticks[-1]))
    head = ("Model", "Group", unit, "share", "low", "high", "at risk")
    return Numbers(head, tuple(row for panel in panels for row in _thirds(panel, size)))


def _thirds(panel: RiskThirds, size: float) -> Iterator[tuple[str, ...]]:
    for curve in panel.curves:
        for tick, at_risk in zip(panel.ticks, curve.at_risk, strict=True):
            found = np.flatnonzero(np.isclose(curve.times, tick, rtol=1e-9, atol=1e-9))
            figures = (curve.share, curve.low, curve.high)
            shown = [percent(float(x[found[0]])) if found.size else NONE for x in figures]
            yield panel.model, curve.label, f"{tick / size:.3g}", *shown, at_risk


def of_incidence(causes: Sequence[Incidence]) -> Numbers:
    models = list(causes[0].predicted)
    unit, size = time_unit(float(causes[0].times[-1]))
    head = ("Cause", unit, "observed", "low", "high", *(f"predicted by {model}" for model in models))
    rows = []
    for cause in causes:
        for k in _some(len(cause.times), CURVE_POINTS):
            figures = (cause.observed, cause.low, cause.high, *cause.predicted.values())
            rows.append((cause.cause, f"{cause.times[k] / size:.3g}", *(percent(float(x[k])) for x in figures)))
    return Numbers(head, tuple(rows))


def of_trajectories(patients: Sequence[Trajectory]) -> Numbers:
    rows = (
        (f"patient {patient.patient}", f"{day:,.0f}", percent(float(risk)))
        for patient in patients
        for day, risk in zip(patient.days, patient.risk, strict=True)
    )
    return Numbers(("Patient", "days since the first visit shown", "risk"), tuple(rows))


def of_decisions(panels: Sequence[Decision]) -> Numbers:
    models, gaining = list(panels[0].models), list(panels[0].gains)
    rows = []
    for panel in panels:
        for k in _some(len(panel.thresholds), THRESHOLD_POINTS):
            figures = (panel.treat_all, *panel.models.values(), *(x for gain in panel.gains.values() for x in gain))
            shown = [number(float(x[k]), 4) for x in figures]
            shown.insert(1 + len(models), "0")
            rows.append((f"{panel.horizon:,.0f}", percent(float(panel.thresholds[k])), *shown))
    gains = (part for model in gaining for part in (f"gain by {model}", "low", "high"))
    return Numbers(("Days", "threshold", "treat all", *models, "treat none", *gains), tuple(rows))


def of_examples(shown: Examples) -> Numbers:
    unit, size = time_unit(float(shown.times[-1]))
    rows = []
    for model, curves in shown.curves.items():
        for k in _some(len(shown.times), CURVE_POINTS):
            values = 1.0 - curves[:, k] if shown.competing else curves[:, k]
            rows.append((model, f"{shown.times[k] / size:.3g}", *(percent(float(x)) for x in values)))
    return Numbers(("Model", unit, *(label.split(" (")[0] for label in shown.labels)), tuple(rows))


def of_subgroups(found: Sequence[Subgroup], model: str, measures: Sequence[tuple[str, str, float | None]]) -> Numbers:
    head = ("Group", *(part for _, said, _ in measures for part in (said, "low", "high")))
    rows = (
        (f"{each.name}: {group.name}", *(x for metric, _, _ in measures
                                         for x in _interval(group.metrics[model].get(metric, Interval(math.nan)))))
        for each in found
        for group in each.groups
        if model in group.metrics
    )  # fmt: skip
    return Numbers(head, tuple(rows))
