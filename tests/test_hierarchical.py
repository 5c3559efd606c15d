"""The hierarchical encoder by its effect: what a visit is made of, what the timeline sees, every way it is used."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import get_args

import numpy as np
import polars as pl
import pytest
import torch

import test_attribution
import test_leak_every_visit as leak
import test_study
from ehrsequencing.attribution import explain
from ehrsequencing.batches import Batch
from ehrsequencing.bundle import Bundle, Encoder
from ehrsequencing.cohort import build_cohort
from ehrsequencing.config import IndexConfig, ModelConfig, OptimizerConfig, PretrainConfig, load_task
from ehrsequencing.errors import EhrError, Exit
from ehrsequencing.inference import predict, read_visits
from ehrsequencing.models import backends
from ehrsequencing.models.architectures import ARCHITECTURES
from ehrsequencing.models.behrt import BEHRTConfig, BEHRTModel, make_encoder
from ehrsequencing.models.behrt_survival import BEHRTForSurvival
from ehrsequencing.models.footprint import FootprintAudit
from ehrsequencing.models.forward import visit_logits
from ehrsequencing.models.hierarchical import HierarchicalBEHRT, Timeline
from ehrsequencing.models.lora import apply_lora_to_behrt, is_adapter, merge_lora
from ehrsequencing.models.strategies import STRATEGIES
from ehrsequencing.models.wide import fit_wide
from ehrsequencing.study import estimate, plan, run_study
from ehrsequencing.study.assemble import make_bundle
from ehrsequencing.study.data import prepare
from ehrsequencing.study.steps import pretrain, write_encoder
from ehrsequencing.training.finetune import finetune
from ehrsequencing.training.pretrain import pretrain as run_pretraining
from planted import planted
from test_pretraining_objectives import EVERYTHING, valued
from test_strategies import train, trainable
from tiny_batches import VOCAB, garbage_in_padding, random_batch, rows_of, shake, tiny_config

MASKS = ("bidirectional", "block_causal")
ROWS = [1, 3, 4]


def hierarchical(**settings) -> BEHRTConfig:
    relations = ("record", "past", "record", "past")
    return tiny_config(**{"architecture": "hierarchical", "relations": relations, **settings})


def encoder_of(**settings) -> HierarchicalBEHRT:
    torch.manual_seed(0)
    model = make_encoder(hierarchical(**settings)).eval()
    shake(model, 0.1)
    return model


def with_statics(batch: Batch) -> Batch:
    """The first visit's tokens made static: part of visit 0, without an age."""
    static = batch.visit == 1
    unaged = {"age": batch.age.masked_fill(static, 0.0), "age_known": batch.age_known & ~static}
    return replace(batch, visit=(batch.visit - 1).clamp_min(0), gap=batch.gap.masked_fill(static, 0.0), **unaged)


@pytest.fixture(scope="module")
def batch() -> Batch:
    return with_statics(random_batch(length=23))


def read(model, batch) -> dict[str, torch.Tensor]:
    with torch.no_grad():
        return {"tokens": model(batch), "pooled": model.pooled(batch), "visits": model.pooled_visits(batch)}


def test_a_visit_is_its_tokens_weighed_by_a_softmax_of_learned_scores(batch):
    """Against a loop over visits."""
    model = encoder_of()
    pool, heads = model.visit_pool, model.config.num_attention_heads
    visits, slot = Timeline.of(batch)
    with torch.no_grad():
        content = model.embeddings(batch)  # [T,H]
        found = pool(content, slot, visits.mask.numel()).unflatten(0, visits.mask.shape)
        row = batch.mask.nonzero()[:, 0]  # [T]
        number = batch.visit[batch.mask]  # [T]
        seen = 0
        for r in range(len(batch)):
            for v in range(int(batch.visit[r].max()) + 1):
                own = content[(row == r) & (number == v)]  # [n,H]
                weights = (own @ pool.score.weight.T).softmax(dim=0)  # [n,heads]
                whole = sum(
                    torch.cat([part * w for part, w in zip(token.chunk(heads), weight, strict=True)])
                    for token, weight in zip(own, weights, strict=True)
                )
                torch.testing.assert_close(found[r, v], whole * len(own) ** 0.5, rtol=1e-5, atol=1e-5)
                seen += len(own) > 1
    assert seen > 10


