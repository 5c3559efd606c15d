"""Ridge-penalised fits: standardising, principal axes, one optimiser, and folds where the tuning rows cannot choose."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Float64, Int64
from scipy.linalg import eigh
from scipy.optimize import minimize
from threadpoolctl import ThreadpoolController

PENALTIES = tuple(float(p) for p in np.logspace(1, -4, 11))
"""Ridge penalties on a mean negative log likelihood, for standardised columns; strong to weak."""
PATIENCE = 2
"""A path ends after so many penalties in a row that did worse than a stronger one: from there on it overfits."""
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
        if p == 0:
            return cls(np.zeros((n, 0)), np.zeros((0, 0)), np.zeros(0))
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


@cache
def _blas() -> ThreadpoolController:
    """The optimiser's own steps are tiny: with several BLAS threads they take ten times as long on a busy machine."""
    return ThreadpoolController()


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

    if not start.size:
        return Minimum(start, function(start)[0], 0.0)
    options = {"maxiter": MAX_ITERATIONS, "maxcor": 20, "ftol": 0.0, "gtol": TOLERANCE}
    with _blas().limit(limits=1, user_api="blas"):
        result = minimize(scaled, np.zeros_like(start), jac=True, method="L-BFGS-B", options=options)
    gradient = float(np.abs(result.jac).max(initial=0.0))
    return Minimum(start + scale * result.x, float(result.fun), gradient if np.isfinite(gradient) else np.inf)


class Step(NamedTuple):
    """One fit of a path; ``judged`` is inf where it did not converge."""

    penalty: float
    minimum: Minimum
    judged: float


@dataclass(frozen=True)
class RidgeProblem:
    """A mean loss over (coefficients on principal axes [r], parameters without a penalty), and how it curves.

    Attributes:
        start: where the first fit begins.
        curvature: [r] of the loss along each axis, about; without the penalty.
        rest_scale: inverse square root of the curvature of each unpenalised parameter; 0 holds it.
    """

    loss: Loss
    start: Float64[np.ndarray, " d"]
    curvature: Float64[np.ndarray, " r"]
    rest_scale: Float64[np.ndarray, " q"]

    def path(
        self, penalties: Sequence[float], judge: Callable[[np.ndarray], float], patience: int = PATIENCE
    ) -> Iterator[Step]:
        """A fit for each penalty in turn, started at the one before, until ``patience`` in a row were judged worse."""
        point, best, worse = self.start, np.inf, 0
        for penalty in penalties:
            scale = np.concatenate([1 / np.sqrt(self.curvature + penalty), self.rest_scale])
            minimum = minimise(self._penalised(penalty), point, scale)
            judged = judge(minimum.point) if minimum.converged else np.inf
            yield Step(penalty, minimum, judged)
            point = minimum.point if minimum.converged else point
            worse = worse + 1 if judged > best else 0
            best = min(best, judged)
            if worse == patience:
                return

    def _penalised(self, penalty: float) -> Loss:
        rank = len(self.curvature)

        def penalised(point: np.ndarray) -> tuple[float, np.ndarray]:
            value, gradient = self.loss(point)
            gradient[:rank] += penalty * point[:rank]
            return value + penalty / 2 * float(point[:rank] @ point[:rank]), gradient

        return penalised


def stratified_folds(event: Bool[np.ndarray, " n"], folds: int) -> Int64[np.ndarray, " n"]:
    """The fold of each row, dealt out in row order among the events and among the others.

    >>> stratified_folds(np.array([True, False, False, True, False]), 2).tolist()
    [0, 0, 1, 1, 0]
    """
    fold = np.empty(len(event), dtype=np.int64)
    for rows in (np.flatnonzero(event), np.flatnonzero(~event)):
        fold[rows] = np.arange(len(rows)) % folds
    return fold


def folds_of_patients(
    event: Bool[np.ndarray, " n"], patient: Int64[np.ndarray, " n"], folds: int
) -> Int64[np.ndarray, " n"]:
    """The fold of each row, all rows of a patient in one, dealt out among patients with an event and the others.

    >>> folds_of_patients(np.array([True, True, False, True]), np.array([7, 7, 8, 9]), 2).tolist()
    [0, 0, 0, 1]
    """
    _, which = np.unique(patient, return_inverse=True)
    return stratified_folds(np.bincount(which, weights=event) > 0, folds)[which]


def best_by_folds(
    event: Bool[np.ndarray, " n"],
    penalties: Sequence[float],
    losses: Callable[[np.ndarray, np.ndarray], Sequence[Sequence[float]]],
    patient: Int64[np.ndarray, " n"] | None = None,
) -> tuple[int, tuple[float, ...]]:
    """The path with the lowest total left-out loss: its number, and its penalties down to the best one.

    The choice where the tuning rows have too few events. With fewer than two events to divide among folds, the last
    path under its strongest penalty.

    Args:
        event: of the training rows; it stratifies the folds.
        patient: whose row each is, where a patient has several: they are left out together.
        losses: (row numbers to fit, row numbers to judge) -> the summed loss along each path, strong to weak, inf for
            a failed fit. A path may end early once it became worse; its last value then stands for the rest.
    """
    folds = min(FOLDS, int(event.sum()) if patient is None else len(np.unique(patient[event])))
    if folds < 2:
        return -1, tuple(penalties[:1])
    fold = stratified_folds(event, folds) if patient is None else folds_of_patients(event, patient, folds)
    total: np.ndarray = np.zeros(())
    for k in range(folds):
        paths = losses(np.flatnonzero(fold != k), np.flatnonzero(fold == k))
        total = total + np.array([[*path, *[path[-1]] * (len(penalties) - len(path))] for path in paths])
    best, last = divmod(int(np.argmin(total)), len(penalties))
    return best, tuple(penalties[: last + 1])
