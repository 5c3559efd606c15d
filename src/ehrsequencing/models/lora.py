"""LoRA on the encoder (Hu et al. 2021, arXiv:2106.09685), rank-stabilised or as DoRA: injected, checked, merged."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ehrsequencing.errors import EhrError, Exit

TARGETS = ("q_proj", "k_proj", "v_proj", "out_proj")
FEED_FORWARD = ("feed_in", "feed_out")
TARGET_GROUPS: Mapping[str, tuple[str, ...]] = {
    "attention": TARGETS,
    "feed_forward": FEED_FORWARD,
    "attention+feed_forward": (*TARGETS, *FEED_FORWARD),
}
"""Layers of a block by what they do; where layers are named one by one, any of them may be."""
MATRICES = ("lora_A", "lora_B", "lora_magnitude_vector")
"""What an adapter is made of; the last is DoRA's, one magnitude an output channel."""


@dataclass(frozen=True)
class AdapterSpec:
    """Rank, alpha, dropout on the adapter's input, the layers wrapped, and the kind of adapter.

    The update of a weight is scaling · B A, with scaling alpha/rank, or alpha/√rank where it is ``rank_stabilised``
    (Kalajdzievski 2023, arXiv:2312.03732: else high ranks learn little). With ``dora`` (Liu et al. 2024,
    arXiv:2402.09353) the updated weight is brought back to unit length an output channel and multiplied by a trained
    magnitude.
    """

    rank: int
    alpha: float | int
    dropout: float | int = 0.0
    targets: tuple[str, ...] = TARGETS
    rank_stabilised: bool = False
    dora: bool = False

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
        kind = ("DoRA" if self.dora else "LoRA") + (", rank-stabilised," if self.rank_stabilised else "")
        return f"{kind} rank {self.rank}, alpha {self.alpha:g}{dropout} on {', '.join(self.targets)}"

    @property
    def scaling(self) -> float:
        """What B A is multiplied by.

        >>> AdapterSpec(16, 32).scaling, AdapterSpec(16, 32, rank_stabilised=True).scaling
        (2.0, 8.0)
        """
        return self.alpha / (math.sqrt(self.rank) if self.rank_stabilised else self.rank)

    def fits(self, other: AdapterSpec) -> bool:
        """Whether both are the same adapter, whatever the order in which the layers were named."""
        mine, theirs = ({**vars(spec), "targets": set(spec.targets)} for spec in (self, other))
        return mine == theirs

    def shapes(self, name: str, layer: nn.Linear) -> dict[str, torch.Size]:
        """The adapter's tensors on the layer of that name."""
        sizes: list[tuple[int, ...]] = [(self.rank, layer.in_features), (layer.out_features, self.rank)]
        sizes += [(layer.out_features,)] if self.dora else []
        return {
            f"{name}.{part}.default.weight": torch.Size(size)
            for part, size in zip(MATRICES[: len(sizes)], sizes, strict=True)
        }

    @classmethod
    def of_config(cls, config: Any) -> AdapterSpec:
        """The adapter a model's configuration records."""
        return cls(
            config.lora_rank,
            float(config.lora_alpha),
            config.lora_dropout,
            tuple(config.lora_targets),
            config.lora_rank_stabilised,
            config.lora_dora,
        )


def layers_named(targets: str | Sequence[str]) -> tuple[str, ...]:
    """The layers that a group's name, or a list of layers, means.

    >>> layers_named("feed_forward"), layers_named(["q_proj", "feed_forward"])
    (('feed_in', 'feed_out'), ('q_proj', 'feed_in', 'feed_out'))

    Raises:
        EhrError: exit 10 for a name that no block has, or for none.
    """
    given = [targets] if isinstance(targets, str) else list(targets)
    layers = tuple(dict.fromkeys(layer for name in given for layer in TARGET_GROUPS.get(name, (name,))))
    known = TARGET_GROUPS["attention+feed_forward"]
    unknown = [name for name in layers if name not in known]
    if unknown or not layers:
        what = f"no layer of a block is named '{unknown[0]}'" if unknown else "no layer is named"
        fix = f"name any of {', '.join((*TARGET_GROUPS, *known))}"
        raise EhrError(what, "lora_targets", fix, code=Exit.CONFIG)
    return layers


