"""The simple models: right beside lifelines and brute force, honest about which rows they learn from, hard to break."""

from __future__ import annotations

import datetime as dt
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pandas as pd
import polars as pl
import pytest
from lifelines import CoxPHFitter
from scipy.optimize import minimize

from ehrsequencing.baselines import BASELINES
from ehrsequencing.baselines.cox import Outcome, RidgeCox, fit_cox, fit_cox_along
from ehrsequencing.baselines.forest import fit_forest
from ehrsequencing.baselines.logistic import PersonPeriods, fit_logistic
from ehrsequencing.baselines.proportional import Breslow, PartialLikelihood, restricted_mean
from ehrsequencing.baselines.table import cox_columns
from ehrsequencing.batches import SurvivalData
from ehrsequencing.config import StudyConfig, TokensConfig
from ehrsequencing.errors import EhrError, Exit
from ehrsequencing.evaluation.metrics import harrell_c
from ehrsequencing.features import RECORD_COLUMNS, FeatureMatrix
from ehrsequencing.models.ridge import PENALTIES, Standardiser
from ehrsequencing.nonparametric import KaplanMeier
from ehrsequencing.timegrid import TimeGrid, truncate
from ehrsequencing.tokens import Tokenizer, tokenize

TAU = 1000.0
NAMES = [*RECORD_COLUMNS, "static:SEX//M", "count:A", "count:B", "recency:A", "last:LAB", "mean:LAB", "trend:LAB"]


def survival_data(x, names, log_hazard, *, seed=0, base=1500.0, fractions=(0.6, 0.2)):
    """Rows with exponential event times of the given log hazard; train, tuning, held_out in that order."""
    rng, n = np.random.default_rng(seed), len(x)
    death, censored = rng.exponential(base * np.exp(-log_hazard)), rng.uniform(100, 1400, n)
    duration, event = truncate(np.minimum(death, censored), (death <= censored).astype(np.int64), TAU)
    ends = (np.cumsum(fractions) * n).astype(int)
    split = np.repeat(["train", "tuning", "held_out"], np.diff([0, *ends, n]))
    time = dt.datetime(2020, 1, 1)
    rows = pl.DataFrame(
        {
            "subject_id": np.arange(n, dtype=np.int64),
            "prediction_time": pl.Series([time] * n, dtype=pl.Datetime("us")),
            "duration": duration,
            "event": event.astype(np.int8),
            "split": split,
        }
    )
    history = rows.select("subject_id", "prediction_time").with_columns(
        pl.lit(time - dt.timedelta(days=9)).cast(pl.Datetime("us")).alias("time"),
        pl.lit("A").alias("code"),
        pl.lit(None, pl.Float32).alias("numeric_value"),
    )
    tokenizer = Tokenizer.fit(history, TokensConfig())
    train = split == "train"
    return SurvivalData(
        rows=rows,
        tokens=tokenize(history, rows, tokenizer),
        features=FeatureMatrix(x.astype(np.float32), list(names)),
        grid=TimeGrid.fit(duration[train], event[train], TAU),
        tokenizer=tokenizer,
        cohort_fingerprint="made up",
    )


def usual(n=500, seed=0, **kwargs):
    rng = np.random.default_rng(seed)
    x = np.zeros((n, len(NAMES)))
    x[:, 0] = rng.uniform(30, 90, n)
    x[:, 1:4] = rng.gamma(2, 1, (n, 3))
    x[:, 4] = rng.integers(0, 2, n)
    x[:, 5:7] = np.log1p(rng.poisson([1.0, 0.3], (n, 2)))
    x[:, 7] = (x[:, 5] > 0) * rng.random(n)
    x[:, 8:] = rng.normal(size=(n, 3))
    log_hazard = 0.05 * (x[:, 0] - 60) + 1.0 * x[:, 5] + 0.4 * x[:, 8]
    return survival_data(x, NAMES, log_hazard, seed=seed, **kwargs)


@pytest.fixture(scope="module")
def data():
    return usual()


@pytest.fixture(scope="module")
def fits(data):
    return {name: baseline.fit(data, 0) for name, baseline in BASELINES.items()}


def with_events(data, keep):
    """The same rows with events only where ``keep``; the grid stays."""
    event = (data.rows["event"].to_numpy() * keep).astype(np.int8)
    return replace(data, rows=data.rows.with_columns(pl.Series("event", event)))


def outcome_of(data, split):
    at = data.index(split)
    return data.rows["duration"].to_numpy()[at], data.rows["event"].to_numpy()[at].astype(np.int64)


