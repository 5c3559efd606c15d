"""The visit LSTM: reads visits in order and nothing else, is fitted by the one loop, sees what counts cannot."""

from __future__ import annotations

import datetime as dt
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
import torch

from ehrsequencing.baselines import BASELINES
from ehrsequencing.batches import SurvivalData
from ehrsequencing.config import BudgetConfig, FeaturesConfig, ModelConfig, TokensConfig
from ehrsequencing.errors import EhrError, Exit
from ehrsequencing.evaluation.metrics import harrell_c
from ehrsequencing.features import FeatureSpec, build_features
from ehrsequencing.models.behrt import BEHRTConfig
from ehrsequencing.models.lstm import VisitBatch, VisitLSTM, lstm_logits
from ehrsequencing.study.simple import NAMES, check_names, simple_models
from ehrsequencing.timegrid import TimeGrid
from ehrsequencing.tokens import CLS, Tokenizer, tokenize
from ehrsequencing.training.recipes import RECIPES
from ehrsequencing.training.visit_lstm import fit_visit_lstm


@pytest.fixture(scope="module")
def model(data):
    torch.manual_seed(0)
    tokenizer = data.tokenizer
    config = BEHRTConfig.small(tokenizer.vocab_size, value_codes=tokenizer.value_codes, n_bins=data.grid.n_bins)
    return VisitLSTM(config).eval()


def test_steps_are_the_visits_in_order_and_the_present_last(data):
    rows = np.array([5, 2, 9])
    batch, store = VisitBatch.of(data.tokens, rows), data.tokens
    begin = 0
    sizes, ends = batch.tokens.tolist(), batch.steps.cumsum(0).tolist()
    token = 0
    for row, end in zip(rows, ends, strict=True):
        own = slice(store.offsets[row], store.offsets[row + 1])
        visit, code, age, gap = store.visit[own], store.code[own], store.age[own], store.gap[own]
        for step in range(begin, end):
            here = visit == (0 if step == end - 1 else step - begin + 1)
            assert batch.code[token : token + sizes[step]].tolist() == code[here].tolist()
            assert float(batch.gap[step]) == gap[here][0]
            assert float(batch.age[step]) == np.nan_to_num(age[here][0])
            token += sizes[step]
        assert CLS in batch.code[token - sizes[end - 1] : token]
        begin = end
    assert token == len(batch.code) == store.lengths[rows].sum()


def test_a_plain_loop_over_one_record_gives_the_same(data, model):
    batch = VisitBatch.of(data.tokens, np.array([int(np.argmax(data.tokens.lengths))]))
    with torch.no_grad():
        h, c, states = torch.zeros(128), torch.zeros(128), []
        for x in model._steps(batch):
            gates = model.lstm.weight_ih_l0 @ x + model.lstm.weight_hh_l0 @ h
            i, f, g, o = (gates + model.lstm.bias_ih_l0 + model.lstm.bias_hh_l0).chunk(4)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * c.tanh()
            states.append(h)
        every = torch.stack(states)
        expected = torch.cat([h, every.mean(dim=0), every.amax(dim=0)])
        assert torch.allclose(model.features(batch)[0], expected, atol=1e-5)


def test_a_record_is_read_alike_whatever_stands_beside_it(data, model):
    rows = np.arange(60)
    together = lstm_logits(model, data.tokens, rows)
    alone = np.concatenate([lstm_logits(model, data.tokens, rows[[i]]) for i in rows])
    backwards = lstm_logits(model, data.tokens, rows[::-1].copy())[::-1]
    assert np.allclose(together, alone, atol=1e-5)
    assert np.allclose(together, backwards, atol=1e-5)


def test_values_ages_gaps_and_the_order_of_visits_move_the_output(data, model):
    row = np.array([int(np.argmax(data.tokens.lengths))])
    batch = VisitBatch.of(data.tokens, row)
    valued = int(model.value_slot.argmax())
    carrying = replace(batch, code=batch.code.index_fill(0, torch.tensor([0]), valued))
    with torch.no_grad():
        plain, base = model(batch), model(carrying)
        assert not torch.equal(model(replace(carrying, value=carrying.value + 1)), base)
        assert not torch.equal(model(replace(batch, age=batch.age + 1)), plain)
        assert not torch.equal(model(replace(batch, gap=batch.gap + 30)), plain)
        assert not torch.equal(model(replace(batch, code=batch.code.flip(0))), plain)


def test_a_fit_scores_every_row_repeats_to_the_byte_and_varies_with_the_seed(data, recipe):
    first, again, other = (fit_visit_lstm(data, recipe, seed=seed) for seed in (1, 1, 2))
    assert first.logits.shape == (len(data), data.grid.n_bins)
    assert np.array_equal(first.logits, again.logits)
    assert not np.array_equal(first.logits, other.logits)
    assert [epoch.best for epoch in first.history].count(True) == 1
    assert {"tuning_c", "tuning_brier", "tuning_nll"} <= set(first.history[0].metrics)
    assert first.n_parameters > 50_000


def test_held_out_outcomes_change_nothing(data, recipe):
    other = pl.when(pl.col("split") == "held_out")
    rows = data.rows.with_columns(
        duration=other.then(1.0).otherwise("duration"), event=other.then(1).otherwise("event")
    )
    altered = replace(data, rows=rows.cast(dict(data.rows.schema)))
    assert np.array_equal(fit_visit_lstm(data, recipe).logits, fit_visit_lstm(altered, recipe).logits)


