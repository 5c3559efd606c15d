"""Every strategy by its effect: what it trains moves, what it does not stays bit for bit, and the audit sees."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import ehrsequencing
from ehrsequencing.errors import EhrError, Exit
from ehrsequencing.models.behrt import BEHRTModel
from ehrsequencing.models.behrt_survival import BEHRTForSurvival
from ehrsequencing.models.footprint import FootprintAudit, footprint
from ehrsequencing.models.lora import apply_lora_to_behrt, is_adapter, merge_lora
from ehrsequencing.models.losses import hybrid_loss
from ehrsequencing.models.pretraining import BEHRTForMaskedLM, mask_tokens
from ehrsequencing.models.strategies import STRATEGIES, Strategy, apply_strategy, find_strategy
from tiny_batches import random_batch, shake, tiny_config

MLP_STRATEGIES = [name for name, s in STRATEGIES.items() if s.head != "linear"]


@pytest.fixture(scope="module")
def batch():
    return random_batch(rows=8)


@pytest.fixture(scope="module")
def encoder():
    torch.manual_seed(0)
    model = BEHRTModel(tiny_config())
    shake(model)
    return model


def outcome(rows: int = 8):
    g = torch.Generator().manual_seed(4)
    bins, fraction = torch.randint(6, (rows,), generator=g), torch.rand(rows, generator=g).clamp_min(0.01)
    return bins, fraction, torch.randint(2, (rows,), generator=g), bins + fraction


def loss_of(logits: torch.Tensor) -> torch.Tensor:
    return hybrid_loss(logits[:, 0], *outcome(len(logits)), lambda_rank=0.1).loss


def train(model, batch, steps: int = 3, audit: FootprintAudit | None = None) -> None:
    model.train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2, weight_decay=0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        loss_of(model(batch)).backward()
        if audit is not None:
            audit.observe(model)
        optimizer.step()


def trainable(model) -> set[str]:
    return {name for name, p in model.named_parameters() if p.requires_grad}


def expected_trainable(model, name: str) -> set[str]:
    chosen = {
        "frozen": lambda n: n.startswith("hazard_head."),
        "lora": lambda n: n.startswith("hazard_head.") or is_adapter(n),
        "full": lambda n: True,
    }
    family = {"frozen-ridge": "frozen", "frozen-random": "frozen", "lora-8": "lora", "from-scratch": "full"}
    return {n for n, _ in model.named_parameters() if chosen[family.get(name, name)](n)}


def test_the_table_is_the_founding_documents_with_its_controls():
    assert set(STRATEGIES) == {"frozen", "frozen-ridge", "lora", "lora-8", "full", "from-scratch", "frozen-random"}
    assert {n for n, s in STRATEGIES.items() if s.kind == "control"} == {"from-scratch", "frozen-random"}
    assert {n for n, s in STRATEGIES.items() if s.encoder == "random"} == {"from-scratch", "frozen-random"}
    assert {n for n, s in STRATEGIES.items() if s.cached_features} == {"frozen", "frozen-ridge", "frozen-random"}
    assert (STRATEGIES["lora"].lora_rank, STRATEGIES["lora"].lora_alpha) == (16, 32)
    assert all(s.why and s.name == name for name, s in STRATEGIES.items())


@pytest.mark.parametrize("name", STRATEGIES)
def test_training_moves_what_the_strategy_trains_and_nothing_else(encoder, batch, name):
    model = BEHRTForSurvival.from_encoder(encoder, strategy=name, head="mlp")
    assert trainable(model) == expected_trainable(model, name)
    before = {n: t.clone() for n, t in model.state_dict().items()}
    audit = FootprintAudit(model)
    train(model, batch, audit=audit)
    audit.assert_after_epoch(model)
    moved = {n for n, t in model.state_dict().items() if not torch.equal(t, before[n])}
    assert moved == expected_trainable(model, name)


@pytest.mark.parametrize("name", STRATEGIES)
def test_applying_again_changes_nothing(encoder, batch, name):
    model = BEHRTForSurvival.from_encoder(encoder, strategy=name).eval()
    before, names = model(batch), list(model.state_dict())
    assert apply_strategy(model, name) is model
    apply_strategy(model, STRATEGIES[name])
    assert list(model.state_dict()) == names
    assert trainable(model) == expected_trainable(model, name)
    assert torch.equal(model(batch), before)


@pytest.mark.parametrize("name", STRATEGIES)
def test_from_pretrained_followed_by_the_strategy_has_the_right_trainable_set(encoder, tmp_path, name):
    model = BEHRTForSurvival.from_encoder(encoder, strategy=name)
    model.save_pretrained(tmp_path)
    again = BEHRTForSurvival.from_pretrained(tmp_path)
    assert trainable(again) == expected_trainable(model, name)
    apply_strategy(again, name)
    assert trainable(again) == expected_trainable(model, name)


def test_random_encoders_share_nothing_with_the_pretrained_one_but_its_shape(encoder, batch):
    torch.manual_seed(7)
    random = BEHRTForSurvival.from_encoder(encoder, strategy="frozen-random").eval()
    kept = BEHRTForSurvival.from_encoder(encoder, strategy="frozen").eval()
    assert torch.equal(kept.behrt(batch), encoder.eval()(batch))
    assert (random.behrt(batch) - encoder(batch)).abs().max() > 0.1
    assert {n: t.shape for n, t in random.behrt.state_dict().items()} == {
        n: t.shape for n, t in encoder.state_dict().items()
    }
    for name, p in random.behrt.named_parameters():
        if p.dim() == 2:
            assert not torch.equal(p, kept.behrt.get_parameter(name)), name


def test_switching_strategies_leaves_exactly_the_last_ones_set(encoder):
    model = BEHRTForSurvival.from_encoder(encoder, strategy="frozen")
    for name in ("full", "frozen", "lora"):
        apply_strategy(model, name)
        assert trainable(model) == expected_trainable(model, name)
        assert (model.config.freeze_behrt, model.config.use_lora) == (name == "frozen", name == "lora")


@pytest.mark.parametrize("name", ["frozen", "full"])
def test_an_adapter_in_the_way_is_refused_until_merged(encoder, name):
    model = BEHRTForSurvival.from_encoder(encoder, strategy="lora")
    before = trainable(model)
    with pytest.raises(EhrError, match="merge it") as error:
        apply_strategy(model, name)
    assert error.value.code == Exit.CONFIG
    assert trainable(model) == before
    merge_lora(model.behrt)
    apply_strategy(model, name)
    assert trainable(model) == expected_trainable(model, name)


def test_lora_16_does_not_pass_for_lora_8(encoder):
    model = BEHRTForSurvival.from_encoder(encoder, strategy="lora")
    with pytest.raises(EhrError, match=r"rank 16.*rank 8"):
        apply_strategy(model, "lora-8")


def test_an_unknown_strategy_names_the_nearest():
    with pytest.raises(EhrError, match="did you mean 'frozen'") as error:
        find_strategy("frosen")
    assert error.value.code == Exit.CONFIG


def test_embeddings_beside_lora_are_a_strategy_of_ones_own(encoder, tmp_path):
    own = Strategy("lora+e", "also embeddings", frozenset({"head", "lora", "embeddings"}), lora_rank=4, lora_alpha=8)
    model = BEHRTForSurvival.from_encoder(encoder, strategy=own)
    wanted = {n for n in dict(model.named_parameters()) if is_adapter(n) or n.startswith(("hazard", "behrt.embed"))}
    assert trainable(model) == wanted
    model.save_pretrained(tmp_path)
    assert trainable(BEHRTForSurvival.from_pretrained(tmp_path)) == wanted


def test_only_strategies_and_the_injection_touch_requires_grad():
    root = Path(ehrsequencing.__file__).parent
    pattern = re.compile(r"requires_grad_\(|requires_grad\s*=[^=]")
    found = {path.relative_to(root).as_posix() for path in root.rglob("*.py") if pattern.search(path.read_text())}
    assert found <= {"models/strategies.py", "models/lora.py", "models/wide.py", "models/ridge.py"}


def test_cached_features_train_the_head_exactly_as_the_uncached_loop_does(encoder, batch):
    heads = []
    for cached in (False, True):
        torch.manual_seed(3)
        model = BEHRTForSurvival.from_encoder(encoder, strategy="frozen", dropout=0.5, head_dropout=0.0).train()
        features = model.features(batch)
        assert not features.requires_grad
        optimizer = torch.optim.AdamW(model.hazard_head.parameters(), lr=1e-2)
        for _ in range(5):
            optimizer.zero_grad()
            loss_of(model.hazard_head(features) if cached else model(batch)).backward()
            optimizer.step()
        heads.append(model.hazard_head.state_dict())
    assert all(torch.equal(heads[0][name], heads[1][name]) for name in heads[0])


# the footprint, said and held to


def test_the_footprint_says_what_is_about_to_be_trained(encoder):
    model = BEHRTForSurvival.from_encoder(encoder, strategy="lora")
    counts = model.get_trainable_parameters()
    assert counts["trainable"] == counts["lora"] + counts["head"]
    assert counts["trainable"] == sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert counts["total"] == sum(p.numel() for p in model.parameters())
    text = footprint(model)
    assert f"{counts['trainable']:,} / {counts['total']:,}" in text
    assert f"lora {counts['lora']:,}" in text


def test_the_audit_names_a_frozen_tensor_that_moved(encoder, batch):
    model = BEHRTForSurvival.from_encoder(encoder, strategy="lora")
    audit = FootprintAudit(model)
    train(model, batch, audit=audit)
    with torch.no_grad():
        model.behrt.layers[1].feed_in.bias[0] += 1e-7
    with pytest.raises(EhrError, match=r"frozen but changed: behrt\.layers\.1\.feed_in\.bias"):
        audit.assert_after_epoch(model)


def test_the_audit_names_a_trainable_tensor_that_is_never_used(encoder, batch):
    model = BEHRTForSurvival.from_encoder(encoder, strategy="full")
    model.behrt.unused = torch.nn.Linear(2, 2, bias=False)
    audit = FootprintAudit(model)
    train(model, batch, audit=audit)
    with pytest.raises(EhrError, match=r"without any gradient: behrt\.unused\.weight"):
        audit.assert_after_epoch(model)


def test_the_audit_catches_an_adapter_that_is_present_but_bypassed(encoder, batch):
    model = BEHRTForSurvival.from_encoder(encoder, strategy="lora")
    attention = model.behrt.layers[0].attention
    base = attention.out_proj.base_layer
    attention.out_proj.forward = lambda x: base(x)
    audit = FootprintAudit(model)
    train(model, batch, audit=audit)
    with pytest.raises(EhrError) as error:
        audit.assert_after_epoch(model)
    named = set(re.findall(r"behrt[\w.]+", str(error.value)))
    assert named == {f"behrt.layers.0.attention.out_proj.lora_{m}.default.weight" for m in "AB"}


def test_the_audit_catches_a_strategy_forgotten_after_loading(encoder, batch):
    model = BEHRTForSurvival.from_encoder(encoder, strategy="frozen")
    audit = FootprintAudit(model)
    for p in model.parameters():
        p.requires_grad_(True)
    model.config.freeze_behrt = False
    train(model, batch, audit=audit)
    with pytest.raises(EhrError, match="frozen but changed"):
        audit.assert_after_epoch(model)


def test_the_audit_excuses_lora_a_after_a_single_step_only(encoder, batch):
    model = BEHRTForSurvival.from_encoder(encoder, strategy="lora")
    audit = FootprintAudit(model)
    train(model, batch, steps=1, audit=audit)
    audit.assert_after_epoch(model)
    audit = FootprintAudit(model)
    for name, p in model.named_parameters():
        if is_adapter(name):
            p.register_hook(torch.zeros_like)
    train(model, batch, steps=2, audit=audit)
    with pytest.raises(EhrError, match="lora_A"):
        audit.assert_after_epoch(model)


def test_inputs_that_never_occurred_are_noted_not_blamed(encoder, batch):
    model = BEHRTForSurvival.from_encoder(encoder, strategy="full")
    off = torch.zeros_like(batch.mask)
    bare = replace(batch, has_value=off, age_known=off, age=batch.age * 0, gap=batch.gap * 0)
    audit = FootprintAudit(model)
    train(model, bare, audit=audit)
    audit.assert_after_epoch(model)
    text = "\n".join(audit.notes)
    for tensor, why in (("value_embedding", "numeric value"), ("age_projection", "age"), ("gap_projection", "time")):
        assert re.search(f"{tensor}.*{why}", text)
    train(model, batch, audit=(whole := FootprintAudit(model)))
    whole.assert_after_epoch(model)
    assert whole.notes == []


def test_the_audit_serves_pretraining_too(batch):
    torch.manual_seed(0)
    lm = BEHRTForMaskedLM(tiny_config())
    audit = FootprintAudit(lm)
    optimizer = torch.optim.AdamW(lm.parameters())
    for step in range(3):
        hidden, targets = mask_tokens(batch, 60, torch.Generator().manual_seed(step), fraction=0.5)
        lm(hidden, targets).loss.backward()
        audit.observe(lm)
        optimizer.step()
    audit.assert_after_epoch(lm)


def test_use_lora_and_freeze_behrt_as_constructor_arguments(batch, tmp_path):
    for choice in ({"freeze_behrt": True}, {"use_lora": True}, {}):
        model = BEHRTForSurvival(tiny_config(), **choice)
        name = {"freeze_behrt": "frozen", "use_lora": "lora"}.get(next(iter(choice), ""), "full")
        assert trainable(model) == expected_trainable(model, name)
        shake(model)
        model.eval().save_pretrained(tmp_path / name)
        again = BEHRTForSurvival.from_pretrained(tmp_path / name)
        assert trainable(again) == trainable(model)
        assert torch.equal(again(batch), model(batch))
    with pytest.raises(EhrError, match="both true") as error:
        BEHRTForSurvival(tiny_config(), freeze_behrt=True, use_lora=True)
    assert error.value.code == Exit.CONFIG


def test_a_constructor_leaves_the_configuration_it_was_given_alone():
    config = tiny_config()
    BEHRTForSurvival(config, use_lora=True)
    assert not config.use_lora


def test_the_founding_call_on_a_model_then_its_strategy_agree(encoder):
    model = BEHRTForSurvival.from_encoder(encoder)
    model.behrt = apply_lora_to_behrt(model.behrt, rank=16, alpha=32)
    assert trainable(model) == expected_trainable(model, "lora")
    apply_strategy(model, "lora")
    assert trainable(model) == expected_trainable(model, "lora")
