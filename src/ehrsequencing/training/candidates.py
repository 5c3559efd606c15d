"""Among the candidates of a strategy (heads, learning rates): each tried with a state of its own, one kept, and why."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from ehrsequencing.errors import EhrError, Exit
from ehrsequencing.models.strategies import Strategy
from ehrsequencing.training.resume import Resume

Fitted = TypeVar("Fitted")


def try_each(strategy: Strategy, fit: Callable[[Strategy], Fitted]) -> tuple[list[tuple[Strategy, Fitted]], list[str]]:
    """What came of every candidate, and notes on those whose training diverged, where others did not.

    Raises:
        EhrError: as ``fit``; where training diverged, only if it did for every candidate.
    """
    found: list[tuple[Strategy, Fitted]] = []
    lost: list[EhrError] = []
    for candidate in strategy.candidates:
        try:
            found.append((candidate, fit(candidate)))
        except EhrError as error:
            if error.code != Exit.DATA or len(strategy.candidates) == 1:
                raise
            lost.append(error)
    if not found:
        raise lost[-1]
    return found, [f"one candidate was left out: {error.what}" for error in lost]


def resume_of(candidate: Strategy, strategy: Strategy, resume: Resume | None) -> Resume | None:
    """Each of several has a state of its own."""
    alone = len(strategy.candidates) == 1
    return resume if resume is None or alone else resume.within(f"{candidate.head}-{candidate.learning_rate:g}")


def why_kept(strategy: Strategy, best: Strategy) -> str:
    """The note of a choice among several candidates."""
    rate = f" at learning rate {best.learning_rate:g}" if strategy.learning_rates and best.head != "linear" else ""
    return f"{best.head} head{rate} kept: lower tuning likelihood loss"
