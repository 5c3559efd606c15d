"""Which strategy and settings suit a cohort of a given size: the founding table as data, each row with its reason."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from ehrsequencing.config import MIN_CELL, MIN_TRAIN_EVENTS, MIN_TUNING_EVENTS, SPLIT_FRACTIONS, BudgetConfig

UNDERFITTING_GAP = 0.02
"""Train C minus tuning C below this, with tuning C below ridge Cox, is called underfitting."""


@dataclass(frozen=True)
class Recipe:
    """Strategy, loss and schedule for one range of labelled subjects (train + tuning).

    ``epochs_range`` and ``batch_range`` are the published ranges, ``epochs`` and ``batch_size`` the values used;
    ``compete`` are the strategies that ``auto`` trains and compares, ``escalate`` those it climbs to on underfitting.
    """

    name: str
    subjects: tuple[int, int | None]
    strategy: str
    compete: tuple[str, ...]
    escalate: tuple[str, ...]
    lambda_rank: float
    lambda_range: tuple[float, float]
    epochs: int
    epochs_range: tuple[int, int]
    patience: int
    batch_size: int
    batch_range: tuple[int, int]
    clip_norm: float
    weight_decay: float
    checkpoint: str
    escalation: str
    why: str

    def within(self, budget: BudgetConfig) -> tuple[Recipe, list[str]]:
        """The recipe under a smaller budget, and each departure in words.

        >>> RECIPES["medium"].within(BudgetConfig(max_epochs=12))[1]
        ['at most 12 epochs instead of 100']
        """
        departures, changed = [], self
        if budget.max_epochs is not None and budget.max_epochs < self.epochs:
            departures.append(f"at most {budget.max_epochs} epochs instead of {self.epochs}")
            changed = replace(changed, epochs=budget.max_epochs)
        if budget.patience is not None and budget.patience != self.patience:
            departures.append(f"patience {budget.patience} instead of {self.patience}")
            changed = replace(changed, patience=budget.patience)
        return changed, departures


RECIPES: Mapping[str, Recipe] = {
    "small": Recipe(
        name="small",
        subjects=(0, 2_000),
        strategy="frozen",
        compete=("frozen", "frozen-ridge"),
        escalate=("lora-8", "lora"),
        lambda_rank=0.05,
        lambda_range=(0.05, 0.05),
        epochs=100,
        epochs_range=(50, 100),
        patience=10,
        batch_size=32,
        batch_range=(16, 32),
        clip_norm=1.0,
        weight_decay=1e-5,
        checkpoint="c_index",
        escalation="If underfitting: move to LoRA rank 8–16.",
        why="few patients cannot move half a million weights without overfitting: pretrained features carry the load",
    ),
    "medium": Recipe(
        name="medium",
        subjects=(2_000, 20_001),
        strategy="lora",
        compete=("lora",),
        escalate=(),
        lambda_rank=0.1,
        lambda_range=(0.1, 0.1),
        epochs=100,
        epochs_range=(100, 100),
        patience=15,
        batch_size=64,
        batch_range=(32, 64),
        clip_norm=1.0,
        weight_decay=1e-5,
        checkpoint="c_index",
        escalation="Escalate to full fine-tuning only when data scale and validation evidence justify it.",
        why="low-rank adapters adapt the encoder with a tenth of its weights: the default for transfer",
    ),
    "large": Recipe(
        name="large",
        subjects=(20_001, None),
        strategy="lora",
        compete=("lora-8", "lora", "full"),
        escalate=(),
        lambda_rank=0.1,
        lambda_range=(0.1, 0.2),
        epochs=200,
        epochs_range=(100, 200),
        patience=15,
        batch_size=128,
        batch_range=(64, 128),
        clip_norm=1.0,
        weight_decay=1e-2,
        checkpoint="c_index+calibration",
        escalation="If LoRA saturates (rank 8 to 16 says stay, LoRA to full says climb): escalate to full fine-tuning.",
        why="enough patients to train every weight; whether that pays is decided by comparing LoRA with full",
    ),
}


@dataclass(frozen=True)
class Choice:
    """The recipe for a cohort, the sentence that says why, and what to be wary of."""

    recipe: Recipe
    sentence: str
    warnings: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """The recipe's settings, the sentence and the warnings, for programs."""
        return {"sentence": self.sentence, "warnings": list(self.warnings), "recipe": asdict(self.recipe)}

    def text(self) -> str:
        """For people: the recipe as a short list of settings."""
        r = self.recipe
        lines = [
            self.sentence,
            f"  strategy      {' against '.join(r.compete)}",
            f"  loss          hybrid, lambda_rank {r.lambda_rank:g}{_range(r.lambda_range)}",
            f"  epochs        {r.epochs}{_range(r.epochs_range)}, early stopping on validation C-index, "
            f"patience {r.patience}",
            f"  batch         {r.batch_size} patients a step{_range(r.batch_range)}",
            f"  regularising  gradient clipping {r.clip_norm:g}, weight decay {r.weight_decay:g}",
            f"  checkpoint    best validation {r.checkpoint.replace('c_index', 'C-index').replace('+', ' and ')}",
            f"  next          {r.escalation}",
        ]
        return "\n".join([*lines, *(f"  warning       {warning}" for warning in self.warnings)])


