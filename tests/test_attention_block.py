"""The block-causal mask: who sees whom, packed as padded, refusals, pretraining under it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from ehrsequencing.bundle import Encoder
from ehrsequencing.config import InputConfig, ModelConfig, PretrainConfig, SplitConfig, TokensConfig
from ehrsequencing.errors import EhrError, Exit
from ehrsequencing.models.attention import Layout
from ehrsequencing.models.backends import attend
from ehrsequencing.models.behrt import BEHRTConfig, BEHRTModel
from ehrsequencing.models.behrt_survival import BEHRTForSurvival
from ehrsequencing.models.pooling import pool_visits
from ehrsequencing.models.rotary import coordinates
from ehrsequencing.models.tiles import LONG, repeatable_lengths
from ehrsequencing.study.data import divisions, pretraining_records
from ehrsequencing.study.steps import pretrain
from tiny_batches import VOCAB, garbage_in_padding, random_batch, rows_of, shake, tiny_config

CAUSAL = {"attention": "block_causal"}
AT_VISITS = {"attention": "block_causal", "predict_at": "every_visit"}


def seen_by_definition(q, k, v, visit, mask):
    """One query at a time: softmax over the real keys of its own and earlier visits."""
    out = torch.zeros_like(q)
    for b, i in mask.nonzero().tolist():
        seen = mask[b] & (visit[b] <= visit[b, i])
        weight = torch.softmax(k[b, :, seen] @ q[b, :, i, :, None] / q.shape[-1] ** 0.5, dim=1)
        out[b, :, i] = (weight * v[b, :, seen]).sum(dim=1)
    return out


@pytest.mark.parametrize("repeatable", [True, False])
@pytest.mark.parametrize("length", [20, 70, 300])
def test_packed_attention_is_the_definition(length, repeatable):
    batch = random_batch(rows=4, length=length, seed=length)
    q, k, v = (torch.randn(4, 2, batch.mask.shape[1], 8) for _ in range(3))
    layout = Layout.block_causal(batch.mask, batch.visit, repeatable=repeatable)

    def packed(x):
        return layout.pack(x.transpose(1, 2)).transpose(1, 2)

    mixed = attend(packed(q), packed(k), packed(v), layout)
    found = layout.unpack(mixed.transpose(1, 2).flatten(2)).unflatten(-1, (2, 8)).transpose(1, 2)
    expected = seen_by_definition(q, k, v, batch.visit, batch.mask)
    real = batch.mask[:, None, :, None]
    assert torch.allclose(found * real, expected * real, atol=1e-5)


def test_hidden_states_do_not_depend_on_padding_or_company():
    torch.manual_seed(0)
    model, batch = BEHRTModel(tiny_config(**CAUSAL)).eval(), random_batch(length=50)
    shake(model)
    with torch.no_grad():
        together = model(batch)
        assert torch.equal(model(garbage_in_padding(batch))[batch.mask], together[batch.mask])
        for row in range(len(batch)):
            alone = rows_of(batch, [row], extra_padding=3)
            assert torch.equal(model(alone)[alone.mask], together[row][batch.mask[row]])


@pytest.mark.parametrize("architecture", ["behrt", "hierarchical"])
@pytest.mark.parametrize("length", [60, 200, 340, 700])
def test_no_bit_depends_on_how_long_the_record_goes_on(length, architecture):
    """Wherever it is cut: products sum over keys in pieces that depend on how many there are."""
    torch.manual_seed(0)
    config = BEHRTConfig.small(VOCAB, value_codes=(5, 9, 20), architecture=architecture, **AT_VISITS)
    model, whole = BEHRTForSurvival(config).eval(), rows_of(random_batch(rows=2, length=length), [0])
    shake(model)
    with torch.no_grad():
        expected = model(whole)[0]
        for visit in range(1, int(whole.visit.max()), max(length // 60, 1)):
            kept = int((whole.visit[0] <= visit).sum())
            short = rows_of(replace(whole, mask=whole.mask & (torch.arange(length) < kept)), [0])
            assert torch.equal(model(short)[0, : visit + 1], expected[: visit + 1]), visit


def test_lengths_repeat_on_this_processor():
    """The keys after a query's own, and how many they are, change no bit of what it gets; found, not assumed."""
    lengths = repeatable_lengths()
    assert lengths[-1] == LONG
    q, k, v = torch.randn(3, 2, 4, 2 * LONG, 32, generator=torch.Generator().manual_seed(3))
    hidden = torch.full((2 * LONG, 2 * LONG), -torch.inf).triu(1)
    expected = scaled_dot_product_attention(q, k, v, attn_mask=hidden)
    for n in lengths:
        found = scaled_dot_product_attention(q[:, :, :n], k[:, :, :n], v[:, :, :n], attn_mask=hidden[:n, :n])
        assert torch.equal(found, expected[:, :, :n]), n


def test_lengths_are_tried_in_single_precision_whatever_is_usual_now():
    usual = repeatable_lengths()
    repeatable_lengths.cache_clear()
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"):
            assert repeatable_lengths() == usual
    finally:
        torch.set_default_dtype(torch.float32)
        repeatable_lengths.cache_clear()


