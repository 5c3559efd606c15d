"""Competing risks, cause by cause: any cause scored as if it were the outcome."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from jaxtyping import Float64, Int64

from ehrsequencing.config import CURVE_POINTS, OUTCOME
from ehrsequencing.errors import EhrError
from ehrsequencing.evaluation.compare import Evaluation
from ehrsequencing.nonparametric import Events, check_causes
from ehrsequencing.predictions import Predictions


def codes_for_cause(event: np.ndarray, number: int) -> Int64[np.ndarray, " n"]:
    """Event codes in which cause ``number`` has the place of the outcome, 1, and the outcome the place of that cause.

    >>> codes_for_cause(np.array([0, 1, 2, 3]), 3)
    array([0, 3, 2, 1])
    """
    event = np.asarray(event, dtype=np.int64)
    return np.where(event == number, 1, np.where(event == 1, number, event))


def predictions_for_cause(predictions: Predictions, cause: str, tau: float) -> Predictions:
    """The same predictions with ``cause`` in the place of the outcome: its CIF, and the time lost to it as the risk.

    The restricted time lost, ∫₀^τ CIF, by trapezia over 100 equal points, in days; for the outcome itself too, whatever
    risk was given.

    Raises:
        EhrError: no cumulative incidence of that cause, or none up to τ (exit 13).

    >>> day = np.array(["2020-01-01"], dtype="datetime64[us]")
    >>> cif = {"outcome": np.array([[0.1, 0.2]]), "death": np.array([[0.2, 0.4]])}
    >>> one = Predictions(np.array([7]), day, np.zeros(1), np.array([5.0, 10.0]), np.array([[0.7, 0.4]]), cif=cif)
    >>> death = predictions_for_cause(one, "death", 10.0)
    >>> death.outcome_risk_at(np.array([10.0])).item(), round(death.risk.item(), 9)
    (0.4, 2.0)
    """
    times = np.linspace(0.0, tau, CURVE_POINTS + 1)  # (101,)
    lost = np.trapezoid(predictions.cif_at(cause, times), times, axis=1)  # (n,)
    swapped = {cause: OUTCOME, OUTCOME: cause}
    cif = {swapped.get(name, name): values for name, values in predictions.cif.items()}
    return replace(predictions, risk=lost, cif=cif)


def for_cause(
    causes: Sequence[str],
    cause: str,
    duration: Float64[np.ndarray, " n"],
    event: Events,
    *,
    train_duration: Float64[np.ndarray, " train"],
    train_event: np.ndarray,
    tau: float,
    horizons: Sequence[float] = (),
    n_boot: int = 1_000,
    seed: int = 0,
    subject_id: Int64[np.ndarray, " n"] | None = None,
    stratum: Int64[np.ndarray, " n"] | None = None,
) -> Evaluation:
    """An evaluation in which ``cause`` is the outcome and the outcome one of its rivals.

    Every figure is then that of the cause: C by Wolbers et al. (2009), Epidemiology 20:555; Brier scores by Schoop et
    al. (2011), Biom J 53:88; calibration against Aalen–Johansen. Ĝ is the same: only code 0 is censoring. It scores
    ``predictions_for_cause``.

    Args:
        causes: their names in the order of their codes, the outcome first.
        cause: one of them.
        duration, event, train_duration, train_event, tau, horizons, n_boot, seed, subject_id, stratum: as
            ``Evaluation.of``.

    Raises:
        EhrError: as ``Evaluation.of``.
        ValueError: a cause that is none of ``causes``.
    """
    number = list(causes).index(cause) + 1
    duration, event = check_causes(duration, event)
    return Evaluation.of(
        duration,
        codes_for_cause(event, number),
        train_duration=train_duration,
        train_event=codes_for_cause(train_event, number),
        tau=tau,
        horizons=horizons,
        n_boot=n_boot,
        seed=seed,
        subject_id=subject_id,
        stratum=stratum,
    )


def cause_figures(
    causes: Sequence[str],
    predictions: Mapping[str, Sequence[Predictions]],
    duration: Float64[np.ndarray, " n"],
    event: Events,
    *,
    train_duration: Float64[np.ndarray, " train"],
    train_event: np.ndarray,
    tau: float,
    horizons: Sequence[float] = (),
    n_boot: int = 1_000,
    seed: int = 0,
    subject_id: Int64[np.ndarray, " n"] | None = None,
    stratum: Int64[np.ndarray, " n"] | None = None,
) -> dict[str, list[dict[str, Any]]]:
    """The table of figures of every cause but the outcome, one row a model: what comparison.json keeps.

    Args:
        causes: their names in the order of their codes, the outcome first; with one cause there is no table.
        predictions: by model, one a seed, of the rows of ``duration`` and ``event``.
        duration, event, train_duration, train_event, tau, horizons, n_boot, seed, subject_id, stratum: as
            ``Evaluation.of``.

    Returns:
        By cause, ``{"model", "metrics", "not_computed"}`` a row, metrics as in the main table; a model that cannot be
        scored (no incidence of this cause) or a cause that nobody had has no metrics, and the reason under ``"all"``.

    Raises:
        EhrError: as ``Evaluation.of``.
    """
    tables = {}
    for cause in causes[1:]:
        evaluation = for_cause(
            causes, cause, duration, event, train_duration=train_duration, train_event=train_event, tau=tau,
            horizons=horizons, n_boot=n_boot, seed=seed, subject_id=subject_id, stratum=stratum,
        )  # fmt: skip
        tables[cause] = [_row(model, evaluation, cause, seeds) for model, seeds in predictions.items()]
    return tables


def _row(model: str, evaluation: Evaluation, cause: str, seeds: Sequence[Predictions]) -> dict[str, Any]:
    try:
        scores = evaluation.score([predictions_for_cause(each, cause, evaluation.tau) for each in seeds])
    except EhrError as error:
        return {"model": model, "metrics": {}, "not_computed": {"all": error.what}}
    metrics = {name: interval.to_json() for name, interval in scores.intervals().items()}
    return {"model": model, "metrics": metrics, "not_computed": dict(scores.not_computed)}