def choose_recipe(n_subjects: int, n_events: int, n_tuning_events: int | None = None) -> Choice:
    """The recipe for ``n_subjects`` labelled subjects (train + tuning) with ``n_events`` outcomes among them.

    Fewer than 100 training or 20 tuning events warn even where subjects abound: the number of events, not of
    patients, bounds what a survival model can learn. Without ``n_tuning_events`` the default split is assumed.

    >>> choose_recipe(1_000, 300).recipe.strategy, choose_recipe(2_000, 600).recipe.strategy
    ('frozen', 'lora')
    """
    recipe = next(r for r in RECIPES.values() if r.subjects[1] is None or n_subjects < r.subjects[1])
    if n_tuning_events is None:
        labelled = SPLIT_FRACTIONS["train"] + SPLIT_FRACTIONS["tuning"]
        n_tuning_events = round(n_events * SPLIT_FRACTIONS["tuning"] / labelled)
    n_train_events = n_events - n_tuning_events
    low, high = recipe.subjects
    size = (
        f"under {high:,}" if low == 0 and high else f"over {low - 1:,}" if high is None else f"{low:,} to {high - 1:,}"
    )
    sentence = (
        f"Recipe '{recipe.name}' ({size} labelled patients; here {n_subjects:,} with "
        f"{_events(n_train_events, n_tuning_events)} events): "
        f"{' against '.join(recipe.compete)}, because {recipe.why}."
    )
    warnings = []
    if n_train_events < MIN_TRAIN_EVENTS:
        warnings.append(f"fewer than {MIN_TRAIN_EVENTS} training events: expect wide intervals")
    if n_tuning_events < MIN_TUNING_EVENTS:
        warnings.append(
            f"fewer than {MIN_TUNING_EVENTS} tuning events: early stopping rests on "
            "little, penalties are chosen by folds of the training rows, blends use equal weights, no recalibration"
        )
    return Choice(recipe, sentence, tuple(warnings))


def underfits(train_c: float, tuning_c: float, cox_tuning_c: float) -> bool:
    """The founding document's 'if underfitting', made precise.

    >>> underfits(0.71, 0.70, 0.73), underfits(0.80, 0.70, 0.73)
    (True, False)
    """
    return tuning_c < cox_tuning_c and train_c - tuning_c < UNDERFITTING_GAP


def _events(train: int, tuning: int) -> str:
    """Their sum as text for people; rounded to tens where a part is so small that subtraction would reveal it."""
    total = train + tuning
    small = any(0 < part < MIN_CELL for part in (train, tuning))
    return f"about {round(total / MIN_CELL) * MIN_CELL:,}" if small else f"{total:,}"


def _range(bounds: tuple[float, float]) -> str:
    return "" if bounds[0] == bounds[1] else f" (range {bounds[0]:g}–{bounds[1]:g})"
