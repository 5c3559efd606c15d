"""Performance by subgroup, for people: small groups are named, never counted or scored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ehrsequencing.cohort.attrition import suppress
from ehrsequencing.config import MIN_CELL
from ehrsequencing.report.contents import Group, Interval, Subgroup
from ehrsequencing.report.formats import thousands


def subgroups_of(data: Sequence[Mapping[str, Any]]) -> tuple[Subgroup, ...]:
    """``subgroups`` of comparison.json, suppressed.

    A count under 10, of a group's patients, its events or its patients without one, rounds every other count of that
    characteristic, since the whole is known; such a group has no figures.

    >>> found = subgroups_of([{"name": "sex", "groups": [
    ...     {"group": "F", "n": 123, "events": 20, "metrics": {"lora": {"uno_c": {"value": 0.8}}}},
    ...     {"group": "M", "n": 104, "events": 6, "metrics": {"lora": {"uno_c": {"value": 0.7}}}}]}])
    >>> [(group.name, group.n, group.events, list(group.metrics)) for group in found[0].groups]
    [('F', '123', '~20', ['lora']), ('M', '104', '<10', [])]
    """
    return tuple(_subgroup(each) for each in data)


def _subgroup(data: Mapping[str, Any]) -> Subgroup:
    groups = data["groups"]
    patients, events = [int(g["n"]) for g in groups], [int(g["events"]) for g in groups]
    without = [n - k for n, k in zip(patients, events, strict=True)]
    shown_n = suppress(patients)
    shown_events = suppress([*events, *without])[: len(events)]
    rows = []
    for k, group in enumerate(groups):
        large = min(patients[k], events[k], without[k]) >= MIN_CELL
        metrics = {model: _intervals(found) for model, found in group.get("metrics", {}).items()} if large else {}
        rows.append(Group(str(group["group"]), thousands(shown_n[k]), thousands(shown_events[k]), metrics))
    return Subgroup(str(data["name"]), tuple(rows))


def _intervals(figures: Mapping[str, Any]) -> dict[str, Interval]:
    return {name: Interval.of(value) for name, value in figures.items()}
