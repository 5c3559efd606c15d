"""A finished comparison -> one Summary: every number and sentence the report shows, small cells suppressed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl

from ehrsequencing.cohort import Cohort
from ehrsequencing.cohort.attrition import cell
from ehrsequencing.config import TRAIN, TUNING
from ehrsequencing.report import measured
from ehrsequencing.report.contents import KINDS, Difference, Interval, Row, Summary
from ehrsequencing.report.explained import attributions_of
from ehrsequencing.report.findings import best_of, headline, pair_of, power
from ehrsequencing.report.groups import subgroups_of
from ehrsequencing.report.inputs import Inputs, read_inputs
from ehrsequencing.report.limitations import Facts, limitations
from ehrsequencing.report.patients import attrition_of, incidences, learned_of, risk_thirds, shown_models
from ehrsequencing.report.provenance import provenance, source_of
from ehrsequencing.report.suppression import events_cell, scrub, token_facts

NO_COHORT = "The cohort was not kept beside this report."
NO_PREDICTIONS = "No predictions were kept."
TOO_FEW = "Too few patients or events for groups that could be shown."
POOLED = (
    "Not drawn out of fold: each fold has a model of its own, whose risks are not on one scale, and grouping or "
    "comparing patients across folds would mix them up."
)
ABSENT = {
    "training": "No model was trained epoch by epoch here, or no history was kept.",
    "attrition": "No attrition table was kept.",
    "over_time": "No predicted curve reaches the horizon.",
    "calibration": TOO_FEW,
    "recalibrated": "No predictions from before a recalibration are kept beside this report.",
    "decisions": "No net benefit could be computed.",
    "thirds": TOO_FEW,
    "examples": "Too few patients to show examples among whom nobody stands out.",
    "subgroups": "No subgroups were examined: the task names none under “subgroups”.",
    "attributions": "No attributions were computed; “ehrseq explain” makes them.",
    "sample_size": "No sample-size check was made.",
    "casemix": "The characteristics of the training patients were not kept.",
}
"""What the page says where a part is not there; the keys are fields of the summary, training apart."""
OF_PREDICTIONS = ("over_time", "calibration", "recalibrated", "decisions", "thirds", "examples")


def summarise_folder(folder: Path) -> Summary:
    """Read a finished study, or what ``ehrseq evaluate --report`` left.

    Raises:
        EhrError: comparison.json is absent or unreadable, or predictions belong to another cohort (exit 13).
    """
    return summarise(read_inputs(folder))


def summarise(inputs: Inputs) -> Summary:
    """All of it, from what is in hand.

    Raises:
        EhrError: predictions belong to another cohort (exit 13).
    """
    data, study = scrub(inputs.comparison, inputs.folder), scrub(inputs.study, inputs.folder)
    rows, differences = _rows(data["rows"]), _differences(data.get("differences", []))
    horizons = tuple(float(day) for day in data.get("horizons") or [data["tau"]])
    first_line, findings = headline(rows, differences, horizons)
    rival = pair_of(rows, differences)[1]
    summary = Summary(
        study=str(data.get("study", "study")),
        task=data.get("task", {}),
        first_line=first_line,
        findings=tuple(findings),
        power=tuple(power(rows, differences, data["n"], data["events"], data.get("sample_size"))),
        n=cell(data["n"]),
        events=events_cell(data["n"], data["events"]),
        causes=_causes(data),
        split=str(data.get("split", "held_out")),
        folds=_whole(data.get("folds")),
        parts=_parts(data, inputs.cohort),
        tau=float(data["tau"]),
        horizon=max(horizons),
        horizons=horizons,
        warnings=tuple(data.get("warnings", [])),
        recipe=data.get("recipe", {}),
        interval=str(data.get("interval", "")),
        rows=rows,
        differences=_shown_differences(differences, rows, rival),
        against=rival.model if rival else None,
        source=source_of(inputs.cohort, study, data),
        sample_size=data.get("sample_size") or {},
        runs=inputs.runs,
        trajectories=inputs.trajectories,
        cause_figures=_cause_figures(data.get("cause_figures") or {}, rows),
        subgroups=subgroups_of(data.get("subgroups") or []),
        attributions=attributions_of(scrub(inputs.attributions, inputs.folder)),
        casemix=scrub(inputs.casemix, inputs.folder),
        tokens=token_facts(data.get("tokens", {})),
        provenance=provenance(data, study),
        **attrition_of(inputs.cohort),
    )
    summary = _with_curves(summary, inputs)
    facts = Facts(summary, data["n"], data["events"], data.get("tokens") or {}, study)
    return replace(summary, limitations=limitations(facts), missing=_missing(summary, inputs))


def _with_curves(summary: Summary, inputs: Inputs) -> Summary:
    """Add what is drawn of predictions, as far as cohort and predictions are there."""
    shown, learned = shown_models(summary.rows, inputs, summary.tau), learned_of(inputs)
    if learned is None or not shown:
        return summary
    thirds = (
        risk_thirds(each.model, each.seed, each.predictions.risk, each.duration, each.event, summary.tau)
        for each in shown
        if not each.row.blend and not summary.pooled
    )
    causes = inputs.cohort.task.causes if inputs.cohort else ()
    return replace(
        summary,
        over_time=measured.over_time(shown, learned, summary.tau, pooled=summary.pooled),
        calibration=measured.calibrations(shown, summary.horizons, learned.censoring),
        recalibrated=measured.recalibrations(shown, summary.horizon, learned.censoring),
        decisions=measured.decisions(shown, summary.horizons, learned.censoring),
        thirds=tuple(panel for panel in thirds if panel is not None),
        examples=measured.examples(shown, summary.tau),
        incidence=incidences(causes, shown, summary.tau),
    )


def _missing(summary: Summary, inputs: Inputs) -> dict[str, str]:
    """Why a part is not there, for every part that is not."""
    absent = {"training": summary.runs} | {part: getattr(summary, part) for part in ABSENT if part != "training"}
    reasons = dict(ABSENT)
    if inputs.cohort is None:
        reasons |= dict.fromkeys(("attrition", *OF_PREDICTIONS), NO_COHORT)
    elif not shown_files(inputs):
        reasons |= dict.fromkeys(OF_PREDICTIONS, NO_PREDICTIONS)
    elif summary.pooled:
        reasons["thirds"] = POOLED
    return {part: reasons[part] for part, content in absent.items() if not content}


def shown_files(inputs: Inputs) -> bool:
    """Whether any predictions are kept."""
    return len(inputs.predictions) > 0


def _causes(data: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    """Events of each cause among the evaluated, for people.

    >>> _causes({"n": 100, "causes": {"outcome": 36, "death": 4}})
    (('outcome', '36'), ('death', '<10'))
    """
    return tuple((str(cause), events_cell(int(data["n"]), int(k))) for cause, k in (data.get("causes") or {}).items())


def _rows(data: Sequence[Mapping[str, Any]]) -> tuple[Row, ...]:
    rows = [_row(row) for row in data]
    top, sharpest = best_of(rows), best_of(rows, metric="ibs")
    marked = [replace(row, best=row is top, best_ibs=row is sharpest) for row in rows]
    return tuple(sorted(marked, key=lambda row: (_kind_rank(row.kind), -_finite(row.uno_c.value, -1.0))))


def _row(row: Mapping[str, Any]) -> Row:
    return Row(
        model=str(row["model"]),
        kind=str(row.get("kind", "strategy")),
        why=str(row.get("why") or ""),
        seeds=tuple(row.get("seeds") or ()),
        trainable=_whole(row.get("trainable")),
        total=_whole(row.get("total")),
        seconds=_real(row.get("seconds")),
        alpha=_real(row.get("alpha")),
        notes=(*map(str, row.get("notes") or ()), *_not_computed(row.get("not_computed") or {})),
        metrics={name: Interval.of(value) for name, value in (row.get("metrics") or {}).items()},
        checks=row.get("checks") or {},
    )


def _cause_figures(
    data: Mapping[str, Sequence[Mapping[str, Any]]], rows: Sequence[Row]
) -> tuple[tuple[str, tuple[Row, ...]], ...]:
    """Each other cause's rows, in the order of ``rows``."""
    order = [row.model for row in rows]
    found = {str(cause): [_row(row) for row in own] for cause, own in data.items()}
    return tuple(
        (cause, tuple(sorted(own, key=lambda row: order.index(row.model) if row.model in order else len(order))))
        for cause, own in found.items()
    )


