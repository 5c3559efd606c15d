"""The encoder, its head and masked-code pretraining: sizes, padding, what every input does, saving."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from ehrsequencing.errors import EhrError, Exit
from ehrsequencing.models import backends
from ehrsequencing.models.attention import Layout
from ehrsequencing.models.backends import attend
from ehrsequencing.models.behrt import BEHRTConfig, BEHRTModel
from ehrsequencing.models.behrt_survival import BEHRTForSurvival, HazardHead
from ehrsequencing.models.pretraining import IGNORE, BEHRTForMaskedLM, mask_tokens
from ehrsequencing.models.rotary import coordinates, rotate, rotation
from ehrsequencing.models.states import pool
from ehrsequencing.models.wide import RidgeHazard
from ehrsequencing.tokens import CLS, MASK, N_SPECIAL
from tiny_batches import VOCAB, garbage_in_padding, random_batch, rows_of, shake, tiny_config


@pytest.fixture(scope="module")
def batch():
    return random_batch()


@pytest.fixture
def model():
    torch.manual_seed(0)
    return BEHRTForSurvival(tiny_config()).eval()


# the founding document's figures: head about 17 k, LoRA 10 to 20% of the full model, full about 495 k and more


def test_small_has_the_founding_documents_parameter_counts():
    full = BEHRTForSurvival(BEHRTConfig.small(1_000 + N_SPECIAL)).get_trainable_parameters()
    lora = BEHRTForSurvival(BEHRTConfig.small(1_000 + N_SPECIAL), use_lora=True).get_trainable_parameters()
    frozen = BEHRTForSurvival(BEHRTConfig.small(1_000 + N_SPECIAL), freeze_behrt=True).get_trainable_parameters()
    assert full == {"trainable": 497_580, "total": 497_580, "encoder": 481_280, "lora": 0, "head": 16_300}
    assert frozen == {"trainable": 16_300, "total": 497_580, "encoder": 0, "lora": 0, "head": 16_300}
    assert lora == {"trainable": 65_452, "total": 546_732, "encoder": 0, "lora": 49_152, "head": 16_300}
    assert 0.10 < lora["trainable"] / full["total"] < 0.20
    assert lora["trainable"] / full["total"] == pytest.approx(0.13, abs=0.005)


def test_value_vectors_exist_only_for_codes_with_values():
    without = BEHRTForSurvival(tiny_config(value_codes=())).get_trainable_parameters()["total"]
    with_three = BEHRTForSurvival(tiny_config(value_codes=(5, 9, 20))).get_trainable_parameters()["total"]
    assert with_three - without == 3 * tiny_config().embedding_size


@pytest.mark.parametrize(
    ("size", "shape"),
    [("small", (64, 128, 3, 4, 256)), ("medium", (128, 256, 4, 8, 512)), ("large", (256, 512, 6, 8, 1024))],
)
def test_named_sizes(size, shape):
    c = getattr(BEHRTConfig, size)(vocab_size=100)
    found = c.embedding_size, c.hidden_size, c.num_hidden_layers, c.num_attention_heads, c.intermediate_size
    assert found == shape
    assert c.attention_dropout == 0


def test_base_is_twelve_layers_of_768():
    c = BEHRTConfig.base(vocab_size=100, dropout=0.2)
    assert (c.num_hidden_layers, c.hidden_size, c.intermediate_size, c.dropout) == (12, 768, 3072, 0.2)


@pytest.mark.parametrize(
    "settings",
    [
        {"freeze_behrt": True, "use_lora": True},
        {"attention": "sideways"},
        {"hidden_size": 30, "num_attention_heads": 4},
        {"head": "forest"},
    ],
)
def test_contradictory_settings_are_refused(settings):
    with pytest.raises(EhrError) as error:
        tiny_config(**settings)
    assert error.value.code == Exit.CONFIG


def test_an_unknown_size_is_refused():
    with pytest.raises(EhrError, match="unknown model size 'tiny'"):
        BEHRTConfig.of_size("tiny", vocab_size=10)


# padding


def test_attention_equals_its_formula_and_ignores_padded_keys():
    g = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 4, 5, 8, generator=g, dtype=torch.float64) for _ in range(3))
    mask = torch.tensor([[True] * 5, [True, True, True, False, False]])
    found = attend(q, k, v, Layout.padded(mask))
    score = (q @ k.transpose(-1, -2) / math.sqrt(8)).masked_fill(~mask[:, None, None, :], -math.inf)
    torch.testing.assert_close(found, score.softmax(-1) @ v, rtol=1e-10, atol=1e-12)
    changed = v.clone()
    changed[1, :, 3:] = 1e6
    torch.testing.assert_close(attend(q, k, changed, Layout.padded(mask)), found)


def test_a_patient_is_the_same_alone_in_a_batch_and_under_more_padding(model, batch):
    shake(model)
    together = model(batch)
    assert together.shape == (6, 1, 6)
    for i in range(len(batch)):
        torch.testing.assert_close(model(rows_of(batch, [i]))[0], together[i], rtol=0, atol=1e-5)
        torch.testing.assert_close(model(rows_of(batch, [i], extra_padding=9))[0], together[i], rtol=0, atol=1e-5)
    order = [4, 0, 5, 2, 1, 3]
    torch.testing.assert_close(model(rows_of(batch, order)), together[order], rtol=0, atol=1e-5)


def test_what_stands_in_padding_is_never_read(model, batch):
    shake(model)
    assert torch.equal(model(garbage_in_padding(batch)), model(batch))


def test_patients_of_a_batch_do_not_see_each_other(model, batch):
    batch_grad = model.behrt.embeddings(batch, Layout.padded(batch.mask)).detach().requires_grad_(True)
    x = batch_grad
    turn = rotation(batch, 8, Layout.padded(batch.mask))
    for layer in model.behrt.layers:
        x = layer(x, Layout.padded(batch.mask), turn)
    (gradient,) = torch.autograd.grad(pool(x, batch.mask)[2].sum(), batch_grad)
    assert gradient[2][batch.mask[2]].abs().sum(dim=-1).min() > 0  # every real token of row 2 counts
    assert gradient[2][~batch.mask[2]].abs().sum() == 0
    assert gradient[[0, 1, 3, 4, 5]].abs().sum() == 0


def test_pooling_is_cls_mean_and_maximum_of_real_tokens():
    hidden = torch.tensor([[[1.0, -5.0], [3.0, -7.0], [100.0, 100.0]]])
    mask = torch.tensor([[True, True, False]])
    assert pool(hidden, mask).tolist() == [[1.0, -5.0, 2.0, -6.0, 3.0, -5.0]]


# rotary: attention reads differences of position, visit and time


def visits_of(*gaps: float, tokens: int = 2):
    """[CLS] with the last gap, then ``tokens`` tokens a visit; one row."""
    *between, last = gaps
    n = 1 + tokens * len(between)
    visit = torch.tensor([0] + [v + 1 for v in range(len(between)) for _ in range(tokens)])[None]
    gap = torch.tensor([last] + [g for g in between for _ in range(tokens)])[None]
    return replace(
        rows_of(random_batch(rows=2, length=n), [0]), visit=visit, gap=gap, mask=torch.ones(1, n, dtype=torch.bool)
    )


def test_coordinates_count_tokens_visits_and_days_and_cls_stands_at_prediction_time():
    found = coordinates(visits_of(0.0, 10.0, 300.0, 45.0))
    assert found[0].tolist() == [[0, 4, 355], [1, 1, 0], [2, 1, 0], [3, 2, 10], [4, 2, 10], [5, 3, 310], [6, 3, 310]]


def test_rotated_products_depend_on_differences_only():
    g = torch.Generator().manual_seed(0)
    q, k = torch.randn(2, 1, 2, 7, 16, generator=g)
    early, late = visits_of(0.0, 10.0, 300.0, 45.0), visits_of(5_000.0, 10.0, 300.0, 45.0)
    late = replace(late, visit=late.visit + 20)
    products = [rotate(q, t) @ rotate(k, t).transpose(-1, -2) for t in map(turn_of, (early, late))]
    torch.testing.assert_close(*products, rtol=0, atol=5e-3)
    other = turn_of(visits_of(0.0, 10.0, 3_000.0, 45.0))
    assert (rotate(q, other) @ rotate(k, other).transpose(-1, -2) - products[0]).abs().max() > 0.1


@pytest.mark.parametrize("width", [2, 4, 8, 32])
def test_rotation_keeps_lengths_and_fills_every_pair(width):
    turn = turn_of(visits_of(0.0, 10.0, 300.0, 45.0), width)
    assert turn[0].shape == (1, 1, 7, width // 2)
    x = torch.randn(1, 3, 7, width, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(rotate(x, turn).norm(dim=-1), x.norm(dim=-1))


# every input counts


def change(batch, name, value):
    """Row 0, token 1, changed in one field."""
    tensor = getattr(batch, name).clone()
    tensor[0, 1] = value
    return replace(batch, **{name: tensor})


@pytest.mark.parametrize(
    ("name", "value"), [("code", 33), ("value", 2.5), ("age", 3.0), ("age", 91.0), ("visit", 8), ("gap", 3000.0)]
)
def test_each_input_moves_its_own_patient_only(model, batch, name, value):
    batch = change(change(batch, "age_known", True), "age", 40.0)
    before, after = model(batch), model(change(batch, name, value))
    assert (after[0] - before[0]).abs().max() > 1e-5
    assert torch.equal(after[1:], before[1:])


def test_nearby_ages_within_a_bin_differ(model, batch):
    batch = change(batch, "age_known", True)
    a, b = model(change(batch, "age", 41.0)), model(change(batch, "age", 42.0))
    assert (a[0] - b[0]).abs().max() > 1e-6


def test_an_unknown_age_is_its_own_bin_not_age_zero(model, batch):
    zero = change(change(batch, "age_known", True), "age", 0.0)
    unknown = change(zero, "age_known", False)
    assert (model(zero)[0] - model(unknown)[0]).abs().max() > 1e-5
    torch.testing.assert_close(model(change(unknown, "age", 55.0)), model(unknown))


def test_order_counts(model, batch):
    swapped = batch.code.clone()
    swapped[0, [2, 3]] = batch.code[0, [3, 2]]
    assert batch.code[0, 2] != batch.code[0, 3]
    plain = replace(batch, has_value=torch.zeros_like(batch.has_value))
    assert (model(plain)[0] - model(replace(plain, code=swapped))[0]).abs().max() > 1e-5


def test_a_value_on_a_code_without_value_vector_counts_for_nothing(model, batch):
    other = change(change(batch, "code", 33), "has_value", True)
    torch.testing.assert_close(model(change(other, "value", 3.0)), model(change(other, "value", -3.0)))


def test_a_value_enters_times_its_own_codes_vector(model, batch):
    embeddings = model.behrt.embeddings
    with torch.no_grad():
        embeddings.value_embedding.weight[1] = 0  # code 9
    nine = change(change(batch, "code", 9), "has_value", True)
    torch.testing.assert_close(model(change(nine, "value", 3.0)), model(change(nine, "value", -3.0)))
    five = change(nine, "code", 5)
    assert (model(change(five, "value", 3.0))[0] - model(change(five, "value", -3.0))[0]).abs().max() > 1e-5


def test_visits_beyond_the_maximum_are_clipped(model, batch):
    most = model.config.max_visits
    embed, layout = model.behrt.embeddings, Layout.packed(batch.mask)
    assert torch.equal(
        embed(change(batch, "visit", most - 1), layout), embed(change(batch, "visit", most + 500), layout)
    )
    assert torch.isfinite(model(change(batch, "visit", most + 500))).all()


def test_code_vectors_can_be_given(model):
    vectors = torch.randn(2, 16, generator=torch.Generator().manual_seed(0))
    before = model.behrt.embeddings.code_embedding.weight[10].clone()
    model.behrt.embeddings.set_code_vectors(torch.tensor([7, 8]), vectors)
    assert torch.equal(model.behrt.embeddings.code_embedding.weight[[7, 8]], vectors)
    assert torch.equal(model.behrt.embeddings.code_embedding.weight[10], before)


# the head


def test_the_bias_starts_at_the_marginal_hazard(model, batch):
    marginal = torch.linspace(-4, -2, 6)
    model.hazard_head.set_marginal(marginal)
    assert torch.equal(model.hazard_head.hazard.bias, marginal)
    assert (model(batch)[:, 0] - marginal).abs().max() < 0.5


def test_the_standardiser_centres_scales_and_leaves_constants_finite():
    torch.manual_seed(0)
    head = HazardHead(tiny_config()).eval()
    x = torch.randn(50, 96) * 7 + 3
    x[:, 4] = 5.0
    expected = head((x - x.mean(0)) / torch.where(x.std(0) == 0, 1.0, x.std(0)))
    head.set_standardiser(x.mean(0), x.std(0))
    torch.testing.assert_close(head(x), expected, rtol=1e-5, atol=1e-5)
    assert torch.isfinite(head(x + 1)).all()


def test_the_linear_head_is_the_penalised_model_it_was_given(batch, tmp_path):
    rng = np.random.default_rng(0)
    model = BEHRTForSurvival.from_encoder(BEHRTModel(tiny_config()), strategy="frozen-ridge").eval()
    std = np.where(np.arange(96) == 3, 0.0, rng.uniform(0.5, 2, 96))  # a constant column counts for nothing
    ridge = RidgeHazard(rng.normal(size=96), std, rng.normal(size=96) * (std > 0), rng.normal(size=6), penalty=0.1)
    model.hazard_head.set_ridge(ridge)
    expected = ridge.logits(model.features(batch).detach().double().numpy())
    np.testing.assert_allclose(model(batch)[:, 0].detach().numpy(), expected, rtol=1e-4, atol=1e-4)
    model.save_pretrained(tmp_path)
    assert torch.equal(BEHRTForSurvival.from_pretrained(tmp_path)(batch), model(batch))


def test_dropout_acts_in_training_and_never_in_evaluation(model, batch):
    assert torch.equal(model(batch), model(batch))
    model.train()
    assert not torch.equal(model(batch), model(batch))


def test_a_frozen_encoder_stays_in_eval_mode(batch):
    model = BEHRTForSurvival(tiny_config(), freeze_behrt=True).train()
    assert model.hazard_head.training
    assert not model.behrt.training
    assert torch.equal(model.features(batch), model.features(batch))


# saving


def test_saving_and_loading_gives_the_same_predictions(model, batch, tmp_path):
    shake(model)
    model.hazard_head.set_standardiser(torch.randn(96), torch.rand(96) + 0.5)
    model.save_pretrained(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["config.json", "model.safetensors"]
    again = BEHRTForSurvival.from_pretrained(tmp_path)
    assert torch.equal(again(batch), model(batch))
    assert not again.training
    assert tuple(again.config.value_codes) == (5, 9, 20)


def test_a_masked_lm_folder_gives_its_encoder(batch, tmp_path):
    lm = BEHRTForMaskedLM(tiny_config()).eval()
    shake(lm)
    lm.save_pretrained(tmp_path)
    encoder = BEHRTModel.from_pretrained(tmp_path)
    assert torch.equal(encoder(batch), lm.behrt(batch))
    survival = BEHRTForSurvival.from_encoder(tmp_path, n_bins=9).eval()
    assert torch.equal(survival.behrt(batch), lm.behrt(batch))
    assert survival(batch).shape == (6, 1, 9)
    again = BEHRTForMaskedLM.from_pretrained(tmp_path)
    assert again.mlm_head.decoder.weight is again.behrt.embeddings.code_embedding.weight


def test_an_encoder_folder_and_an_encoder_in_memory_are_alike_and_not_shared(batch, tmp_path):
    encoder = BEHRTModel(tiny_config()).eval()
    shake(encoder)
    encoder.save_pretrained(tmp_path)
    from_folder, from_memory = (BEHRTForSurvival.from_encoder(e).eval() for e in (tmp_path, encoder))
    assert torch.equal(from_folder.behrt(batch), encoder(batch))
    assert torch.equal(from_memory.behrt(batch), encoder(batch))
    before = encoder(batch)
    shake(from_memory)
    assert torch.equal(encoder(batch), before)


def break_folder(folder, how):
    state = load_file(folder / "model.safetensors")
    name = next(key for key in state if key.endswith("q_proj.weight"))
    if how == "missing":
        del state[name]
    elif how == "unexpected":
        state["behrt.layers.9.extra"] = torch.zeros(1)
    elif how == "misshapen":
        state[name] = torch.zeros(3, 3)
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    return name


@pytest.mark.parametrize("how", ["missing", "unexpected", "misshapen"])
def test_a_checkpoint_that_does_not_fit_is_refused(model, tmp_path, how):
    model.save_pretrained(tmp_path)
    break_folder(tmp_path, how)
    with pytest.raises(EhrError) as error:
        BEHRTForSurvival.from_pretrained(tmp_path)
    assert error.value.code == Exit.BUNDLE
    with pytest.raises(EhrError):
        BEHRTForSurvival.from_encoder(tmp_path)


def test_a_missing_or_torn_folder_is_refused(model, tmp_path):
    with pytest.raises(EhrError, match=r"config\.json is missing") as error:
        BEHRTModel.from_pretrained(tmp_path / "nowhere")
    assert error.value.code == Exit.BUNDLE
    model.save_pretrained(tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(EhrError) as error:
        BEHRTForSurvival.from_pretrained(tmp_path)
    assert error.value.code == Exit.BUNDLE


def test_an_encoder_is_not_taken_for_a_survival_model(tmp_path):
    BEHRTModel(tiny_config()).save_pretrained(tmp_path)
    with pytest.raises(EhrError, match="hazard_head"):
        BEHRTForSurvival.from_pretrained(tmp_path)


def test_overrides_that_do_not_fit_the_encoder_are_refused():
    with pytest.raises(EhrError) as error:
        BEHRTForSurvival.from_encoder(BEHRTModel(tiny_config()), hidden_size=64)
    assert error.value.code == Exit.BUNDLE


def test_a_saved_model_of_an_unknown_mask_is_refused(model, tmp_path):
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "attention": "sideways"}))
    with pytest.raises(EhrError, match="sideways"):
        BEHRTForSurvival.from_pretrained(tmp_path)


# masked-code pretraining


@pytest.fixture(scope="module")
def masked():
    whole = random_batch(rows=200, length=60, seed=5)
    return whole, *mask_tokens(whole, VOCAB, torch.Generator().manual_seed(0))


def test_masking_hides_fifteen_percent_as_eighty_ten_ten(masked):
    whole, hidden, targets = masked
    selected = targets != IGNORE
    codes = whole.mask & (whole.code >= N_SPECIAL)
    n, chosen = int(codes.sum()), int(selected.sum())
    assert abs(chosen / n - 0.15) < 4 * math.sqrt(0.15 * 0.85 / n)
    assert torch.equal(targets[selected], whole.code[selected])
    now = hidden.code[selected]
    shares = [float(x.float().mean()) for x in (now == MASK, (now != MASK) & (now != targets[selected]))]
    slack = 4 * math.sqrt(0.16 / chosen)
    assert abs(shares[0] - 0.8) < slack
    assert abs(shares[1] - 0.1 * (1 - 1 / (VOCAB - N_SPECIAL))) < slack


def test_masking_spares_special_tokens_and_touches_nothing_else(masked):
    whole, hidden, targets = masked
    selected = targets != IGNORE
    assert not selected[~whole.mask].any()
    assert not selected[whole.code < N_SPECIAL].any()
    assert (hidden.code[:, 0] == CLS).all()
    assert torch.equal(hidden.code[~selected], whole.code[~selected])
    assert hidden.code[selected & (hidden.code != MASK)].min() >= N_SPECIAL
    for name in ("age", "age_known", "visit", "gap", "mask"):
        assert torch.equal(getattr(hidden, name), getattr(whole, name))


def test_the_value_goes_at_every_selected_position_only(masked):
    whole, hidden, targets = masked
    selected = targets != IGNORE
    assert (selected & whole.has_value).sum() > 100
    assert not hidden.has_value[selected].any()
    assert hidden.value[selected].abs().sum() == 0
    assert torch.equal(hidden.has_value[~selected], whole.has_value[~selected])
    assert torch.equal(hidden.value[~selected], whole.value[~selected])


def test_the_value_of_a_selected_code_cannot_reach_the_loss(masked):
    whole, _, _ = masked
    lm = BEHRTForMaskedLM(tiny_config()).eval()
    shake(lm)
    losses = []
    for factor in (1.0, -5.0):
        other = replace(whole, value=whole.value * factor)
        hidden, targets = mask_tokens(other, VOCAB, torch.Generator().manual_seed(0), fraction=1.0)
        losses.append(lm(hidden, targets).loss)
    assert torch.equal(*losses)


def test_masking_repeats_under_its_seed(masked):
    whole, hidden, targets = masked
    again, same = mask_tokens(whole, VOCAB, torch.Generator().manual_seed(0))
    assert torch.equal(again.code, hidden.code)
    assert torch.equal(same, targets)
    other, _ = mask_tokens(whole, VOCAB, torch.Generator().manual_seed(1))
    assert not torch.equal(other.code, hidden.code)


def test_loss_and_hits_equal_logits_everywhere_read_at_the_selected_positions(masked):
    _, hidden, targets = masked
    lm = BEHRTForMaskedLM(tiny_config()).eval()
    shake(lm)
    found = lm(hidden, targets)
    logits = lm.mlm_head(lm.behrt(hidden).flatten(0, 1)).unflatten(0, targets.shape)
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORE)
    torch.testing.assert_close(found.loss, expected)
    selected = targets != IGNORE
    assert found.n_selected == int(selected.sum())
    assert found.n_correct == int((logits.argmax(-1) == targets)[selected].sum())


def test_the_decoder_is_tied_and_learns_together_with_the_codes(masked):
    _, hidden, targets = masked
    lm = BEHRTForMaskedLM(tiny_config())
    assert lm.mlm_head.decoder.weight is lm.behrt.embeddings.code_embedding.weight
    lm(hidden, targets).loss.backward()
    idle = [name for name, p in lm.named_parameters() if p.grad is None or not p.grad.any()]
    assert idle == []


def test_a_batch_with_nothing_selected_has_no_loss(batch):
    lm = BEHRTForMaskedLM(tiny_config())
    found = lm(batch, torch.full_like(batch.code, IGNORE))
    assert (found.loss.item(), found.n_correct, found.n_selected) == (0.0, 0, 0)


def test_pretraining_learns_what_follows_from_the_record():
    """A record repeats one code throughout: the hidden one is readable from the others, never from a base rate."""
    torch.manual_seed(0)
    lm = BEHRTForMaskedLM(tiny_config(value_codes=(), dropout=0.0, vocab_size=24))
    optimizer = torch.optim.AdamW(lm.parameters(), lr=3e-3)
    hits = []
    for step in range(130):
        whole = random_batch(rows=32, length=9, vocab=24, seed=step, value_codes=())
        code = torch.where(whole.mask, whole.code[:, 1:2], whole.code)
        code[:, 0] = CLS
        hidden, targets = mask_tokens(replace(whole, code=code), 24, torch.Generator().manual_seed(step))
        found = lm(hidden, targets)
        optimizer.zero_grad()
        found.loss.backward()
        optimizer.step()
        hits.append((found.n_correct, found.n_selected))
    correct, selected = (sum(column) for column in zip(*hits[-30:], strict=True))
    assert correct / selected > 0.4  # chance is 1 in 20


def turn_of(batch, width=16):
    return rotation(batch, width, Layout.padded(batch.mask))


def test_the_packed_layout_computes_what_the_padded_one_does(monkeypatch, batch):
    """Outputs and gradients of every weight, on rows of mixed lengths in any order."""
    torch.manual_seed(0)
    model = BEHRTModel(tiny_config()).eval()
    shake(model)
    results = []
    for name in ("by_length", "padded"):
        monkeypatch.setattr(backends, "fitting", lambda *_, name=name: name)
        model.zero_grad()
        hidden = model(batch) * batch.mask[..., None]
        hidden.square().sum().backward()
        results.append((hidden.detach(), [p.grad.clone() for p in model.parameters() if p.grad is not None]))
    torch.testing.assert_close(results[0][0], results[1][0], rtol=0, atol=1e-5)
    for packed, padded in zip(results[0][1], results[1][1], strict=True):
        torch.testing.assert_close(packed, padded, rtol=1e-4, atol=1e-5 * float(padded.abs().max()))
