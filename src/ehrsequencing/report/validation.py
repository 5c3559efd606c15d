"""A validation's document -> its text and its page: unknown codes, case mix, figures before and after recalibration."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64, Int64

from ehrsequencing.cohort.attrition import cell
from ehrsequencing.cohort.words import in_days
from ehrsequencing.config import MIN_CELL
from ehrsequencing.files import staged_file
from ehrsequencing.predictions import Predictions
from ehrsequencing.report import courses, figures
from ehrsequencing.report.contents import Interval
from ehrsequencing.report.formats import estimate, limits
from ehrsequencing.report.measures import metric_name
from ehrsequencing.report.patients import calibrate, risk_thirds
from ehrsequencing.report.render import REPORT, template
from ehrsequencing.report.suppression import events_cell
from ehrsequencing.timegrid import truncate

SHOWN_CODES = 15
MARKED_DIFFERENCE = 0.10
"""Prevalences further apart than this are marked."""
CALIBRATION = {
    "slope": "calibration slope (1 is right; below, predictions are too extreme)",
    "intercept": "calibration intercept (0 is right; below, risks are too high)",
    "oe": "observed / expected risk (1 is right)",
    "observed": "observed risk",
    "expected": "expected (mean predicted) risk",
    "ici": "ICI: mean distance between predicted and smoothed observed risk",
    "e50": "E50: median of that distance",
    "e90": "E90: its 90th percentile",
}
QUARTILES = {
    "follow_up_days": "follow-up, days: median (quartiles)",
    "age_years": "age, years: median (quartiles)",
    "events_per_patient": "events read a patient: median (quartiles)",
}
VOCABULARY = {
    "unknown": "events with an unknown code",
    "fallback": "events read as a coarser code",
    "patients_with_unknown": "patients with an unknown code",
}
TASK_KEYS = "the question differs from the bundle's in: "


def validation_text(found: Mapping[str, Any]) -> str:
    """The summary that is printed."""
    n, events = found["n"], found["events"]
    lines = [
        f"{cell(n)} patients, {events_cell(n, events)} with the outcome within {found['tau']:g} days; "
        f"read by '{found['bundle']['row']}'",
        *(f"warning: {text}" for text in found["warnings"]),
        *([TASK_KEYS + ", ".join(found["task_changes"])] if found["task_changes"] else []),
        unknown_text(found["casemix"]["validation"]["vocabulary"]),
        f"{'':<36}{'before':<26}after recalibration",
        *(f"  {name:<34}{_cell(b):<26}{_cell(a)}" for name, b, a in figure_rows(found)),
        found["recalibration"]["how"],
    ]
    return "\n".join(lines)


def unknown_text(vocabulary: Mapping[str, Any]) -> str:
    """One sentence on the codes that the model does not know.

    >>> unknown_text({"unknown": 0.125, "fallback": 0.02, "patients_with_unknown": 0.5, "codes": {"LOCAL//7": 0.25}})
    '12.5% of events have a code the model does not know (50.0% of patients have one), 2.0% are read as a coarser code; most widespread unknown: LOCAL//7 (25.0% of patients)'
    """  # noqa: E501
    touched = vocabulary["patients_with_unknown"]
    people = f"under {MIN_CELL} patients have one" if touched is None else f"{touched:.1%} of patients have one"
    codes = ", ".join(f"{code} ({share:.1%} of patients)" for code, share in list(vocabulary["codes"].items())[:5])
    return (
        f"{vocabulary['unknown']:.1%} of events have a code the model does not know ({people}), "
        f"{vocabulary['fallback']:.1%} are read as a coarser code"
        + (f"; most widespread unknown: {codes}" if codes else "")
    )


def figure_rows(found: Mapping[str, Any]) -> Iterator[tuple[str, Interval, Interval]]:
    """Every figure's name for people, before and after recalibration."""
    before, after = found["before"], found["after"]
    for name, data in before["metrics"].items():
        yield metric_name(name), Interval.of(data), Interval.of(after["metrics"].get(name))
    for horizon in before["calibration"]:
        for name, label in CALIBRATION.items():
            was, now = (Interval.of(side["calibration"][horizon][name]) for side in (before, after))
            yield f"{label.split(' (')[0]} at {in_days(float(horizon))}", was, now


