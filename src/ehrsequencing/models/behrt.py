"""The encoder: BEHRT's sum of embeddings, pre-norm transformer blocks, and how a folder of weights is read."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, TypeVar, cast

import torch
from jaxtyping import Bool, Float, Int
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.utils import logging

from ehrsequencing.batches import Batch
from ehrsequencing.device import compiled, compute_on, constant, device_of
from ehrsequencing.errors import EhrError, Exit
from ehrsequencing.models.architectures import architecture_of
from ehrsequencing.models.attention import Layout, Reading
from ehrsequencing.models.backends import attend, lay_out
from ehrsequencing.models.configuration import BEHRTConfig
from ehrsequencing.models.dropout import Dropout
from ehrsequencing.models.pooling import Encoded, EncodedTokens
from ehrsequencing.models.rotary import Turn, rotate, rotation
from ehrsequencing.models.states import States
from ehrsequencing.tokens import MASK, N_SPECIAL

Model = TypeVar("Model", bound="BEHRTPreTrainedModel")
AGE_BIN_YEARS, AGE_BINS = 5, 24
AGE_PERIODS = (4.0, 8.0, 16.0, 32.0, 64.0, 128.0)
"""Periods (years) of the continuous age features, so that attention can read time differences from ages."""
GAP_EDGES = (1.0, 7.0, 30.0, 90.0, 180.0, 365.0, 730.0, 1825.0)
"""Upper edges (days, exclusive) of the time-gap bins; the last bin is open."""


def age_features(age: Float[Tensor, "B L"], known: Bool[Tensor, "B L"]) -> Float[Tensor, "B L F"]:
    """Age in years as a centred line and sines and cosines of several periods; all zero where unknown."""
    phase = age[..., None] * (2 * math.pi / constant(AGE_PERIODS, age.device, age.dtype))  # [B,L,P]
    features = torch.cat([age[..., None] / 50 - 1, phase.sin(), phase.cos()], dim=-1)  # [B,L,1+2P]
    return features * known[..., None]


def sinusoids(positions: int, width: int, device: torch.device) -> Float[Tensor, "L W"]:
    """Sinusoidal vectors (Vaswani et al. 2017), sines then cosines, of the positions below L."""
    half = width // 2
    rate = torch.exp(torch.arange(half, device=device) * (-math.log(10_000.0) / half))  # [W/2]
    table = torch.outer(torch.arange(positions, device=device), rate)  # [L,W/2]
    return torch.cat([table.sin(), table.cos()], dim=-1)  # [L,W]


def hide_codes(batch: Batch, vocab_size: int, share: float | int) -> Batch:
    """Hide some codes of every record, each wherever it stands there, value included: they become ``[MASK]``.

    The share of codes is drawn anew for each record, uniform from nothing to twice ``share`` (where that is above 1, as
    far below it on the other side), so that whole records are seen, too. A model that must do without any one code
    cannot rest on the accidents of rare ones.
    """
    reach = min(share, 1 - share)
    rate = share - reach + 2 * reach * torch.rand(len(batch), 1, device=batch.code.device)  # [B,1]
    draw = torch.rand(len(batch), vocab_size, device=batch.code.device).gather(1, batch.code)  # [B,L]
    hidden = (draw < rate) & (batch.code >= N_SPECIAL)  # [B,L]
    return replace(batch, code=batch.code.masked_fill(hidden, MASK), has_value=batch.has_value & ~hidden)


class BEHRTEmbeddings(nn.Module):
    """Code + value × the code's vector + age + visit + position + time gap, normalised and projected to hidden."""

    value_slot: Tensor

    def __init__(self, config: BEHRTConfig) -> None:
        super().__init__()
        width = config.embedding_size
        self.code_embedding = nn.Embedding(config.vocab_size, width)
        self.age_embedding = nn.Embedding(1 + AGE_BINS, width)  # row 0: unknown
        self.age_projection = nn.Linear(1 + 2 * len(AGE_PERIODS), width, bias=False)
        self.visit_embedding = nn.Embedding(config.max_visits, width)
        self.gap_embedding = nn.Embedding(1 + len(GAP_EDGES), width)
        self.gap_projection = nn.Linear(1, width, bias=False)
        self.value_embedding = nn.Embedding(len(config.value_codes), width) if config.value_codes else None
        slot = torch.full((config.vocab_size,), -1, dtype=torch.long)
        slot[torch.as_tensor(config.value_codes, dtype=torch.long)] = torch.arange(len(config.value_codes))
        self.register_buffer("value_slot", slot)
        self.norm = nn.LayerNorm(width)
        self.projection = nn.Linear(width, config.hidden_size)
        self.dropout, self.code_dropout = Dropout(config.dropout), config.code_dropout
        self.given_content: Tensor | None = None  # [B,L,W] in place of the codes' vectors, while attributions are made

    def forward(self, batch: Batch, layout: Layout) -> Float[Tensor, "B2 L2 H"]:
        """The blocks' input in ``layout``; what stands at padded places is finite and meaningless.

        In training some of each record's codes may be hidden (``code_dropout``).
        """
        given = None if self.given_content is None else layout.pack(self.given_content)
        batch = self.shown(batch).laid(layout.pack)
        x = self.code_embedding(batch.code) if given is None else given  # [B2,L2,W]
        x = x + self._age(batch) + self._gap(batch)  # [B2,L2,W]
        x = x + self.visit_embedding(batch.visit.clamp(0, self.visit_embedding.num_embeddings - 1))  # [B2,L2,W]
        where = sinusoids(layout.shape[1], x.shape[-1], x.device).to(x.dtype) * side_scale(x.shape[-1])  # [L,W]
        x = x + where[layout.position]  # [B2,L2,W]
        if self.value_embedding is not None:
            x = x + self.value_term(batch, self.value_embedding)  # [B,L,W]
        return self.projection(self.dropout(self.norm(x)))  # [B2,L2,H]

    def shown(self, batch: Batch) -> Batch:
        """The records as they are read: in training with some of each one's codes hidden."""
        if self.training and self.code_dropout:
            return hide_codes(batch, self.code_embedding.num_embeddings, self.code_dropout)
        return batch

    def _age(self, batch: Batch) -> Float[Tensor, "B L W"]:
        years = (batch.age / AGE_BIN_YEARS).floor().long().clamp(0, AGE_BINS - 1)  # [B,L]
        bins = torch.where(batch.age_known, 1 + years, torch.zeros_like(years))  # [B,L]
        return self.age_embedding(bins) + self.age_projection(age_features(batch.age, batch.age_known))  # [B,L,W]

    def _gap(self, batch: Batch) -> Float[Tensor, "B L W"]:
        gap = batch.gap.clamp_min(0)  # [B,L] days
        bins = torch.bucketize(gap, constant(GAP_EDGES, gap.device), right=True)  # [B,L]
        return self.gap_embedding(bins) + self.gap_projection(torch.log1p(gap)[..., None] / 8)  # [B,L,W]

    def value_term(self, batch: Batch, table: nn.Embedding) -> Float[Tensor, "B L W"]:
        """Value × the vector of its code, zero where a token has no value."""
        slot = self.value_slot[batch.code]  # [B,L]
        value = torch.where(batch.has_value & (slot >= 0), batch.value, torch.zeros_like(batch.value))  # [B,L]
        return value[..., None] * table(slot.clamp_min(0))  # [B,L,W]

    @torch.no_grad()
    def set_code_vectors(self, ids: Int[Tensor, " n"], vectors: Float[Tensor, "n W"]) -> None:
        """Start the codes ``ids`` from given vectors (for instance embeddings of their descriptions)."""
        self.code_embedding.weight[ids] = vectors.to(self.code_embedding.weight)


