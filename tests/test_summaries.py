"""The record's summary against a plain definition, head relations, hidden codes, and a head that starts at the fit."""

from __future__ import annotations

import datetime as dt
import math
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
import torch
from torch.nn.functional import pad

from ehrsequencing.batches import Batch, collate, days_ago
from ehrsequencing.config import TokensConfig
from ehrsequencing.errors import EhrError
from ehrsequencing.models import backends
from ehrsequencing.models.behrt import BEHRTConfig, BEHRTModel, hide_codes
from ehrsequencing.models.behrt_survival import BEHRTForSurvival
from ehrsequencing.models.pretraining_heads import SummaryHead
from ehrsequencing.models.wide import RidgeHazard
from ehrsequencing.tokens import CLS, MASK, Tokenizer, tokenize
from ehrsequencing.training.summaries import summarise
from planted import SCHEMA
from tiny_batches import tiny_config

# three visits: days 0, 100 and 465; [CLS] stands 35 days after the last
CODES = [CLS, 9, 6, 7, 6, 5, 5, 5]
VISITS = [0, 0, 1, 1, 2, 2, 3, 3]
GAPS = [35.0, 0.0, 0.0, 0.0, 100.0, 100.0, 365.0, 365.0]
DAYS = [0.0, math.inf, 500.0, 500.0, 400.0, 400.0, 35.0, 35.0]
VALUES = [0.0, 0.0, 0.0, 0.0, 0.0, 1.0, 2.0, 3.0]


def record() -> Batch:
    row = lambda x, kind: torch.tensor([x], dtype=kind)  # noqa: E731
    valued = [code == 5 for code in CODES]
    return Batch(
        code=row(CODES, torch.long),
        value=row(VALUES, torch.float32),
        has_value=row(valued, torch.bool),
        age=row([50.0] * 8, torch.float32),
        age_known=row([True] * 8, torch.bool),
        visit=row(VISITS, torch.long),
        gap=row(GAPS, torch.float32),
        mask=row([True] * 8, torch.bool),
    )


def slots(*codes: int) -> torch.Tensor:
    found = torch.full((32,), -1)
    found[list(codes)] = torch.arange(len(codes))
    return found


def test_a_summary_is_what_the_definition_says():
    found = summarise(record(), torch.tensor([DAYS]), slots(5, 6, 7, 9, 11), 5, slots(5), 1)
    present, count, last, first = found.codes[0]
    assert present.tolist() == [1, 1, 1, 1, 0]
    assert count.tolist() == pytest.approx([math.log(4), math.log(3), math.log(2), math.log(2), 0])
    ago = {"last": [35, 400, 500], "first": [400, 500, 500]}  # of codes 5, 6, 7
    assert last.tolist() == pytest.approx([*(math.exp(-day / 365) for day in ago["last"]), 0, 0])
    assert first.tolist() == pytest.approx([*(math.exp(-day / 1_500) for day in ago["first"]), 0, 0])
    slope = np.polyfit(-np.array([400, 35, 35]) / 365.25, [1.0, 2.0, 3.0], 1)[0]
    assert found.values[0, :, 0].tolist() == pytest.approx([3.0, 2.0, slope], abs=1e-5)
    assert found.valued.tolist() == [[1.0]]


def test_padding_changes_no_summary():
    short, days = record(), torch.tensor([DAYS])
    rows = ((short, days), (short.widened(12), pad(days, (0, 4), value=math.inf)))
    for a, b in zip(*(vars(summarise(*x, slots(5, 6), 2, slots(5), 1)).values() for x in rows), strict=True):
        assert torch.equal(a, b)


def test_days_are_those_of_the_events_however_long_a_visit_lasts():
    """A stay of 60 days with a code at its beginning, and one at its end; read 0 days after that."""
    begin = dt.datetime(2020, 1, 1)
    events = [(0, "A", 1), (60, "B", 1), (100, "C", 2), (160, "D", 2)]
    rows = [
        (1, begin + dt.timedelta(days=160), begin + dt.timedelta(days=day), c, None, stay) for day, c, stay in events
    ]
    schema = {**SCHEMA, "stay": pl.Int64}
    history = pl.DataFrame(rows, schema=schema, orient="row")
    tokenizer = Tokenizer.fit(history, TokensConfig(min_subjects=1, visit_column="stay"))
    store = tokenize(history, history.select("subject_id", "prediction_time").unique(), tokenizer)
    at = np.arange(1)
    found = summarise(collate(store, at), days_ago(store, at), slots(*map(tokenizer.encode, "ABCD")), 4, slots(), 0)
    ago = [160, 100, 60, 0]
    assert found.codes[0, 2].tolist() == pytest.approx([math.exp(-day / 365) for day in ago], rel=1e-5)
    assert found.codes[0, 3].tolist() == pytest.approx([math.exp(-day / 1_500) for day in ago], rel=1e-5)


