"""The strategies as data, what each one trains, and the audit that holds a run to it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, Literal

from torch import Tensor, nn

from ehrsequencing.errors import EhrError, Exit, nearest
from ehrsequencing.models.lora import TARGETS, AdapterSpec, adapter_of, apply_adapter, is_adapter, is_norm, tensor_bytes

Part = Literal["head", "lora", "embeddings", "norms", "encoder"]


@dataclass(frozen=True)
class Strategy:
    """What is trained, from which encoder, with which head.

    ``trains`` names parts: the head, LoRA's matrices, the embeddings or all LayerNorms (options beside LoRA), the whole
    encoder.
    ``head`` is the small MLP trained by the loop, the penalised linear one fitted to convergence, both together
    (*residual*: the loop starts where the convex fit ends), or the better of the first two on tuning. A ``control``
    answers what pretraining contributes; it is never recommended.
    """

    name: str
    why: str
    trains: frozenset[Part]
    kind: Literal["strategy", "control"] = "strategy"
    encoder: Literal["pretrained", "random"] = "pretrained"
    lora_rank: int | None = None
    lora_alpha: float | int | None = None
    lora_dropout: float | int = 0.0
    lora_rank_stabilised: bool = False
    lora_dora: bool = False
    lora_targets: tuple[str, ...] | None = None
    head: Literal["mlp", "linear", "residual", "best"] = "mlp"
    hazards: Literal["proportional", "per_bin"] | None = None
    learning_rate: float = 1e-3
    learning_rates: tuple[float, ...] = ()
    encoder_rate: float = 1.0
    unfreeze_every: int = 0

    @property
    def cached_features(self) -> bool:
        """True where the encoder cannot move, so that it needs to run only once."""
        return self.trains == {"head"}

    @property
    def deterministic(self) -> bool:
        """True where every seed gives the same: a convex fit on a pretrained encoder."""
        return self.head == "linear" and self.encoder == "pretrained"

    @property
    def candidates(self) -> tuple[Strategy, ...]:
        """The strategies among which this one is chosen on tuning: each head, at each learning rate."""
        heads: tuple[Literal["mlp", "linear", "residual", "best"], ...]
        heads = ("mlp", "linear") if self.head == "best" else (self.head,)
        rates = self.learning_rates or (self.learning_rate,)
        every = ((head, rate) for head in heads for rate in (rates[:1] if head == "linear" else rates))
        return tuple(replace(self, head=head, learning_rate=rate, learning_rates=()) for head, rate in every)

    @property
    def adapter(self) -> AdapterSpec | None:
        """The adapter this strategy injects, or None."""
        if self.lora_rank is None:
            return None
        alpha = 2 * self.lora_rank if self.lora_alpha is None else self.lora_alpha
        return AdapterSpec(
            self.lora_rank,
            alpha,
            self.lora_dropout,
            TARGETS if self.lora_targets is None else self.lora_targets,
            rank_stabilised=self.lora_rank_stabilised,
            dora=self.lora_dora,
        )


_HEAD: frozenset[Part] = frozenset({"head"})
_LORA: frozenset[Part] = frozenset({"head", "lora"})
_ALL: frozenset[Part] = frozenset({"head", "encoder"})

STRATEGIES: Mapping[str, Strategy] = MappingProxyType(
    {
        s.name: s
        for s in (
            Strategy("frozen", "only the head is trained: fastest and most stable, for very small cohorts", _HEAD),
            Strategy(
                "frozen-ridge",
                "a penalised linear head on the frozen features, fitted to convergence in seconds",
                _HEAD,
                head="linear",
            ),
            Strategy(
                "lora",
                "rank-16 adapters beside a frozen base: the default for 2,000 to 20,000 patients",
                _LORA,
                lora_rank=16,
                lora_alpha=32,
                head="residual",
            ),
            Strategy(
                "lora-8",
                "rank-8 adapters: half the capacity, the first step up from a frozen encoder that underfits",
                _LORA,
                lora_rank=8,
                lora_alpha=16,
                head="residual",
            ),
            Strategy(
                "full",
                "everything is trained: most capacity and most risk of overfitting, for over 20,000 patients",
                _ALL,
                head="residual",
                learning_rate=1e-3,
                encoder_rate=0.1,
            ),
            Strategy(
                "from-scratch",
                "the same model from random weights: what pretraining must beat when everything is trained",
                _ALL,
                kind="control",
                encoder="random",
                head="residual",
                learning_rate=3e-4,
            ),
            Strategy(
                "frozen-random",
                "a random encoder, frozen: what pretraining must beat when only the head is trained",
                _HEAD,
                head="best",
                kind="control",
                encoder="random",
            ),
        )
    }
)


def find_strategy(strategy: Strategy | str) -> Strategy:
    """The strategy itself, or the one of that name; EhrError (exit 10) names the nearest known one.

    >>> find_strategy("lora").lora_rank
    16
    """
    if isinstance(strategy, Strategy):
        return strategy
    if strategy not in STRATEGIES:
        close = nearest(strategy, STRATEGIES, 1)
        fix = f"did you mean '{close[0]}'?" if close else f"known: {', '.join(STRATEGIES)}"
        raise EhrError(f"unknown strategy '{strategy}'", "strategy", fix, code=Exit.CONFIG)
    return STRATEGIES[strategy]


def strategy_from_config(config: Any) -> Strategy:
    """The strategy that a model's configuration records (``freeze_behrt``, ``use_lora`` and ``lora_*``)."""
    if config.use_lora:
        beside: dict[Part, bool] = {"embeddings": config.lora_train_embeddings, "norms": config.lora_train_norms}
        spec = AdapterSpec.of_config(config)
        return Strategy(
            "lora",
            "as saved",
            _LORA | {part for part, trained in beside.items() if trained},
            lora_rank=spec.rank,
            lora_alpha=spec.alpha,
            lora_dropout=spec.dropout,
            lora_rank_stabilised=spec.rank_stabilised,
            lora_dora=spec.dora,
            lora_targets=spec.targets,
        )
    return STRATEGIES["frozen" if config.freeze_behrt else "full"]