class SelfAttention(nn.Module):
    """Multi-head attention with four separate projections, each a plain Linear that LoRA can wrap and that is called.

    ``k_proj`` has no bias: softmax does not see it, so its gradient would be zero.
    """

    def __init__(self, config: BEHRTConfig) -> None:
        super().__init__()
        H = config.hidden_size
        self.heads, self.dropout = config.num_attention_heads, config.attention_dropout
        self.q_proj = nn.Linear(H, H)
        self.k_proj = nn.Linear(H, H, bias=False)
        self.v_proj = nn.Linear(H, H)
        self.out_proj = nn.Linear(H, H)

    def forward(self, x: Float[Tensor, "B L H"], layout: Layout, turn: Turn) -> Float[Tensor, "B L H"]:
        q, k, v = (self._split(project(x)) for project in (self.q_proj, self.k_proj, self.v_proj))  # [B,heads,L,D]
        mixed = attend(
            rotate(q, turn), rotate(k, turn), v, layout, self.dropout if self.training else 0.0
        )  # [B,heads,L,D]
        return self.out_proj(mixed.transpose(1, 2).flatten(2))  # [B,L,H]

    def _split(self, x: Float[Tensor, "B L H"]) -> Float[Tensor, "B heads L D"]:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class Block(nn.Module):
    """A pre-norm transformer block (Xiong et al. 2020)."""

    def __init__(self, config: BEHRTConfig) -> None:
        super().__init__()
        H, I = config.hidden_size, config.intermediate_size  # noqa: E741
        self.attention_norm, self.feed_norm = nn.LayerNorm(H), nn.LayerNorm(H)
        self.attention = SelfAttention(config)
        self.feed_in, self.feed_out = nn.Linear(H, I), nn.Linear(I, H)
        self.activation, self.dropout = nn.GELU(), Dropout(config.dropout)

    def forward(self, x: Float[Tensor, "B L H"], layout: Layout, turn: Turn) -> Float[Tensor, "B L H"]:
        x = x + self.dropout(self.attention(self.attention_norm(x), layout, turn))  # [B,L,H]
        hidden = self.activation(self.feed_in(self.feed_norm(x)))  # [B,L,I]
        return x + self.dropout(self.feed_out(hidden))  # [B,L,H]


