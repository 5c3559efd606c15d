"""Figures told apart by groups of patients, and their counts as text in which no small cell shows (NumPy)."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float64

from ehrsequencing.config import MIN_CELL
from ehrsequencing.errors import EhrError, Exit
from ehrsequencing.evaluation.compare import Evaluation, SurvivalPredictions
from ehrsequencing.evaluation.resampling import Interval, resample_counts

MIN_GROUP_EVENTS = 10
"""Groups with fewer outcomes, or fewer patients than 10, get no figures."""
MAX_GROUPS = 12
"""Of more groups the smallest are taken together."""
METRICS: Mapping[str, tuple[str, ...]] = {
    "concordance": ("uno_c",),
    "calibration": ("oe@", "slope@"),
    "errors": ("brier@",),
}
"""What is told of a group: families of figures, and of each the metrics, those with an @ at every horizon."""
OTHER, UNKNOWN = "other", "unknown"
WITHHELD, FEW = "withheld", f"<{MIN_CELL}"


def score_subgroups(
    evaluation: Evaluation,
    models: Mapping[str, SurvivalPredictions | Sequence[SurvivalPredictions]],
    groups: Mapping[str, Sequence[str] | np.ndarray],
    *,
    n_boot: int | None = None,
) -> list[dict[str, Any]]:
    """Uno's C, observed/expected, Brier score and calibration slope of each model in each group, with intervals.

    Ĝ is that of everybody's training outcome. A group's resamples are of its own patients. Nothing is tested: with many
    groups some figure always looks odd, and where intervals overlap nothing is shown.

    Args:
        evaluation: the evaluated patients; its resamples, seed and horizons are taken over.
        models: predictions of the evaluated rows, in their order; a list holds the same model's seeds.
        groups: by name (sex, age, …) the group of each row, in that order.
        n_boot: so many of the evaluation's resamples; absent, as many as it has.

    Returns:
        ``{"name", "groups": [{"group", "n", "events", "metrics": {model: {metric: {value, low, high}}}}]}`` a name: the
        patients, and those of them who had the outcome up to τ, as exact counts (``suppressed_groups`` is for people).
        A group under 10 patients or 10 outcomes has no metrics but a ``reason``; a metric that does not exist in a
        group is missing.

    Raises:
        EhrError: as ``Evaluation.score``, but for groups without comparable pairs.
        ValueError: groups of other than the evaluated rows.
    """
    found = []
    evaluation = evaluation if n_boot is None else replace(evaluation, counts=evaluation.counts[: n_boot + 1])
    seeds = {model: [each] if isinstance(each, SurvivalPredictions) else list(each) for model, each in models.items()}
    for each in seeds.values():
        evaluation.check_rows(each)
    for name, labels in groups.items():
        label = _pooled(np.asarray(labels, dtype=np.str_), evaluation)  # (n,)
        parts = [_score_one(evaluation, seeds, label, group) for group in sorted(set(label.tolist()), key=_order)]
        found.append({"name": name, "groups": parts})
    return found


def _pooled(label: np.ndarray, evaluation: Evaluation) -> np.ndarray:
    """The labels, all but the largest groups being one where there are many, and those of under 10 rows in any case:
    the name of a rare group is told of nobody."""
    if label.shape != evaluation.duration.shape:
        raise ValueError(f"expected a group for each of {evaluation.duration.size} rows, found {label.shape}")
    names, counts = np.unique(label, return_counts=True)
    small = names[counts < MIN_CELL]
    if small.size > 1:
        return _pooled(np.where(np.isin(label, small), OTHER, label), evaluation)
    if names.size <= MAX_GROUPS:
        return label
    kept = names[np.argsort(-counts, kind="stable")[: MAX_GROUPS - 1]]
    return np.where(np.isin(label, kept), label, OTHER)


def _order(group: str) -> tuple[bool, bool, str]:
    """By name, "under …" first, what is not known and the others last."""
    return group in (UNKNOWN, OTHER), not group.startswith("under "), group


def _score_one(
    evaluation: Evaluation, models: Mapping[str, Sequence[SurvivalPredictions]], label: np.ndarray, group: str
) -> dict[str, Any]:
    rows = np.flatnonzero(label == group)  # (m,)
    own = _within(evaluation, rows)
    n, events = _patients(own, np.ones(rows.size, dtype=bool)), _patients(own, own.event == 1)
    found: dict[str, Any] = {"group": group, "n": n, "events": events, "metrics": {}}
    if n < MIN_CELL or events < MIN_GROUP_EVENTS:
        few = f"fewer than {MIN_CELL} patients" if n < MIN_CELL else f"fewer than {MIN_GROUP_EVENTS} outcomes"
        return found | {"reason": few}
    for model, seeds in models.items():
        found["metrics"][model] = _figures(own, [_Rows(each, rows) for each in seeds])
    return found


def _within(evaluation: Evaluation, rows: np.ndarray) -> Evaluation:
    """The same evaluation of some rows, with resamples of their patients."""
    subject = None if evaluation.subject_id is None else evaluation.subject_id[rows]
    return replace(
        evaluation,
        duration=evaluation.duration[rows],
        event=evaluation.event[rows],
        counts=resample_counts(rows.size, len(evaluation.counts) - 1, evaluation.seed, subject),
        stratum=evaluation.stratum[rows],
        subject_id=subject,
    )


def _patients(evaluation: Evaluation, among: np.ndarray) -> int:
    """Patients with such a row."""
    return int(among.sum()) if evaluation.subject_id is None else np.unique(evaluation.subject_id[among]).size


def _figures(evaluation: Evaluation, seeds: Sequence[SurvivalPredictions]) -> dict[str, Any]:
    found: dict[str, Interval] = {}
    for family, metrics in METRICS.items():
        try:
            scores = evaluation.score(seeds, only=(family,)).intervals()
        except EhrError as error:
            if error.code != Exit.COHORT:
                raise
            continue  # nobody in the group can be compared
        found |= {name: figure for name, figure in scores.items() if re.sub("@.*", "@", name) in metrics}
    return {name: figure.to_json() for name, figure in found.items() if np.isfinite(figure.value)}


@dataclass(frozen=True, eq=False)
class _Rows:
    """Some rows of somebody's predictions."""

    whole: SurvivalPredictions
    rows: np.ndarray

    @property
    def subject_id(self) -> np.ndarray:
        return self.whole.subject_id[self.rows]

    @property
    def prediction_time(self) -> np.ndarray:
        return self.whole.prediction_time[self.rows]

    @property
    def risk(self) -> np.ndarray:
        return self.whole.risk[self.rows]

    @property
    def horizon_days(self) -> np.ndarray:
        return self.whole.horizon_days

    @property
    def cif(self) -> Mapping[str, np.ndarray]:
        return {cause: values[self.rows] for cause, values in self.whole.cif.items()}

    def survival_at(self, times: Float64[np.ndarray, " m"]) -> np.ndarray:
        return self.whole.survival_at(times)[self.rows]

    def outcome_risk_at(self, times: Float64[np.ndarray, " m"]) -> np.ndarray:
        return self.whole.outcome_risk_at(times)[self.rows]