def test_a_saved_summary_head_has_the_same_shape():
    config = tiny_config()
    head = SummaryHead(config, 3, 1)
    head.set_codes(torch.tensor([5, 6, 7]), torch.tensor([5]))
    again = SummaryHead.like(config, head.state_dict())
    again.load_state_dict(head.state_dict())
    vectors = torch.randn(2, 3 * config.hidden_size)
    for a, b in zip(head(vectors), again(vectors), strict=True):
        assert torch.equal(a, b)


def hidden(relations: tuple[str, ...], batch: Batch, **settings) -> torch.Tensor:
    torch.manual_seed(0)
    model = BEHRTModel(tiny_config(relations=relations, num_hidden_layers=1, **settings)).eval()
    with torch.no_grad():
        return model(batch)[0]


@pytest.mark.parametrize(
    ("relation", "moved"),
    [("record", {0, 1, 2, 3, 4, 5, 6, 7}), ("past", {0, 4, 5, 6, 7}), ("visit", {4, 5})],
)
def test_a_head_reads_what_its_relation_allows(relation: str, moved: set[int]):
    batch = record()
    other = batch.code.clone()
    other[0, 4] = 11  # in visit 2
    change = (hidden((relation,), batch) - hidden((relation,), replace(batch, code=other))).abs().amax(dim=1)
    assert set((change > 0).nonzero().flatten().tolist()) == moved


def test_padded_and_packed_attention_agree_under_relations(monkeypatch):

    batch, relations = record(), ("record", "past", "visit", "past")
    packed = hidden(relations, batch)
    monkeypatch.setattr(backends, "fitting", lambda *_: "padded")
    padded = hidden(relations, batch.widened(11))[:8]
    torch.testing.assert_close(padded, packed, rtol=0, atol=1e-5)


def test_under_the_block_causal_mask_relations_never_show_later_visits():
    batch = record()
    other = batch.code.clone()
    other[0, 6] = 11  # in visit 3
    settings = {"attention": "block_causal"}
    a, b = (hidden(("record", "visit"), x, **settings) for x in (batch, replace(batch, code=other)))
    assert torch.equal(a[:6], b[:6])
    assert not torch.equal(a[6:], b[6:])


@pytest.mark.parametrize("relations", [("recrod",), ("record",) * 5])
def test_odd_relations_are_refused(relations):
    with pytest.raises(EhrError, match="relation"):
        tiny_config(relations=relations)


def test_an_encoder_of_fewer_heads_takes_the_first_relations():
    config = BEHRTConfig.small(vocab_size=50, num_attention_heads=2)
    assert config.head_relations == ("record", "past")
    assert BEHRTConfig.medium(vocab_size=50).head_relations == ("record", "past", "visit", "past") * 2


def test_hidden_codes_are_hidden_wherever_they_stand_and_only_in_training():
    torch.manual_seed(0)
    batch = record()
    seen = [hide_codes(batch, 32, 0.4) for _ in range(200)]
    for one in seen:
        for code in set(CODES) - {CLS}:
            own = one.code[batch.code == code]
            assert len(set(own.tolist())) == 1
            assert int(own[0]) in (code, MASK)
    assert all(not bool(one.has_value[one.code == MASK].any()) for one in seen)
    assert all(int(one.code[0, 0]) == CLS for one in seen)
    share = np.mean([(one.code[0, 1:] == MASK).float().mean() for one in seen])
    assert 0.3 < share < 0.5
    most = np.mean([(hide_codes(batch, 32, 0.9).code[0, 1:] == MASK).float().mean() for _ in range(200)])
    assert 0.85 < most < 0.95
    model = BEHRTModel(tiny_config(code_dropout=0.4, dropout=0.0))
    assert torch.equal(model.eval()(batch), model.eval()(batch))
    first, *others = [model.train()(batch) for _ in range(12)]
    assert not all(torch.equal(first, other) for other in others)


def test_a_residual_head_starts_at_the_convex_fit():
    torch.manual_seed(0)
    config = tiny_config(head="residual")
    model = BEHRTForSurvival(config).eval()
    width, rng = 3 * config.hidden_size, np.random.default_rng(0)
    ridge = RidgeHazard(rng.normal(size=width), np.ones(width), rng.normal(size=width) / 10, rng.normal(size=6), 1.0)
    model.hazard_head.set_ridge(ridge)
    x = rng.normal(size=(20, width))
    with torch.no_grad():
        found = model.hazards(torch.from_numpy(x).float()).numpy()
    np.testing.assert_allclose(found, ridge.logits(x), atol=0.15)
    model.hazard_head.hazard.weight.data.zero_()
    with torch.no_grad():
        found = model.hazards(torch.from_numpy(x).float()).numpy()
    np.testing.assert_allclose(found, ridge.logits(x), atol=1e-4)
