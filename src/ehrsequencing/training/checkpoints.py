"""Which epoch a large run keeps: the best calibrated among those that discriminate as well as the best."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float64

from ehrsequencing.config import TUNING
from ehrsequencing.evaluation.compare import Evaluation, Scores
from ehrsequencing.predictions import Predictions
from ehrsequencing.training.loop import Epoch
from ehrsequencing.training.objectives import SurvivalObjective

RESAMPLES = 200


def calibrated_among_the_best(objective: SurvivalObjective) -> Callable[[list[Epoch]], int]:
    """A chooser of epochs for the loop, reading the tuning logits that ``objective`` kept at each of them."""

    def choose(history: list[Epoch]) -> int:
        return best_calibrated(_scores(objective, objective.tuning_logits), [epoch.metrics for epoch in history])

    return choose


def best_calibrated(scores: Sequence[Scores], metrics: Sequence[dict[str, float]]) -> int:
    """The epoch of lowest integrated Brier score within one standard error of the best C.

    The standard error is that of the *paired* difference in Harrell's C between an epoch and the best one, by patient
    bootstrap: two checkpoints of one run share nearly all of their error, so that each one's own would admit too many.
    """
    best = int(np.argmax([epoch["score"] for epoch in metrics]))
    reference = scores[best].figures["harrell_c"]
    near = [
        number
        for number, epoch in enumerate(scores)
        if reference[0] - epoch.figures["harrell_c"][0] <= _paired_error(reference, epoch.figures["harrell_c"])
    ]
    return min(near, key=lambda number: metrics[number]["tuning_brier"])


def _paired_error(reference: Float64[np.ndarray, " b"], other: Float64[np.ndarray, " b"]) -> float:
    return float(np.nanstd((reference - other)[1:]))


def _scores(objective: SurvivalObjective, logits: Sequence[Float64[np.ndarray, "m K *R"]]) -> list[Scores]:
    score, grid, rows = objective.score, objective.score.grid, objective.data.rows[objective.data.index(TUNING)]
    subject_id, moment = rows["subject_id"].to_numpy(), rows["prediction_time"].to_numpy()
    evaluation = Evaluation.of(
        score.duration,
        score.event,
        train_duration=objective.targets.duration.numpy(),
        train_event=objective.targets.event.numpy(),
        tau=grid.tau,
        n_boot=RESAMPLES,
        subject_id=subject_id,
    )
    predictions = (Predictions.from_logits(epoch, grid, subject_id, moment, objective.data.causes) for epoch in logits)
    return [evaluation.score(each, only=("concordance",)) for each in predictions]
