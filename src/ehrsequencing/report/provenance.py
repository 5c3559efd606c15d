"""Where a study came from: its settings, seeds, versions and fingerprints, without a person or a machine."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


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
