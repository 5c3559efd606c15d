"""What a fitted simple model gives, and how hazards of one or several causes become its curves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
from jaxtyping import Float64

from ehrsequencing.baselines.causes import incidence, proportional_incidence, time_lost
from ehrsequencing.baselines.cox import Outcome
from ehrsequencing.baselines.proportional import Breslow, restricted_mean
from ehrsequencing.batches import SurvivalData
from ehrsequencing.config import TRAIN
from ehrsequencing.models.wide import RidgeHazard


@dataclass(frozen=True)
class Fitted:
    """A simple model's predictions for all N rows of the data, in their order.

    Attributes:
        risk: −RMST(τ) of the row's own curve, in days, higher = sooner; with competing risks the restricted time lost
            to cause 1; a constant 0 where everybody gets the same curve.
        survival: S, no event of any cause, at ``grid.curve_times()``.
        cif: with competing risks the cumulative incidence of each cause at the same times.
        seconds: fitting and predicting.
        n_parameters: fitted numbers: coefficients not 0 (and intercepts), steps of a curve, leaves.
        coefficients: ``name, coefficient`` per standard deviation of the column, largest first; of linear models. With
            competing risks ``cause`` before them.
        notes: what had to be decided otherwise than planned.
        logits: hazard logits of models that live on the grid: recalibration starts from them.
        model: the fitted hazard itself, of ``wide`` only: blends and bundles need it.
    """

    risk: Float64[np.ndarray, " N"]
    survival: Float64[np.ndarray, "N points"]
    n_parameters: int
    coefficients: pl.DataFrame | None = None
    notes: tuple[str, ...] = ()
    logits: Float64[np.ndarray, "N K *R"] | None = None
    cif: Float64[np.ndarray, "N points R"] | None = None
    model: RidgeHazard | None = None
    seconds: float = 0.0


@dataclass(frozen=True)
class Relative:
    """One cause's fitted log relative hazards η of all N rows."""

    eta: Float64[np.ndarray, " N"]
    n_parameters: int
    coefficients: pl.DataFrame | None = None
    notes: tuple[str, ...] = ()


def outcome_of(data: SurvivalData, split: str, cause: int = 1) -> Outcome:
    """Durations of a split, and whether each ended in an event of ``cause``: another cause's event censors.

    That is how a cause-specific hazard is estimated (Prentice et al. 1978); what it means for probabilities is decided
    when the causes are put together (``causes``).
    """
    targets = data.targets(data.index(split))
    return Outcome(targets.duration.numpy(), (targets.event.numpy() == cause).astype(np.int64))


def from_logits(
    data: SurvivalData, logits: Float64[np.ndarray, "N K *R"], n_parameters: int, notes: tuple[str, ...] = ()
) -> Fitted:
    """The predictions of a model that gives hazard logits on the grid."""
    times = data.grid.curve_times()
    cif = data.grid.cif(logits, times) if logits.ndim == 3 else None
    survival = data.grid.survival(logits, times)
    return Fitted(data.grid.risk(logits), survival, n_parameters, notes=notes, logits=logits, cif=cif)


def from_relative(data: SurvivalData, parts: Sequence[Relative]) -> Fitted:
    """Curves of each cause's log relative hazards, by Breslow on the training rows; with several causes, their CIFs."""
    times, train = data.grid.curve_times(), data.index(TRAIN)
    base = [Breslow.fit(*outcome_of(data, TRAIN, cause), part.eta[train]) for cause, part in enumerate(parts, start=1)]
    told = _told(data, parts)
    n_parameters = sum(part.n_parameters for part in parts)
    coefficients = by_cause(data, [part.coefficients for part in parts])
    if len(parts) == 1:
        survival = base[0].survival(parts[0].eta, times)
        return Fitted(-restricted_mean(survival, times), survival, n_parameters, coefficients, told)
    cif = proportional_incidence(base, [part.eta for part in parts], times)
    return _from_cif(data, cif, n_parameters, coefficients, told)


def from_survival(
    data: SurvivalData, curves: Sequence[Float64[np.ndarray, "N points"]], n_parameters: int, notes: tuple[str, ...]
) -> Fitted:
    """From each cause's own curve exp(−H_r): the curve itself of one cause, the CIFs of several."""
    times = data.grid.curve_times()
    if len(curves) == 1:
        return Fitted(-restricted_mean(curves[0], times), curves[0], n_parameters, notes=notes)
    hazard = -np.log(np.clip(np.stack(curves, axis=2), 1e-12, 1.0))  # [N, points, R]
    cif = incidence(np.diff(hazard, axis=1, prepend=0.0))
    return _from_cif(data, cif, n_parameters, None, notes)


def _from_cif(
    data: SurvivalData,
    cif: Float64[np.ndarray, "N points R"],
    n_parameters: int,
    coefficients: pl.DataFrame | None,
    notes: tuple[str, ...],
) -> Fitted:
    survival = np.maximum(1.0 - cif.sum(axis=2), 0.0)
    risk = time_lost(cif[:, :, 0], data.grid.curve_times())
    return Fitted(risk, survival, n_parameters, coefficients, notes, cif=cif)


def _told(data: SurvivalData, parts: Sequence[Relative]) -> tuple[str, ...]:
    if len(parts) == 1:
        return parts[0].notes
    named = zip(data.causes, parts, strict=True)
    return tuple(f"{cause}: {note}" for cause, part in named for note in part.notes)


def by_cause(data: SurvivalData, tables: Sequence[pl.DataFrame | None]) -> pl.DataFrame | None:
    """A table of one cause as it is; those of several one below the other, ``cause`` first."""
    if len(tables) == 1:
        return tables[0]
    named = zip(data.causes, tables, strict=True)
    known = [table.select(pl.lit(cause).alias("cause"), pl.all()) for cause, table in named if table is not None]
    return pl.concat(known) if known else None
