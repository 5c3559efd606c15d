"""Strategies of one's own: a named one with some settings changed, refused where a change would change nothing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from ehrsequencing.config import StrategyConfig
from ehrsequencing.errors import EhrError, Exit
from ehrsequencing.models.lora import layers_named
from ehrsequencing.models.strategies import STRATEGIES, Strategy, find_strategy

LORA = "lora_"


def read_strategy(given: str | StrategyConfig, where: str = "strategy") -> Strategy:
    """The strategy of that name, or the one that the settings describe.

    >>> read_strategy(StrategyConfig(name="wider", like="lora", lora_rank=32)).adapter.alpha
    64

    Raises:
        EhrError: exit 10 for an unknown name, a name that is taken, or a setting without any effect.
    """
    if isinstance(given, str):
        return find_strategy(given)
    where = f"{where} '{given.name}'"
    base, changes = find_strategy(given.like), given.changes
    if given.name.lower() in STRATEGIES:
        raise EhrError("the name is a built-in strategy's", where, "choose another name", code=Exit.CONFIG)
    if base.trains >= {"lora"} and "lora_rank" in changes:
        changes.setdefault("lora_alpha", None)  # twice the rank
    for what, fix in _without_effect(base, changes):
        raise EhrError(what, where, fix, code=Exit.CONFIG)
    settings = ", ".join(f"{name} {_told(value)}" for name, value in given.changes.items()) or "nothing changed"
    trains = base.trains | set(changes.pop("train_beside", ()))
    if "lora_targets" in changes:
        changes["lora_targets"] = layers_named(changes["lora_targets"])
    return replace(base, name=given.name, why=f"{given.like} with {settings}", trains=trains, **changes)


def _without_effect(base: Strategy, changes: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """What is wrong, and what to do instead."""
    head = changes.get("head", base.head)
    adapters = sorted(name for name in changes if name.startswith(LORA) or name == "train_beside")
    if adapters and base.lora_rank is None:
        yield f"{adapters[0]} has no effect: '{base.name}' has no adapters", "start from like: lora"
    if head in ("linear", "best") and not base.cached_features:
        yield f"head {head} is fitted on features that stay, but '{base.name}' moves the encoder", "choose residual"
    rates = sorted({"learning_rate", "learning_rates"} & set(changes))
    if rates and head == "linear":
        yield f"{rates[0]} has no effect: a linear head is fitted to convergence", "choose another head"
    slowed = "encoder" in base.trains or changes.get("train_beside")
    if changes.get("encoder_rate") is not None and not slowed:
        what = f"encoder_rate has no effect: '{base.name}' trains none of the encoder's own weights"
        yield what, "start from like: full, or set learning_rate"
    if changes.get("unfreeze_every") and "encoder" not in base.trains:
        yield f"unfreeze_every has no effect: '{base.name}' leaves the encoder's layers frozen", "start from like: full"


def _told(value: Any) -> str:
    return "/".join(map(str, value)) if isinstance(value, tuple) else str(value)
