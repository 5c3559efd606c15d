"""What tests of killed runs share: a listener that ends a run after so many ticks, and objectives without a state."""

from __future__ import annotations

from ehrsequencing.training.loop import Tick
from ehrsequencing.training.resume import Snapshot


class KilledError(Exception):
    """Stands for whatever ended the run."""


class KillAfter:
    """A progress listener that lets so many ticks of a loop's steps pass, then ends the run."""

    def __init__(self, ticks: int, title: str | None = None) -> None:
        self.left, self.title, self.notes, self.titles = ticks, title, [], set()

    def __call__(self, tick: Tick) -> None:
        self.titles.add(tick.title)
        if tick.note:
            self.notes.append(tick.note)
        elif self.title in (None, tick.title):
            self.left -= 1
            if self.left < 0:
                raise KilledError


class Stateless:
    """An objective with nothing of its own that moves."""

    def fingerprint(self) -> str:
        return "scripted"

    def state(self) -> Snapshot:
        return Snapshot()

    def restore(self, state: Snapshot) -> None:
        pass