def is_adapter(name: str) -> bool:
    """Whether a parameter of that name is one of LoRA's matrices, or DoRA's magnitudes.

    >>> is_adapter("layers.0.feed_in.lora_magnitude_vector.default.weight"), is_adapter("layers.0.feed_in.weight")
    (True, False)
    """
    return any(f".{part}." in name for part in MATRICES)


def is_norm(name: str) -> bool:
    """Whether a parameter of that name is a LayerNorm's weight or bias.

    >>> is_norm("behrt.layers.0.feed_norm.weight"), is_norm("behrt.norm.bias"), is_norm("hazard_head.hazard.bias")
    (True, True, False)
    """
    return name.rpartition(".")[0].rpartition(".")[2].endswith("norm")


def moves_beside(name: str, train_embeddings: bool, train_norms: bool) -> bool:
    """Whether a parameter of the encoder (its name without ``behrt.``) is trained beside an adapter."""
    return (train_embeddings and name.startswith("embeddings.")) or (train_norms and is_norm(name))


def _adapted_layers(module: nn.Module) -> Iterator[tuple[str, Any]]:
    for name, layer in module.named_modules():
        if hasattr(layer, "base_layer") and hasattr(layer, "lora_A"):
            yield name, layer


def adapter_of(behrt: nn.Module) -> AdapterSpec | None:
    """The adapter an encoder carries, read from its layers, or None."""
    layers = list(_adapted_layers(behrt))
    if not layers:
        return None
    layer, known = layers[0][1], TARGET_GROUPS["attention+feed_forward"]
    found = {name.rsplit(".", 1)[-1] for name, _ in layers}
    return AdapterSpec(
        layer.r["default"],
        float(layer.lora_alpha["default"]),
        float(getattr(layer.lora_dropout["default"], "p", 0.0)),
        tuple(sorted(found, key=lambda t: known.index(t) if t in known else len(known))),
        bool(layer.use_rslora["default"]),
        "default" in layer.lora_magnitude_vector,
    )


def apply_lora_to_behrt(
    behrt: nn.Module,
    rank: int = 16,
    alpha: float | int = 32,
    dropout: float | int = 0.0,
    *,
    targets: str | Sequence[str] = TARGETS,
    train_embeddings: bool = False,
    train_norms: bool = False,
    rank_stabilised: bool = False,
    dora: bool = False,
) -> nn.Module:
    """Inject LoRA into the encoder and freeze its base; returns the same object, its output unchanged at step 0.

    Load weights first, inject after. A no-op on an equal adapter (the trainable set is restored), an EhrError
    (exit 10) on a different one and on an encoder whose configuration says ``freeze_behrt``. ``targets`` is a group
    (``attention``, ``feed_forward``, ``attention+feed_forward``) or names of Linear layers. With ``train_embeddings``
    and ``train_norms`` the embeddings, or all LayerNorms, are trained beside the adapter. ``rank_stabilised``,
    ``dora``: see ``AdapterSpec``.
    """
    spec = AdapterSpec(rank, float(alpha), float(dropout), layers_named(targets), rank_stabilised, dora)
    return apply_adapter(behrt, spec, train_embeddings=train_embeddings, train_norms=train_norms)


def apply_adapter(
    behrt: nn.Module, spec: AdapterSpec, *, train_embeddings: bool = False, train_norms: bool = False
) -> nn.Module:
    """``apply_lora_to_behrt`` with the adapter's settings in one object."""
    found = adapter_of(behrt)
    if found is not None and not found.fits(spec):
        raise EhrError(
            f"the encoder already carries {found}; asked for {spec}",
            "apply_lora_to_behrt",
            "merge it (merge_lora) or load the encoder again",
            code=Exit.CONFIG,
        )
    _refuse_frozen(behrt)
    if found is None:
        _inject(behrt, spec)
    _record(behrt, spec, train_embeddings, train_norms)
    for name, parameter in behrt.named_parameters():
        parameter.requires_grad_(is_adapter(name) or moves_beside(name, train_embeddings, train_norms))
    return behrt


