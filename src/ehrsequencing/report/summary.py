"""Files of a finished study -> one Summary: every number and sentence the report shows, small cells suppressed."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64, Int64

from ehrsequencing.cohort import Cohort
from ehrsequencing.cohort.attrition import AttritionGroup, cell, suppress_attrition
from ehrsequencing.config import MIN_CELL
from ehrsequencing.errors import EhrError, Exit
from ehrsequencing.evaluation.calibration import calibration_curve
from ehrsequencing.nonparametric import KaplanMeier
from ehrsequencing.predictions import Predictions
from ehrsequencing.timegrid import truncate

KINDS = ("oracle", "strategy", "control", "baseline")
"""The order of the comparison table."""
WIDE_INTERVAL = 0.1
"""An interval of Uno C wider than this is said to tell little."""
MIN_EVALUATED_EVENTS = 100
MAX_CALIBRATION_GROUPS, EVENTS_PER_GROUP = 10, 5
KM_POINTS = 101
"""Kaplan–Meier curves are drawn on this many equal points, so that no single event day can be read off."""
AT_RISK_POINTS = 6
THIRDS = ("lowest third", "middle third", "highest third")
_RUN = re.compile(r"^(?P<model>.+?)-(?P<seed>\d+)(?:-fold(?P<fold>\d+))?$")
_SMALL_COUNT = re.compile(
    r"(?<![\d.,<+-])(?<!than )(?<!least )(?<!most )(?<!under )(?<!over )[1-9](?= (?:[a-z-]+ )?"
    r"(?:event|outcome|patient|subject|record)s?\b)"
)
_ABSOLUTE_PATH = re.compile(r"(?<![\w/.])(?:[A-Za-z]:\\|~?/(?!/))[\w.+@-]+(?:[/\\][\w.+@-]*)*")


@dataclass(frozen=True)
class Interval:
    """An estimate with its 95% interval; NaN where it was not computed."""

    value: float
    low: float = math.nan
    high: float = math.nan

    @classmethod
    def of(cls, data: Mapping[str, Any] | None) -> Interval:
        found = [(data or {}).get(key) for key in ("value", "low", "high")]
        return cls(*(math.nan if number is None else float(number) for number in found))

    @property
    def width(self) -> float:
        return self.high - self.low


@dataclass(frozen=True)
class Row:
    """One model of the comparison."""

    model: str
    kind: str
    why: str
    seeds: tuple[int, ...]
    trainable: int | None
    total: int | None
    seconds: float | None
    alpha: float | None
    notes: tuple[str, ...]
    metrics: Mapping[str, Interval]
    best: bool = False
    best_ibs: bool = False

    @property
    def blend(self) -> bool:
        return "+" in self.model

    @property
    def uno_c(self) -> Interval:
        return self.metrics.get("uno_c", Interval(math.nan))


@dataclass(frozen=True)
class Difference:
    """A paired difference ``model`` minus ``against`` on the same patients, by metric."""

    model: str
    against: str
    metrics: Mapping[str, Interval]

    @property
    def uno_c(self) -> Interval:
        return self.metrics.get("uno_c", Interval(math.nan))


@dataclass(frozen=True)
class Run:
    """One training: what was recorded at every epoch (counted from 1; arrays of one length) and which was kept."""

    model: str
    seed: int
    fold: int | None
    epoch: Float64[np.ndarray, " e"]
    tuning_c: Float64[np.ndarray, " e"]
    tuning_brier: Float64[np.ndarray, " e"]
    train_c: Float64[np.ndarray, " e"]
    selected: int | None


@dataclass(frozen=True)
class Calibration:
    """Groups of patients by predicted risk at the horizon: mean prediction against Kaplan–Meier, all as risks."""

    model: str
    predicted: Float64[np.ndarray, " g"]
    observed: Float64[np.ndarray, " g"]
    low: Float64[np.ndarray, " g"]
    high: Float64[np.ndarray, " g"]


@dataclass(frozen=True)
class RiskCurve:
    """Kaplan–Meier of one third of the patients, as far as MIN_CELL are at risk; ``at_risk`` is for people."""

    label: str
    times: Float64[np.ndarray, " m"]
    survival: Float64[np.ndarray, " m"]
    low: Float64[np.ndarray, " m"]
    high: Float64[np.ndarray, " m"]
    at_risk: tuple[str, ...]


@dataclass(frozen=True)
class RiskThirds:
    """The three curves of one model and the times (days) at which the numbers at risk stand."""

    model: str
    seed: int
    ticks: Float64[np.ndarray, " k"]
    curves: tuple[RiskCurve, ...]


@dataclass(frozen=True)
class Summary:
    """Everything the report shows; nothing in it identifies a patient or a folder of this machine."""

    study: str
    task: Mapping[str, Any]
    first_line: str
    findings: tuple[str, ...]
    power: tuple[str, ...]
    n: str
    events: str
    split: str
    folds: int | None
    parts: tuple[tuple[str, str, str], ...]
    tau: float
    horizon: float
    warnings: tuple[str, ...]
    recipe: Mapping[str, Any]
    interval: str
    rows: tuple[Row, ...]
    differences: tuple[Difference, ...]
    against: str | None
    start: str = ""
    attrition: tuple[AttritionGroup, ...] = ()
    runs: tuple[Run, ...] = ()
    calibration: tuple[Calibration, ...] = ()
    thirds: tuple[RiskThirds, ...] = ()
    tokens: Mapping[str, Any] = field(default_factory=dict)
    provenance: tuple[tuple[str, str], ...] = ()
    missing: Mapping[str, str] = field(default_factory=dict)


def summarise(study_folder: Path) -> Summary:
    """Read a finished study.

    Args:
        study_folder: comparison.json, and where they are there study.json, cohort/, models/, predictions/.

    Raises:
        EhrError: comparison.json is absent or unreadable, or predictions belong to another cohort (exit 13).
    """
    data = _scrub(_read_json(study_folder / "comparison.json"), study_folder)
    study = _scrub(_optional_json(study_folder / "study.json"), study_folder)
    rows, differences = _rows(data["rows"]), _differences(data.get("differences", []))
    best = {kind: best_of(rows, kind) for kind in KINDS}
    first_line, findings = headline(rows, differences)
    summary = Summary(
        study=str(data.get("study", "study")),
        task=data.get("task", {}),
        first_line=first_line,
        findings=tuple(findings),
        power=tuple(power(rows, differences, data["n"], data["events"])),
        n=cell(data["n"]),
        events=events_cell(data["n"], data["events"]),
        split=str(data.get("split", "held_out")),
        folds=_whole(data.get("folds")),
        parts=_parts(data),
        tau=float(data["tau"]),
        horizon=float(max(data.get("horizons") or [data["tau"]])),
        warnings=tuple(data.get("warnings", [])),
        recipe=data.get("recipe", {}),
        interval=str(data.get("interval", "")),
        rows=rows,
        differences=_shown_differences(differences, best["baseline"]),
        against=best["baseline"].model if best["baseline"] else None,
        runs=tuple(read_runs(study_folder / "models")),
        tokens=token_facts(data.get("tokens", {})),
        provenance=_provenance(data, study),
    )
    return _with_patients(summary, study_folder, str(data.get("cohort_fingerprint", "")))


def events_cell(n: int, events: int) -> str:
    """Events among ``n`` patients, also where the others are the small cell.

    >>> events_cell(100, 36), events_cell(100, 4), events_cell(100, 97)
    ('36', '<10', 'over 90')
    """
    return f"over {n - MIN_CELL:,}" if n > MIN_CELL and 0 < n - events < MIN_CELL else cell(events)


def _rows(data: Sequence[Mapping[str, Any]]) -> tuple[Row, ...]:
    rows = [
        Row(
            model=str(row["model"]),
            kind=str(row.get("kind", "strategy")),
            why=str(row.get("why") or ""),
            seeds=tuple(row.get("seeds") or ()),
            trainable=_whole(row.get("trainable")),
            total=_whole(row.get("total")),
            seconds=_real(row.get("seconds")),
            alpha=_real(row.get("alpha")),
            notes=(*map(str, row.get("notes") or ()), *_not_computed(row.get("not_computed") or {})),
            metrics={name: Interval.of(value) for name, value in (row.get("metrics") or {}).items()},
        )
        for row in data
    ]
    top, sharpest = best_of(rows), best_of(rows, metric="ibs")
    marked = [replace(row, best=row is top, best_ibs=row is sharpest) for row in rows]
    return tuple(sorted(marked, key=lambda row: (_kind_rank(row.kind), -_finite(row.uno_c.value, -1.0))))


def _not_computed(reasons: Mapping[str, Any]) -> list[str]:
    return [f"{metric} was not computed: {reason}" for metric, reason in reasons.items()]


def _kind_rank(kind: str) -> int:
    return KINDS.index(kind) if kind in KINDS else len(KINDS)


def _whole(value: Any) -> int | None:
    return None if value is None else int(value)


def _real(value: Any) -> float | None:
    return None if value is None else float(value)


def _finite(value: float, otherwise: float) -> float:
    return value if math.isfinite(value) else otherwise


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


def _differences(data: Sequence[Mapping[str, Any]]) -> tuple[Difference, ...]:
    pairs: dict[tuple[str, str], dict[str, Interval]] = {}
    for d in data:
        pairs.setdefault((str(d["model"]), str(d["against"])), {})[str(d.get("metric", "uno_c"))] = Interval.of(d)
    return tuple(Difference(*pair, metrics) for pair, metrics in pairs.items())


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


def _shown_differences(differences: Sequence[Difference], simple: Row | None) -> tuple[Difference, ...]:
    """Those against the best simple model, largest first; all of them where there is none against it."""
    mine = [d for d in differences if simple is not None and d.against == simple.model]
    return tuple(sorted(mine or differences, key=lambda d: -_finite(d.uno_c.value, -1.0)))


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


POWER_FACTOR = 2.8 / 3.92
"""A difference found four times out of five is 2.8 standard errors; a 95% interval is 3.92 of them wide."""


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


def read_runs(models: Path) -> list[Run]:
    """Every history.json of at least two epochs under ``models``, by model, seed and fold."""
    runs = []
    for path in sorted(models.glob("*/history.json")):
        found = _RUN.match(path.parent.name)
        history = _read_json(path)
        if found is None or not isinstance(history, list) or len(history) < 2:
            continue
        columns = {key: _column(history, key) for key in ("tuning_c", "tuning_brier", "train_c")}
        epoch = np.arange(1.0, len(history) + 1)
        kept = [i for i, line in enumerate(history) if line.get("best")]
        fold = None if found["fold"] is None else int(found["fold"])
        selected = kept[-1] if kept else None
        runs.append(Run(found["model"], int(found["seed"]), fold, epoch, **columns, selected=selected))
    return runs


def _column(history: Sequence[Mapping[str, Any]], key: str) -> Float64[np.ndarray, " e"]:
    return np.array([math.nan if epoch.get(key) is None else float(epoch[key]) for epoch in history])


def _with_patients(summary: Summary, folder: Path, fingerprint: str) -> Summary:
    """Add what needs the cohort and the predictions; where they are absent, say why in ``missing``."""
    missing = {} if summary.runs else {"training": "No model was trained epoch by epoch, or no history was kept."}
    if not (folder / "cohort" / "cohort.parquet").exists():
        absent = "The cohort was not kept beside this report."
        return replace(summary, missing=missing | dict.fromkeys(("attrition", "calibration", "thirds"), absent))
    cohort = Cohort.read(folder / "cohort")
    steps = [tuple(step) for step in cohort.attrition.select("rule", "why", "removed", "remaining").rows()]
    start, attrition = suppress_attrition([(str(r), str(w or ""), int(a), int(b)) for r, w, a, b in steps])
    calibration, thirds = [], []
    for row in _shown_models(summary.rows):
        scored = _predictions_of(row, folder, fingerprint)
        if scored is None:
            continue
        outcome = _outcome(cohort, scored, summary.tau)
        calibration.append(calibrate(row.model, scored, *outcome, summary.horizon))
        if not row.blend:
            thirds.append(risk_thirds(row.model, _first_seed(row), scored.risk, *outcome, summary.tau))
    kept_calibration = tuple(c for c in calibration if c is not None)
    kept_thirds = tuple(t for t in thirds if t is not None)
    few = "Too few patients or events for groups that could be shown." if calibration else "No predictions were kept."
    missing |= {} if kept_calibration else {"calibration": few}
    missing |= {} if kept_thirds else {"thirds": few}
    missing |= {} if attrition else {"attrition": "No attrition table was kept."}
    return replace(
        summary,
        start=start,
        attrition=tuple(attrition),
        calibration=kept_calibration,
        thirds=kept_thirds,
        missing=missing,
    )


def _shown_models(rows: Sequence[Row]) -> list[Row]:
    """The best transformer by itself, the best simple model, the best blend: those of them that exist."""
    chosen = (best_of(rows, "strategy", blend=False), best_of(rows, "baseline"), best_of(rows, "strategy", blend=True))
    return [row for row in chosen if row is not None]


def _predictions_of(row: Row, folder: Path, fingerprint: str) -> Predictions | None:
    """The predictions of a model's first seed; one trained model, not an average nobody would deploy."""
    path = folder / "predictions" / f"{row.model}-{_first_seed(row)}.parquet"
    if not path.exists():
        return None
    found = Predictions.read(path)
    if fingerprint and found.cohort_fingerprint != fingerprint:
        raise EhrError(
            f"the predictions of '{row.model}' were made for another cohort than the comparison's",
            str(path),
            "run the study again, or restore the folder as it was left",
            code=Exit.BUNDLE,
        )
    return found


