"""Files of a finished study -> one Summary: every number and sentence the report shows, small cells suppressed."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64

from ehrsequencing.cohort.attrition import cell
from ehrsequencing.errors import EhrError, Exit
from ehrsequencing.report.contents import KINDS, Difference, Interval, Row, Run, Summary
from ehrsequencing.report.findings import best_of, headline, power
from ehrsequencing.report.patients import read_trajectories, with_patients
from ehrsequencing.report.provenance import provenance
from ehrsequencing.report.suppression import events_cell, scrub, token_facts

_RUN = re.compile(r"^(?P<model>.+?)-(?P<seed>\d+)(?:-fold(?P<fold>\d+))?$")


def summarise(study_folder: Path) -> Summary:
    """Read a finished study.

    Args:
        study_folder: comparison.json, and where they are there study.json, cohort/, models/, predictions/.

    Raises:
        EhrError: comparison.json is absent or unreadable, or predictions belong to another cohort (exit 13).
    """
    data = scrub(_read_json(study_folder / "comparison.json"), study_folder)
    study = scrub(_optional_json(study_folder / "study.json"), study_folder)
    rows, differences = _rows(data["rows"]), _differences(data.get("differences", []))
    best = {kind: best_of(rows, kind) for kind in KINDS}
    first_line, findings = headline(rows, differences)
    summary = Summary(
        study=str(data.get("study", "study")),
        task=data.get("task", {}),
        first_line=first_line,
        findings=tuple(findings),
        power=tuple(power(rows, differences, data["n"], data["events"])),
        n=cell(data["n"]),
        events=events_cell(data["n"], data["events"]),
        causes=_causes(data),
        split=str(data.get("split", "held_out")),
        folds=_whole(data.get("folds")),
        parts=_parts(data),
        tau=float(data["tau"]),
        horizon=float(max(data.get("horizons") or [data["tau"]])),
        warnings=tuple(data.get("warnings", [])),
        recipe=data.get("recipe", {}),
        interval=str(data.get("interval", "")),
        rows=rows,
        differences=_shown_differences(differences, best["baseline"]),
        against=best["baseline"].model if best["baseline"] else None,
        runs=tuple(read_runs(study_folder / "models")),
        tokens=token_facts(data.get("tokens", {})),
        provenance=provenance(data, study),
    )
    summary = replace(summary, trajectories=read_trajectories(study_folder))
    return with_patients(summary, study_folder, str(data.get("cohort_fingerprint", "")))


def _causes(data: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    """Events of each cause among the evaluated, for people.

    >>> _causes({"n": 100, "causes": {"outcome": 36, "death": 4}})
    (('outcome', '36'), ('death', '<10'))
    """
    return tuple((str(cause), events_cell(int(data["n"]), int(k))) for cause, k in (data.get("causes") or {}).items())


def _rows(data: Sequence[Mapping[str, Any]]) -> tuple[Row, ...]:
    rows = [
        Row(
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
        )
        for row in data
    ]
    top, sharpest = best_of(rows), best_of(rows, metric="ibs")
    marked = [replace(row, best=row is top, best_ibs=row is sharpest) for row in rows]
    return tuple(sorted(marked, key=lambda row: (_kind_rank(row.kind), -_finite(row.uno_c.value, -1.0))))


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
    pairs: dict[tuple[str, str], dict[str, Interval]] = {}
    for d in data:
        pairs.setdefault((str(d["model"]), str(d["against"])), {})[str(d.get("metric", "uno_c"))] = Interval.of(d)
    return tuple(Difference(*pair, metrics) for pair, metrics in pairs.items())


def _shown_differences(differences: Sequence[Difference], simple: Row | None) -> tuple[Difference, ...]:
    """Those against the best simple model, largest first; all of them where there is none against it."""
    mine = [d for d in differences if simple is not None and d.against == simple.model]
    return tuple(sorted(mine or differences, key=lambda d: -_finite(d.uno_c.value, -1.0)))


def read_runs(models: Path) -> list[Run]:
    """Every history.json of at least two epochs under ``models``, by model, seed and fold."""
    runs = []
    for path in sorted(models.glob("*/history.json")):
        found = _RUN.match(path.parent.name)
        history = _read_json(path)
        if found is None or not isinstance(history, list) or len(history) < 2:
            continue
        columns = {key: _column(history, key) for key in ("tuning_c", "tuning_brier", "train_c")}
        epoch = np.arange(1.0, len(history) + 1)
        kept = [i for i, line in enumerate(history) if line.get("best")]
        fold = None if found["fold"] is None else int(found["fold"])
        selected = kept[-1] if kept else None
        runs.append(Run(found["model"], int(found["seed"]), fold, epoch, **columns, selected=selected))
    return runs


def _column(history: Sequence[Mapping[str, Any]], key: str) -> Float64[np.ndarray, " e"]:
    return np.array([math.nan if epoch.get(key) is None else float(epoch[key]) for epoch in history])


def _parts(data: Mapping[str, Any]) -> tuple[tuple[str, str, str], ...]:
    named = (("training", "n_train", "events_train"), ("tuning", "n_tuning", "events_tuning"))
    return tuple(
        (part, cell(int(data[n])), events_cell(int(data[n]), int(data[events])))
        for part, n, events in named
        if data.get(n) is not None and data.get(events) is not None
    )


def _optional_json(path: Path) -> dict[str, Any]:
    return dict(_read_json(path)) if path.exists() else {}


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        what, fix = "the study is not finished: its comparison is missing", "run `ehrseq run` to its end first"
    except (OSError, ValueError) as error:
        what, fix = f"the file cannot be read as JSON: {error}", "run the study again"
    raise EhrError(what, str(path), fix, code=Exit.BUNDLE)