def apply_lora_from_config(behrt: nn.Module) -> nn.Module:
    """Inject the adapter that the encoder's own configuration records."""
    config: Any = behrt.config
    return apply_adapter(
        behrt,
        AdapterSpec.of_config(config),
        train_embeddings=config.lora_train_embeddings,
        train_norms=config.lora_train_norms,
    )


def _refuse_frozen(behrt: nn.Module) -> None:
    config: Any = behrt.config
    if config.freeze_behrt:
        raise EhrError(
            "an adapter was asked for on a frozen encoder: freeze_behrt and use_lora exclude each other",
            "apply_lora_to_behrt",
            "build the model without freeze_behrt, or use apply_strategy(model, 'lora')",
            code=Exit.CONFIG,
        )


def _record(behrt: nn.Module, spec: AdapterSpec, train_embeddings: bool, train_norms: bool) -> None:
    config: Any = behrt.config
    config.use_lora, config.lora_rank, config.lora_alpha = True, spec.rank, spec.alpha
    config.lora_dropout, config.lora_targets = spec.dropout, list(spec.targets)
    config.lora_rank_stabilised, config.lora_dora = spec.rank_stabilised, spec.dora
    config.lora_train_embeddings, config.lora_train_norms = train_embeddings, train_norms


def _inject(behrt: nn.Module, spec: AdapterSpec) -> None:
    from peft import LoraConfig, inject_adapter_in_model

    alpha: Any = spec.alpha  # peft says int and takes any number
    settings = LoraConfig(
        r=spec.rank,
        lora_alpha=alpha,
        lora_dropout=spec.dropout,
        target_modules=list(spec.targets),
        bias="none",
        use_rslora=spec.rank_stabilised,
        use_dora=spec.dora,
    )
    missing = sorted(set(spec.targets) - {name.rpartition(".")[2] for name, _ in behrt.named_modules()})
    try:
        if missing:
            raise ValueError(f"the encoder has no layer named {', '.join(missing)}")
        inject_adapter_in_model(settings, behrt)
    except ValueError as error:
        fix = f"one of {', '.join(TARGET_GROUPS)}, or names of Linear layers"
        raise EhrError(f"LoRA cannot be injected: {error}", "lora_targets", fix, code=Exit.CONFIG) from error
    for _, layer in _adapted_layers(behrt):
        for matrix in (layer.lora_A["default"], layer.lora_B["default"]):
            matrix._is_hf_initialized = True  # post_init of an enclosing model would fill B, which starts at 0


def base_state(behrt: nn.Module) -> dict[str, Tensor]:
    """The encoder's own tensors under their plain names, whether or not an adapter lies beside them."""
    own = behrt.state_dict()
    return {name.replace(".base_layer", ""): value for name, value in own.items() if not is_adapter(name)}


def merge_lora(behrt: nn.Module) -> nn.Module:
    """Add each adapter's update to its base weight and take the wrapper away; predictions stay, to rounding.

    Returns the same encoder, plain again; apply a strategy to it before training on.
    """
    for _, layer in _adapted_layers(behrt):
        layer.merge(safe_merge=True)
    return drop_adapter(behrt)


def drop_adapter(behrt: nn.Module) -> nn.Module:
    """Take an adapter away and leave the layers beneath it as they are; returns the same encoder, plain again."""
    for name, layer in list(_adapted_layers(behrt)):
        parent, _, leaf = name.rpartition(".")
        setattr(behrt.get_submodule(parent), leaf, layer.get_base_layer())
    config: Any = behrt.config
    config.use_lora = config.lora_train_embeddings = config.lora_train_norms = False
    config.lora_rank_stabilised = config.lora_dora = False
    if hasattr(behrt, "peft_config"):
        del behrt.peft_config
    return behrt


def tensor_bytes(tensor: Tensor) -> memoryview:
    """The tensor's raw bytes on the CPU, whatever its dtype."""
    return tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data
