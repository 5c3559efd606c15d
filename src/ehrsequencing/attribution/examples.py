"""Example patients of an explanation: numbered, chosen by rule, their visits coarsened, rare codes unnamed."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl

from ehrsequencing.attribution.attributions import Attributions
from ehrsequencing.config import DAYS_PER_YEAR, MIN_CELL

QUANTILES = (0.95, 0.75, 0.50, 0.25)
"""Of the risk among the explained patients: who is an example. The two extremes never are."""
MAX_VISITS, MAX_CODES = 12, 6
"""Visits of an example, and codes of a visit, that are named; the rest is summed."""
OTHER = "other codes"
UNITS = ((90.0, 7.0), (730.5, DAYS_PER_YEAR / 12), (np.inf, DAYS_PER_YEAR))
"""Up to so many days before prediction_time, days are rounded to whole units of so many."""


def coarse(days: float) -> int:
    """Days to the nearest week up to 90 days, month up to two years, year beyond.

    >>> [coarse(days) for days in (2.0, 40.0, 100.0, 1000.0)]
    [0, 42, 91, 1096]
    """
    unit = next(unit for limit, unit in UNITS if days <= limit)
    return round(round(days / unit) * unit)


def examples(found: Attributions) -> list[dict[str, Any]]:
    """The example patients; none where under MIN_CELL are explained: too few to hide among."""
    if len(found) < MIN_CELL:
        return []
    common = set(found.common()["code"])
    order = found.patients.sort("risk", "subject_id")
    last = order.height - 2
    places = dict.fromkeys(int(np.clip(round(q * (order.height - 1)), 1, last)) for q in QUANTILES)
    return [_example(found, order.row(at, named=True), number, common) for number, at in enumerate(places, start=1)]


def _example(found: Attributions, patient: dict[str, Any], number: int, common: set[str]) -> dict[str, Any]:
    mine = (pl.col("subject_id") == patient["subject_id"]) & (pl.col("prediction_time") == patient["prediction_time"])
    lines = found.table.filter(mine).with_columns(
        days_before=pl.col("days_before").map_elements(coarse, return_dtype=pl.Int64),
        code=pl.when(pl.col("code").is_in(list(common))).then("code").otherwise(pl.lit(OTHER)),
    )
    dated = lines.drop_nulls("days_before")
    kept = _visits_kept(dated)
    return {
        "patient": number,
        "risk": round(patient["risk"], 4),
        "baseline_risk": round(patient["baseline_risk"], 4),
        "visits": [_visit(found, dated.filter(pl.col("days_before") == days), days) for days in kept],
        "earlier": _total(dated.filter(~pl.col("days_before").is_in(kept))),
        "undated": _codes(found, lines.filter(pl.col("days_before").is_null())),
    }


def _visits_kept(dated: pl.DataFrame) -> list[int]:
    """The times of the visits that matter most, the latest first."""
    sizes = dated.group_by("days_before").agg(pl.col("attribution").sum().abs())
    kept = sizes.sort(["attribution", "days_before"], descending=[True, False]).head(MAX_VISITS)
    return sorted(kept["days_before"].to_list())


def _visit(found: Attributions, lines: pl.DataFrame, days: int) -> dict[str, Any]:
    return {"days_before": days, "attribution": _total(lines), "codes": _codes(found, lines)}


def _codes(found: Attributions, lines: pl.DataFrame) -> list[dict[str, Any]]:
    """The codes that add most, each once; the others and the rare ones in one line at the end."""
    sums = lines.group_by("code").agg(pl.col("attribution").sum())
    named = sums.filter(pl.col("code") != OTHER).sort(pl.col("attribution").abs(), "code", descending=[True, False])
    shown = named.head(MAX_CODES).to_dicts()
    rest = pl.concat([named[MAX_CODES:], sums.filter(pl.col("code") == OTHER)])
    lines_shown = [(line["code"], found.describe(line["code"]), line["attribution"]) for line in shown]
    if rest.height:
        lines_shown.append((OTHER, None, float(rest["attribution"].sum())))
    return [{"code": code, "description": text, "attribution": round(x, 6)} for code, text, x in lines_shown]


def _total(lines: pl.DataFrame) -> float:
    return round(float(lines["attribution"].sum()), 6)
