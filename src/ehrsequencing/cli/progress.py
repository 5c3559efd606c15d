"""Shows how far a long job is: a bar with remaining time on a terminal; elsewhere a line an epoch, or half a minute."""

from __future__ import annotations

import sys
import time
from contextlib import AbstractContextManager
from types import TracebackType
from typing import TYPE_CHECKING

from ehrsequencing.progress import Tick, listening

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID


LINE_SECONDS = 30.0
"""Where there is no bar, a job says at least so often how far it is."""


class ProgressDisplay(AbstractContextManager["ProgressDisplay"]):
    """A progress listener: hears every job while it is entered, or is called with a tick."""

    def __init__(self, quiet: bool = False) -> None:
        self.quiet = quiet
        self.started: dict[str, float] = {}
        self.said = time.monotonic()
        self.tasks: dict[str, TaskID] = {}
        self.bar: Progress | None = None

    def __enter__(self) -> ProgressDisplay:
        if sys.stderr.isatty() and not self.quiet:
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

            columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:3.0f}%"))
            self.bar = Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True), transient=True)
            self.bar.start()
        self.heard = listening(self)
        self.heard.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.heard.__exit__(kind, error, trace)
        if self.bar is not None:
            self.bar.stop()

    def __call__(self, tick: Tick) -> None:
        started = self.started.setdefault(tick.title, time.monotonic())
        if self.bar is not None:
            task = self.tasks.get(tick.title)
            if task is None:
                task = self.tasks[tick.title] = self.bar.add_task(tick.title, total=tick.total)
            self.bar.update(task, completed=tick.done, total=tick.total, visible=tick.done < tick.total)
        silent = self.bar is None and time.monotonic() - self.said >= LINE_SECONDS and 0 < tick.done < tick.total
        if (tick.note or silent) and not self.quiet:
            self._line(tick, started)
        if tick.done >= tick.total:
            self.started.pop(tick.title, None)
            self.tasks.pop(tick.title, None)

    def _line(self, tick: Tick, started: float) -> None:
        elapsed = time.monotonic() - started
        remaining = elapsed / tick.done * (tick.total - tick.done) if 0 < tick.done < tick.total else 0.0
        left = f"  (at most {_clock(remaining)} left)" if remaining >= 1 else ""
        line = f"{tick.title}: {tick.note or f'{tick.done / tick.total:.0%}'}{left}"
        self.said = time.monotonic()
        if self.bar is not None:
            self.bar.console.print(line, highlight=False, markup=False)
        else:
            sys.stderr.write(line + "\n")
            sys.stderr.flush()


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
