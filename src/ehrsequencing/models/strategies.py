"""The strategies as data, and what each one trains."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, Literal

from torch import nn

from ehrsequencing.errors import EhrError, Exit, nearest
from ehrsequencing.models.lora import TARGETS, AdapterSpec, adapter_of, apply_adapter, is_adapter, is_norm

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
    hazards: Literal["proportional", "per_bin", "mixed"] | None = None
    learning_rate: float = 1e-3
    learning_rates: tuple[float, ...] = ()
    encoder_rate: float = 1.0
    unfreeze_every: int = 0

    @property
    def cached_features(self) -> bool:
        """True where the encoder cannot move, so that it needs to run only once."""
        return self.trains == {"head"}

    @property
    def control(self) -> str | None:
        """The control that shows, on the same patients, whether pretraining contributed; none has adapters.

        >>> STRATEGIES["full"].control, STRATEGIES["frozen"].control, STRATEGIES["lora"].control
        ('from-scratch', 'frozen-random', None)
        """
        if self.kind == "control" or "lora" in self.trains:
            return None
        return "frozen-random" if self.cached_features else "from-scratch"

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
                hazards="proportional",
            ),
            Strategy(
                "lora-8",
                "rank-8 adapters: half the capacity, the first step up from a frozen encoder that underfits",
                _LORA,
                lora_rank=8,
                lora_alpha=16,
                head="residual",
                hazards="proportional",
            ),
            Strategy(
                "full",
                "everything is trained: most capacity and most risk of overfitting, for over 20,000 patients",
                _ALL,
                head="residual",
                hazards="proportional",
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
                hazards="proportional",
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
