"""Prediction at every visit: what is learned from, how patients weigh, every strategy, bundles and trajectories."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import polars as pl
import pytest
import torch

from ehrsequencing.batches import SurvivalData
from ehrsequencing.bundle import Bundle, Encoder
from ehrsequencing.cohort import Cohort, build_cohort
from ehrsequencing.config import (
    HELD_OUT,
    TRAIN,
    TUNING,
    IndexConfig,
    InputConfig,
    ModelConfig,
    Predicate,
    PretrainConfig,
    load_task,
)
from ehrsequencing.errors import EhrError, Exit
from ehrsequencing.inference import predict_rows, read_visits
from ehrsequencing.models.behrt_survival import BEHRTForSurvival
from ehrsequencing.models.forward import encode_visits, visit_features, visit_logits
from ehrsequencing.models.losses import ranking_loss, survival_nll
from ehrsequencing.models.strategies import STRATEGIES
from ehrsequencing.models.wide import fit_wide
from ehrsequencing.study.assemble import make_bundle
from ehrsequencing.study.data import Prepared, prepare
from ehrsequencing.study.steps import pretrain
from ehrsequencing.training.finetune import FeatureCache, finetune
from ehrsequencing.training.visits import VisitObjective


@pytest.fixture(scope="module")
def cohort(dataset) -> Cohort:
    """Every visit up to the outcome; evaluated at the first one from the simulator's own prediction_time on."""
    own = load_task(dataset.root / "task.yaml")
    changes = {"index": IndexConfig(after_history_days=0), "evaluate_at": own.index, "predict_at": "every_visit"}
    made = build_cohort(dataset, own.model_copy(update=changes))
    half = pl.col("subject_id") % 2 == 0  # enough to test
    return replace(made, table=made.table.filter(half), visits=made.visits.filter(half))


@pytest.fixture(scope="module")
def encoder(dataset) -> Encoder:
    config = PretrainConfig(epochs=1, batch_size=32)
    return pretrain(dataset, config, model=ModelConfig(attention="block_causal", dropout=0.0))


@pytest.fixture(scope="module")
def prepared(dataset, cohort, encoder) -> Prepared:
    return prepare(dataset, cohort, encoder)


@pytest.fixture(scope="module")
def data(prepared) -> SurvivalData:
    return prepared.data


@pytest.fixture(scope="module")
def fit(data, encoder, recipe):
    """Each strategy fitted once."""
    return cache(lambda strategy: finetune(data, strategy, recipe, encoder.model, dropout=0.0))


@pytest.fixture(scope="module")
def model(data, encoder) -> BEHRTForSurvival:
    torch.manual_seed(0)
    return BEHRTForSurvival.from_encoder(encoder.model, predict_at="every_visit", n_bins=data.grid.n_bins).eval()


def test_every_visit_is_a_row_and_the_evaluated_ones_are_among_them(data, cohort):
    visits = data.visits
    assert len(visits) == cohort.visits.height > 3 * len(data)
    evaluated = visits.rows[visits.evaluated]
    assert evaluated.select("subject_id", "prediction_time").equals(data.rows.select("subject_id", "prediction_time"))
    assert np.allclose(evaluated["duration"], data.rows["duration"])
    assert visits.rows["duration"].max() <= data.grid.tau


def test_the_patients_of_a_split_and_their_visits(data):
    visits = data.visits
    begin, count = visits.patients(TRAIN)
    subject = visits.rows["subject_id"].to_numpy()
    assert count.sum() == len(visits.index(TRAIN))
    for first, n in zip(begin, count, strict=True):
        assert len(set(subject[first : first + n])) == 1
    even = visits.evenly(TRAIN, 4)
    assert len(even) == 4 * len(begin)
    assert np.array_equal(np.unique(subject[even], return_counts=True)[1], np.full(len(begin), 4))


def test_features_come_in_the_order_asked_for_and_match_one_by_one(data, model):
    rows = np.random.default_rng(0).permutation(len(data.visits))[:40]
    with torch.no_grad():
        together = visit_features(model, data.visits.places.take(rows), budget=300)
        for place, row in enumerate(rows[:8]):
            alone = visit_features(model, data.visits.places.take(np.array([row])))
            assert torch.equal(alone[0], together[place])


def test_one_forward_is_the_same_as_reading_each_prefix(dataset, data, model, cohort, encoder):
    """Leak-free at every visit in one pass: the record cut at the visit itself gives the same hazards."""
    rows = data.visits.index(HELD_OUT)[::17]
    whole = visit_logits(model, data.visits.places.take(rows))
    for place, row in enumerate(rows):
        one = data.visits.rows[[row]]
        alone = visit_logits(model, read_visits(dataset, one, cohort.task, encoder.tokenizer))
        assert np.array_equal(alone[0], whole[place])


def test_a_patient_weighs_one_however_many_visits(data, model):
    """The step's loss is the mean over patients of the mean over each one's visits, computed one patient at a time."""
    visits = data.visits
    objective = VisitObjective(
        data, visits, lambda rows: model.hazards(visit_features(model, visits.places.take(rows))), 0.0
    )
    patients = np.array([0, 3, 5, 9])
    with torch.no_grad():
        found = float(objective.loss(patients))
        means = []
        for patient in patients:
            at = np.arange(objective.begin[patient], objective.begin[patient] + objective.count[patient])
            t = visits.targets(at)
            logits = model.hazards(visit_features(model, visits.places.take(at)))
            means.append(float(survival_nll(logits, t.bin, t.fraction.float(), t.event).mean()))
    assert found == pytest.approx(np.mean(means), rel=1e-5)