@cache
def block_runner(compiler: str | None) -> Callable[..., Tensor]:
    """How a block is run on its input: as it is written, or compiled, once for all layers of a size and pack."""
    run: Callable[..., Tensor] = lambda block, x, layout, turn: block(x, layout, turn)  # noqa: E731
    return run if compiler is None else compiled(run, compiler)


def side_scale(width: int) -> float:
    """Standard deviation at which everything beside the code enters the sum: half of the code's own, 1/√width."""
    return 0.5 / math.sqrt(width)


class BEHRTPreTrainedModel(PreTrainedModel):
    """What encoder and heads share: their configuration, how weights start, how a folder is read."""

    config_class = BEHRTConfig
    base_model_prefix = "behrt"
    _supports_sdpa = True
    other_heads: ClassVar[tuple[str, ...]] = ()
    """Prefixes of a checkpoint's tensors that this class leaves aside knowingly."""

    @classmethod
    def from_pretrained(cls: type[Model], folder: str | Path, **kwargs: Any) -> Model:  # type: ignore[override]
        """The model saved in a local folder (config.json, model.safetensors), in eval mode.

        EhrError (exit 13) where the folder is not one, or where any tensor is missing, unexpected or misshapen.
        """
        folder = Path(folder)
        for name in ("config.json", "model.safetensors"):
            if not (folder / name).is_file():
                raise EhrError(f"{name} is missing", str(folder), "give a folder of a saved model", code=Exit.BUNDLE)
        settings = {"output_loading_info": True, "local_files_only": True, "use_safetensors": True, **kwargs}
        try:
            with _quiet():
                loaded: Any = super().from_pretrained(str(folder), **settings)
        except (RuntimeError, SafetensorError) as error:
            raise _unfit(folder, str(error)) from error
        model, report = loaded
        unexpected = [key for key in report["unexpected_keys"] if not key.startswith(cls.other_heads or ("\0",))]
        if report["missing_keys"] or unexpected:
            missing = ", ".join(sorted(report["missing_keys"])) or "none"
            raise _unfit(folder, f"missing tensors: {missing}; unexpected: {', '.join(sorted(unexpected)) or 'none'}")
        _realign(model)
        return model

    def save_pretrained(self, folder: str | Path, **kwargs: Any) -> None:  # type: ignore[override]
        """Write config.json and model.safetensors into ``folder``."""
        with _quiet():
            super().save_pretrained(str(folder), **kwargs)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear):
            init.normal_(module.weight, std=1 / math.sqrt(module.in_features))
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.LayerNorm):
            init.ones_(module.weight)
            init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            init.normal_(module.weight, std=side_scale(module.embedding_dim))
        elif isinstance(module, BEHRTEmbeddings):
            weight = module.code_embedding.weight
            init.normal_(weight, std=1 / math.sqrt(weight.shape[1]))


def _realign(model: nn.Module) -> None:
    """Move weights out of the mapped file: there they lie at odd addresses, at which kernels round differently."""
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.data = tensor.data.clone()


def _unfit(folder: Path, what: str) -> EhrError:
    fix = "load it as the class it was saved from; an encoder becomes a survival model by BEHRTForSurvival.from_encoder"
    return EhrError(f"the weights do not fit the model: {what}", str(folder), fix, code=Exit.BUNDLE)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' own progress bars and report on the keys: what it would say is raised instead."""
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


