"""A random survival forest (Ishwaran et al. 2008), where scikit-survival is installed: ``ehrsequencing[forest]``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float32, Float64

from ehrsequencing.baselines.cox import Outcome

TREES, MIN_LEAF, MAX_DEPTH = 100, 15, 8
MAX_ROWS = 4_000
"""Training rows drawn for a tree at most: beyond that, time grows faster than what a tree learns."""


@dataclass(frozen=True)
class Forest:
    """A fitted forest."""

    model: Any

    def survival(self, x: Float32[np.ndarray, "n p"], times: Float64[np.ndarray, " m"]) -> Float64[np.ndarray, "n m"]:
        """S(t | x): the mean over trees of the Kaplan–Meier curve of the row's leaf."""
        steps = self.model.predict_survival_function(x, return_array=True)  # [n,u]
        whole = np.concatenate([np.ones((len(x), 1)), steps], axis=1)
        return whole[:, np.searchsorted(self.model.unique_times_, times, side="right")]

    @property
    def n_leaves(self) -> int:
        """Leaves of all trees."""
        return sum(int(tree.tree_.n_leaves) for tree in self.model.estimators_)


def fit_forest(x: Float32[np.ndarray, "n p"], outcome: Outcome, times: Float64[np.ndarray, " m"], seed: int) -> Forest:
    """Trees split by the log-rank statistic on the training rows, grown to leaves of `MIN_LEAF` rows.

    Durations are rounded up to ``times`` (days), which bounds what each leaf has to hold. One thread.
    """
    forest: Callable[..., Any] = _random_survival_forest()
    rounded = times[np.minimum(np.searchsorted(times, outcome.duration), len(times) - 1)]
    y = np.empty(len(rounded), dtype=[("event", bool), ("time", np.float64)])
    y["event"], y["time"] = outcome.event > 0, rounded
    model = forest(
        n_estimators=TREES,
        max_depth=MAX_DEPTH,
        min_samples_leaf=MIN_LEAF,
        max_features="sqrt",
        max_samples=MAX_ROWS if len(x) > MAX_ROWS else None,
        n_jobs=1,
        random_state=seed,
    )
    return Forest(model.fit(x, y))


def _random_survival_forest() -> Callable[..., Any]:
    from sksurv.ensemble import RandomSurvivalForest  # an optional extra under the GPL: never a core import

    return RandomSurvivalForest
