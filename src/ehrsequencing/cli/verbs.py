"""The verbs of ``ehrseq``; each works alone on the files that the step before it wrote."""

from __future__ import annotations

from ehrsequencing.cli import explaining, judging, learning, records
from ehrsequencing.cli.app import app

__all__ = ["app", "explaining", "judging", "learning", "records"]

STORY = (
    *("simulate", "check", "cohort", "advise", "pretrain", "finetune", "merge"),
    *("predict", "explain", "evaluate", "validate", "run"),
)
"""The order in which ``ehrseq --help`` tells them."""
app.registered_commands.sort(key=lambda verb: STORY.index(verb.callback.__name__) if verb.callback else len(STORY))
