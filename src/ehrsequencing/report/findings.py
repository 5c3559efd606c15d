"""What the comparison says in words: who wins or ties, what contributed, and how little the data can tell."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ehrsequencing.cohort.attrition import cell
from ehrsequencing.report.contents import Difference, Interval, Row
from ehrsequencing.report.suppression import events_cell

WIDE_INTERVAL = 0.1
"""An interval of Uno C wider than this is said to tell little."""
MIN_EVALUATED_EVENTS = 100
POWER_FACTOR = 2.8 / 3.92
"""A difference found four times out of five is 2.8 standard errors; a 95% interval is 3.92 of them wide."""


def best_of(
    rows: Sequence[Row], kind: str | None = None, *, metric: str = "uno_c", blend: bool | None = None
) -> Row | None:
    """The row with the best ``metric`` (highest; for ibs lowest), of any kind but the oracle unless asked for."""
    sign = -1.0 if metric == "ibs" else 1.0
    pool = [
        row
        for row in rows
        if (row.kind == kind if kind else row.kind != "oracle")
        and (blend is None or row.blend == blend)
        and math.isfinite(row.metrics.get(metric, Interval(math.nan)).value)
    ]
    return max(pool, key=lambda row: sign * row.metrics[metric].value, default=None)


def find_difference(differences: Sequence[Difference], model: Row, against: Row) -> Interval | None:
    """Uno C of ``model`` minus ``against``, also from the pair the other way round; None where neither has limits."""
    for d in differences:
        if math.isnan(d.uno_c.low):
            continue
        if (d.model, d.against) == (model.model, against.model):
            return d.uno_c
        if (d.model, d.against) == (against.model, model.model):
            return Interval(-d.uno_c.value, -d.uno_c.high, -d.uno_c.low)
    return None


def headline(rows: Sequence[Row], differences: Sequence[Difference]) -> tuple[str, list[str]]:
    """The first line (a simple model that wins or ties is named first) and the findings after it."""
    strategy, simple = best_of(rows, "strategy"), best_of(rows, "baseline")
    if strategy is None or simple is None:
        top = best_of(rows)
        first = "No model could be scored." if top is None else f"The highest Uno C is that of {_scored(top)}."
        return first + " There is nothing to set it against: a strategy and a simple model are both needed.", []
    first = _verdict(strategy, simple, find_difference(differences, strategy, simple))
    more = [
        _blend_finding(rows, differences, strategy, simple),
        _control_finding(rows),
        _ibs_finding(rows),
        _oracle_finding(rows),
    ]
    return first, [sentence for sentence in more if sentence]


def _verdict(strategy: Row, simple: Row, difference: Interval | None) -> str:
    deep, plain = _of(strategy.uno_c), _of(simple.uno_c)
    if difference is None:
        return (
            f"Which is better is not decided: {_name(strategy)} has Uno C {deep}, {simple.model} {plain}, and no "
            "paired interval of the difference was computed."
        )
    paired = f"the paired difference, {_signed(difference)},"
    if difference.low > 0:
        return (
            f"{_name(strategy, start=True)} ranks patients better than the best simple model: Uno C {deep} against "
            f"{plain} for {simple.model}; {paired} excludes zero."
        )
    if difference.high < 0:
        return (
            f"A simple model wins: {simple.model} has Uno C {plain}, the best transformer strategy is "
            f"{_scored(strategy)}; {paired} excludes zero."
        )
    if strategy.uno_c.value > simple.uno_c.value:
        return (
            f"A simple model ties: {_name(strategy)} has the higher Uno C, {deep} against {plain} for {simple.model}, "
            f"but {paired} includes zero."
        )
    return (
        f"A simple model is at least as good: {simple.model} has Uno C {plain}, the best transformer strategy is "
        f"{_scored(strategy)}, and {paired} includes zero."
    )


def _blend_finding(rows: Sequence[Row], differences: Sequence[Difference], strategy: Row, simple: Row) -> str:
    """What the transformer does by itself where the best strategy is a blend with the wide model."""
    alone = best_of(rows, "strategy", blend=False)
    if not strategy.blend or alone is None:
        return ""
    found = find_difference(differences, alone, simple)
    if found is None:
        return f"By itself, without the wide model, the best transformer is {_scored(alone)}."
    verdict = "better than" if found.low > 0 else "worse than" if found.high < 0 else "not distinguishable from"
    return (
        f"By itself, without the wide model, the best transformer is {_scored(alone)}: {verdict} {simple.model} "
        f"(difference {_signed(found)})."
    )


def _control_finding(rows: Sequence[Row]) -> str:
    control, alone = best_of(rows, "control"), best_of(rows, "strategy", blend=False)
    if control is None or alone is None or control.uno_c.value < alone.uno_c.value:
        return ""
    return (
        f"Pretraining is not shown to help: the control {_scored(control)} is not below the best pretrained "
        f"transformer, {_scored(alone)}."
    )


def _ibs_finding(rows: Sequence[Row]) -> str:
    by_ibs, by_c = best_of(rows, metric="ibs"), best_of(rows)
    if by_ibs is None or by_c is None or by_ibs.model == by_c.model or "ibs" not in by_c.metrics:
        return ""
    return (
        f"By the integrated Brier score, which also sees calibration, {by_ibs.model} is best: "
        f"{by_ibs.metrics['ibs'].value:.4f} against {by_c.metrics['ibs'].value:.4f} for {by_c.model} (lower is better)."
    )


def _oracle_finding(rows: Sequence[Row]) -> str:
    oracle, top = best_of(rows, "oracle"), best_of(rows)
    if oracle is None or top is None or oracle.uno_c.value <= 0.5:
        return ""
    share = (top.uno_c.value - 0.5) / (oracle.uno_c.value - 0.5)
    return (
        f"The true risk, known here because the records are simulated, would score {oracle.uno_c.value:.3f}; "
        f"{top.model} recovers {share:.0%} of its distance above 0.5."
    )


def power(rows: Sequence[Row], differences: Sequence[Difference], n: int, events: int) -> list[str]:
    """How little the data can tell, where they can tell little; empty where there are events and precision enough."""
    strategy, simple = best_of(rows, "strategy"), best_of(rows, "baseline")
    widest = max((r for r in (strategy, simple) if r and r.uno_c.width > WIDE_INTERVAL), key=_uno_width, default=None)
    few = events < MIN_EVALUATED_EVENTS
    if not few and widest is None:
        return []
    said = []
    if few:
        said.append(
            f"This can tell little: only {events_cell(n, events)} of {cell(n)} evaluated patients had the outcome, and "
            f"under {MIN_EVALUATED_EVENTS} events models are hard to rank."
        )
    if widest is not None:
        opening = "The" if few else "This can tell little: the"
        said.append(
            f"{opening} 95% interval of {widest.model} runs from {widest.uno_c.low:.2f} to {widest.uno_c.high:.2f}, "
            f"{widest.uno_c.width:.2f} wide."
        )
    found = find_difference(differences, strategy, simple) if strategy and simple else None
    if found is not None and math.isfinite(found.width):
        said.append(_detectable(found))
    return said


def _detectable(difference: Interval) -> str:
    size = f"true differences in Uno C smaller than about {difference.width * POWER_FACTOR:.2f}"
    missed = f"With data of this size {size} would go unnoticed more than one time in five"
    if difference.low > 0 or difference.high < 0:
        return f"{missed}; the one found wants confirming on other patients."
    return f"{missed}: read the order of the models below as undecided, not as proof that they are equal."


def _uno_width(row: Row) -> float:
    return row.uno_c.width


def _name(row: Row, *, start: bool = False) -> str:
    article = "The" if start else "the"
    return f"{article} blend {row.model}" if row.blend else row.model


def _scored(row: Row) -> str:
    return f"{_name(row)} with {_of(row.uno_c)}"


def _of(interval: Interval) -> str:
    if math.isnan(interval.low):
        return f"{interval.value:.3f}"
    return f"{interval.value:.3f} ({interval.low:.3f}\N{NO-BREAK SPACE}to\N{NO-BREAK SPACE}{interval.high:.3f})"


def _signed(interval: Interval) -> str:
    """A difference with its signs.

    >>> _signed(Interval(-0.012, -0.03, 0.004)).replace("\N{NO-BREAK SPACE}", " ")
    '−0.012 (−0.030 to +0.004)'
    """
    value, low, high = (f"{x:+.3f}".replace("-", "−") for x in (interval.value, interval.low, interval.high))
    return f"{value} ({low}\N{NO-BREAK SPACE}to\N{NO-BREAK SPACE}{high})"
