"""What the report shows of patients in groups: calibration, outcome by third of risk, who is in the cohort."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
from jaxtyping import Float64, Int64

from ehrsequencing.cohort import Cohort
from ehrsequencing.cohort.attrition import cell, suppress_attrition
from ehrsequencing.config import MIN_CELL
from ehrsequencing.errors import EhrError, Exit
from ehrsequencing.evaluation.calibration import calibration_curve
from ehrsequencing.evaluation.compare import outcome_free_at
from ehrsequencing.nonparametric import AalenJohansen, KaplanMeier
from ehrsequencing.predictions import Predictions
from ehrsequencing.report.contents import Calibration, Incidence, RiskCurve, RiskThirds, Row, Summary, Trajectory
from ehrsequencing.report.findings import best_of
from ehrsequencing.timegrid import truncate

MAX_CALIBRATION_GROUPS, EVENTS_PER_GROUP = 10, 5
KM_POINTS = 101
"""Kaplan–Meier curves are drawn on this many equal points, so that no single event day can be read off."""
AT_RISK_POINTS = 6
TRAJECTORIES = "trajectories.parquet"
THIRDS = ("lowest third", "middle third", "highest third")


def with_patients(summary: Summary, folder: Path, fingerprint: str) -> Summary:
    """Add what needs the cohort and the predictions; where they are absent, say why in ``missing``."""
    missing = {} if summary.runs else {"training": "No model was trained epoch by epoch, or no history was kept."}
    if not (folder / "cohort" / "cohort.parquet").exists():
        absent = "The cohort was not kept beside this report."
        return replace(summary, missing=missing | dict.fromkeys(("attrition", "calibration", "thirds"), absent))
    cohort = Cohort.read(folder / "cohort")
    steps = [tuple(step) for step in cohort.attrition.select("rule", "why", "removed", "remaining").rows()]
    start, attrition = suppress_attrition([(str(r), str(w or ""), int(a), int(b)) for r, w, a, b in steps])
    calibration, thirds, curves = [], [], {}
    for row in _shown_models(summary.rows):
        scored = _predictions_of(row, folder, fingerprint)
        if scored is None:
            continue
        outcome = _outcome(cohort, scored, summary.tau)
        calibration.append(calibrate(row.model, scored, *outcome, summary.horizon))
        if scored.cif:
            curves[row.model] = scored
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
        incidence=incidences(cohort.task.causes, curves, cohort, summary.tau),
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
    keys = ["subject_id", "prediction_time"]
    rows = predictions.to_frame().select(keys)
    known = rows.join(cohort.table, on=keys, how="left", maintain_order="left")
    if known["duration"].null_count():
        raise EhrError(
            "predictions for subjects that are not in the cohort",
            f"predictions of '{predictions.model}'",
            "run the study again, or restore the folder as it was left",
            code=Exit.BUNDLE,
        )
    return truncate(known["duration"].to_numpy(), known["event"].cast(pl.Int64).to_numpy(), tau)


def calibrate(
    model: str,
    predictions: Predictions,
    duration: Float64[np.ndarray, " n"],
    event: Int64[np.ndarray, " n"],
    horizon: float,
) -> Calibration | None:
    """Calibration at ``horizon`` in as many groups as patients and events carry; None where that is under two."""
    before = int((event[duration <= horizon] == 1).sum())
    groups = min(MAX_CALIBRATION_GROUPS, before // EVENTS_PER_GROUP, len(duration) // (2 * MIN_CELL))
    if groups < 2:
        return None
    free = outcome_free_at(predictions, np.array([horizon]))[:, 0]  # (n,)
    curve = calibration_curve(duration, event, free, horizon, groups=groups)
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
    """What was observed by third of predicted risk; None where a third has fewer than MIN_CELL patients (also by ties).

    Kaplan–Meier's share without the outcome; with competing events Aalen–Johansen's share with it.
    """
    third = (risk[:, None] > np.quantile(risk, [1 / 3, 2 / 3])).sum(axis=1)  # (n,) 0, 1, 2
    members = [third == k for k in range(3)]
    if min(int(member.sum()) for member in members) < MIN_CELL:
        return None
    ticks = np.linspace(0.0, tau, AT_RISK_POINTS)
    causes = max(int(event.max()), 1)
    curves = [_risk_curve(THIRDS[k], duration[m], event[m], causes, tau, ticks) for k, m in enumerate(members)]
    return RiskThirds(model, seed, ticks, tuple(curves), competing=causes > 1)


def _risk_curve(
    label: str, duration: np.ndarray, event: np.ndarray, causes: int, tau: float, ticks: np.ndarray
) -> RiskCurve:
    times = _shown_times(duration, tau)
    at_risk = tuple(cell(int((duration >= tick).sum())) for tick in ticks)
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


def incidences(
    causes: Sequence[str], models: Mapping[str, Predictions], cohort: Cohort, tau: float
) -> tuple[Incidence, ...]:
    """Each cause's observed incidence beside the models' mean; causes with fewer than MIN_CELL events are left out."""
    if not models:
        return ()
    duration, event = _outcome(cohort, next(iter(models.values())), tau)
    observed, times = AalenJohansen.fit(duration, event, len(causes)), _shown_times(duration, tau)
    low, high = observed.interval(times)
    shown = []
    for number, cause in enumerate(causes):
        if int((event == number + 1).sum()) < MIN_CELL:
            continue
        predicted = {model: found.cif_at(cause, times).mean(axis=0) for model, found in models.items()}
        shown.append(Incidence(cause, times, observed.at(times)[:, number], low[:, number], high[:, number], predicted))
    return tuple(shown)


def read_trajectories(folder: Path) -> tuple[Trajectory, ...]:
    """Example patients' risks over their visits, where the study left them; patients are numbered, never named.

    ``trajectories.parquet``: patient (1, 2, …), days_since_first_visit, risk_at_horizon.
    """
    path = folder / TRAJECTORIES
    if not path.is_file():
        return ()
    table = pl.read_parquet(path).sort("patient", "days_since_first_visit")
    return tuple(
        Trajectory(
            int(patient),
            own["days_since_first_visit"].cast(pl.Float64).to_numpy(),
            own["risk_at_horizon"].cast(pl.Float64).to_numpy(),
        )
        for (patient,), own in table.group_by("patient", maintain_order=True)
    )
