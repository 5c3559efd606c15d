"""Whether a model's risks can be believed, in one sentence: the horizon at which they are furthest off."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ehrsequencing.cohort.words import in_days
from ehrsequencing.report.contents import Interval, Row
from ehrsequencing.report.verdicts import estimated, named

NEAR_OE, NEAR_SLOPE = (0.8, 1.25), (0.5, 1.5)
"""Where the intervals of observed / expected and of the calibration slope have to lie for risks to be called right."""
NOTHING = Interval(math.nan)


@dataclass(frozen=True)
class Agreement:
    """When a sentence on calibration is said, by the observed / expected ratio and the slope, how bad it is (worse
    sentences first, then by how far off the risks at least are), and the sentence."""

    holds: Callable[[Interval, Interval], bool]
    rank: int
    off: Callable[[Interval, Interval], float]
    sentence: str


def _near(found: Interval, limits: tuple[float, float]) -> bool:
    """Whether the whole interval lies within the limits; also where there is none."""
    return math.isnan(found.low) or limits[0] <= found.low <= found.high <= limits[1]


AGREEMENTS: tuple[Agreement, ...] = (
    Agreement(lambda oe, slope: math.isnan(oe.low), -1, lambda oe, slope: 0.0, ""),
    Agreement(
        lambda oe, slope: oe.low > 1, 3, lambda oe, slope: math.log(oe.low),
        "The risks of {model} at {horizon} are too low on average: {oe}{slope}.",
    ),
    Agreement(
        lambda oe, slope: oe.high < 1, 3, lambda oe, slope: -math.log(max(oe.high, 1e-9)),
        "The risks of {model} at {horizon} are too high on average: {oe}{slope}.",
    ),
    Agreement(
        lambda oe, slope: slope.high < 1, 2, lambda oe, slope: 1 - slope.high,
        "The risks of {model} at {horizon} are {average} but too extreme: {oe}{slope}.",
    ),
    Agreement(
        lambda oe, slope: slope.low > 1, 2, lambda oe, slope: slope.low - 1,
        "The risks of {model} at {horizon} are {average} but not spread enough: {oe}{slope}.",
    ),
    Agreement(
        lambda oe, slope: _near(oe, NEAR_OE) and _near(slope, NEAR_SLOPE), 0, lambda oe, slope: 0.0,
        "The risks of {model} at {horizon} agree with what was observed: {oe}{slope}.",
    ),
    Agreement(
        lambda oe, slope: True, 1, lambda oe, slope: oe.width,
        "The risks of {model} at {horizon} are not shown to be off, but could be {could}: {oe}{slope}.",
    ),
)  # fmt: skip
"""The first that holds is said; limits that are not there hold nothing."""
OFF = 2
"""From this rank on something is shown to be off."""


def calibration_finding(row: Row, horizons: Sequence[float]) -> str:
    """Whether a model's risks can be believed, at the horizon at which they are worst, of equal ones the longest;
    nothing where it was not measured."""
    return _worst(row, horizons)[1]


def calibration_off(row: Row, horizons: Sequence[float]) -> str:
    """The same where something is shown to be off, else nothing."""
    rank, sentence = _worst(row, horizons)
    return sentence if rank >= OFF else ""


def _worst(row: Row, horizons: Sequence[float]) -> tuple[int, str]:
    found = []
    for horizon in horizons:
        oe, slope = (row.metrics.get(f"{name}@{horizon:.10g}", NOTHING) for name in ("oe", "slope"))
        each = next(each for each in AGREEMENTS if each.holds(oe, slope))
        found.append((each.rank, each.off(oe, slope), horizon, _said(each.sentence, row, horizon, oe, slope)))
    rank, _, _, sentence = max(found, default=(-1, 0.0, 0.0, ""))
    return rank, sentence


def _said(sentence: str, row: Row, horizon: float, oe: Interval, slope: Interval) -> str:
    return sentence.format(
        model=named(row),
        horizon=in_days(horizon),
        average="right on average" if _near(oe, NEAR_OE) else "not shown to be off on average",
        could=_could(oe, slope),
        oe=f"observed / expected {estimated(oe, 2)}",
        slope="" if math.isnan(slope.value) else f", calibration slope {estimated(slope, 2)}",
    )


def _could(oe: Interval, slope: Interval) -> str:
    """How far off intervals leave room for."""
    parts = []
    if not _near(oe, NEAR_OE):
        factor = max(oe.high, 1 / oe.low if oe.low > 0 else math.inf)
        parts.append(f"by a factor of {factor:.1f} on average" if factor < 100 else "by any factor on average")
    if not _near(slope, NEAR_SLOPE):
        low, high = slope.low < NEAR_SLOPE[0], slope.high > NEAR_SLOPE[1]
        parts.append(" or ".join([*["far too extreme"] * low, *["spread far too little"] * high]))
    return " and ".join(parts)
