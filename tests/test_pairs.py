"""Pairs of codes: their columns by hand, what a search finds and does not find, and how a model reads them."""

from __future__ import annotations

import datetime as dt
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
import torch

from ehrsequencing import pairs
from ehrsequencing.attribution.explaining import _Explained
from ehrsequencing.attribution.records import Records
from ehrsequencing.attribution.risk import RowRisk
from ehrsequencing.baselines import BASELINES
from ehrsequencing.batches import SurvivalData, VisitData, VisitPlaces, collate
from ehrsequencing.config import TRAIN, FeaturesConfig, TaskConfig, TokensConfig
from ehrsequencing.errors import EhrError
from ehrsequencing.features import FeatureSpec, build_features, build_pairs, widespread
from ehrsequencing.models.adapter_files import load_adapter, save_adapter, switch_adapter
from ehrsequencing.models.behrt import BEHRTConfig, BEHRTModel
from ehrsequencing.models.behrt_survival import BEHRTForSurvival
from ehrsequencing.models.pair_reader import read_pairs
from ehrsequencing.models.pair_search import LinearPart, find_pairs, searched_rows, still_better
from ehrsequencing.models.wide import fit_wide
from ehrsequencing.pairs import Pair
from ehrsequencing.study.assemble import make_bundle
from ehrsequencing.study.data import Prepared
from ehrsequencing.study.telling_pairs import with_pairs
from ehrsequencing.timegrid import TimeGrid
from ehrsequencing.tokens import Tokenizer, tokenize
from ehrsequencing.training.finetune import FeatureCache, finetune
from ehrsequencing.training.recipes import RECIPES

NOW = dt.datetime(2020, 6, 30, 12)
ORDER, SAME = Pair("before", "A", "B"), Pair("together", "A", "B")


def events(*found: tuple[int, str, int | None]) -> pl.DataFrame:
    """(subject, code, days before NOW; None: static)."""
    return pl.DataFrame(
        {
            "subject_id": [subject for subject, _, _ in found],
            "prediction_time": [NOW] * len(found),
            "time": [None if day is None else NOW - dt.timedelta(days=day) for _, _, day in found],
            "code": [code for _, code, _ in found],
            "numeric_value": [None] * len(found),
        },
        schema={
            "subject_id": pl.Int64,
            "prediction_time": pl.Datetime("us"),
            "time": pl.Datetime("us"),
            "code": pl.String,
            "numeric_value": pl.Float32,
        },
    )


HISTORY = events(
    (1, "A", 10), (1, "B", 5), (1, "A", 1),
    (2, "B", 400), (2, "A", 300), (2, "B", 300), (2, "A", 20),
    (3, "A", 7), (3, "B", 7),
    (4, "A", 7),
    (5, "A", None), (5, "B", 3),
)  # fmt: skip
KEYS = {"subject_id": pl.Int64, "prediction_time": pl.Datetime("us")}
ROWS = pl.DataFrame({"subject_id": range(1, 7), "prediction_time": [NOW] * 6}, schema_overrides=KEYS)
BY_HAND = {
    "before": [1, -1, 0, 0, 0, 0],
    "together": [0, np.exp(-300 / 365), np.exp(-7 / 365), 0, 0, 0],
}


@pytest.mark.parametrize("kind", list(BY_HAND))
def test_columns_are_as_by_hand(kind):
    found = build_pairs(HISTORY, ROWS, (Pair(kind, "A", "B"), Pair(kind, "B", "A")))
    np.testing.assert_allclose(found.values[:, 0], BY_HAND[kind], rtol=1e-6)
    np.testing.assert_allclose(found.values[:, 1], np.array(BY_HAND[kind]) * (-1 if kind == "before" else 1), rtol=1e-6)
    assert found.names[0] == {"before": "before:A > B", "together": "together:A & B"}[kind]


def test_tokens_say_the_same():
    tokenizer = Tokenizer.fit(HISTORY, TokensConfig(min_subjects=1))
    batch = collate(tokenize(HISTORY, ROWS, tokenizer), np.arange(6))
    a, b = tokenizer.encode("A"), tokenizer.encode("B")
    found = read_pairs(batch, [["before", a, b], ["before", b, a], ["together", a, b]])
    expected = np.stack([BY_HAND["before"], -np.array(BY_HAND["before"]), BY_HAND["together"]], axis=1)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-5)
    assert read_pairs(batch, []).shape == (6, 0)


