"""A bundle on other patients: what it does not know, who they are, how well it predicts, recalibrated or not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from ehrsequencing.bundle import Bundle
from ehrsequencing.cohort import Cohort, build_cohort, cut
from ehrsequencing.config import DAYS_PER_YEAR, HELD_OUT, SplitConfig, TaskConfig, load_task
from ehrsequencing.errors import EhrError, Exit
from ehrsequencing.evaluation.compare import INTERVAL_MEANING
from ehrsequencing.events import MedsDataset
from ehrsequencing.files import refuse_unwritable, staged, write_json
from ehrsequencing.inference import row_logits, to_predictions
from ehrsequencing.progress import Progress, Tick, silent
from ehrsequencing.report.validation import validation_text, write_validation_report
from ehrsequencing.study.before_after import C_AFTER, HOW, BeforeAfter, cross_fit
from ehrsequencing.study.casemix import describe_casemix

MARKER = "validation.json"
PREDICTIONS, RECALIBRATED, COHORT = "predictions.parquet", "recalibrated.parquet", "cohort"
EVERYBODY = "all"
FOLLOW_UP = "The censoring distribution is that of the validation patients themselves."


@dataclass(frozen=True)
class Validation:
    """A finished validation: where it lies and the content of its validation.json."""

    out: Path
    found: dict[str, Any]

    def text(self) -> str:
        """For people; small counts are suppressed."""
        return f"{validation_text(self.found)}\n\nreport: {self.out / 'report.html'}"

    def to_json(self) -> dict[str, Any]:
        """For programs."""
        return {"out": str(self.out), **self.found}


def validate(
    bundle: Path,
    meds: Path,
    task: Path,
    out: Path,
    *,
    row: str | None = None,
    development: Path | None = None,
    horizons: Sequence[float] = (),
    split: str = EVERYBODY,
    division: SplitConfig = SplitConfig(),
    bootstrap: int = 1_000,
    seed: int = 0,
    progress: Progress = silent,
) -> Validation:
    """``ehrseq validate``: predict and evaluate a bundle on a second dataset, or on later patients of the same.

    Args:
        row: which of the bundle's rows; None is its default.
        development: the dataset the bundle was fitted on, for the case mix of a bundle that keeps none.
        horizons: days to report, each within τ; without any, one year where it lies within τ, and τ.
        split: whom to judge: everybody, or one split of the dataset (``held_out`` under a calendar split).
        division: how the dataset is divided, where ``split`` names a part of it.

    Raises:
        EhrError: another question than the bundle's (exit 10), a horizon past the bundle's or too long for these
            patients' follow-up (12), the very patients the bundle was developed on (15).
    """
    refuse_unwritable(Path(out), MARKER)
    loaded, asked, dataset = Bundle.load(bundle), load_task(task), MedsDataset.open(meds)
    changed = refuse_other_question(loaded, asked, str(task))
    tau = _tau(loaded, asked, str(task))
    progress(Tick("cohort", 0, 4, "who is asked about"))
    cohort = _cohort(dataset, asked, loaded, division)
    judged = _judged(cohort, loaded, split, division, str(meds))
    progress(Tick("predict", 1, 4, "reading records"))
    name, logits = row_logits(loaded, dataset, judged, row, asked)
    mixes = {
        "development": _development(loaded, development),
        "validation": _casemix(dataset, asked, loaded, judged, tau),
    }
    progress(Tick("evaluate", 2, 4, f"{bootstrap:,} resamples"))
    before = to_predictions(logits, judged, loaded.grid, name, cohort.fingerprint, loaded.causes)
    fits, adjusted = cross_fit(logits, judged, loaded.grid, seed)
    about = f"{name}, recalibrated"
    after = to_predictions(adjusted, judged, loaded.grid, about, cohort.fingerprint, loaded.causes)
    scored = BeforeAfter.of(before, after, judged, tau, _horizons(horizons, tau), bootstrap, seed, progress)
    found = {
        "bundle": {"row": name, "strategy": loaded.facts.get("strategy", "unknown"), "tau": loaded.grid.tau},
        "task": asked.model_dump(mode="json", by_alias=True),
        "task_changes": changed,
        "split": split,
        "cohort_fingerprint": cohort.fingerprint,
        **scored.to_json(),
        "recalibration": {"how": HOW, "c_after": C_AFTER, "halves": fits},
        "casemix": mixes,
        "interval": f"{INTERVAL_MEANING} {FOLLOW_UP}",
    }
    with staged(out, MARKER) as draft:
        before.write(draft / PREDICTIONS)
        after.write(draft / RECALIBRATED)
        replace(cohort, table=judged).write(draft / COHORT)
        write_json(draft / MARKER, found)
        duration, event = judged["duration"].to_numpy(), judged["event"].to_numpy().astype(np.int64)
        write_validation_report(draft, found, (before, after), duration, event)
    progress(Tick("evaluate", 4, 4))
    return Validation(Path(out), found)


def refuse_other_question(bundle: Bundle, task: TaskConfig, where: str) -> dict[str, dict[str, Any]]:
    """What the task changes of the bundle's, by key; codes, index and rules may differ, as hospitals do.

    Raises:
        EhrError: (CONFIG) another name, other competing events, or another kind of prediction.
    """
    kept = bundle.task
    for key, wanted, given in (
        ("name", kept.name, task.name),
        ("competing", ", ".join(kept.competing) or "none", ", ".join(task.competing) or "none"),
        ("predict_at", kept.predict_at, task.predict_at),
    ):
        if wanted != given:
            raise EhrError(
                f"{key}: the bundle answers '{wanted}', the task asks '{given}'",
                where,
                f"ask the bundle's own question (its task.json); where it is the same, write {key} as there",
                code=Exit.CONFIG,
            )
    was, now = (t.model_dump(mode="json", by_alias=True) for t in (kept, task))
    return {key: {"bundle": was.get(key), "task": now[key]} for key in now if was.get(key) != now[key]}


def _tau(bundle: Bundle, task: TaskConfig, where: str) -> float:
    """The task's horizon, which the bundle's grid must cover; the bundle's own where the task has none."""
    if task.horizon_days is None:
        return bundle.grid.tau
    if task.horizon_days > bundle.grid.tau * (1 + 1e-9):
        raise EhrError(
            f"the horizon of {task.horizon_days:g} days is past the bundle's, {bundle.grid.tau:g} days",
            f"{where}, horizon_days",
            f"ask for at most {bundle.grid.tau:g} days",
            code=Exit.COHORT,
        )
    return min(task.horizon_days, bundle.grid.tau)


