"""The simple models by name: those of ``baselines``, and the visit LSTM, which learns through the training loop."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from ehrsequencing.baselines import BASELINES, Baseline, Fitted
from ehrsequencing.baselines.fitted import from_logits
from ehrsequencing.baselines.table import timed
from ehrsequencing.batches import SurvivalData
from ehrsequencing.config import ModelConfig
from ehrsequencing.errors import EhrError, Exit, nearest
from ehrsequencing.training.loop import Progress, silent
from ehrsequencing.training.recipes import Recipe
from ehrsequencing.training.resume import Resume
from ehrsequencing.training.visit_lstm import fit_visit_lstm

LSTM, KAPLAN_MEIER, AALEN_JOHANSEN = "lstm", "kaplan-meier", "aalen-johansen"
NAMES = (*BASELINES, LSTM)


def simple_models(
    recipe: Recipe, size: ModelConfig = ModelConfig(), progress: Progress = silent, resume: Resume | None = None
) -> Mapping[str, Baseline]:
    """Every simple model, ready to fit; what learns by epochs follows ``recipe`` and keeps its state at ``resume``."""

    def lstm(data: SurvivalData, seed: int) -> Fitted:
        fit = fit_visit_lstm(data, recipe, size=size, seed=seed, progress=progress, resume=resume)
        return from_logits(data, fit.logits, fit.n_parameters, fit.notes)

    why = "an LSTM over visits on the transformer's own tokens and loss: a sequence without attention or pretraining"
    return {**BASELINES, LSTM: Baseline(LSTM, why, timed(lstm), seeded=True)}


def for_causes(names: Sequence[str], n_causes: int) -> tuple[tuple[str, ...], str]:
    """The names that suit a task, and a sentence where that changed them.

    With competing risks `kaplan-meier` gives way to `aalen-johansen`; with one cause they are the same curve.

    >>> for_causes(["kaplan-meier", "cox"], 2)[0]
    ('aalen-johansen', 'cox')
    """
    if n_causes == 1 or KAPLAN_MEIER not in names:
        return tuple(names), ""
    changed = tuple(dict.fromkeys(AALEN_JOHANSEN if name == KAPLAN_MEIER else name for name in names))
    return changed, (
        f"{KAPLAN_MEIER} gives way to {AALEN_JOHANSEN}: where events compete, 1 − Kaplan–Meier overstates each of them"
    )


def check_names(names: Iterable[str], where: str) -> None:
    """EhrError where a name is unknown (exit 10, with the nearest) or needs what is not installed (exit 14)."""
    for name in names:
        if name not in NAMES:
            close = nearest(name, NAMES, 1)
            fix = f"did you mean '{close[0]}'?" if close else f"known: {', '.join(NAMES)}"
            raise EhrError(f"unknown baseline '{name}'", where, fix, code=Exit.CONFIG)
        if name in BASELINES:
            BASELINES[name].refuse_missing(where)