def tied_cohort(n=200, p=4, seed=3):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, p))
    death = np.ceil(rng.exponential(30 * np.exp(-0.8 * x[:, 0] + 0.3 * x[:, 1])))
    censored = np.ceil(rng.uniform(1, 60, n))
    return x, Outcome(np.minimum(death, censored), (death <= censored).astype(np.int64))


def efron(eta, duration, event):
    """Minus Efron's log partial likelihood, tie by tie, straight from the formula."""
    total = 0.0
    for t in np.unique(duration[event > 0]):
        tied = (duration == t) & (event > 0)
        risk, dead, d = np.exp(eta[duration >= t]).sum(), np.exp(eta[tied]).sum(), tied.sum()
        total -= eta[tied].sum() - sum(np.log(risk - k / d * dead) for k in range(d))
    return total


def test_partial_likelihood_is_efrons_and_its_gradient_is_its_own():
    x, outcome = tied_cohort(60)
    eta = x[:, 0]
    loss = PartialLikelihood(*outcome)
    value, gradient = loss(eta)
    assert value == pytest.approx(efron(eta, *outcome))
    step = 1e-6
    numeric = [(efron(eta + step * e, *outcome) - efron(eta - step * e, *outcome)) / (2 * step) for e in np.eye(60)]
    assert gradient == pytest.approx(np.array(numeric), abs=1e-6)
    assert loss(eta + 500)[0] == pytest.approx(value)
    assert np.isfinite(loss(eta * 1e4)[1]).all()


@pytest.mark.parametrize("penalty", [0.0, 0.1])
def test_cox_and_breslow_agree_with_lifelines(penalty):
    x, outcome = tied_cohort()
    n = len(x)
    frame = pd.DataFrame(x).assign(duration=outcome.duration, event=outcome.event)
    theirs = CoxPHFitter(penalizer=penalty).fit(
        frame, "duration", "event", fit_options={"precision": 1e-13, "r_precision": 1e-13}
    )
    # lifelines standardises by the n − 1 standard deviation
    ours = fit_cox_along(x, outcome, [1.0, max(penalty * n / (n - 1), 1e-12)])
    assert ours.weight / ours.standardiser.std == pytest.approx(theirs.params_.to_numpy(), abs=2e-6)
    base = Breslow.fit(*outcome, ours.linear_predictor(x))
    curve = theirs.baseline_cumulative_hazard_.loc[base.times].to_numpy()[:, 0]
    assert base.cumulative == pytest.approx(curve, abs=1e-6)
    at = base.times[[0, 5, 20]]  # between its steps lifelines interpolates
    expected = theirs.predict_survival_function(frame[:5], times=at).to_numpy().T
    assert base.survival(ours.linear_predictor(x[:5]), at) == pytest.approx(expected, abs=1e-6)


def test_breslow_without_covariates_is_nelson_aalen():
    _, outcome = tied_cohort()
    base = Breslow.fit(*outcome, np.full(200, 7.0))
    at_risk = np.array([(outcome.duration >= t).sum() for t in base.times])
    dead = np.array([((outcome.duration == t) & (outcome.event == 1)).sum() for t in base.times])
    assert base.cumulative * np.exp(7.0) == pytest.approx(np.cumsum(dead / at_risk))
    assert base.survival(np.array([5000.0, -5000.0]), np.array([30.0])).ravel().tolist() == [0.0, 1.0]


def test_restricted_mean_of_an_exponential():
    times = np.linspace(0, 2, 101)[1:]
    curves = np.exp(-np.outer([0.5, 3.0], times))
    assert restricted_mean(curves, times) == pytest.approx((1 - np.exp([-1.0, -6.0])) / np.array([0.5, 3.0]), rel=5e-4)


def test_cox_penalty_is_the_best_on_tuning():
    x, outcome = tied_cohort(400, 30)
    train, tune = np.arange(200), np.arange(200, 400)
    fit = fit_cox(x[train], outcome.take(train), x[tune], outcome.take(tune))
    losses = {}
    for last in range(len(PENALTIES)):
        one = fit_cox_along(x[train], outcome.take(train), PENALTIES[: last + 1])
        losses[one.penalty] = efron(one.linear_predictor(x[tune]), *outcome.take(tune))
    assert fit.penalty == min(losses, key=losses.__getitem__)
    assert fit.notes == ()