def test_the_specification_brings_its_pairs_along():
    config = FeaturesConfig(min_subjects=1)
    plain = FeatureSpec.fit(HISTORY, ROWS, config)
    spec = replace(plain, pairs=(ORDER, SAME))
    again = FeatureSpec.from_json(spec.to_json())
    assert again.pairs == spec.pairs
    assert again.fingerprint == spec.fingerprint != plain.fingerprint
    whole = build_features(HISTORY, ROWS, again)
    np.testing.assert_array_equal(whole.values[:, -2:], build_pairs(HISTORY, ROWS, spec.pairs).values)
    assert whole.names == [*plain.names, ORDER.name, SAME.name]
    older = {name: part for name, part in spec.to_json().items() if name != "pairs"}
    assert FeatureSpec.from_json(older).pairs == ()


def drawn(n: int, effect: float, seed: int, codes: str = "ABCDEFGH") -> tuple[SurvivalData, FeatureSpec, pl.DataFrame]:
    """Records of codes at random days; A before B multiplies the hazard by exp(effect), the other order divides it."""
    rng = np.random.default_rng(seed)
    day = rng.integers(1, 1_000, (n, len(codes)))
    has = rng.random((n, len(codes))) < 0.6
    history = events(*((i, codes[j], int(day[i, j])) for i in range(n) for j in range(len(codes)) if has[i, j]))
    sign = np.where(has[:, 0] & has[:, 1], np.sign(day[:, 0] - day[:, 1]), 0)
    time = rng.exponential(np.exp(-effect * sign))
    duration, event = np.minimum(time, 1.5), (time < 1.5).astype(np.int8)
    rows = pl.DataFrame(
        {
            "subject_id": np.arange(n),
            "prediction_time": [NOW] * n,
            "duration": duration,
            "event": event,
            "split": np.where(np.arange(n) % 5 < 3, "train", np.where(np.arange(n) % 5 == 3, "tuning", "held_out")),
        }
    ).with_columns(pl.col("prediction_time").cast(pl.Datetime("us")))
    train = rows.filter(pl.col("split") == TRAIN)
    tokenizer = Tokenizer.fit(history, TokensConfig(min_subjects=1))
    spec = FeatureSpec.fit(history, train, FeaturesConfig())
    data = SurvivalData(
        rows=rows,
        tokens=tokenize(history, rows, tokenizer),
        features=build_features(history, rows, spec),
        grid=TimeGrid.fit(train["duration"].to_numpy(), train["event"].to_numpy(), 1.4),
        tokenizer=tokenizer,
        cohort_fingerprint="drawn",
    )
    return data, spec, history


def found_in(n: int, effect: float, seed: int) -> tuple[Pair, ...]:
    data, spec, history = drawn(n, effect, seed)
    rows = searched_rows(data)
    return find_pairs(data, widespread(history, data.rows[rows], spec.config), rows, LinearPart.of(data))


def test_a_planted_order_is_found_and_nothing_else():
    assert found_in(1_500, 0.8, 1) == (Pair("before", "A", "B"),)


def test_a_pair_that_says_the_same_is_not_taken_twice():
    """A code that is always recorded with A orders B as A does: told by itself, it tells nothing beside the first."""
    data, _, history = drawn(1_500, 0.8, 1)
    twin = history.filter(pl.col("code") == "A").with_columns(code=pl.lit("TWIN"))
    history = pl.concat([history, twin])
    spec = FeatureSpec.fit(history, data.rows.filter(pl.col("split") == TRAIN), FeaturesConfig())
    data = replace(data, features=build_features(history, data.rows, spec))
    rows = searched_rows(data)
    found = find_pairs(data, widespread(history, data.rows[rows], spec.config), rows, LinearPart.of(data))
    assert len(found) == 1
    assert {found[0].first, found[0].second} in ({"A", "B"}, {"TWIN", "B"})


def test_where_nothing_is_to_be_found_hardly_anything_is():
    """Of 20 cohorts one at most is expected to give a pair; more than four have a chance of 0.3%."""
    assert sum(len(found_in(500, 0.0, seed)) > 0 for seed in range(20)) <= 4


def test_what_one_code_says_is_no_pair():
    """A code with a strong effect of its own makes no pair with its neighbours."""
    data, spec, history = drawn(1_500, 0.0, 3)
    rows = searched_rows(data)
    has = np.isin(data.rows["subject_id"].to_numpy(), history.filter(pl.col("code") == "A")["subject_id"].to_numpy())
    time = np.random.default_rng(0).exponential(np.exp(-1.5 * has))
    outcome = [pl.Series("duration", np.minimum(time, 1.4)), pl.Series("event", (time < 1.4).astype(np.int8))]
    data = replace(data, rows=data.rows.with_columns(outcome))
    assert find_pairs(data, widespread(history, data.rows[rows], spec.config), rows, LinearPart.of(data)) == ()


