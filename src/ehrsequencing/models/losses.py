"""Survival losses from hazard logits: negative log likelihood, ranking term and their hybrid (continuous within bins).

A bin's cumulative hazard is sp(φ) = log(1 + e^φ) = −log(1 − h) with h = σ(φ) its discrete hazard; within a bin it is
spent evenly. A patient's outcome is its bin k, the elapsed fraction f in (0, 1] of that bin, and the event flag δ.
With R competing causes logits are (B, K, R), the outcome first, and event the number of the cause: Λ = sp(η) with
η = logsumexp_r φ_r is a bin's cumulative hazard of all causes, softmax_r φ each cause's share of it.

Outcomes may lie on the host while logits are elsewhere: pairs are found where the outcomes are, and nobody waits for
the logits' device.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import softplus

from ehrsequencing.device import moved

SERIES_BELOW = -10.0
"""Below this logit log sp(φ) is taken from its series: sp underflows long before log sp does."""
LARGEST_LOG = 5.0
"""Above this log x, e^{−x} is below e^{−148}: nothing beside 1, and its gradient nothing too."""


def log_softplus(logits: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """log sp(φ), exact and with finite gradients for very negative φ too, where it tends to φ.

    With u = e^φ: log(log(1 + u)) = φ − u/2 + 5u²/24 + O(u³).

    >>> log_softplus(torch.tensor([-1000.0, 0.0]))
    tensor([-1.0000e+03, -3.6651e-01])
    """
    small = logits < SERIES_BELOW
    u = torch.exp(logits.clamp(max=SERIES_BELOW))
    series = logits - u / 2 + 5 * u * u / 24
    exact = torch.log(_softplus(logits.clamp(min=SERIES_BELOW)))
    return torch.where(small, series, exact)


def _softplus(logits: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    # torch's default threshold of 20 costs 2e-9, which float64 would notice
    return softplus(logits, threshold=40.0)


def exposure(bin: Int[Tensor, "*shape"], fraction: Float[Tensor, "*shape"], n_bins: int) -> Float[Tensor, "*shape K"]:
    """Share of each bin lived through: 1 before bin k, f in it, 0 after.

    >>> exposure(torch.tensor([1]), torch.tensor([0.25]), 3)
    tensor([[1.0000, 0.2500, 0.0000]])
    """
    index = torch.arange(n_bins, device=bin.device)  # [K]
    share = fraction[..., None] * (index == bin[..., None])  # [..., K]
    return share + (index < bin[..., None])  # [..., K]


def total_logit(logits: Float[Tensor, "B K *R"]) -> Float[Tensor, "B K"]:
    """η = logsumexp over the causes; the logits themselves where there is one."""
    return logits if logits.ndim == 2 else torch.logsumexp(logits, dim=2)


def cumulative_hazard(
    logits: Float[Tensor, "B K *R"], bin: Int[Tensor, " B"], fraction: Float[Tensor, " B"]
) -> Float[Tensor, " B"]:
    """Λ(t) = Σ_{j<k} sp(φ_j) + f·sp(φ_k) at each patient's own time; of all causes."""
    bin, fraction = moved(bin, logits.device), moved(fraction, logits.device)
    w = exposure(bin, fraction.to(logits.dtype), logits.shape[1])  # [B,K]
    return (w * _softplus(total_logit(logits))).sum(dim=1)  # [B]


def survival_nll(
    logits: Float[Tensor, "B K *R"],
    bin: Int[Tensor, " B"],
    fraction: Float[Tensor, " B"],
    event: Int[Tensor, " B"] | Bool[Tensor, " B"],
) -> Float[Tensor, " B"]:
    """Negative log likelihood of each patient: Σ_{j<k} sp(φ_j) + f·sp(φ_k) − δ·log sp(φ_k).

    The likelihood of right-censored data under a hazard that is constant within each bin, so that events and
    censorings at any point of a bin are unbiased; the bins' widths, constants of the data, are left out. With several
    causes sp(φ) is Λ = sp(η), and an event of cause r adds −log softmax_r φ_k.

    >>> survival_nll(torch.zeros(1, 2), torch.tensor([1]), torch.tensor([0.5]), torch.tensor([0]))
    tensor([1.0397])
    """
    bin, event = moved(bin, logits.device), moved(event, logits.device)
    if logits.ndim == 2:
        log_hazard = log_softplus(logits.gather(1, bin[:, None]))[:, 0]  # [B]
        return cumulative_hazard(logits, bin, fraction) - event.to(logits.dtype) * log_hazard
    own = logits[torch.arange(len(bin), device=bin.device), bin]  # [B,R]
    total = torch.logsumexp(own, dim=1)  # [B] η_k
    cause = own.gather(1, (event.long() - 1).clamp_min(0)[:, None])[:, 0]  # [B]
    log_hazard = log_softplus(total) + cause - total  # [B] log of the cause's own hazard
    return cumulative_hazard(logits, bin, fraction) - (event > 0).to(logits.dtype) * log_hazard


def log_cumulative_hazard(
    log_sp: Float[Tensor, "*#shape K"], bin: Int[Tensor, "*#shape"], fraction: Float[Tensor, "*#shape"]
) -> Float[Tensor, "*#shape"]:
    """log Λ(t) from log sp(φ), by logsumexp over the bins lived through; shapes broadcast."""
    tiny = torch.finfo(log_sp.dtype).tiny
    w = exposure(bin, fraction.to(log_sp.dtype).clamp_min(tiny), log_sp.shape[-1])  # [..., K]
    return torch.logsumexp(log_sp + torch.log(w), dim=-1)


