"""Several models' predictions as one: the mean of their hazards."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ehrsequencing.config import OUTCOME
from ehrsequencing.errors import EhrError, Exit
from ehrsequencing.hazards import mean_of_hazards
from ehrsequencing.predictions import Predictions
from ehrsequencing.timegrid import TimeGrid


def ensemble(members: Sequence[Predictions], model: str) -> Predictions:
    """The mean of the members' hazards, step by step of their curves (of each cause, where several compete).

    Averaging models that differ by nothing but their seed takes their own variance off the error, at the cost of
    training and keeping all of them (Lakshminarayanan et al. 2017, arXiv:1612.01474). Risk is read anew from the mean,
    as from any model's hazards.

    Args:
        members: of the same rows in the same order, curves at the same 100 equal points.
        model: the name of what comes out.

    Raises:
        EhrError: members that differ in rows, causes, cohort or horizons (exit 13).
    """
    first = members[0]
    for member in members[1:]:
        _refuse_other(first, member)
    grid = TimeGrid(np.append(0.0, first.horizon_days))  # a bin a step
    if not np.allclose(grid.curve_times(), first.horizon_days):
        what = f"expected curves at {len(grid.curve_times())} equal points, found {len(first.horizon_days)} others"
        raise EhrError(what, first.model, "write predictions with 'ehrseq predict' or 'ehrseq run'", code=Exit.BUNDLE)
    logits = mean_of_hazards([grid.logits_of(_curves(member)) for member in members])  # [n, m, *R]
    return Predictions.from_logits(
        logits,
        grid,
        first.subject_id,
        first.prediction_time,
        tuple(first.cif) or (OUTCOME,),
        cohort_fingerprint=first.cohort_fingerprint,
        model=model,
    )


def _curves(member: Predictions) -> np.ndarray:
    return np.stack(list(member.cif.values()), axis=2) if member.cif else member.survival


def _refuse_other(first: Predictions, member: Predictions) -> None:
    differences = {
        "rows": not np.array_equal(first.subject_id, member.subject_id)
        or not np.array_equal(first.prediction_time, member.prediction_time),
        "causes": tuple(first.cif) != tuple(member.cif),
        "cohort": first.cohort_fingerprint != member.cohort_fingerprint,
        "horizons": not np.array_equal(first.horizon_days, member.horizon_days),
    }
    other = [name for name, differs in differences.items() if differs]
    if other:
        what = f"{member.model} and {first.model} differ in their {' and '.join(other)}"
        raise EhrError(what, "ensemble", "average models of one task, fitted on one cohort", code=Exit.BUNDLE)
