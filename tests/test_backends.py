"""Attention back-ends: each against the padded reference, in outputs and gradients; who is chosen; packs and spans."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.attention.flex_attention as flex_module

from ehrsequencing.batches import Batch
from ehrsequencing.device import Compute, computing
from ehrsequencing.models import backends
from ehrsequencing.models.attention import Reading
from ehrsequencing.models.backends import BACKENDS, attend, fitting, lay_out, spans
from ehrsequencing.models.behrt import BEHRTModel, make_encoder
from ehrsequencing.models.flat_attention import BLOCK, SEQUENCES, Flat, pack_size
from tiny_batches import random_batch, shake, tiny_config

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
NO_GPU = "no CUDA device: the kernels of this back-end exist there only"
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # torch's own look
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason=NO_GPU)

HEADS, CHANNELS = 4, 16
READINGS = {
    "bidirectional": Reading(),
    "block-causal": Reading(block_causal=True),
    "relations": Reading(("record", "past", "visit", "past")),
    "block-causal relations": Reading(("record", "past", "visit", "past"), block_causal=True),
}
PLACES = [
    pytest.param("by_length", CPU, id="by_length-cpu"),
    pytest.param("flex", CPU, id="flex-cpu"),
    pytest.param("padded", CUDA, id="padded-cuda", marks=needs_cuda),
    pytest.param("flex", CUDA, id="flex-cuda", marks=needs_cuda),
]


@pytest.fixture
def eager_flex(monkeypatch: pytest.MonkeyPatch) -> None:
    """FlexAttention term by term on a CPU, gradients included: torch has its derivative there but guards the door."""
    monkeypatch.setattr(flex_module, "_validate_device", lambda *_: None)
    monkeypatch.setattr(flex_module, "_WARNINGS_SHOWN", {"flex_attention_performance"}, raising=True)


def records(length: int = 70, rows: int = 7) -> Batch:
    """Of up to ``length`` tokens, one of them [CLS] alone."""
    return random_batch(rows=rows, length=length, seed=length)


def mixed(name: str, batch: Batch, reading: Reading, device: torch.device, dtype=torch.float32) -> list[torch.Tensor]:
    """Outputs and gradients of queries, keys and values at the real tokens of the batch, back on the host."""
    generator = torch.Generator().manual_seed(1)
    shape = (*batch.mask.shape, HEADS, CHANNELS)
    drawn = [torch.randn(shape, generator=generator).to(device, dtype) for _ in range(4)]
    q, k, v = (x.requires_grad_() for x in drawn[:3])
    layout = lay_out(batch.to(device), reading, name)
    found = attend(*(layout.pack(x).transpose(1, 2) for x in (q, k, v)), layout)  # [1,heads,S,D]
    out = layout.unpack(found.transpose(1, 2).flatten(2)).unflatten(-1, (HEADS, CHANNELS))  # [B,L,heads,D]
    real = batch.mask[..., None, None].to(device)
    (out * real * drawn[3]).sum().backward()
    return [x[batch.mask.to(device)].detach().cpu().float() for x in (out, q.grad, k.grad, v.grad)]


@pytest.mark.parametrize("kind", READINGS)
@pytest.mark.parametrize(("name", "device"), PLACES)
@pytest.mark.usefixtures("eager_flex")
def test_every_backend_is_the_padded_reference(name, device, kind):
    batch, reading = records(), READINGS[kind]
    for found, expected in zip(mixed(name, batch, reading, device), mixed("padded", batch, reading, CPU), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@needs_cuda
@pytest.mark.parametrize("length", [1, 70, 96])
def test_variable_length_attention_is_the_padded_reference(length):
    """In bfloat16, its kernel's own precision: as near to the float32 reference as bfloat16 is."""
    batch = records(length)
    found = mixed("varlen", batch, Reading(), CUDA, torch.bfloat16)
    for part, expected in zip(found, mixed("padded", batch, Reading(), CPU), strict=True):
        torch.testing.assert_close(part, expected, rtol=2e-2, atol=3e-2)


def test_varlens_sequences_are_the_records_then_the_padding():
    batch = records()
    flat = Flat.by_records(batch.outline, CPU)
    starts = flat.starts.tolist()
    sizes = np.diff(starts)
    assert sizes[: len(batch)].tolist() == batch.outline.lengths.tolist()
    assert sizes.sum() == flat.size
    assert sizes.max() <= flat.longest
    assert (len(starts) - 1) % SEQUENCES == 0