def test_the_table_is_complete_and_every_entry_says_why():
    assert list(BASELINES) == [
        "kaplan-meier",
        "aalen-johansen",
        "age-sex",
        "cox",
        "boosting",
        "logistic",
        "random-survival-forest",
        "wide",
    ]
    assert all(baseline.name == name and baseline.why for name, baseline in BASELINES.items())


@pytest.mark.parametrize("name", list(BASELINES))
def test_curves_and_risks_of_every_row_are_sound(name, data, fits):
    fit = fits[name]
    assert fit.survival.shape == (len(data), 100)
    assert ((fit.survival >= 0) & (fit.survival <= 1)).all()
    assert (np.diff(fit.survival, axis=1) <= 0).all()
    assert np.isfinite(fit.risk).all()
    assert fit.seconds > 0
    assert fit.n_parameters > 0
    if name not in {"kaplan-meier", "aalen-johansen"}:
        assert np.array_equal(np.argsort(fit.risk), np.argsort(-restricted_mean(fit.survival, data.grid.curve_times())))
        assert -data.grid.tau <= fit.risk.min() <= fit.risk.max() < 0


def test_each_model_finds_what_it_can_see(data, fits):
    duration, event = outcome_of(data, "held_out")
    c = {name: harrell_c(duration, event, fit.risk[data.index("held_out")]) for name, fit in fits.items()}
    assert c["kaplan-meier"] == 0.5
    rich = [c[name] for name in ("cox", "wide", "boosting", "logistic", "random-survival-forest")]
    assert 0.6 < c["age-sex"] < min(rich)
    assert min(rich) > 0.68
    assert fits["cox"].coefficients["name"][:2].to_list() == ["age", "count:A"]
    assert fits["age-sex"].coefficients.height == 3


def test_kaplan_meier_is_the_training_curve(data, fits):
    curve = KaplanMeier.fit(*outcome_of(data, "train"))
    assert (fits["kaplan-meier"].survival == curve.at(data.grid.curve_times())).all()


def test_wide_hands_over_its_model(data, fits):
    logits = fits["wide"].model.logits(data.features.values)
    assert np.array_equal(data.grid.survival(logits, data.grid.curve_times()), fits["wide"].survival)
    assert fits["wide"].coefficients.height + data.grid.n_bins == fits["wide"].n_parameters


@pytest.mark.parametrize("name", list(BASELINES))
def test_held_out_outcomes_change_nothing_and_the_same_seed_gives_the_same_bytes(name, data, fits):
    rows, other = data.rows, np.random.default_rng(9).uniform(1, TAU, len(data))
    outside = (rows["split"] == "held_out").to_numpy()
    duration = np.where(outside, other, rows["duration"].to_numpy())
    event = np.where(outside, 1 - rows["event"].to_numpy(), rows["event"].to_numpy()).astype(np.int8)
    altered = replace(data, rows=rows.with_columns(pl.Series("duration", duration), pl.Series("event", event)))
    again = BASELINES[name].fit(altered, 0)
    assert again.survival.tobytes() == fits[name].survival.tobytes()
    assert again.risk.tobytes() == fits[name].risk.tobytes()


def test_boosting_varies_with_the_seed_and_finds_an_interaction():
    rng = np.random.default_rng(5)
    x = np.c_[rng.normal(size=(900, 4)), rng.choice([-1.0, 1.0], (900, 2))]
    data = survival_data(x, [*RECORD_COLUMNS, "count:A", "count:B"], 1.5 * x[:, 4] * x[:, 5])
    duration, event = outcome_of(data, "held_out")
    one, other = (BASELINES["boosting"].fit(data, seed) for seed in (0, 1))
    assert not np.array_equal(one.risk, other.risk)
    assert harrell_c(duration, event, one.risk[data.index("held_out")]) > 0.7
    assert harrell_c(duration, event, BASELINES["cox"].fit(data, 0).risk[data.index("held_out")]) < 0.6


def test_age_and_sex_reads_nothing_else(data, fits):
    values = data.features.values.copy()
    values[:, [*range(1, 4), *range(5, len(NAMES))]] = 7.0
    blind = BASELINES["age-sex"].fit(replace(data, features=FeatureMatrix(values, NAMES)), 0)
    assert np.array_equal(blind.risk, fits["age-sex"].risk)
    values = data.features.values.copy()
    values[:, 4] = 1 - values[:, 4]
    turned = BASELINES["age-sex"].fit(replace(data, features=FeatureMatrix(values, NAMES)), 0)
    assert turned.risk == pytest.approx(fits["age-sex"].risk, rel=1e-4)
    assert not np.array_equal(turned.coefficients["coefficient"], fits["age-sex"].coefficients["coefficient"])


