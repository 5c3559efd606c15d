"""What the comparison says in words after its first line: what contributed, calibration, how little data can tell."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from ehrsequencing.cohort.attrition import cell
from ehrsequencing.report.calibrated import calibration_finding
from ehrsequencing.report.contents import Difference, Interval, Row
from ehrsequencing.report.suppression import events_cell
from ehrsequencing.report.verdicts import contest_of, estimated, named, paired, signed, verdict

WIDE_INTERVAL = 0.1
"""An interval of Uno C wider than this is said to tell little."""
MIN_EVALUATED_EVENTS = 100
POWER_FACTOR = 2.8 / 3.92
"""A difference found four times out of five is 2.8 standard errors; a 95% interval is 3.92 of them wide."""
NOTHING = Interval(math.nan)


def best_of(
    rows: Sequence[Row], kind: str | None = None, *, metric: str = "uno_c", blend: bool | None = None
) -> Row | None:
    """The row with the best ``metric`` (highest; for ibs lowest), of any kind but the oracle unless asked for.

    Of equal rows the simplest. A blend in which the transformer has no weight is credited with nothing, unless ``kind``
    has no other row.
    """
    sign = -1.0 if metric == "ibs" else 1.0
    pool = [
        row
        for row in rows
        if (row.kind == kind if kind else row.kind != "oracle")
        and (blend is None or row.blend == blend)
        and math.isfinite(row.metrics.get(metric, NOTHING).value)
    ]
    return max(
        [row for row in pool if not weightless(row)] or (pool if kind else []),
        key=lambda row: (round(sign * row.metrics[metric].value, 12), row.kind == "baseline", not row.blend),
        default=None,
    )


def weightless(row: Row) -> bool:
    """A blend that leaves the transformer out: the wide model under another name."""
    return row.blend and row.alpha == 0


def pair_of(rows: Sequence[Row], differences: Sequence[Difference]) -> tuple[Row | None, Row | None]:
    """What the headline is about, and what it is set against: the best strategy (or file of predictions) and the best
    simple model; between files alone, as the differences have it; of a lone model, nothing."""
    row = best_of(rows, "strategy") or best_of(rows, "predictions")
    rival = best_of(rows, "baseline")
    if row is not None and rival is None:
        by_name = {each.model: each for each in rows}
        pairs = [(by_name.get(d.model), by_name.get(d.against)) for d in differences]
        row, rival = next(((a, b) for a, b in pairs if a and b and a.kind == "predictions"), (row, None))
    return (row or best_of(rows)), (rival if row is not None else None)


def headline(
    rows: Sequence[Row], differences: Sequence[Difference], horizons: Sequence[float] = ()
) -> tuple[str, list[str]]:
    """The first line (a simple model that wins or suffices is named first) and the findings after it."""
    row, rival = pair_of(rows, differences)
    if row is None:
        return "No model could be scored.", []
    if rival is None:
        return _alone(row), [text for text in (calibration_finding(row, horizons), _ibs_alone(row)) if text]
    contest = contest_of(row, rival, differences)
    more = [
        _weightless_finding(rows),
        _blend_finding(rows, differences, row, rival),
        _control_finding(rows, differences),
        calibration_finding(rival if contest.worse else row, horizons),
        _ibs_finding(rows, differences),
        _oracle_finding(rows),
    ]
    return verdict(contest), [sentence for sentence in more if sentence]


def _alone(row: Row) -> str:
    """Of a model with nothing beside it: how it ranks."""
    name = named(row)[0].upper() + named(row)[1:] if row.blend else row.model
    if row.uno_c.low <= 0.5:
        return f"{name} is not shown to rank patients better than a coin: Uno C {estimated(row.uno_c)}."
    return (
        f"{name} ranks patients with Uno C {estimated(row.uno_c)}: of two patients, the one whose outcome comes first "
        f"has the higher predicted risk about {100 * row.uno_c.value:.0f} times in 100."
    )


def _ibs_alone(row: Row) -> str:
    scaled = row.metrics.get("scaled_ibs", NOTHING)
    if math.isnan(scaled.value):
        return ""
    verb = "removes" if scaled.value >= 0 else "adds"
    return (
        f"It {verb} {abs(scaled.value):.0%} of the squared error of one curve for everybody (scaled IBS "
        f"{estimated(scaled)})."
    )


def _weightless_finding(rows: Sequence[Row]) -> str:
    names = [row.model for row in rows if weightless(row)]
    if not names:
        return ""
    if len(names) == 1:
        return f"In the blend {names[0]} the transformer has no weight (α 0): it is the wide model by another name."
    listed = f"{', '.join(names[:-1])} and {names[-1]}"
    return f"In the blends {listed} the transformer has no weight (α 0): they are the wide model by other names."


def _blend_finding(rows: Sequence[Row], differences: Sequence[Difference], row: Row, simple: Row) -> str:
    """What the transformer does by itself where the best strategy is a blend with the wide model."""
    alone = best_of(rows, "strategy", blend=False)
    if not row.blend or alone is None:
        return ""
    found = contest_of(alone, simple, differences)
    if found.difference is None:
        return f"By itself, without the wide model, the best transformer is {scored(alone)}."
    verdict = "better than" if found.better else "worse than" if found.worse else "not distinguishable from"
    return (
        f"By itself, without the wide model, the best transformer is {scored(alone)}: {verdict} {simple.model} "
        f"(difference {signed(found.difference)})."
    )


def _control_finding(rows: Sequence[Row], differences: Sequence[Difference]) -> str:
    """Whether pretraining contributed: by the paired differences of strategies and their controls, where there are."""
    of_kind = {row.model: row for row in rows if not row.blend and row.kind in ("strategy", "control")}
    pairs = [
        (of_kind[d.model], of_kind[d.against], d.uno_c)
        for d in differences
        if d.model in of_kind and d.against in of_kind and not math.isnan(d.uno_c.low)
    ]
    pairs = [
        (row, control, gain) for row, control, gain in pairs if (row.kind, control.kind) == ("strategy", "control")
    ]
    if not pairs:
        return _control_unpaired(rows)
    said = {True: "Pretraining helps: ", False: "Pretraining is not shown to help: "}
    return " ".join(
        opening + "; ".join(f"{scored(row)} against {scored(control)} for the control, difference {signed(gain)}"
                            for row, control, gain in pairs if (gain.low > 0) == helps) + "."
        for helps, opening in said.items()
        if any((gain.low > 0) == helps for _, _, gain in pairs)
    )  # fmt: skip


def _control_unpaired(rows: Sequence[Row]) -> str:
    control, alone = best_of(rows, "control"), best_of(rows, "strategy", blend=False)
    if control is None or alone is None or control.uno_c.value < alone.uno_c.value:
        return ""
    return (
        f"Pretraining is not shown to help: the control {scored(control)} is not below the best pretrained "
        f"transformer, {scored(alone)}."
    )


def _ibs_finding(rows: Sequence[Row], differences: Sequence[Difference]) -> str:
    """The row with the lowest IBS where another has the highest C: the best only if the paired interval says so."""
    by_ibs, by_c = best_of(rows, metric="ibs"), best_of(rows)
    if by_ibs is None or by_c is None or by_ibs.model == by_c.model or "ibs" not in by_c.metrics:
        return ""
    figures = f"{by_ibs.metrics['ibs'].value:.4f} against {by_c.metrics['ibs'].value:.4f} for {by_c.model}"
    opening, found = (
        "By the integrated Brier score, which also sees calibration,",
        paired(by_ibs, by_c, differences, "ibs"),
    )
    if found is None:
        return f"{opening} {by_ibs.model} is lowest: {figures} (lower is better; no paired interval was computed)."
    if found.high < 0:
        return f"{opening} {by_ibs.model} is best: {figures}, difference {signed(found, 4)} (lower is better)."
    return (
        f"{opening} {by_ibs.model} has the lowest, {figures}, but is not distinguishable from it: difference "
        f"{signed(found, 4)}."
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


def power(
    rows: Sequence[Row],
    differences: Sequence[Difference],
    n: int,
    events: int,
    sample_size: Mapping[str, Any] | None = None,
) -> list[str]:
    """How little the data can tell, where they can tell little; empty where there are events and precision enough."""
    row, rival = pair_of(rows, differences)
    widest = max((r for r in (row, rival) if r and r.uno_c.width > WIDE_INTERVAL), key=_uno_width, default=None)
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
    found = contest_of(row, rival, differences).difference if row and rival else None
    if row and rival and found is not None and found.width > 0:
        said.append(_detectable(found, f"{row.model} and {rival.model}"))
    return [*said, *_precision(sample_size or {})]


def _precision(sample_size: Mapping[str, Any]) -> list[str]:
    """What an evaluation of this size can resolve (Riley et al. 2021), where it is too small."""
    validation = sample_size.get("validation") or {}
    if validation.get("enough", True) or "oe_interval" not in validation:
        return []
    low, high = validation["oe_interval"]
    return [
        f"An evaluation of this size would place observed / expected no closer than {low:.2f} to {high:.2f}, and a "
        f"calibration slope no closer than ± {validation['widths']['slope'] / 2:.2f}, even of a perfect model."
    ]


def _detectable(difference: Interval, pair: str) -> str:
    size = difference.width * POWER_FACTOR
    said = f"{size:.{max(2, math.ceil(-math.log10(size)))}f}"
    missed = (
        f"With data of this size a true difference in Uno C between {pair} smaller than about {said} would go "
        "unnoticed more than one time in five"
    )
    if difference.low > 0 or difference.high < 0:
        return f"{missed}; the one found wants confirming on other patients."
    return f"{missed}: read the order of the models below as undecided, not as proof that they are equal."


def _uno_width(row: Row) -> float:
    return row.uno_c.width


def scored(row: Row) -> str:
    """A row with its Uno C, in a sentence."""
    return f"{named(row)} with {estimated(row.uno_c)}"