def test_training_sees_the_same_as_prediction():
    """The faster rounding of training gives the same vectors."""
    torch.manual_seed(0)
    model, batch = BEHRTModel(tiny_config(**CAUSAL, dropout=0.0)), random_batch(rows=3, length=300)
    shake(model)
    with torch.no_grad():
        trained, predicted = model.train()(batch), model.eval()(batch)
    assert torch.allclose(trained[batch.mask], predicted[batch.mask], atol=1e-5)


def test_static_tokens_and_cls_see_no_visit():
    torch.manual_seed(0)
    model, batch = BEHRTModel(tiny_config(**CAUSAL)).eval(), random_batch(rows=2, length=14)
    shake(model)
    changed = batch.code.clone()
    changed[:, 5:] = 11
    with torch.no_grad():
        before, after = model(batch), model(replace(batch, code=changed))
    first = batch.visit[0] == 0
    assert first.sum() == 1
    assert torch.equal(before[0, first], after[0, first])
    assert not torch.equal(before[0, 5:], after[0, 5:])


def test_cls_stands_at_the_start():
    where = coordinates(random_batch(), block_causal=True)
    assert (where[:, 0] == 0).all()
    assert (coordinates(random_batch())[0, 0] != 0).any()


def test_a_visits_vector_is_mean_maximum_and_mean_so_far():
    batch = random_batch(rows=5, length=17)
    hidden = torch.randn(5, 17, 6)
    found = pool_visits(hidden, batch.outline)
    for row in range(5):
        for visit in range(int(batch.visit[row].max()) + 1):
            own = hidden[row][batch.mask[row] & (batch.visit[row] == visit)]
            so_far = hidden[row][batch.mask[row] & (batch.visit[row] <= visit)]
            expected = torch.cat([own.mean(0), own.amax(0), so_far.mean(0)])
            assert torch.allclose(found[row, visit], expected, atol=1e-6)


def test_hazards_come_at_every_visit():
    torch.manual_seed(0)
    model, batch = BEHRTForSurvival(tiny_config(**AT_VISITS)).eval(), random_batch(length=14)
    shake(model)
    logits = model(batch)
    assert logits.shape == (len(batch), int(batch.visit.max()) + 1, 6)
    assert len(logits[0].unique(dim=0)) == logits.shape[1]


def test_bidirectional_hazards_at_every_visit_are_refused_always():
    with pytest.raises(EhrError, match="read the visits after it") as caught:
        BEHRTConfig.small(50, predict_at="every_visit")
    assert caught.value.code == Exit.LEAKAGE
    with pytest.raises(EhrError, match="read the visits after it") as caught:
        BEHRTForSurvival.from_encoder(
            BEHRTModel(tiny_config(**CAUSAL)), predict_at="every_visit", attention="bidirectional"
        )
    assert caught.value.code == Exit.LEAKAGE


def test_an_encoder_of_the_other_mask_is_refused_unless_asked_for_by_name():
    bidirectional, causal = BEHRTModel(tiny_config()), BEHRTModel(tiny_config(**CAUSAL))
    with pytest.raises(EhrError, match="read the visits after it") as caught:
        BEHRTForSurvival.from_encoder(bidirectional, predict_at="every_visit")
    assert caught.value.code == Exit.LEAKAGE
    with pytest.raises(EhrError, match="found 'block_causal'") as caught:
        BEHRTForSurvival.from_encoder(causal)
    assert caught.value.code == Exit.CONFIG
    asked = BEHRTForSurvival.from_encoder(bidirectional, predict_at="every_visit", attention="block_causal")
    assert asked.config.attention == "block_causal"
    assert BEHRTForSurvival.from_encoder(causal, attention="bidirectional").config.attention == "bidirectional"
    assert BEHRTForSurvival.from_encoder(causal, predict_at="every_visit").config.predict_at == "every_visit"


@pytest.mark.parametrize("setting", [{"attention": "causal"}, {"predict_at": "visits"}])
def test_unknown_masks_are_refused(setting):
    with pytest.raises(EhrError, match="unknown") as caught:
        BEHRTConfig.small(50, **setting)
    assert caught.value.code == Exit.CONFIG


def test_pretraining_records_its_mask_and_reads_whole_records(dataset, tmp_path):
    encoder = pretrain(
        dataset, PretrainConfig(epochs=1, batch_size=64), model=ModelConfig(attention="block_causal", dropout=0.0)
    )
    encoder.save(tmp_path / "encoder")
    again = Encoder.load(tmp_path / "encoder")
    assert again.record["attention"] == again.model.config.attention == "block_causal"
    assert again.record["accuracy"] > 0
    train = divisions(dataset, None, SplitConfig())[0].train_subjects()
    _, store = pretraining_records(dataset, train, InputConfig(), TokensConfig(max_tokens=24), attention="block_causal")
    assert len(store) > len(np.unique(store.subject_id))
    assert store.lengths.max() <= 24
    assert again.record["subjects"] == len(np.unique(store.subject_id))
