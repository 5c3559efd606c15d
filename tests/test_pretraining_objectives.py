"""Each pretraining objective learns what was planted for it, reads nothing of the future, and is kept and resumed."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import get_args

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from ehrsequencing.batches import collate, cut_at_random, micro_batches
from ehrsequencing.bundle import Encoder
from ehrsequencing.config import (
    TOKEN_BUDGET,
    ModelConfig,
    OptimizerConfig,
    PretrainConfig,
    PretrainingObjectiveName,
    TaskConfig,
    load_task,
    parse,
)
from ehrsequencing.errors import EhrError, Exit
from ehrsequencing.models.behrt import BEHRTModel
from ehrsequencing.models.pretraining import BEHRTForMaskedLM, mask_tokens
from ehrsequencing.study.data import kept_from_outcomes
from ehrsequencing.study.steps import pretrain as pretrain_dataset
from ehrsequencing.study.steps import weights_of
from ehrsequencing.training.pretrain import Mixture, pretrain
from ehrsequencing.training.pretraining_objectives import OBJECTIVES
from ehrsequencing.training.pretraining_parts import Training
from ehrsequencing.training.resume import Resume, StateStore
from ehrsequencing.training.told import learned
from interrupted import KillAfter, KilledError
from planted import planted
from tiny_batches import shake

MASKS = ("bidirectional", "block_causal")
EVERYTHING = {"masked-codes": 1.0, "masked-values": 0.5, "next-visit": 1.0, "time-to-event": 2.0, "record-summary": 1.0}
FAST = OptimizerConfig(learning_rate=5e-3)


def followed(n: int = 240, seed: int = 0) -> list:
    """Half of the subjects have A, and B exactly 30 days later; the others C, and B (if ever) much later."""
    g = np.random.default_rng(seed)
    records = []
    for number in range(n):
        if number % 2:
            records.append([(0, ["X"]), (10, ["A"]), (40, ["B"]), (400, ["Y"])])
        else:
            records.append([(0, ["X"]), (10, ["C"]), (40, ["D"]), (float(g.integers(300, 400)), ["B"]), (400, ["Y"])])
    return records


def valued(n: int) -> list:
    """The same records, each visit with a value."""
    return [[(day, [*codes, ("V", float((i + n) % 7))]) for i, (day, codes) in enumerate(r)] for r in followed(n)]


def learn(objectives, records, attention="bidirectional", epochs=6, **settings):
    tokenizer, store = planted(records, causal=attention == "block_causal")
    config = PretrainConfig(
        epochs=epochs,
        batch_size=16,
        objectives=objectives,
        optimizer=FAST,
        rank=8,
        **{"mask_fraction": 0.1, **settings},
    )
    return tokenizer, store, pretrain(store, tokenizer, config, ModelConfig(dropout=0.0, attention=attention))


def vectors_after(result, tokenizer, records, attention):
    """Pooled vectors of two records that end with their second visit, A or C."""
    short = [record[:2] for record in records[:2]]
    config = PretrainConfig(objectives={"time-to-event": 1})
    longer = [[*record, (50, ["X"])] for record in short]
    _, store = planted(longer, causal=attention == "block_causal")
    store = recoded(store, planted(longer)[0], tokenizer)
    mixture = Mixture(
        Training.of(result.model, store, tokenizer, config, 0), result.heads, np.arange(2), store, np.arange(2)
    )
    return at_second_visit(mixture, store)


def recoded(store, old, new):
    """The store's codes as another tokenizer numbers them."""
    ids = np.array([number if number < 4 else new.encode(code) for number, code in enumerate(old.codes)])
    return replace(store, code=ids[store.code].astype(np.int32))


def at_second_visit(mixture, store):
    from ehrsequencing.training.futures import Moments, cut_after

    row = np.repeat(np.arange(len(store)), store.lengths)
    day = np.array([store.day[(row == r) & (store.visit == 2)].min() for r in range(len(store))], dtype=np.float64)
    moments = Moments(np.arange(len(store)), np.full(len(store), 2), day)
    read = store if mixture.training.causal else cut_after(store, moments)
    with torch.no_grad():
        part = mixture._encoded(store, read, moments, np.arange(len(store)), torch.Generator())
    return part.future.vectors


