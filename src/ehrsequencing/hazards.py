"""From hazard logits to hazards and likelihood, for one cause or several (NumPy, float64).

With causes r = 1 … R a bin's cumulative hazard is Λ = log(1 + Σ_r e^φ_r) = sp(η), η = logsumexp_r φ_r being its total
logit; each cause has the share softmax_r φ of it. With one cause η = φ. Arrays of logits are (n, K) for one cause and
(n, K, R) for several.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float64, Int64


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


def inverse_softplus(hazard: Float64[np.ndarray, "*s"]) -> Float64[np.ndarray, "*s"]:
    """The logit of a cumulative hazard above 0: log(e^Λ − 1).

    >>> inverse_softplus(np.log(2.0) * np.ones(1))
    array([0.])
    """
    return hazard + np.log(-np.expm1(-hazard))


def total_logit(logits: Float64[np.ndarray, "n K *R"]) -> Float64[np.ndarray, "n K"]:
    """η = logsumexp over the causes; the logits themselves where there is one.

    >>> total_logit(np.log(np.array([[[1.0, 3.0]]]))).round(12), total_logit(np.array([[2.0]]))
    (array([[1.38629436]]), array([[2.]]))
    """
    if logits.ndim == 2:
        return logits
    top = logits.max(axis=2)  # (n, K)
    return top + np.log(np.exp(logits - top[:, :, None]).sum(axis=2))


def cause_shares(logits: Float64[np.ndarray, "n K *R"]) -> Float64[np.ndarray, "n K R"]:
    """softmax over the causes: the share of a bin's hazard that each has; 1 where there is one cause.

    >>> cause_shares(np.log(np.array([[[1.0, 3.0]]])))
    array([[[0.25, 0.75]]])
    """
    if logits.ndim == 2:
        return np.ones((*logits.shape, 1))
    return np.exp(logits - total_logit(logits)[:, :, None])


def mean_of_hazards(logits: Sequence[Float64[np.ndarray, "n K *R"]]) -> Float64[np.ndarray, "n K *R"]:
    """Logits of the mean of several models' discrete hazards, of every bin (and cause).

    With h_r = e^φ_r / (1 + Σ e^φ), the mean's φ_r is log Σ_m e^(φ_mr − Λ_m) − log Σ_m e^(−Λ_m).

    >>> mean_of_hazards([np.array([[0.0]]), np.array([[0.0]])]).tolist()
    [[0.0]]
    """
    stacked = np.stack(logits)  # (m, n, K, *R)
    kept = -np.stack([softplus(total_logit(each)) for each in logits])  # (m, n, K): log of no event of any cause
    none = np.logaddexp.reduce(kept, axis=0)  # (n, K)
    if stacked.ndim == 3:
        return np.logaddexp.reduce(stacked + kept, axis=0) - none
    return np.logaddexp.reduce(stacked + kept[..., None], axis=0) - none[..., None]


def nll_gradient(
    logits: Float64[np.ndarray, "n K *R"],
    exposure: Float64[np.ndarray, "n K"],
    bins: Int64[np.ndarray, " n"],
    event: Int64[np.ndarray, " n"],
) -> tuple[float, Float64[np.ndarray, "n K *R"]]:
    """The summed ``TimeGrid.nll`` and its gradient in the logits, for fits that need both many times.

    ∂/∂φ_j = exposure_j·σ(φ_j), less δ·σ(φ_k)/sp(φ_k) in a patient's own bin. With several causes that is ∂/∂η, each
    cause takes its share of it, and an event of cause c adds share_r − 1[r = c] in its own bin.

    >>> value, gradient = nll_gradient(np.zeros((1, 1)), np.ones((1, 1)), np.array([0]), np.array([1]))
    >>> round(value, 4), gradient.round(4).tolist()
    (1.0597, [[-0.2213]])
    """
    if logits.ndim == 2:
        return _one_cause(logits, exposure, bins, event)
    happened = (event > 0).astype(np.int64)  # (n,)
    eta = total_logit(logits)  # (n, K)
    share = np.exp(logits - eta[:, :, None])  # (n, K, R)
    value, by_total = _one_cause(eta, exposure, bins, happened)
    gradient = by_total[:, :, None] * share  # (n, K, R)
    row = np.flatnonzero(happened)
    own, cause = bins[row], event[row] - 1
    gradient[row, own] += share[row, own]
    gradient[row, own, cause] -= 1.0
    return value - float((logits[row, own, cause] - eta[row, own]).sum()), gradient


def _one_cause(
    logits: np.ndarray, exposure: np.ndarray, bins: np.ndarray, event: np.ndarray
) -> tuple[float, np.ndarray]:
    row = np.arange(bins.size)
    hazard = softplus(logits)  # (n, K)
    own = logits[row, bins]  # (n,)
    log_own = log_softplus(own)  # (n,)
    gradient = exposure * np.exp(logits - hazard)  # (n, K) σ(φ) = exp(φ − sp(φ))
    gradient[row, bins] -= event * np.exp(own - hazard[row, bins] - log_own)
    return float((exposure * hazard).sum() - event @ log_own), gradient
