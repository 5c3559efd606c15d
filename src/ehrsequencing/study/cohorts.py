"""``ehrseq cohort``: the cohort and its time grid; loads nothing that trains or draws."""

from __future__ import annotations

from pathlib import Path

import polars as pl

from ehrsequencing.cohort import Cohort, build_cohort
from ehrsequencing.cohort.result import TABLE as COHORT_MARKER
from ehrsequencing.config import TRAIN, SplitConfig, load_task
from ehrsequencing.events import MedsDataset
from ehrsequencing.files import refuse_unwritable
from ehrsequencing.horizon import choose_tau
from ehrsequencing.timegrid import TimeGrid


def write_cohort(
    meds: Path,
    task: Path,
    out: Path,
    *,
    split: SplitConfig = SplitConfig(),
    visit_column: str | None = None,
) -> Cohort:
    """``ehrseq cohort``: the cohort with the time grid of its training split."""
    refuse_unwritable(Path(out), COHORT_MARKER)
    cohort = build_cohort(
        MedsDataset.open(meds),
        load_task(task),
        split_seed=split.seed,
        calendar=split.calendar,
        visit_column=visit_column,
    )
    cohort.write(out, beside={"grid.json": training_grid(cohort).to_json()})
    return cohort


def training_grid(cohort: Cohort) -> TimeGrid:
    """The time grid of a cohort's training split, up to its own horizon."""
    train = cohort.table.filter(pl.col("split") == TRAIN)
    duration, event = train["duration"].to_numpy(), train["event"].to_numpy()
    return TimeGrid.fit(duration, event, choose_tau(duration, event, cohort.task.horizon_days))
