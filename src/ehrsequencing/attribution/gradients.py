"""Integrated gradients (Sundararajan, Taly & Yan 2017, ICML, arXiv:1703.01365) by captum, as finely as needed.

The attribution of input i is (x_i − x'_i) · ∫₀¹ ∂risk/∂x_i (x' + a (x − x')) da; over all inputs they sum to
risk(x) − risk(x') (completeness). That holds on every stretch of the path, too, so that each stretch tells its own
error: Gauss–Legendre points are taken on the whole path, and anew on pieces of the stretches where the error is. (A
model that pools by the maximum has a kink wherever another token takes the lead; more points on the whole path help
little.)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float64, Int64
from torch import Tensor

POINTS, PIECES, CUTS = 8, 4, 4
"""Points on a stretch, into how many it is cut where they do not suffice, and how often at most."""
TOLERANCE = 1e-3
"""By how much attributions may miss the difference in risk that they add up to: a tenth of a percentage point."""
STEP_BUDGET = 4_096
"""Padded tokens × points that captum differentiates at once: bounds memory."""

Function = Callable[..., Tensor]
Tensors = tuple[Tensor, ...]


@dataclass(frozen=True)
class Integrated:
    """Attributions of B patients.

    Attributes:
        parts: one tensor an input, of its shape.
        value, start: the function at the input and at the baseline.
        steps: gradients that were taken for each patient.
    """

    parts: Tensors
    value: Float64[Tensor, " B"]
    start: Float64[Tensor, " B"]
    steps: Int64[Tensor, " B"]

    @property
    def gap(self) -> Float64[Tensor, " B"]:
        """Sum of the attributions − (value − start): 0 where the integral is exact."""
        return _totals(self.parts) - (self.value - self.start)


@dataclass(frozen=True)
class _Stretches:
    """S stretches [low, high] of the patients' paths, and the function at their ends."""

    patient: Int64[Tensor, " S"]
    low: Float64[Tensor, " S"]
    high: Float64[Tensor, " S"]
    at_low: Float64[Tensor, " S"]
    at_high: Float64[Tensor, " S"]

    def __len__(self) -> int:
        return len(self.patient)

    def take(self, chosen: Tensor) -> _Stretches:
        parts = (self.patient, self.low, self.high, self.at_low, self.at_high)
        return _Stretches(*(part[chosen] for part in parts))

    def cut(self, paths: _Paths) -> _Stretches:
        """Each in PIECES of equal length."""
        shares = torch.arange(PIECES + 1, dtype=torch.float64) / PIECES
        places = torch.lerp(self.low[:, None], self.high[:, None], shares)  # [S,PIECES+1]
        inner = self.patient.repeat_interleave(PIECES - 1)
        between = paths.values(inner, places[:, 1:-1].flatten()).view(-1, PIECES - 1)
        values = torch.cat([self.at_low[:, None], between, self.at_high[:, None]], dim=1)  # [S,PIECES+1]
        ends = (places[:, :-1], places[:, 1:], values[:, :-1], values[:, 1:])
        return _Stretches(self.patient.repeat_interleave(PIECES), *(end.flatten() for end in ends))


