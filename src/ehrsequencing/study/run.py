"""A whole study: data, cohort, pretraining, every model on every division, comparison, report."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from ehrsequencing.bundle import environment
from ehrsequencing.cohort import Cohort, build_cohort
from ehrsequencing.config import HELD_OUT, TUNING, StrategyConfig, StudyConfig, TaskConfig, load_yaml
from ehrsequencing.errors import EhrError, Exit
from ehrsequencing.events import MedsDataset
from ehrsequencing.files import publish, workplace, write_json
from ehrsequencing.models.code_vectors import CodeVectors
from ehrsequencing.models.configuration import BIDIRECTIONAL_LEAK, LEAK_FIX
from ehrsequencing.models.own_strategies import read_strategy
from ehrsequencing.report import write_report
from ehrsequencing.study.assemble import blend_name
from ehrsequencing.study.compare import compare, pool
from ehrsequencing.study.data import (
    Division,
    common_tau,
    divisions,
    limit_labelled,
    open_data,
    refuse_empty_splits,
    task_of,
)
from ehrsequencing.study.document import write_predictions
from ehrsequencing.study.ensembles import ENDING
from ehrsequencing.study.estimate import estimate
from ehrsequencing.study.fitting import Workplace, fit_division
from ehrsequencing.study.kept import Kept, Scored, study_key
from ehrsequencing.study.oracle import ORACLE
from ehrsequencing.study.simple import NAMES, check_names, for_causes
from ehrsequencing.timegrid import TimeGrid
from ehrsequencing.training.loop import Progress, silent
from ehrsequencing.training.recipes import Choice, Recipe, choose_recipe
from ehrsequencing.training.resume import digest_of

MARKER = "study.json"
OWN_SPLITS_UNUSED = "the dataset's own splits are not used: folds divide all subjects"
Say = Callable[[str], None]


@dataclass(frozen=True)
class Scene:
    """A study with its data in hand: what is known before anything is fitted."""

    study: StudyConfig
    dataset: MedsDataset
    task: TaskConfig
    cohort: Cohort
    parts: list[Division]
    tau: float
    choice: Choice
    recipe: Recipe
    departures: list[str]

    def cohort_of(self, part: Division) -> Cohort:
        """The cohort under the splits of one division."""
        table, visits = self.cohort.table, self.cohort.visits
        split = part.of(table["subject_id"].to_numpy())
        return self.cohort.with_splits(split, None if visits is None else part.of(visits["subject_id"].to_numpy()))


def run_study(path: Path, out: Path, *, progress: Progress = silent, say: Say = lambda text: None) -> str:
    """``ehrseq run``: everything the study names, left whole under ``out``; returns where to look and the headline.

    What is finished is kept in ``OUT.partial/`` until all of it is: a run that was killed goes on from there, in the
    middle of a training epoch too, to the same weights, predictions and figures (times apart).

    Raises:
        EhrError: a mistake in the settings (10), the data (11), the cohort (12), or the place to write to (14).
    """
    started = time.perf_counter()
    study = read_study(path)
    with workplace(Path(out), MARKER, study_key(study, Path(path).parent), say) as place:
        kept = Kept(place)
        draft = kept.result

        def tell(text: str) -> None:
            say(text.replace(str(draft), str(out)))

        settings = study.model_dump(mode="json", by_alias=True)
        write_json(draft / MARKER, {"study": settings, "environment": environment()})
        scene = set_scene(study, draft / "meds", Path(path).parent, tell)
        kept.for_cohort(f"{scene.cohort.fingerprint}/{digest_of([part.split for part in scene.parts])}")
        scene.cohort.write(draft / "cohort")
        scored, grids, tokens = _fit_all(scene, kept, progress, tell)
        for tag, grid in grids.items():
            write_json(draft / "cohort" / f"grid{tag}.json", grid.to_json())
        models = pool(scored)
        write_predictions(models, draft / "predictions")
        facts = {**_facts(scene), **tokens, "seconds": time.perf_counter() - started}
        write_json(draft / "comparison.json", compare(study, scene.cohort, models, scene.tau, facts, scene.parts))
        write_report(draft)
        publish(draft, Path(out))
    return (
        f"{_table(out)}\n\nreport: {Path(out) / 'report.html'}   ({(time.perf_counter() - started) / 60:.1f} minutes)"
    )


def plan(path: Path) -> str:
    """``ehrseq run --dry-run``: the cohort, the recipe, what would be fitted, and about how long it takes here."""
    study = read_study(path)
    said: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        scene = set_scene(study, Path(folder) / "meds", Path(path).parent, said.append)
        rest = estimate(scene.study, scene.dataset, scene.task, [scene.cohort_of(p) for p in scene.parts],
                        scene.parts, scene.recipe)  # fmt: skip
    return "\n".join([*said, rest, "nothing was fitted or kept (--dry-run)"])


def read_study(path: Path) -> StudyConfig:
    """A STUDY.yaml whose strategies, baselines and code vectors all exist; the last are looked for beside it."""
    study = load_yaml(StudyConfig, path)
    if study.model.code_vectors is not None:
        file = str(Path(path).parent / Path(study.model.code_vectors).expanduser())
        CodeVectors.read(file)
        study = study.model_copy(update={"model": study.model.model_copy(update={"code_vectors": file})})
    for given in study.strategies:
        _refuse_taken(read_strategy(given, f"{path}, strategies").name, given, f"{path}, strategies")
    check_names(study.baselines, f"{path}, baselines")
    return study


def _refuse_taken(name: str, given: str | StrategyConfig, where: str) -> None:
    """EhrError (exit 10) where a strategy of one's own is named like another row of the comparison."""
    taken = name.lower() in (*NAMES, ORACLE) or name.lower().endswith((blend_name(""), ENDING))
    if taken and not isinstance(given, str):
        raise EhrError(f"the name '{name}' is another row's", where, "choose another name", code=Exit.CONFIG)