@pytest.mark.parametrize("attention", MASKS)
def test_time_to_event_learns_that_b_follows_a_after_a_month(attention):
    records = followed()
    tokenizer, _, result = learn({"time-to-event": 1.0}, records, attention)
    assert result.record["time_to_event_loss"] < result.record["time_to_event_biases"] - 0.3
    losses = [epoch["time_to_event_loss"] for epoch in result.record["history"]]
    assert losses[-1] < losses[0]
    head = result.heads["time-to-event"]
    after_c, after_a = vectors_after(result, tokenizer, records, attention)
    slot = head.codes.tolist().index(tokenizer.encode("B"))
    never = torch.zeros(1, len(head.codes), dtype=torch.bool)
    piece = int(torch.bucketize(torch.tensor(30.0), head.edges[1:].contiguous()))
    with torch.no_grad():
        hazard_a, hazard_c = (float(head(v[None], never)[0, slot, piece].exp()) for v in (after_a, after_c))
    assert hazard_a > 5 * hazard_c


@pytest.mark.parametrize("attention", MASKS)
def test_next_visit_learns_what_follows_what(attention):
    records = followed()
    tokenizer, _, result = learn({"next-visit": 1.0}, records, attention)
    assert result.record["next_visit_loss"] < result.record["next_visit_marginal"] - 0.3
    after_c, after_a = vectors_after(result, tokenizer, records, attention)
    codes = result.model.behrt.embeddings.code_embedding.weight
    logits = result.heads["next-visit"](torch.stack([after_c, after_a]), codes)
    b, d = tokenizer.encode("B"), tokenizer.encode("D")
    assert logits[1, b] > logits[1, d] + 1
    assert logits[0, d] > logits[0, b] + 1


@pytest.mark.parametrize("attention", MASKS)
def test_masked_values_learns_values_that_other_codes_tell(attention):
    """V is high with H and low with L in the same visit."""
    g = np.random.default_rng(0)
    records = []
    for _ in range(300):
        high = g.random() < 0.5
        value = (10.0 if high else 2.0) + 0.3 * g.normal()
        records.append([(0, ["X"]), (10, ["H" if high else "L", ("V", float(value))])])
    _, _, result = learn({"masked-values": 1.0}, records, attention, epochs=20, mask_fraction=0.3)
    assert result.record["masked_values_loss"] < 0.5 * result.record["masked_values_median"]


def test_masked_codes_learns_beside_the_others():
    records = [[(0, [a, a.lower()]), (30, [a, a.lower()])] for a in "PQRS" * 40]
    _, _, result = learn({"masked-codes": 1.0, "next-visit": 1.0, "time-to-event": 1.0}, records, epochs=10)
    assert result.record["accuracy"] > 1.5 * result.record["most_frequent_code"]
    assert result.record["next_visit_loss"] < result.record["next_visit_marginal"] - 0.3


@pytest.fixture(scope="module", params=MASKS)
def mixed(request):
    return (request.param, *learn(EVERYTHING, valued(60), request.param, epochs=2))


def mixture_of(mixed, store=None):
    _, tokenizer, own, result = mixed
    config = PretrainConfig(objectives=EVERYTHING, mask_fraction=0.1, rank=8)
    training = Training.of(result.model, own, tokenizer, config, 3)
    rows = np.arange(len(own))
    return Mixture(training, result.heads, rows, own if store is None else store, rows)


def test_a_vector_does_not_depend_on_what_comes_after_its_moment(mixed):
    """To the bit, under either mask, with the masks of the codes drawn alike."""
    _, _, store, result = mixed
    shake(result.model)

    def other(where):
        code = np.where(where, store.code[::-1], store.code).astype(np.int32)
        assert not np.array_equal(code, store.code)
        return replace(store, code=code, value=np.where(where, np.float32(3), store.value))

    found = []
    for each in (store, other(store.visit > 2), other(store.visit == 1)):
        mixture = mixture_of(mixed, each)
        mixture.masked = False  # what is selected depends on how many codes there are
        found.append(at_second_visit(mixture, each))
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


@torch.no_grad()
def test_the_step_is_the_weighted_sum_of_its_objectives(mixed):
    mixture = mixture_of(mixed)
    rows = np.arange(16)
    together = float(mixture.loss(rows))
    mixture = mixture_of(mixed)
    terms = mixture._terms(mixture.store.take(rows), mixture.cuts, mixture.masks, 0.5)
    assert set(terms) == set(EVERYTHING)
    assert together == pytest.approx(sum(EVERYTHING[name] * float(term.mean) for name, term in terms.items()))
    assert all(term.count > 0 for term in terms.values())


