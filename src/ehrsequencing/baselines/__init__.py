"""What a statistician would use instead: the simple models that stand beside every strategy, on the same rows."""

from ehrsequencing.baselines.table import BASELINES, Baseline, Fitted

__all__ = ["BASELINES", "Baseline", "Fitted"]
