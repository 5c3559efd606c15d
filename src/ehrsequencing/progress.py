"""Where a long job stands, told to whoever listens: passed on by name, or heard from any depth while ``listening``."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TypeVar


@dataclass(frozen=True)
class Tick:
    """``done`` of ``total`` steps of the job ``title``; ``note`` is a line worth keeping."""

    title: str
    done: float
    total: float
    note: str = ""


Progress = Callable[[Tick], None]
Item = TypeVar("Item")


def silent(tick: Tick) -> None:
    """A progress listener that shows nothing."""


_LISTENER: ContextVar[Progress] = ContextVar("listener", default=silent)


@contextmanager
def listening(progress: Progress) -> Iterator[None]:
    """Within the block, loops that report by :func:`tracked` report to ``progress``, however deep they lie."""
    token = _LISTENER.set(progress)
    try:
        yield
    finally:
        _LISTENER.reset(token)


def stages(title: str, count: int) -> Callable[[], None]:
    """For a job of so many unlike steps: call what is returned after each.

    >>> heard = []
    >>> with listening(heard.append):
    ...     done = stages("asking", 2)
    ...     done()
    ...     done()
    >>> [(tick.done, tick.total) for tick in heard]
    [(0, 2), (1, 2), (2, 2)]
    """
    report, numbers = counting(title, count), iter(range(1, count + 1))
    return lambda: report(next(numbers))


def counting(title: str, total: float) -> Callable[[float], None]:
    """For a job of which so much is to be done: call what is returned with how much of it is."""
    progress = _LISTENER.get()
    progress(Tick(title, 0, total))
    return lambda done: progress(Tick(title, min(done, total), total))


def tracked(items: Iterable[Item], title: str, weights: list[float]) -> Iterator[Item]:
    """``items`` one by one, each reported when it is done.

    Args:
        weights: how much work each item is, in any unit; as many as there are items.

    >>> heard = []
    >>> with listening(heard.append):
    ...     list(tracked("ab", "reading", [1.0, 3.0]))
    ['a', 'b']
    >>> [(tick.done, tick.total) for tick in heard]
    [(0.0, 4.0), (1.0, 4.0), (4.0, 4.0)]
    """
    progress, done, total = _LISTENER.get(), 0.0, float(sum(weights))
    progress(Tick(title, done, total))
    for item, weight in zip(items, weights, strict=False):
        yield item
        done += weight
        progress(Tick(title, done, total))