@pytest.mark.parametrize("code", ["static:GENDER//F", "static:SEX//M", "static:Gender//unknown", "static:sex"])
def test_sex_codes_are_recognised(data, code):
    names = [code if name == "static:SEX//M" else name for name in NAMES]
    fit = BASELINES["age-sex"].fit(replace(data, features=FeatureMatrix(data.features.values, names)), 0)
    assert code in fit.coefficients["name"].to_list()


def test_without_a_sex_code_age_stands_alone_and_a_note_says_so(data):
    names = ["static:SEXUAL_HISTORY" if name == "static:SEX//M" else name for name in NAMES]
    fit = BASELINES["age-sex"].fit(replace(data, features=FeatureMatrix(data.features.values, names)), 0)
    assert fit.notes == ("no sex code found: age only",)
    assert fit.coefficients["name"].to_list() == ["age", "age squared"]


def person_periods(x, outcome, grid):
    """Rows of the expanded table, one a patient and bin: columns, bin, weight, event; straight from the definition."""
    for row, (duration, event) in enumerate(zip(*outcome, strict=True)):
        for k, (left, right) in enumerate(pairwise(grid.edges)):
            inside = left < duration <= right
            lived = 1.0 if duration > right or (inside and event) else (duration - left) / (right - left)
            if lived > 0:
                yield x[row], k, lived, inside * event


@pytest.mark.parametrize("penalty", [1.0, 1e-2])
def test_logistic_is_the_regression_on_expanded_person_periods(penalty):
    x, outcome = tied_cohort(150, 3)
    outcome = Outcome(*truncate(outcome.duration, outcome.event, 40.0))
    grid = TimeGrid(np.array([0.0, 5.0, 15.0, 40.0]))
    columns, bins, weight, event = (np.array(part) for part in zip(*person_periods(x, outcome, grid), strict=True))
    z = (columns - x.mean(axis=0)) / x.std(axis=0)

    def loss(point):
        eta = z @ point[:3] + point[3:][bins]
        p = 1 / (1 + np.exp(-eta))
        nll = -(weight * np.where(event, np.log(p), np.log(1 - p))).sum() / len(x)
        return nll + penalty / 2 * (point[:3] ** 2).sum()

    theirs = minimize(loss, np.zeros(6), method="BFGS", options={"gtol": 1e-7}).x
    located = grid.locate(outcome.duration)
    rows = PersonPeriods.of(x, grid.exposure(*located), located[0], outcome.event)
    ours = fit_logistic(rows, rows, penalties=[penalty])
    assert ours.weight[:, 0] == pytest.approx(theirs[:3], abs=1e-4)
    assert ours.bias[:, 0] == pytest.approx(theirs[3:], abs=1e-4)


def test_logistic_penalty_is_the_best_on_tuning(data):
    x = data.features.values[:, cox_columns(data)]
    located = {split: data.grid.locate(outcome_of(data, split)[0]) for split in ("train", "tuning")}
    train, tune = (
        PersonPeriods.of(x[data.index(s)], data.grid.exposure(*at), at[0], outcome_of(data, s)[1])
        for s, at in located.items()
    )
    fits = {penalty: fit_logistic(train, tune, penalties=[penalty]) for penalty in PENALTIES}
    losses = {penalty: tune.nll(fit.logits(tune.x)[..., None])[0] for penalty, fit in fits.items()}
    assert fit_logistic(train, tune).penalty == min(losses, key=losses.__getitem__)


@pytest.mark.parametrize(("name", "n"), [("logistic", 6000), ("random-survival-forest", 3000)])
def test_new_curves_are_calibrated_in_the_large(name, n):
    data = usual(n, seed=8, fractions=(0.3, 0.1))
    mean = BASELINES[name].fit(data, 0).survival[data.index("held_out")].mean(axis=0)
    observed = KaplanMeier.fit(*outcome_of(data, "held_out")).at(data.grid.curve_times())
    assert np.abs(mean - observed).max() < 0.04


def test_a_forests_curve_is_the_mean_of_its_trees_and_its_seed_matters(data):
    columns, times = cox_columns(data), data.grid.curve_times()
    x, outcome = data.features.values[:, columns][data.index("train")], Outcome(*outcome_of(data, "train"))
    fit, other = (fit_forest(x, outcome, times, seed) for seed in (3, 4))
    trees = fit.model.estimators_
    curves = np.mean([tree.predict_survival_function(x[:4], return_array=True) for tree in trees], axis=0)
    assert fit.survival(x[:4], fit.model.unique_times_) == pytest.approx(curves)
    assert (fit.survival(x[:4], times[:1] / 2) == 1).all()
    assert not np.array_equal(other.survival(x[:4], times), fit.survival(x[:4], times))


