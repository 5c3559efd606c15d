"""What of a model is trained, in figures, and the audit that holds a run to it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from ehrsequencing.errors import EhrError, Exit
from ehrsequencing.models.lora import tensor_bytes
from ehrsequencing.models.strategies import part_of


def count_parameters(model: nn.Module) -> dict[str, int]:
    """Trainable and total parameters, and how the trainable ones divide into encoder, lora and head."""
    counts = {"trainable": 0, "total": 0, "encoder": 0, "lora": 0, "head": 0}
    for name, parameter in model.named_parameters():
        counts["total"] += parameter.numel()
        if parameter.requires_grad:
            counts["trainable"] += parameter.numel()
            part = part_of(name)
            counts[part if part in ("lora", "head") else "encoder"] += parameter.numel()
    return counts


def footprint(model: nn.Module) -> str:
    """One line for people: what is about to be trained."""
    n = count_parameters(model)
    parts = ", ".join(f"{part} {n[part]:,}" for part in ("encoder", "lora", "head") if n[part])
    share = n["trainable"] / max(n["total"], 1)
    return f"Trainable: {n['trainable']:,} / {n['total']:,} parameters ({share:.1%}): {parts or 'none'}"


OPTIONAL_INPUTS = {
    "embeddings.age_projection.weight": "no age was known",
    "embeddings.gap_projection.weight": "no time passed between any two visits",
    "lstm.weight_hh_l0": "no record had a visit",
    "value_embedding.weight": "no token carried a numeric value",
    "visit_pool.score.weight": "no visit had two tokens",
}
"""Tensors without a gradient when the data never bring their input: noted, not an error."""


@dataclass
class FootprintAudit:
    """Holds a training run to its strategy: what is trainable learns, what is frozen stays bit for bit.

    Made just before training; ``observe`` after every backward; ``assert_after_epoch`` at the end of the first epoch.
    """

    model: nn.Module
    notes: list[str] = field(default_factory=list)
    excused: Callable[[], Mapping[str, str]] = dict
    """Beginnings of names of tensors that the data gave nothing to learn from, and why, once the epoch is over."""

    def __post_init__(self) -> None:
        still = _frozen_tensors(self.model)
        self._frozen = {name: _digest(tensor) for name, tensor in still.items()}
        self._waiting = {name for name, p in self.model.named_parameters() if p.requires_grad}
        self._seen: dict[str, Tensor] = {}  # how many elements of a gradient were not 0, on a device still
        self._steps = 0

    def observe(self, model: nn.Module) -> None:
        """Tick off the trainable tensors that have a gradient; cheap once all of them had one.

        Of those on a device it is noted there, and asked for when somebody wants to know.
        """
        self._steps += 1
        if not self._waiting:
            return
        parameters = dict(model.named_parameters())
        gradients = {name: parameters[name].grad for name in self._waiting}
        for name, gradient in gradients.items():
            if gradient is not None:
                self._seen[name] = self._seen.get(name, 0) + gradient.count_nonzero()
        self._settle({name for name, count in self._seen.items() if count.device.type == "cpu"})

    def _settle(self, names: Iterable[str]) -> None:
        """Tick off those of the names that had a gradient."""
        self._waiting -= {name for name in list(names) if bool(self._seen.pop(name))}

    def state(self) -> dict[str, Any]:
        """What it has seen so far, as plain data."""
        self._settle(self._seen)
        return {"waiting": sorted(self._waiting), "steps": self._steps, "notes": self.notes}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from what ``state`` gave."""
        self._waiting, self._steps, self.notes = set(state["waiting"]), state["steps"], list(state["notes"])

    def assert_after_epoch(self, model: nn.Module) -> None:
        """EhrError naming the trainable tensors that never had a gradient and the frozen ones that moved."""
        self._settle(self._seen)
        unused = {name: why for name in self._waiting for tail, why in OPTIONAL_INPUTS.items() if name.endswith(tail)}
        beginnings = self.excused()
        unused |= {name: why for name in self._waiting for head, why in beginnings.items() if name.startswith(head)}
        late = {name for name in self._waiting if self._steps < 2 and "lora_A" in name}  # B starts at 0
        self.notes = [f"{name} had no gradient: {why}" for name, why in sorted(unused.items())]
        idle = sorted(self._waiting - set(unused) - late)
        now = dict(model.state_dict())
        moved = sorted(name for name, digest in self._frozen.items() if digest != _digest(now[name]))
        if idle or moved:
            complaints = [f"trainable but without any gradient: {', '.join(idle)}"] if idle else []
            complaints += [f"frozen but changed: {', '.join(moved)}"] if moved else []
            fix = "apply the strategy again (apply_strategy) and build the optimiser after it"
            raise EhrError("; ".join(complaints), "training footprint", fix, code=Exit.CONFIG)


def _frozen_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters that are not trained, and the encoder's buffers (the head's standardiser is set, not trained)."""
    trained = {name for name, p in model.named_parameters(remove_duplicate=False) if p.requires_grad}
    buffers = {name for name, _ in model.named_buffers() if not name.startswith("behrt.")}
    return {name: t for name, t in model.state_dict().items() if name not in trained | buffers}


def _digest(tensor: Tensor) -> bytes:
    return hashlib.blake2b(tensor_bytes(tensor), digest_size=16).digest()
