"""`--strategy auto`: the recipe's strategy, and the founding document's escalations, each with its reason."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from ehrsequencing.baselines import BASELINES
from ehrsequencing.batches import SurvivalData
from ehrsequencing.config import TRAIN, TUNING
from ehrsequencing.evaluation.compare import Evaluation, Scores
from ehrsequencing.evaluation.metrics import harrell_c
from ehrsequencing.evaluation.verdict import judge
from ehrsequencing.inference import to_predictions
from ehrsequencing.models.strategies import STRATEGIES
from ehrsequencing.nonparametric import for_outcome
from ehrsequencing.training.finetune import FineTuned
from ehrsequencing.training.recipes import Recipe, underfits

Fit = Callable[[str], FineTuned]
Say = Callable[[str], None]


@dataclass(frozen=True)
class Chosen:
    """The strategy kept, and the sentences that led to it."""

    fitted: FineTuned
    sentences: tuple[str, ...]


def choose(data: SurvivalData, recipe: Recipe, fit: Fit, say: Say) -> Chosen:
    """Train what the recipe names (``fit`` trains a strategy by name), compare on tuning, escalate where it says so."""
    said: list[str] = []

    def tell(sentence: str) -> None:
        said.append(sentence)
        say(sentence)

    if len(recipe.compete) == 1:
        kept = fit(recipe.strategy)
        tell(f"{recipe.strategy} is kept: {STRATEGIES[recipe.strategy].why}.")
        return Chosen(kept, tuple(said))
    if "full" in recipe.compete:
        return Chosen(_lora_against_full(data, fit, tell), tuple(said))
    kept = _better_head(data, {name: fit(name) for name in recipe.compete}, tell)
    return Chosen(_escalate(data, recipe, kept, fit, tell), tuple(said))


def _better_head(data: SurvivalData, fits: Mapping[str, FineTuned], tell: Say) -> FineTuned:
    losses = {name: fitted.tuning(data)["tuning_nll"] for name, fitted in fits.items()}
    best = min(losses, key=lambda name: losses[name])
    told = ", ".join(f"{name} {loss:.4f}" for name, loss in losses.items())
    tell(f"{best} is kept of the frozen heads: lowest tuning likelihood loss ({told}).")
    return fits[best]


def _escalate(data: SurvivalData, recipe: Recipe, kept: FineTuned, fit: Fit, tell: Say) -> FineTuned:
    cox = cox_tuning_c(data)
    for name in recipe.escalate:
        scores = kept.tuning(data)
        if "tuning_c" not in scores or cox is None:
            tell("Underfitting cannot be judged: the tuning split has no comparable pair.")
            return kept
        train_c, tuning_c = kept.train_c(data), scores["tuning_c"]
        figures = f"train C {train_c:.3f}, tuning C {tuning_c:.3f}, ridge Cox {cox:.3f} on tuning"
        if not underfits(train_c, tuning_c, cox):
            tell(f"{kept.strategy.name} does not underfit ({figures}): no escalation.")
            return kept
        tell(f"{kept.strategy.name} underfits ({figures}): moving to {name}.")
        climbed = fit(name)
        kept = climbed if climbed.tuning(data)["tuning_c"] > tuning_c else kept
        tell(f"{kept.strategy.name} is kept: the higher tuning C.")
    return kept


def _lora_against_full(data: SurvivalData, fit: Fit, tell: Say) -> FineTuned:
    fits = {name: fit(name) for name in ("lora-8", "lora", "full")}
    scores = score_on_tuning(data, fits)
    rank, full = judge(scores["lora-8"], scores["lora"]), judge(scores["lora"], scores["full"])
    tell(f"LoRA rank 8 to 16: {rank}.")
    tell(f"LoRA rank 16 to full: {full}.")
    if rank.word == "stay" and full.word == "climb":
        tell("LoRA is saturated.")
    kept = "full" if full.word == "climb" else "lora"
    tell(f"{kept} is kept: full fine-tuning is taken only where the evidence says climb.")
    return fits[kept]


def score_on_tuning(data: SurvivalData, fits: Mapping[str, FineTuned], resamples: int = 1_000) -> dict[str, Scores]:
    """Every fit on the same tuning patients and resamples."""
    at = data.index(TUNING)
    train, tuning = data.targets(data.index(TRAIN)), data.targets(at)
    evaluation = Evaluation.of(
        tuning.duration.numpy(),
        tuning.event.numpy(),
        train_duration=train.duration.numpy(),
        train_event=train.event.numpy(),
        tau=data.grid.tau,
        n_boot=resamples,
        subject_id=data.rows["subject_id"].to_numpy()[at],
    )
    about = data.cohort_fingerprint, data.causes
    predictions = {
        name: to_predictions(fitted.logits[at], data.rows[at], data.grid, name, *about) for name, fitted in fits.items()
    }
    return {name: evaluation.score(each, only=("concordance", "errors")) for name, each in predictions.items()}


def cox_tuning_c(data: SurvivalData) -> float | None:
    """Harrell's C of ridge Cox on the tuning rows; None without a comparable pair."""
    at = data.index(TUNING)
    targets = data.targets(at)
    duration, event = for_outcome(targets.duration.numpy(), targets.event.numpy(), data.grid.tau)
    first = duration[event == 1].min(initial=float("inf"))
    if not (duration > first).any():
        return None
    return harrell_c(duration, event, BASELINES["cox"].fit(data, 0).risk[at])
