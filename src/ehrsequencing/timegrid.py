"""The discrete time grid that every model shares, and the exact arithmetic of survival on it (NumPy, float64)."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Float64, Int64

from ehrsequencing.config import CURVE_POINTS
from ehrsequencing.errors import EhrError, Exit
from ehrsequencing.hazards import cause_shares, inverse_softplus, log_softplus, softplus, total_logit
from ehrsequencing.nonparametric import AalenJohansen, Events, KaplanMeier, check_causes

EVENTS_PER_BIN, MIN_BINS, MAX_BINS = 10, 4, 20
EMPTY_BIN_EVENTS = 0.5
"""Events that a bin without any is taken to have had, so that its marginal logit stays finite."""


@dataclass(frozen=True, eq=False)
class TimeGrid:
    """Bins ``(a, b]`` of time since prediction_time; with hazard logits φ, softplus(φ) is a bin's cumulative hazard.

    With R competing causes logits are (n, K, R), the outcome first, and Λ = log(1 + Σ_r e^φ_r) is the cumulative hazard
    of all of them. It is linear inside a bin, so S(t), the probability of no event of any cause, is continuous in t.

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
        """The grid of a training outcome: each bin holds an equal share of its cumulative incidence up to ``tau``.

        That is one minus Kaplan–Meier, and where there are competing events the Aalen–Johansen curve of cause 1: only
        the outcome's events place the bins. K = clip(events // 10, 4, 20); fewer where tied event times leave fewer
        distinct quantiles.

        Raises:
            EhrError: no outcome up to ``tau`` among the training rows (exit 12).
        """
        duration, event = truncate(duration, event, tau)
        n_events = int((event == 1).sum())
        if n_events == 0:
            raise EhrError(
                f"no event in the training split within the horizon of {tau:g} days",
                f"outcome of {duration.size:,} training subjects",
                "lengthen horizon_days, widen the outcome's codes, or use a larger data set",
                code=Exit.COHORT,
            )
        n_bins = int(np.clip(n_events // EVENTS_PER_BIN, MIN_BINS, MAX_BINS))
        times, lost = _incidence(duration, event)  # (m,) each
        shares = lost[-1] * np.arange(1, n_bins) / n_bins  # (K - 1,)
        # a hair below the share, so that rounding cannot push a quantile to the next event
        inner = times[np.searchsorted(lost, shares * (1 - 1e-12))]
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
        self, logits: Float[np.ndarray, "n K *R"], times: Float64[np.ndarray, " m"]
    ) -> Float64[np.ndarray, "n m"]:
        """Λ(t) = Σ_{j<k} sp(φ_j) + f·sp(φ_k) at each of ``times``, days in [0, τ]; of all causes.

        Raises:
            EhrError: a time outside [0, τ] (exit 12).
        """
        hazard = self._bin_hazards(logits)  # (n, K)
        bins, fraction = self._position(self._within(times))  # (m,)
        before = np.cumsum(hazard, axis=1) - hazard  # (n, K) at the start of each bin
        return before[:, bins] + fraction * hazard[:, bins]

    def survival(
        self, logits: Float[np.ndarray, "n K *R"], times: Float64[np.ndarray, " m"]
    ) -> Float64[np.ndarray, "n m"]:
        """S(t) = exp(−Λ(t)), the probability of no event of any cause, at each of ``times``, days in [0, τ]."""
        return np.exp(-self.cumulative_hazard(logits, times))

    def cif(
        self, logits: Float[np.ndarray, "n K *R"], times: Float64[np.ndarray, " m"]
    ) -> Float64[np.ndarray, "n m R"]:
        """The cumulative incidence of each cause at each of ``times``, days in [0, τ]; with S(t) they sum to 1.

        Within a bin that starts at a: CIF_r(t) = CIF_r(a) + S(a)(1 − e^{−fΛ})·softmax_r φ. For (n, K) logits R is 1.
        """
        logits = self._checked(logits)
        hazard, share = softplus(total_logit(logits)), cause_shares(logits)  # (n, K), (n, K, R)
        bins, fraction = self._position(self._within(times))  # (m,)
        start, before = self._at_start(hazard, share)  # (n, K), (n, K, R)
        inside = start[:, bins] * -np.expm1(-fraction * hazard[:, bins])  # (n, m)
        return before[:, bins] + inside[:, :, None] * share[:, bins]

    def logits_of(self, curves: Float64[np.ndarray, "n points *R"]) -> Float64[np.ndarray, "n K *R"]:
        """Hazard logits whose survival (or cumulative incidences) at the edges are those of the curves given.

        Between points the cumulative hazard is taken as linear, and each cause's share of it as constant; a bin without
        hazard gets a tiny one.

        Args:
            curves: at ``curve_times``: S(t) of shape (n, points), or the incidences of all R causes (n, points, R).
        """
        knots = np.append(0.0, self.curve_times())  # (points + 1,)
        survival = curves if curves.ndim == 2 else 1.0 - curves.sum(axis=2)
        known = -np.log(np.clip(survival, 1e-12, 1.0))  # (n, points)
        cumulative = np.concatenate([np.zeros((len(known), 1)), known], axis=1)
        right = np.clip(np.searchsorted(knots, self.edges), 1, knots.size - 1)  # (K + 1,)
        share = (self.edges - knots[right - 1]) / (knots[right] - knots[right - 1])
        at_edges = cumulative[:, right - 1] * (1 - share) + cumulative[:, right] * share  # (n, K + 1)
        total = inverse_softplus(np.maximum(np.diff(at_edges, axis=1), 1e-9))
        if curves.ndim == 2:
            return total
        lost, before = np.exp(-cumulative[:, right - 1]), np.exp(-cumulative[:, right])  # (n, K + 1) S at both knots
        spent = _ratio(lost - np.exp(-at_edges), lost - before)[:, :, None]  # (n, K + 1, 1) of the step between knots
        steps = np.concatenate([np.zeros_like(curves[:, :1]), curves], axis=1)  # (n, points + 1, R)
        incidence = steps[:, right - 1] * (1 - spent) + steps[:, right] * spent  # (n, K + 1, R)
        by_cause = np.maximum(np.diff(incidence, axis=1), 1e-12)  # (n, K, R)
        return total[:, :, None] + np.log(by_cause / by_cause.sum(axis=2, keepdims=True))

    def rmst(self, logits: Float[np.ndarray, "n K *R"], horizon: float | None = None) -> Float64[np.ndarray, " n"]:
        """Restricted mean survival time, the exact ∫ S over (0, horizon], in days; the horizon is τ where absent."""
        hazard = self._bin_hazards(logits)  # (n, K)
        fraction = self._elapsed(horizon)  # (K,) of each bin before the end
        start = np.exp(-(np.cumsum(hazard, axis=1) - hazard))  # (n, K) S at the start of each bin
        # ∫₀^f e^{−uΛ} du = (1 − e^{−fΛ})/Λ, which is f where Λ vanishes
        safe = np.where(hazard > 0, hazard, 1.0)
        inside = np.where(hazard > 0, -np.expm1(-fraction * safe) / safe, fraction)  # (n, K)
        return (start * inside * self.widths).sum(axis=1)

    def time_lost(
        self, logits: Float[np.ndarray, "n K *R"], horizon: float | None = None
    ) -> Float64[np.ndarray, "n R"]:
        """Restricted time lost to each cause, the exact ∫ CIF_r over (0, horizon], in days (Andersen 2013).

        With the restricted mean survival time they sum to the horizon, which is τ where absent.
        """
        logits = self._checked(logits)
        hazard, share = softplus(total_logit(logits)), cause_shares(logits)  # (n, K), (n, K, R)
        fraction = self._elapsed(horizon)  # (K,)
        start, before = self._at_start(hazard, share)  # (n, K), (n, K, R)
        grown = start * fraction * _mean_lost(fraction * hazard)  # (n, K)
        inside = before * fraction[:, None] + grown[:, :, None] * share  # (n, K, R)
        return np.einsum("nkr,k->nr", inside, self.widths)

    def risk(self, logits: Float[np.ndarray, "n K *R"], horizon: float | None = None) -> Float64[np.ndarray, " n"]:
        """The score that ranks patients, higher = sooner: −RMST(τ), or 1 − S(horizon) at a stated horizon.

        For (n, K, R) logits the restricted time lost to cause 1 up to τ, or CIF_1(horizon).
        """
        if logits.ndim == 3:
            lost = self.time_lost(logits) if horizon is None else self.cif(logits, np.array([float(horizon)]))[:, 0]
            return lost[:, 0]
        if horizon is None:
            return -self.rmst(logits)
        return -np.expm1(-self.cumulative_hazard(logits, np.array([float(horizon)]))[:, 0])

    def nll(
        self, logits: Float[np.ndarray, "n K *R"], duration: Float64[np.ndarray, " n"], event: Events
    ) -> Float64[np.ndarray, " n"]:
        """Each patient's Σ_{j<k} sp(φ_j) + f·sp(φ_k) − δ·log sp(φ_k), finite for any finite logits.

        With several causes sp(φ) is Λ = sp(logsumexp_r φ_r), and an event of cause r adds −log softmax_r φ_k. This is
        −log of the likelihood of piecewise constant hazards, up to the constant δ·log(bin width). Durations beyond τ
        are censored at τ.
        """
        logits = self._checked(logits)  # (n, K, *R)
        duration, event = truncate(duration, event, self.tau)
        _known_causes(event, logits.shape[2] if logits.ndim == 3 else 1)
        bins, fraction = self.locate(duration)  # (n,)
        exposure = self.exposure(bins, fraction)  # (n, K)
        total = total_logit(logits)  # (n, K)
        own = np.take_along_axis(total, bins[:, None], axis=1)[:, 0]  # (n,)
        loss = (exposure * softplus(total)).sum(axis=1) - np.where(event > 0, log_softplus(own), 0.0)
        if logits.ndim == 2:
            return loss
        cause = logits[np.arange(len(bins)), bins, np.maximum(event - 1, 0)]  # (n,)
        return loss - np.where(event > 0, cause - own, 0.0)

    def exposure(
        self, bins: Int64[np.ndarray, " n"], fraction: Float64[np.ndarray, " n"]
    ) -> Float64[np.ndarray, "n K"]:
        """The fraction of each bin a patient was under observation: 1 before their own bin, f in it, 0 after."""
        index = np.arange(self.n_bins)
        return np.where(index < bins[:, None], 1.0, np.where(index == bins[:, None], fraction[:, None], 0.0))

    def marginal_logits(
        self, duration: Float64[np.ndarray, " n"], event: Events, n_causes: int = 1
    ) -> Float64[np.ndarray, " K *R"]:
        """The logits that minimise the mean ``nll`` when all share them: Λ_k = events / summed ``exposure``.

        (K,) for one cause, (K, R) for R of them: hazards by cause, Λ_{k,r} = events of cause r / exposure. A bin
        without events of a cause is given half an event of it.
        """
        duration, event = truncate(duration, event, self.tau)
        _known_causes(event, n_causes)
        bins, fraction = self.locate(duration)
        exposure = self.exposure(bins, fraction).sum(axis=0)  # (K,)
        hazards = []
        for cause in range(1, n_causes + 1):
            events = np.bincount(bins, weights=(event == cause).astype(np.float64), minlength=self.n_bins)  # (K,)
            lived = np.where(events > 0, exposure, np.maximum(exposure, 1.0))
            hazards.append(np.maximum(events, EMPTY_BIN_EVENTS) / lived)
        if n_causes == 1:
            return inverse_softplus(hazards[0])
        by_cause = np.stack(hazards, axis=1)  # (K, R)
        total = by_cause.sum(axis=1, keepdims=True)
        return inverse_softplus(total) + np.log(by_cause / total)

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
        if logits.ndim not in (2, 3) or logits.shape[1] != self.n_bins:
            raise ValueError(
                f"expected logits of shape (n, {self.n_bins}) or (n, {self.n_bins}, R), not {logits.shape}"
            )
        return logits.astype(np.float64)

    def _bin_hazards(self, logits: np.ndarray) -> np.ndarray:
        return softplus(total_logit(self._checked(logits)))

    def _elapsed(self, horizon: float | None) -> np.ndarray:
        """The fraction of each bin that lies before the horizon, (K,)."""
        end = self.tau if horizon is None else float(self._within(np.array([horizon]))[0])
        return np.clip((end - self.edges[:-1]) / self.widths, 0.0, 1.0)

    @staticmethod
    def _at_start(hazard: np.ndarray, share: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """S (n, K) and the incidences (n, K, R) at the start of each bin."""
        start = np.exp(-(np.cumsum(hazard, axis=1) - hazard))
        lost = (start * -np.expm1(-hazard))[:, :, None] * share  # (n, K, R)
        return start, np.cumsum(lost, axis=1) - lost


def _incidence(duration: np.ndarray, event: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Times of steps, and the cumulative incidence of cause 1 at them."""
    if not (event > 1).any():
        km = KaplanMeier.fit(duration, event)
        return km.times, 1.0 - km.values
    curves = AalenJohansen.fit(duration, event)
    return curves.times, curves.values[:, 0]


def _mean_lost(hazard: np.ndarray) -> np.ndarray:
    """∫₀¹ (1 − e^{−uΛ}) du = 1 − (1 − e^{−Λ})/Λ, accurate for small Λ too."""
    safe = np.where(hazard > 1e-3, hazard, 1.0)
    series = hazard / 2 * (1 - hazard / 3 * (1 - hazard / 4 * (1 - hazard / 5)))
    return np.where(hazard > 1e-3, 1.0 + np.expm1(-safe) / safe, series)


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """part / whole within [0, 1]; 1 where the whole is nothing."""
    return np.clip(np.divide(part, whole, out=np.ones_like(part), where=whole > 0), 0.0, 1.0)


def _known_causes(event: np.ndarray, n_causes: int) -> None:
    if event.max(initial=0) > n_causes:
        raise ValueError(f"expected event codes up to {n_causes}, the number of causes, found {event.max()}")


def truncate(
    duration: Float64[np.ndarray, " n"], event: Events, tau: float
) -> tuple[Float64[np.ndarray, " n"], Int64[np.ndarray, " n"]]:
    """The outcome with follow-up ended at ``tau`` days: longer durations become τ, without an event of any cause.

    >>> truncate(np.array([1.0, 2.0, 3.0]), np.array([1, 2, 1]), 2.0)
    (array([1., 2., 2.]), array([1, 2, 0]))
    """
    duration, event = check_causes(duration, event)
    return np.minimum(duration, tau), np.where(duration <= tau, event, 0)
