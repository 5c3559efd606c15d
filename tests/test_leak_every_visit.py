"""No visit's hazards depend on a later visit, to the bit: through tokens, windows, batches and the model."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass, replace

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cut_property import CODES, SCHEMA, VALUES
from ehrsequencing.batches import collate
from ehrsequencing.cohort import cut
from ehrsequencing.config import InputConfig, TokensConfig
from ehrsequencing.models import behrt, rotary
from ehrsequencing.models.behrt import BEHRTConfig
from ehrsequencing.models.behrt_survival import BEHRTForSurvival
from ehrsequencing.tokens import Tokenizer, tokenize_windows, windows
from tiny_batches import shake

LAST_DAY = dt.datetime(2013, 1, 1)
"""The past ends when this day does; what differs between two futures comes on later days."""
NO_TOKEN = ("MEDS_BIRTH", "MEDS_DEATH")


@dataclass(frozen=True)
class Futures:
    """The same whole visits twice, followed by unlike ones."""

    past: pl.DataFrame
    one: pl.DataFrame
    other: pl.DataFrame


def frame(lines) -> pl.DataFrame:
    table = pl.DataFrame(lines, schema=SCHEMA, orient="row")
    return table.sort("subject_id", "time", "code", nulls_last=False, maintain_order=True)


def lines(times, max_size: int):
    return st.lists(st.tuples(times, st.sampled_from(CODES), VALUES, st.none()), max_size=max_size)


RECENT = st.datetimes(LAST_DAY - dt.timedelta(days=6), LAST_DAY + dt.timedelta(hours=23))
PAST = st.none() | RECENT | st.datetimes(dt.datetime(1930, 1, 1), LAST_DAY)
NEXT = LAST_DAY + dt.timedelta(days=1)
FUTURE = st.just(NEXT) | st.datetimes(NEXT, NEXT + dt.timedelta(days=9)) | st.datetimes(NEXT, dt.datetime(2050, 1, 1))


@st.composite
def futures(draw: st.DrawFn) -> Futures:
    pasts = [
        (subject, *line)
        for subject, past in enumerate(draw(st.lists(lines(PAST, 12), min_size=1, max_size=4)))
        for line in past
    ]
    subjects = sorted({line[0] for line in pasts})
    one, other = ([(subject, *line) for subject in subjects for line in draw(lines(FUTURE, 40))] for _ in range(2))
    return Futures(frame(pasts), frame(pasts + one), frame(pasts + other))


def visits_of(past: pl.DataFrame) -> pl.DataFrame:
    """The calendar days with a token, each predicted at its last event."""
    dated = past.filter(pl.col("time").is_not_null())
    days = dated.group_by("subject_id", pl.col("time").dt.date().alias("day")).agg(
        prediction_time=pl.col("time").filter(~pl.col("code").is_in(NO_TOKEN)).max()
    )
    return days.drop_nulls().sort("subject_id", "prediction_time").select("subject_id", "prediction_time")


def made() -> tuple[Tokenizer, BEHRTForSurvival]:
    rng = np.random.default_rng(0)
    history = pl.DataFrame(
        {
            "subject_id": np.repeat(np.arange(30), len(CODES)),
            "code": CODES * 30,
            "numeric_value": rng.normal(size=30 * len(CODES)).astype(np.float32),
        }
    )
    known = history.filter(pl.col("code") != "UNSEEN//X")
    tokenizer = Tokenizer.fit(known, TokensConfig(max_tokens=20, min_subjects=1, min_values=2))
    torch.manual_seed(0)
    size = {"embedding_size": 16, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    vocabulary = {"vocab_size": tokenizer.vocab_size, "value_codes": tokenizer.value_codes}
    masks = {"attention": "block_causal", "predict_at": "every_visit"}
    model = BEHRTForSurvival(BEHRTConfig(**vocabulary, **size, **masks, n_bins=5)).eval()
    shake(model, 0.2)
    return tokenizer, model


TOKENIZER, MODEL = made()


@torch.inference_mode()
def hazards(events: pl.DataFrame, rows: pl.DataFrame) -> np.ndarray:
    """Hazard logits [n, K] of ``rows``, from whole records."""
    records = events.drop_nulls("time").group_by("subject_id").agg(prediction_time=pl.col("time").max())
    records = records.sort("subject_id")
    found = tokenize_windows(cut(events.lazy(), records, InputConfig()).collect(), records, TOKENIZER)
    window, visit = found.locate(rows)
    logits = MODEL(collate(found.tokens, np.arange(len(found.tokens))))  # [W, V, K]
    return logits[window, visit].numpy()


def assert_blind(case: Futures) -> None:
    rows = visits_of(case.past)
    if rows.is_empty():
        return
    one, other = hazards(case.one, rows), hazards(case.other, rows)
    assert np.isfinite(one).all()
    assert one.tobytes() == other.tobytes(), "earlier hazards differ with what comes later"


@settings(max_examples=60, deadline=None)
@given(futures())
def test_editing_adding_or_deleting_later_visits_changes_no_bit_of_earlier_hazards(case: Futures) -> None:
    assert_blind(case)


def example(n_visits: int) -> Futures:
    """A few visits of three codes each, followed by nothing, or by thirty visits more."""

    def visits(first: int, last: int):
        codes = ("LAB//NA", "LAB//HBA1C", "ICD10CM//E11.9")
        days = (LAST_DAY + dt.timedelta(days=day) for day in range(first, last))
        return [(0, day, code, 1.5, None) for day in days for code in codes]

    past = visits(-n_visits + 1, 1)
    return Futures(frame(past), frame(past), frame(past + visits(1, 30)))


@pytest.mark.parametrize("n_visits", [1, 2, 3, 4, 9, 30])
def test_thirty_more_visits_change_nothing(n_visits):
    assert_blind(example(n_visits))


def test_a_bidirectional_mask_is_caught(monkeypatch):
    monkeypatch.setattr(MODEL.behrt.config, "attention", "bidirectional")
    with pytest.raises(AssertionError, match="differ with what comes later"):
        assert_blind(example(2))


def test_a_cls_that_stands_at_the_records_end_is_caught(monkeypatch):
    honest = rotary.rotation
    leaky = lambda batch, width, layout, block_causal: honest(batch, width, layout)  # noqa: E731
    monkeypatch.setattr(behrt, "rotation", leaky)
    with pytest.raises(AssertionError, match="differ with what comes later"):
        assert_blind(example(2))


def test_truncation_from_the_end_is_caught(monkeypatch):
    """Windows that begin at distances from the record's end: what a visit reads depends on how much follows it."""
    of = windows._Plan.of

    def from_the_end(spans, max_tokens):
        plan = of(spans, max_tokens)
        moved = -(spans.row_end - spans.row_begin)[plan.record] % (plan.places // 2)
        return replace(plan, first=plan.first + moved, end=plan.end + moved)

    monkeypatch.setattr(windows._Plan, "of", from_the_end)
    with pytest.raises(AssertionError, match="differ with what comes later"):
        assert_blind(example(7))


def test_the_law_is_about_real_predictions():
    """Earlier visits do matter: the model reads what came before."""
    case = example(3)
    rows = visits_of(case.past).tail(1)
    fewer = case.past.filter(pl.col("time") != pl.col("time").min())
    assert hazards(case.past, rows).tobytes() != hazards(fewer, rows).tobytes()