def _not_computed(reasons: Mapping[str, Any]) -> list[str]:
    return [f"{metric} was not computed: {reason}" for metric, reason in reasons.items()]


def _kind_rank(kind: str) -> int:
    return KINDS.index(kind) if kind in KINDS else len(KINDS)


def _whole(value: Any) -> int | None:
    return None if value is None else int(value)


def _real(value: Any) -> float | None:
    return None if value is None else float(value)


def _finite(value: float, otherwise: float) -> float:
    return value if math.isfinite(value) else otherwise


def _differences(data: Sequence[Mapping[str, Any]]) -> tuple[Difference, ...]:
    pairs: dict[tuple[str, str], dict[str, Mapping[str, Any]]] = {}
    for d in data:
        pairs.setdefault((str(d["model"]), str(d["against"])), {})[str(d.get("metric", "uno_c"))] = d
    return tuple(_difference(*pair, found) for pair, found in pairs.items())


def _difference(model: str, against: str, found: Mapping[str, Mapping[str, Any]]) -> Difference:
    judged = found.get("uno_c", {})
    bounds = {"value": judged.get("value"), "low": judged.get("low90"), "high": judged.get("high90")}
    metrics = {metric: Interval.of(d) for metric, d in found.items()}
    word, why = (str(judged.get(key) or "") for key in ("word", "why"))
    return Difference(model, against, metrics, word, Interval.of(bounds), why)


