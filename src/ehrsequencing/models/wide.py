"""The penalised linear hazard head, fitted to convergence: `wide` on features, `frozen-ridge` on encoder features."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float64, Int64

from ehrsequencing.batches import SurvivalData, Targets
from ehrsequencing.config import MIN_TUNING_EVENTS, TRAIN, TUNING
from ehrsequencing.errors import EhrError, Exit
from ehrsequencing.hazards import inverse_softplus, nll_gradient
from ehrsequencing.models.losses import exposure, survival_nll
from ehrsequencing.models.ridge import (
    CONVERGED,
    FOLDS,
    PATIENCE,
    PENALTIES,
    Loss,
    PrincipalAxes,
    RidgeProblem,
    Standardiser,
    best_by_folds,
)

SCREENS = (10, 20, 50, 100, 200, 800)
"""How many of the best-scoring columns `fit_wide` tries, beside all of them."""

FREEDOM = 10.0
"""How much less strongly columns that a test has found are penalised than those that nothing vouches for."""


class PathRow(NamedTuple):
    """One fit of the path: columns kept, penalty, mean NLL where fitted and where judged, largest gradient entry."""

    columns: int
    penalty: float
    train_nll: float
    tuning_nll: float
    gradient: float


@dataclass(frozen=True)
class RidgeHazard:
    """A fitted penalised linear hazard: φ_k(x) = bias_k + weight · (x − mean)/std.

    With R competing causes each has its own weights, shared by the bins: φ_{k,r}(x) = bias_{k,r} + weight_r · z. Where
    hazards are not proportional, each bin has its own: ``weight`` is [p, K] or [p, K, R].
    """

    mean: Float64[np.ndarray, " p"]
    std: Float64[np.ndarray, " p"]
    weight: Float64[np.ndarray, " p *KR"]
    bias: Float64[np.ndarray, " k *R"]
    penalty: float
    path: tuple[PathRow, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def n_parameters(self) -> int:
        """Weights in use (columns kept and not constant) plus one intercept a bin, for each cause."""
        return int(np.count_nonzero(self.weight)) + self.bias.size

    @property
    def per_bin(self) -> bool:
        """Whether each bin has weights of its own."""
        return self.weight.ndim > self.bias.ndim

    def linear_predictor(self, x: Float[np.ndarray, "n p"]) -> Float64[np.ndarray, n * KR]:
        """w · standardised x. Where bins share it, with one cause it orders patients at every horizon."""
        if x.shape[1] != len(self.weight):
            raise EhrError(
                f"expected {len(self.weight)} feature columns, found {x.shape[1]}",
                "linear hazard",
                "build the features with the specification this model was fitted with",
                code=Exit.BUNDLE,
            )
        used = np.flatnonzero(self.weight.reshape(len(self.weight), -1).any(axis=1))
        return np.tensordot(Standardiser(self.mean[used], self.std[used])(x[:, used]), self.weight[used], 1)

    def logits(self, x: Float[np.ndarray, "n p"]) -> Float64[np.ndarray, "n k *R"]:
        """Hazard logits of each row and bin (and cause)."""
        predictor = self.linear_predictor(x)  # [n, *R] or [n, K, *R]
        return self.bias + (predictor if self.per_bin else predictor[:, None])  # [n, K, *R]

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Float64 arrays for safetensors; `from_arrays` is the inverse (notes belong to the study, not the model)."""
        arrays = {name: getattr(self, name) for name in ("mean", "std", "weight", "bias")}
        path = np.array(self.path, dtype=np.float64).reshape(-1, len(PathRow._fields))
        return {**arrays, "penalty": np.array([self.penalty]), "path": path}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> RidgeHazard:
        """Rebuild from `to_arrays`; a missing array raises EhrError (exit 13)."""
        missing = sorted({"mean", "std", "weight", "bias", "penalty", "path"} - set(arrays))
        if missing:
            fix = "write the bundle again"
            raise EhrError(f"arrays missing: {', '.join(missing)}", "linear hazard", fix, code=Exit.BUNDLE)
        path = tuple(PathRow(int(columns), *map(float, rest)) for columns, *rest in arrays["path"])
        mean, std, weight, bias = (np.asarray(arrays[name], np.float64) for name in ("mean", "std", "weight", "bias"))
        return cls(mean, std, weight, bias, float(arrays["penalty"][0]), path)


def mean_nll(logits: Float64[np.ndarray, "n k *R"], targets: Targets) -> float:
    """Mean exact negative log likelihood of hazard logits (`losses.survival_nll`): NumPy in, a number out."""
    return float(survival_nll(torch.from_numpy(logits), targets.bin, targets.fraction, targets.event).mean())