def _cohort(dataset: MedsDataset, task: TaskConfig, bundle: Bundle, division: SplitConfig) -> Cohort:
    """The cohort of a task, visits read as the bundle reads them."""
    return build_cohort(
        dataset,
        task,
        split_seed=division.seed,
        calendar=division.calendar,
        visit_column=bundle.tokenizer.config.visit_column,
        learning=False,
    )


def _judged(cohort: Cohort, bundle: Bundle, split: str, division: SplitConfig, where: str) -> pl.DataFrame:
    """The rows to judge; of the very cohort the bundle was developed on, only the part that was held out then."""
    held_out = split == HELD_OUT and bundle.facts.get("split") == division.model_dump(mode="json")
    if cohort.fingerprint == bundle.facts.get("cohort_fingerprint") and not held_out:
        raise EhrError(
            "these are the patients that the bundle was developed on",
            where,
            "validate on other or later patients, or with --split held_out and the splits it was fitted with",
            code=Exit.LEAKAGE,
        )
    if split == EVERYBODY:
        return cohort.table
    table = cohort.table.filter(pl.col("split") == split)
    if table.is_empty():
        known = ", ".join([EVERYBODY, *cohort.table["split"].unique().sort()])
        raise EhrError(f"nobody is in the split '{split}'", "--split", f"one of {known}", code=Exit.COHORT)
    return table


def _development(bundle: Bundle, development: Path | None) -> dict[str, Any] | None:
    """The case mix the bundle was fitted on: from the dataset given, else as the bundle keeps it, else None."""
    if development is None:
        kept = bundle.facts.get("casemix")
        return dict(kept) if kept else None
    dataset = MedsDataset.open(development)
    rows = _cohort(dataset, bundle.task, bundle, SplitConfig()).table
    return _casemix(dataset, bundle.task, bundle, rows, bundle.grid.tau)


def _casemix(dataset: MedsDataset, task: TaskConfig, bundle: Bundle, rows: pl.DataFrame, tau: float) -> dict[str, Any]:
    visit_column = bundle.tokenizer.config.visit_column
    history = cut(dataset.scan(), rows, task, visit_column=visit_column).collect(engine="streaming")
    return describe_casemix(history, rows, bundle.tokenizer, tau, task.causes)


def _horizons(asked: Sequence[float], tau: float) -> tuple[float, ...]:
    return tuple(asked) or ((DAYS_PER_YEAR, tau) if tau > DAYS_PER_YEAR else (tau,))
