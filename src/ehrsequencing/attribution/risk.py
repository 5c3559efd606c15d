"""The predicted risk by a horizon as a differentiable function of a bundle's parts (torch, float64)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from ehrsequencing.bundle import Row
from ehrsequencing.errors import EhrError, Exit
from ehrsequencing.models.wide import RidgeHazard
from ehrsequencing.timegrid import TimeGrid


def risk_by(logits: Float64[Tensor, "n K *R"], exposure: Float64[Tensor, " K"]) -> Float64[Tensor, " n"]:
    """The chance of the outcome by a horizon: 1 − S(t), or CIF_1(t) where causes compete; ``TimeGrid``'s own, in torch.

    Args:
        logits: hazard logits φ.
        exposure: the share of each bin that lies before the horizon (``TimeGrid.exposure``).

    >>> risk_by(torch.zeros(1, 2, dtype=torch.float64), torch.tensor([1.0, 0.5], dtype=torch.float64)).round(decimals=4)
    tensor([0.6464], dtype=torch.float64)
    """
    total = logits if logits.ndim == 2 else logits.logsumexp(dim=2)  # [n,K]
    hazard = exposure * torch.logaddexp(total, torch.zeros_like(total))  # [n,K]
    if logits.ndim == 2:
        return -torch.expm1(-hazard.sum(dim=1))
    start = torch.exp(hazard - hazard.cumsum(dim=1))  # [n,K] no event of any cause before the bin
    share = torch.exp(logits[..., 0] - total)  # [n,K] of the outcome
    return (start * -torch.expm1(-hazard) * share).sum(dim=1)


@dataclass(frozen=True)
class RowRisk:
    """A row of a bundle in torch: α · deep + (1 − α) · wide hazard logits, recalibrated, as the risk by a horizon."""

    alpha: float
    slope: Tensor
    intercepts: Tensor
    exposure: Float64[Tensor, " K"]

    @classmethod
    def of(cls, row: Row, grid: TimeGrid, horizon: float) -> RowRisk:
        """The row read at ``horizon`` days; EhrError (exit 2) where that is not within (0, τ]."""
        if not 0 < horizon <= grid.tau * (1 + 1e-9):
            fix = f"ask for at most {grid.tau:g} days, the horizon it was trained on"
            raise EhrError(f"no risk by {horizon:g} days in this bundle", "--horizon", fix, code=Exit.USAGE)
        exposure = grid.exposure(*grid.locate(np.array([float(horizon)])))[0]  # [K]
        recalibration = row.recalibration
        slope, intercepts = (1.0, 0.0) if recalibration is None else (recalibration.slope, recalibration.intercepts)
        parts = (torch.as_tensor(np.asarray(part, dtype=np.float64)) for part in (slope, intercepts, exposure))
        return cls(row.alpha, *parts)

    def __call__(self, deep: Tensor | None, wide: Tensor | None) -> Float64[Tensor, " n"]:
        """The risk of n patients from the hazard logits [n, K, *R] of the parts; one without weight may be None."""
        parts = [(self.alpha, deep), (1 - self.alpha, wide)]
        mixed = sum(weight * part.double() for weight, part in parts if part is not None and weight > 0)
        return risk_by(self.slope * mixed + self.intercepts, self.exposure)


@dataclass(frozen=True)
class WideLogits:
    """The wide part in torch, over the columns that it uses only.

    Attributes:
        columns: of the feature matrix, that have a weight.
        mean, scale: 1/std of the training rows (0 where constant).
        weight, bias: as ``RidgeHazard``.
    """

    columns: Int64[np.ndarray, " u"]
    mean: Float64[Tensor, " u"]
    scale: Float64[Tensor, " u"]
    weight: Float64[Tensor, " u *R"]
    bias: Float64[Tensor, " K *R"]

    @classmethod
    def of(cls, wide: RidgeHazard) -> WideLogits:
        """Of a model without any weight its first column is kept, so that there is something to attribute to."""
        used = np.flatnonzero(wide.weight.reshape(len(wide.weight), -1).any(axis=1))
        used = used if used.size else np.array([0])
        std = wide.std[used]
        scale = np.divide(1.0, std, out=np.zeros_like(std), where=std > 0)
        tensors = (torch.from_numpy(x) for x in (wide.mean[used], scale, wide.weight[used], wide.bias))
        return cls(used, *tensors)

    def __call__(self, x: Float64[Tensor, "n u"]) -> Float[Tensor, "n K *R"]:
        """Hazard logits of rows of the used columns."""
        return self.bias + (((x - self.mean) * self.scale) @ self.weight)[:, None]
