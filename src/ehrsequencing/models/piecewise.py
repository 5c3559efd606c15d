"""Piecewise-constant hazards on a continuous clock: exact likelihood, marginal rates, and where the pieces end.

A piece p covers (e_p, e_{p+1}], e_0 = 0 and the last piece open. With hazards λ_p a time t (an event, δ = 1, or the end
of what was seen, δ = 0) has −log L = Σ_p λ_p·x_p − δ·log λ_{p(t)}, x_p being the days of piece p lived through.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor

PRIOR_EVENTS = 1.0
"""A marginal rate is drawn towards the rate above it (piece to code, code to all codes) as by so many events."""


def exposures(duration: Float[Tensor, "*shape"], edges: Float[Tensor, " P"]) -> Float[Tensor, "*shape P"]:
    """Days of each piece lived through; ``edges`` are where the pieces begin, the first at 0.

    >>> exposures(torch.tensor([25.0]), torch.tensor([0.0, 10.0, 40.0]))
    tensor([[10., 15.,  0.]])
    """
    width = torch.diff(edges, append=edges.new_full((1,), torch.inf))  # [P]
    return (duration[..., None] - edges).clamp_min(0).minimum(width)  # [..., P]


def pieces(duration: Float[Tensor, "*shape"], edges: Float[Tensor, " P"]) -> Tensor:
    """The piece (e_p, e_{p+1}] that holds each time."""
    return torch.bucketize(duration, edges[1:].contiguous())  # [...]


def piecewise_nll(
    log_rate: Float[Tensor, "*shape P"],
    duration: Float[Tensor, "*shape"],
    event: Bool[Tensor, "*shape"],
    edges: Float[Tensor, " P"],
) -> Float[Tensor, "*shape"]:
    """−log L of each time under log hazards a day; of no time at all (0 days) it is 0.

    >>> piecewise_nll(torch.zeros(1, 2), torch.tensor([3.0]), torch.tensor([True]), torch.tensor([0.0, 2.0]))
    tensor([3.])
    """
    lived = (exposures(duration, edges) * log_rate.exp()).sum(dim=-1)  # [...]
    own = log_rate.gather(-1, pieces(duration, edges)[..., None])[..., 0]  # [...]
    return lived - torch.where(event, own, torch.zeros_like(own))


def quantile_edges(times: Float64[np.ndarray, " n"], n_pieces: int) -> Float64[np.ndarray, " P"]:
    """Where P ≤ ``n_pieces`` pieces begin, each with as many of the observed times as ties allow; the first at 0.

    >>> quantile_edges(np.arange(1.0, 9.0), 2)
    array([0. , 4.5])
    """
    if len(times) == 0:
        return np.zeros(1)
    inner = np.quantile(times, np.arange(1, n_pieces) / n_pieces)
    return np.unique(np.append(0.0, inner[inner < times.max()]))


def marginal_log_rates(
    duration: Float64[np.ndarray, "Q N"],
    event: Bool[np.ndarray, "Q N"],
    kind: Int64[np.ndarray, "Q N"],
    n_kinds: int,
    edges: Float64[np.ndarray, " P"],
) -> Float64[np.ndarray, "S N P"]:
    """Log of events a day of each kind, code and piece, those of few events drawn towards the code's own rate."""
    clock, starts = torch.from_numpy(duration), torch.from_numpy(edges)
    lived = exposures(clock, starts).numpy()  # [Q,N,P]
    ended = (np.arange(len(edges)) == pieces(clock, starts).numpy()[..., None]) & event[..., None]  # [Q,N,P]
    of_kind = [(kind == number)[..., None] for number in range(n_kinds)]
    days = np.stack([(lived * chosen).sum(axis=0) for chosen in of_kind])  # [S,N,P]
    events = np.stack([(ended & chosen).sum(axis=0) for chosen in of_kind])  # [S,N,P]
    overall = (events.sum() + PRIOR_EVENTS) / max(float(days.sum()), 1.0)
    code = (events.sum(axis=2) + PRIOR_EVENTS) / (days.sum(axis=2) + PRIOR_EVENTS / overall)  # [S,N]
    code = code[..., None]  # [S,N,1]
    return np.log((events + PRIOR_EVENTS) / (days + PRIOR_EVENTS / code))
