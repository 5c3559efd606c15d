"""Performance by subgroup, for people: small groups are named, never counted or scored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ehrsequencing.config import MIN_CELL
from ehrsequencing.evaluation.subgroups import Cells, suppressed_groups
from ehrsequencing.report.contents import Group, Interval, Subgroup


def subgroups_of(data: Sequence[Mapping[str, Any]]) -> tuple[Subgroup, ...]:
    """``subgroups`` of comparison.json, its counts as ``suppressed_groups`` has them; a small group has no figures.

    >>> found = subgroups_of([{"name": "sex", "groups": [
    ...     {"group": "F", "n": 123, "events": 20, "metrics": {"lora": {"uno_c": {"value": 0.8}}}},
    ...     {"group": "M", "n": 104, "events": 6, "metrics": {"lora": {"uno_c": {"value": 0.7}}}}]}])
    >>> [(group.name, group.n, group.events, list(group.metrics)) for group in found[0].groups]
    [('F', '123', 'withheld', ['lora']), ('M', '104', '<10', [])]
    """
    return tuple(
        Subgroup(str(each["name"]), tuple(map(_group, each["groups"], suppressed_groups(each["groups"]))))
        for each in data
    )


def _group(data: Mapping[str, Any], cells: Cells) -> Group:
    n, events = int(data["n"]), int(data["events"])
    metrics = data.get("metrics", {}) if min(n, events, n - events) >= MIN_CELL else {}
    return Group(str(data["group"]), *cells, {model: _intervals(found) for model, found in metrics.items()})


def _intervals(figures: Mapping[str, Any]) -> dict[str, Interval]:
    return {name: Interval.of(value) for name, value in figures.items()}
