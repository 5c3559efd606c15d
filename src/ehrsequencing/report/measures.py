"""The measures of performance in words, and which table of the page shows which."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ehrsequencing.cohort.words import in_days
from ehrsequencing.report.contents import Row


@dataclass(frozen=True)
class Measure:
    """A measure: its name, the digits it is shown with, and what it says."""

    label: str
    digits: int
    meaning: str


MEASURES: dict[str, Measure] = {
    "uno_c": Measure("Uno C", 3, "share of comparable pairs ranked right, weighted for censoring; 0.5 is a coin"),
    "harrell_c": Measure("Harrell C", 3, "the same without weights; depends on how patients are censored"),
    "antolini_c": Measure("Antolini C", 3, "pairs ranked by the predicted curves at the time of the earlier event"),
    "mean_auc": Measure("Mean AUC", 3, "AUC over time, averaged over the events"),
    "auc": Measure("AUC", 3, "patients with the outcome by then against patients known to be without it"),
    "ibs": Measure("IBS", 4, "integrated Brier score: squared error of the predicted probabilities; lower is better"),
    "scaled_ibs": Measure("Scaled IBS", 3, "share of that error removed from one curve for everybody; 0 is no gain"),
    "brier": Measure("Brier score", 4, "squared error at the horizon; lower is better"),
    "scaled_brier": Measure("Scaled Brier", 3, "share of it removed from one curve for everybody"),
    "oe": Measure("Observed / expected", 2, "observed over mean predicted risk; above 1 risks are too low"),
    "slope": Measure("Slope", 2, "calibration slope; below 1 predictions are too extreme"),
    "intercept": Measure("Intercept", 2, "calibration in the large on the logit scale; above 0 risks are too low"),
    "ici": Measure("ICI", 4, "mean distance between predicted and smoothed observed risk; 0 is perfect"),
    "e50": Measure("E50", 4, "median of that distance"),
    "e90": Measure("E90", 4, "90th percentile of that distance"),
    "km_calibration": Measure("KM-calibration", 4, "mean distance between the mean prediction and the observed curve"),
}


@dataclass(frozen=True)
class Family:
    """A table: its hook and title, and the measures it may have; ``at`` those at each horizon, all in one table or,
    if they are many, in one ``each``."""

    hook: str
    title: str
    measures: tuple[str, ...]
    at: bool = False
    each: bool = False


FAMILIES: dict[str, tuple[Family, ...]] = {
    "discrimination": (
        Family("discrimination", "Discrimination over the whole horizon", ("antolini_c", "mean_auc")),
        Family("discrimination-at", "Discrimination at each horizon", ("auc", "uno_c", "harrell_c"), at=True),
    ),
    "accuracy": (
        Family("accuracy", "Accuracy over the whole horizon", ("scaled_ibs", "km_calibration")),
        Family("accuracy-at", "Accuracy at each horizon", ("brier", "scaled_brier"), at=True),
    ),
    "calibration": (
        Family("calibration", "Calibration", ("oe", "slope", "intercept", "ici", "e50", "e90"), at=True, each=True),
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Table:
    """The columns (label, metric, digits) of a family that any row has."""

    hook: str
    title: str
    columns: tuple[tuple[str, str, int], ...]


def metric_name(name: str) -> str:
    """
    >>> metric_name("brier@365"), metric_name("uno_c")
    ('Brier score at 1 year', 'Uno C')
    """
    base, _, days = name.partition("@")
    label = MEASURES[base].label if base in MEASURES else base.replace("_", " ")
    return f"{label} at {in_days(float(days))}" if days else label


def tables(rows: Sequence[Row], part: str, horizons: Sequence[float]) -> list[Table]:
    """The tables of one part of the page, without empty columns; one a horizon where there are many columns."""
    found = []
    for family in FAMILIES[part]:
        if not family.at:
            found.append(_table(family.hook, family.title, family.measures, rows))
        elif family.each:
            for day in horizons:
                names = [f"{measure}@{day:.10g}" for measure in family.measures]
                found.append(_table(family.hook, f"{family.title} at {in_days(day)}", names, rows, short=True))
        else:
            names = [f"{measure}@{day:.10g}" for day in horizons for measure in family.measures]
            found.append(_table(family.hook, family.title, names, rows))
    return [table for table in found if table.columns]


def _table(hook: str, title: str, names: Sequence[str], rows: Sequence[Row], short: bool = False) -> Table:
    """Of the measures that any row has; ``short`` leaves the horizon to the title."""
    known = [name for name in names if any(name in row.metrics for row in rows)]
    columns = ((metric_name(name.partition("@")[0] if short else name), name) for name in known)
    digits = (MEASURES[name.partition("@")[0]].digits for name in known)
    return Table(hook, title, tuple((*column, places) for column, places in zip(columns, digits, strict=True)))


def others(rows: Sequence[Row], horizons: Sequence[float]) -> list[Table]:
    """Measures that no table has, so that nothing that was computed is lost."""
    told = {"uno_c", "harrell_c", "ibs"}
    told |= {name for part in FAMILIES for table in tables(rows, part, horizons) for _, name, _ in table.columns}
    rest = list(dict.fromkeys(name for row in rows for name in row.metrics if name not in told))
    return [Table("further", "Other measures", tuple((metric_name(n), n, 4) for n in rest))] if rest else []


def meanings(rows: Sequence[Row]) -> list[tuple[str, str]]:
    """Every measure shown, and what it says."""
    shown = {name.partition("@")[0] for row in rows for name in row.metrics}
    return [(measure.label, measure.meaning) for name, measure in MEASURES.items() if name in shown]
