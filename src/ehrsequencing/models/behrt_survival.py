"""Time-to-event prediction: the encoder, pooled to one vector a patient, under a discrete-time hazard head."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import initialization as init

from ehrsequencing.batches import Batch
from ehrsequencing.device import moved
from ehrsequencing.errors import EhrError, Exit
from ehrsequencing.models.behrt import BEHRTConfig, BEHRTModel, BEHRTPreTrainedModel, make_encoder
from ehrsequencing.models.configuration import BIDIRECTIONAL_LEAK
from ehrsequencing.models.footprint import count_parameters
from ehrsequencing.models.heads import HEADS, RESIDUAL_STD, HazardHead, ResidualHead
from ehrsequencing.models.pair_reader import read_pairs
from ehrsequencing.models.pooling import whole_rows
from ehrsequencing.models.strategies import Strategy, apply_strategy, find_strategy, strategy_from_config


class BEHRTForSurvival(BEHRTPreTrainedModel):
    """An encoder (``behrt``, of the architecture that the configuration names) and a hazard head (``hazard_head``).

    ``freeze_behrt`` and ``use_lora`` override the configuration's own; both true raise EhrError (exit 10). A frozen
    encoder stays in eval mode while the head trains, so its features are the same at every pass.

    >>> model = BEHRTForSurvival(BEHRTConfig.small(vocab_size=50), freeze_behrt=True)
    >>> model.get_trainable_parameters()["trainable"]
    16300
    """

    def __init__(self, config: BEHRTConfig, freeze_behrt: bool | None = None, use_lora: bool | None = None) -> None:
        config = _with_choice(config, freeze_behrt, use_lora)
        super().__init__(config)
        self.behrt = make_encoder(config)
        self.hazard_head = HEADS[config.head](config)
        self.post_init()
        apply_strategy(self, strategy_from_config(config))

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, HazardHead):
            init.normal_(module.hazard.weight, std=0.02)
        elif isinstance(module, ResidualHead):
            init.normal_(module.hazard.weight, std=RESIDUAL_STD)

    def forward(self, batch: Batch) -> Float[Tensor, "B V K *R"]:
        """Hazard logits of each patient at its prediction_time (V = 1), or at each of its visits (from visit 0 on)."""
        features = self.features(batch)  # [B,F] or [B,V,F]
        if features.ndim == 2:
            return self.hazard_head(features)
        return self.hazards(features.flatten(0, 1)).unflatten(0, features.shape[:2])

    def features(self, batch: Batch) -> Float[Tensor, "B *V F"]:
        """What the head reads, before its standardiser: the pooled vector of each patient and what its tokens say of
        pairs, or the pooled vector of each of its visits."""
        return self.with_pairs(self.pooled(batch), batch)

    def pooled(self, batch: Batch) -> Float[Tensor, "B *V F"]:
        """The pooled vector of each patient, or of each of its visits: what a frozen encoder caches."""
        return self.behrt.pooled_visits(batch) if self.config.predict_at == "every_visit" else self.behrt.pooled(batch)

    def with_pairs(self, pooled: Float[Tensor, "B *V F"], batch: Batch) -> Float[Tensor, "B *V F2"]:
        """Pooled vectors with a number a pair of ``config.pairs`` after them."""
        if not self.config.pairs:
            return pooled
        return torch.cat([pooled, moved(read_pairs(batch, self.config.pairs), pooled.device).to(pooled.dtype)], dim=1)

    def hazards(self, features: Float[Tensor, "n F"]) -> Float[Tensor, "n K *R"]:
        """The head over any number of pooled vectors; in eval mode each to the same bits whichever others there are."""
        if self.training:
            return self.hazard_head(features)[:, 0]
        return self.hazard_head(whole_rows(features))[: len(features), 0]

    def train(self, mode: bool = True) -> BEHRTForSurvival:
        """Training mode for what is trained; a frozen encoder stays in eval mode (no dropout)."""
        super().train(mode)
        if self.config.freeze_behrt:
            self.behrt.eval()
        return self

    def get_trainable_parameters(self) -> dict[str, int]:
        """Counts: trainable, total, and the trainable ones by encoder (without adapters), lora and head."""
        return count_parameters(self)

    @classmethod
    def from_pretrained(cls, folder: str | Path, **kwargs: Any) -> BEHRTForSurvival:  # type: ignore[override]
        """A saved survival model, its adapter injected before loading, its strategy applied again after."""
        model = super().from_pretrained(folder, **kwargs)
        apply_strategy(model, strategy_from_config(model.config))
        return model

    @classmethod
    def from_encoder(
        cls,
        encoder: BEHRTModel | str | Path,
        *,
        strategy: Strategy | str = "full",
        predict_at: str = "index",
        attention: str | None = None,
        **overrides: Any,
    ) -> BEHRTForSurvival:
        """A new head on an encoder (a model, copied, or a folder of BEHRTModel or BEHRTForMaskedLM), under a strategy.

        Weights are loaded first and the adapter injected after. A strategy with a random encoder takes only the
        configuration. ``overrides`` (n_bins, head_hidden, dropout, …) change the configuration; those that change
        the encoder's tensors raise EhrError (exit 13). Hazards at the index read records under the bidirectional mask,
        hazards at every visit under the block-causal one; an encoder pretrained under the other mask is refused
        (exit 10; 15 where later visits would leak) unless ``attention`` asks for a mask by name.
        """
        chosen = find_strategy(strategy)
        source = copy.deepcopy(encoder) if isinstance(encoder, BEHRTModel) else BEHRTModel.from_pretrained(encoder)
        if source.config.use_lora:
            raise EhrError("the encoder carries an adapter", "encoder", "merge it first (merge_lora)", code=Exit.BUNDLE)
        head = "mlp" if chosen.head == "best" else chosen.head
        mask = _chosen_mask(source.config.attention, predict_at, attention)
        plain = {
            "freeze_behrt": False,
            "use_lora": False,
            "head": head,
            "hazards": chosen.hazards,
            "predict_at": predict_at,
            "attention": mask,
        }
        settings = {**source.config.to_dict(), **plain, **overrides}
        model = cls(BEHRTConfig.from_dict(settings))
        if chosen.encoder == "pretrained":
            _load_strictly(model.behrt, source.state_dict())
        apply_strategy(model, chosen)
        return model


def _chosen_mask(pretrained: str, predict_at: str, asked: str | None) -> str:
    """The mask to fine-tune under: what was asked for by name, or the task's own where the encoder knows it."""
    own = "block_causal" if predict_at == "every_visit" else "bidirectional"
    if asked is not None or pretrained == own:
        return asked or own
    fix = f"pretrain with --attention {own}, or ask for the change of mask by name: --attention {own}"
    if own == "block_causal":
        raise EhrError(BIDIRECTIONAL_LEAK, "an encoder pretrained bidirectionally", fix, code=Exit.LEAKAGE)
    what = f"expected an encoder pretrained under the '{own}' mask (index prediction), found '{pretrained}'"
    raise EhrError(what, "encoder", fix, code=Exit.CONFIG)


def _with_choice(config: BEHRTConfig, freeze_behrt: bool | None, use_lora: bool | None) -> BEHRTConfig:
    choice = {"freeze_behrt": freeze_behrt, "use_lora": use_lora}
    config = copy.deepcopy(config)
    for name, value in choice.items():
        if value is not None:
            setattr(config, name, value)
    config.check()
    return config


def _load_strictly(module: nn.Module, state: dict[str, Tensor]) -> None:
    try:
        module.load_state_dict(state, strict=True)
    except RuntimeError as error:
        raise EhrError(
            f"the encoder's weights do not fit the configuration: {error}",
            "encoder",
            "leave the encoder's sizes as they are in its folder",
            code=Exit.BUNDLE,
        ) from error
