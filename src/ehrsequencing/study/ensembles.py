"""Rows of a comparison that average a strategy's seeds, counted as what they cost: every one of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeVar

from ehrsequencing.ensemble import ensemble
from ehrsequencing.study.kept import Scored

Number = TypeVar("Number", int, float)
ENSEMBLE, ENDING = "ensemble", "-ensemble"


def ensembles(of_seeds: Sequence[Scored]) -> Iterator[Scored]:
    """For each model among these, where it has several seeds, the mean of their hazards."""
    for name in dict.fromkeys(item.model for item in of_seeds):
        members = [item for item in of_seeds if item.model == name]
        if len(members) > 1:
            yield _mean(f"{name}{ENDING}", members)


def _mean(name: str, members: Sequence[Scored]) -> Scored:
    first = members[0]
    before = [member.predictions if member.raw is None else member.raw for member in members]
    unchanged = all(member.raw is None for member in members)
    return Scored(
        model=name,
        kind=ENSEMBLE,
        why=f"the mean of the hazards of {len(members)} seeds of {first.model}: costs all of them",
        seed=first.seed,
        predictions=ensemble([member.predictions for member in members], name),
        raw=None if unchanged else ensemble(before, name),
        seconds=_sum([member.seconds for member in members]),
        trainable=_sum([member.trainable for member in members]),
        total=_sum([member.total for member in members]),
        notes=(
            f"mean of the hazards of seeds {', '.join(str(member.seed) for member in members)}; its interval is of "
            "these members: that others would have been trained is not in it",
        ),
    )


def _sum(values: Sequence[Number | None]) -> Number | None:
    known = [value for value in values if value is not None]
    return sum(known[1:], known[0]) if known else None
