"""What the report shows of the evaluated patients: who they are, calibration, outcome by third of risk, incidence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import polars as pl
from jaxtyping import Float64, Int64

from ehrsequencing.cohort import Cohort
from ehrsequencing.cohort.attrition import cell, suppress_attrition
from ehrsequencing.config import MIN_CELL, TRAIN
from ehrsequencing.errors import EhrError, Exit
from ehrsequencing.evaluation.calibration import calibration_curve
from ehrsequencing.evaluation.compare import outcome_free_at
from ehrsequencing.nonparametric import AalenJohansen, KaplanMeier, censoring_distribution
from ehrsequencing.predictions import Predictions
from ehrsequencing.report.contents import Row
from ehrsequencing.report.findings import best_of
from ehrsequencing.report.inputs import Inputs
from ehrsequencing.report.series import Calibration, Incidence, RiskCurve, RiskThirds
from ehrsequencing.timegrid import truncate

MAX_CALIBRATION_GROUPS = 10
KM_POINTS = 101
"""Kaplan–Meier curves are drawn on this many equal points, so that no single event day can be read off."""
AT_RISK_POINTS = 6
MAX_SHOWN = 3
RISK_GROUPS = (("lowest third", "middle third", "highest third"), ("lower half", "upper half"))
"""Tried in this order."""
NOT_SHOWN = "–"
KEYS = ["subject_id", "prediction_time"]


@dataclass(frozen=True, eq=False)
class Shown:
    """A model whose curves are drawn: its first seed's predictions (one trained model, not an average that nobody
    would deploy) and the outcome of the same rows, censored at τ; ``raw`` is before recalibration."""

    row: Row
    seed: int
    predictions: Predictions
    raw: Predictions | None
    duration: Float64[np.ndarray, " n"]
    event: Int64[np.ndarray, " n"]

    @property
    def model(self) -> str:
        return self.row.model

    def free_at(self, times: Float64[np.ndarray, " m"]) -> Float64[np.ndarray, "n m"]:
        """The predicted probability of no outcome up to each time."""
        return outcome_free_at(self.predictions, times)


def shown_models(rows: Sequence[Row], inputs: Inputs, tau: float) -> tuple[Shown, ...]:
    """The models of ``leading_rows`` whose predictions are kept; none without a cohort."""
    if inputs.cohort is None:
        return ()
    fingerprint, found = str(inputs.comparison.get("cohort_fingerprint", "")), []
    for row in leading_rows(rows):
        seed = row.seeds[0] if row.seeds else 0
        if (row.model, seed) not in inputs.predictions:
            continue
        predictions = inputs.predictions[row.model, seed]
        _refuse_foreign(row.model, predictions, fingerprint)
        raw = inputs.raw.get((row.model, seed))
        found.append(Shown(row, seed, predictions, raw, *_outcome(inputs.cohort, predictions, tau)))
    return tuple(found)


def leading_rows(rows: Sequence[Row]) -> list[Row]:
    """Anybody's files, best first; then the best transformer alone, simple model, and blend that is no other model."""
    told = [row for row in rows if not (row.blend and row.alpha in (0.0, 1.0))]
    chosen = [best_of(told, "strategy", blend=False), best_of(told, "baseline"), best_of(told, "strategy", blend=True)]
    given = sorted((row for row in rows if row.kind == "predictions"), key=lambda row: -row.uno_c.value)
    return list({row.model: row for row in (*given, *chosen) if row is not None}.values())[:MAX_SHOWN]


def _refuse_foreign(model: str, found: Predictions, fingerprint: str) -> None:
    if fingerprint and found.cohort_fingerprint not in ("", fingerprint):
        raise EhrError(
            f"the predictions of '{model}' were made for another cohort than the comparison's",
            f"{model}, predictions",
            "run the study again, or restore the folder as it was left",
            code=Exit.BUNDLE,
        )


def _outcome(
    cohort: Cohort, predictions: Predictions, tau: float
) -> tuple[Float64[np.ndarray, " n"], Int64[np.ndarray, " n"]]:
    """Duration (days) and event of the predicted rows, censored at ``tau``."""
    rows = predictions.to_frame().select(KEYS)
    known = rows.join(cohort.table, on=KEYS, how="left", maintain_order="left")
    if known["duration"].null_count():
        raise EhrError(
            "predictions for subjects that are not in the cohort",
            f"predictions of '{predictions.model}'",
            "run the study again, or restore the folder as it was left",
            code=Exit.BUNDLE,
        )
    return truncate(known["duration"].to_numpy(), known["event"].cast(pl.Int64).to_numpy(), tau)


@dataclass(frozen=True, eq=False)
class Learned:
    """The outcome that models were trained on, as the comparison used it, and its censoring distribution Ĝ."""

    duration: Float64[np.ndarray, " n"]
    event: Int64[np.ndarray, " n"]
    censoring: KaplanMeier


def learned_of(inputs: Inputs) -> Learned | None:
    """The training rows' outcome or, out of fold and where no row is a training row, everybody's."""
    if inputs.cohort is None:
        return None
    table = inputs.cohort.table
    train = table.filter(pl.col("split") == TRAIN)
    if inputs.comparison.get("folds") is not None or train.height == 0:
        train = table
    outcome = train["duration"].to_numpy(), train["event"].cast(pl.Int64).to_numpy()
    return Learned(*outcome, censoring_distribution(*outcome))


