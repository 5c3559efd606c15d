"""Where a long job stands, told to whoever draws it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Tick:
    """``done`` of ``total`` steps of the job ``title``; ``note`` is a line worth keeping."""

    title: str
    done: float
    total: float
    note: str = ""


Progress = Callable[[Tick], None]


def silent(tick: Tick) -> None:
    """A progress listener that shows nothing."""
