"""LoRA on the encoder (Hu et al. 2021, arXiv:2106.09685): injected, checked, saved alone, merged."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ehrsequencing.errors import EhrError, Exit
from ehrsequencing.files import staged_file

TARGETS = ("q_proj", "k_proj", "v_proj", "out_proj")


@dataclass(frozen=True)
class AdapterSpec:
    """Rank, alpha (the update is scaled by alpha/rank), dropout on the adapter's input, and the layers wrapped."""

    rank: int
    alpha: float | int
    dropout: float | int = 0.0
    targets: tuple[str, ...] = TARGETS

    def __post_init__(self) -> None:
        if self.rank < 1 or self.alpha <= 0 or not 0 <= self.dropout < 1 or not self.targets:
            raise EhrError(
                f"expected rank >= 1, alpha > 0, 0 <= dropout < 1 and at least one target, found {self}",
                "LoRA settings",
                "correct the setting",
                code=Exit.CONFIG,
            )

    def __str__(self) -> str:
        dropout = f", dropout {self.dropout:g}" if self.dropout else ""
        return f"LoRA rank {self.rank}, alpha {self.alpha:g}{dropout} on {', '.join(self.targets)}"

    @classmethod
    def of_config(cls, config: Any) -> AdapterSpec:
        """The adapter a model's configuration records."""
        return cls(config.lora_rank, float(config.lora_alpha), config.lora_dropout, tuple(config.lora_targets))


def is_adapter(name: str) -> bool:
    """Whether a parameter of that name is one of LoRA's matrices."""
    return ".lora_A." in name or ".lora_B." in name


def _adapted_layers(module: nn.Module) -> Iterator[tuple[str, Any]]:
    for name, layer in module.named_modules():
        if hasattr(layer, "base_layer") and hasattr(layer, "lora_A"):
            yield name, layer


def adapter_of(behrt: nn.Module) -> AdapterSpec | None:
    """The adapter an encoder carries, read from its layers, or None."""
    layers = list(_adapted_layers(behrt))
    if not layers:
        return None
    layer = layers[0][1]
    dropout = float(getattr(layer.lora_dropout["default"], "p", 0.0))
    found = {name.rsplit(".", 1)[-1] for name, _ in layers}
    targets = tuple(sorted(found, key=lambda t: TARGETS.index(t) if t in TARGETS else len(TARGETS)))
    return AdapterSpec(layer.r["default"], float(layer.lora_alpha["default"]), dropout, targets)


def apply_lora_to_behrt(
    behrt: nn.Module,
    rank: int = 16,
    alpha: float | int = 32,
    dropout: float | int = 0.0,
    *,
    targets: Sequence[str] = TARGETS,
    train_embeddings: bool = False,
) -> nn.Module:
    """Inject LoRA into the encoder and freeze its base; returns the same object, its output unchanged at step 0.

    Load weights first, inject after. A no-op on an equal adapter (the trainable set is restored), an EhrError
    (exit 10) on a different one and on an encoder whose configuration says ``freeze_behrt``. With
    ``train_embeddings`` the embeddings are trained beside the adapter.
    """
    spec = AdapterSpec(rank, float(alpha), float(dropout), tuple(targets))
    found = adapter_of(behrt)
    if found is not None and (found.rank, found.alpha, found.dropout, set(found.targets)) != (
        spec.rank,
        spec.alpha,
        spec.dropout,
        set(spec.targets),
    ):
        raise EhrError(
            f"the encoder already carries {found}; asked for {spec}",
            "apply_lora_to_behrt",
            "merge it (merge_lora) or load the encoder again",
            code=Exit.CONFIG,
        )
    _record(behrt, spec, train_embeddings)
    if found is None:
        _inject(behrt, spec)
    for name, parameter in behrt.named_parameters():
        trained = is_adapter(name) or (train_embeddings and name.startswith("embeddings."))
        parameter.requires_grad_(trained)
    return behrt


def apply_lora_from_config(behrt: nn.Module) -> nn.Module:
    """Inject the adapter that the encoder's own configuration records."""
    config: Any = behrt.config
    spec = AdapterSpec.of_config(config)
    return apply_lora_to_behrt(
        behrt,
        spec.rank,
        spec.alpha,
        spec.dropout,
        targets=spec.targets,
        train_embeddings=config.lora_train_embeddings,
    )


def _record(behrt: nn.Module, spec: AdapterSpec, train_embeddings: bool) -> None:
    config: Any = behrt.config
    if config.freeze_behrt:
        raise EhrError(
            "an adapter was asked for on a frozen encoder: freeze_behrt and use_lora exclude each other",
            "apply_lora_to_behrt",
            "build the model without freeze_behrt, or use apply_strategy(model, 'lora')",
            code=Exit.CONFIG,
        )
    config.use_lora, config.lora_rank, config.lora_alpha = True, spec.rank, spec.alpha
    config.lora_dropout, config.lora_targets = spec.dropout, list(spec.targets)
    config.lora_train_embeddings = train_embeddings