@torch.no_grad()
def test_micro_batches_do_not_change_a_step(mixed, monkeypatch):
    """Means are over the step: one micro-batch, or many."""
    whole = mixture_of(mixed)
    whole.masked = False
    many = mixture_of(mixed)
    many.masked = False
    one = whole._terms(whole.store, whole.cuts, whole.masks, 0.0)
    monkeypatch.setattr("ehrsequencing.device.Compute.token_budget", 40)
    two = many._terms(many.store, many.cuts, many.masks, 0.0)
    for name in ("next-visit", "time-to-event"):
        assert one[name].count == two[name].count
        assert float(one[name].mean) == pytest.approx(float(two[name].mean), rel=1e-4)


def test_every_objective_moves_the_encoder(mixed):
    mixture = mixture_of(mixed)
    weight = mixture.model.behrt.layers[0].attention.q_proj.weight
    terms = mixture._terms(mixture.store, mixture.cuts, mixture.masks, 0.5)
    for name, term in terms.items():
        (gradient,) = torch.autograd.grad(term.mean, weight, retain_graph=True)
        assert gradient.abs().sum() > 0, name


def test_heads_are_kept_with_the_encoder_and_older_readers_ignore_them(mixed, tmp_path):
    _, tokenizer, _, result = mixed
    encoder = Encoder(result.model, tokenizer, result.record, np.zeros(0), result.heads)
    encoder.save(tmp_path / "encoder")
    again = Encoder.load(tmp_path / "encoder")
    assert set(again.heads) == set(EVERYTHING) - {"masked-codes"}
    for name, tensor in encoder.heads.state_dict().items():
        assert torch.equal(again.heads.state_dict()[name], tensor), name
    vectors = torch.randn(3, 3 * again.model.config.hidden_size)
    seen = torch.zeros(3, len(again.heads["time-to-event"].codes), dtype=torch.bool)
    heads = [each.heads["time-to-event"] for each in (encoder, again)]
    assert torch.equal(heads[0](vectors, seen), heads[1](vectors, seen))
    for model in (
        BEHRTModel.from_pretrained(tmp_path / "encoder"),
        BEHRTForMaskedLM.from_pretrained(tmp_path / "encoder").behrt,
    ):
        for name, tensor in model.state_dict().items():
            assert torch.equal(tensor, encoder.model.state_dict()[name]), name


def test_an_encoder_of_masked_codes_alone_has_the_files_it_always_had(tmp_path):
    tokenizer, _, result = learn({"masked-codes": 1.0}, followed(40), epochs=1)
    Encoder(result.model, tokenizer, result.record, np.zeros(0), result.heads).save(tmp_path / "encoder")
    names = {path.name for path in (tmp_path / "encoder").iterdir()}
    assert names == {"config.json", "model.safetensors", "pretraining.json", "seen.safetensors", "tokenizer.json"}
    assert not Encoder.load(tmp_path / "encoder").heads


def test_masked_codes_alone_is_the_plain_loss_on_random_cuts():
    """From the same draws: cuts first, then the masks of each micro-batch."""
    tokenizer, store = planted(followed(40))
    config, rows = PretrainConfig(objectives={"masked-codes": 1.0}), np.arange(40)
    torch.manual_seed(0)
    result = pretrain(store, tokenizer, config.model_copy(update={"epochs": 1}), ModelConfig(dropout=0.0))
    model = result.model
    training = Training.of(model, store, tokenizer, config, 5)
    found = float(Mixture(training, result.heads, rows, store, rows).loss(rows).detach())
    cut = cut_at_random(store, rows, np.random.default_rng(5), config.cut_fraction)
    masks, losses, count = torch.Generator().manual_seed(5), 0.0, 0
    for part in micro_batches(cut, np.arange(len(cut)), TOKEN_BUDGET):
        shown, targets = mask_tokens(collate(cut, part), tokenizer.vocab_size, masks, config.mask_fraction)
        chosen = targets >= 0
        logits = model.mlm_head(model.behrt(shown)[chosen])
        losses += float(cross_entropy(logits, targets[chosen], reduction="sum").detach())
        count += int(chosen.sum())
    assert found == pytest.approx(losses / count, rel=1e-6)


