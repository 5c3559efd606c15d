"""Calibration figures at a horizon against scikit-learn, resampling by hand, lifelines and known truths."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import expit, logit
from sklearn.linear_model import LogisticRegression

from competing_data import GRID, draw, logits_of_hazards
from ehrsequencing.evaluation.agreement import calibration_figures, km_calibration, risk_score
from ehrsequencing.evaluation.calibration import before_after, calibration_at_horizons
from ehrsequencing.evaluation.compare import Evaluation
from ehrsequencing.evaluation.incidence import incidence
from ehrsequencing.evaluation.logistic import Spline, logistic
from ehrsequencing.evaluation.metrics import known_outcome
from ehrsequencing.evaluation.resampling import resample_counts
from ehrsequencing.nonparametric import AalenJohansen, KaplanMeier, censoring_distribution
from ehrsequencing.predictions import Predictions

T = 800.0
NAMES = {"ici", "e50", "e90", "slope", "intercept", "observed", "expected", "oe"}


def cohort(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """duration, event and the true S(T)."""
    rng = np.random.default_rng(seed)
    hazard = np.exp(rng.normal(size=n)) / 4000
    failure, censoring = rng.exponential(1 / hazard), rng.exponential(2000, n)
    return np.minimum(failure, censoring), (failure <= censoring).astype(np.int64), np.exp(-hazard * T)


def figures(duration, event, survival, counts=None) -> dict[str, np.ndarray]:
    return calibration_figures(duration, event, survival, T, censoring_distribution(duration, event), counts)


def test_a_true_model_is_calibrated_within_standard_errors() -> None:
    found = figures(*cohort(20_000), counts=resample_counts(20_000, 200, 0))
    assert set(found) == NAMES
    for name, truth in {"slope": 1.0, "intercept": 0.0, "oe": 1.0}.items():
        assert abs(found[name][0] - truth) < 3 * found[name][1:].std(), name
    # no model is better than by chance: |distance| is about one standard error of an observed risk
    assert found["ici"][0] < 3 * found["observed"][1:].std()
    assert found["e50"][0] <= found["e90"][0]


def test_distances_are_those_of_a_known_distortion() -> None:
    duration, event, survival = cohort(60_000)
    wrong = 1 - expit(logit(1 - survival) * 1.5 + 0.4)
    found = figures(duration, event, wrong)
    distance = np.abs(wrong - survival)
    assert found["ici"][0] == pytest.approx(distance.mean(), abs=0.006)
    assert found["e50"][0] == pytest.approx(np.quantile(distance, 0.5), abs=0.008)
    assert found["e90"][0] == pytest.approx(np.quantile(distance, 0.9), abs=0.012)
    assert found["slope"][0] == pytest.approx(1 / 1.5, abs=0.03)
    assert found["oe"][0] == pytest.approx((1 - survival).mean() / (1 - wrong).mean(), abs=0.03)


def test_the_curve_and_the_slope_equal_scikit_learn_without_penalty() -> None:
    duration, event, survival = cohort(800)
    happened, weight = (
        x[:, 0] for x in known_outcome(duration, event, np.array([T]), censoring_distribution(duration, event))
    )
    score = risk_score(1 - survival)
    design = Spline.of(score)(score)
    model = LogisticRegression(C=np.inf, tol=1e-12, max_iter=10_000).fit(design[:, 1:], happened, weight)
    expected = np.append(model.intercept_, model.coef_)
    np.testing.assert_allclose(logistic(design, happened, weight, np.ones((1, 800)))[0], expected, rtol=1e-4)
    found = figures(duration, event, survival)
    gap = np.abs(model.predict_proba(design[:, 1:])[:, 1] - (1 - survival))
    assert found["ici"][0] == pytest.approx(gap.mean(), abs=1e-5)
    assert found["e90"][0] == pytest.approx(np.quantile(gap, 0.9), abs=1e-4)


@pytest.mark.parametrize("n", [150, 1500])
def test_a_resample_has_the_figures_of_its_own_rows(n: int) -> None:
    duration, event, survival = cohort(n)
    censoring, counts = censoring_distribution(duration, event), resample_counts(n, 3, 1)
    found = calibration_figures(duration, event, survival, T, censoring, counts)
    for r, drawn in enumerate(counts):
        rows = np.repeat(np.arange(n), drawn)
        alone = calibration_figures(duration[rows], event[rows], survival[rows], T, censoring)
        for name in ("slope", "intercept", "observed", "expected", "oe"):
            assert found[name][r] == pytest.approx(alone[name][0], abs=2e-5), name
        for name in ("ici", "e50", "e90"):  # knots are everybody's in every resample
            assert found[name][r] == pytest.approx(alone[name][0], abs=0.02), name


def test_a_constant_model_has_no_slope_and_one_distance() -> None:
    duration, event, _ = cohort(500)
    found = figures(duration, event, np.full(500, 0.75), resample_counts(500, 20, 0))
    assert np.isnan(found["slope"]).all()
    for name in NAMES - {"slope"}:
        assert np.isfinite(found[name]).all(), name
    np.testing.assert_allclose(found["e50"], found["ici"], atol=1e-12)
    np.testing.assert_allclose(found["ici"], np.abs(expit(logit(0.25) + found["intercept"]) - 0.25), atol=1e-6)


@pytest.mark.parametrize("values", [[0.6, 0.9], [0.5, 0.7, 0.9]])
def test_a_model_of_few_distinct_predictions_has_a_curve(values: list[float]) -> None:
    duration, event, _ = cohort(600)
    found = figures(duration, event, np.resize(values, 600), resample_counts(600, 20, 0))
    assert all(np.isfinite(figure).all() for figure in found.values())


def test_where_the_outcome_is_separated_there_is_no_curve() -> None:
    duration, event = np.r_[np.full(50, 100.0), np.full(50, 900.0)], np.r_[np.ones(50), np.zeros(50)].astype(np.int64)
    survival = np.r_[np.linspace(0.1, 0.4, 50), np.linspace(0.6, 0.9, 50)]
    found = figures(duration, event, survival, resample_counts(100, 10, 0))
    for name in ("ici", "e50", "e90", "slope"):
        assert np.isnan(found[name]).all(), name
    assert found["oe"][0] == pytest.approx(0.5 / (1 - survival).mean())


def test_nobody_with_the_outcome_leaves_the_distances_out() -> None:
    duration, event = np.linspace(900, 1000, 60), np.zeros(60, dtype=np.int64)
    found = figures(duration, event, np.linspace(0.8, 0.9, 60))
    for name in ("ici", "slope", "intercept"):
        assert np.isnan(found[name][0]), name
    assert found["oe"][0] == 0.0


def test_predictions_of_certainty_are_finite() -> None:
    duration, event, survival = cohort(400)
    found = figures(duration, event, np.where(survival > 0.9, 1.0, np.where(survival < 0.3, 0.0, survival)))
    assert all(np.isfinite(found[name][0]) for name in ("ici", "slope", "intercept", "oe"))


@pytest.mark.parametrize("causes", [1, 2, 3])
def test_incidence_on_resamples_is_aalen_johansen_of_the_rows_drawn(causes: int) -> None:
    rng = np.random.default_rng(causes)
    duration, event = np.ceil(rng.exponential(100, 120)), rng.integers(0, causes + 1, 120)
    times, counts = np.linspace(0, 250, 26), resample_counts(120, 20, 0)
    found = incidence(duration, event, times, counts)
    for row, drawn in zip(found, counts, strict=True):
        rows = np.repeat(np.arange(120), drawn)
        expected = AalenJohansen.fit(duration[rows], event[rows]).at(times)[:, 0]
        last = times <= duration[rows].max()
        np.testing.assert_allclose(row[last], expected[last], atol=1e-12)
        left = KaplanMeier.fit(duration[rows], event[rows]).at(duration[rows].max()) > 0
        assert np.isnan(row[~last]).all() if left else np.allclose(row[~last], expected[~last])


def test_km_calibration_by_hand_and_best_for_the_curve_of_everybody() -> None:
    times = np.array([50.0, 100.0])
    curve = np.array([[0.9, 0.6], [0.7, 0.4]])  # mean .8, .5
    observed = np.array([[0.1, 0.4]])  # S .9, .6: gaps 0, .1, .1
    found = km_calibration(curve, observed, times, np.ones((1, 2)))
    assert found[0] == pytest.approx((0.5 * 0.1 + 0.1) / 2)
    duration, event, _ = cohort(400)
    grid = np.linspace(0, T, 101)[1:]
    seen, counts = incidence(duration, event, grid), np.ones((1, 400))
    own = np.tile(KaplanMeier.fit(duration, event).at(grid), (400, 1))
    assert km_calibration(own, seen, grid, counts)[0] == pytest.approx(0, abs=1e-12)
    assert km_calibration(own**1.3, seen, grid, counts)[0] > 0.01


def predictions(survival_at_t: np.ndarray, power: float = 1.0, cif: bool = False) -> Predictions:
    """Exponential curves up to 2 · T."""
    n, times = survival_at_t.size, np.linspace(0, 2 * T, 101)[1:]
    curve = (survival_at_t**power)[:, None] ** (times / T)
    causes = {"outcome": 0.6 * (1 - curve), "death": 0.4 * (1 - curve)} if cif else {}
    day = np.full(n, np.datetime64("2020-01-01", "us"))
    return Predictions(np.arange(n), day, -survival_at_t, times, curve, cif=causes)


def evaluation(duration, event, n_boot: int = 50) -> Evaluation:
    return Evaluation.of(
        duration, event, train_duration=duration, train_event=event, tau=2 * T, horizons=(T,), n_boot=n_boot
    )


def test_scores_carry_every_figure_and_name_what_they_cannot() -> None:
    duration, event, survival = cohort(500)
    scored = evaluation(duration, event).score(predictions(survival))
    for name in ("ici@800", "e50@800", "e90@800", "slope@800", "intercept@800", "oe@800", "km_calibration"):
        assert scored.figures[name].shape == (51,)
    assert set(scored.checks["d_calibration"]) >= {"statistic", "p", "bins"}
    constant = evaluation(duration, event).score(predictions(np.full(500, 0.7)))
    assert "slope@800" not in constant.figures
    assert "do not differ" in constant.not_computed["slope@800"]
    few = predictions(survival)
    few = Predictions(few.subject_id, few.prediction_time, few.risk, few.horizon_days[:3], few.survival[:, :3])
    short = evaluation(duration, event).score(few)
    assert short.not_computed["slope@800"] == "the predictions have no point at 800 days"
    assert "at least 20 curve points" in short.not_computed["km_calibration"]
    assert "at least 20 curve points" in short.not_computed["d_calibration"]


def test_before_and_after_are_on_the_same_resamples_and_recalibration_shows() -> None:
    duration, event, survival = cohort(3000)
    raw, final = predictions(survival, 1.6), predictions(survival)
    found = before_after(raw, [final, final], evaluation(duration, event, 100))[T]
    assert found["before"].figures["oe"].high < 1 < found["before"].figures["oe"].low + 0.5
    assert found["after"].figures["oe"].low < 1 < found["after"].figures["oe"].high
    assert found["before"].figures["ici"].value > 3 * found["after"].figures["ici"].value
    assert found["before"].figures["observed"] == found["after"].figures["observed"]
    assert found["after"].slope == pytest.approx(1, abs=0.2)
    assert found["after"].to_json()["slope"]["low"] < 1
    constant = predictions(np.full(3000, 0.7))
    scores = evaluation(duration, event, 0).score(constant)
    assert calibration_at_horizons(scores, constant)[T].to_json()["slope"]["value"] is None


def test_with_competing_events_the_observed_risk_is_aalen_johansens() -> None:
    hazards = np.random.default_rng(0).gamma(2.0, 0.08, (3000, GRID.n_bins, 2))
    logits = logits_of_hazards(hazards)
    duration, event = draw(logits, GRID, 1, censored_by=600.0)
    t, censoring = 150.0, censoring_distribution(duration, event)
    free = 1 - GRID.cif(logits, np.array([t]))[:, 0, 0]
    found = calibration_figures(duration, event, free, t, censoring, resample_counts(3000, 100, 0))
    assert found["observed"][0] == pytest.approx(AalenJohansen.fit(duration, event).at(t)[0], abs=1e-12)
    for name, truth in {"slope": 1.0, "intercept": 0.0, "oe": 1.0}.items():
        assert abs(found[name][0] - truth) < 3 * found[name][1:].std(), name
    survival = GRID.survival(logits, np.array([t]))[:, 0]
    wrong = calibration_figures(duration, event, survival, t, censoring)
    assert wrong["oe"][0] < 0.8
    assert wrong["ici"][0] > 5 * found["ici"][0]