def fit_ridge_hazard(
    x_train: Float[np.ndarray, "n p"],
    targets: Targets,
    x_tune: Float[np.ndarray, "m p"],
    targets_tune: Targets,
    penalties: Sequence[float] = PENALTIES,
    n_bins: int | None = None,
    screens: Sequence[int] = (),
    n_causes: int = 1,
    per_bin: bool = False,
    patient: Int64[np.ndarray, " n"] | None = None,
    found: int = 0,
) -> RidgeHazard:
    """Ridge-penalised discrete-time hazard regression; the penalty is chosen by the tuning rows' NLL.

    Minimises mean NLL + penalty/2 · |w|² over w and the unpenalised intercepts b_k, which start at the marginal
    hazard, by L-BFGS to convergence in float64, columns standardised on the training rows. Fewer than
    `MIN_TUNING_EVENTS` tuning events cannot choose: folds of the training rows do, and a note says so. A bin without a
    training event keeps the intercept of half an event. A fit that does not converge is never chosen. Competing causes
    are fitted together, one convex problem in all w_r and b_{k,r}, under one penalty. ``per_bin`` gives bin k the
    weights w + d_k, the shared ones and its own departure: still one convex problem. Departures are penalised
    as the shared weights are, or K times as strongly, or held at 0 (proportional hazards); tuning chooses that, too.

    Args:
        x_train, x_tune: features on any scale.
        targets, targets_tune: outcomes located on one grid.
        penalties: tried from strong to weak, each started where the one before ended.
        n_bins: bins of that grid (default: up to the last training row's).
        screens: numbers of best-scoring columns to try beside all columns.
        n_causes: R, at least the highest event code.
        per_bin: whether hazards may depart from proportional ones.
        patient: whose row each training row is, where patients have several: folds then divide patients.
        found: so many of the last columns were found by a test, and are penalised a tenth as strongly (`FREEDOM`).

    Raises:
        EhrError: no outcomes among the training rows (exit 12).
    """
    if int(max(targets.event.max(), targets_tune.event.max() if len(targets_tune) else 0)) > n_causes:
        raise ValueError(f"expected event codes up to {n_causes}, the number of causes")
    if not (targets.event == 1).any():
        raise EhrError("no events among the training rows", "linear hazard", "take another task", code=Exit.COHORT)
    n_bins = int(targets.bin.max()) + 1 if n_bins is None else n_bins
    narrower = sorted(screen for screen in screens if screen < x_train.shape[1])
    freedom = (0.0, n_bins**-0.5, 1.0) if per_bin else (0.0,)
    variants = tuple(product((*narrower, x_train.shape[1]), freedom))
    plan = _Plan(tuple(sorted(penalties, reverse=True)), variants, n_bins, n_causes, per_bin)
    rows = _Rows(x_train, targets, x_tune, targets_tune, patient, found)
    tuning_events = int((targets_tune.event == 1).sum())
    if tuning_events >= MIN_TUNING_EVENTS:
        fits = [fit for path in _paths(rows, plan) for fit in path]
        best = min(fits, key=lambda fit: fit.path[0].tuning_nll)
        return replace(best, path=tuple(fit.path[0] for fit in fits))
    (path,) = _paths(rows, _by_folds(rows, plan))
    converged = [fit for fit in path if fit.path[0].gradient <= CONVERGED]
    note = f"{tuning_events} tuning events cannot choose the penalty: {FOLDS} folds of the training rows did"
    return replace(converged[-1], path=tuple(fit.path[0] for fit in path), notes=(note,))


def fit_wide(data: SurvivalData, penalties: Sequence[float] = PENALTIES) -> RidgeHazard:
    """The wide companion: the feature matrix, screened by univariate score, in the penalised head on the same grid.

    The number of columns kept (`SCREENS`, or all) and the penalty are chosen together.
    """
    train, tuning = data.index(TRAIN), data.index(TUNING)
    x = data.features.values
    rows = x[train], data.targets(train), x[tuning], data.targets(tuning)
    return fit_ridge_hazard(*rows, penalties, data.grid.n_bins, SCREENS, data.n_causes, found=len(data.pairs))


def score_screen(
    z: Float64[np.ndarray, "n p"], targets: Targets, n_bins: int, n_causes: int = 1
) -> Float64[np.ndarray, " p"]:
    """Univariate score statistic of each standardised column at the marginal hazard: χ², a degree of freedom a cause.

    U²/V with U = Σ_i z_i (δ_i − Λ_i), the martingale residuals, and V = Σ_i z_i² Λ_i; summed over the causes, whose
    cause-specific hazards have separate likelihoods.
    """
    return np.sum([_score_of_cause(z, targets, n_bins, cause) for cause in range(1, n_causes + 1)], axis=0)