def _first_seed(row: Row) -> int:
    return row.seeds[0] if row.seeds else 0


def _outcome(
    cohort: Cohort, predictions: Predictions, tau: float
) -> tuple[Float64[np.ndarray, " n"], Int64[np.ndarray, " n"]]:
    """Duration (days) and event of the predicted rows, censored at ``tau``."""
    known = cohort.table["subject_id"].to_numpy()
    place = np.minimum(np.searchsorted(known, predictions.subject_id), len(known) - 1)
    if not np.array_equal(known[place], predictions.subject_id):
        raise EhrError(
            "predictions for subjects that are not in the cohort",
            f"predictions of '{predictions.model}'",
            "run the study again, or restore the folder as it was left",
            code=Exit.BUNDLE,
        )
    duration = cohort.table["duration"].to_numpy()[place].astype(np.float64)
    event = cohort.table["event"].to_numpy()[place].astype(np.int64)
    return truncate(duration, event, tau)


def calibrate(
    model: str,
    predictions: Predictions,
    duration: Float64[np.ndarray, " n"],
    event: Int64[np.ndarray, " n"],
    horizon: float,
) -> Calibration | None:
    """Calibration at ``horizon`` in as many groups as patients and events carry; None where that is under two."""
    before = int(event[duration <= horizon].sum())
    groups = min(MAX_CALIBRATION_GROUPS, before // EVENTS_PER_GROUP, len(duration) // (2 * MIN_CELL))
    if groups < 2:
        return None
    survival = predictions.survival_at(np.array([horizon]))[:, 0]  # (n,)
    curve = calibration_curve(duration, event, survival, horizon, groups=groups)
    shown = (curve.n >= MIN_CELL) & np.isfinite(curve.observed)
    if shown.sum() < 2:
        return None
    return Calibration(model, *(x[shown] for x in (curve.predicted, curve.observed, curve.low, curve.high)))


def risk_thirds(
    model: str,
    seed: int,
    risk: Float64[np.ndarray, " n"],
    duration: Float64[np.ndarray, " n"],
    event: Int64[np.ndarray, " n"],
    tau: float,
) -> RiskThirds | None:
    """Kaplan–Meier by third of predicted risk; None where a third has fewer than MIN_CELL patients (also by ties)."""
    third = (risk[:, None] > np.quantile(risk, [1 / 3, 2 / 3])).sum(axis=1)  # (n,) 0, 1, 2
    members = [third == k for k in range(3)]
    if min(int(member.sum()) for member in members) < MIN_CELL:
        return None
    ticks = np.linspace(0.0, tau, AT_RISK_POINTS)
    curves = [_risk_curve(THIRDS[k], duration[m], event[m], tau, ticks) for k, m in enumerate(members)]
    return RiskThirds(model, seed, ticks, tuple(curves))


def _risk_curve(label: str, duration: np.ndarray, event: np.ndarray, tau: float, ticks: np.ndarray) -> RiskCurve:
    times = np.linspace(0.0, tau, KM_POINTS)
    times = times[(duration[:, None] >= times).sum(axis=0) >= MIN_CELL]  # (m,) where enough are still at risk
    curve = KaplanMeier.fit(duration, event)
    low, high = curve.interval(times)
    at_risk = tuple(cell(int((duration >= tick).sum())) for tick in ticks)
    return RiskCurve(label, times, curve.at(times), low, high, at_risk)


def _parts(data: Mapping[str, Any]) -> tuple[tuple[str, str, str], ...]:
    named = (("training", "n_train", "events_train"), ("tuning", "n_tuning", "events_tuning"))
    return tuple(
        (part, cell(int(data[n])), events_cell(int(data[n]), int(data[events])))
        for part, n, events in named
        if data.get(n) is not None and data.get(events) is not None
    )


def token_facts(stats: Mapping[str, Any]) -> dict[str, Any]:
    """Scalars of the token store; counts of patients and records are suppressed like every other."""
    counted = re.compile(r"rows|patients|subjects|records")
    return {
        key: cell(value) if isinstance(value, int) and counted.search(key) else value
        for key, value in stats.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }


def _provenance(data: Mapping[str, Any], study: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
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


def _scrub(value: Any, folder: Path) -> Any:
    """The same JSON with absolute paths cut down to their last part and small counts of patients in words hidden.

    >>> _scrub({"note": "read /home/jane/ward 3.csv, ICD10CM//E11, mmol/l: only 5 tuning events"}, Path("out"))
    {'note': 'read …/ward 3.csv, ICD10CM//E11, mmol/l: only <10 tuning events'}
    """
    if isinstance(value, Mapping):
        return {str(key): _scrub(item, folder) for key, item in value.items()}
    if isinstance(value, list):
        return [_scrub(item, folder) for item in value]
    if not isinstance(value, str):
        return value
    for known in (str(folder.resolve().parent), str(Path.home())):
        value = value.replace(known + "/", "…/") if known != "/" else value
    value = _ABSOLUTE_PATH.sub(lambda found: "…/" + re.split(r"[/\\]", found[0].rstrip("/\\"))[-1], value)
    return _SMALL_COUNT.sub(f"<{MIN_CELL}", value)


def _optional_json(path: Path) -> dict[str, Any]:
    return dict(_read_json(path)) if path.exists() else {}


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        what, fix = "the study is not finished: its comparison is missing", "run `ehrseq run` to its end first"
    except (OSError, ValueError) as error:
        what, fix = f"the file cannot be read as JSON: {error}", "run the study again"
    raise EhrError(what, str(path), fix, code=Exit.BUNDLE)
