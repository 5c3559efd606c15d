"""Puts a benchmark's tables into the page of all benchmarks, between that benchmark's own markers."""

from __future__ import annotations

import datetime as dt
import platform
import sys
from collections.abc import Sequence
from pathlib import Path

PAGE = Path(__file__).parent / "README.md"
RESULTS = PAGE.parent / "results"


def begin(script: str) -> str:
    """The line after which a script's tables stand."""
    return f"<!-- begin: made by benchmarks/{script}.py -->"


def end(script: str) -> str:
    """The line before which they end."""
    return begin(script).replace("begin", "end", 1)


def rewrite(page: str, script: str, content: str) -> str:
    """The page with what stands between the script's markers replaced; nothing else of it is touched.

    >>> rewrite(f"a {begin('x')} old {end('x')} b", "x", "new").splitlines()[0]
    'a <!-- begin: made by benchmarks/x.py -->'
    """
    head, rest = page.split(begin(script))
    tail = rest.split(end(script))[1]
    return f"{head}{begin(script)}\n\n{content}\n\n{end(script)}{tail}"


def publish(script: str, content: str) -> None:
    """Rewrite the page in place."""
    PAGE.write_text(rewrite(PAGE.read_text(encoding="utf-8"), script, content), encoding="utf-8")


def made(arguments: Sequence[str] | None = None) -> str:
    """When, by which command and with which Python a table was made."""
    words = " ".join(sys.argv[1:] if arguments is None else arguments)
    script = Path(sys.argv[0]).name
    command = f"python benchmarks/{script} {words}".rstrip()
    machine = f"Python {platform.python_version()}, {platform.machine()}, one thread"
    return f"{dt.date.today().isoformat()}, `{command}`, {machine}."


def table(heads: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A Markdown table.

    >>> print(table(["a", "b"], [["1", "2"]]))
    | a | b |
    | --- | --- |
    | 1 | 2 |
    """
    rows = [heads, ["---"] * len(heads), *lines]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)
