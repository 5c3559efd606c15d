"""An adapter's file: what LoRA trained, without its base, and the checks that it is laid over that base only."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ehrsequencing.errors import EhrError, Exit
from ehrsequencing.files import staged_file
from ehrsequencing.models.heads import HEADS
from ehrsequencing.models.lora import (
    AdapterSpec,
    adapter_of,
    apply_adapter,
    base_state,
    drop_adapter,
    is_adapter,
    moves_beside,
    tensor_bytes,
)

HEAD_SETTINGS = ("head", "hazards", "head_hidden", "head_dropout", "n_bins", "n_causes", "pairs")
"""Of a model's configuration: what its head is rebuilt from."""
READING_SETTINGS = ("architecture", "attention", "relations", "predict_at")
"""Of a model's configuration: how records are read, which no weight tells."""


@dataclass(frozen=True)
class AdapterFile:
    """What one file holds.

    Attributes:
        base: digest of the base that it was trained over, without what it brings itself.
        head: settings of its hazard head (``HEAD_SETTINGS``); empty in files of before there were any.
        reading: how records were read in training (``READING_SETTINGS``).
    """

    path: Path
    spec: AdapterSpec
    train_embeddings: bool
    train_norms: bool
    base: str
    tensors: Mapping[str, Tensor]
    head: Mapping[str, Any]
    reading: Mapping[str, Any]

    def refuse_misfit(self, model: nn.Module) -> None:
        """EhrError (exit 13) where ``model`` has another base, or the file lacks, misshapes or adds a tensor."""
        behrt: Any = model.behrt
        if self.base != base_digest(behrt, self.train_embeddings, self.train_norms):
            raise _misfit(self.path, "it was trained over another base encoder")
        if _pairs(self.head.get("pairs", ())) != _pairs(behrt.config.pairs):
            raise _misfit(self.path, "it was trained with other pairs of codes")
        wanted = self._expected_shapes(model)
        odd = sorted(
            name
            for name in wanted.keys() | self.tensors.keys()
            if name not in self.tensors or wanted.get(name) != self.tensors[name].shape
        )
        if odd:
            raise _misfit(self.path, f"tensors missing, unexpected or misshapen: {', '.join(odd)}")

    def _expected_shapes(self, model: nn.Module) -> dict[str, torch.Size]:
        beside = self.train_embeddings, self.train_norms
        shapes = {n: t.shape for n, t in model.state_dict().items() if _travels(n, *beside) and not is_adapter(n)}
        for name, layer in model.named_modules():
            if name.startswith("behrt.") and name.rpartition(".")[2] in self.spec.targets:
                shapes |= self.spec.shapes(name, layer)
        return shapes


def save_adapter(model: nn.Module, path: str | Path) -> None:
    """Write what LoRA trained (adapter, head, embeddings and norms where trained) to one safetensors file.

    The file holds the adapter's settings and a digest of the base, so that it is never laid over another one. EhrError
    (exit 10) where the encoder carries no adapter.
    """
    behrt: Any = model.behrt
    spec, config = adapter_of(behrt), behrt.config
    if spec is None:
        raise EhrError("the encoder carries no adapter", "save_adapter", "use save_pretrained", code=Exit.CONFIG)
    beside = bool(config.lora_train_embeddings), bool(config.lora_train_norms)
    tensors = {name: t.detach().cpu().contiguous() for name, t in model.state_dict().items() if _travels(name, *beside)}
    record = {
        **asdict(spec),
        "train_embeddings": beside[0],
        "train_norms": beside[1],
        "base": base_digest(behrt, *beside),
        "head": {name: getattr(config, name) for name in HEAD_SETTINGS},
        "reading": _reading(config),
    }
    with staged_file(path) as draft:
        save_file(tensors, draft, metadata={"adapter": json.dumps(record)})


