"""What a verb says: text for people, one JSON document for scripts, and the command that comes next."""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer


@dataclass(frozen=True)
class Output:
    """Where a verb's words go: with ``json``, standard output holds the document alone and messages go to stderr."""

    json: bool = False
    quiet: bool = False

    def say(self, text: str) -> None:
        """A message for people."""
        typer.echo(text, err=self.json)

    def result(self, text: str, data: Any) -> None:
        """What the verb found: as ``text``, or as the document ``data`` (exact counts, for programs)."""
        typer.echo(json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False) if self.json else text)

    def next(self, *words: str | Path) -> None:
        """Suggest the next command, on stderr; not to scripts, nor where quiet was asked for."""
        if not (self.json or self.quiet):
            typer.echo(f"next: {shlex.join(['ehrseq', *map(str, words)])}", err=True)


def beside(path: Path, name: str) -> Path:
    """A place for the next step's result: ``name`` in the folder that ``path`` lies in."""
    return path.parent / name


def task_beside(meds: Path) -> Path:
    """The TASK.yaml that lies in a dataset's folder (the simulator leaves one), or the placeholder for one's own."""
    own = meds / "task.yaml"
    return own if own.is_file() else Path("TASK.yaml")


def cohort_beside(path: Path) -> Path:
    """The cohort that lies beside ``path``, or the placeholder for it."""
    own = beside(path, "cohort")
    return own if own.is_dir() else Path("COHORT")
