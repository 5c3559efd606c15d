"""Random batches and small models shared by the tests of models."""

from __future__ import annotations

from dataclasses import fields, replace

import torch

from ehrsequencing.batches import Batch
from ehrsequencing.models.behrt import BEHRTConfig
from ehrsequencing.tokens import CLS, N_SPECIAL

VOCAB = 60


def tiny_config(**overrides) -> BEHRTConfig:
    settings = {
        "vocab_size": VOCAB,
        "value_codes": (5, 9, 20),
        "embedding_size": 16,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "n_bins": 6,
        "head_hidden": 10,
    }
    return BEHRTConfig(**{**settings, **overrides})


def random_batch(
    rows: int = 6, length: int = 14, *, vocab: int = VOCAB, seed: int = 0, value_codes=(5, 9, 20)
) -> Batch:
    """Records of 1 to ``length`` tokens, [CLS] first, three tokens a visit, some unknown ages, values where allowed."""
    g = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, length + 1, (rows,), generator=g)
    lengths[0], lengths[-1] = length, 1
    mask = torch.arange(length) < lengths[:, None]
    code = torch.randint(N_SPECIAL, vocab, (rows, length), generator=g)
    code[:, 0] = CLS
    if value_codes:
        code[:, 1::4] = torch.tensor(value_codes)[torch.randint(len(value_codes), code[:, 1::4].shape, generator=g)]
    has_value = torch.isin(code, torch.tensor(value_codes, dtype=torch.long)) & mask
    age_known = mask & (torch.rand(rows, length, generator=g) < 0.9)
    visit = (torch.arange(length) + 2).div(3, rounding_mode="floor").expand(rows, length)
    gap = torch.rand(rows, length, generator=g) * 400
    return Batch(
        code=code * mask,
        value=torch.randn(rows, length, generator=g) * has_value,
        has_value=has_value,
        age=torch.rand(rows, length, generator=g) * 90 * age_known,
        age_known=age_known,
        visit=visit * mask,
        gap=gap * mask,
        mask=mask,
    )


def rows_of(batch: Batch, index: list[int], extra_padding: int = 0) -> Batch:
    """Some rows of a batch, trimmed to the longest of them and padded by ``extra_padding`` more."""
    width = int(batch.mask[index].sum(dim=1).max())
    parts = {item.name: getattr(batch, item.name)[index, :width] for item in fields(batch)}
    return Batch(**{name: torch.nn.functional.pad(part, (0, extra_padding)) for name, part in parts.items()})


def garbage_in_padding(batch: Batch) -> Batch:
    """The same records with nonsense where nothing should be read."""
    pad = ~batch.mask
    return replace(
        batch,
        code=batch.code.masked_fill(pad, 7),
        value=batch.value.masked_fill(pad, 1e3),
        has_value=batch.has_value | pad,
        age=batch.age.masked_fill(pad, 77.0),
        age_known=batch.age_known | pad,
        visit=batch.visit.masked_fill(pad, 9),
        gap=batch.gap.masked_fill(pad, 1e4),
    )


@torch.no_grad()
def shake(module: torch.nn.Module, scale: float = 0.05, seed: int = 3) -> None:
    """Move every parameter a little, so that no test passes because something started at zero."""
    g = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        parameter.add_(scale * torch.randn(parameter.shape, generator=g))