def attrition_of(cohort: Cohort | None) -> dict[str, Any]:
    """The summary's ``start``, ``attrition`` and ``aside``, suppressed."""
    if cohort is None:
        return {}
    steps = cohort.attrition.select("rule", "why", "removed", "remaining").rows()
    start, groups = suppress_attrition([(str(r), str(w or ""), int(a), int(b)) for r, w, a, b in steps])
    aside = int(steps[-1][3]) - cohort.table["subject_id"].n_unique() if steps else 0
    return {"start": start, "attrition": tuple(groups), "aside": cell(aside) if aside > 0 else ""}


def calibrate(
    model: str,
    predictions: Predictions,
    duration: Float64[np.ndarray, " n"],
    event: Int64[np.ndarray, " n"],
    horizon: float,
) -> Calibration | None:
    """Calibration at ``horizon`` in as many groups as patients and events carry, in each MIN_CELL with the outcome and
    MIN_CELL without, so that no share gives a small count away; None where that is under two."""
    before = int((event[duration <= horizon] == 1).sum())
    groups = min(MAX_CALIBRATION_GROUPS, before // MIN_CELL, len(duration) // (2 * MIN_CELL))
    if groups < 2:
        return None
    free = outcome_free_at(predictions, np.array([horizon]))[:, 0]  # (n,)
    curve = calibration_curve(duration, event, free, horizon, groups=groups, fewest=MIN_CELL)
    shown = (curve.n >= MIN_CELL) & np.isfinite(curve.observed)
    if shown.sum() < 2:
        return None
    kept = (x[shown] for x in (curve.predicted, curve.observed, curve.low, curve.high))
    return replace(Calibration(model, *kept), horizon=horizon)


def risk_thirds(
    model: str,
    seed: int,
    risk: Float64[np.ndarray, " n"],
    duration: Float64[np.ndarray, " n"],
    event: Int64[np.ndarray, " n"],
    tau: float,
) -> RiskThirds | None:
    """What was observed by third of predicted risk, or by half where a third would give away a small count; None where
    a half would, too: fewer than MIN_CELL patients (also by ties), or 1 to 9 of them with the outcome or without.

    Kaplan–Meier's share without the outcome; with competing events Aalen–Johansen's share with it.
    """
    ticks, causes = np.linspace(0.0, tau, AT_RISK_POINTS), max(int(event.max()), 1)
    for labels in RISK_GROUPS:
        cuts = np.quantile(risk, np.arange(1, len(labels)) / len(labels))
        group = (risk[:, None] > cuts).sum(axis=1)  # (n,)
        members = [group == k for k in range(len(labels))]
        if all(_tells_nothing(event[m]) for m in members):
            curves = [_risk_curve(label, duration[m], event[m], causes, tau, ticks)
                      for label, m in zip(labels, members, strict=True)]  # fmt: skip
            return RiskThirds(model, seed, ticks, tuple(curves), competing=causes > 1)
    return None


def _tells_nothing(event: Int64[np.ndarray, " n"]) -> bool:
    """Whether a group's size and its share with the outcome give away no count under MIN_CELL."""
    had = int((event == 1).sum())
    return event.size >= MIN_CELL and not 0 < had < MIN_CELL and not 0 < event.size - had < MIN_CELL


def _at_risk(duration: Float64[np.ndarray, " n"], ticks: Float64[np.ndarray, " k"]) -> tuple[str, ...]:
    """Patients at risk at each tick, for people: not shown where the difference to the one shown before is small.

    >>> _at_risk(np.array([5.0] * 4 + [15.0] * 20 + [35.0] * 12), np.array([0.0, 10.0, 20.0, 30.0, 40.0]))
    ('36', '–', '12', '12', '0')
    """
    shown: list[str] = []
    last = 0
    for count in (int((duration >= tick).sum()) for tick in ticks):
        close = bool(shown) and 0 < last - count < MIN_CELL
        shown.append(NOT_SHOWN if close and count >= MIN_CELL else cell(count))
        last = last if close or 0 < count < MIN_CELL else count
    return tuple(shown)


def _risk_curve(
    label: str, duration: np.ndarray, event: np.ndarray, causes: int, tau: float, ticks: np.ndarray
) -> RiskCurve:
    times = _shown_times(duration, tau)
    at_risk = _at_risk(duration, ticks)
    if causes == 1:
        curve = KaplanMeier.fit(duration, event)
        return RiskCurve(label, times, curve.at(times), *curve.interval(times), at_risk)
    incidence = AalenJohansen.fit(duration, event, causes)
    low, high = (limit[:, 0] for limit in incidence.interval(times))
    return RiskCurve(label, times, incidence.at(times)[:, 0], low, high, at_risk)


def _shown_times(duration: np.ndarray, tau: float) -> Float64[np.ndarray, " m"]:
    """The grid on which curves are drawn, as far as MIN_CELL are at risk."""
    times = np.linspace(0.0, tau, KM_POINTS)
    return times[(duration[:, None] >= times).sum(axis=0) >= MIN_CELL]


def incidences(causes: Sequence[str], models: Sequence[Shown], tau: float) -> tuple[Incidence, ...]:
    """Each cause's observed incidence beside the models' mean; causes with fewer than MIN_CELL events are left out."""
    drawn: Mapping[str, Predictions] = {each.model: each.predictions for each in models if each.predictions.cif}
    if not drawn:
        return ()
    duration, event = models[0].duration, models[0].event
    observed, times = AalenJohansen.fit(duration, event, len(causes)), _shown_times(duration, tau)
    low, high = observed.interval(times)
    shown = []
    for number, cause in enumerate(causes):
        if int((event == number + 1).sum()) < MIN_CELL:
            continue
        predicted = {model: found.cif_at(cause, times).mean(axis=0) for model, found in drawn.items()}
        shown.append(Incidence(cause, times, observed.at(times)[:, number], low[:, number], high[:, number], predicted))
    return tuple(shown)