def test_the_timeline_has_each_visits_first_moment_and_its_number_of_tokens(batch):
    visits, slot = Timeline.of(batch)
    for r in range(len(batch)):
        for v in range(visits.mask.shape[1]):
            own = (batch.mask[r] & (batch.visit[r] == v)).nonzero()[:, 0]
            assert bool(visits.mask[r, v]) == (len(own) > 0)
            if len(own):
                told = [float(part[r, v]) for part in (visits.age, visits.gap, visits.visit, visits.value)]
                assert told == [float(batch.age[r, own[0]]), float(batch.gap[r, own[0]]), v, len(own)]
    assert torch.equal(slot, (torch.arange(len(batch))[:, None] * visits.mask.shape[1] + batch.visit)[batch.mask])


@pytest.mark.parametrize("attention", MASKS)
def test_padding_and_other_patients_change_nothing(batch, attention):
    model = encoder_of(attention=attention)
    whole, nonsense = read(model, batch), read(model, garbage_in_padding(batch))
    alone = read(model, rows_of(batch, ROWS, extra_padding=5))
    for name, found in whole.items():
        width = min(found.shape[1], alone[name].shape[1])
        for place, row in enumerate(ROWS):
            real = {"tokens": int(batch.mask[row].sum()), "visits": int(batch.visit[row].max()) + 1}.get(name, width)
            torch.testing.assert_close(alone[name][place, :real], found[row, :real], rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(nonsense[name][row, :real], found[row, :real], rtol=1e-5, atol=1e-5)


def test_padded_layout_of_other_devices_reads_the_same(batch, monkeypatch):
    model = encoder_of()
    packed = read(model, batch)
    monkeypatch.setattr(backends, "fitting", lambda *_: "padded")
    padded = read(model, batch)
    torch.testing.assert_close(padded["pooled"], packed["pooled"], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(padded["tokens"][batch.mask], packed["tokens"][batch.mask], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("attention", MASKS)
def test_the_order_of_tokens_within_a_visit_says_nothing(batch, attention):
    """Codes and values turned within each visit: vectors stay, and hidden states are turned likewise."""
    model = encoder_of(attention=attention)
    order = torch.arange(batch.mask.shape[1]).repeat(len(batch), 1)  # [B,L]
    for r in range(len(batch)):
        for v in range(int(batch.visit[r].max()) + 1):
            own = (batch.mask[r] & (batch.visit[r] == v)).nonzero()[:, 0]
            own = own[own > 0]  # [CLS] leads
            order[r, own] = own.roll(1)
    turned = {name: getattr(batch, name).gather(1, order) for name in ("code", "value", "has_value")}
    assert not torch.equal(turned["code"], batch.code)
    before, after = read(model, batch), read(model, replace(batch, **turned))
    torch.testing.assert_close(after["pooled"], before["pooled"], rtol=1e-4, atol=1e-5)
    hidden = before["tokens"].gather(1, order[..., None].expand_as(before["tokens"]))
    torch.testing.assert_close(after["tokens"][batch.mask], hidden[batch.mask], rtol=1e-4, atol=1e-5)


def test_when_and_how_many_is_told(batch):
    """Ages, gaps, the number of a visit and of its tokens each move the record's vector."""
    model = encoder_of()
    before = read(model, batch)["pooled"]
    dated = batch.mask & (batch.visit > 0)
    twice = replace(batch, code=torch.where(dated, 7, batch.code), has_value=batch.has_value & ~dated)
    fewer = replace(twice, mask=batch.mask & ~((torch.arange(23) == 22) & dated))  # one of the last visit's tokens
    changed = {
        "age": (replace(batch, age=batch.age + 9.0 * batch.age_known), before),
        "gap": (replace(batch, gap=batch.gap + 900.0 * dated), before),
        "tokens": (fewer, read(model, twice)["pooled"]),
    }
    for name, (other, was) in changed.items():
        assert (read(model, other)["pooled"] - was)[0].abs().max() > 1e-3, name


@pytest.mark.parametrize("name", ["code", "gap", "age"])
def test_under_the_block_causal_mask_no_bit_before_a_changed_visit_moves(batch, name):
    model = encoder_of(attention="block_causal")
    later = batch.mask & (batch.visit >= 3)
    other = {"code": torch.where(later, 11, batch.code), "gap": batch.gap + later * 50, "age": batch.age + later * 7}
    before, after = read(model, batch), read(model, replace(batch, **{name: other[name]}))
    assert torch.equal(after["visits"][:, :3], before["visits"][:, :3])
    assert not torch.equal(after["visits"][0, 3], before["visits"][0, 3])
    early = batch.mask & (batch.visit < 3)
    assert torch.equal(after["tokens"][early], before["tokens"][early])


@pytest.mark.parametrize("tokens", [4, 60, 97, 400, 790])
def test_a_record_cut_short_gives_the_same_bits_as_within_the_whole_one(tokens):
    """Across the lengths to which tiles are rounded, beside records of other lengths."""
    model, whole = encoder_of(attention="block_causal"), random_batch(rows=4, length=900)
    last = int(whole.visit[0, tokens])
    short = replace(whole, mask=whole.mask & ((whole.visit < last) | (torch.arange(4)[:, None] > 0)))
    alone = rows_of(short, [0])
    for other in (short, alone):
        found, expected = read(model, other)["visits"], read(model, whole)["visits"]
        assert torch.equal(found[0, :last], expected[0, :last])


def test_under_the_bidirectional_mask_later_visits_are_read(batch):
    model = encoder_of()
    other = replace(batch, code=torch.where(batch.mask & (batch.visit >= 3), 11, batch.code))
    assert (read(model, other)["tokens"] - read(model, batch)["tokens"])[0, 0].abs().max() > 1e-3


@pytest.fixture
def leaking_tests(monkeypatch):
    """The tests of leaks at every visit, with a hierarchical model in place of theirs."""
    torch.manual_seed(0)
    own = leak.MODEL.config
    names = ("vocab_size", "value_codes", "embedding_size", "hidden_size", "num_hidden_layers", "num_attention_heads")
    same = {name: getattr(own, name) for name in (*names, "attention", "predict_at", "n_bins")}
    model = BEHRTForSurvival(BEHRTConfig(**same, architecture="hierarchical", relations=("record", "past"))).eval()
    shake(model, 0.2)
    monkeypatch.setattr(leak, "MODEL", model)
    return model


@pytest.mark.parametrize("n_visits", [1, 2, 3, 4, 9, 30])
def test_no_bit_of_a_visits_hazards_depends_on_what_comes_later(leaking_tests, n_visits):
    leak.assert_blind(leak.example(n_visits))


def test_nor_does_it_where_anything_may_come_later(leaking_tests):
    leak.test_editing_adding_or_deleting_later_visits_changes_no_bit_of_earlier_hazards()


def test_a_timeline_that_sees_later_visits_is_caught(leaking_tests, monkeypatch):
    monkeypatch.setattr(leaking_tests.behrt.config, "attention", "bidirectional")
    with pytest.raises(AssertionError, match="differ with what comes later"):
        leak.assert_blind(leak.example(2))


def test_vectors_at_every_visit_are_those_of_the_states_so_far(batch):
    model = encoder_of(attention="block_causal")
    with torch.no_grad():
        found, states = model.pooled_visits(batch), model.encoded(batch).states
    for v in range(states.shape[1]):
        so_far = states[0, : v + 1]
        expected = torch.cat([states[0, v], so_far.amax(dim=0), so_far.mean(dim=0)])
        torch.testing.assert_close(found[0, v], expected, rtol=1e-5, atol=1e-6)


def test_lora_changes_nothing_at_first_and_merges_to_the_same(batch):
    model = encoder_of()
    before = read(model, batch)
    apply_lora_to_behrt(model, rank=4, alpha=8)
    names = [name for name, _ in model.named_parameters() if is_adapter(name)]
    assert len(names) == 2 * 4 * 2  # A and B of four projections in two layers
    assert all(torch.equal(read(model, batch)[name], before[name]) for name in before)
    shake(model, 0.1)
    adapted = read(model, batch)
    assert (adapted["pooled"] - before["pooled"]).abs().max() > 1e-2
    merge_lora(model)
    for name, found in read(model, batch).items():
        torch.testing.assert_close(found[batch.mask] if name == "tokens" else found,
                                   adapted[name][batch.mask] if name == "tokens" else adapted[name],
                                   rtol=1e-5, atol=1e-5)  # fmt: skip


@pytest.mark.parametrize("name", STRATEGIES)
def test_every_strategy_moves_what_it_trains_and_nothing_else(name):
    batch = with_statics(random_batch(rows=8, length=20))
    model = BEHRTForSurvival.from_encoder(encoder_of(dropout=0.0), strategy=name, head="mlp")
    expected = trainable(model)
    before = {n: t.clone() for n, t in model.state_dict().items()}
    audit = FootprintAudit(model)
    train(model, batch, audit=audit)
    audit.assert_after_epoch(model)
    assert not audit.notes  # every trained tensor had a gradient
    moved = {n for n, t in model.state_dict().items() if not torch.equal(t, before[n])}
    assert moved == expected
    if name in ("full", "from-scratch"):
        assert moved == {n for n, _ in model.named_parameters()}
    if name in ("frozen", "frozen-ridge", "frozen-random"):
        assert all(n.startswith("hazard_head.") for n in moved)


def test_visits_of_one_token_leave_nothing_to_weigh_and_that_is_told():
    batch = random_batch(rows=8, length=9)
    batch = replace(batch, visit=torch.arange(9).expand(8, 9) * batch.mask)
    model = BEHRTForSurvival.from_encoder(encoder_of(), strategy="full", head="mlp")
    audit = FootprintAudit(model)
    train(model, batch, audit=audit)
    audit.assert_after_epoch(model)
    assert audit.notes == ["behrt.visit_pool.score.weight had no gradient: no visit had two tokens"]


@pytest.mark.parametrize("attention", MASKS)
def test_every_objective_is_learned_under_the_same_loop(attention):
    tokenizer, store = planted(valued(160), causal=attention == "block_causal")
    config = PretrainConfig(
        epochs=6, batch_size=16, objectives=EVERYTHING, optimizer=OptimizerConfig(learning_rate=5e-3), rank=8
    )
    size = ModelConfig(dropout=0.0, attention=attention, architecture="hierarchical")
    result = run_pretraining(store, tokenizer, config, size)
    history = result.record["history"]
    for name in EVERYTHING:
        figure = f"{name.replace('-', '_')}_loss"
        assert min(epoch[figure] for epoch in history) < history[0][figure], name
    assert result.record["time_to_event_loss"] < result.record["time_to_event_biases"]
    assert result.record["architecture"] == "hierarchical"
    assert type(result.model.behrt) is HierarchicalBEHRT


def test_masked_codes_alone_are_learned_from_the_codes_around_them():
    """Who has A in one visit has B in the next: only the timeline can tell."""
    records = [[(0, ["X", "A" if n % 2 else "C"]), (10, ["X", "B" if n % 2 else "D"])] for n in range(200)]
    tokenizer, store = planted(records)
    config = PretrainConfig(
        epochs=12,
        objectives={"masked-codes": 1.0},
        cut_fraction=0.0,
        mask_fraction=0.2,
        validation_fraction=0.3,
        optimizer=OptimizerConfig(learning_rate=5e-3),
    )
    record = run_pretraining(store, tokenizer, config, ModelConfig(dropout=0.0, architecture="hierarchical")).record
    losses = [epoch["validation_loss"] for epoch in record["history"]]
    assert min(losses) < 0.5 * losses[0]
    assert record["accuracy"] > 0.85  # without the other visit: X, and one of two by a coin: 0.75 at best


@pytest.fixture(scope="module")
def encoder(dataset) -> Encoder:
    config = PretrainConfig(epochs=1, batch_size=32)
    return pretrain(dataset, config, model=ModelConfig(dropout=0.0, architecture="hierarchical"))


def test_an_encoder_comes_back_from_its_folder_as_it_was(encoder, batch, tmp_path):
    assert type(encoder.model) is HierarchicalBEHRT
    encoder.save(tmp_path / "one")
    again = Encoder.load(tmp_path / "one")
    again.save(tmp_path / "two")
    weights = [(tmp_path / place / "model.safetensors").read_bytes() for place in ("one", "two")]
    assert weights[0] == weights[1]
    small = replace(batch, code=batch.code.clamp_max(encoder.tokenizer.vocab_size - 1))
    for model in (again.model, BEHRTModel.from_pretrained(tmp_path / "one").eval()):
        assert type(model) is HierarchicalBEHRT
        assert torch.equal(read(model, small)["pooled"], read(encoder.model.eval(), small)["pooled"])


@pytest.mark.parametrize("strategy", ["frozen-ridge", "lora", "full"])
def test_a_bundle_predicts_what_the_run_predicted(dataset, encoder, recipe, strategy, tmp_path):
    task = load_task(dataset.root / "task.yaml")
    prepared = prepare(dataset, build_cohort(dataset, task), encoder)
    fitted = finetune(prepared.data, strategy, recipe, encoder.model)
    bundle = make_bundle(prepared, task, fitted, fit_wide(prepared.data), {"seed": 0})
    bundle.save(tmp_path / "bundle")
    loaded = Bundle.load(tmp_path / "bundle")
    assert type(loaded.model.behrt) is HierarchicalBEHRT
    direct, again = (predict(found, dataset, row=strategy) for found in (bundle, loaded))
    assert np.array_equal(again.risk, direct.risk)
    assert direct.risk.std() > 0


def test_prediction_at_every_visit_is_the_same_as_reading_each_prefix(dataset, recipe):
    own = load_task(dataset.root / "task.yaml")
    changes = {"index": IndexConfig(after_history_days=0), "evaluate_at": own.index, "predict_at": "every_visit"}
    made = build_cohort(dataset, own.model_copy(update=changes))
    third = pl.col("subject_id") % 3 == 0
    cohort = replace(made, table=made.table.filter(third), visits=made.visits.filter(third))
    kind = ModelConfig(dropout=0.0, architecture="hierarchical", attention="block_causal")
    encoder = pretrain(dataset, PretrainConfig(epochs=1, batch_size=32), model=kind)
    data = prepare(dataset, cohort, encoder).data
    model = finetune(data, "lora", recipe, encoder.model).model.eval()
    rows = data.visits.index("held_out")[::11]
    whole = visit_logits(model, data.visits.places.take(rows))
    for place, row in enumerate(rows):
        alone = visit_logits(model, read_visits(dataset, data.visits.rows[[row]], cohort.task, encoder.tokenizer))
        assert np.array_equal(alone[0], whole[place])


def test_integrated_gradients_add_up(dataset, monkeypatch):
    monkeypatch.setattr(test_attribution, "tiny_config", hierarchical)
    bundle = test_attribution.Untrained(dataset, load_task(dataset.root / "task.yaml")).bundle("lora")
    assert type(bundle.model.behrt) is HierarchicalBEHRT
    found = explain(bundle, dataset, row="lora", patients=6)
    assert found.completeness <= test_attribution.TOLERANCE
    moved = found.patients["risk"] - found.patients["baseline_risk"]
    assert moved.abs().mean() > 10 * test_attribution.TOLERANCE
    predicted = test_attribution.predicted(bundle, dataset, found, bundle.grid.tau)
    np.testing.assert_allclose(found.patients["risk"], predicted, atol=1e-6)


def test_in_training_codes_are_hidden_from_whole_records(batch):
    """All but a few: what is hidden wherever it stands cannot move the vectors."""
    model = encoder_of(code_dropout=0.5, dropout=0.0).train()
    torch.manual_seed(3)
    first = model.pooled(batch)
    torch.manual_seed(3)
    assert torch.equal(model.pooled(batch), first)
    assert (model.pooled(batch) - first).abs().max() > 1e-3


def test_the_table_the_settings_and_the_configuration_name_the_same():
    assert set(get_args(ModelConfig.model_fields["architecture"].annotation)) == set(ARCHITECTURES)
    for name in ARCHITECTURES:
        config = BEHRTConfig.small(VOCAB, architecture=name)
        again = BEHRTConfig.from_dict(config.to_dict())
        assert type(make_encoder(again)) is type(make_encoder(config))
        assert BEHRTForSurvival(config).behrt.config.architecture == name
    assert BEHRTConfig.small(VOCAB).relations == ("record", "past", "visit", "past")
    assert BEHRTConfig.small(VOCAB, architecture="hierarchical").relations == ("record", "past", "record", "past")


def test_what_it_cannot_be_is_refused():
    slips = {
        "unknown architecture 'hierarchial'": lambda: BEHRTConfig.small(VOCAB, architecture="hierarchial"),
        "relation 'visit' under": lambda: hierarchical(relations=("record", "visit")),
        "BEHRTModel was asked": lambda: BEHRTModel(hierarchical()),
        "HierarchicalBEHRT was asked": lambda: HierarchicalBEHRT(tiny_config()),
    }
    for words, slip in slips.items():
        with pytest.raises(EhrError, match=words) as caught:
            slip()
        assert caught.value.code == Exit.CONFIG
        assert (
            "hierarchical" in f"{caught.value}".lower() or "record" in caught.value.fix or "Model" in caught.value.fix
        )


def test_the_command_line_makes_one_and_a_slip_is_told(dataset, tmp_path):
    def make(architecture: str) -> str:
        return write_encoder(dataset.root, tmp_path / "encoder", epochs=1, architecture=architecture)

    with pytest.raises(EhrError, match="architecture") as caught:
        make("hierarchial")
    assert caught.value.code == Exit.CONFIG
    assert not (tmp_path / "encoder").exists()
    assert "codes" in make("hierarchical")
    assert type(Encoder.load(tmp_path / "encoder").model) is HierarchicalBEHRT


def test_a_study_names_its_architecture_and_its_estimate_is_of_it(tmp_path, monkeypatch):
    kind = {"architecture": "hierarchical"}
    path = test_study.write(tmp_path, model=kind, strategies=["lora", "full"], seeds=[0], baselines=[], explain=0)
    timed = []
    monkeypatch.setattr(estimate, "BEHRTForSurvival", lambda config: timed.append(config) or BEHRTForSurvival(config))
    assert "would pretrain 1 encoder" in plan(path)
    assert [config.architecture for config in timed] == ["hierarchical"]
    run_study(path, tmp_path / "out")
    bundles = [Bundle.load(place.parent) for place in (tmp_path / "out").rglob("bundle.json")]
    assert len(bundles) >= 2
    for bundle in bundles:
        assert type(bundle.model.behrt) is HierarchicalBEHRT
        assert bundle.facts["architecture"] == "hierarchical"


def test_an_encoder_saved_before_there_were_architectures_is_a_behrt(tmp_path):
    make_encoder(tiny_config()).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["architecture"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert type(BEHRTModel.from_pretrained(tmp_path)) is BEHRTModel


def test_another_architecture_does_not_fit_an_encoders_weights():
    with pytest.raises(EhrError, match="do not fit") as caught:
        BEHRTForSurvival.from_encoder(make_encoder(tiny_config()), architecture="hierarchical")
    assert caught.value.code == Exit.BUNDLE


def test_hazards_at_every_visit_need_the_block_causal_mask():
    with pytest.raises(EhrError) as caught:
        BEHRTForSurvival.from_encoder(encoder_of(), predict_at="every_visit")
    assert caught.value.code == Exit.LEAKAGE
