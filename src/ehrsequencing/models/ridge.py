"""Ridge-penalised fits: standardising, principal axes, one optimiser, and folds where the tuning rows cannot choose."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Float64, Int64
from scipy.linalg import eigh
from scipy.optimize import minimize

FOLDS = 5
TOLERANCE, CONVERGED = 1e-8, 1e-5
"""Largest gradient entry, in preconditioned coordinates: asked for, and accepted when the line search ends first."""
MAX_ITERATIONS = 500
Loss = Callable[[np.ndarray], tuple[float, np.ndarray]]
"""Value and gradient at a point."""
_NULL_SPACE = 1e-10
_ROUNDING = 1e-6


@dataclass(frozen=True)
class Standardiser:
    """Training mean and standard deviation of each column; a constant column becomes 0, wherever it is applied."""

    mean: Float64[np.ndarray, " p"]
    std: Float64[np.ndarray, " p"]

    @classmethod
    def fit(cls, x: Float[np.ndarray, "n p"]) -> Standardiser:
        """Moments in float64; a spread within float32 rounding of the mean counts as constant (std 0).

        >>> Standardiser.fit(np.array([[1.0, 5.0], [3.0, 5.0]])).std.tolist()
        [1.0, 0.0]
        """
        mean = x.mean(axis=0, dtype=np.float64)
        std = x.std(axis=0, dtype=np.float64)
        return cls(mean, np.where(std > _ROUNDING * np.abs(mean), std, 0.0))

    def __call__(self, x: Float[np.ndarray, "n p"]) -> Float64[np.ndarray, "n p"]:
        """(x − mean) / std, columnwise."""
        z = x - self.mean
        z *= np.divide(1.0, self.std, out=np.zeros_like(self.std), where=self.std > 0)
        return z


@dataclass(frozen=True)
class PrincipalAxes:
    """Standardised training columns in their principal axes, where a ridge problem is nearly diagonal.

    The rotation leaves ``|w|``, and so the penalty, unchanged; scaled by each axis' curvature, L-BFGS needs a dozen
    steps where the raw columns take hundreds.
    """

    scores: Float64[np.ndarray, "n r"]
    rotation: Float64[np.ndarray, "p r"]
    variance: Float64[np.ndarray, " r"]

    @classmethod
    def of(cls, z: Float64[np.ndarray, "n p"]) -> PrincipalAxes:
        """Eigenvectors of the smaller Gram matrix; directions without variance are left out."""
        n, p = z.shape
        gram = z.T @ z if p <= n else z @ z.T
        values, vectors = eigh(gram, overwrite_a=True, check_finite=False, driver="evd")
        keep = values > _NULL_SPACE * max(values.max(initial=0.0), 1.0)
        values, vectors = values[keep], vectors[:, keep]
        if p <= n:
            return cls(z @ vectors, vectors, values / n)
        return cls(vectors * np.sqrt(values), z.T @ (vectors / np.sqrt(values)), values / n)


@dataclass(frozen=True)
class Minimum:
    """Where the optimiser ended: the point, the value there, and the largest entry of the gradient."""

    point: Float64[np.ndarray, " d"]
    value: float
    gradient: float

    @property
    def converged(self) -> bool:
        """Whether the gradient vanished to within `CONVERGED`."""
        return self.gradient <= CONVERGED


def minimise(
    function: Loss,
    start: Float64[np.ndarray, " d"],
    scale: Float64[np.ndarray, " d"],
) -> Minimum:
    """L-BFGS to convergence on ``function`` (value and gradient) in the coordinates point / scale.

    ``scale`` is the inverse square root of the expected curvature; an entry of 0 holds its coordinate at ``start``.
    """

    def scaled(step: np.ndarray) -> tuple[float, np.ndarray]:
        value, gradient = function(start + scale * step)
        return value, gradient * scale

    options = {"maxiter": MAX_ITERATIONS, "maxcor": 20, "ftol": 0.0, "gtol": TOLERANCE}
    result = minimize(scaled, np.zeros_like(start), jac=True, method="L-BFGS-B", options=options)
    gradient = float(np.abs(result.jac).max(initial=0.0))
    return Minimum(start + scale * result.x, float(result.fun), gradient if np.isfinite(gradient) else np.inf)


def stratified_folds(event: Bool[np.ndarray, " n"], folds: int) -> Int64[np.ndarray, " n"]:
    """The fold of each row, dealt out in row order among the events and among the others.

    >>> stratified_folds(np.array([True, False, False, True, False]), 2).tolist()
    [0, 0, 1, 1, 0]
    """
    fold = np.empty(len(event), dtype=np.int64)
    for rows in (np.flatnonzero(event), np.flatnonzero(~event)):
        fold[rows] = np.arange(len(rows)) % folds
    return fold


def loss_by_folds(
    event: Bool[np.ndarray, " n"], loss: Callable[[np.ndarray, np.ndarray], np.ndarray]
) -> Float64[np.ndarray, " m"] | None:
    """Total left-out loss of m candidates; None when there are fewer than two events to divide.

    Args:
        event: of the training rows; it stratifies the folds.
        loss: (row numbers to fit, row numbers to judge) -> summed loss of each candidate, inf for a failed one.
    """
    folds = min(FOLDS, int(event.sum()))
    if folds < 2:
        return None
    fold = stratified_folds(event, folds)
    return np.sum([loss(np.flatnonzero(fold != k), np.flatnonzero(fold == k)) for k in range(folds)], axis=0)