def _score_of_cause(z: np.ndarray, targets: Targets, n_bins: int, cause: int) -> np.ndarray:
    happened = (targets.event.numpy() == cause).astype(np.float64)  # [n]
    hazard = np.logaddexp(0.0, inverse_softplus(_hazard_of_cause(targets, n_bins, cause)[0]))  # [K] of each whole bin
    before = np.cumsum(hazard) - hazard  # [K]
    bins = targets.bin.numpy()
    expected = before[bins] + targets.fraction.numpy() * hazard[bins]  # [n] Λ_i
    score = (happened - expected) @ z  # [P]
    variance = expected @ np.square(z)  # [P]
    return np.divide(score**2, variance, out=np.zeros_like(score), where=variance > 0)


@dataclass(frozen=True)
class _Plan:
    """What is tried: penalties from strong to weak, for each variant.

    A variant is a number of columns, and what bins' departures are multiplied by: under one penalty for all
    coefficients, by s they are penalised 1/s² times as strongly.
    """

    penalties: tuple[float, ...]
    variants: tuple[tuple[int, float], ...]
    n_bins: int
    n_causes: int = 1
    per_bin: bool = False
    patience: int = PATIENCE

    @property
    def causes(self) -> tuple[int, ...]:
        """The shape that competing causes add to a weight: (R,) or ()."""
        return () if self.n_causes == 1 else (self.n_causes,)


class _Rows(NamedTuple):
    """Where a path is fitted, and where it is judged."""

    x: np.ndarray
    targets: Targets
    x_tune: np.ndarray
    targets_tune: Targets
    patient: np.ndarray | None = None
    """Whose row each training row is, where one has several: folds then divide patients."""
    found: int = 0

    def fold(self, fitted: np.ndarray, judged: np.ndarray) -> _Rows:
        """Both among the training rows."""
        x, targets = self.x, self.targets
        return _Rows(x[fitted], targets.take(fitted), x[judged], targets.take(judged), found=self.found)


def _by_folds(rows: _Rows, plan: _Plan) -> _Plan:
    """The plan narrowed to the best variant, and to the penalties that lead up to its best."""

    def losses(fitted: np.ndarray, judged: np.ndarray) -> list[list[float]]:
        paths = _paths(rows.fold(fitted, judged), plan)
        return [[fit.path[0].tuning_nll * len(judged) for fit in path] for path in paths]

    best, penalties = best_by_folds(rows.targets.event.numpy() == 1, plan.penalties, losses, rows.patient)
    return replace(plan, penalties=penalties, variants=(plan.variants[best],), patience=len(penalties))


def _paths(rows: _Rows, plan: _Plan) -> list[list[RidgeHazard]]:
    """The fits of each variant; each carries its own row as its path."""
    standardise = Standardiser.fit(rows.x)
    standardise.std[len(standardise.std) - rows.found :] /= FREEDOM**0.5
    z, z_tune = standardise(rows.x), standardise(rows.x_tune)
    order = np.argsort(-score_screen(z, rows.targets, plan.n_bins, plan.n_causes), kind="stable")
    paths = []
    for screen, freedom in plan.variants:
        kept = np.sort(order[:screen])
        path = []
        for row, weight, bias in _path(rows._replace(x=z[:, kept], x_tune=z_tune[:, kept]), plan, freedom):
            full = np.zeros((z.shape[1], *weight.shape[1:]))
            full[kept] = weight
            path.append(RidgeHazard(standardise.mean, standardise.std, full, bias, row.penalty, (row,)))
        paths.append(path)
    return paths


