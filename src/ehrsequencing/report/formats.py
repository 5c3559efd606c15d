"""Numbers for people: the filters of the template."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

from ehrsequencing.report.contents import Interval
from ehrsequencing.report.numbers import number, percent, plus


def estimate(interval: Interval | None, digits: int = 3) -> str:
    """
    >>> estimate(Interval(0.81234, 0.79, 0.83)), estimate(Interval(-0.2), 1), estimate(None)
    ('0.812', '−0.2', '–')
    """
    return "–" if interval is None else number(interval.value, digits)


def limits(interval: Interval | None, digits: int = 3) -> str:
    """
    >>> limits(Interval(0.81234, 0.79, 0.83)), limits(Interval(0.0, -0.1, 0.1)), limits(Interval(0.8))
    ('(0.790–0.830)', '(−0.100 to 0.100)', '')
    """
    if interval is None or math.isnan(interval.low):
        return ""
    to = " to " if interval.low < 0 else "–"
    return f"({number(interval.low, digits)}{to}{number(interval.high, digits)})"


def signed(interval: Interval | None, digits: int = 3) -> str:
    """
    >>> signed(Interval(-0.0213, -0.05, 0.0)), signed(Interval(0.2)), signed(None)
    ('−0.021 (−0.050 to 0.000)', '+0.200', '–')
    """
    if interval is None or math.isnan(interval.value):
        return "–"
    value, low, high = (plus(x, digits) for x in (interval.value, interval.low, interval.high))
    return value if math.isnan(interval.low) else f"{value} ({low} to {high})"


def zero(interval: Interval | None) -> str:
    """Whether zero is in the interval.

    >>> zero(Interval(0.1, 0.01, 0.2)), zero(Interval(0.1, 0.0, 0.2))
    ('excluded, better', 'included')
    """
    if interval is None or math.isnan(interval.low):
        return "–"
    return "excluded, better" if interval.low > 0 else "excluded, worse" if interval.high < 0 else "included"


def count(value: int | None) -> str:
    return "–" if value is None else f"{value:,}"


def share(part: int | None, whole: int | None) -> str:
    """
    >>> share(16_424, 499_000), share(499_000, 499_000), share(None, 10)
    ('3.3%', '100%', '')
    """
    if part is None or not whole:
        return ""
    percents = 100 * part / whole
    return f"{percents:.0f}%" if percents >= 99.95 else f"{percents:.1f}%"


def duration(seconds: float | None) -> str:
    """
    >>> duration(0.4), duration(75.0), duration(7200.0), duration(None)
    ('0.4 s', '1.2 min', '2.0 h', '–')
    """
    if seconds is None:
        return "–"
    if seconds < 0.05:
        return "<0.1 s"
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 3600 else f"{seconds / 3600:.1f} h"


def points(value: float) -> str:
    """A share of risk as percentage points.

    >>> points(-0.0123)
    '−1.23'
    """
    return plus(100 * value, 2)


def within(share: float) -> str:
    """A small error of a risk.

    >>> within(0.00001), within(0.0004)
    ('less than 0.01 percentage points', '0.04 percentage points')
    """
    return f"{100 * share:.2f} percentage points" if share >= 1e-4 else "less than 0.01 percentage points"


def p_value(p: float | None) -> str:
    """
    >>> p_value(0.00004), p_value(0.2345), p_value(None)
    ('<0.001', '0.234', '–')
    """
    return "–" if p is None or math.isnan(p) else "<0.001" if p < 0.001 else f"{p:.3f}"


def thousands(text: str) -> str:
    """A count that is text already, suppressed or not.

    >>> thousands("1145"), thousands("<10"), thousands("~1140")
    ('1,145', '<10', '~1,140')
    """
    return re.sub(r"\d{4,}", lambda found: f"{int(found[0]):,}", text)


FORMATS: Mapping[str, Callable[..., Any]] = {
    "estimate": estimate,
    "limits": limits,
    "signed": signed,
    "zero": zero,
    "count": count,
    "duration": duration,
    "share": share,
    "points": points,
    "within": within,
    "p_value": p_value,
    "percent": percent,
    "number": number,
    "thousands": thousands,
}
