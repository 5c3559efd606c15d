"""Rank-stabilised adapters, DoRA, other targets and trained norms: what they do to outputs, and what moves."""

from __future__ import annotations

import pytest
import torch

from ehrsequencing.errors import EhrError, Exit
from ehrsequencing.models.behrt import BEHRTModel
from ehrsequencing.models.behrt_survival import BEHRTForSurvival
from ehrsequencing.models.lora import adapter_of, apply_lora_to_behrt, is_adapter, is_norm, merge_lora
from tiny_batches import random_batch, tiny_config

KINDS = {
    "plain": {},
    "rank-stabilised": {"rank_stabilised": True},
    "dora": {"dora": True},
    "feed-forward": {"targets": "attention+feed_forward"},
    "all": {"rank_stabilised": True, "dora": True, "targets": "attention+feed_forward"},
}


@pytest.fixture(params=KINDS)
def kind(request) -> dict:
    return KINDS[request.param]


def encoder() -> BEHRTModel:
    torch.manual_seed(0)
    return BEHRTModel(tiny_config()).eval()


def shaken(behrt: BEHRTModel) -> BEHRTModel:
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in behrt.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn_like(parameter))
    return behrt


def test_nothing_changes_at_step_0(kind):
    batch, plain = random_batch(), encoder()
    before = plain(batch)
    torch.testing.assert_close(apply_lora_to_behrt(plain, 4, 8, **kind)(batch), before, rtol=0, atol=2e-6)


def test_merged_and_unmerged_predict_the_same(kind):
    batch = random_batch()
    behrt = shaken(apply_lora_to_behrt(encoder(), 4, 8, **kind))
    with torch.no_grad():
        before, untouched = behrt(batch), encoder()(batch)
    assert float((before - untouched)[batch.mask].abs().max()) > 1e-3
    merged = merge_lora(behrt)
    torch.testing.assert_close(merged(batch), before, rtol=0, atol=1e-5)
    assert adapter_of(merged) is None
    assert merged.state_dict().keys() == encoder().state_dict().keys()


def test_a_rank_stabilised_update_is_alpha_over_the_root_of_the_rank():
    behrt = shaken(apply_lora_to_behrt(encoder(), 4, 8, rank_stabilised=True))
    layer = behrt.layers[0].attention.v_proj
    update = layer.lora_B["default"].weight @ layer.lora_A["default"].weight
    wanted = layer.base_layer.weight + 8 / 4**0.5 * update
    merge_lora(behrt)
    torch.testing.assert_close(behrt.layers[0].attention.v_proj.weight, wanted)


def test_dora_turns_a_weight_and_scales_it_by_a_magnitude():
    behrt = shaken(apply_lora_to_behrt(encoder(), 4, 8, dora=True))
    layer = behrt.layers[0].attention.v_proj
    turned = layer.base_layer.weight + 8 / 4 * layer.lora_B["default"].weight @ layer.lora_A["default"].weight
    wanted = layer.lora_magnitude_vector["default"].weight[:, None] * turned / turned.norm(dim=1, keepdim=True)
    merge_lora(behrt)
    torch.testing.assert_close(behrt.layers[0].attention.v_proj.weight, wanted)


@pytest.mark.parametrize("beside", [{}, {"train_embeddings": True}, {"train_norms": True}])
def test_only_what_was_asked_for_moves(beside):
    torch.manual_seed(0)
    model = BEHRTForSurvival(tiny_config())
    apply_lora_to_behrt(model.behrt, 4, 8, dora=True, **beside)
    before = {name: tensor.clone() for name, tensor in model.behrt.named_parameters()}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(2):
        model(random_batch()).square().mean().backward()
        optimizer.step()
    moved = {name for name, tensor in model.behrt.named_parameters() if not torch.equal(tensor, before[name])}
    for name in before:
        if is_adapter(name):
            assert name in moved
        elif is_norm(name) or name.startswith("embeddings."):
            asked = "train_embeddings" if name.startswith("embeddings.") else "train_norms"
            assert (name in moved) <= (bool(beside.get(asked)) or (is_norm(name) and "train_norms" in beside)), name
        else:
            assert name not in moved
    if beside:
        assert any(not is_adapter(name) for name in moved)


def test_another_kind_of_adapter_is_refused():
    behrt = apply_lora_to_behrt(encoder(), 4, 8)
    assert apply_lora_to_behrt(behrt, 4, 8) is behrt
    with pytest.raises(EhrError, match="already carries") as error:
        apply_lora_to_behrt(behrt, 4, 8, dora=True)
    assert error.value.code == Exit.CONFIG


def test_an_unknown_layer_is_named_and_the_encoder_is_as_it_was():
    behrt = encoder()
    with pytest.raises(EhrError, match="is named 'w_proj'") as error:
        apply_lora_to_behrt(behrt, 4, 8, targets=["w_proj"])
    assert error.value.code == Exit.CONFIG
    assert behrt.config.to_dict() == encoder().config.to_dict()


def test_a_saved_model_is_rebuilt_with_its_kind_of_adapter(tmp_path):
    torch.manual_seed(0)
    model = BEHRTForSurvival(tiny_config())
    apply_lora_to_behrt(model.behrt, 4, 8, dora=True, rank_stabilised=True)
    shaken(model.behrt)
    model.eval().save_pretrained(tmp_path)
    again = BEHRTForSurvival.from_pretrained(tmp_path)
    assert adapter_of(again.behrt) == adapter_of(model.behrt)
    assert torch.equal(again(random_batch()), model(random_batch()))
