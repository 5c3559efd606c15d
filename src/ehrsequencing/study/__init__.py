"""One STUDY.yaml -> a whole run; the only orchestrator.

The two names below are loaded when they are first used: a verb of one step need not load what a whole study needs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ehrsequencing.study.run import plan, run_study

__all__ = ["plan", "run_study"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'ehrsequencing.study' has no attribute '{name}'")
    from ehrsequencing.study import run

    return getattr(run, name)