@pytest.mark.parametrize("says", ["since the first", "how often"])
def test_a_strong_effect_of_one_code_makes_no_pair(says):
    data, spec, history = drawn(2_500, 0.0, 4)
    if says == "how often":
        rng = np.random.default_rng(1)
        often = [(i, "A", int(day)) for i in range(2_500) for day in rng.integers(1, 1_000, rng.poisson(1.5))]
        history = pl.concat([history, events(*often)])
    own = (
        history.filter(pl.col("code") == "A")
        .group_by("subject_id")
        .agg(pl.len().alias("count"), first=(NOW - pl.col("time").min()).dt.total_days())
    )
    found = data.rows.join(own, on="subject_id", how="left", maintain_order="left").fill_null(0)
    effect = found["first"].to_numpy() / 400 if says == "since the first" else np.log1p(found["count"].to_numpy())
    time = np.random.default_rng(0).exponential(np.exp(1 - effect))
    outcome = [pl.Series("duration", np.minimum(time, 1.4)), pl.Series("event", (time < 1.4).astype(np.int8))]
    rows = data.rows.with_columns(outcome)
    spec = FeatureSpec.fit(history, rows.filter(pl.col("split") == TRAIN), FeaturesConfig())
    data = replace(data, rows=rows, features=build_features(history, rows, spec))
    at = searched_rows(data)
    assert find_pairs(data, widespread(history, data.rows[at], spec.config), at, LinearPart.of(data)) == ()


def test_rows_of_a_subject_are_no_independent_evidence():
    """The same 250 patients twelve times over say as little as once."""
    data, spec, history = drawn(420, 0.0, 6)
    many = np.tile(np.arange(420), 12)
    minutes = pl.Series("prediction_time", [NOW + dt.timedelta(minutes=int(i)) for i in np.repeat(np.arange(12), 420)])
    rows = data.rows[many].with_columns(minutes.cast(pl.Datetime("us")))
    again = pl.concat(
        [history.with_columns(pl.lit(NOW + dt.timedelta(minutes=i)).cast(pl.Datetime("us")).alias("prediction_time"))
         for i in range(12)]
    )  # fmt: skip
    data = replace(
        data,
        rows=rows,
        tokens=tokenize(again, rows, data.tokenizer),
        features=build_features(again, rows, spec),
    )
    at = searched_rows(data)
    assert len(at)
    assert find_pairs(data, widespread(again, data.rows[at], spec.config), at, LinearPart.of(data)) == ()


def test_joining_in_blocks_changes_nothing(monkeypatch):
    whole = widespread(HISTORY, ROWS, FeaturesConfig(min_subjects=1))
    monkeypatch.setattr(pairs, "JOINED", 1)
    parts = widespread(HISTORY, ROWS, FeaturesConfig(min_subjects=1))
    for name in ("row", "pair", "day", "earliest", "latest", "days"):
        np.testing.assert_array_equal(getattr(whole, name), getattr(parts, name))


def test_rows_in_another_order_have_their_own_pairs(paired):
    encoder = BEHRTModel(BEHRTConfig.small(paired.tokenizer.vocab_size, num_hidden_layers=1))
    model = finetune(paired, "frozen-ridge", RECIPES["small"], encoder).model
    order = np.random.default_rng(0).permutation(len(paired))
    mixed = replace(
        paired, rows=paired.rows[order], tokens=paired.tokens.take(order), features=paired.features.take(order)
    )
    cache = FeatureCache()
    cache.get(model, paired)
    torch.testing.assert_close(cache.get(model, mixed), FeatureCache().get(model, mixed))


def test_an_adapter_brings_its_own_pairs(paired, tmp_path):
    """Over a model with other pairs the file is refused; a switch takes its pairs along."""
    encoder = BEHRTModel(BEHRTConfig.small(paired.tokenizer.vocab_size, num_hidden_layers=1))
    recipe = replace(RECIPES["small"], epochs=1)
    own = finetune(paired, "lora", recipe, encoder).model
    other = finetune(replace(paired, pairs=(Pair("together", "C", "D"),)), "lora", recipe, encoder).model
    save_adapter(own, tmp_path / "own.safetensors")
    with pytest.raises(EhrError, match="other pairs"):
        load_adapter(other, tmp_path / "own.safetensors")
    switched = switch_adapter(other, tmp_path / "own.safetensors").eval()
    batch = collate(paired.tokens, np.arange(40))
    torch.testing.assert_close(switched(batch), own.eval()(batch))


