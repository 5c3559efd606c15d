"""Prediction error of survival predictions, and what is known of a patient at a time (NumPy)."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float64

from ehrsequencing.errors import EhrError, Exit
from ehrsequencing.evaluation.concordance import harrell_c as harrell_c
from ehrsequencing.evaluation.concordance import uno_c as uno_c
from ehrsequencing.horizon import check_horizon
from ehrsequencing.nonparametric import Events, KaplanMeier, check_causes


def brier(
    duration: Float64[np.ndarray, " n"],
    event: Events,
    survival_at_t: Float64[np.ndarray, " n"],
    t: float,
    censoring: KaplanMeier,
) -> float:
    """The Brier score at ``t``, weighted by the inverse probability of censoring (``brier_terms``).

    Graf et al. (1999), Stat Med 18:2529.

    Raises:
        EhrError: t past the longest training duration or Ĝ(t−) < 0.1 (exit 12); survival not in [0, 1] (exit 13).
    """
    return float(brier_terms(duration, event, survival_at_t[:, None], np.array([float(t)]), censoring).mean())


def integrated_brier(
    duration: Float64[np.ndarray, " n"],
    event: Events,
    survival: Float64[np.ndarray, "n m"],
    times: Float64[np.ndarray, " m"],
    censoring: KaplanMeier,
    tau: float,
) -> float:
    """The mean Brier score over (0, τ]: its integral by trapezia over 0 and ``times``, divided by τ.

    At 0 the score is 0, since everybody survives it. ``times`` rise strictly and end at τ.

    Raises:
        EhrError: as ``brier``; or ``times`` do not end at τ (exit 13).
    """
    return float(integrated_brier_terms(duration, event, survival, times, censoring, tau).mean())


def integrated_brier_terms(
    duration: Float64[np.ndarray, " n"],
    event: Events,
    survival: Float64[np.ndarray, "n m"],
    times: Float64[np.ndarray, " m"],
    censoring: KaplanMeier,
    tau: float,
) -> Float64[np.ndarray, " n"]:
    """Each patient's share of ``integrated_brier``, which is their mean."""
    if not np.isclose(times[-1], tau, rtol=1e-9, atol=0) or not (np.diff(times, prepend=0.0) > 0).all():
        raise EhrError(
            f"expected curve times that rise from above 0 to τ = {tau:g} days, found {times[0]:g} to {times[-1]:g}",
            "survival curve",
            "predict the curve up to the horizon",
            code=Exit.BUNDLE,
        )
    terms = brier_terms(duration, event, survival, times, censoring)  # (n, m)
    step = np.diff(times, prepend=0.0)  # (m,)
    weight = (step + np.append(step[1:], 0.0)) / 2  # (m,) of the trapezia on either side of each time
    return terms @ (weight / tau)


def brier_terms(
    duration: Float64[np.ndarray, " n"],
    event: Events,
    survival: Float64[np.ndarray, "n m"],
    times: Float64[np.ndarray, " m"],
    censoring: KaplanMeier,
) -> Float64[np.ndarray, "n m"]:
    """Each patient's weighted squared error at each time; their mean over patients is the Brier score.

    An event at T ≤ t: S(t)² / Ĝ(T−). Known to be event-free at t: (1 − S(t))² / Ĝ(t−). Censored before t: 0.
    With competing events S(t) stands for the probability of no outcome by t, 1 − CIF(t), and whoever had a competing
    event at T ≤ t is known not to have the outcome: (1 − S(t))² / Ĝ(T−) (Schoop et al. 2011, Biom J 53:88).
    Whoever is censored at t itself (all those still followed, where follow-up ends at t) is known to be event-free at
    t, and had to stay uncensored only up to t−; where nobody is censored at t, Ĝ(t−) is the usual Ĝ(t).
    """
    survival = check_survival(survival, np.asarray(duration).size)  # (n, m)
    check_horizon(float(np.max(times)), censoring)
    happened, weight = known_outcome(duration, event, times, censoring)  # (n, m)
    return np.where(happened, survival, 1.0 - survival) ** 2 * weight


def known_outcome(
    duration: Float64[np.ndarray, " n"], event: Events, times: Float64[np.ndarray, " m"], censoring: KaplanMeier
) -> tuple[Bool[np.ndarray, "n m"], Float64[np.ndarray, "n m"]]:
    """Whether the outcome is known to have happened by each time, and the weight of that knowledge.

    The inverse probability of knowing it: 1/Ĝ(T−) after an event of any cause at T ≤ t, 1/Ĝ(t−) while event-free; 0
    for whoever was censored before t.
    """
    duration, event = check_causes(duration, event)
    over = (event[:, None] > 0) & (duration[:, None] <= times)  # (n, m)
    free = (duration[:, None] > times) | ((event[:, None] == 0) & (duration[:, None] == times))  # (n, m)
    at_event = 1.0 / censoring.before(np.minimum(duration, np.max(times)))  # (n,)
    weight = np.where(over, at_event[:, None], free / censoring.before(times))
    return over & (event[:, None] == 1), weight


def check_survival(survival: np.ndarray, n: int) -> np.ndarray:
    """The survival curves as float64[n, m]; EhrError (exit 13) where a value is not a probability."""
    survival = np.asarray(survival, dtype=np.float64)
    if survival.ndim != 2 or survival.shape[0] != n or not ((survival >= -1e-6) & (survival <= 1 + 1e-6)).all():
        raise EhrError(
            f"expected {n:,} rows of survival probabilities in [0, 1], found shape {survival.shape}"
            + (f" from {survival.min():g} to {survival.max():g}" if survival.size else ""),
            "predictions",
            "predict every row anew",
            code=Exit.BUNDLE,
        )
    return survival