def test_an_extra_that_is_not_installed_is_named_with_the_command(monkeypatch, data):
    monkeypatch.setattr("ehrsequencing.baselines.table.find_spec", lambda name: None)
    with pytest.raises(EhrError) as caught:
        BASELINES["random-survival-forest"].fit(data, 0)
    assert caught.value.code == Exit.ENVIRONMENT
    assert "pip install 'ehrsequencing[forest]'" in caught.value.fix


def test_no_default_list_names_what_only_an_extra_installs():
    default = StudyConfig.model_fields["baselines"].default
    assert not {name for name, baseline in BASELINES.items() if baseline.requires} & set(default)


def test_cox_takes_the_most_widespread_columns_that_vary():
    rng, n = np.random.default_rng(2), 300
    share = np.linspace(0.02, 0.9, 400)
    codes = (rng.random((n, 400)) < share) * 1.0
    codes[:, 399] = 1.0
    x = np.c_[rng.gamma(2, 1, (n, 4)), codes, rng.normal(size=(n, 1))]
    names = [*RECORD_COLUMNS, *(f"count:{i}" for i in range(400)), "mean:LAB"]
    data = survival_data(x, names, np.zeros(n))
    chosen = cox_columns(data)
    assert len(chosen) == 256
    assert chosen[:4].tolist() == [0, 1, 2, 3]
    assert 403 not in chosen
    assert 404 not in chosen
    train = data.index("train")
    seen = (data.features.values[train] != 0).mean(axis=0)
    assert seen[chosen[4:]].min() >= np.delete(seen, [*chosen, 403, 404]).max()


@pytest.mark.parametrize(("name", "tuning_events"), [*((name, 0) for name in BASELINES), ("cox", 3), ("boosting", 3)])
def test_few_events_separation_and_constant_columns_break_nothing(name, tuning_events, monkeypatch):
    monkeypatch.setattr("ehrsequencing.models.wide.SCREENS", ())
    data = usual(300, seed=4)
    event, split = data.rows["event"].to_numpy(), data.rows["split"].to_numpy()
    allowed = {"train": 12, "tuning": tuning_events, "held_out": 5}
    keep = np.zeros(300, dtype=bool)
    for part, count in allowed.items():
        keep[np.flatnonzero((event == 1) & (split == part))[:count]] = True
    data = with_events(data, keep)
    values = data.features.values.copy()
    values[:, 5] = keep  # gives the event away
    values[:, 6] = 3.0
    fit = BASELINES[name].fit(replace(data, features=FeatureMatrix(values, NAMES)), 0)
    assert np.isfinite(fit.survival).all()
    assert np.isfinite(fit.risk).all()
    assert any(f"{tuning_events} tuning events" in note for note in fit.notes) == (
        name in {"cox", "boosting", "logistic", "wide"}
    )


@pytest.mark.parametrize("name", list(BASELINES))
def test_a_single_training_event_is_survived(name):
    data = usual(100, seed=6)
    event, split = data.rows["event"].to_numpy(), data.rows["split"].to_numpy()
    only = np.flatnonzero((event == 1) & (split == "train"))[:1]
    fit = BASELINES[name].fit(with_events(data, np.isin(np.arange(100), only)), 0)
    assert np.isfinite(fit.survival).all()


def test_a_penalty_that_does_not_converge_gives_way_to_a_stronger_one(monkeypatch):
    x, outcome = tied_cohort()
    monkeypatch.setattr("ehrsequencing.models.ridge.MAX_ITERATIONS", 2)
    fit = fit_cox_along(x, outcome, [1e6, 1e-4])
    assert fit.penalty == 1e6
    assert "no convergence at penalty 0.0001" in fit.notes[0]
    none = fit_cox_along(x, outcome, [1e-4])
    assert none == replace(none, penalty=np.inf)
    assert not none.weight.any()


def test_linear_predictor_of_constant_columns_is_zero():
    x = np.full((5, 1), 3.0)
    model = RidgeCox(Standardiser.fit(x), np.array([2.0]), 1.0)
    assert model.linear_predictor(np.full((2, 1), 99.0)).tolist() == [0.0, 0.0]
