"""Integrated gradients (Sundararajan, Taly & Yan 2017, ICML, arXiv:1703.01365) by captum, with as many steps as needed.

The attribution of input i is (x_i − x'_i) · ∫₀¹ ∂risk/∂x_i (x' + a (x − x')) da; over all inputs they sum to
risk(x) − risk(x') (completeness). The integral is taken by Gauss–Legendre points, doubled for the patients whose sum
misses the difference by more than a tolerance.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

FIRST_STEPS, MAX_STEPS = 8, 256
TOLERANCE = 1e-3
"""By how much attributions may miss the difference in risk that they add up to: a tenth of a percentage point."""
STEP_BUDGET = 8_192
"""Padded tokens × steps that captum differentiates at once: bounds memory."""

Function = Callable[..., Tensor]


@dataclass(frozen=True)
class Integrated:
    """Attributions of B patients.

    Attributes:
        parts: one tensor an input, of its shape.
        value, start: the function at the input and at the baseline.
        steps: points that were used for each patient.
    """

    parts: tuple[Tensor, ...]
    value: Float64[Tensor, " B"]
    start: Float64[Tensor, " B"]
    steps: Int64[Tensor, " B"]

    @property
    def gap(self) -> Float64[Tensor, " B"]:
        """Sum of the attributions − (value − start): 0 where the integral is exact."""
        return _totals(self.parts) - (self.value - self.start)


def integrate(
    function: Function,
    inputs: tuple[Tensor, ...],
    baselines: tuple[Tensor, ...],
    beside: tuple[Tensor, ...] = (),
    *,
    tolerance: float = TOLERANCE,
    at_once: int | None = None,
) -> Integrated:
    """Integrated gradients of ``function(*inputs, *beside) -> [B]`` for each of B patients.

    Args:
        inputs, baselines: first axis the patients.
        beside: what the function reads, too, and nothing is attributed to; first axis the patients.
        tolerance: steps are doubled from FIRST_STEPS, for patients whose gap exceeds it, up to MAX_STEPS.
        at_once: patients × steps in one pass of the function; None: all.

    >>> square = lambda x: (x**2).sum(dim=1)
    >>> found = integrate(square, (torch.tensor([[3.0, 1.0]]),), (torch.zeros(1, 2),))
    >>> found.parts[0].tolist(), found.steps.tolist()
    ([[9.0, 1.0]], [8])
    """
    with torch.no_grad():
        value, start = (function(*point, *beside).double() for point in (inputs, baselines))
    parts = tuple(torch.zeros_like(x) for x in inputs)
    steps = torch.zeros(len(value), dtype=torch.int64)
    todo, n_steps = torch.arange(len(value)), FIRST_STEPS
    while len(todo) and n_steps <= MAX_STEPS:
        own, other, extra = (tuple(x[todo] for x in group) for group in (inputs, baselines, beside))
        found = _attribute(function, own, other, extra, n_steps, at_once)
        for part, new in zip(parts, found, strict=True):
            part[todo] = new.to(part.dtype)
        steps[todo] = n_steps
        gap = _totals(found) - (value - start)[todo]
        todo, n_steps = todo[gap.abs() > tolerance], 2 * n_steps
    return Integrated(parts, value, start, steps)


def _attribute(
    function: Function,
    inputs: tuple[Tensor, ...],
    baselines: tuple[Tensor, ...],
    beside: tuple[Tensor, ...],
    n_steps: int,
    at_once: int | None,
) -> tuple[Tensor, ...]:
    from captum.attr import IntegratedGradients  # slow to import

    return IntegratedGradients(function).attribute(
        inputs,
        baselines,
        additional_forward_args=beside or None,
        n_steps=n_steps,
        internal_batch_size=None if at_once is None else max(at_once, len(inputs[0])),
    )


def _totals(parts: tuple[Tensor, ...]) -> Float64[Tensor, " B"]:
    return torch.stack([part.double().flatten(1).sum(dim=1) for part in parts]).sum(dim=0)