@pytest.mark.parametrize("kind", READINGS)
def test_spans_are_what_the_reference_sees(kind):
    batch, reading = records(), READINGS[kind]
    heads = reading.relations or ("record",)
    seen = lay_out(batch, reading, "padded").key_mask.expand(len(batch), len(heads), *batch.mask.shape[1:] * 2)
    found, outline = spans(batch, reading), batch.outline
    begin = np.cumsum(outline.lengths) - outline.lengths
    for h, name in enumerate(heads):
        for token, (first, end) in enumerate(zip(*found[name], strict=True)):
            row, at = outline.row[token], outline.position[token]
            keys = np.flatnonzero(seen[row, h, at].numpy()) + begin[row]
            assert keys.tolist() == list(range(first, end)), (name, token)


@pytest.mark.parametrize("kind", READINGS)
def test_flexs_blocks_are_those_that_torch_would_find(kind):
    batch, reading = records(length=96, rows=20), READINGS[kind]
    found = lay_out(batch, reading, "flex").flat.blocks
    size = found.seq_lengths[0]
    heads = len(reading.relations) or None
    expected = flex_module.create_block_mask(found.mask_mod, None, heads, size, size, "cpu", BLOCK)
    assert torch.equal(found.to_dense(), expected.to_dense())
    for name in ("kv_num_blocks", "full_kv_num_blocks", "q_num_blocks", "full_q_num_blocks"):
        assert torch.equal(getattr(found, name), getattr(expected, name)), name
    for name in ("kv", "full_kv", "q", "full_q"):
        count, numbers = getattr(found, f"{name}_num_blocks"), getattr(found, f"{name}_indices")
        counts = torch.arange(numbers.shape[-1]) < count[..., None]
        assert torch.equal(numbers[counts], getattr(expected, f"{name}_indices")[counts]), name


def test_packs_have_few_sizes():
    sizes = {pack_size(tokens) for tokens in range(1, 65_537)}
    assert len(sizes) == 17
    assert all(size % BLOCK == 0 for size in sizes)
    assert all(tokens <= pack_size(tokens) <= max(256, 1.5 * tokens) for tokens in range(1, 65_537))


@pytest.mark.parametrize(
    ("device", "half", "reading", "expected"),
    [
        (CPU, False, READINGS["relations"], "by_length"),
        (CPU, True, Reading(dropout=0.1), "by_length"),
        (CUDA, True, Reading(), "varlen"),
        (CUDA, False, Reading(), "flex"),
        (CUDA, True, READINGS["relations"], "flex"),
        (CUDA, True, READINGS["block-causal"], "flex"),
        (CUDA, True, Reading(dropout=0.1), "padded"),
    ],
)
def test_the_table_says_who_attends(device, half, reading, expected, monkeypatch):
    monkeypatch.setattr(backends, "has_triton", lambda: True)
    with computing(Compute(device, half=half)):
        assert fitting(device, reading) == expected


def test_without_triton_cuda_keeps_the_reference(monkeypatch):
    monkeypatch.setattr(backends, "has_triton", lambda: False)
    assert fitting(CUDA, READINGS["relations"]) == "padded"


def test_every_backend_says_why():
    assert all(backend.why for backend in BACKENDS.values())
    assert list(BACKENDS)[-1] == "padded"


@pytest.mark.parametrize("architecture", ["behrt", "hierarchical"])
@pytest.mark.parametrize("attention", ["bidirectional", "block_causal"])
@pytest.mark.parametrize("relations", [(), ("record", "past", "past", "record")])
@pytest.mark.parametrize("name", ["flex", "by_length"])
@pytest.mark.usefixtures("eager_flex")
def test_an_encoder_over_a_flat_row_is_the_padded_encoder(name, architecture, attention, relations, monkeypatch):
    """States, pooled vectors and gradients of the whole encoder, whatever its architecture, mask and heads."""
    torch.manual_seed(0)
    model = make_encoder(tiny_config(architecture=architecture, attention=attention, relations=relations, dropout=0.0))
    shake(model)
    for training, batch in ((True, random_batch(rows=6, length=40)), (False, random_batch(rows=2, length=300))):
        model.train(training)
        found, reference = (_read(model, batch, each, monkeypatch) for each in (name, "padded"))
        for part, expected in zip(found, reference, strict=True):
            assert float((part - expected).norm()) <= 1e-5 * float(expected.norm()), part.shape


def _read(model: BEHRTModel, batch: Batch, name: str, monkeypatch) -> list[torch.Tensor]:
    monkeypatch.setattr(backends, "fitting", lambda *_: name)
    model.zero_grad()
    encoded = model.encoded(batch)
    read = [encoded.tokens()[batch.mask], encoded.at(batch.mask.flatten().nonzero()[:, 0]), encoded.pooled()]
    if model.config.attention == "block_causal":
        read.append(encoded.pooled_visits()[:, 0])
    sum(part.square().mean() for part in read).backward()
    return [*(part.detach() for part in read), *(p.grad for p in model.parameters() if p.grad is not None)]