@pytest.mark.parametrize("attention", MASKS)
def test_a_mix_goes_on_to_the_same_bytes(attention, tmp_path, monkeypatch):
    monkeypatch.setattr("ehrsequencing.training.resume.SHARE", 0)
    monkeypatch.setattr(StateStore, "due", lambda self: True)
    tokenizer, store = planted(valued(40), causal=attention == "block_causal")
    config = PretrainConfig(epochs=2, batch_size=16, objectives=EVERYTHING)

    def run(resume=None, **keywords):
        return pretrain(store, tokenizer, config, ModelConfig(attention=attention), resume=resume, **keywords)

    whole, resume = run(), Resume(tmp_path / "work")
    with pytest.raises(KilledError):
        run(resume, progress=KillAfter(5))
    found = run(resume, progress=(listener := KillAfter(10_000)))
    assert any("resumed in epoch" in note for note in listener.notes)
    for one, two in ((whole.model, found.model), (whole.heads, found.heads)):
        for name, tensor in one.state_dict().items():
            assert torch.equal(tensor, two.state_dict()[name]), name


def test_excluded_codes_are_never_predicted_and_the_record_says_so():
    """Also a rare code that is read as its ancestor: then the ancestor is left out."""
    records = [[(0, ["X"]), (9, ["ICD10CM//I50.9" if n else "ICD10CM//I50.1"]), (20, ["Y"])] for n in range(30)]
    records += [[(0, ["X"]), (9, ["ICD10CM//I50.2"]), (20, ["Y"])]] * 2
    tokenizer, store = planted(records, min_subjects=3)
    assert tokenizer.codes[tokenizer.encode("ICD10CM//I50.1")] == "ICD10CM//I50"
    config = PretrainConfig(
        epochs=1, objectives={"time-to-event": 1, "next-visit": 1}, exclude_codes=("ICD10CM//I50.1", "Y", "UNHEARD")
    )
    result = pretrain(store, tokenizer, config, ModelConfig())
    told = result.record["objectives"]
    assert "ICD10CM//I50" not in told["time-to-event"]["codes"]
    assert "ICD10CM//I50.9" in told["time-to-event"]["codes"]
    assert sorted(told["next-visit"]["never_predicted"]) == ["ICD10CM//I50", "Y"]
    assert result.record["records_of"] == "training subjects only"
    head = result.heads["next-visit"]
    assert not head.predicted[tokenizer.encode("Y")]
    assert head.predicted[tokenizer.encode("ICD10CM//I50.9")]


def test_a_task_s_outcome_and_competing_events_are_kept_from_the_targets(dataset):
    task = load_task(dataset.root / "task.yaml")
    config = PretrainConfig(objectives={"time-to-event": 1}, exclude_codes=("MINE",))
    own = kept_from_outcomes(config, dataset, task).exclude_codes
    assert set(own) == {"MINE", "ICD10CM//I50.9"}
    many = TaskConfig.model_validate(
        task.model_dump(by_alias=True)
        | {"outcome": {"code": {"prefix": "ICD10CM//I"}}, "competing": {"fall": "ATC//C10AA05"}}
    )
    own = kept_from_outcomes(config, dataset, many).exclude_codes
    assert {"ICD10CM//I50.9", "ICD10CM//I10", "ATC//C10AA05"} < set(own)
    assert "ATC//B01AC06" not in own
    assert kept_from_outcomes(config.model_copy(update={"exclude_outcome": False}), dataset, task).exclude_codes == (
        "MINE",
    )
    assert kept_from_outcomes(config, dataset, task.input).exclude_codes == ("MINE",)
    alone = PretrainConfig(objectives={"masked-codes": 1})
    assert kept_from_outcomes(alone, dataset, task) == alone


def test_a_pretraining_under_a_task_never_predicts_its_outcome(dataset):
    config = PretrainConfig(epochs=1, batch_size=64, objectives={"time-to-event": 1})
    task = load_task(dataset.root / "task.yaml")
    encoder = pretrain_dataset(dataset, config, input=task)
    told = encoder.record["objectives"]["time-to-event"]
    assert told["never_predicted"] == ["ICD10CM//I50.9"]
    assert "ICD10CM//I50.9" not in told["codes"]
    assert json.loads(json.dumps(encoder.record)) == encoder.record
    assert "time to event" in learned(encoder.record)


