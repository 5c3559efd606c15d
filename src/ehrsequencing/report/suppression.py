"""Counts and texts for people: small cells hidden, also from subtraction; paths and machines left out."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ehrsequencing.cohort.attrition import cell
from ehrsequencing.config import MIN_CELL

_SMALL_COUNT = re.compile(
    r"(?<![\d.,<+-])(?<!than )(?<!least )(?<!most )(?<!under )(?<!over )[1-9](?= (?:[a-z-]+ )?"
    r"(?:event|outcome|patient|subject|record)s?\b)"
)
_ABSOLUTE_PATH = re.compile(r"(?<![\w/.])(?:[A-Za-z]:\\|~?/(?!/))[\w.+@-]+(?:[/\\][\w.+@-]*)*")


def events_cell(n: int, events: int) -> str:
    """Events among ``n`` patients, also where the others are the small cell.

    >>> events_cell(100, 36), events_cell(100, 4), events_cell(100, 97)
    ('36', '<10', 'over 90')
    """
    return f"over {n - MIN_CELL:,}" if n > MIN_CELL and 0 < n - events < MIN_CELL else cell(events)


def token_facts(stats: Mapping[str, Any]) -> dict[str, Any]:
    """Scalars of the token store; counts of patients and records are suppressed like every other."""
    counted = re.compile(r"rows|patients|subjects|records")
    return {
        key: cell(value) if isinstance(value, int) and counted.search(key) else value
        for key, value in stats.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }


def scrub(value: Any, folder: Path) -> Any:
    """The same JSON with absolute paths cut down to their last part and small counts of patients in words hidden.

    >>> scrub({"note": "read /home/jane/ward 3.csv, ICD10CM//E11, mmol/l: only 5 tuning events"}, Path("out"))
    {'note': 'read …/ward 3.csv, ICD10CM//E11, mmol/l: only <10 tuning events'}
    """
    if isinstance(value, Mapping):
        return {str(key): scrub(item, folder) for key, item in value.items()}
    if isinstance(value, list):
        return [scrub(item, folder) for item in value]
    if not isinstance(value, str):
        return value
    for known in (str(folder.resolve().parent), str(Path.home())):
        value = value.replace(known + "/", "…/") if known != "/" else value
    value = _ABSOLUTE_PATH.sub(lambda found: "…/" + re.split(r"[/\\]", found[0].rstrip("/\\"))[-1], value)
    return _SMALL_COUNT.sub(f"<{MIN_CELL}", value)
