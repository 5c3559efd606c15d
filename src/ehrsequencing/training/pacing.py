"""How fast each part of a model is trained, and from which epoch on: discriminative rates, gradual unfreezing."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import nn

from ehrsequencing.config import OptimizerConfig
from ehrsequencing.models.lora import is_adapter

NO_DECAY = ("bias", "intercept", "norm", "embedding", "magnitude")
_LAYER = re.compile(r"\.layers\.(\d+)\.")


class Pace(NamedTuple):
    """A share of the learning rate, and the epoch (from 0) in which a tensor first moves."""

    rate: float = 1.0
    thaw: int = 0


@dataclass(frozen=True)
class Pacing:
    """The encoder below the head (Howard & Ruder 2018, arXiv:1801.06146): slower, and layer by layer where asked.

    Attributes:
        encoder_rate: the learning rate of the encoder's own weights as a share of the head's. Adapters go with the
            head: they start at nothing and have as far to go.
        unfreeze_every: epochs from the start of one layer to that of the layer below, the embeddings last; 0: at once.
        n_layers: of the encoder.
    """

    encoder_rate: float = 1.0
    unfreeze_every: int = 0
    n_layers: int = 0

    def of(self, name: str) -> Pace:
        """The pace of a parameter, by its name in a survival model.

        >>> pacing = Pacing(0.1, unfreeze_every=2, n_layers=3)
        >>> pacing.of("behrt.layers.2.feed_in.weight"), pacing.of("hazard_head.weight")
        (Pace(rate=0.1, thaw=2), Pace(rate=1.0, thaw=0))
        """
        if not name.startswith("behrt.") or is_adapter(name):
            return Pace()
        layer = _LAYER.search(name)
        from_top = self.n_layers - int(layer[1]) if layer else 1 + self.n_layers * name.startswith("behrt.embeddings.")
        return Pace(self.encoder_rate, self.unfreeze_every * from_top)

    @property
    def last_thaw(self) -> int:
        """The epoch (from 0) from which everything moves."""
        return self.unfreeze_every * (self.n_layers + 1)

    def held_to_the_end(self, epochs: int) -> list[str]:
        """A note where training of so many epochs ends before the whole encoder moves.

        >>> Pacing(unfreeze_every=2, n_layers=3).held_to_the_end(5)
        ['of the encoder 2 of 3 layers moved within 5 epochs, not the embeddings']
        """
        moved = min(self.n_layers, (epochs - 1) // self.unfreeze_every) if self.unfreeze_every else self.n_layers
        if not self.unfreeze_every or epochs > self.last_thaw:
            return []
        return [f"of the encoder {moved} of {self.n_layers} layers moved within {epochs} epochs, not the embeddings"]


EVEN = Pacing()
"""Everything at one rate, from the start."""


def make_optimizer(model: nn.Module, config: OptimizerConfig, pacing: Pacing = EVEN) -> torch.optim.AdamW:
    """AdamW over the trainable tensors, a group for each pace; biases, norms and embeddings are not decayed."""
    groups: dict[tuple[Pace, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            plain = any(part in name for part in NO_DECAY)
            groups.setdefault((pacing.of(name), plain), []).append(parameter)
    return torch.optim.AdamW(
        [
            {
                "params": parameters,
                "lr": config.learning_rate * pace.rate,
                "weight_decay": 0.0 if plain else config.weight_decay,
                "thaw": pace.thaw,
            }
            for (pace, plain), parameters in sorted(groups.items(), key=lambda item: (item[0][1], item[0][0]))
        ],
        lr=config.learning_rate,
        fused=True,
    )


def hold_back(optimizer: torch.optim.Optimizer, epoch: int) -> None:
    """Leave tensors whose time has not come out of this step: no gradient, so neither moments nor decay."""
    for group in optimizer.param_groups:
        if group["thaw"] > epoch:
            for parameter in group["params"]:
                parameter.grad = None
