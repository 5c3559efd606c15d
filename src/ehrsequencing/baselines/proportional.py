"""The proportional-hazards parts: Efron's partial likelihood, Breslow's baseline hazard, restricted mean survival."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int64

_LARGEST_LOG = 700.0
"""exp of more overflows float64; such a patient's survival is 0 all the same."""
_TINY = 1e-300


class PartialLikelihood:
    """Minus Efron's (1977) log partial likelihood of log relative hazards η, and its gradient, in O(n) after one sort.

    Of d events tied at t, the l-th (l = 0 … d − 1) has the denominator R − (l/d)·D, with R the summed e^η of everybody
    at risk at t and D that of the tied events.

    >>> loss = PartialLikelihood(np.array([1.0, 2.0]), np.array([1, 0]))
    >>> round(loss(np.zeros(2))[0], 6)
    0.693147
    """

    def __init__(self, duration: Float64[np.ndarray, " n"], event: Int64[np.ndarray, " n"]) -> None:
        times, self._group = np.unique(duration, return_inverse=True)  # [G] rising; [n] each patient's time
        self._n_groups = len(times)
        self._event = event > 0
        tied = np.bincount(self._group[self._event], minlength=self._n_groups)  # [G] events at each time
        self._at = np.repeat(np.arange(self._n_groups), tied)  # [E] each event's time
        rank = np.arange(len(self._at)) - (np.cumsum(tied) - tied)[self._at]  # [E] l
        self._share = rank / tied[self._at]  # [E] l/d

    def __call__(self, eta: Float64[np.ndarray, " n"]) -> tuple[float, Float64[np.ndarray, " n"]]:
        """The summed loss and its derivative by each η."""
        if not len(self._at):
            return 0.0, np.zeros_like(eta)
        top = float(eta.max())
        hazard = np.exp(eta - top)  # [n]
        everybody = np.bincount(self._group, weights=hazard, minlength=self._n_groups)  # [G]
        events = np.bincount(self._group, weights=hazard * self._event, minlength=self._n_groups)  # [G] D
        at_risk = np.cumsum(everybody[::-1])[::-1]  # [G] R
        denominator = np.maximum(at_risk[self._at] - self._share * events[self._at], _TINY)  # [E]
        loss = float(np.log(denominator).sum() + top * len(self._at) - eta[self._event].sum())
        inverse = np.bincount(self._at, weights=1 / denominator, minlength=self._n_groups)  # [G]
        spared = np.bincount(self._at, weights=self._share / denominator, minlength=self._n_groups)  # [G]
        drawn = np.cumsum(inverse)[self._group] - self._event * spared[self._group]  # [n]
        return loss, hazard * drawn - self._event


@dataclass(frozen=True)
class Breslow:
    """Breslow's (1974) baseline cumulative hazard: a step of d/Σ_{at risk} e^η at each event time.

    >>> base = Breslow.fit(np.array([1.0, 2.0]), np.array([1, 1]), np.zeros(2))
    >>> base.cumulative.tolist()
    [0.5, 1.5]
    """

    times: Float64[np.ndarray, " m"]
    cumulative: Float64[np.ndarray, " m"]

    @classmethod
    def fit(
        cls, duration: Float64[np.ndarray, " n"], event: Int64[np.ndarray, " n"], eta: Float64[np.ndarray, " n"]
    ) -> Breslow:
        """From the training rows and their log relative hazards; a constant in η cancels from the curves."""
        times, group = np.unique(duration, return_inverse=True)
        events = np.bincount(group, weights=event > 0, minlength=len(times))
        hazard = np.bincount(group, weights=relative_hazard(eta), minlength=len(times))
        steps = events > 0
        at_risk = np.cumsum(hazard[::-1])[::-1]
        return cls(times[steps], np.cumsum(events[steps] / at_risk[steps]))

    def survival(self, eta: Float64[np.ndarray, " n"], times: Float64[np.ndarray, " m"]) -> Float64[np.ndarray, "n m"]:
        """S(t | η) = exp(−H₀(t)·e^η)."""
        baseline = np.concatenate([[0.0], self.cumulative])[np.searchsorted(self.times, times, side="right")]
        return np.exp(-relative_hazard(eta)[:, None] * baseline)


def relative_hazard(eta: Float64[np.ndarray, " n"]) -> Float64[np.ndarray, " n"]:
    """e^η, kept within float64."""
    return np.exp(np.minimum(eta, _LARGEST_LOG))


def restricted_mean(
    survival: Float64[np.ndarray, "n m"], times: Float64[np.ndarray, " m"]
) -> Float64[np.ndarray, " n"]:
    """∫ S over (0, last time] of a curve given at ``times``, with S(0) = 1, by trapezia; days.

    >>> restricted_mean(np.array([[0.5, 0.5]]), np.array([1.0, 2.0]))
    array([1.25])
    """
    whole = np.concatenate([np.ones((len(survival), 1)), survival], axis=1)
    return np.trapezoid(whole, np.concatenate([[0.0], times]), axis=1)
