"""Attention behind one function, ``attend(q, k, v, layout)``; who does it, in which layout, is an entry of a table."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from torch.utils._triton import has_triton

from ehrsequencing.batches import Batch
from ehrsequencing.device import compute_on, moved
from ehrsequencing.models.attention import RELATIONS, Layout, Reading
from ehrsequencing.models.flat_attention import Bounds, Flat, Span, flex, varlen
from ehrsequencing.models.packed_attention import PackedAttention


@dataclass(frozen=True)
class Backend:
    """Who attends.

    Attributes:
        fits: whether it is meant for records on a device, read in a way.
        lay_out: the layout it attends in.
        attend: softmax(qkᵀ/√D)v within that layout.
    """

    why: str
    fits: Callable[[torch.device, Reading], bool]
    lay_out: Callable[[Batch, Reading], Layout]
    attend: Callable[[Tensor, Tensor, Tensor, Layout, float | int], Tensor]


def lay_out(batch: Batch, reading: Reading, backend: str | None = None) -> Layout:
    """The batch as the named back-end wants it, or the first of the table that fits."""
    return BACKENDS[backend or fitting(batch.mask.device, reading)].lay_out(batch, reading)


def fitting(device: torch.device, reading: Reading) -> str:
    """The first back-end of the table that is meant for such records."""
    return next(name for name, backend in BACKENDS.items() if backend.fits(device, reading))


def attend(
    q: Float[Tensor, "B heads L D"],
    k: Float[Tensor, "B heads L D"],
    v: Float[Tensor, "B heads L D"],
    layout: Layout,
    dropout: float | int = 0.0,
) -> Float[Tensor, "B heads L D"]:
    """softmax(qkᵀ/√D)v within ``layout`` (Vaswani et al. 2017); values at padded queries are finite and meaningless.

    ``dropout`` above 0 takes scaled_dot_product_attention off its fast path (2 to 3 times slower on a CPU).
    """
    return BACKENDS[layout.backend].attend(q, k, v, layout, dropout)


def _lay_by_length(batch: Batch, reading: Reading) -> Layout:
    mask, visit, causal = batch.mask, batch.visit, reading.block_causal
    plain = Layout.block_causal(mask, visit, repeatable=reading.repeatable) if causal else Layout.packed(mask)
    return plain.related(mask, visit, reading.relations, block_causal=causal)


def _by_length(q: Tensor, k: Tensor, v: Tensor, layout: Layout, dropout: float | int) -> Tensor:
    tiles = layout.tiles
    groups = tiles.groups if tiles else layout.groups
    if dropout == 0 and q.dtype == torch.float32:
        packed: Tensor = PackedAttention.apply(q, k, v, groups, layout.biases, tiles)
        return packed
    if tiles:
        q, k, v = (tiles.spread(x) for x in (q, k, v))
    sizes = [rows * length for rows, length in groups]
    masks: Sequence[Tensor | None] = layout.visible or [None] * len(sizes)
    parts = zip(groups, masks, q.split(sizes, dim=2), k.split(sizes, dim=2), v.split(sizes, dim=2), strict=True)
    mixed = torch.cat([_attend_group(group, mask, part, dropout) for group, mask, *part in parts], dim=2)
    return tiles.gathered(mixed) if tiles else mixed


def _attend_group(group: tuple[int, int], mask: Tensor | None, qkv: list[Tensor], dropout: float | int) -> Tensor:
    """Records of one length: [1, heads, rows·length, D] in and out, [rows, heads, length, D] between."""
    q, k, v = (x[0].unflatten(1, group).transpose(0, 1) for x in qkv)  # [rows,heads,length,D]
    mixed = scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)
    return mixed.transpose(0, 1).flatten(1, 2)[None]  # [1,heads,rows·length,D]


def _lay_padded(batch: Batch, reading: Reading) -> Layout:
    plain = Layout.padded(batch.mask, batch.visit if reading.block_causal else None)
    return plain.related(batch.mask, batch.visit, reading.relations, block_causal=reading.block_causal)


def _padded(q: Tensor, k: Tensor, v: Tensor, layout: Layout, dropout: float | int) -> Tensor:
    return scaled_dot_product_attention(q, k, v, attn_mask=layout.key_mask, dropout_p=dropout)


def _lay_flat(batch: Batch, backend: str, flat: Flat) -> Layout:
    """All records in one row, in their order."""
    index = moved(torch.from_numpy(batch.outline.places), batch.mask.device)  # [T]
    return Layout(None, (), index, (len(batch), batch.mask.shape[1]), backend=backend, flat=flat)


def _lay_for_flex(batch: Batch, reading: Reading) -> Layout:
    planes = spans(batch, reading)
    names = list(planes)
    of_head = [names.index(name) for name in reading.relations or names]
    return _lay_flat(batch, "flex", Flat.by_spans(list(planes.values()), of_head, batch.mask.device))


def spans(batch: Batch, reading: Reading) -> dict[str, Span]:
    """By relation, what each real token sees, records lying one after the other."""
    bounds = Bounds.of(batch.outline, block_causal=reading.block_causal)
    found = {name: RELATIONS[name].span(bounds) for name in reading.relations or ("record",)}
    return {name: span.within(bounds.past) if reading.block_causal else span for name, span in found.items()}


def _flex(q: Tensor, k: Tensor, v: Tensor, layout: Layout, dropout: float | int) -> Tensor:
    return flex(q, k, v, _flat_of(layout, dropout))


def _lay_for_varlen(batch: Batch, reading: Reading) -> Layout:
    return _lay_flat(batch, "varlen", Flat.by_records(batch.outline, batch.mask.device))


def _varlen(q: Tensor, k: Tensor, v: Tensor, layout: Layout, dropout: float | int) -> Tensor:
    return varlen(q, k, v, _flat_of(layout, dropout))


def _flat_of(layout: Layout, dropout: float | int) -> Flat:
    if layout.flat is None or dropout:
        raise ValueError(f"expected a flat row and no dropout of attention weights, found {layout.backend}, {dropout}")
    return layout.flat


def _plain(device: torch.device, reading: Reading) -> bool:
    """CUDA in half precision, every token seeing all of its record."""
    unmasked = not (reading.relations or reading.block_causal or reading.dropout)
    return device.type == "cuda" and unmasked and compute_on(device).half


BACKENDS: Mapping[str, Backend] = MappingProxyType(
    {
        "by_length": Backend(
            "nothing is computed for padding: one fused call for the records of each length",
            lambda device, reading: device.type == "cpu",
            _lay_by_length,
            _by_length,
        ),
        "varlen": Backend(
            "the fastest kernel where every token sees its whole record, in half precision",
            _plain,
            _lay_for_varlen,
            _varlen,
        ),
        "flex": Backend(
            "the only fused kernel that knows visits and heads' relations; it needs Triton, which compiles it",
            lambda device, reading: device.type == "cuda" and not reading.dropout and has_triton(),
            _lay_for_flex,
            _flex,
        ),
        "padded": Backend(
            "the reference: rows padded to one length, and a mask",
            lambda device, reading: True,
            _lay_padded,
            _padded,
        ),
    }
)
"""Back-ends by name; a batch goes to the first that fits, and all of them agree to 1e-5 in float32."""