@pytest.mark.parametrize(
    ("objectives", "why"), [({"masked-values": 1}, "no value"), ({"time-to-event": 1}, "no dated")]
)
def test_an_objective_with_nothing_to_learn_is_refused(objectives, why):
    tokenizer, store = planted([[(0, ["A"]), (9, ["A"])]] * 8)
    config = PretrainConfig(objectives=objectives, exclude_codes=("A",))
    with pytest.raises(EhrError, match=why) as caught:
        pretrain(store, tokenizer, config, ModelConfig())
    assert caught.value.code == Exit.DATA


def test_objectives_of_a_command_line_and_of_settings():
    assert weights_of(["masked-codes", "time-to-event=0.5"]) == {"masked-codes": 1.0, "time-to-event": 0.5}
    for wrong in (
        ["masked"],
        ["next-visit=0"],
        ["next-visit=much"],
        ["next-visit", "next-visit=2"],
        ["next-visit=inf"],
    ):
        with pytest.raises(EhrError) as caught:
            weights_of(wrong)
        assert caught.value.code == Exit.USAGE
    for wrong in ({}, {"nonsense": 1}, {"next-visit": -1}, {"next-visit": float("inf")}):
        with pytest.raises(EhrError) as caught:
            parse(PretrainConfig, {"objectives": wrong}, "here")
        assert caught.value.code == Exit.CONFIG


def test_the_table_and_the_settings_name_the_same_objectives():
    assert {name: entry.name for name, entry in OBJECTIVES.items()} == {name: name for name in EVERYTHING}
    assert set(get_args(PretrainingObjectiveName)) == set(OBJECTIVES)


@pytest.mark.parametrize("attention", MASKS)
def test_records_without_values_are_learned_from_by_default(attention):
    """And the summary's loss falls."""
    tokenizer, store = planted(followed(80), causal=attention == "block_causal")
    assert not tokenizer.value_codes
    result = pretrain(store, tokenizer, PretrainConfig(epochs=4), ModelConfig(attention=attention))
    losses = [epoch["record_summary_loss"] for epoch in result.record["history"]]
    assert losses[-1] < 0.8 * losses[0]


def test_an_objective_that_finds_nothing_to_guess_is_told_and_has_no_figure():
    """Values stand in the last visit only, which is cut away wherever the future is predicted."""
    records = [[*record, (450, [("V", float(n % 7))])] for n, record in enumerate(followed(40))]
    _, _, result = learn({"masked-values": 1.0, "time-to-event": 1.0}, records, epochs=1)
    assert any("masked-values" in note and "nothing to guess" in note for note in result.record["notes"])
    assert "masked_values_loss" not in result.record
    assert "time_to_event_loss" in result.record


def test_a_head_that_is_cut_off_from_its_loss_is_still_an_error(monkeypatch):
    entry = OBJECTIVES["record-summary"]
    cut = replace(entry, loss=lambda *a: replace(found := entry.loss(*a), mean=found.mean.detach() + 0.0))
    monkeypatch.setattr("ehrsequencing.training.pretrain.OBJECTIVES", {**OBJECTIVES, "record-summary": cut})
    with pytest.raises(EhrError, match="without any gradient"):
        learn({"masked-codes": 1.0, "record-summary": 1.0}, followed(40), epochs=1)


@pytest.mark.parametrize("name", ["next-visit", "time-to-event"])
def test_records_of_one_visit_have_no_future_to_predict(name):
    tokenizer, store = planted([[(0, ["A", "B"])]] * 8)
    with pytest.raises(EhrError, match="no record has a second visit") as caught:
        pretrain(store, tokenizer, PretrainConfig(objectives={name: 1}), ModelConfig())
    assert caught.value.code == Exit.DATA


def test_the_summary_leaves_the_task_s_own_outcome_out(dataset):
    task = load_task(dataset.root / "task.yaml")
    encoder = pretrain_dataset(dataset, PretrainConfig(epochs=1, batch_size=64), input=task)
    slot = encoder.heads["record-summary"].slot
    assert slot[encoder.tokenizer.encode("ICD10CM//I50.9")] == -1
    assert slot[encoder.tokenizer.encode("ICD10CM//I10")] >= 0
    assert encoder.record["objectives"]["record-summary"]["never_predicted"] == ["ICD10CM//I50.9"]
    assert "record summary" in learned(encoder.record)