def apply_strategy(model: nn.Module, strategy: Strategy | str) -> nn.Module:
    """Make exactly the strategy's tensors trainable, injecting its adapter where needed; returns the same model.

    Idempotent, and to be run again after every load, since loading forgets ``requires_grad``. The choice is recorded in
    the model's configuration. EhrError (exit 10) where an adapter is in the way: merge it first.
    """
    chosen = find_strategy(strategy)
    behrt: Any = model.behrt
    found = adapter_of(behrt)
    if chosen.adapter is None and found is not None:
        raise EhrError(
            f"strategy '{chosen.name}' has no adapter, but the encoder carries {found}",
            "apply_strategy",
            "merge it (merge_lora) or load the encoder again",
            code=Exit.CONFIG,
        )
    behrt.config.freeze_behrt = chosen.cached_features
    if chosen.adapter is not None:
        named = behrt.config.lora_targets if chosen.lora_targets is None else chosen.lora_targets
        spec = replace(chosen.adapter, targets=tuple(named))
        beside = {"train_embeddings": "embeddings" in chosen.trains, "train_norms": "norms" in chosen.trains}
        apply_adapter(behrt, spec, **beside)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(_is_trained(name, chosen))
    model.train(model.training)
    return model


def hold_still(module: nn.Module, *, but: nn.Module) -> None:
    """Train nothing of ``module`` except what it shares with ``but``."""
    for parameter in set(module.parameters()) - set(but.parameters()):
        parameter.requires_grad_(False)


def part_of(name: str) -> Part:
    """The part a parameter belongs to, by its name in a survival model.

    >>> part_of("behrt.embeddings.norm.weight")
    'embeddings'
    """
    if not name.startswith("behrt."):
        return "head"
    if is_adapter(name):
        return "lora"
    return "embeddings" if name.startswith("behrt.embeddings.") else "encoder"


def _is_trained(name: str, strategy: Strategy) -> bool:
    norm = "norms" in strategy.trains and name.startswith("behrt.") and is_norm(name)
    return norm or part_of(name) in _trained_parts(strategy)


def _trained_parts(strategy: Strategy) -> frozenset[Part]:
    return strategy.trains | {"embeddings"} if "encoder" in strategy.trains else strategy.trains


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
        self._steps = 0

    def observe(self, model: nn.Module) -> None:
        """Tick off the trainable tensors that have a gradient; cheap once all of them had one."""
        self._steps += 1
        if self._waiting:
            parameters = dict(model.named_parameters())
            self._waiting -= {name for name in self._waiting if _has_gradient(parameters[name])}

    def state(self) -> dict[str, Any]:
        """What it has seen so far, as plain data."""
        return {"waiting": sorted(self._waiting), "steps": self._steps, "notes": self.notes}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from what ``state`` gave."""
        self._waiting, self._steps, self.notes = set(state["waiting"]), state["steps"], list(state["notes"])

    def assert_after_epoch(self, model: nn.Module) -> None:
        """EhrError naming the trainable tensors that never had a gradient and the frozen ones that moved."""
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


def _has_gradient(parameter: nn.Parameter) -> bool:
    return parameter.grad is not None and bool(parameter.grad.count_nonzero())