def _path(rows: _Rows, plan: _Plan, freedom: float) -> Iterator[tuple[PathRow, np.ndarray, np.ndarray]]:
    """Row, weights [P, *R] or [P, K, *R], and intercepts [K, *R] for each penalty; ``rows`` are standardised."""
    axes = PrincipalAxes.of(rows.x)
    bias, bias_scale = _marginal(rows.targets, plan.n_bins, plan.n_causes)
    copies = 1 + plan.n_bins if plan.per_bin else 1  # of the weights: those of all bins, and each bin's departure
    size = len(axes.variance) * copies * plan.n_causes  # of the coefficients on the axes
    start = np.concatenate([np.zeros(size), bias.ravel()])
    curvature = np.outer(axes.variance, _information(rows.targets, plan, freedom)).ravel()

    def split(point: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        own = point[:size].reshape(len(axes.variance), copies, *plan.causes)
        weight = np.tensordot(axes.rotation, _by_bin(own, freedom), 1)  # [P, 1 or K, *R]
        return weight if plan.per_bin else weight[:, 0], point[size:].reshape(-1, *plan.causes)

    def judge(point: np.ndarray) -> float:
        weight, bias = split(point)
        said = np.tensordot(rows.x_tune, weight, 1)
        return mean_nll(bias + (said if plan.per_bin else said[:, None]), rows.targets_tune)

    loss = _loss(axes.scores, rows.targets, plan, freedom)
    problem = RidgeProblem(loss, start, curvature, bias_scale.ravel())
    for penalty, minimum, judged in problem.path(plan.penalties, judge, plan.patience):
        weight, bias = split(minimum.point)
        train = minimum.value - penalty / 2 * float(minimum.point[:size] @ minimum.point[:size])
        yield PathRow(rows.x.shape[1], penalty, train, judged, minimum.gradient), weight, bias


def _information(targets: Targets, plan: _Plan, freedom: float) -> Float64[np.ndarray, " c"]:
    """Of a unit of φ, about, at the marginal hazard: for each copy of the weights and each cause."""
    events, bins = targets.event.numpy(), targets.bin.numpy()
    causes = np.arange(1, plan.n_causes + 1)
    whole = (events[:, None] == causes).mean(axis=0)[None]  # [1, R]
    if not plan.per_bin:
        return whole.ravel()
    own = [((events[:, None] == causes) & (bins[:, None] == k)).mean(axis=0) for k in range(plan.n_bins)]
    return np.concatenate([whole, freedom**2 * np.array(own)]).ravel()  # [(1 + K)·R]


def _by_bin(coefficients: Float64[np.ndarray, "r c *R"], freedom: float) -> Float64[np.ndarray, "r k *R"]:
    """The shared coefficients, or those of each bin: shared plus departure."""
    shared, departures = coefficients[:, :1], coefficients[:, 1:]
    return shared + freedom * departures if departures.shape[1] else shared


def _loss(scores: np.ndarray, targets: Targets, plan: _Plan, freedom: float) -> Loss:
    """Mean NLL and its gradient at (coefficients on the axes [r, 1 or 1 + K, *R], intercepts [K, *R])."""
    n, rank = scores.shape
    copies = 1 + plan.n_bins if plan.per_bin else 1
    size = rank * copies * plan.n_causes
    bins, event = targets.bin.numpy(), targets.event.numpy()
    lived = exposure(targets.bin, targets.fraction, plan.n_bins).numpy()  # [n, K]

    def loss(v: np.ndarray) -> tuple[float, np.ndarray]:
        own, bias = v[:size].reshape(rank, copies, *plan.causes), v[size:].reshape(plan.n_bins, *plan.causes)
        logits = bias + np.tensordot(scores, _by_bin(own, freedom), 1)  # [n, K, *R]
        value, gradient = nll_gradient(logits, lived, bins, event)  # [n, K, *R]
        summed = gradient.sum(axis=1, keepdims=True)  # [n, 1, *R]: what the weights of all bins feel
        felt = np.concatenate([summed, freedom * gradient], axis=1) if plan.per_bin else summed  # [n, copies, *R]
        by_axis = np.tensordot(scores, felt, (0, 0))  # [r, copies, *R]
        return value / n, np.concatenate([by_axis.ravel(), gradient.sum(axis=0).ravel()]) / n

    return loss


def _marginal(targets: Targets, n_bins: int, n_causes: int) -> tuple[np.ndarray, np.ndarray]:
    """Intercepts without covariates [K, *R] (exact, as ``TimeGrid.marginal_logits``) and their scale, 0 = held."""
    parts = [_hazard_of_cause(targets, n_bins, cause) for cause in range(1, n_causes + 1)]
    if n_causes == 1:
        return inverse_softplus(parts[0][0]), parts[0][1]
    hazard, scale = (np.stack([part[i] for part in parts], axis=1) for i in range(2))  # [K, R]
    total = hazard.sum(axis=1, keepdims=True)
    return inverse_softplus(total) + np.log(hazard / total), scale


def _hazard_of_cause(targets: Targets, n_bins: int, cause: int) -> tuple[np.ndarray, np.ndarray]:
    """A cause's marginal hazard of each bin, Λ_k = events/exposure, and the scale of its logit, 0 without an event."""
    bins, n = targets.bin.numpy(), len(targets)
    events = np.bincount(bins, weights=targets.event.numpy() == cause, minlength=n_bins)  # [K]
    ended = np.bincount(bins, minlength=n_bins)  # [K]
    lived_through = n - np.cumsum(ended)  # [K] patients whose bin comes later
    exposure = lived_through + np.bincount(bins, weights=targets.fraction.numpy(), minlength=n_bins)  # [K]
    hazard = np.maximum(events, 0.5) / np.where(events > 0, exposure, np.maximum(exposure, 1.0))
    return hazard, np.divide(1.0, np.sqrt(events / n), out=np.zeros(n_bins), where=events > 0)
