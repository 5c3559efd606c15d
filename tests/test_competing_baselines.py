"""The simple models under competing risks: beside brute force, lifelines and incidences known in closed form."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import polars as pl
import pytest
from lifelines import AalenJohansenFitter

from ehrsequencing.baselines import BASELINES
from ehrsequencing.baselines import causes as causes_module
from ehrsequencing.baselines.causes import incidence, proportional_incidence, time_lost
from ehrsequencing.baselines.cox import fit_cox_along
from ehrsequencing.baselines.fitted import outcome_of
from ehrsequencing.baselines.proportional import Breslow
from ehrsequencing.errors import EhrError, Exit
from ehrsequencing.evaluation.metrics import harrell_c
from ehrsequencing.nonparametric import AalenJohansen
from ehrsequencing.study.simple import for_causes
from ehrsequencing.timegrid import TimeGrid, truncate
from test_baselines import NAMES, TAU, usual

CAUSES = ("outcome", "death")
RATES = 1 / 1500.0, 1 / 2500.0
MODELS = ["aalen-johansen", "age-sex", "cox", "boosting", "logistic", "random-survival-forest", "wide"]


def hazards(data):
    """True constant hazards a day of both causes, [n,2]: age raises both, code A the outcome only."""
    x = data.features.values.astype(np.float64)
    age = 0.04 * (x[:, 0] - 60)
    return np.stack([RATES[0] * np.exp(age + x[:, NAMES.index("count:A")]), RATES[1] * np.exp(age)], axis=1)


def competing(n=800, seed=0, **kwargs):
    data = usual(n, seed=seed, **kwargs)
    rate, rng = hazards(data), np.random.default_rng(seed + 100)
    happens, cause = rng.exponential(1 / rate.sum(axis=1)), 1 + (rng.random(n) > rate[:, 0] / rate.sum(axis=1))
    censored = rng.uniform(200, 2500, n)
    duration, event = truncate(np.minimum(happens, censored), np.where(happens <= censored, cause, 0), TAU)
    rows = data.rows.with_columns(pl.Series("duration", duration), pl.Series("event", event.astype(np.int8)))
    train = data.index("train")
    return replace(data, rows=rows, grid=TimeGrid.fit(duration[train], event[train], TAU), causes=CAUSES)


def truth(data):
    """CIF_r(t) = h_r/Σh · (1 − e^{−tΣh}) at the curve's times, [n,points,2]."""
    rate = hazards(data)
    total = rate.sum(axis=1)
    ended = -np.expm1(-total[:, None] * data.grid.curve_times())
    return ended[..., None] * (rate / total[:, None])[:, None, :]


@pytest.fixture(scope="module")
def data():
    return competing(1500, fractions=(0.5, 0.15))


@pytest.fixture(scope="module")
def fits(data):
    return {name: BASELINES[name].fit(data, 0) for name in MODELS}


def cause_specific_cox(data):
    x, train = data.features.values[:, [0, 5]].astype(np.float64), data.index("train")
    parts = [(outcome_of(data, "train", cause), fit_cox_along(x[train], outcome_of(data, "train", cause), [1.0, 1e-4]))
             for cause in (1, 2)]  # fmt: skip
    eta = [fit.linear_predictor(x) for _, fit in parts]
    return eta, [Breslow.fit(*outcome, one[train]) for (outcome, _), one in zip(parts, eta, strict=True)]


def product_integral(base, eta, times):
    """Aalen–Johansen of one patient's cause-specific hazards, event time by event time, from the definition."""
    found = []
    for t in times:
        survival, cif = 1.0, np.zeros(len(base))
        for u in np.unique(np.concatenate([one.times for one in base])):
            if u > t:
                break
            step = np.array([
                np.diff(one.cumulative, prepend=0.0)[one.times == u].sum() * np.exp(value)
                for one, value in zip(base, eta, strict=True)
            ])  # fmt: skip
            cif += survival * step
            survival *= 1 - step.sum()
        found.append(cif)
    return np.array(found)


def test_cause_specific_cox_is_the_product_integral_to_the_square_of_its_steps():
    gaps = {}
    for n in (200, 800):
        data = competing(n, seed=3)
        eta, base = cause_specific_cox(data)
        times = data.grid.curve_times()[[9, 49, 99]]
        ours = proportional_incidence(base, [one[:12] for one in eta], times)
        theirs = np.array([product_integral(base, [one[i] for one in eta], times) for i in range(12)])
        gaps[n] = np.abs(ours - theirs).max()
    assert gaps[800] < 0.004
    assert gaps[800] < gaps[200] / 2


def test_incidence_is_its_formula_step_by_step_and_adds_to_one_with_survival():
    steps = np.random.default_rng(0).exponential(0.2, (3, 40, 3)) * (np.random.default_rng(1).random((3, 40, 3)) < 0.5)
    found = incidence(steps)
    for row in range(3):
        survival, cif = 1.0, np.zeros(3)
        for u in range(40):
            total = steps[row, u].sum()
            lost = survival * (1 - np.exp(-total))
            cif = cif + (lost * steps[row, u] / total if total > 0 else 0)
            survival -= lost
            assert found[row, u] == pytest.approx(cif)
        assert survival == pytest.approx(np.exp(-steps[row].sum()))


def test_one_cause_alone_is_the_usual_cox_curve():
    data = competing(300)
    eta, base = cause_specific_cox(data)
    times = data.grid.curve_times()
    cif = proportional_incidence(base[:1], eta[:1], times)
    assert 1 - cif[:, :, 0] == pytest.approx(base[0].survival(eta[0], times))


