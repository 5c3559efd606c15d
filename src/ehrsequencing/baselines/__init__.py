"""What a statistician would use instead: the simple models that stand beside every strategy, on the same rows."""

from ehrsequencing.baselines.fitted import Fitted
from ehrsequencing.baselines.table import BASELINES, Baseline

__all__ = ["BASELINES", "Baseline", "Fitted"]