def test_few_outcomes_are_not_searched():
    data, spec, history = drawn(150, 2.0, 0)
    assert len(searched_rows(data)) == 0
    assert with_pairs(data, spec, history) == (data, spec)


def test_no_pairs_are_searched_where_the_settings_say_so():
    data, spec, history = drawn(1_500, 0.8, 1)
    off = replace(spec, config=spec.config.model_copy(update={"pair_codes": 0}))
    assert with_pairs(data, off, history) == (data, off)


def test_columns_that_predict_tuning_worse_are_refused():
    data, _, _ = drawn(1_500, 0.0, 5)
    train = (data.rows["split"] == TRAIN).to_numpy()
    leaky = np.where(train, data.rows["event"].to_numpy(), 1 - data.rows["event"].to_numpy())[:, None]
    assert not still_better(data, LinearPart.of(data), leaky.astype(np.float64))


@pytest.fixture(scope="module")
def paired():
    return with_pairs(*drawn(1_500, 0.8, 1))[0]


def test_a_head_reads_what_its_encoder_does_not_say(paired):
    """A random encoder knows no order; with the pair beside it the frozen head ranks by it."""
    torch.manual_seed(0)
    encoder = BEHRTModel(BEHRTConfig.small(paired.tokenizer.vocab_size, num_hidden_layers=1))
    cache = FeatureCache()
    with_pair = finetune(paired, "frozen-ridge", RECIPES["small"], encoder, cache=cache)
    without = finetune(replace(paired, pairs=()), "frozen-ridge", RECIPES["small"], encoder, cache=cache)
    assert with_pair.model.config.n_features == without.model.config.n_features + 1
    assert with_pair.tuning(paired)["tuning_c"] > without.tuning(paired)["tuning_c"] + 0.05
    assert cache.encoder_passes == 1


def test_a_model_with_pairs_comes_back_from_its_folder(paired, tmp_path):
    encoder = BEHRTModel(BEHRTConfig.small(paired.tokenizer.vocab_size, num_hidden_layers=1))
    fitted = finetune(paired, "frozen-ridge", RECIPES["small"], encoder)
    fitted.model.save_pretrained(tmp_path)
    again = BEHRTForSurvival.from_pretrained(tmp_path)
    batch = collate(paired.tokens, np.arange(50))
    torch.testing.assert_close(again(batch), fitted.model.eval()(batch))
    assert [list(pair) for pair in again.config.pairs] == [list(pair) for pair in fitted.model.config.pairs] != []


def test_attributions_to_codes_and_pairs_sum_to_the_change_in_risk():
    data, spec, history = drawn(1_500, 0.8, 1)
    data, spec = with_pairs(data, spec, history)
    encoder = BEHRTModel(BEHRTConfig.small(data.tokenizer.vocab_size, num_hidden_layers=1))
    fitted = finetune(data, "frozen-ridge", RECIPES["small"], encoder)
    task = TaskConfig(name="t", index={"age": 50}, outcome="X", horizon_days=1.4)
    bundle = make_bundle(Prepared(data, spec, data.grid.tau), task, fitted, fit_wide(data), {})
    both = history.group_by("subject_id").agg(pl.col("code").is_in(["A", "B"]).sum()).filter(pl.col("code") == 2)
    rows = data.rows.filter(pl.col("subject_id").is_in(both["subject_id"].to_list())).head(20)
    _, row = bundle.row(None)
    explained = _Explained.of(bundle, RowRisk.of(row, bundle.grid, 1.0), "mask", 1e-4)
    people, table = explained.attribute(Records.of_history(bundle, history, rows, row))
    summed = table.group_by("subject_id").agg(pl.col("attribution").sum()).sort("subject_id")["attribution"].to_numpy()
    np.testing.assert_allclose(summed, (people["risk"] - people["baseline_risk"]).to_numpy(), atol=2e-3)
    by_code = table.group_by("code").agg(pl.col("attribution").abs().sum()).sort("attribution", descending=True)
    assert set(by_code["code"].head(2)) == {"A", "B"}


def test_predictions_at_every_visit_search_no_pairs(paired):
    """Heads at every visit could not read them, and `wide` shall not have what they lack."""
    data, spec, history = drawn(1_500, 0.8, 1)
    places = VisitPlaces(data.tokens, np.arange(len(data)), np.ones(len(data), dtype=np.int64))
    at_visits = VisitData(data.rows, places, np.arange(len(data)), data.grid)
    visited = replace(data, visits=at_visits)
    assert with_pairs(visited, spec, history) == (visited, spec)


def test_wide_names_the_pairs_it_reads(paired):
    assert "before:A > B" in " ".join(BASELINES["wide"].fit(paired, 0).notes)