def test_gathering_many_event_times_changes_next_to_nothing(monkeypatch, data):
    eta, base = cause_specific_cox(data)
    times = data.grid.curve_times()
    exact = proportional_incidence(base, eta, times)
    monkeypatch.setattr(causes_module, "_CELLS", 500)
    assert np.array_equal(proportional_incidence(base, [one[:9] for one in eta], times), exact[:9])
    monkeypatch.setattr(causes_module, "MAX_STEPS", 200)
    assert np.abs(proportional_incidence(base, eta, times) - exact).max() < 0.01


def test_aalen_johansen_agrees_with_lifelines(data, fits):
    targets = data.targets(data.index("train"))
    duration, event = targets.duration.numpy(), targets.event.numpy()
    times = data.grid.curve_times()
    for cause in (1, 2):
        theirs = AalenJohansenFitter(calculate_variance=False, jitter_level=0).fit(duration, event, cause)
        curve = theirs.cumulative_density_.iloc[:, 0]
        expected = curve.to_numpy()[np.searchsorted(curve.index.to_numpy(), times, side="right") - 1]
        assert fits["aalen-johansen"].cif[0, :-1, cause - 1] == pytest.approx(expected[:-1], abs=1e-9)
    assert np.ptp(fits["aalen-johansen"].risk) == 0
    assert np.array_equal(fits["aalen-johansen"].cif[0], fits["aalen-johansen"].cif[-1])


@pytest.mark.parametrize("name", MODELS)
def test_curves_are_sound_and_risk_is_the_time_lost_to_the_outcome(name, data, fits):
    fit = fits[name]
    assert fit.cif.shape == (len(data), 100, 2)
    assert fit.cif.sum(axis=2) + fit.survival == pytest.approx(np.ones((len(data), 100)))
    assert (np.diff(fit.cif, axis=1) >= -1e-12).all()
    if name != "aalen-johansen":
        lost = time_lost(fit.cif[:, :, 0], data.grid.curve_times())
        assert fit.risk == pytest.approx(lost, rel=0.02, abs=1.0)
    if fit.coefficients is not None:
        assert fit.coefficients["cause"].unique(maintain_order=True).to_list() == list(CAUSES)


@pytest.mark.parametrize("name", MODELS)
def test_every_model_is_calibrated_in_the_large_for_each_cause(name, data, fits):
    at = data.index("held_out")
    mean, known = fits[name].cif[at].mean(axis=0), truth(data)[at].mean(axis=0)
    assert np.abs(mean - known).max() < 0.05


@pytest.mark.parametrize("name", ["cox", "boosting", "logistic", "random-survival-forest"])
def test_each_cause_is_found_by_what_drives_it(name, data, fits):
    at, known = data.index("held_out"), truth(data)
    error = np.abs(fits[name].cif[at] - known[at]).mean()
    average = np.abs(fits["aalen-johansen"].cif[at] - known[at]).mean()
    assert error < 0.75 * average
    shares = {cause: np.corrcoef(fits[name].cif[at, -1, cause], known[at, -1, cause])[0, 1] for cause in (0, 1)}
    assert min(shares.values()) > 0.6


def test_a_rival_that_takes_the_patients_first_lowers_the_risk_of_the_outcome():
    data = competing(600, seed=5)
    event = data.rows["event"].to_numpy()
    alone = replace(data, rows=data.rows.with_columns(pl.Series("event", (event == 1).astype(np.int8))))
    both, single = BASELINES["cox"].fit(data, 0), BASELINES["cox"].fit(replace(alone, causes=CAUSES[:1]), 0)
    assert (both.cif[:, -1, 0] < 1 - single.survival[:, -1]).all()


def test_a_cause_that_never_happened_in_training_gets_no_hazard():
    data = competing(300, seed=6)
    rows = data.rows.with_columns(
        event=pl.when((pl.col("split") == "train") & (pl.col("event") == 2)).then(0).otherwise("event").cast(pl.Int8)
    )
    data = replace(data, rows=rows)
    for name in ("cox", "boosting", "random-survival-forest"):
        fit = BASELINES[name].fit(data, 0)
        assert (fit.cif[:, :, 1] == 0).all()
        assert any("no event of" in note for note in fit.notes)
    assert (BASELINES["logistic"].fit(data, 0).cif[:, -1, 1] < 0.2).all()


def test_kaplan_meier_is_refused_and_replaced_where_events_compete(data):
    with pytest.raises(EhrError) as caught:
        BASELINES["kaplan-meier"].fit(data, 0)
    assert caught.value.code == Exit.CONFIG
    names, said = for_causes(("kaplan-meier", "aalen-johansen", "cox"), 2)
    assert names == ("aalen-johansen", "cox")
    assert "gives way" in said
    assert for_causes(("kaplan-meier", "cox"), 1) == (("kaplan-meier", "cox"), "")


def test_the_outcome_is_ranked_by_its_own_incidence(data, fits):
    at = data.index("held_out")
    targets = data.targets(at)
    duration, event = targets.duration.numpy(), targets.event.numpy()
    stays = np.where(event > 1, TAU, duration), (event == 1).astype(np.int64)
    best = harrell_c(*stays, time_lost(truth(data)[at][:, :, 0], data.grid.curve_times()))
    for name in ("cox", "logistic", "boosting"):
        assert best - harrell_c(*stays, fits[name].risk[at]) < 0.05


def test_aalen_johansen_of_one_cause_is_kaplan_meier():
    data = usual(200)
    assert BASELINES["aalen-johansen"].fit(data, 0).cif is None
    pair = [BASELINES[name].fit(data, 0).survival for name in ("aalen-johansen", "kaplan-meier")]
    assert pair[0] == pytest.approx(pair[1])
    assert AalenJohansen.fit(*outcome_of(data, "train")).n_causes == 1