def _cell(interval: Interval) -> str:
    return f"{estimate(interval)} {limits(interval)}".strip()


def write_validation_report(
    folder: Path,
    found: Mapping[str, Any],
    predictions: Sequence[Predictions],
    duration: Float64[np.ndarray, " n"],
    event: Int64[np.ndarray, " n"],
) -> Path:
    """Write ``report.html`` into ``folder``: one file, no script, nothing loaded from elsewhere.

    Args:
        found: the content of validation.json.
        predictions: before and after recalibration, on the rows of ``duration`` and ``event``.
    """
    tau = float(found["tau"])
    duration, event = truncate(duration, event, tau)
    drawn = [calibrate(each.model, each, duration, event, tau) for each in predictions]
    curves = [curve for curve in drawn if curve is not None]
    panel = risk_thirds(predictions[0].model, 0, predictions[0].risk, duration, event, tau)
    page = template("validation.html.j2").render(
        found=found,
        n=cell(found["n"]),
        events=events_cell(found["n"], found["events"]),
        tau=in_days(tau),
        unknown=unknown_text(found["casemix"]["validation"]["vocabulary"]),
        rows=list(figure_rows(found)),
        meanings=list(CALIBRATION.values())[:3],
        calibration=figures.calibration(curves, in_days(tau)) if curves else None,
        thirds=courses.thirds([panel]) if panel else None,
        mix=list(casemix_rows(found["casemix"])),
        codes=list(code_rows(found["casemix"])),
        min_cell=MIN_CELL,
    )  # fmt: skip
    with staged_file(folder / REPORT) as draft:
        draft.write_text(page, encoding="utf-8")
    return folder / REPORT


def casemix_rows(mixes: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Label, development, validation."""
    was, now = mixes["development"] or {}, mixes["validation"]
    yield "patients", _text(was.get("patients")), _text(now["patients"])
    for cause, count in now["events"].items():
        label = "with the outcome" if cause == "outcome" else f"with {cause}"
        yield label, _text(was.get("events", {}).get(cause)), _text(count)
    yield "observed risk of the outcome, by day", _risk(was), _risk(now)
    for key, label in QUARTILES.items():
        yield label, _quartiles(was.get(key)), _quartiles(now[key])
    for code in dict.fromkeys([*was.get("sex", {}), *now["sex"]]):
        yield code, _percent(was.get("sex", {}).get(code)), _percent(now["sex"].get(code))
    for key, label in VOCABULARY.items():
        yield label, _percent(was.get("vocabulary", {}).get(key)), _percent(now["vocabulary"][key])


def code_rows(mixes: Mapping[str, Any]) -> Iterator[tuple[str, str, str, bool]]:
    """The most widespread codes of either side: code, share of patients on both, whether they differ a lot."""
    was, now = (mixes["development"] or {}).get("codes", {}), mixes["validation"]["codes"]
    top = dict.fromkeys([*list(was)[:SHOWN_CODES], *list(now)[:SHOWN_CODES]])
    order = sorted(top, key=lambda code: (-max(was.get(code, 0.0), now.get(code, 0.0)), code))
    for code in order:
        apart = abs(was.get(code, 0.0) - now.get(code, 0.0)) > MARKED_DIFFERENCE and bool(was)
        yield code, _percent(was.get(code)), _percent(now.get(code)), apart


def _risk(side: Mapping[str, Any]) -> str:
    risk = side.get("observed_risk")
    return "–" if risk is None else f"{risk:.1%} by {side['tau_days']:g}"


def _quartiles(values: Sequence[float] | None) -> str:
    """
    >>> _quartiles([1.0, 2.25, 1000.0])
    '2.2 (1.0–1,000)'
    """
    if values is None:
        return "–"
    low, middle, high = (f"{value:,.0f}" if abs(value) >= 100 else f"{value:.1f}" for value in values)
    return f"{middle} ({low}–{high})"


def _text(count: str | None) -> str:
    return "–" if count is None else count


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{share:.1%}"