def _inject(behrt: nn.Module, spec: AdapterSpec) -> None:
    from peft import LoraConfig, inject_adapter_in_model

    alpha: Any = spec.alpha  # peft says int and takes any number
    settings = LoraConfig(
        r=spec.rank, lora_alpha=alpha, lora_dropout=spec.dropout, target_modules=list(spec.targets), bias="none"
    )
    try:
        inject_adapter_in_model(settings, behrt)
    except ValueError as error:
        raise EhrError(
            f"LoRA cannot be injected: {error}", "lora_targets", "name Linear layers", code=Exit.CONFIG
        ) from error
    for _, layer in _adapted_layers(behrt):
        for matrix in (layer.lora_A["default"], layer.lora_B["default"]):
            matrix._is_hf_initialized = True  # post_init of an enclosing model would fill B, which starts at 0


def merge_lora(behrt: nn.Module) -> nn.Module:
    """Add each adapter's update to its base weight and take the wrapper away; predictions stay, to rounding.

    Returns the same encoder, plain again; apply a strategy to it before training on.
    """
    for name, layer in list(_adapted_layers(behrt)):
        layer.merge(safe_merge=True)
        parent, _, leaf = name.rpartition(".")
        setattr(behrt.get_submodule(parent), leaf, layer.get_base_layer())
    config: Any = behrt.config
    config.use_lora = config.lora_train_embeddings = False
    if hasattr(behrt, "peft_config"):
        del behrt.peft_config
    return behrt


def save_adapter(model: nn.Module, path: str | Path) -> None:
    """Write what LoRA trained (adapter, head, embeddings where trained) to one safetensors file, without its base.

    The file holds the adapter's settings and a digest of the base, so that it is never laid over another one.
    EhrError (exit 10) where the encoder carries no adapter.
    """
    behrt: Any = model.behrt
    spec = adapter_of(behrt)
    if spec is None:
        raise EhrError("the encoder carries no adapter", "save_adapter", "use save_pretrained", code=Exit.CONFIG)
    trained = bool(behrt.config.lora_train_embeddings)
    tensors = {name: t.detach().cpu().contiguous() for name, t in model.state_dict().items() if _saved(name, trained)}
    record = {**asdict(spec), "train_embeddings": trained, "base": _base_digest(behrt, trained)}
    with staged_file(path) as draft:
        save_file(tensors, draft, metadata={"adapter": json.dumps(record)})


def load_adapter(model: nn.Module, path: str | Path) -> nn.Module:
    """Lay a file of ``save_adapter`` over the base it was trained on; returns the same survival model.

    The model's encoder is plain, or carries an equal adapter. EhrError (exit 13) for another base, missing,
    unexpected or misshapen tensors; the model is then as it was.
    """
    behrt: Any = model.behrt
    record, tensors = _read_adapter(Path(path))
    trained = bool(record.pop("train_embeddings"))
    if record.pop("base") != _base_digest(behrt, trained):
        raise _misfit(path, "it was trained over another base encoder")
    spec = AdapterSpec(**{**record, "targets": tuple(record["targets"])})
    wanted = _expected_shapes(model, spec, trained)
    odd = sorted(n for n in wanted.keys() | tensors.keys() if n not in tensors or wanted.get(n) != tensors[n].shape)
    if odd:
        raise _misfit(path, f"tensors missing, unexpected or misshapen: {', '.join(odd)}")
    apply_lora_to_behrt(behrt, spec.rank, spec.alpha, spec.dropout, targets=spec.targets, train_embeddings=trained)
    model.load_state_dict(tensors, strict=False)
    return model


def _expected_shapes(model: nn.Module, spec: AdapterSpec, embeddings: bool) -> dict[str, torch.Size]:
    shapes = {n: t.shape for n, t in model.state_dict().items() if _saved(n, embeddings) and not is_adapter(n)}
    for name, layer in model.named_modules():
        if name.startswith("behrt.") and name.rpartition(".")[2] in spec.targets:
            shapes[f"{name}.lora_A.default.weight"] = torch.Size((spec.rank, layer.in_features))
            shapes[f"{name}.lora_B.default.weight"] = torch.Size((layer.out_features, spec.rank))
    return shapes


def _saved(name: str, embeddings: bool) -> bool:
    return is_adapter(name) or not name.startswith("behrt.") or (embeddings and name.startswith("behrt.embeddings."))


def _base_digest(behrt: nn.Module, without_embeddings: bool) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted((n.replace(".base_layer", ""), t) for n, t in behrt.state_dict().items()):
        if is_adapter(name) or (without_embeddings and name.startswith("embeddings.")):
            continue
        digest.update(name.encode())
        digest.update(tensor_bytes(tensor))
    return digest.hexdigest()


def tensor_bytes(tensor: Tensor) -> memoryview:
    """The tensor's raw bytes on the CPU, whatever its dtype."""
    return tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data


def _read_adapter(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    try:
        with safe_open(str(path), framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise _misfit(path, f"it cannot be read: {error}") from error
    if "adapter" not in metadata:
        raise _misfit(path, "it carries no adapter settings")
    return json.loads(metadata["adapter"]), tensors


def _misfit(path: Path | str, what: str) -> EhrError:
    fix = "load the base encoder it was saved over, then the adapter"
    return EhrError(f"the adapter file does not fit: {what}", str(path), fix, code=Exit.BUNDLE)
