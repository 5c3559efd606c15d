"""How many patients a prediction model needs, by published criteria: to be developed, and to be judged (NumPy)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy.special import expit, logit, ndtri

from ehrsequencing.config import MIN_CELL, SPLIT_FRACTIONS
from ehrsequencing.errors import EhrError, Exit

SHRINKAGE, OPTIMISM, MARGIN = 0.9, 0.05, 0.05
"""Riley's targets: shrinkage at least, optimism in Nagelkerke's R² at most, margin of the overall risk at most."""
NAGELKERKE = 0.15
"""The share of the largest possible R² that a model is taken to explain where nothing is known of it."""
VALIDATION_EVENTS, GOOD_VALIDATION_EVENTS = 100, 200
"""Events that an evaluation needs at least, and better has."""
Z = 1.96


def max_cox_snell(events_per_patient: float) -> float:
    """The largest Cox–Snell R² of a time-to-event model, with φ events a patient: 1 − exp(2(φ ln φ − φ)).

    Riley et al. (2019), Stat Med 38:1276, eq. 23, the unit of time being the mean follow-up (BMJ 2020;368:m441).

    >>> round(max_cox_snell(0.065 * 2.07), 3)
    0.555
    """
    phi = events_per_patient
    return 1.0 - math.exp(2.0 * (phi * math.log(phi) - phi))


def cox_snell_from_c(c: float, events_per_patient: float) -> float:
    """The Cox–Snell R² that goes with a C index, by way of Royston's D.

    D = 5.50(C − ½) + 10.26(C − ½)³ (Jinks, Royston & Parmar 2015, BMC Med Res Methodol 15:82), then R²_D, O'Quigley's
    R² and R²_CS = 1 − (1 − R²_OQ)^φ (Riley et al. 2019, Stat Med 38:1276). A C of the very patients that a model was
    fitted on is too high to be used here.

    >>> round(cox_snell_from_c(0.69, 0.065 * 2.07), 3)
    0.052
    """
    above = abs(c - 0.5)
    d = 5.50 * above + 10.26 * above**3
    explained, noise = math.pi / 8 * d**2, math.pi**2 / 6
    royston = explained / (noise + explained)
    oquigley = -noise * royston / ((1.0 - noise) * royston - 1.0)
    return 1.0 - (1.0 - oquigley) ** events_per_patient


def shrinkage_n(parameters: float, cox_snell: float, shrinkage: float = SHRINKAGE) -> float:
    """Patients at which so many parameters are shrunk by the factor ``shrinkage``: p / ((S − 1) ln(1 − R²/S)).

    >>> math.ceil(shrinkage_n(30, 0.051))
    5143
    """
    return parameters / ((shrinkage - 1.0) * math.log(1.0 - cox_snell / shrinkage))


def optimism_n(parameters: float, cox_snell: float, largest: float, optimism: float = OPTIMISM) -> float:
    """Patients at which apparent and adjusted Nagelkerke R² differ by ``optimism``.

    Args:
        largest: ``max_cox_snell``.

    >>> math.ceil(optimism_n(30, 0.051, max_cox_snell(0.065 * 2.07)))
    1039
    """
    return shrinkage_n(parameters, cox_snell, cox_snell / (cox_snell + optimism * largest))


def overall_risk_n(rate: float, horizon: float, mean_followup: float, margin: float = MARGIN) -> float:
    """Patients at which the overall risk by the horizon is known within ± ``margin``, with a constant rate.

    Args:
        rate: events a unit of time; ``horizon`` and ``mean_followup`` in the same unit.

    >>> math.ceil(overall_risk_n(0.065, 2, 2.07))
    158
    """
    scaled = margin * math.exp(rate * horizon)
    rare = 1.0 - math.exp(-rate * horizon) <= margin  # a risk that cannot lie so far below
    step = (-math.log1p(-scaled) if rare else math.log1p(scaled)) / horizon  # otherwise the lower side is the wider one
    return Z**2 * rate / (step**2 * mean_followup)


def overall_risk_interval(rate: float, horizon: float, person_time: float) -> tuple[float, float, float]:
    """The overall risk by the horizon and its 95% limits, from so much follow-up at a constant rate.

    >>> [round(x, 3) for x in overall_risk_interval(0.065, 2, 5143 * 2.07)]
    [0.122, 0.113, 0.13]
    """
    width = Z * math.sqrt(rate / person_time)
    risk, low, high = (1.0 - math.exp(-each * horizon) for each in (rate, max(rate - width, 0.0), rate + width))
    return risk, low, high


def se_log_oe(n: float, share: float) -> float:
    """The standard error of ln(observed / expected): √((1 − φ) / (nφ)), φ the share of patients with the outcome.

    Riley et al. (2021), Stat Med 40:4230, for a yes-or-no outcome: the smallest that censoring allows.

    >>> round(se_log_oe(905, 0.018), 3)
    0.246
    """
    return math.sqrt((1.0 - share) / (n * share))


def se_c(c: float, n: float, share: float) -> float:
    """The standard error of C by Newcombe's formula, φ the share of patients with the outcome.

    Newcombe (2006), Stat Med 25:559, method 4, as in Riley et al. (2021), Stat Med 40:4230.

    >>> round(se_c(0.8, 4252, 0.018), 4)
    0.0255
    """
    half = n / 2 - 1
    inner = 1.0 + half * (1.0 - c) / (2.0 - c) + half * c / (1.0 + c)
    return math.sqrt(c * (1.0 - c) * inner / (n**2 * share * (1.0 - share)))


def se_slope(c: float, n: float, share: float) -> float:
    """The standard error of the calibration slope of a calibrated model with this C.

    The inverse information of a logistic regression on the linear predictor (Riley et al. 2021, Stat Med 40:4230),
    which is normal with variance 2Φ⁻¹(C)² among those with the outcome and among those without.

    >>> round(se_slope(0.8, 10_000, 0.1), 3)
    0.033
    """
    variance = 2.0 * float(ndtri(max(c, 1.0 - c))) ** 2
    nodes, weights = np.polynomial.hermite_e.hermegauss(80)
    centre = float(logit(share)) - variance / 2  # of those without it; the others' is higher by the variance
    score = np.concatenate([centre + math.sqrt(variance) * nodes, centre + variance + math.sqrt(variance) * nodes])
    weight = np.concatenate([(1.0 - share) * weights, share * weights]) / weights.sum()
    spread = expit(score) * expit(-score) * weight
    zero, one, two = spread.sum(), spread @ score, spread @ score**2
    information = two - one**2 / zero
    return math.inf if information <= 0 else math.sqrt(1.0 / (n * information))


@dataclass(frozen=True)
class Criterion:
    """One reason for a number of patients: ``needed`` of them, and whether there are so many."""

    name: str
    target: str
    needed: int
    met: bool


def check(
    n: int,
    events: int,
    mean_followup_years: float | None = None,
    horizon_years: float | None = None,
    parameters: int | None = None,
    c: float | None = None,
    *,
    evaluated: tuple[int, int] | None = None,
) -> dict[str, Any]:
    """Whether a cohort is large enough to develop a model on and to judge it with; plain data, with sentences.

    Args:
        n, events: patients that are learned from (training + tuning), and how many of them have the outcome.
        mean_followup_years, horizon_years: for the third criterion, which is left out without both.
        parameters: candidate parameters; absent, only the largest number that ``n`` supports is told.
        c: a C index that is expected from elsewhere; absent, a model that explains 15% of what can be explained.
        evaluated: patients and outcomes that the model is judged on; absent, the share that the default split leaves.

    Raises:
        EhrError: counts, years or a C that cannot be (exit 2).
    """
    _refuse(n, events, mean_followup_years, horizon_years, parameters, c)
    development = _development(n, events, mean_followup_years, horizon_years, parameters, c)
    validation = _validation(n, events, c, evaluated)
    sentences = [*development.pop("sentences"), *validation.pop("sentences")]
    return {"development": development, "validation": validation, "sentences": sentences}


def _development(
    n: int, events: int, followup: float | None, horizon: float | None, parameters: int | None, c: float | None
) -> dict[str, Any]:
    found: dict[str, Any] = {"patients": n, "events": events, "parameters": parameters}
    phi = events / n
    if events < 1 or phi >= 1:
        why = "no outcome" if events < 1 else "an outcome in every patient"
        return found | {"criteria": [], "sentences": [f"Sample size: nothing can be said with {why}."]}
    largest = max_cox_snell(phi)
    r2 = NAGELKERKE * largest if c is None else cox_snell_from_c(c, phi)
    r2 = min(r2, 0.99 * largest)
    found |= {"cox_snell": r2, "max_cox_snell": largest, "nagelkerke": r2 / largest, "c": c}
    each = {"shrinkage": shrinkage_n(1, r2), "optimism": optimism_n(1, r2, largest)}  # patients a parameter
    supported = math.floor(n / max(each.values()))
    found |= {"max_parameters": supported, "events_per_parameter": events / parameters if parameters else None}
    needed = {name: parameters * per for name, per in each.items()} if parameters else {}
    found["overall_risk"] = None
    if followup is not None and horizon is not None:
        found["overall_risk"] = overall_risk_interval(phi / followup, horizon, n * followup)[0]
        needed["overall risk"] = overall_risk_n(phi / followup, horizon, followup)
    criteria = [Criterion(name, TARGETS[name], math.ceil(need), n >= need) for name, need in needed.items()]
    found["criteria"] = [asdict(criterion) for criterion in criteria]
    found["needed"] = max((criterion.needed for criterion in criteria), default=None)
    return found | {"sentences": list(_said(found, criteria, c))}


TARGETS: Mapping[str, str] = {
    "shrinkage": f"predictor effects shrink by 10% at most (factor {SHRINKAGE:g})",
    "optimism": f"Nagelkerke's R² is optimistic by {OPTIMISM:g} at most",
    "overall risk": f"the overall risk at the horizon is known within ± {MARGIN:g}",
}


def _said(found: Mapping[str, Any], criteria: list[Criterion], c: float | None) -> list[str]:
    """What the criteria come to, for people."""
    n, events, parameters = found["patients"], found["events"], found["parameters"]
    basis = f"a C of {c:g}" if c is not None else f"a model that explains {NAGELKERKE:.0%} of what can be explained"
    here = f"{_count(n)} patients with {_count(events)} outcomes"
    room = f"about {found['max_parameters']:,}" if found["max_parameters"] else "no"
    lines = [
        f"Sample size (Riley et al. 2019, 2020; expecting {basis}): {here} support {room} freely estimated parameters."
    ]
    if parameters:
        short = [criterion for criterion in criteria if not criterion.met]
        verdict = "enough" if not short else f"not enough: {'; '.join(f'{x.target} needs {x.needed:,}' for x in short)}"
        per = found["events_per_parameter"]
        lines.append(f"For {parameters:,} candidate parameters ({per:.1f} outcomes each) that is {verdict}.")
    if all(criterion.name != "overall risk" for criterion in criteria):
        lines.append("Without a mean follow-up and a horizon the criterion of the overall risk is left out.")
    elif not parameters:
        overall = criteria[-1]
        word = "enough" if overall.met else "not enough"
        lines.append(f"{overall.needed:,} patients make sure that {overall.target}: {word}.")
    risk = found["overall_risk"]
    if risk is not None and risk < 2 * MARGIN:
        lines.append(f"With an overall risk of about {risk:.2g}, a margin of {MARGIN:g} says little: aim for less.")
    lines.append(
        "These criteria are of regressions without penalty. Penalties, early stopping and pretrained features let a "
        "model have more weights than that, but no criterion says how many; take the numbers as a lower bound, for the "
        "effective parameters of the head or of the wide model, and judge by the held-out patients."
    )
    return lines


def _validation(n: int, events: int, c: float | None, evaluated: tuple[int, int] | None) -> dict[str, Any]:
    """How precisely a model can be judged, as if the outcome by the horizon were known of everybody."""
    share = SPLIT_FRACTIONS["held_out"] / (1.0 - SPLIT_FRACTIONS["held_out"])
    patients, outcomes = (round(n * share), round(events * share)) if evaluated is None else evaluated
    whom = "Beside them the default split leaves" if evaluated is None else "There are"
    found: dict[str, Any] = {"patients": patients, "events": outcomes, "assumed": evaluated is None}
    said = f"{whom} {_count(patients)} patients with {_count(outcomes)} outcomes to judge with"
    enough = outcomes >= VALIDATION_EVENTS
    better = f"{VALIDATION_EVENTS}, better {GOOD_VALIDATION_EVENTS}"
    rule = f"at least {better}, are advised: {'met' if enough else 'too few, read the intervals'}."
    found |= {"enough": enough}
    if not MIN_CELL <= outcomes < patients:
        return found | {"sentences": [f"{said}; {rule}"]}
    supposed = 0.75 if c is None else c
    precision = {
        "oe": se_log_oe(patients, outcomes / patients),
        "c": se_c(supposed, patients, outcomes / patients),
        "slope": se_slope(supposed, patients, outcomes / patients),
    }
    widths = {"c": 2 * Z * precision["c"], "slope": 2 * Z * precision["slope"]}
    low, high = math.exp(-Z * precision["oe"]), math.exp(Z * precision["oe"])
    found |= {"supposed_c": supposed, "standard_errors": precision, "oe_interval": [low, high], "widths": widths}
    told = (
        f"Of a calibrated model with a C of {supposed:g} they would give observed/expected from {low:.2f} to "
        f"{high:.2f}, C within ± {widths['c'] / 2:.3f} and a calibration slope within ± {widths['slope'] / 2:.2f} "
        "(95%); censoring widens all three."
    )
    return found | {"sentences": [f"{said}; {rule}", told]}


def _count(count: int) -> str:
    return f"fewer than {MIN_CELL}" if 0 < count < MIN_CELL else f"{count:,}"


MOST = 10**9
"""More patients than there are to be counted."""


def _refuse(n: int, events: int, followup: float | None, horizon: float | None, p: int | None, c: float | None) -> None:
    wrong = {
        f"{n:,} patients": not 1 <= n <= MOST,
        f"{events:,} events among {n:,} patients": not 0 <= events <= n,
        f"a mean follow-up of {followup} years": followup is not None and not followup > 0,
        f"a horizon of {horizon} years": horizon is not None and not horizon > 0,
        f"{p} parameters": p is not None and p < 1,
        f"a C of {c}": c is not None and not 0.5 < c < 1,
    }
    for what, is_wrong in wrong.items():
        if is_wrong:
            fix = "count patients and those with the outcome; years above 0; C between 0.5 and 1"
            raise EhrError(f"no sample size can be checked for {what}", "sample size", fix, code=Exit.USAGE)
