"""Riley's sample-size criteria against pmsampsize's and pmvalsampsize's own figures, and what is said of them."""

from __future__ import annotations

import json
import math
import re

import numpy as np
import pandas as pd
import pytest
from lifelines import CoxPHFitter

from ehrsequencing.errors import EhrError, Exit
from ehrsequencing.evaluation.metrics import harrell_c
from ehrsequencing.evaluation.sample_size import (
    check,
    cox_snell_from_c,
    max_cox_snell,
    optimism_n,
    overall_risk_interval,
    overall_risk_n,
    se_c,
    se_log_oe,
    se_slope,
    shrinkage_n,
)

PMSAMPSIZE = [
    # R²_CS, parameters, rate, mean follow-up, n by criterion 1, n by criterion 2
    (0.051, 30, 0.065, 2.07, 5143, 1039),  # the example of Riley et al. BMJ 2020;368:m441 (recurrent thrombosis)
    (0.051, 25, 0.065, 2.07, 4286, 866),
    (0.065, 25, 0.065, 2.07, 3335, 859),
    (0.051, 50, 0.065, 2.07, 8572, 1731),
    (0.051, 25, 0.1, 2.07, 4286, 731),
]
"""The R package pmsampsize 1.1.3 (Ensor, Martin & Riley, CRAN), tests/testthat/test_surv.R, tests 3.1 to 3.4."""


@pytest.mark.parametrize(("r2", "parameters", "rate", "followup", "first", "second"), PMSAMPSIZE)
def test_shrinkage_and_optimism_as_pmsampsize_has_them(r2, parameters, rate, followup, first, second) -> None:
    assert math.ceil(shrinkage_n(parameters, r2)) == first
    found = math.ceil(optimism_n(parameters, r2, max_cox_snell(rate * followup)))
    assert found == pytest.approx(second, abs=1)  # pmsampsize rounds the events of 10,000 patients up


def test_events_per_parameter_of_the_published_example() -> None:
    """23.07 events a parameter, and of 5,143 patients an overall two-year risk of 0.122 (0.113 to 0.130)."""
    assert pytest.approx(23.07, abs=0.005) == 5143 * 0.065 * 2.07 / 30
    assert np.round(overall_risk_interval(0.065, 2, 5143 * 2.07), 3).tolist() == [0.122, 0.113, 0.13]


def test_the_overall_risk_is_just_as_precise_as_asked() -> None:
    for rate, horizon, followup in ((0.065, 2, 2.07), (0.3, 5, 4.0), (0.004, 10, 8.0)):
        n = overall_risk_n(rate, horizon, followup)
        risk, low, high = overall_risk_interval(rate, horizon, n * followup)
        assert max(risk - low, high - risk) == pytest.approx(0.05, abs=1e-9)


def test_validation_as_pmvalsampsize_has_it() -> None:
    """Mechanical heart valves, Riley et al. (2021), Stat Med 40:4230, and pmvalsampsize's tests/testthat/test_bin.R:
    an outcome in 1.8%; O/E with an interval 1 wide needs 905 patients, a C of .8 with one of .1 4,252."""
    oe = se_log_oe(905, 0.018)
    assert math.exp(1.96 * oe) - math.exp(-1.96 * oe) == pytest.approx(1.0, abs=0.002)
    assert 2 * 1.96 * se_c(0.8, 4252, 0.018) <= 0.1 < 2 * 1.96 * se_c(0.8, 4251, 0.018)


def test_the_slope_near_two_programs_that_assume_about_the_same() -> None:
    """pmvalsampsize simulates the score (16,175 patients for an interval .2 wide, C .8, prevalence .018, test 4.3, from
    10,000 draws); sampsizeval (Pavlou et al. 2021, SMMR 30:2187) takes it as normal in everybody (934 for an SE of .15,
    C .77, prevalence .057)."""
    assert (se_slope(0.8, 1, 0.018) / (0.1 / 1.96)) ** 2 == pytest.approx(16_175, rel=0.07)
    assert (se_slope(0.77, 1, 0.057) / 0.15) ** 2 == pytest.approx(934, rel=0.07)


