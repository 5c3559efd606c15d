"""Every way to compute attention against the padded reference: outputs and gradients of queries, keys and values."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from ehrsequencing.models.attention import Layout
from ehrsequencing.models.backends import attend
from ehrsequencing.models.rotary import rotate
from tiny_batches import random_batch

HEADS, WIDTH = 4, 8
RELATIONS = ("record", "past", "visit", "past")
WAYS = {
    "bidirectional": lambda batch: Layout.packed(batch.mask),
    "bidirectional, heads apart": lambda batch: Layout.packed(batch.mask).related(
        batch.mask, batch.visit, RELATIONS, block_causal=False
    ),
    "block-causal": lambda batch: Layout.block_causal(batch.mask, batch.visit, repeatable=False),
    "block-causal, repeatable": lambda batch: Layout.block_causal(batch.mask, batch.visit),
    "block-causal, heads apart": lambda batch: Layout.block_causal(batch.mask, batch.visit).related(
        batch.mask, batch.visit, RELATIONS, block_causal=True
    ),
}
ONE_NODE, CALL_BY_CALL = 0.0, 1e-9
"""Shares dropped: with none the packed records are one node of the graph; with any, even none in practice, a call
each."""


def visible(way: str, batch) -> torch.Tensor:
    """[B, heads, L, L] by definition, token by token."""
    place, causal = batch.visit.clone(), way.startswith("block-causal")
    if not causal:
        place[:, 0] = batch.visit.amax(dim=1) + 1
    query, key = place[:, :, None], place[:, None, :]
    by_name = {"record": torch.ones_like(query >= key), "past": query >= key, "visit": query == key}
    planes = [by_name[name] for name in (RELATIONS if way.endswith("apart") else ("record",) * HEADS)]
    seen = torch.stack(planes, dim=1) & batch.mask[:, None, None, :]
    return seen & (batch.visit[:, None, :] <= batch.visit[:, :, None])[:, None] if causal else seen


@pytest.mark.parametrize("dropout", [ONE_NODE, CALL_BY_CALL])
@pytest.mark.parametrize("length", [9, 40, 290])
@pytest.mark.parametrize("way", WAYS)
def test_packed_attention_is_the_padded_reference(way, length, dropout):
    batch = random_batch(rows=5, length=length, seed=length)
    layout, real = WAYS[way](batch), batch.mask[:, None, :, None]
    g = torch.Generator().manual_seed(1)
    q, k, v, weight = (torch.randn(5, HEADS, batch.mask.shape[1], WIDTH, generator=g) for _ in range(4))
    for x in (q, k, v):
        x.requires_grad_()

    def pack(x):
        return layout.pack(x.transpose(1, 2)).transpose(1, 2)

    mixed = attend(pack(q), pack(k), pack(v), layout, dropout)  # [1,heads,T,D]
    found = layout.unpack(mixed.transpose(1, 2).flatten(2)).unflatten(-1, (HEADS, WIDTH)).transpose(1, 2) * real
    seen = visible(way, batch) | ~real  # padded queries see anything, so that none is empty
    expected = scaled_dot_product_attention(q, k, v, attn_mask=seen) * real
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    slopes = [torch.autograd.grad((out * weight).sum(), (q, k, v)) for out in (found, expected)]
    for own, reference in zip(*slopes, strict=True):
        torch.testing.assert_close(own, reference, rtol=0, atol=1e-5)


def test_the_padded_layout_is_its_definition():
    """What another device than a CPU computes."""
    batch = random_batch(rows=5, length=20)
    q, k, v = (torch.randn(5, HEADS, 20, WIDTH) for _ in range(3))
    real = batch.mask[:, None, :, None]
    for way in ("bidirectional", "bidirectional, heads apart"):
        related = RELATIONS if way.endswith("apart") else ()
        layout = Layout.padded(batch.mask).related(batch.mask, batch.visit, related, block_causal=False)
        expected = scaled_dot_product_attention(q, k, v, attn_mask=visible(way, batch) | ~real) * real
        torch.testing.assert_close(attend(q, k, v, layout) * real, expected, rtol=0, atol=1e-5)


def test_strides_of_queries_do_not_matter():
    layout = Layout.packed(torch.ones(2, 6, dtype=torch.bool))
    q, k, v = (torch.randn(1, HEADS, 12, WIDTH) for _ in range(3))
    whole = attend(q, k, v, layout)
    apart = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in (q, k, v)]
    torch.testing.assert_close(attend(*apart, layout), whole, rtol=0, atol=1e-6)


def test_a_rotation_is_its_formula_and_its_gradient_is_turned_back():
    g = torch.Generator().manual_seed(0)
    x, weight = (torch.randn(2, 3, 7, 8, generator=g, dtype=torch.float64) for _ in range(2))
    angle = torch.randn(2, 1, 7, 4, generator=g, dtype=torch.float64)
    cos, sin = angle.cos(), angle.sin()
    x.requires_grad_()
    a, b = x.chunk(2, dim=-1)
    plain = torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1)
    found = rotate(x, (cos, sin))
    torch.testing.assert_close(found, plain)
    own, reference = (torch.autograd.grad((out * weight).sum(), x)[0] for out in (found, plain))
    torch.testing.assert_close(own, reference)
