"""Several outcomes at once: cohorts of tasks that cut records alike, prepared together, a bundle for each."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from ehrsequencing.bundle import Bundle, Encoder
from ehrsequencing.cohort import Cohort
from ehrsequencing.config import TUNING, BudgetConfig, FeaturesConfig, SplitConfig, TaskConfig, load_task
from ehrsequencing.errors import EhrError, Exit
from ehrsequencing.events import MedsDataset
from ehrsequencing.files import staged, workplace, write_json
from ehrsequencing.models.strategies import Strategy, find_strategy
from ehrsequencing.models.wide import fit_wide
from ehrsequencing.study.assemble import make_bundle
from ehrsequencing.study.data import Prepared, cut_short, prepare
from ehrsequencing.study.readable import Readable
from ehrsequencing.study.steps import Say, learning_cohort, wanted_strategy
from ehrsequencing.training.loop import Progress, silent
from ehrsequencing.training.outcomes import finetune_outcomes
from ehrsequencing.training.recipes import Choice, Recipe, choose_recipe
from ehrsequencing.training.resume import Resume

MARKER = "outcomes.json"
FORMAT = 1
CUT_BY = ("predict_at", "input", "delay")


def load_tasks(paths: Sequence[Path]) -> dict[str, TaskConfig]:
    """The tasks by name, in the order given.

    Raises:
        EhrError: two of one name, or a name that cannot name a folder; tasks that let models read different parts of a
            record; predictions at every visit (all exit 10).
    """
    tasks: dict[str, TaskConfig] = {}
    known: dict[str, Path] = {}
    for path in paths:
        task = load_task(path)
        fix = "give each task a name of its own (name: …), since its bundle's folder is called so"
        if task.name.startswith("."):
            raise EhrError(f"'{task.name}' cannot name a folder", f"{path}, name", fix, code=Exit.CONFIG)
        twin = known.get(task.name.casefold())  # folders of some systems do not tell capitals apart
        if twin is not None:
            raise EhrError(f"two tasks are named '{task.name}'", f"{twin} and {path}", fix, code=Exit.CONFIG)
        known[task.name.casefold()], tasks[task.name] = path, task
    _refuse_unlike_cuts(tasks, known)
    return tasks


def _refuse_unlike_cuts(tasks: Mapping[str, TaskConfig], paths: Mapping[str, Path]) -> None:
    first, *others = tasks.values()
    for task in others:
        keys = [key for key in CUT_BY for key in _differing(key, getattr(first, key), getattr(task, key))]
        if keys:
            what = f"tasks '{first.name}' and '{task.name}' differ in {', '.join(keys)}: one encoder reads for both"
            fix = f"make {keys[0]} the same in both, or fine-tune '{task.name}' by itself"
            raise EhrError(what, str(paths[task.name.casefold()]), fix, code=Exit.CONFIG)
    if first.predict_at != "index":
        what = "several outcomes at once are predicted at the index only, found predict_at: every_visit"
        fix = "set predict_at: index in all of them, or fine-tune each by itself"
        raise EhrError(what, str(paths[first.name.casefold()]), fix, code=Exit.CONFIG)


def _differing(key: str, one: Any, other: Any) -> list[str]:
    """The keys, dotted, in which two values of one setting differ.

    >>> _differing("delay", (1,), (2,)), _differing("delay", (), ())
    (['delay'], [])
    """
    if one == other:
        return []
    if not hasattr(one, "model_dump"):
        return [key]
    pair = one.model_dump(by_alias=True), other.model_dump(by_alias=True)
    return [f"{key}.{name}" for name in pair[0] if pair[0][name] != pair[1][name]]


def prepare_outcomes(
    dataset: MedsDataset,
    cohorts: Sequence[Cohort],
    encoder: Encoder,
    config: FeaturesConfig = FeaturesConfig(),
) -> dict[str, Prepared]:
    """``prepare`` of several cohorts, by their tasks' names; every record is cut and tokenised once.

    Their tasks have the same ``input``, ``delay`` and ``predict_at: index`` (``load_tasks`` sees to it); rows may
    differ. Grids and features are each cohort's own.
    """
    rows = pl.concat([cohort.table.select("subject_id", "prediction_time") for cohort in cohorts]).unique()
    readable = Readable.of(dataset, rows.sort("subject_id", "prediction_time"), cohorts[0].task, encoder.tokenizer)
    return {cohort.task.name: prepare(dataset, cohort, encoder, config, readable=readable) for cohort in cohorts}


@dataclass(frozen=True)
class _Chosen:
    """The recipe and the strategy for all outcomes, and the sentences that say why."""

    choice: Choice
    recipe: Recipe
    strategy: Strategy
    sentences: tuple[str, ...]
    departures: tuple[str, ...]

    def text(self) -> str:
        lines = [self.choice.text(), *(f"  departure     {text}" for text in self.departures)]
        return "\n".join([*lines, *self.sentences])


def _choose(prepared: Mapping[str, Prepared], wanted: Strategy | None, budget: BudgetConfig) -> _Chosen:
    """By the smallest cohort: what would overfit there is asked of no other."""
    smallest = min(prepared, key=lambda name: prepared[name].n_labelled)
    of = prepared[smallest]
    choice = choose_recipe(of.n_labelled, of.n_labelled_events, of.events(TUNING))
    recipe, departures = choice.recipe.within(budget)
    sentences = [f"The recipe of the smallest cohort, that of {smallest}, is taken for all {len(prepared)} outcomes."]
    strategy = find_strategy(recipe.strategy) if wanted is None else wanted
    sentences.append(f"{strategy.name} {'is its strategy' if wanted is None else 'was asked for'}: {strategy.why}.")
    return _Chosen(choice, recipe, strategy, tuple(sentences), tuple(departures))


def write_outcomes(
    meds: Path,
    tasks: Sequence[Path],
    out: Path,
    *,
    encoder: Path,
    strategy: str = "auto",
    settings: Sequence[str] = (),
    attention: str | None = None,
    budget: BudgetConfig = BudgetConfig(),
    labelled: int | None = None,
    split: SplitConfig = SplitConfig(),
    seed: int = 0,
    progress: Progress = silent,
    say: Say = lambda text: None,
) -> str:
    """``ehrseq finetune --also``: an ordinary bundle an outcome, ``OUT/NAME``, all of them or none; says what came out.

    Killed, it goes on from ``OUT.partial/`` when the same command is given again, to the same weights. ``auto`` takes
    the recipe's strategy for the smallest cohort; ``settings`` (``KEY=VALUE``) change the strategy.
    """
    wanted = wanted_strategy(strategy, settings)
    asked = load_tasks(tasks)
    with workplace(Path(out), MARKER, "finetune") as place:
        dataset, pretrained = MedsDataset.open(meds), Encoder.load(encoder)
        cohorts = [learning_cohort(dataset, task, pretrained, labelled, split, say) for task in asked.values()]
        prepared = prepare_outcomes(dataset, cohorts, pretrained)
        longest = max((each.data for each in prepared.values()), key=len)
        say(cut_short(longest.tokens, longest.tokenizer))
        chosen = _choose(prepared, wanted, budget)
        say(chosen.text())
        fitted = finetune_outcomes(
            {name: each.data for name, each in prepared.items()},
            chosen.strategy,
            chosen.recipe,
            pretrained.model,
            seed=seed,
            attention=attention,
            progress=progress,
            resume=Resume(place).within(chosen.strategy.name),
        )
        facts = {"seed": seed, "split": split.model_dump(mode="json"), "recipe": chosen.recipe.name,
                 "choice": list(chosen.sentences), "outcomes": list(asked)}  # fmt: skip
        bundles = {n: make_bundle(prepared[n], asked[n], fitted[n], fit_wide(prepared[n].data), facts) for n in asked}
        _save(bundles, Path(out), chosen.strategy)
    return _told(bundles, Path(out), chosen.strategy.name)


def _save(bundles: Mapping[str, Bundle], out: Path, strategy: Strategy) -> None:
    """Every bundle in a folder of its task's name, and the list of them; whole or not at all."""
    listed = {
        name: {"folder": name, "rows": list(bundle.rows), "tuning": bundle.facts["tuning"]}
        for name, bundle in bundles.items()
    }
    with staged(out, MARKER) as draft:
        for name, bundle in bundles.items():
            bundle.save(draft / name)
        write_json(
            draft / MARKER,
            {"format": FORMAT, "strategy": strategy.name, "jointly": not strategy.cached_features, "outcomes": listed},
        )


def _told(bundles: Mapping[str, Bundle], out: Path, strategy: str) -> str:
    lines = [f"bundles in {out}: {strategy}, {len(bundles)} outcomes"]
    for name, bundle in bundles.items():
        rows = ", ".join(f"{row} (α {each.alpha:g})" for row, each in bundle.rows.items())
        lines.append(f"  {out / name}: tuning {bundle.facts['tuning_text']}; rows {rows}")
    return "\n".join(lines)


def first_bundle(out: Path) -> Path:
    """The bundle of the task that was named first, in a folder of ``write_outcomes``."""
    listed = json.loads((Path(out) / MARKER).read_text(encoding="utf-8"))["outcomes"]
    return Path(out) / next(iter(listed.values()))["folder"]