def test_it_stands_in_the_table_by_name(data, recipe):
    table = simple_models(recipe)
    assert tuple(table) == NAMES == (*BASELINES, "lstm")
    fit = table["lstm"].fit(data, 0)
    assert table["lstm"].seeded
    assert fit.survival.shape == (len(data), 100)
    assert np.allclose(fit.survival, data.grid.survival(fit.logits, data.grid.curve_times()))
    assert fit.seconds > 0


def test_an_unknown_name_gives_the_nearest_and_a_missing_extra_the_command(monkeypatch):
    with pytest.raises(EhrError) as caught:
        check_names(["cox", "lstn"], "here")
    assert caught.value.code == Exit.CONFIG
    assert "lstm" in caught.value.fix
    monkeypatch.setattr("ehrsequencing.baselines.table.find_spec", lambda name: None)
    check_names(["cox", "lstm"], "here")
    with pytest.raises(EhrError) as caught:
        check_names(["random-survival-forest"], "here")
    assert caught.value.code == Exit.ENVIRONMENT


def planted_order(n=700, seed=0):
    """Four visits A, B, B, A or A, B, A, B … with the same counts and the same last times of both codes.

    The last two visits are B then A for everybody; whether the first two were A, B or B, A sets the hazard.
    """
    rng = np.random.default_rng(seed)
    swapped = rng.random(n) < 0.5
    time = dt.datetime(2020, 1, 1)
    codes = np.where(swapped[:, None], list("BANBA"), list("ABNBA"))
    gaps = rng.integers(5, 60, (n, 5))
    days = np.cumsum(gaps[:, ::-1], axis=1)[:, ::-1]  # before prediction_time, first visit first
    history = pl.DataFrame(
        {
            "subject_id": np.repeat(np.arange(n), 5),
            "prediction_time": [time] * (5 * n),
            "time": [time - dt.timedelta(days=int(day)) for day in days.ravel()],
            "code": codes.ravel(),
            "numeric_value": pl.Series([None] * (5 * n), dtype=pl.Float32),
        },
        schema_overrides={"prediction_time": pl.Datetime("us"), "time": pl.Datetime("us")},
    )
    death, censored = rng.exponential(np.where(swapped, 150.0, 1200.0)), rng.uniform(300, 900, n)
    duration, event = np.minimum(np.minimum(death, censored), 600.0), (death <= np.minimum(censored, 600)) * 1
    split = np.repeat(["train", "tuning", "held_out"], [n // 2, n // 5, n - n // 2 - n // 5])
    rows = pl.DataFrame(
        {
            "subject_id": np.arange(n),
            "prediction_time": pl.Series([time] * n, dtype=pl.Datetime("us")),
            "duration": duration,
            "event": event.astype(np.int8),
            "split": split,
        }
    )
    tokenizer = Tokenizer.fit(history, TokensConfig())
    train = split == "train"
    return SurvivalData(
        rows=rows,
        tokens=tokenize(history, rows, tokenizer),
        features=build_features(history, rows, FeatureSpec.fit(history, rows.filter(train), FeaturesConfig())),
        grid=TimeGrid.fit(duration[train], event[train], 600.0),
        tokenizer=tokenizer,
        cohort_fingerprint="made up",
    )


def test_it_learns_an_order_of_visits_that_counts_cannot_see():
    data = planted_order()
    at = data.index("held_out")
    targets = data.targets(at)
    outcome = targets.duration.numpy(), targets.event.numpy()
    recipe = RECIPES["medium"].within(BudgetConfig(max_epochs=15, patience=5))[0]
    seen = harrell_c(*outcome, data.grid.risk(fit_visit_lstm(data, recipe, size=ModelConfig(dropout=0)).logits[at]))
    unseen = [harrell_c(*outcome, BASELINES[name].fit(data, 0).risk[at]) for name in ("cox", "boosting", "wide")]
    assert seen > 0.7
    assert max(unseen) < 0.56


def test_empty_histories_and_a_single_visit_break_nothing(recipe):
    data = planted_order(120)
    first = data.tokens.take(np.arange(120))
    only = first.visit <= 0
    row = np.repeat(np.arange(120), first.lengths)
    arrays = {name: getattr(first, name)[only] for name in ("code", "value", "age", "visit", "gap", "day")}
    bare = replace(first, **arrays, offsets=np.append(0, np.cumsum(np.bincount(row[only], minlength=120))))
    fit = fit_visit_lstm(replace(data, tokens=bare), recipe)
    assert np.isfinite(fit.logits).all()
    assert any("no record had a visit" in note for note in fit.notes)


def test_competing_risks_give_it_an_output_for_every_bin_and_cause(recipe):
    data = planted_order(300)
    event = np.where(np.arange(300) % 3 == 0, 2 * data.rows["event"].to_numpy(), data.rows["event"].to_numpy())
    rows = data.rows.with_columns(pl.Series("event", event.astype(np.int8)))
    data = replace(data, rows=rows, causes=("outcome", "death"))
    fit = simple_models(recipe)["lstm"].fit(data, 0)
    assert fit.logits.shape == (300, data.grid.n_bins, 2)
    assert fit.cif.sum(axis=2) + fit.survival == pytest.approx(np.ones((300, 100)))
    assert np.allclose(fit.risk, data.grid.time_lost(fit.logits)[:, 0])
