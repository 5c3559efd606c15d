"""Weighted logistic regressions of one design on every resample at once, and the spline they are smooth in."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float64

KNOTS = (0.10, 0.50, 0.90)
"""Quantiles of the score at which the smooth curve may bend (Harrell's places for three knots)."""
STEPS = 40
EXACT, CLOSE = 1e-8, 1e-3
"""Newton's method ends once a step is no longer than this, of everybody's fit and of a resample's: the error left is of
the order of its square, 1e-6 of a standard deviation of the score in a resample."""
LONGEST_STEP, TINY = 3.0, 1e-12
FLAT = 1e-7
"""A likelihood with a direction less curved than this, as a share of the flattest it could be, has no maximum."""
ENTRIES_AT_ONCE = 500_000
"""Resampled rows worked on at a time: a few arrays of this size stay in the cache."""


@dataclass(frozen=True, eq=False)
class Spline:
    """1, x and the restricted cubic term of three knots, linear beyond the outer ones; fewer where x hardly varies.

    Harrell, Regression Modeling Strategies, §2.4.5. Columns after the first are standardised by the patients' own mean
    and deviation.

    Attributes:
        knots: where it bends; none where they coincide.
        centre, scale: of the columns after the first.
    """

    knots: tuple[float, ...]
    centre: Float64[np.ndarray, " q"]
    scale: Float64[np.ndarray, " q"]

    @classmethod
    def of(cls, x: Float64[np.ndarray, " n"]) -> Spline:
        """The spline for these values."""
        low, middle, high = (float(q) for q in np.quantile(x, KNOTS))
        knots = (low, middle, high) if low < middle < high else ()
        if knots and _straight(_columns(x, knots)):
            knots = ()
        raw = _columns(x, knots)[:, : 0 if np.ptp(x) == 0 else None]
        return cls(knots, raw.mean(axis=0), raw.std(axis=0))

    def __call__(self, x: Float64[np.ndarray, " m"]) -> Float64[np.ndarray, "m p"]:
        """The design at any values.

        >>> Spline.of(np.array([1.0, 1.0, 3.0, 3.0]))(np.array([2.0, 4.0]))
        array([[1., 0.],
               [1., 2.]])
        """
        columns = (_columns(x, self.knots)[:, : self.centre.size] - self.centre) / self.scale
        return np.column_stack([np.ones_like(x), columns])


def _straight(columns: np.ndarray) -> bool:
    """Whether the two columns are one, but for scale: few distinct values, between which nothing bends."""
    away = columns - columns.mean(axis=0)
    return bool(abs(away[:, 0] @ away[:, 1]) >= (1 - 1e-9) * np.prod(np.linalg.norm(away, axis=0)))


def _columns(x: np.ndarray, knots: tuple[float, ...]) -> np.ndarray:
    if not knots:
        return x[:, None]
    low, middle, high = knots
    cube = [np.maximum(x - knot, 0.0) ** 3 for knot in knots]
    bend = cube[0] - (cube[1] * (high - low) - cube[2] * (middle - low)) / (high - middle)
    return np.stack([x, bend], axis=1)


def logistic(
    design: Float64[np.ndarray, "n p"],
    y: Bool[np.ndarray, " n"],
    weight: Float64[np.ndarray, " n"],
    counts: np.ndarray,
    offset: Float64[np.ndarray, " n"] | None = None,
) -> Float64[np.ndarray, "resamples p"]:
    """Coefficients of the weighted logistic regression of y on ``design``, on every resample.

    Newton's method from the fit to everybody; the first step of all resamples is one matrix product. Resamples are
    worked out in single precision, everybody's fit in double.

    Args:
        weight: 0 for rows that say nothing.
        counts: [resamples, n], how often each row was drawn.
        offset: added to the linear predictor.

    Returns:
        One row a resample; NaN where the likelihood has no maximum: all outcomes alike, or separated by the design.

    >>> x, y = np.column_stack([np.ones(4), [0.0, 0.0, 1.0, 1.0]]), np.array([True, False, True, True])
    >>> logistic(x[:, :1], y, np.ones(4), np.ones((1, 4))).round(4)  # log odds of 3 : 1
    array([[1.0986]])
    >>> logistic(x, y, np.ones(4), np.ones((1, 4)))
    array([[nan, nan]])
    """
    kept = weight > 0
    rows = design[kept], y[kept], weight[kept] / weight[kept].mean(), None if offset is None else offset[kept]
    everybody = _Problem.of(*rows).fit(np.ones((1, int(kept.sum()))), np.zeros((1, design.shape[1])), EXACT)
    quick, found = _Problem.of(*rows, dtype=np.float32), []
    for block in blocks(len(counts), max(int(kept.sum()), 1)):
        drawn = counts[block][:, kept].astype(np.float32)  # (b, n)
        found.append(quick.fit(drawn, quick.first_step(drawn, np.nan_to_num(everybody[0])), CLOSE))
    return np.where((counts == 1).all(axis=1)[:, None], everybody, np.concatenate(found))


def probability(linear: np.ndarray) -> np.ndarray:
    """The inverse logit, in the place of its argument: three passes over one buffer.

    >>> probability(np.array([0.0, np.log(3.0), np.nan]))
    array([0.5 , 0.75,  nan])
    """
    np.negative(linear, out=linear)
    np.minimum(linear, 80.0, out=linear)
    np.exp(linear, out=linear)
    linear += 1.0
    return np.reciprocal(linear, out=linear)


def blocks(rows: int, width: int) -> Iterator[slice]:
    """Slices of ``rows`` that hold about ``ENTRIES_AT_ONCE`` entries each."""
    step = max(1, ENTRIES_AT_ONCE // width)
    return (slice(start, start + step) for start in range(0, rows, step))


@dataclass(frozen=True, eq=False)
class _Problem:
    """One design and outcome; ``products`` are the p(p + 1)/2 products of its columns, at ``upper``."""

    design: np.ndarray
    products: np.ndarray
    upper: tuple[np.ndarray, np.ndarray]
    y: np.ndarray
    weight: np.ndarray
    offset: np.ndarray | None

    @classmethod
    def of(
        cls, design: np.ndarray, y: np.ndarray, weight: np.ndarray, offset: np.ndarray | None, dtype: type = np.float64
    ) -> _Problem:
        upper = np.triu_indices(design.shape[1])
        products = (design[:, upper[0]] * design[:, upper[1]]).astype(dtype)
        shift: np.ndarray | None = None if offset is None else offset.astype(dtype)
        return cls(design.astype(dtype), products, upper, y.astype(dtype), weight.astype(dtype), shift)

    def first_step(self, drawn: np.ndarray, beta: np.ndarray) -> np.ndarray:
        """One Newton step of every resample from the same ``beta`` (p,)."""
        mean = probability(self._linear(beta[None, :]))[0]  # (n,)
        terms = np.column_stack([self.design * (self.y - mean)[:, None], self.products * (mean * (1 - mean))[:, None]])
        sums = drawn @ (terms * self.weight[:, None])  # (b, p + p(p + 1)/2)
        total = np.maximum(drawn @ self.weight, TINY)[:, None]
        slope, curvature = np.split(sums / total, [beta.size], axis=1)
        return beta + _newton(slope, self._square(curvature))

    def fit(self, drawn: np.ndarray, start: np.ndarray, tolerance: float) -> np.ndarray:
        """The maximum of every resample (b, p), each from its own ``start``; NaN where there is none."""
        share = drawn * self.weight
        total = share.sum(axis=1)
        share /= np.maximum(total, TINY)[:, None]
        cases = share @ self.y  # (b,)
        beta, going = start.copy(), np.flatnonzero((cases > 0) & (share @ (1 - self.y) > 0))
        constant, beta[np.setdiff1d(np.arange(len(beta)), going)] = (share * self.y) @ self.design, np.nan
        for _ in range(STEPS):
            if not going.size:
                break
            part = share if going.size == len(share) else share[going]
            mean = probability(self._linear(beta[going]))  # (b, n)
            fitted = part * mean
            slope = constant[going] - fitted @ self.design  # (b, p)
            mean *= fitted
            fitted -= mean  # w·m·(1 − m)
            curvature = self._square(fitted @ self.products)  # (b, p, p)
            step = _newton(slope, curvature)
            beta[going] += step
            flat = np.linalg.eigvalsh(curvature)[:, 0] < FLAT * np.minimum(cases, 1 - cases)[going]
            beta[going[flat]] = np.nan
            going = going[(np.abs(step).max(axis=1) > tolerance) & ~flat]
        beta[going] = np.nan
        return beta

    def _linear(self, beta: np.ndarray) -> np.ndarray:
        linear = beta.astype(self.design.dtype) @ self.design.T  # (b, n)
        return linear if self.offset is None else linear + self.offset

    def _square(self, upper: np.ndarray) -> np.ndarray:
        p = self.design.shape[1]
        full = np.empty((len(upper), p, p), dtype=upper.dtype)
        full[:, self.upper[0], self.upper[1]] = full[:, self.upper[1], self.upper[0]] = upper
        return full


def _newton(slope: np.ndarray, curvature: np.ndarray) -> np.ndarray:
    curvature = curvature.astype(np.float64) + TINY * np.eye(slope.shape[1])
    step = np.linalg.solve(curvature, slope.astype(np.float64)[:, :, None])[:, :, 0]
    return np.clip(step, -LONGEST_STEP, LONGEST_STEP)
