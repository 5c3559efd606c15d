"""LoRA by its effect: nothing moves at step 0, every matrix counts afterwards, the base never moves, files fit."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file

from ehrsequencing.errors import EhrError, Exit
from ehrsequencing.models.adapter_files import load_adapter, save_adapter, switch_adapter
from ehrsequencing.models.behrt import BEHRTConfig, BEHRTModel
from ehrsequencing.models.behrt_survival import BEHRTForSurvival
from ehrsequencing.models.lora import AdapterSpec, adapter_of, apply_lora_to_behrt, is_adapter, merge_lora
from tiny_batches import random_batch, shake, tiny_config


@pytest.fixture(scope="module")
def batch():
    return random_batch()


def pretrained(**overrides) -> BEHRTModel:
    torch.manual_seed(0)
    encoder = BEHRTModel(tiny_config(**overrides)).eval()
    shake(encoder)
    return encoder


def adapted(seed: int = 0, **overrides) -> BEHRTForSurvival:
    """A LoRA model as after some training: every trainable tensor has moved."""
    torch.manual_seed(seed)
    model = BEHRTForSurvival.from_encoder(pretrained(), strategy="lora", **overrides).eval()
    g = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.add_(0.05 * torch.randn(p.shape, generator=g))
    return model


def adapter_names(module) -> list[str]:
    return [name for name, _ in module.named_parameters() if is_adapter(name)]


def test_the_same_object_comes_back_and_its_output_is_unchanged(batch):
    encoder = pretrained()
    before = encoder(batch)
    assert apply_lora_to_behrt(encoder, rank=4, alpha=8) is encoder
    assert torch.equal(encoder(batch), before)
    assert len(adapter_names(encoder)) == 2 * 4 * 2  # A and B of four projections in two layers


def test_output_is_unchanged_at_step_0_too_when_the_configuration_injects(batch):
    model = BEHRTForSurvival(tiny_config(), use_lora=True).eval()
    for name, p in model.named_parameters():
        assert p.any() == (".lora_B." not in name) or "bias" in name or ".norm" in name
    with_adapter = model.behrt(batch)
    assert torch.equal(merge_lora(model.behrt)(batch), with_adapter)


def test_perturbing_each_matrix_moves_the_output(batch):
    model = adapted()
    before = model(batch).detach()
    for name, p in model.named_parameters():
        if not is_adapter(name):
            continue
        kept = p.detach().clone()
        with torch.no_grad():
            p.add_(0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(0)))
        assert (model(batch) - before).abs().max() > 1e-6, name
        with torch.no_grad():
            p.copy_(kept)
    assert torch.equal(model(batch), before)


def test_the_update_is_alpha_over_rank_times_b_a(batch):
    model = adapted()
    layer = model.behrt.layers[0].attention.out_proj
    x = torch.randn(3, 32, generator=torch.Generator().manual_seed(0))
    update = layer.lora_B["default"].weight @ layer.lora_A["default"].weight * (32 / 16)
    torch.testing.assert_close(layer(x), layer.base_layer(x) + x @ update.T, rtol=1e-5, atol=1e-6)


def test_training_moves_every_matrix_and_leaves_the_base_bit_for_bit(batch):
    torch.manual_seed(0)
    model = BEHRTForSurvival.from_encoder(pretrained(), strategy="lora").train()
    before = {name: t.clone() for name, t in model.state_dict().items()}
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2, weight_decay=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        model(batch).square().mean().backward()
        optimizer.step()
    moved = {name for name, t in model.state_dict().items() if not torch.equal(t, before[name])}
    assert moved == trainable
    assert set(adapter_names(model)) < trainable
    assert {name for name in trainable if not is_adapter(name)} == {
        f"hazard_head.{n}" for n, _ in model.hazard_head.named_parameters()
    }


def test_at_the_first_step_only_b_has_a_gradient(batch):
    model = BEHRTForSurvival.from_encoder(pretrained(), strategy="lora")
    model(batch).square().mean().backward()
    for name, p in model.named_parameters():
        if is_adapter(name):
            assert bool(p.grad.any()) == (".lora_B." in name)


def test_injecting_again_is_a_no_op_on_an_equal_adapter(batch):
    model = adapted()
    before = model(batch)
    for p in model.behrt.parameters():
        p.requires_grad_(True)
    assert apply_lora_to_behrt(model.behrt, rank=16, alpha=32) is model.behrt
    assert torch.equal(model(batch), before)
    assert {n for n, p in model.behrt.named_parameters() if p.requires_grad} == set(adapter_names(model.behrt))


@pytest.mark.parametrize(
    "other", [{"rank": 8}, {"alpha": 16}, {"dropout": 0.1}, {"targets": ("q_proj", "v_proj")}], ids=str
)
def test_a_different_adapter_is_refused_and_nothing_changes(batch, other):
    model = adapted()
    before = model(batch)
    with pytest.raises(EhrError, match="already carries LoRA rank 16, alpha 32") as error:
        apply_lora_to_behrt(model.behrt, **other)
    assert error.value.code == Exit.CONFIG
    assert torch.equal(model(batch), before)
    assert model.config.lora_rank == 16


def test_a_frozen_model_is_refused():
    model = BEHRTForSurvival(tiny_config(), freeze_behrt=True)
    with pytest.raises(EhrError, match="exclude each other") as error:
        apply_lora_to_behrt(model.behrt)
    assert error.value.code == Exit.CONFIG


@pytest.mark.parametrize("settings", [{"rank": 0}, {"alpha": 0}, {"dropout": 1.0}, {"targets": ()}])
def test_impossible_settings_are_refused(settings):
    with pytest.raises(EhrError) as error:
        apply_lora_to_behrt(pretrained(), **settings)
    assert error.value.code == Exit.CONFIG


def test_targets_that_do_not_exist_are_refused():
    with pytest.raises(EhrError, match="no layer of a block is named 'qkv'") as error:
        apply_lora_to_behrt(pretrained(), targets=("qkv",))
    assert error.value.code == Exit.CONFIG


def test_rank_alpha_dropout_and_targets_are_what_was_asked():
    encoder = apply_lora_to_behrt(pretrained(), rank=3, alpha=5, dropout=0.25, targets=("q_proj", "v_proj"))
    assert adapter_of(encoder) == AdapterSpec(3, 5.0, 0.25, ("q_proj", "v_proj"))
    assert adapter_of(pretrained()) is None
    shapes = {tuple(p.shape) for name, p in encoder.named_parameters() if is_adapter(name)}
    assert shapes == {(3, 32), (32, 3)}


def test_the_embeddings_can_be_trained_beside_the_adapter():
    encoder = apply_lora_to_behrt(pretrained(), train_embeddings=True)
    trained = {name for name, p in encoder.named_parameters() if p.requires_grad}
    assert trained == set(adapter_names(encoder)) | {n for n, _ in encoder.named_parameters() if n.startswith("embedd")}


def test_an_encoder_checkpoint_under_lora_keeps_its_base_weights(tmp_path):
    encoder = pretrained()
    encoder.save_pretrained(tmp_path)
    model = BEHRTForSurvival.from_encoder(tmp_path, strategy="lora")
    base = {name.replace(".base_layer", ""): t for name, t in model.behrt.state_dict().items() if not is_adapter(name)}
    wanted = encoder.state_dict()
    assert base.keys() == wanted.keys()
    assert all(torch.equal(base[name], wanted[name]) for name in wanted)


@pytest.mark.parametrize("overrides", [{}, {"lora_targets": ("q_proj", "v_proj")}])
def test_a_reloaded_model_predicts_identically_and_trains_the_same_tensors(batch, tmp_path, overrides):
    model = adapted(**overrides)
    model.save_pretrained(tmp_path)
    again = BEHRTForSurvival.from_pretrained(tmp_path)
    assert torch.equal(again(batch), model(batch))
    assert again.get_trainable_parameters() == model.get_trainable_parameters()
    assert {n for n, p in again.named_parameters() if p.requires_grad} == {
        n for n, p in model.named_parameters() if p.requires_grad
    }
    assert adapter_of(again.behrt) == adapter_of(model.behrt)


def test_a_model_adapted_by_hand_reloads_too(batch, tmp_path):
    model = BEHRTForSurvival.from_encoder(pretrained())
    model.behrt = apply_lora_to_behrt(model.behrt, rank=4, alpha=8, train_embeddings=True)
    shake(model)
    model.eval().save_pretrained(tmp_path)
    again = BEHRTForSurvival.from_pretrained(tmp_path)
    assert torch.equal(again(batch), model(batch))
    assert again.get_trainable_parameters() == model.get_trainable_parameters()


# the adapter alone


def test_the_adapter_alone_over_its_base_predicts_identically(batch, tmp_path):
    model = adapted()
    model.hazard_head.set_standardiser(torch.randn(96), torch.rand(96) + 0.5)
    save_adapter(model, tmp_path / "deep" / "adapter.safetensors")
    torch.manual_seed(99)
    over = BEHRTForSurvival.from_encoder(pretrained())
    assert load_adapter(over, tmp_path / "deep" / "adapter.safetensors") is over
    assert torch.equal(over.eval()(batch), model(batch))
    assert over.get_trainable_parameters() == model.get_trainable_parameters()
    assert over.config.use_lora
    assert not [name for name in load_file(tmp_path / "deep" / "adapter.safetensors") if "base_layer" in name]


def test_the_adapter_of_the_small_model_takes_a_few_hundred_kilobytes(tmp_path):
    model = BEHRTForSurvival(BEHRTConfig.small(1_004), use_lora=True)
    save_adapter(model, tmp_path / "adapter.safetensors")
    model.save_pretrained(tmp_path / "whole")
    assert 200_000 < (tmp_path / "adapter.safetensors").stat().st_size < 300_000
    assert (tmp_path / "whole" / "model.safetensors").stat().st_size > 2_000_000


def test_trained_embeddings_travel_with_the_adapter(batch, tmp_path):
    model = BEHRTForSurvival.from_encoder(pretrained())
    apply_lora_to_behrt(model.behrt, train_embeddings=True)
    with torch.no_grad():
        model.behrt.embeddings.code_embedding.weight.add_(0.1)
    save_adapter(model.eval(), tmp_path / "adapter.safetensors")
    over = load_adapter(BEHRTForSurvival.from_encoder(pretrained()), tmp_path / "adapter.safetensors").eval()
    assert torch.equal(over(batch), model(batch))


def test_another_base_is_refused_and_left_alone(batch, tmp_path):
    save_adapter(adapted(), tmp_path / "adapter.safetensors")
    other = pretrained()
    with torch.no_grad():
        other.layers[1].feed_in.weight[0, 0] += 1e-6
    over = BEHRTForSurvival.from_encoder(other).eval()
    before = over(batch)
    with pytest.raises(EhrError, match="another base") as error:
        load_adapter(over, tmp_path / "adapter.safetensors")
    assert error.value.code == Exit.BUNDLE
    assert torch.equal(over(batch), before)
    assert adapter_of(over.behrt) is None


@pytest.mark.parametrize("how", ["missing adapter", "missing head", "misshapen", "unexpected", "torn", "no settings"])
def test_an_adapter_file_that_does_not_fit_is_refused_and_the_model_left_alone(batch, tmp_path, how):
    path = tmp_path / "adapter.safetensors"
    save_adapter(adapted(), path)
    from safetensors import safe_open

    with safe_open(str(path), framework="pt") as file:
        metadata = file.metadata()
    tensors = load_file(path)
    adapter = next(name for name in tensors if is_adapter(name))
    if how == "missing adapter":
        del tensors[adapter]
    elif how == "missing head":
        del tensors["hazard_head.mean"]
    elif how == "misshapen":
        tensors[adapter] = torch.zeros(2, 2)
    elif how == "unexpected":
        tensors["behrt.extra"] = torch.zeros(1)
    save_file(tensors, path, metadata={"format": "pt"} if how == "no settings" else metadata)
    if how == "torn":
        path.write_bytes(path.read_bytes()[:500])
    over = BEHRTForSurvival.from_encoder(pretrained()).eval()
    before = over(batch)
    with pytest.raises(EhrError) as error:
        load_adapter(over, path)
    assert error.value.code == Exit.BUNDLE
    assert torch.equal(over(batch), before)
    assert adapter_of(over.behrt) is None


def test_a_head_with_other_bins_is_refused(tmp_path):
    save_adapter(adapted(), tmp_path / "adapter.safetensors")
    with pytest.raises(EhrError, match=r"hazard_head\.bias"):
        load_adapter(BEHRTForSurvival.from_encoder(pretrained(), n_bins=9), tmp_path / "adapter.safetensors")


def test_an_encoder_without_adapter_has_none_to_save(tmp_path):
    with pytest.raises(EhrError, match="no adapter"):
        save_adapter(BEHRTForSurvival(tiny_config()), tmp_path / "adapter.safetensors")
    assert list(tmp_path.iterdir()) == []


# merging


def test_merging_keeps_predictions_and_leaves_a_plain_encoder(batch, tmp_path):
    model = adapted()
    before = model(batch)
    assert merge_lora(model.behrt) is model.behrt
    torch.testing.assert_close(model(batch), before, rtol=0, atol=1e-5)
    assert adapter_names(model) == []
    assert model.state_dict().keys() == BEHRTForSurvival(tiny_config(head=model.config.head)).state_dict().keys()
    model.save_pretrained(tmp_path)
    assert torch.equal(BEHRTForSurvival.from_pretrained(tmp_path)(batch), model(batch))


def test_a_merged_encoder_takes_a_new_adapter(batch):
    model = adapted()
    merge_lora(model.behrt)
    before = model(batch)
    apply_lora_to_behrt(model.behrt, rank=2, alpha=2)
    assert torch.equal(model(batch), before)


def test_an_encoder_with_an_adapter_is_not_a_base():
    with pytest.raises(EhrError, match="merge it first") as error:
        BEHRTForSurvival.from_encoder(adapted().behrt)
    assert error.value.code == Exit.BUNDLE


def test_one_base_serves_another_outcome_by_its_adapter_file(batch, tmp_path):
    """Another rank, another head, another number of bins: what stays is the base."""
    first, second = adapted(), adapted(seed=5, n_bins=9, hazards="proportional")
    assert not torch.allclose(first(batch)[..., :6], second(batch)[..., :6])
    save_adapter(first, tmp_path / "first.safetensors")
    save_adapter(second, tmp_path / "second.safetensors")
    own = first(batch)
    assert switch_adapter(first, tmp_path / "second.safetensors") is first
    assert torch.equal(first.eval()(batch), second(batch))
    assert torch.equal(switch_adapter(first, tmp_path / "first.safetensors").eval()(batch), own)


def test_a_file_over_another_base_leaves_the_model_as_it_was(batch, tmp_path):
    other, model = adapted(), adapted()
    with torch.no_grad():
        other.behrt.layers[0].feed_in.weight.add_(1.0)
    save_adapter(other, tmp_path / "other.safetensors")
    before = model(batch)
    with pytest.raises(EhrError, match="another base") as caught:
        switch_adapter(model, tmp_path / "other.safetensors")
    assert caught.value.code == Exit.BUNDLE
    assert torch.equal(model(batch), before)


def test_embeddings_trained_beside_an_adapter_are_no_common_base(tmp_path):
    model = adapted()
    save_adapter(model, tmp_path / "plain.safetensors")
    model.behrt.config.lora_train_embeddings = True
    with pytest.raises(EhrError, match="load its encoder again"):
        switch_adapter(model, tmp_path / "plain.safetensors")


def test_an_adapter_trained_under_another_mask_is_refused(tmp_path):
    torch.manual_seed(0)
    asked = BEHRTForSurvival.from_encoder(pretrained(), strategy="lora", attention="block_causal")
    save_adapter(asked, tmp_path / "asked.safetensors")
    with pytest.raises(EhrError, match="another attention") as caught:
        switch_adapter(adapted(), tmp_path / "asked.safetensors")
    assert caught.value.code == Exit.BUNDLE
