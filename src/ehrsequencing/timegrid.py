"""The discrete time grid that every model shares, and the exact arithmetic of survival on it (NumPy, float64)."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Float64, Int64

from ehrsequencing.config import CURVE_POINTS, MIN_CENSORING_SURVIVAL
from ehrsequencing.errors import EhrError, Exit
from ehrsequencing.nonparametric import Events, KaplanMeier, censoring_distribution, check_outcome

EVENTS_PER_BIN, MIN_BINS, MAX_BINS = 10, 4, 20
EMPTY_BIN_EVENTS = 0.5
"""Events that a bin without any is taken to have had, so that its marginal logit stays finite."""

TOO_LOW = MIN_CENSORING_SURVIVAL * (1 - 1e-9)
"""A product that should be the limit itself may round to a hair less."""


@dataclass(frozen=True, eq=False)
class TimeGrid:
    """Bins ``(a, b]`` of time since prediction_time; with hazard logits φ, softplus(φ) is a bin's cumulative hazard.

    The cumulative hazard is linear inside a bin, so S(t) is continuous in t.

    Attributes:
        edges: float64[K + 1] days, strictly increasing, from 0 to the horizon τ.

    >>> grid = TimeGrid(np.array([0.0, 1.0, 3.0]))
    >>> grid.locate(np.array([1.0, 2.0, 9.0]))
    (array([0, 1, 1]), array([1. , 0.5, 1. ]))
    >>> grid.survival(np.zeros((1, 2)), np.array([0.0, 1.0, 3.0]))
    array([[1.  , 0.5 , 0.25]])
    """

    edges: Float64[np.ndarray, " edges"]

    def __post_init__(self) -> None:
        edges = np.array(self.edges, dtype=np.float64)
        rising = edges.ndim == 1 and edges.size >= 2 and bool(np.isfinite(edges).all() and (np.diff(edges) > 0).all())
        if not rising or edges[0] != 0:
            raise EhrError(
                "the edges of a time grid must start at 0 and rise strictly",
                "time grid",
                "write the grid anew from the training outcome",
                code=Exit.BUNDLE,
            )
        edges.setflags(write=False)
        object.__setattr__(self, "edges", edges)

    @classmethod
    def fit(cls, duration: Float64[np.ndarray, " n"], event: Events, tau: float) -> TimeGrid:
        """The grid of a training outcome: each bin loses an equal share of the Kaplan–Meier mass lost up to ``tau``.

        K = clip(events // 10, 4, 20); fewer where tied event times leave fewer distinct quantiles.

        Raises:
            EhrError: no training event up to ``tau`` (exit 12).
        """
        duration, event = truncate(duration, event, tau)
        n_events = int(event.sum())
        if n_events == 0:
            raise EhrError(
                f"no event in the training split within the horizon of {tau:g} days",
                f"outcome of {duration.size:,} training subjects",
                "lengthen horizon_days, widen the outcome's codes, or use a larger data set",
                code=Exit.COHORT,
            )
        n_bins = int(np.clip(n_events // EVENTS_PER_BIN, MIN_BINS, MAX_BINS))
        km = KaplanMeier.fit(duration, event)
        lost = 1.0 - km.values  # (m,) strictly increasing
        shares = lost[-1] * np.arange(1, n_bins) / n_bins  # (K - 1,)
        # a hair below the share, so that rounding cannot push a quantile to the next event
        inner = km.times[np.searchsorted(lost, shares * (1 - 1e-12))]
        inner = np.unique(inner)
        return cls(np.concatenate([[0.0], inner[(inner > 0) & (inner < tau)], [float(tau)]]))

    @property
    def tau(self) -> float:
        """The horizon τ in days, the last edge."""
        return float(self.edges[-1])

    @property
    def n_bins(self) -> int:
        """K."""
        return self.edges.size - 1

    @property
    def widths(self) -> Float64[np.ndarray, " K"]:
        """Days in each bin."""
        return np.diff(self.edges)

    @property
    def fingerprint(self) -> str:
        """blake2b of the edges: equal only for equal grids."""
        return hashlib.blake2b(self.edges.astype("<f8").tobytes(), digest_size=16).hexdigest()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, TimeGrid) and np.array_equal(self.edges, other.edges)

    def __hash__(self) -> int:
        return hash(self.fingerprint)

    def to_json(self) -> dict[str, Any]:
        """The grid as plain data for a JSON file; exact."""
        return {"edges": self.edges.tolist()}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> TimeGrid:
        """The grid of ``to_json``."""
        return cls(np.asarray(data["edges"], dtype=np.float64))

    def curve_times(self) -> Float64[np.ndarray, " points"]:
        """The equally spaced points on (0, τ] at which predictions carry their survival curve."""
        return np.linspace(0.0, self.tau, CURVE_POINTS + 1)[1:]

    def locate(self, duration: Float64[np.ndarray, " n"]) -> tuple[Int64[np.ndarray, " n"], Float64[np.ndarray, " n"]]:
        """The bin of each duration and the elapsed fraction of that bin, in (0, 1].

        Durations past τ are located at the end of the last bin (their event, if any, is not seen: ``truncate``).

        Raises:
            EhrError: a duration is not above 0 (exit 12).
        """
        duration = np.asarray(duration, dtype=np.float64)
        if not (duration > 0).all():
            raise EhrError(
                f"expected durations above 0 days, found {int((~(duration > 0)).sum())} that are not",
                "outcome",
                "leave out subjects without follow-up",
                code=Exit.COHORT,
            )
        return self._position(np.minimum(duration, self.tau))

    def cumulative_hazard(
        self, logits: Float[np.ndarray, "n K"], times: Float64[np.ndarray, " m"]
    ) -> Float64[np.ndarray, "n m"]:
        """Λ(t) = Σ_{j<k} sp(φ_j) + f·sp(φ_k) at each of ``times``, days in [0, τ].

        Raises:
            EhrError: a time outside [0, τ] (exit 12).
        """
        hazard = self._bin_hazards(logits)  # (n, K)
        bins, fraction = self._position(self._within(times))  # (m,)
        before = np.cumsum(hazard, axis=1) - hazard  # (n, K) at the start of each bin
        return before[:, bins] + fraction * hazard[:, bins]

    def survival(
        self, logits: Float[np.ndarray, "n K"], times: Float64[np.ndarray, " m"]
    ) -> Float64[np.ndarray, "n m"]:
        """S(t) = exp(−Λ(t)) at each of ``times``, days in [0, τ]."""
        return np.exp(-self.cumulative_hazard(logits, times))

    def logits_of(self, survival: Float64[np.ndarray, "n points"]) -> Float64[np.ndarray, "n K"]:
        """Hazard logits whose survival at the edges is that of curves given at ``curve_times``.

        Between points the cumulative hazard is taken as linear; a bin without hazard gets a tiny one.
        """
        knots = np.append(0.0, self.curve_times())  # (points + 1,)
        known = -np.log(np.clip(survival, 1e-12, 1.0))  # (n, points)
        cumulative = np.concatenate([np.zeros((len(known), 1)), known], axis=1)
        right = np.clip(np.searchsorted(knots, self.edges), 1, knots.size - 1)  # (K + 1,)
        share = (self.edges - knots[right - 1]) / (knots[right] - knots[right - 1])
        at_edges = cumulative[:, right - 1] * (1 - share) + cumulative[:, right] * share  # (n, K + 1)
        hazard = np.maximum(np.diff(at_edges, axis=1), 1e-9)
        return hazard + np.log(-np.expm1(-hazard))

    def rmst(self, logits: Float[np.ndarray, "n K"], horizon: float | None = None) -> Float64[np.ndarray, " n"]:
        """Restricted mean survival time, the exact ∫ S over (0, horizon], in days; the horizon is τ where absent."""
        hazard = self._bin_hazards(logits)  # (n, K)
        end = self.tau if horizon is None else float(self._within(np.array([horizon]))[0])
        fraction = np.clip((end - self.edges[:-1]) / self.widths, 0.0, 1.0)  # (K,) of each bin before the end
        start = np.exp(-(np.cumsum(hazard, axis=1) - hazard))  # (n, K) S at the start of each bin
        # ∫₀^f e^{−uΛ} du = (1 − e^{−fΛ})/Λ, which is f where Λ vanishes
        safe = np.where(hazard > 0, hazard, 1.0)
        inside = np.where(hazard > 0, -np.expm1(-fraction * safe) / safe, fraction)  # (n, K)
        return (start * inside * self.widths).sum(axis=1)

    def risk(self, logits: Float[np.ndarray, "n K"], horizon: float | None = None) -> Float64[np.ndarray, " n"]:
        """The score that ranks patients, higher = sooner: −RMST(τ), or 1 − S(horizon) at a stated horizon."""
        if horizon is None:
            return -self.rmst(logits)
        return -np.expm1(-self.cumulative_hazard(logits, np.array([float(horizon)]))[:, 0])

    def nll(
        self, logits: Float[np.ndarray, "n K"], duration: Float64[np.ndarray, " n"], event: Events
    ) -> Float64[np.ndarray, " n"]:
        """Each patient's Σ_{j<k} sp(φ_j) + f·sp(φ_k) − δ·log sp(φ_k), finite for any finite logits.

        This is −log of the likelihood of a piecewise constant hazard, up to the constant δ·log(bin width).
        Durations beyond τ are censored at τ.
        """
        logits = self._checked(logits)  # (n, K)
        duration, event = truncate(duration, event, self.tau)
        bins, fraction = self.locate(duration)  # (n,)
        exposure = self.exposure(bins, fraction)  # (n, K)
        own = np.take_along_axis(logits, bins[:, None], axis=1)[:, 0]  # (n,)
        return (exposure * softplus(logits)).sum(axis=1) - np.where(event, log_softplus(own), 0.0)

    def exposure(
        self, bins: Int64[np.ndarray, " n"], fraction: Float64[np.ndarray, " n"]
    ) -> Float64[np.ndarray, "n K"]:
        """The fraction of each bin a patient was under observation: 1 before their own bin, f in it, 0 after."""
        index = np.arange(self.n_bins)
        return np.where(index < bins[:, None], 1.0, np.where(index == bins[:, None], fraction[:, None], 0.0))

    def marginal_logits(self, duration: Float64[np.ndarray, " n"], event: Events) -> Float64[np.ndarray, " K"]:
        """The logits that minimise the mean ``nll`` when all share them: Λ_k = events / summed ``exposure``.

        A bin without events is given half an event.
        """
        duration, event = truncate(duration, event, self.tau)
        bins, fraction = self.locate(duration)
        exposure = self.exposure(bins, fraction).sum(axis=0)  # (K,)
        events = np.bincount(bins, weights=event.astype(np.float64), minlength=self.n_bins)  # (K,)
        hazard = np.maximum(events, EMPTY_BIN_EVENTS) / np.where(events > 0, exposure, np.maximum(exposure, 1.0))
        return hazard + np.log(-np.expm1(-hazard))  # the inverse of softplus

    def _position(self, times: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        bins = np.minimum(np.searchsorted(self.edges[1:], times, side="left"), self.n_bins - 1)
        fraction = np.minimum((times - self.edges[bins]) / self.widths[bins], 1.0)
        return bins, fraction

    def _within(self, times: np.ndarray) -> np.ndarray:
        times = np.asarray(times, dtype=np.float64)
        if not ((times >= 0) & (times <= self.tau * (1 + 1e-9))).all():
            raise EhrError(
                f"expected times between 0 and the horizon of {self.tau:g} days, found up to {np.max(times):g}",
                "survival curve",
                "ask for times within the horizon the model was trained on",
                code=Exit.COHORT,
            )
        return np.minimum(times, self.tau)

    def _checked(self, logits: np.ndarray) -> np.ndarray:
        if logits.ndim != 2 or logits.shape[1] != self.n_bins:
            raise ValueError(f"expected logits of shape (n, {self.n_bins}), found {logits.shape}")
        return logits.astype(np.float64)

    def _bin_hazards(self, logits: np.ndarray) -> np.ndarray:
        return softplus(self._checked(logits))


def softplus(x: Float64[np.ndarray, "*s"]) -> Float64[np.ndarray, "*s"]:
    """log(1 + eˣ) without overflow.

    >>> softplus(np.array([-800.0, 0.0, 800.0]))
    array([0.00000000e+00, 6.93147181e-01, 8.00000000e+02])
    """
    return np.logaddexp(0.0, x)


def log_softplus(x: Float64[np.ndarray, "*s"]) -> Float64[np.ndarray, "*s"]:
    """log log(1 + eˣ), finite for any finite x.

    >>> log_softplus(np.array([-800.0, 800.0]))
    array([-800.        ,    6.68461173])
    """
    low = x < -20.0  # there log(1 + e^x) = e^x (1 - e^x / 2) to 1e-17
    return np.where(low, x - np.exp(np.minimum(x, 0.0)) / 2, np.log(np.logaddexp(0.0, np.where(low, 0.0, x))))


def nll_gradient(
    logits: Float64[np.ndarray, "n K"],
    exposure: Float64[np.ndarray, "n K"],
    bins: Int64[np.ndarray, " n"],
    event: Int64[np.ndarray, " n"],
) -> tuple[float, Float64[np.ndarray, "n K"]]:
    """The summed ``TimeGrid.nll`` and its gradient in the logits, for fits that need both many times.

    ∂/∂φ_j = exposure_j·σ(φ_j), less δ·σ(φ_k)/sp(φ_k) in a patient's own bin.

    >>> value, gradient = nll_gradient(np.zeros((1, 1)), np.ones((1, 1)), np.array([0]), np.array([1]))
    >>> round(value, 4), gradient.round(4).tolist()
    (1.0597, [[-0.2213]])
    """
    row = np.arange(bins.size)
    hazard = softplus(logits)  # (n, K)
    own = logits[row, bins]  # (n,)
    log_own = log_softplus(own)  # (n,)
    gradient = exposure * np.exp(logits - hazard)  # (n, K) σ(φ) = exp(φ − sp(φ))
    gradient[row, bins] -= event * np.exp(own - hazard[row, bins] - log_own)
    return float((exposure * hazard).sum() - event @ log_own), gradient


def truncate(
    duration: Float64[np.ndarray, " n"], event: Events, tau: float
) -> tuple[Float64[np.ndarray, " n"], Int64[np.ndarray, " n"]]:
    """The outcome with follow-up ended at ``tau`` days: longer durations become τ, without an event.

    >>> truncate(np.array([1.0, 2.0, 3.0]), np.array([1, 1, 1]), 2.0)
    (array([1., 2., 2.]), array([1, 1, 0]))
    """
    duration, event = check_outcome(duration, event)
    return np.minimum(duration, tau), (event & (duration <= tau)).astype(np.int64)


def choose_tau(duration: Float64[np.ndarray, " n"], event: Events, horizon_days: float | None) -> float:
    """The horizon τ in days: the task's own, or where it names none the longest τ with Ĝ(τ−) ≥ 0.1.

    Raises:
        EhrError: the task's horizon is past the longest training duration, or Ĝ(τ−) < 0.1 there (exit 12).

    >>> choose_tau(np.array([1.0, 2.0, 3.0, 4.0]), np.array([1, 0, 1, 1]), None)
    4.0
    """
    censoring = censoring_distribution(duration, event)
    if horizon_days is not None:
        check_horizon(horizon_days, censoring)
        return float(horizon_days)
    return _longest(censoring)


def check_horizon(tau: float, censoring: KaplanMeier, what: str = "horizon") -> None:
    """Refuse a horizon that the training follow-up cannot support.

    Args:
        tau: days.
        censoring: Ĝ of the training outcome.
        what: the name of the horizon, for the message.

    Raises:
        EhrError: τ past the longest training duration, or Ĝ(τ−) < 0.1 (exit 12), saying which.
    """
    fix = f"choose a horizon of at most {_longest(censoring):g} days"
    if not tau > 0:
        raise EhrError(f"the {what} must be above 0 days, found {tau:g}", "training outcome", fix, code=Exit.COHORT)
    if tau > censoring.last:
        raise EhrError(
            f"the {what} of {tau:g} days is past the longest training duration, {censoring.last:g} days",
            "training outcome",
            fix,
            code=Exit.COHORT,
        )
    observed = float(censoring.before(tau))
    if observed < TOO_LOW:
        raise EhrError(
            f"at the {what} of {tau:g} days only a share of {observed:.3f} is still uncensored (Ĝ(τ−)); "
            f"at least {MIN_CENSORING_SURVIVAL:g} is needed",
            "training outcome",
            fix,
            code=Exit.COHORT,
        )


def _longest(censoring: KaplanMeier) -> float:
    low = censoring.times[censoring.values < TOO_LOW]
    return float(low[0]) if low.size else censoring.last
