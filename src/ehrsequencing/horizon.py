"""The horizon τ that a training outcome supports: chosen, or refused with the reason."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float64

from ehrsequencing.config import MIN_CENSORING_SURVIVAL
from ehrsequencing.errors import EhrError, Exit
from ehrsequencing.nonparametric import Events, KaplanMeier, censoring_distribution

TOO_LOW = MIN_CENSORING_SURVIVAL * (1 - 1e-9)
"""A product that should be the limit itself may round to a hair less."""


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