def test_the_slope_against_logistic_regressions() -> None:
    """600 samples of 400: the spread of the fitted slope, within 3 standard errors of a standard deviation."""
    rng, n, share, c = np.random.default_rng(3), 400, 0.3, 0.75
    variance = 2 * 0.6744897501960817**2  # Φ⁻¹(.75)
    slopes = []
    for _ in range(600):
        y = rng.random(n) < share
        centre = math.log(share / (1 - share)) - variance / 2 + variance * y
        x = np.column_stack([np.ones(n), rng.normal(centre, math.sqrt(variance))])
        beta = np.array([0.0, 1.0])
        for _ in range(8):
            p = 1 / (1 + np.exp(-x @ beta))
            beta = beta + np.linalg.solve((x.T * (p * (1 - p))) @ x, x.T @ (y - p))
        slopes.append(beta[1])
    spread = np.std(slopes)
    # a little above the asymptotic value in samples of 400; its own standard error is spread / √(2 · 600)
    assert se_slope(c, n, share) == pytest.approx(spread, abs=3 * spread / math.sqrt(1200) + 0.005)


@pytest.mark.parametrize("beta", [0.4, 0.9])
def test_r2_from_c_against_a_cox_model(beta) -> None:
    """The likelihood-ratio R² of the true score, 4,000 patients, against the way from its C; Riley's own check of the
    approximation (Stat Med 38:1276, §6) is about as close."""
    rng, n = np.random.default_rng(1), 4_000
    x = rng.normal(size=n)
    failure, censoring = rng.exponential(np.exp(-beta * x)), rng.exponential(1.0, n)
    duration, event = np.minimum(failure, censoring), (failure <= censoring).astype(np.int64)
    fitted = CoxPHFitter().fit(pd.DataFrame({"x": x, "duration": duration, "event": event}), "duration", "event")
    r2 = 1 - math.exp(-fitted.log_likelihood_ratio_test().test_statistic / n)
    found = cox_snell_from_c(harrell_c(duration, event, x), event.mean())
    assert found == pytest.approx(r2, rel=0.12)


def test_more_parameters_need_more_patients_and_more_signal_fewer() -> None:
    needed = [check(10_000, 1_000, parameters=p)["development"]["needed"] for p in (5, 50, 500)]
    assert needed == sorted(needed)
    weak, strong = (check(10_000, 1_000, parameters=50, c=c)["development"]["needed"] for c in (0.65, 0.8))
    assert weak > 3 * strong
    found = check(10_000, 1_000, parameters=50)["development"]
    most = found["max_parameters"]
    for parameters, met in ((most, True), (most + 1, False)):
        criteria = check(10_000, 1_000, parameters=parameters)["development"]["criteria"]
        assert all(criterion["met"] for criterion in criteria) is met


def test_what_is_said() -> None:
    found = check(4_000, 600, 4.0, 5.0, 256, 0.75)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert [criterion["name"] for criterion in found["development"]["criteria"]] == [
        "shrinkage",
        "optimism",
        "overall risk",
    ]
    text = " ".join(found["sentences"])
    assert "not enough" in text
    assert "23,309" in text
    assert "lower bound" in text
    assert "left out" not in text
    assert "left out" in " ".join(check(4_000, 600)["sentences"])
    assert check(4_000, 600, parameters=3)["sentences"][1].endswith("that is enough.")
    judged = check(4_000, 600, evaluated=(1_000, 240))["validation"]
    assert judged["enough"] is True
    assert judged["assumed"] is False
    assert judged["standard_errors"]["oe"] == pytest.approx(math.sqrt(0.76 / 240))


@pytest.mark.parametrize(("n", "events"), [(50, 4), (50, 0), (50, 50), (1, 0), (12, 11), (9, 3)])
def test_tiny_cohorts_are_told_so_without_a_small_count(n, events) -> None:
    found = check(n, events)
    json.dumps(found, allow_nan=False)
    assert found["sentences"]
    text = " ".join(found["sentences"])
    assert not re.search(r"(?<![\d.,])[1-9] (patients|outcomes)", text), text
    assert found["validation"]["enough"] is False


def test_what_cannot_be_is_refused() -> None:
    wrong = [
        {"n": 0, "events": 0}, {"n": 10, "events": 11}, {"n": 10, "events": 5, "c": 0.5},
        {"n": 10, "events": 5, "parameters": 0}, {"n": 10, "events": 5, "mean_followup_years": 0.0},
        {"n": 10, "events": 5, "horizon_years": -1.0},
    ]  # fmt: skip
    for settings in wrong:
        with pytest.raises(EhrError, match="no sample size can be checked") as error:
            check(**settings)
        assert error.value.code == Exit.USAGE