def test_ranking_compares_one_visit_a_patient(data, model):
    visits = data.visits
    logits = torch.from_numpy(visit_logits(model, visits.places))
    objective = VisitObjective(data, visits, lambda rows: logits[torch.from_numpy(rows)], 0.5)
    plain = VisitObjective(data, visits, lambda rows: logits[torch.from_numpy(rows)], 0.0)
    patients = np.arange(objective.n_rows)
    torch.manual_seed(4)
    loss = objective.loss(patients)
    drawn = objective._seen[0][0]
    subject = visits.rows["subject_id"].to_numpy()
    assert np.array_equal(subject[drawn], subject[objective.begin])
    t = visits.targets(drawn)
    rank, n_pairs = ranking_loss(logits[torch.from_numpy(drawn)], t.bin, t.fraction, t.event, t.duration)
    assert n_pairs > 0
    assert float(loss) == pytest.approx(float(plain.loss(patients) + 0.5 * rank))
    objective.loss(patients)
    assert not np.array_equal(drawn, objective._seen[1][0])


@pytest.mark.parametrize("strategy", ["frozen", pytest.param("frozen-ridge", marks=pytest.mark.slow), "lora", "full"])
def test_every_strategy_fits(data, fit, strategy):
    fitted = fit(strategy)
    assert fitted.model.config.predict_at == "every_visit"
    assert fitted.logits.shape == (len(data), data.grid.n_bins)
    assert np.isfinite(fitted.logits).all()
    assert fitted.logits.std(axis=0).min() > 0
    if strategy != "frozen-ridge" and fitted.history:
        assert {"train_c", "tuning_c", "tuning_nll"} <= set(fitted.history[0].metrics)
    again = visit_logits(fitted.model, data.visits.places.take(data.visits.evaluated))
    assert np.array_equal(again, fitted.logits)


def test_a_frozen_encoder_runs_once(data, encoder, recipe):
    kept = FeatureCache()
    for seed in (0, 1):
        finetune(data, "frozen", recipe, encoder.model, seed=seed, cache=kept)
    assert kept.encoder_passes == 1


def test_training_lowers_the_loss_of_visits(fit):
    losses = [epoch.train_loss for epoch in fit("full").history]
    assert losses[-1] < losses[0]


def test_the_other_mask_is_refused_unless_asked_for_by_name(dataset, data, recipe):
    other = pretrain(dataset, PretrainConfig(epochs=1, batch_size=64), model=ModelConfig(dropout=0.0)).model
    with pytest.raises(EhrError, match="read the visits after it") as caught:
        finetune(data, "frozen", recipe, other)
    assert caught.value.code == Exit.LEAKAGE
    with pytest.raises(EhrError, match="read the visits after it"):
        finetune(data, "frozen", recipe, other, attention="bidirectional")
    asked = finetune(data, "frozen", recipe, other, attention="block_causal")
    assert asked.model.config.attention == "block_causal"


@pytest.mark.parametrize("strategy", ["frozen", "lora"])
def test_a_bundle_predicts_the_same_at_every_visit(dataset, prepared, data, fit, cohort, strategy, tmp_path):
    fitted = fit(strategy)
    bundle = make_bundle(prepared, cohort.task, fitted, fit_wide(data), {})
    assert list(bundle.rows) == [strategy, "wide"]
    assert bundle.facts["predict_at"] == "every_visit"
    bundle.save(tmp_path / "bundle")
    again = Bundle.load(tmp_path / "bundle")
    at = data.index(HELD_OUT)
    evaluated = predict_rows(again, dataset, data.rows[at])
    risk = data.grid.risk(bundle.rows[strategy].logits(fitted.logits[at], None))
    assert np.allclose(evaluated.risk, risk, rtol=1e-5)
    every = data.visits.rows[data.visits.index(HELD_OUT)]
    trajectories = predict_rows(again, dataset, every)
    assert len(trajectories) == every.height > len(set(trajectories.subject_id))
    assert np.array_equal(trajectories.subject_id, every["subject_id"])


def test_a_look_back_is_refused(dataset, data, cohort, encoder):
    task = cohort.task.model_copy(update={"input": InputConfig(lookback_days=30)})
    with pytest.raises(EhrError, match="look-back") as caught:
        read_visits(dataset, data.rows, task, encoder.tokenizer)
    assert caught.value.code == Exit.CONFIG


def test_an_encoder_that_saw_held_out_patients_is_refused(dataset, cohort, encoder):
    moved = cohort.visits.with_columns(split=pl.lit(TUNING))
    with pytest.raises(EhrError) as caught:
        prepare(dataset, replace(cohort, visits=moved), encoder)
    assert caught.value.code == Exit.LEAKAGE


def test_the_cache_reads_all_visits(data, model):
    assert len(encode_visits(model, data.visits.places)) == len(data.visits)
    assert STRATEGIES["frozen"].cached_features


def test_competing_causes_at_every_visit(dataset, cohort, encoder, recipe):
    """The same loss with another last axis: a third of the censored end by a competing event instead."""
    died = (pl.col("event") == 0) & (pl.col("subject_id") % 3 == 0)
    event = pl.when(died).then(2).otherwise("event").cast(pl.Int8).alias("event")
    task = cohort.task.model_copy(update={"competing": {"death": Predicate(code="MEDS_DEATH")}})
    both = replace(cohort, task=task, table=cohort.table.with_columns(event), visits=cohort.visits.with_columns(event))
    data = prepare(dataset, both, encoder).data
    fitted = finetune(data, "frozen", recipe, encoder.model, dropout=0.0)
    assert fitted.logits.shape == (len(data), data.grid.n_bins, 2)
    assert np.isfinite(fitted.logits).all()
    assert np.array_equal(visit_logits(fitted.model, data.visits.places.take(data.visits.evaluated)), fitted.logits)
