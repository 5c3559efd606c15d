"""One STUDY.yaml -> a whole run; the only orchestrator."""

from ehrsequencing.study.run import plan, run_study

__all__ = ["plan", "run_study"]