@dataclass(frozen=True)
class _Paths:
    """The straight paths of B patients from baseline to input, and the function along them."""

    function: Function
    inputs: Tensors
    baselines: Tensors
    beside: Tensors

    def at(self, patient: Int64[Tensor, " S"], place: Float64[Tensor, " S"]) -> Tensors:
        """The points of these patients at these places, 0 the baseline and 1 the input."""
        points = []
        for x, start in zip(self.inputs, self.baselines, strict=True):
            share = place.to(x.dtype).view(-1, *[1] * (x.ndim - 1))
            points.append(torch.lerp(start[patient], x[patient], share))
        return tuple(points)

    @torch.no_grad()
    def values(self, patient: Int64[Tensor, " S"], place: Float64[Tensor, " S"]) -> Float64[Tensor, " S"]:
        return self.function(*self.at(patient, place), *(x[patient] for x in self.beside)).double()

    def attributed(self, stretches: _Stretches, at_once: int | None) -> Tensors:
        """Integrated gradients over each stretch, so many patients × points at once."""
        size = len(stretches) if at_once is None else max(at_once // POINTS, 1)
        parts = [self._attributed(stretches.take(some)) for some in torch.arange(len(stretches)).split(size)]
        return tuple(torch.cat(part) for part in zip(*parts, strict=True))

    def _attributed(self, stretches: _Stretches) -> Tensors:
        from captum.attr import IntegratedGradients  # slow to import

        ends, starts = (self.at(stretches.patient, place) for place in (stretches.high, stretches.low))
        beside = tuple(x[stretches.patient] for x in self.beside)
        return IntegratedGradients(self.function).attribute(
            ends, starts, additional_forward_args=beside or None, n_steps=POINTS
        )


def integrate(
    function: Function,
    inputs: Tensors,
    baselines: Tensors,
    beside: Tensors = (),
    *,
    tolerance: float = TOLERANCE,
    at_once: int | None = None,
) -> Integrated:
    """Integrated gradients of ``function(*inputs, *beside) -> [B]`` for each of B patients.

    Args:
        inputs, baselines: first axis the patients.
        beside: what the function reads, too, and nothing is attributed to; first axis the patients.
        tolerance: of a patient's error, estimated as the larger of the root of the summed squares of the stretches'
            errors and the errors' plain sum; where CUTS do not reach it, ``gap`` tells.
        at_once: patients × points in one pass of the function; None: all.

    >>> square = lambda x: (x**2).sum(dim=1)
    >>> found = integrate(square, (torch.tensor([[3.0, 1.0]]),), (torch.zeros(1, 2),))
    >>> found.parts[0].round(decimals=4).tolist(), found.steps.tolist()
    ([[9.0, 1.0]], [8])
    """
    paths, n = _Paths(function, inputs, baselines, beside), len(inputs[0])
    everybody, zeros, ones = torch.arange(n), torch.zeros(n, dtype=torch.float64), torch.ones(n, dtype=torch.float64)
    start, value = paths.values(everybody, zeros), paths.values(everybody, ones)
    parts = tuple(torch.zeros_like(x) for x in inputs)
    steps = torch.zeros(n, dtype=torch.int64)
    left = _Error(torch.zeros(n, dtype=torch.float64), torch.zeros(n, dtype=torch.float64), tolerance)
    todo = _Stretches(everybody, zeros, ones, start, value)
    for rest in reversed(range(CUTS + 1)):
        found = paths.attributed(todo, at_once)
        error = _totals(found) - (todo.at_high - todo.at_low)  # [S]
        steps.index_add_(0, todo.patient, torch.full_like(todo.patient, POINTS))
        settled = left.settled(todo.patient, error) if rest else torch.ones_like(error, dtype=torch.bool)
        for part, own in zip(parts, found, strict=True):
            part.index_add_(0, todo.patient[settled], own[settled].to(part.dtype))
        left = left.plus(todo.patient[settled], error[settled])
        if bool(settled.all()):
            break
        todo = todo.take(~settled).cut(paths)
    return Integrated(parts, value, start, steps)


@dataclass(frozen=True)
class _Error:
    """Of the stretches of each patient that are settled: the sum of their errors, and of the errors' squares."""

    total: Float64[Tensor, " B"]
    squares: Float64[Tensor, " B"]
    tolerance: float

    def plus(self, patient: Int64[Tensor, " S"], error: Float64[Tensor, " S"]) -> _Error:
        total, squares = self.total.index_add(0, patient, error), self.squares.index_add(0, patient, error**2)
        return _Error(total, squares, self.tolerance)

    def settled(self, patient: Int64[Tensor, " S"], error: Float64[Tensor, " S"]) -> Bool[Tensor, " S"]:
        """Which further stretches are fine enough: all of a patient where they leave it within the tolerance, and of
        another's those whose errors together would not use up much of it (in the root of their summed squares)."""
        whole = self.plus(patient, error)
        done = torch.maximum(whole.squares, whole.total**2) <= self.tolerance**2
        count = torch.zeros_like(self.total).index_add(0, patient, torch.ones_like(error))
        return done[patient] | (error.abs() * count[patient].sqrt() <= self.tolerance / CUTS)


def _totals(parts: Tensors) -> Float64[Tensor, " B"]:
    return torch.stack([part.double().flatten(1).sum(dim=1) for part in parts]).sum(dim=0)
