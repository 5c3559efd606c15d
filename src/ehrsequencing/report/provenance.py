"""Where a study came from: its settings, seeds, versions and fingerprints, without a person or a machine."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ehrsequencing.cohort import Cohort
from ehrsequencing.cohort.words import in_days
from ehrsequencing.config import MIN_CELL
from ehrsequencing.nonparametric import KaplanMeier
from ehrsequencing.report.contents import Source


def provenance(data: Mapping[str, Any], study: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    seeds = sorted({seed for row in data["rows"] for seed in row.get("seeds") or ()})
    settings = study.get("study") or {}
    facts = {
        "command": study.get("command"),
        "data": _settings(settings.get("data")),
        "folds": settings.get("folds"),
        "labelled patients": settings.get("labelled"),
        "split seed": (settings.get("split") or {}).get("seed"),
        "training seeds": ", ".join(map(str, seeds)),
        "bootstrap resamples": settings.get("bootstrap"),
        "cohort fingerprint": data.get("cohort_fingerprint"),
        "token fingerprint": data.get("token_fingerprint"),
        **_flat(study.get("environment") or {}),
    }
    return tuple((label, str(value)) for label, value in facts.items() if value not in (None, ""))


def _settings(value: Any) -> str:
    """Nested settings on one line, those that are not set left out.

    >>> _settings({"meds": None, "simulate": {"patients": 6000, "seed": 0}})
    'simulate (patients 6000, seed 0)'
    """
    if not isinstance(value, Mapping):
        return "" if value is None else str(value)
    parts = [(key, inner) for key, inner in value.items() if inner is not None and inner is not False]
    return ", ".join(f"{k} ({_settings(v)})" if isinstance(v, Mapping) else f"{k} {v}" for k, v in parts)


def _flat(environment: Mapping[str, Any]) -> dict[str, Any]:
    """Nested versions as one level; what names a person or a machine is left out."""
    private = {"host", "hostname", "node", "user", "username", "cwd", "home"}
    flat: dict[str, Any] = {}
    for key, value in environment.items():
        if key.lower() in private:
            continue
        if isinstance(value, Mapping):
            flat |= _flat(value)
        else:
            flat[key] = ", ".join(map(str, value)) if isinstance(value, list) else value
    return flat


def source_of(cohort: Cohort | None, study: Mapping[str, Any], data: Mapping[str, Any]) -> Source:
    """Where the patients come from, how long they were followed, and how the evaluated ones were set apart."""
    settings = study.get("study") or {}
    given = settings.get("data") or {}
    split = settings.get("split") or {}
    kinds = {"calendar": bool(split.get("calendar")), "folds": bool(data.get("folds")), "random": bool(settings)}
    return Source(
        data=_settings(given),
        simulated=bool(given.get("simulate")) or any(row.get("kind") == "oracle" for row in data["rows"]),
        years="" if cohort is None else accrual(cohort.table["prediction_time"].dt.year().to_numpy()),
        follow_up="" if cohort is None else _follow_up(cohort),
        split=next((kind for kind, holds in kinds.items() if holds), ""),
    )


def accrual(years: np.ndarray) -> str:
    """The years of prediction, the ends such that at least 10 patients lie at or beyond each; "" for fewer patients.

    >>> accrual(np.repeat([2009, 2010, 2011, 2014], [3, 7, 20, 12]))
    '2010 to 2014'
    >>> accrual(np.full(30, 2013))
    '2013'
    """
    if years.size < MIN_CELL:
        return ""
    ordered = np.sort(years)
    first, last = int(ordered[MIN_CELL - 1]), int(ordered[-MIN_CELL])
    return f"{first} to {last}" if first < last else str(first)


def _follow_up(cohort: Cohort) -> str:
    """The median follow-up, events taken for censoring (reverse Kaplan–Meier); "" for fewer than 10 patients."""
    duration, event = cohort.table["duration"].to_numpy(), cohort.table["event"].to_numpy()
    if duration.size < MIN_CELL:
        return ""
    reverse = KaplanMeier.fit(duration, (event == 0).astype(np.int64))
    times = np.unique(duration)
    over = times[reverse.at(times) <= 0.5]
    return in_days(float(over[0])) if over.size else f"more than {in_days(float(times[-1]))}"
