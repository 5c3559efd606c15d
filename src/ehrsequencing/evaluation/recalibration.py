"""Recalibration: a last step on hazard logits, one slope and an intercept a bin, fitted on the tuning split."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Float64
from scipy.optimize import minimize

from ehrsequencing.config import MIN_TUNING_EVENTS
from ehrsequencing.errors import EhrError, Exit
from ehrsequencing.hazards import nll_gradient
from ehrsequencing.nonparametric import Events
from ehrsequencing.timegrid import TimeGrid, truncate

MIN_BIN_EVENTS = 10
"""Bins with fewer tuning events share one recalibration intercept."""


@dataclass(frozen=True, eq=False)
class Recalibration:
    """A last, explicit step on hazard logits: φ ↦ slope · φ + intercept of the bin.

    With competing causes each has its own slope and intercepts: φ_{k,r} ↦ slope_r · φ_{k,r} + intercept_{k,r}.

    Attributes:
        slope: at least 0, so that no ranking is turned round; float64[R] with competing causes.
        intercepts: float64[K] or [K, R]; a cause's bins with under 10 tuning events of it share one.
        note: what was done and why, for people.
    """

    slope: float | Float64[np.ndarray, " R"]
    intercepts: Float64[np.ndarray, " K *R"]
    note: str

    @classmethod
    def fit(
        cls,
        logits: Float[np.ndarray, "n K *R"],
        duration: Float64[np.ndarray, " n"],
        event: Events,
        grid: TimeGrid,
    ) -> Recalibration:
        """Minimise the tuning patients' exact likelihood (``TimeGrid.nll``), convex in slopes and intercepts.

        Under 20 tuning outcomes nothing is changed, and the note says so; a competing cause with under 20 events keeps
        its own logits.

        Args:
            logits: hazard logits of the tuning patients.
            duration, event: their outcome; durations past τ are censored there.
            grid: the bins of the logits.
        """
        duration, event = truncate(duration, event, grid.tau)
        causes = logits.shape[2] if logits.ndim == 3 else 1
        n_events = np.bincount(event, minlength=causes + 1)[1:].tolist()  # [R]
        if n_events[0] < MIN_TUNING_EVENTS:
            note = f"not recalibrated: under {MIN_TUNING_EVENTS} tuning events"
            return cls(1.0 if logits.ndim == 2 else np.ones(causes), np.zeros(logits.shape[1:]), note)
        bins, fraction = grid.locate(duration)
        groups = _intercept_groups(bins, event, grid.n_bins, causes).reshape(logits.shape[1:])
        held = np.array(n_events) < MIN_TUNING_EVENTS  # (R,)
        exposure = grid.exposure(bins, fraction)
        slope, intercepts = _fit_affine(logits.astype(np.float64), bins, exposure, event, groups, held)
        if logits.ndim == 2:
            return cls(float(slope[0]), intercepts[groups], _note(float(slope[0]), intercepts.size, n_events[0]))
        counts = [len(np.unique(groups[:, cause])) for cause in range(causes)]
        parts = (
            _note(*part) if not kept else "kept" for *part, kept in zip(slope, counts, n_events, held, strict=True)
        )
        return cls(slope, intercepts[groups], "; ".join(f"cause {r}: {part}" for r, part in enumerate(parts, 1)))

    @property
    def unchanged(self) -> bool:
        """Whether logits stay as they are (too few tuning events)."""
        return bool(np.all(np.equal(self.slope, 1.0))) and not self.intercepts.any()

    def apply(self, logits: Float[np.ndarray, "n K *R"]) -> Float64[np.ndarray, "n K *R"]:
        """The recalibrated logits.

        >>> Recalibration(2.0, np.array([0.5, 0.0]), "").apply(np.array([[1.0, -1.0]]))
        array([[ 2.5, -2. ]])
        """
        return self.slope * logits.astype(np.float64) + self.intercepts

    def to_json(self) -> dict[str, Any]:
        """Plain data for a JSON file; exact."""
        return {"slope": np.asarray(self.slope).tolist(), "intercepts": self.intercepts.tolist(), "note": self.note}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Recalibration:
        """The recalibration of ``to_json``."""
        slope = data["slope"] if np.ndim(data["slope"]) == 0 else np.asarray(data["slope"], dtype=np.float64)
        return cls(slope, np.asarray(data["intercepts"], dtype=np.float64), str(data["note"]))


def _note(slope: float, intercepts: int, events: int) -> str:
    return f"slope {slope:.3f}, {intercepts} intercept{'s' * (intercepts > 1)}, {events} tuning events"


def _intercept_groups(bins: np.ndarray, event: np.ndarray, n_bins: int, n_causes: int) -> np.ndarray:
    """Which intercept each bin and cause has, (K, R); causes share none."""
    groups, used = np.empty((n_bins, n_causes), dtype=np.int64), 0
    for cause in range(n_causes):
        groups[:, cause] = used + _shared_intercepts(np.bincount(bins[event == cause + 1], minlength=n_bins))
        used = int(groups[:, cause].max()) + 1
    return groups


def _shared_intercepts(events: np.ndarray) -> np.ndarray:
    """Which intercept each bin has, (K,): its own, or where it has few events the one of all such bins.

    >>> _shared_intercepts(np.array([12, 3, 15, 4]))
    array([0, 2, 1, 2])
    """
    own = events >= MIN_BIN_EVENTS
    return np.where(own, np.cumsum(own) - 1, own.sum())


def _fit_affine(
    logits: np.ndarray, bins: np.ndarray, exposure: np.ndarray, event: np.ndarray, groups: np.ndarray, held: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Slopes (R,) and intercepts (one a value of ``groups``) at the least mean negative log likelihood.

    Causes that are ``held`` keep the slope 1 and the intercept 0.
    """
    n, causes, count = bins.size, held.size, int(groups.max()) + 1

    def loss(parameters: np.ndarray) -> tuple[float, np.ndarray]:
        phi = parameters[:causes] * logits + parameters[causes:][groups]  # (n, K, *R)
        value, by_logit = nll_gradient(phi, exposure, bins, event)
        by_slope = (by_logit * logits).sum(axis=(0, 1)).reshape(causes)
        by_bin = by_logit.sum(axis=0)  # (K, *R)
        return value / n, np.append(by_slope, np.bincount(groups.ravel(), by_bin.ravel(), minlength=count)) / n

    start = np.append(np.ones(causes), np.zeros(count))
    bounds: list[tuple[float | None, float | None]] = [(1.0, 1.0) if kept else (0.0, None) for kept in held]
    fixed = set(groups.reshape(-1, causes)[:, held].ravel().tolist())
    bounds += [(0.0, 0.0) if group in fixed else (None, None) for group in range(count)]
    options = {"gtol": 1e-9, "ftol": 1e-15, "maxiter": 1_000, "maxfun": 10_000}
    found = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=bounds, options=options)
    if not np.isfinite(found.fun):
        raise EhrError(
            "recalibration found no finite likelihood",
            "hazard logits of the tuning split",
            "check the model's logits: they must be finite",
            code=Exit.BUNDLE,
        )
    return found.x[:causes], found.x[causes:]