class Cells(NamedTuple):
    """Counts of a group as text."""

    n: str
    events: str


def suppressed_groups(groups: Sequence[Mapping[str, Any]]) -> list[Cells]:
    """The counts of one partition's groups as text: no small cell shows, nor can one be had by subtraction.

    The groups add up to totals that stand elsewhere. Where patients, outcomes or patients without the outcome are under
    10 in a group, its cell reads "<10" (outcomes: "withheld" where those without are few); as many of the smallest
    other groups are "withheld" as it takes for what is hidden to be of at least two groups, and of 20 patients.

    Args:
        groups: with ``n`` patients and ``events`` each, as ``score_subgroups`` gives them.

    >>> suppressed_groups([{"n": 500, "events": 60}, {"n": 8, "events": 2}, {"n": 90, "events": 30}])
    [Cells(n='500', events='60'), Cells(n='<10', events='<10'), Cells(n='withheld', events='withheld')]
    >>> suppressed_groups([{"n": 500, "events": 60}, {"n": 80, "events": 12}])
    [Cells(n='500', events='60'), Cells(n='80', events='12')]
    """
    n, events = (np.array([int(group[key]) for group in groups], dtype=np.int64) for key in ("n", "events"))
    few = _small(n)
    hidden = _with_cover(few, n)
    rare, all_but_few = few | _small(events), _small(n - events)
    unsaid = _with_cover(rare | all_but_few, events) | hidden
    unsaid = _with_cover(unsaid, n - events)
    return [
        Cells(
            FEW if few[i] else WITHHELD if hidden[i] else f"{n[i]:,}",
            FEW if rare[i] else WITHHELD if unsaid[i] else f"{events[i]:,}",
        )
        for i in range(len(groups))
    ]


def _small(counts: np.ndarray) -> np.ndarray:
    return (counts > 0) & (counts < MIN_CELL)


def _with_cover(hidden: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """The hidden groups with the smallest others, empty ones last, until there are two with 2 × MIN_CELL in all."""
    hidden = hidden.copy()
    if not hidden.any():
        return hidden
    for i in np.lexsort((counts, counts == 0)):
        if hidden.sum() >= 2 and counts[hidden].sum() >= 2 * MIN_CELL:
            break
        hidden[i] = True
    return hidden
