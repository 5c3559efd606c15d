"""Writes the cases of the task language, as the tests run them, into its page: ``python docs/task_language.py``."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path

import yaml

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs/reference/task-language.md"
BEGIN, END = "<!-- cases: written by docs/task_language.py from tests/task_cases.py -->\n", "<!-- end of cases -->\n"

sys.path.insert(0, str(ROOT / "tests"))
from task_cases import CASES, Case  # noqa: E402


def page() -> str:
    """The page with its cases as they are now."""
    text = PAGE.read_text(encoding="utf-8")
    head, rest = text.split(BEGIN)
    return f"{head}{BEGIN}\n{cases(CASES)}\n{END}{rest.split(END)[1]}"


def cases(known: Sequence[Case]) -> str:
    """Every case under its key."""
    keys = dict.fromkeys(case.key for case in known)
    return "\n".join(f"### `{key}`\n\n" + "\n".join(one(case) for case in known if case.key == key) for key in keys)


def one(case: Case) -> str:
    """One case: what it shows, the task, the records and what comes of them."""
    parts = [f"**{case.name[0].upper()}{case.name[1:]}.**"]
    if case.task:
        parts.append("```yaml\n" + "".join(map(setting, case.task.items())) + "```")
    if case.split:
        parts.append("Of the study:\n\n```yaml\n" + setting(("split", case.split)) + "```")
    if case.visit_column:
        parts.append(f"With `visit_column: {case.visit_column}`.")
    parts.append(table(case.events))
    if case.visits:
        parts += ["Visits:", table(case.visits)]
    parts += ["Rows:" if not case.visits else "Evaluated:", table(case.labels)]
    if case.subgroups:
        parts += ["Subgroups:", table(case.subgroups)]
    if case.read:
        parts += ["Read:", table(case.read)]
    if case.removed:
        parts.append("Removed: " + ", ".join(f"`{rule}` {count}" for rule, count in case.removed.items()) + ".")
    return "\n\n".join(parts) + "\n"


def setting(item: tuple[str, object]) -> str:
    """A key and its value on one line of YAML."""
    text = yaml.safe_dump(item[1], default_flow_style=True, width=1_000, sort_keys=False, allow_unicode=True)
    return f"{item[0]}: {text.removesuffix('...' + chr(10)).strip()}\n"


def table(text: str) -> str:
    """A table of the tests as a block."""
    return "```text\n" + textwrap.dedent(text).strip() + "\n```"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