def _shown_differences(
    differences: Sequence[Difference], rows: Sequence[Row], rival: Row | None
) -> tuple[Difference, ...]:
    """Those against the row the headline is set against, then those against a control, each largest first; all of them
    where there is none against it."""
    if any(row.kind == "predictions" for row in rows):
        return tuple(differences)
    controls = {row.model for row in rows if row.kind == "control"}
    mine = [d for d in differences if rival is not None and d.against == rival.model]
    beside = [d for d in differences if mine and d.against in controls and d not in mine]
    return tuple(each for part in (mine or differences, beside)
                 for each in sorted(part, key=lambda d: -_finite(d.uno_c.value, -1.0)))  # fmt: skip


def _parts(data: Mapping[str, Any], cohort: Cohort | None) -> tuple[tuple[str, str, str], ...]:
    """Training and tuning patients and their outcomes, as the comparison has them or else the cohort beside it."""
    named = (("training", TRAIN), ("tuning", TUNING))
    counts = {part: (data.get(f"n_{split}"), data.get(f"events_{split}")) for part, split in named}
    if cohort is not None and "n_train" not in data and data.get("folds") is None:
        counts = {part: _counted(cohort, split, float(data["tau"])) for part, split in named}
    return tuple(
        (part, cell(int(n)), events_cell(int(n), int(events)))
        for part, (n, events) in counts.items()
        if n and events is not None
    )


def _counted(cohort: Cohort, split: str, tau: float) -> tuple[int, int]:
    rows = cohort.table.filter(pl.col("split") == split)
    return rows.height, rows.filter((pl.col("event") == 1) & (pl.col("duration") <= tau)).height