class BEHRTModel(BEHRTPreTrainedModel):
    """The encoder: a batch of records in, one hidden vector a token out (Li et al. 2020, BEHRT, Sci Rep 10:7155).

    Other kinds of encoder derive from it; ``make_encoder`` builds the one that a configuration names.
    """

    other_heads: ClassVar[tuple[str, ...]] = ("mlm_head.", "hazard_head.")

    def __init__(self, config: BEHRTConfig) -> None:
        _refuse_other_kind(type(self), config)
        super().__init__(config)
        self._build(config)
        self.post_init()
        if config.use_lora:
            from ehrsequencing.models.lora import apply_lora_from_config

            apply_lora_from_config(self)

    @classmethod
    def from_pretrained(cls, folder: str | Path, **kwargs: Any) -> BEHRTModel:  # type: ignore[override]
        """The encoder saved in a local folder, of the kind that its configuration names, in eval mode.

        EhrError (exit 13) as ``BEHRTPreTrainedModel.from_pretrained``.
        """
        kind = cls
        if (Path(folder) / "config.json").is_file():
            with _quiet():
                kind = encoder_class(BEHRTConfig.from_pretrained(str(folder), local_files_only=True))
        return super(BEHRTModel, kind).from_pretrained(folder, **kwargs)

    def _build(self, config: BEHRTConfig) -> None:
        self.embeddings = BEHRTEmbeddings(config)
        self._build_blocks(config)

    def _build_blocks(self, config: BEHRTConfig) -> None:
        self.layers = nn.ModuleList(Block(config) for _ in range(config.num_hidden_layers))
        self.norm = nn.LayerNorm(config.hidden_size)

    def forward(self, batch: Batch) -> Float[Tensor, "B L H"]:
        """Hidden states; those of a patient do not depend on padding or on who else is in the batch.

        Under the block-causal mask those of a visit do not depend on any later one: on a CPU and in eval mode, to the
        bit.
        """
        return self.encoded(batch).tokens()

    def encoded(self, batch: Batch) -> Encoded:
        """One pass over the batch, from which hidden states and pooled vectors are read, where the weights are.

        Batches come to the encoder's device here and nowhere else.
        """
        device = device_of(self)
        with compute_on(device).autocast():
            return self._encoded(batch.to(device))

    def _encoded(self, batch: Batch) -> Encoded:
        return EncodedTokens(self._attended(batch, self.embeddings), batch.mask, batch.outline)

    def pooled(self, batch: Batch) -> Float[Tensor, "B F"]:
        """The vector of each record: F = 3H."""
        return self.encoded(batch).pooled()

    def pooled_visits(self, batch: Batch) -> Float[Tensor, "B V F"]:
        """The vector of each visit of each record, from visit 0 on: F = 3H."""
        return self.encoded(batch).pooled_visits()

    def _attended(self, batch: Batch, embed: Callable[[Batch, Layout], Tensor]) -> States:
        """What ``embed`` makes of the batch, through the blocks."""
        causal = self.config.attention == "block_causal"
        repeatable = causal and not self.training
        dropout = self.config.attention_dropout if self.training else 0.0
        layout = lay_out(batch, Reading(self.config.head_relations, causal, repeatable, dropout))
        channels = self.config.hidden_size // self.config.num_attention_heads
        turn = rotation(batch, channels, layout, block_causal=causal)
        x = embed(batch, layout).to(self.norm.weight.dtype)  # [1,T,H] where packed, else [B,L,H]; never in half
        through = block_runner(compute_on(x.device).compiler)
        for layer in self.layers:
            x = through(layer, x, layout, turn)
        return States(self.norm(x), layout)


def encoder_class(config: BEHRTConfig) -> type[BEHRTModel]:
    """The class of the architecture that a configuration names; EhrError (exit 10) for an unknown one."""
    module, _, name = architecture_of(config.architecture).home.partition(":")
    return cast("type[BEHRTModel]", getattr(importlib.import_module(module), name))


def make_encoder(config: BEHRTConfig) -> BEHRTModel:
    """A new encoder of the architecture that its configuration names.

    >>> type(make_encoder(BEHRTConfig.small(50, architecture="hierarchical"))).__name__
    'HierarchicalBEHRT'
    """
    return encoder_class(config)(config)


def _refuse_other_kind(kind: type[BEHRTModel], config: BEHRTConfig) -> None:
    named = encoder_class(config)
    if kind is not named:
        what = f"{kind.__name__} was asked to build an encoder of architecture '{config.architecture}'"
        raise EhrError(what, "BEHRTConfig.architecture", f"use {named.__name__}, or make_encoder", code=Exit.CONFIG)