def at_risk(
    duration: Float[Tensor, " B"], event: Int[Tensor, " B"] | Bool[Tensor, " B"]
) -> tuple[Int[Tensor, " E"], Bool[Tensor, "E B"]]:
    """The patients with the outcome, and who is still at risk when each of them has it.

    j is at risk at t_i when duration_j > t_i, or when both are equal and j is censored (events come before
    censorings of the same time); two outcomes at the same time make no pair. Whoever had a competing event, however
    early, can no longer have the outcome and so is at risk at every t_i (Wolbers et al. 2009).
    """
    cases = torch.nonzero(event == 1)[:, 0]  # [E]
    time = duration[cases, None]  # [E,1]
    return cases, (duration > time) | ((duration == time) & (event == 0)) | (event > 1)  # [E,B]


def log_one_minus_exp(log_x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """log(1 − e^{−x}) of x > 0 given by its logarithm, with finite gradients however small or large x is.

    For small x: log x − x/2 + x²/24 + O(x⁴).

    >>> log_one_minus_exp(torch.tensor([-1000.0, 0.0, 80.0]))
    tensor([-1.0000e+03, -4.5868e-01,  0.0000e+00])
    """
    small = log_x < SERIES_BELOW
    x = torch.exp(log_x.clamp(max=SERIES_BELOW))
    series = log_x - x / 2 + x * x / 24
    exact = torch.log(-torch.expm1(-torch.exp(log_x.clamp(SERIES_BELOW, LARGEST_LOG))))
    return torch.where(small, series, exact)


def log_incidence(
    logits: Float[Tensor, "B K R"], bin: Int[Tensor, " E"], fraction: Float[Tensor, " E"]
) -> Float[Tensor, "E B"]:
    """log CIF_1 of every patient at each of E times (a bin and the elapsed fraction of it), by logsumexp over bins.

    CIF_1(t) = Σ_{j≤k} S(a_j)·(1 − e^{−w_j Λ_j})·softmax_1 φ_j, w_j being 1 before bin k and f in it.
    """
    total = total_logit(logits)  # [B,K] η
    hazard = _softplus(total)  # [B,K] Λ
    start = hazard - torch.cumsum(hazard, dim=1)  # [B,K] log S at the start of each bin
    before = start + logits[:, :, 0] - total  # [B,K]
    tiny = torch.finfo(logits.dtype).tiny
    w = exposure(bin, fraction.to(logits.dtype).clamp_min(tiny), logits.shape[1])[:, None]  # [E,1,K]
    lived = w > 0
    spent = log_softplus(total) + torch.log(w.clamp_min(tiny))  # [E,B,K] log of w·Λ
    terms = (before + log_one_minus_exp(spent)).masked_fill(~lived, -torch.inf)  # [E,B,K]
    return torch.logsumexp(terms, dim=2)


def ranking_loss(
    logits: Float[Tensor, "B K *R"],
    bin: Int[Tensor, " B"],
    fraction: Float[Tensor, " B"],
    event: Int[Tensor, " B"] | Bool[Tensor, " B"],
    duration: Float[Tensor, " B"],
) -> tuple[Float[Tensor, ""], int]:
    """Mean of softplus(log Λ_j(t_i) − log Λ_i(t_i)) over pairs with i an outcome and j at risk at t_i, and how many.

    With several causes log CIF_1 stands for log Λ. Without a pair the term is 0 and carries no gradient: the caller
    counts such steps.
    """
    cases, comparable = at_risk(duration, event)  # [E], [E,B]
    n_pairs = int(comparable.sum())
    if n_pairs == 0:
        return logits.new_zeros(()), 0
    pairs = torch.nonzero(comparable, as_tuple=True)  # [P], [P]
    there = (*pairs, cases, bin[cases], fraction[cases])
    i, j, cases, bin_i, fraction_i = (moved(x, logits.device) for x in there)  # [P], [P], [E], [E], [E]
    if logits.ndim == 3:
        incidence = log_incidence(logits, bin_i, fraction_i)  # [E,B]
        return _softplus(incidence[i, j] - incidence[i, cases[i]]).mean(), n_pairs
    log_sp = log_softplus(logits)  # [B,K]
    own = log_cumulative_hazard(log_sp[cases], bin_i, fraction_i)  # [E]
    other = log_cumulative_hazard(log_sp[None], bin_i[:, None], fraction_i[:, None])  # [E,B]
    return _softplus(other[i, j] - own[i]).mean(), n_pairs


class HybridLoss(NamedTuple):
    """The step's loss, its two parts, and the number of pairs in the ranking term (0: the term was left out)."""

    loss: Tensor
    nll: Tensor
    rank: Tensor
    n_pairs: int


def hybrid_loss(
    logits: Float[Tensor, "B K *R"],
    bin: Int[Tensor, " B"],
    fraction: Float[Tensor, " B"],
    event: Int[Tensor, " B"] | Bool[Tensor, " B"],
    duration: Float[Tensor, " B"],
    lambda_rank: float | int,
) -> HybridLoss:
    """Mean NLL + lambda_rank × ranking term over one optimiser step (every patient of the step in one call)."""
    nll = survival_nll(logits, bin, fraction, event).mean()
    if lambda_rank == 0:
        return HybridLoss(nll, nll, logits.new_zeros(()), 0)
    rank, n_pairs = ranking_loss(logits, bin, fraction, event, duration)
    return HybridLoss(nll + lambda_rank * rank if n_pairs else nll, nll, rank, n_pairs)
