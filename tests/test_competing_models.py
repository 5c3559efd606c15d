"""Competing risks from losses to predictions: gradients, heads, the penalised head, recalibration, a whole bundle."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import polars as pl
import pytest
import torch

from competing_data import GRID, draw
from ehrsequencing.batches import SurvivalData, Targets
from ehrsequencing.bundle import Bundle
from ehrsequencing.config import TRAIN, TUNING, Predicate, load_task
from ehrsequencing.errors import EhrError
from ehrsequencing.evaluation.metrics import harrell_c
from ehrsequencing.evaluation.recalibration import Recalibration
from ehrsequencing.hazards import nll_gradient
from ehrsequencing.inference import predict, to_predictions
from ehrsequencing.models.behrt import BEHRTConfig
from ehrsequencing.models.behrt_survival import BEHRTForSurvival
from ehrsequencing.models.blend import choose_alpha
from ehrsequencing.models.heads import HazardHead, LinearHead
from ehrsequencing.models.losses import at_risk, hybrid_loss, log_incidence, ranking_loss, survival_nll
from ehrsequencing.models.wide import RidgeHazard, fit_ridge_hazard, fit_wide, mean_nll
from ehrsequencing.nonparametric import AalenJohansen, for_outcome
from ehrsequencing.predictions import Predictions
from ehrsequencing.study.assemble import make_bundle
from ehrsequencing.study.auto import score_on_tuning
from ehrsequencing.timegrid import TimeGrid
from ehrsequencing.training.finetune import finetune
from ehrsequencing.training.objectives import TuningScore
from ehrsequencing.training.recipes import RECIPES

CAUSES = ("outcome", "death", "transplant")


def some(n: int = 40, causes: int = 3, seed: int = 0) -> tuple[torch.Tensor, Targets]:
    logits = np.random.default_rng(seed).normal(-1.2, 1.0, (n, GRID.n_bins, causes))
    duration, event = draw(logits, GRID, seed, censored_by=600.0)
    return torch.from_numpy(logits), Targets.of(duration, event, GRID)


def test_torch_and_numpy_agree_on_loss_and_gradient():
    logits, t = some()
    logits.requires_grad_()
    loss = survival_nll(logits, t.bin, t.fraction, t.event)
    np.testing.assert_allclose(
        loss.detach(), GRID.nll(logits.detach().numpy(), t.duration.numpy(), t.event.numpy()), rtol=1e-12
    )
    loss.sum().backward()
    exposure = GRID.exposure(t.bin.numpy(), t.fraction.numpy())
    expected = nll_gradient(logits.detach().numpy(), exposure, t.bin.numpy(), t.event.numpy())[1]
    np.testing.assert_allclose(logits.grad, expected, atol=1e-12)


@pytest.mark.parametrize("shift", [0.0, -40.0, 40.0])
def test_gradients_of_the_hybrid_loss_by_finite_differences(shift):
    logits, t = some(5)
    event = t.event.clone()
    event[:3] = torch.tensor([1, 2, 0])

    def loss(x: torch.Tensor) -> torch.Tensor:
        return hybrid_loss(x, t.bin, t.fraction, event, t.duration, 0.5).loss

    assert torch.autograd.gradcheck(loss, ((logits + shift).requires_grad_(),))


@pytest.mark.parametrize("level", [-1e4, 1e4])
def test_losses_stay_finite_at_extreme_logits_in_single_precision(level):
    _, t = some(10)
    logits = torch.full((10, GRID.n_bins, 3), level)
    logits[::2, :, 1] = -level
    logits.requires_grad_()
    event = torch.tensor([1, 2, 3, 0, 1] * 2)
    result = hybrid_loss(logits, t.bin, t.fraction.float(), event, t.duration, 0.5)
    result.loss.backward()
    assert result.n_pairs > 0
    assert torch.isfinite(result.loss)
    assert torch.isfinite(logits.grad).all()


def test_log_incidence_is_that_of_the_grid():
    logits, t = some()
    expected = GRID.cif(logits.numpy(), t.duration.numpy())[:, :, 0]  # (patients, times)
    np.testing.assert_allclose(log_incidence(logits, t.bin, t.fraction).numpy().T, np.log(expected), rtol=1e-10)


def test_rivals_are_at_risk_of_every_outcome():
    duration, event = torch.tensor([5.0, 3.0, 1.0, 2.0, 9.0]), torch.tensor([1, 1, 2, 0, 0])
    cases, comparable = at_risk(duration, event)
    assert cases.tolist() == [0, 1]
    assert comparable.tolist() == [[False, False, True, False, True], [True, False, True, False, True]]


def test_ranking_term_by_hand():
    logits, t = some(12)
    incidence = GRID.cif(logits.numpy(), t.duration.numpy())[:, :, 0]
    terms = []
    for i in np.flatnonzero(t.event == 1):
        for j in range(12):
            if t.duration[j] > t.duration[i] or t.event[j] > 1:
                terms.append(np.log1p(incidence[j, i] / incidence[i, i]))
    found, n_pairs = ranking_loss(logits, t.bin, t.fraction, t.event, t.duration)
    assert n_pairs == len(terms) > 0
    assert found.item() == pytest.approx(np.mean(terms), rel=1e-9)


def test_a_ranking_step_moves_the_outcome_apart():
    logits, t = some(200)
    logits = torch.zeros_like(logits).requires_grad_()
    optimizer = torch.optim.SGD([logits], lr=50.0)
    for _ in range(20):
        optimizer.zero_grad()
        ranking_loss(logits, t.bin, t.fraction, t.event, t.duration)[0].backward()
        optimizer.step()
    outcome = for_outcome(t.duration.numpy(), t.event.numpy(), GRID.tau)
    assert harrell_c(*outcome, GRID.risk(logits.detach().numpy())) > 0.9


@pytest.mark.parametrize(("head", "kind"), [("mlp", HazardHead), ("linear", LinearHead)])
def test_heads_start_at_the_marginal_hazards_of_every_cause(head, kind):
    config = BEHRTConfig.small(vocab_size=50, n_bins=GRID.n_bins, n_causes=3, head=head)
    model = BEHRTForSurvival(config)
    assert isinstance(model.hazard_head, kind)
    _, t = some(400)
    marginal = GRID.marginal_logits(t.duration.numpy(), t.event.numpy(), 3)
    model.hazard_head.set_marginal(torch.from_numpy(marginal).float())
    with torch.no_grad():
        (model.hazard_head.hazard.weight if head == "mlp" else model.hazard_head.weight).zero_()
        found = model.hazard_head(torch.randn(5, 3 * config.hidden_size))
    assert found.shape == (5, 1, GRID.n_bins, 3)
    np.testing.assert_allclose(found[2, 0], marginal, atol=1e-6)


def test_a_configuration_of_one_cause_is_as_before():
    plain, named = (BEHRTConfig.small(vocab_size=50, n_bins=7, **more) for more in ({}, {"n_causes": 1}))
    torch.manual_seed(0)
    first = BEHRTForSurvival(plain)
    torch.manual_seed(0)
    second = BEHRTForSurvival(named)
    x = torch.randn(3, 3 * plain.hidden_size)
    assert first.hazard_head(x).shape == (3, 1, 7)
    assert torch.equal(first.hazard_head.eval()(x), second.hazard_head.eval()(x))


def linear_data(n: int = 3000) -> tuple[np.ndarray, np.ndarray, Targets]:
    """Features, true weights [2, 3] and outcomes of a linear model with three causes."""
    rng = np.random.default_rng(2)
    x, weight = rng.normal(size=(n, 2)), np.array([[0.8, -0.5, 0.0], [0.0, 0.6, -0.8]])
    bias = np.array([[-2.0, -2.5, -2.5], [-1.5, -2.0, -3.0], [-1.5, -1.8, -2.0], [-2.0, -1.0, -2.0]])
    logits = bias + (x @ weight)[:, None]
    duration, event = draw(logits, GRID, 3, censored_by=900.0)
    return x, weight, Targets.of(duration, event, GRID)


def test_the_penalised_head_finds_the_weights_of_every_cause():
    x, weight, t = linear_data()
    train, tune = np.arange(2000), np.arange(2000, 3000)
    fit = fit_ridge_hazard(
        x[train], t.take(train), x[tune], t.take(tune), [1e-1, 1e-2, 1e-4], GRID.n_bins, (), n_causes=3
    )
    np.testing.assert_allclose(fit.weight / fit.std[:, None], weight, atol=0.12)
    assert fit.bias.shape == (GRID.n_bins, 3)
    assert fit.n_parameters == 6 + 12
    best = next(row for row in fit.path if row.penalty == fit.penalty)
    assert best.gradient < 1e-5
    assert best.tuning_nll == pytest.approx(mean_nll(fit.logits(x[tune]), t.take(tune)), rel=1e-12)
    again = RidgeHazard.from_arrays(fit.to_arrays())
    np.testing.assert_array_equal(again.logits(x), fit.logits(x))
    alone = GRID.marginal_logits(t.take(train).duration.numpy(), t.take(train).event.numpy(), 3)
    assert best.tuning_nll < mean_nll(np.broadcast_to(alone, (1000, *alone.shape)).copy(), t.take(tune)) - 0.05
    with pytest.raises(ValueError, match="codes up to 1"):
        fit_ridge_hazard(x[train], t.take(train), x[tune], t.take(tune), [0.1], GRID.n_bins)


def test_without_useful_columns_the_penalised_head_is_aalen_johansen():
    _, _, t = linear_data()
    x = np.random.default_rng(0).normal(size=(3000, 1))
    fit = fit_ridge_hazard(x, t, x, t, [1e6], GRID.n_bins, n_causes=3)
    expected = AalenJohansen.fit(t.duration.numpy(), t.event.numpy()).at(GRID.edges[1:])
    np.testing.assert_allclose(GRID.cif(fit.logits(x[:1]), GRID.edges[1:])[0], expected, atol=0.005)


def test_one_cause_by_the_long_way_fits_the_same():
    x, _, t = linear_data(800)
    t = replace(t, event=(t.event == 1).long())
    train, tune = np.arange(500), np.arange(500, 800)
    fit = fit_ridge_hazard(x[train], t.take(train), x[tune], t.take(tune), [1e-2], GRID.n_bins)
    # a second cause that never happens keeps half an event a bin and changes the first one's fit hardly at all
    long = fit_ridge_hazard(x[train], t.take(train), x[tune], t.take(tune), [1e-2], GRID.n_bins, n_causes=2)
    np.testing.assert_allclose(long.weight[:, 0], fit.weight, atol=0.01)


def test_blend_is_chosen_by_the_likelihood_of_all_causes():
    logits, t = some(600)
    worse = np.zeros_like(logits.numpy())
    outcome = GRID, t.duration.numpy(), t.event.numpy()
    assert choose_alpha(logits.numpy(), worse, *outcome) >= 0.8
    assert choose_alpha(worse, logits.numpy(), *outcome) <= 0.2


def test_recalibration_undoes_a_distortion_of_each_cause():
    rng = np.random.default_rng(5)
    truth = rng.normal(-1.5, 1.0, (4000, 1, 3)) + rng.normal(0, 0.3, (1, GRID.n_bins, 3))
    duration, event = draw(truth, GRID, 6, censored_by=900.0)
    slopes, shift = np.array([2.0, 0.5, 1.0]), np.array([0.7, -0.4, 0.3])
    fitted = Recalibration.fit((truth - shift) / slopes, duration, event, GRID)
    np.testing.assert_allclose(fitted.slope, slopes, rtol=0.15)
    np.testing.assert_allclose(fitted.intercepts, np.tile(shift, (GRID.n_bins, 1)), atol=0.25)
    assert not fitted.unchanged
    again = Recalibration.from_json(fitted.to_json())
    np.testing.assert_array_equal(again.apply(truth), fitted.apply(truth))
    assert "cause 3: slope" in fitted.note


def test_recalibration_leaves_a_rare_rival_alone_and_waits_for_outcomes():
    logits, t = some(400)
    duration, event = t.duration.numpy(), t.event.numpy().copy()
    event[np.flatnonzero(event == 3)[9:]] = 2
    fitted = Recalibration.fit(logits.numpy() - 1.0, duration, event, GRID)
    assert fitted.slope[2] == 1
    assert not fitted.intercepts[:, 2].any()
    assert fitted.intercepts[:, 0].all()
    assert fitted.note.endswith("cause 3: kept")
    few = np.where(event == 1, 2, event)
    few[np.flatnonzero(event == 1)[:19]] = 1
    kept = Recalibration.fit(logits.numpy(), duration, few, GRID)
    assert kept.unchanged
    np.testing.assert_array_equal(kept.apply(logits.numpy()), logits.numpy())


def with_rivals(data: SurvivalData) -> SurvivalData:
    """The same records with made-up rivals: half of the censored rows, a death that ended them."""
    event = data.rows["event"].to_numpy().copy()
    free = np.flatnonzero((event == 0) & (data.rows["duration"] < data.grid.tau).to_numpy())
    event[free[::2]] = 2
    train = (data.rows["split"] == TRAIN).to_numpy()
    grid = TimeGrid.fit(data.rows["duration"].to_numpy()[train], event[train], data.grid.tau)
    rows = data.rows.with_columns(pl.Series("event", event))
    return replace(data, rows=rows, grid=grid, causes=("outcome", "death"))


@pytest.fixture(scope="module")
def rivals(data: SurvivalData) -> SurvivalData:
    return with_rivals(data)


@pytest.fixture(scope="module")
def wide(rivals: SurvivalData) -> RidgeHazard:
    return fit_wide(rivals)


@pytest.mark.parametrize("name", ["frozen-ridge", pytest.param("lora", marks=pytest.mark.slow)])
def test_a_bundle_of_competing_risks_predicts_what_the_run_predicted(
    rivals, wide, prepared, dataset, encoder, recipe, name, tmp_path
):
    death = {"death": Predicate(code="MEDS_DEATH")}
    task = load_task(dataset.root / "task.yaml").model_copy(update={"competing": death})
    fitted = finetune(rivals, name, recipe, encoder.model)
    assert fitted.logits.shape == (len(rivals), rivals.grid.n_bins, 2)
    bundle = make_bundle(replace(prepared, data=rivals), task, fitted, wide, {"seed": 0})
    bundle.save(tmp_path / "bundle")
    loaded = Bundle.load(tmp_path / "bundle")
    assert loaded.causes == ("outcome", "death")
    logits = bundle.rows[bundle.default_row].logits(fitted.logits, bundle.wide.logits(rivals.features.values))
    expected = to_predictions(logits, rivals.rows, rivals.grid, "", "", rivals.causes)
    found = predict(loaded, dataset)
    found.write(tmp_path / "p.parquet")
    found = Predictions.read(tmp_path / "p.parquet")
    at = np.searchsorted(found.subject_id, expected.subject_id)
    for cause in rivals.causes:
        np.testing.assert_allclose(found.cif[cause][at], expected.cif[cause], atol=1e-5)
    np.testing.assert_allclose(found.risk[at], expected.risk, rtol=1e-4)
    curve = np.concatenate([np.zeros((len(found), 1)), found.cif["outcome"]], axis=1)
    np.testing.assert_allclose(found.risk, np.trapezoid(curve, dx=rivals.grid.tau / 100), rtol=2e-3)
    assert "Competing events: death" in (tmp_path / "bundle" / "MODEL_CARD.md").read_text()


def test_tuning_scores_judge_the_outcome_alone(rivals):
    at = rivals.index(TUNING)
    t = rivals.targets(at)
    logits = np.random.default_rng(0).normal(-2, 1, (len(at), rivals.grid.n_bins, 2))
    found = TuningScore(rivals)(logits)
    outcome = for_outcome(t.duration.numpy(), t.event.numpy(), rivals.grid.tau)
    assert found["score"] == found["tuning_c"] == harrell_c(*outcome, rivals.grid.risk(logits))
    expected = rivals.grid.nll(logits, t.duration.numpy(), t.event.numpy()).mean()
    assert found["tuning_nll"] == pytest.approx(expected)


def test_large_recipe_and_auto_score_competing_fits(rivals, encoder):
    large = replace(RECIPES["large"], epochs=2, batch_size=64)
    fitted = finetune(rivals, "frozen", large, encoder.model)
    assert sum(epoch.best for epoch in fitted.history) == 1
    scores = score_on_tuning(rivals, {"frozen": fitted}, resamples=5)
    assert 0 <= scores["frozen"].figures["harrell_c"][0] <= 1


def test_codes_without_a_name_are_refused(data):
    rows = data.rows.with_columns(event=pl.lit(2, pl.Int8))
    with pytest.raises(EhrError, match=r"event codes up to 1 \(outcome\), found 2"):
        replace(data, rows=rows)


def test_logits_must_have_the_causes_named(rivals):
    with pytest.raises(ValueError, match="logits of 2 causes"):
        to_predictions(np.zeros((len(rivals), rivals.grid.n_bins)), rivals.rows, rivals.grid, "", "", rivals.causes)
