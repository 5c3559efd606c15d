"""Where a training loop leaves its state, so that a killed run goes on from there to the same bytes."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from safetensors.torch import save as to_bytes
from torch import Tensor, nn

from ehrsequencing.config import SAVE_SECONDS
from ehrsequencing.files import staged_file
from ehrsequencing.models.lora import tensor_bytes

STATE = "state.safetensors"
SHARE = 50
"""A saving that took t seconds is followed by none for t times this: at most 2% of a run goes into savings."""


@dataclass(frozen=True)
class Resume:
    """Where a loop may keep its state, and how many seconds lie between two savings at least.

    The folder belongs to whoever named it: the loop leaves its finished state there, so that a rerun that was killed
    later need not train again; its owner removes it once the result is written.
    """

    folder: Path
    every: float = SAVE_SECONDS

    def within(self, name: str) -> Resume:
        """The same under a folder of its own, for one of several loops."""
        return Resume(self.folder / name, self.every)


@dataclass
class Snapshot:
    """A state as tensors and as plain data that JSON keeps exactly (integers of any size, floats, text, lists)."""

    tensors: dict[str, Tensor] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)

    def part(self, name: str) -> Snapshot:
        """What was put in under ``name`` by ``join``."""
        stem = f"{name}/"
        tensors = {key.removeprefix(stem): value for key, value in self.tensors.items() if key.startswith(stem)}
        return Snapshot(tensors, self.facts[name])

    def join(self, name: str, part: Snapshot) -> None:
        """Put another snapshot into this one under ``name``."""
        self.tensors |= {f"{name}/{key}": value for key, value in part.tensors.items()}
        self.facts[name] = part.facts


class StateStore:
    """One loop's state on disk: ``state.safetensors`` and a file a kept epoch, each whole or absent.

    A state of other settings, weights or data (another ``fingerprint``), or one that cannot be read, is not used and
    is replaced; ``note`` then says so.
    """

    def __init__(self, resume: Resume, fingerprint: str) -> None:
        self.folder, self.every, self.fingerprint = resume.folder, resume.every, fingerprint
        self.note = ""
        self._on_disk: set[int] = set()
        self._last, self._cost = time.monotonic(), 0.0

    def load(self) -> tuple[Snapshot, dict[int, dict[str, Tensor]]] | None:
        """The state and the kept epochs' tensors; None where there is nothing to go on from."""
        if not (self.folder / STATE).is_file():
            return None
        try:
            facts = self._facts()
            if facts is not None:
                tensors = load_file(self.folder / STATE)
                kept = {epoch: load_file(self._kept(epoch)) for epoch in facts["kept"]}
                self._on_disk = set(kept)
                return Snapshot(tensors, facts), kept
            self.note = "an earlier state is of other settings or data: starting anew"
        except (SafetensorError, OSError, ValueError, KeyError):
            self.note = "an earlier state cannot be read: starting anew"
        shutil.rmtree(self.folder)
        return None

    def due(self) -> bool:
        """Whether enough time has passed since the last saving."""
        return time.monotonic() - self._last >= max(self.every, SHARE * self._cost)

    def save(self, state: Snapshot, kept: Mapping[int, Mapping[str, Tensor]]) -> None:
        """Write the state; kept epochs never change, so that each is written once."""
        started = time.monotonic()
        for epoch in sorted(set(kept) - self._on_disk):
            _write(self._kept(epoch), kept[epoch], {})
        facts = {**state.facts, "kept": sorted(kept), "fingerprint": self.fingerprint}
        _write(self.folder / STATE, state.tensors, {"facts": json.dumps(facts)})
        for epoch in self._on_disk - set(kept):
            self._kept(epoch).unlink(missing_ok=True)
        self._on_disk = set(kept)
        self._last = time.monotonic()
        self._cost = self._last - started

    def _facts(self) -> dict[str, Any] | None:
        with safe_open(str(self.folder / STATE), framework="pt") as file:
            facts = json.loads((file.metadata() or {})["facts"])
        return dict(facts) if facts["fingerprint"] == self.fingerprint else None

    def _kept(self, epoch: int) -> Path:
        return self.folder / f"kept-{epoch}.safetensors"


def _write(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str]) -> None:
    """Written, on the disk itself, and only then named: after a power cut it is there or it is not."""
    content = to_bytes({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, metadata)
    with staged_file(path) as draft, draft.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def module_digest(module: nn.Module) -> str:
    """blake2b (32 hexadecimal digits) of names and values of everything in a module's state."""
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in module.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor_bytes(tensor))
    return digest.hexdigest()


def digest_of(parts: Iterable[Any]) -> str:
    """blake2b (32 hexadecimal digits) of texts, numbers, plain data and arrays, in order."""
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        raw = part.tobytes() if hasattr(part, "tobytes") else json.dumps(part, sort_keys=True).encode()
        digest.update(f"{len(raw)}:".encode() + raw)
    return digest.hexdigest()


def run_fingerprint(model: nn.Module, settings: Mapping[str, Any], data: str) -> str:
    """What a state must share with a run to be taken up by it: starting weights, settings, data, versions."""
    versions = {"ehrsequencing": version("ehrsequencing"), "torch": torch.__version__}
    config: Any = getattr(model, "config", None)  # dropouts, adapters' scale, mask: what weights do not tell
    facts = {} if config is None else {k: v for k, v in config.to_dict().items() if not k.startswith("_")}
    trained = sorted(name for name, p in model.named_parameters() if p.requires_grad)
    return digest_of([module_digest(model), facts, trained, dict(settings), data, versions])


def optimizer_state(optimizer: torch.optim.Optimizer) -> Snapshot:
    """Moments and step counts by parameter number, and the learning rates."""
    state = optimizer.state_dict()["state"]
    tensors = {f"{number}/{key}": value for number, values in state.items() for key, value in values.items()}
    return Snapshot(tensors, {"rates": [group["lr"] for group in optimizer.param_groups]})


def restore_optimizer(optimizer: torch.optim.Optimizer, state: Snapshot) -> None:
    """Put back what ``optimizer_state`` gave."""
    found = optimizer.state_dict()
    by_number: dict[int, dict[str, Tensor]] = {}
    for name, value in state.tensors.items():
        number, key = name.split("/")
        by_number.setdefault(int(number), {})[key] = value
    for group, rate in zip(found["param_groups"], state.facts["rates"], strict=True):
        group["lr"] = rate
    optimizer.load_state_dict({**found, "state": by_number})


def random_state(device: torch.device) -> dict[str, Tensor]:
    """Of the generators that dropout draws from: the host's, and the device's own."""
    found = {"random": torch.get_rng_state()}
    return found if device.type == "cpu" else {**found, "random_there": torch.cuda.get_rng_state(device)}


def restore_random(state: Mapping[str, Tensor], device: torch.device) -> None:
    """Put back what ``random_state`` gave."""
    torch.set_rng_state(state["random"])
    if device.type != "cpu":
        torch.cuda.set_rng_state(state["random_there"], device)
