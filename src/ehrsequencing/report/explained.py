"""Why a model predicts what it predicts: attributions.json for people, codes of few patients left out."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from ehrsequencing.cohort.attrition import cell
from ehrsequencing.config import DAYS_PER_YEAR, MIN_CELL
from ehrsequencing.report.contents import Attributions, CodeEffect, Explained, ExplainedVisit

UNITS = ((92.0, 7.0, "week"), (731.0, DAYS_PER_YEAR / 12, "month"), (math.inf, DAYS_PER_YEAR, "year"))
"""Up to so many days before prediction_time, time is told in units of so many."""
MOST_CODES, MOST_EXAMPLES, MOST_VISITS, CODES_A_VISIT = 20, 4, 6, 5


def attributions_of(data: Mapping[str, Any]) -> Attributions | None:
    """The most influential codes and a few example patients' visits, the weightiest of each; None without any."""
    if not data:
        return None
    n = int(data["patients"] or 0)  # None: under MIN_CELL
    codes = [code for code in data.get("codes", []) if _common(int(code["patients"]), n)]
    codes.sort(key=lambda code: -float(code["mean_abs"]))
    return Attributions(
        model=str(data["model"]),
        horizon=float(data["horizon"]),
        patients=cell(n) if n else f"<{MIN_CELL}",
        baseline=str(data.get("baseline", "")),
        completeness=float(data.get("completeness") or 0.0),
        codes=tuple(_code(code) for code in codes[:MOST_CODES]),
        examples=tuple(_example(each) for each in data.get("examples", [])[:MOST_EXAMPLES]),
    )


def _common(having: int, n: int) -> bool:
    """Whether neither who has a code nor who lacks it is a small cell."""
    return having >= MIN_CELL and not 0 < n - having < MIN_CELL


def _code(code: Mapping[str, Any]) -> CodeEffect:
    return CodeEffect(
        code=str(code["code"]),
        description=str(code.get("description") or ""),
        patients=cell(int(code["patients"])),
        mean=float(code["mean"]),
        mean_abs=float(code["mean_abs"]),
    )


def _example(data: Mapping[str, Any]) -> Explained:
    """The visits that weigh most, the latest first; the others, and what has no date, in a line each."""
    weighty = sorted(data.get("visits", []), key=lambda visit: -abs(float(visit["attribution"])))
    visits = sorted(weighty[:MOST_VISITS], key=_days_before)
    rest = float(data.get("earlier") or 0.0) + sum(float(visit["attribution"]) for visit in weighty[MOST_VISITS:])
    shown = [_visit(visit) for visit in visits]
    if rest:
        shown.append(ExplainedVisit("all other visits", rest, ()))
    if undated := data.get("undated"):
        total = sum(float(code["attribution"]) for code in undated)
        shown.append(_visit({"attribution": total, "codes": undated}))
    return Explained(int(data["patient"]), float(data["risk"]), float(data["baseline_risk"]), tuple(shown))


def _visit(data: Mapping[str, Any]) -> ExplainedVisit:
    codes = sorted(data.get("codes", []), key=lambda code: -abs(float(code["attribution"])))[:CODES_A_VISIT]
    named = ((str(c["code"]), str(c.get("description") or ""), float(c["attribution"])) for c in codes)
    return ExplainedVisit(_when(_days_before(data)), float(data["attribution"]), tuple(named))


def _days_before(visit: Mapping[str, Any]) -> float:
    """Infinite for what has no date: static records, and what speaks of the whole record."""
    days = visit.get("days_before")
    return math.inf if days is None else float(days)


def _when(days_before: float) -> str:
    """
    >>> [_when(days) for days in (0.0, 84.0, 487.0, 1100.0)]
    ['in the last week', '12 weeks before', '16 months before', '3 years before']
    """
    if math.isinf(days_before):
        return "without a date, or of the whole record"
    size, unit = next((size, unit) for limit, size, unit in UNITS if days_before <= limit)
    count = round(days_before / size)
    return f"{count} {unit}{'s' * (count > 1)} before" if count else f"in the last {unit}"