def set_scene(study: StudyConfig, data_folder: Path, beside: Path, say: Say) -> Scene:
    """Open or make the data, build the cohort, divide it, choose τ and the recipe; says each as it goes."""
    dataset, origin = open_data(study.data, data_folder)
    say(origin)
    task = task_of(study.task, dataset, beside)
    _check_mask(study, task)
    cohort = build_cohort(
        dataset,
        task,
        split_seed=study.split.seed,
        calendar=study.split.calendar,
        visit_column=study.tokens.visit_column,
    )
    cohort = limit_labelled(cohort, study.labelled, study.split.seed)
    say(cohort.describe())
    parts = divisions(dataset, study.folds, study.split, task=task, cohort=cohort)
    baselines, changed = for_causes(study.baselines, len(task.causes))
    if changed:
        say(changed)
    study = study.model_copy(update={"baselines": baselines})
    if study.folds is None:
        refuse_empty_splits(cohort)
    elif dataset.splits() is not None:
        say(OWN_SPLITS_UNUSED)
    tau = common_tau(cohort, parts)
    _check_horizons(study, tau)
    choice = _choose(cohort, study, tau)
    recipe, departures = choice.recipe.within(study.budget)
    say("\n".join([choice.text(), *(f"  departure     {text}" for text in departures)]))
    return Scene(study, dataset, task, cohort, parts, tau, choice, recipe, departures)


def _check_mask(study: StudyConfig, task: TaskConfig) -> None:
    if task.predict_at == "every_visit" and study.model.attention != "block_causal":
        raise EhrError(BIDIRECTIONAL_LEAK, "model.attention", LEAK_FIX, code=Exit.LEAKAGE)


def _check_horizons(study: StudyConfig, tau: float) -> None:
    late = [day for day in study.horizons_days if day > tau]
    if late:
        raise EhrError(
            f"the reported horizon of {late[0]:g} days is past the task's, {tau:g} days",
            "horizons_days",
            f"report horizons of at most {tau:g} days",
            code=Exit.CONFIG,
        )


def _choose(cohort: Cohort, study: StudyConfig, tau: float) -> Choice:
    seen = cohort.table.with_columns(event=((pl.col("event") == 1) & (pl.col("duration") <= tau)).cast(pl.Int64))
    if study.folds is not None:
        share = (study.folds - 1) / study.folds
        return choose_recipe(round(seen.height * share), round(int(seen["event"].sum()) * share))
    learning = seen.filter(pl.col("split") != HELD_OUT)
    tuning = int(seen.filter(pl.col("split") == TUNING)["event"].sum())
    return choose_recipe(learning.height, int(learning["event"].sum()), tuning)


def _fit_all(
    scene: Scene, kept: Kept, progress: Progress, say: Say
) -> tuple[list[Scored], dict[str, TimeGrid], dict[str, Any]]:
    work = Workplace(scene.study, scene.task, scene.dataset, scene.recipe, kept, progress, say)
    scored: list[Scored] = []
    grids, tokens = {}, {}
    for part in scene.parts:
        if part.tag:
            say(f"{part.tag.strip('-')} of {len(scene.parts)}")
        found, prepared = fit_division(work, part, scene.cohort_of(part), scene.tau)
        scored += found
        grids[part.tag] = prepared.data.grid
        tokens = {
            "tokens": prepared.data.tokens.stats,
            "token_fingerprint": prepared.data.tokens.fingerprint,
            "n_features": len(prepared.data.features.names),
        }
    return scored, grids, tokens


def _facts(scene: Scene) -> dict[str, Any]:
    recipe = {
        "name": scene.recipe.name,
        "strategy": scene.recipe.strategy,
        "sentence": scene.choice.sentence,
        "departures": scene.departures,
    }
    return {"recipe": recipe, "warnings": list(scene.choice.warnings)}


def _table(out: Path) -> str:
    """The comparison as text."""
    comparison = json.loads((Path(out) / "comparison.json").read_text(encoding="utf-8"))
    lines = [f"{'model':<24}{'Uno C':>22}{'Harrell C':>22}{'IBS':>24}{'trainable':>12}{'seconds':>9}"]
    for row in comparison["rows"]:
        figures = [_figure(row["metrics"].get(name)) for name in ("uno_c", "harrell_c", "ibs")]
        trainable = "" if row["trainable"] is None else f"{row['trainable']:,}"
        seconds = "" if row["seconds"] is None else f"{row['seconds']:.1f}"
        lines.append(f"{row['model']:<24}{figures[0]:>22}{figures[1]:>22}{figures[2]:>24}{trainable:>12}{seconds:>9}")
    return "\n".join(lines)


def _figure(metric: dict[str, float | None] | None) -> str:
    if metric is None:
        return "not computed"
    if metric["low"] is None:
        return f"{metric['value']:.4f}"
    return f"{metric['value']:.3f} ({metric['low']:.3f}–{metric['high']:.3f})"