def load_adapter(model: nn.Module, path: str | Path) -> nn.Module:
    """Lay a file of ``save_adapter`` over the base it was trained on; returns the same survival model.

    The model's encoder is plain, or carries an equal adapter. EhrError (exit 13) for another base, missing,
    unexpected or misshapen tensors; the model is then as it was.
    """
    file = _read(Path(path))
    file.refuse_misfit(model)
    behrt: Any = model.behrt
    apply_adapter(behrt, file.spec, train_embeddings=file.train_embeddings, train_norms=file.train_norms)
    model.load_state_dict(dict(file.tensors), strict=False)
    return model


def switch_adapter(model: nn.Module, path: str | Path) -> nn.Module:
    """Take the model's adapter and head away and lay those of a file over the same base; returns the same model.

    So that one base serves several outcomes, an adapter each: the file of one bundle (``adapter.safetensors``) over
    the model of another that was fine-tuned from the same encoder. Neither grid nor task nor vocabulary comes with it:
    those of the file's own bundle are to be read beside it.

    Raises:
        EhrError: exit 13 as ``load_adapter``, and where either adapter trained embeddings or norms beside it, which
            are then no longer those of the common base; the model is then as it was.
    """
    file = _read(Path(path))
    behrt: Any = model.behrt
    if behrt.config.lora_train_embeddings or behrt.config.lora_train_norms:
        raise _misfit(path, "the model's embeddings or norms were trained beside its adapter: load its encoder again")
    if not file.head:
        raise _misfit(path, "it does not say which head it was trained with")
    if file.base != base_digest(behrt, file.train_embeddings, file.train_norms):
        raise _misfit(path, "it was trained over another base encoder")
    mine = _reading(behrt.config)
    differing = [name for name in READING_SETTINGS if file.reading.get(name) != mine[name]]
    if differing:
        raise _misfit(path, f"it was trained under another {' and '.join(differing)}")
    other: Any = copy.deepcopy(model)
    drop_adapter(other.behrt)
    for name, value in {"pairs": [], **file.head}.items():
        setattr(other.config, name, value)
    other.hazard_head = HEADS[other.config.head](other.config)
    load_adapter(other, path)
    model.behrt, model.hazard_head, model.config = other.behrt, other.hazard_head, other.config
    return model


def _read(path: Path) -> AdapterFile:
    try:
        with safe_open(str(path), framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if "adapter" not in metadata:
            raise _misfit(path, "it carries no adapter settings")
        record = json.loads(metadata["adapter"])
        settings = {item.name: record[item.name] for item in fields(AdapterSpec) if item.name in record}
        spec = AdapterSpec(**{**settings, "targets": tuple(settings["targets"])})
        beside = bool(record["train_embeddings"]), bool(record.get("train_norms", False))
        head, reading = (dict(record.get(part, {})) for part in ("head", "reading"))
        return AdapterFile(path, spec, *beside, record["base"], tensors, head, reading)
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        raise _misfit(path, f"it cannot be read: {error}") from error


def base_digest(behrt: nn.Module, without_embeddings: bool = False, without_norms: bool = False) -> str:
    """blake2b of the base's names and values, with or without an adapter beside it."""
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(base_state(behrt).items()):
        if not moves_beside(name, without_embeddings, without_norms):
            digest.update(name.encode())
            digest.update(tensor_bytes(tensor))
    return digest.hexdigest()


def _reading(config: Any) -> dict[str, Any]:
    found = {name: getattr(config, name) for name in READING_SETTINGS}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in found.items()}


def _pairs(given: Sequence[Sequence[str | int]]) -> list[list[str | int]]:
    return [list(pair) for pair in given]


def _travels(name: str, embeddings: bool, norms: bool) -> bool:
    own = name.removeprefix("behrt.")
    return is_adapter(name) or own == name or moves_beside(own, embeddings, norms)


def _misfit(path: Path | str, what: str) -> EhrError:
    fix = "load the base encoder it was saved over, then the adapter"
    return EhrError(f"the adapter file does not fit: {what}", str(path), fix, code=Exit.BUNDLE)
