"""A finished cohort: its rows, its attrition, its files."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from ehrsequencing.cohort.attrition import aligned, for_people, suppress
from ehrsequencing.cohort.labels import within_horizon, write_labels
from ehrsequencing.config import HELD_OUT, TRAIN, TUNING, TaskConfig
from ehrsequencing.errors import EhrError, Exit
from ehrsequencing.files import staged

SCHEMA: dict[str, pl.DataType] = {
    "subject_id": pl.Int64(),
    "prediction_time": pl.Datetime("us"),
    "duration": pl.Float64(),
    "event": pl.Int8(),
    "split": pl.String(),
}
TABLE, ATTRITION, TASK = "cohort.parquet", "attrition.parquet", "task.json"


@dataclass(frozen=True)
class Cohort:
    """Who is asked about, from when, and what happened.

    Attributes:
        table: ``subject_id, prediction_time, duration`` (days, > 0), ``event`` (0 censored, 1 outcome), ``split``; one
            row a subject, sorted by subject_id.
        attrition: ``rule, removed, remaining, why``, exact counts.
        task: the question.
    """

    table: pl.DataFrame
    attrition: pl.DataFrame
    task: TaskConfig

    @property
    def fingerprint(self) -> str:
        """blake2b (hex, 16 bytes) over everything in the table but the split."""
        digest = hashlib.blake2b(digest_size=16)
        for name, dtype in list(SCHEMA.items())[:-1]:
            column = self.table[name].cast(dtype).to_physical().to_numpy()
            digest.update(f"{name}:{column.dtype.str}:{len(column)};".encode())
            digest.update(np.ascontiguousarray(column).tobytes())
        return digest.hexdigest()

    def with_splits(self, split: np.ndarray) -> Cohort:
        """The same cohort under other splits, one name a row of the table.

        Raises:
            EhrError: (COHORT) not one a row.
        """
        if len(split) != self.table.height:
            what = f"expected {self.table.height} splits, found {len(split)}"
            raise EhrError(what, self.task.name, "give one split a row of the cohort", code=Exit.COHORT)
        column = pl.Series("split", split.tolist(), dtype=pl.String)
        return replace(self, table=self.table.with_columns(column))

    def describe(self) -> str:
        """Attrition and events per split, as text for people; small cells are suppressed."""
        parts = [f"Cohort {self.task.name}", aligned(for_people(self.attrition)), aligned(self._split_counts())]
        return "\n\n".join([*parts, self._labels_said()])

    def to_json(self) -> dict[str, Any]:
        """Fingerprint, attrition, and patients and outcomes (within the horizon) a split: exact, for programs."""
        splits = {split: {"patients": n, "outcomes": events} for split, n, events in self._exact_counts()}
        return {
            "task": self.task.name,
            "fingerprint": self.fingerprint,
            "attrition": self.attrition.to_dicts(),
            "splits": splits,
        }

    def write(self, folder: Path) -> None:
        """Write ``cohort.parquet, attrition.parquet, attrition.csv`` (for people), ``task.json`` and, where the task
        has a horizon, ``labels/<split>.parquet`` (MEDS). A cohort that lies there is replaced whole, at once.

        Raises:
            EhrError: (ENVIRONMENT) the folder holds something else, or cannot be written.
        """
        with staged(folder, marker=TABLE) as draft:
            self._write_into(draft)

    @classmethod
    def read(cls, folder: Path) -> Cohort:
        """The cohort that :meth:`write` left in ``folder``.

        Raises:
            EhrError: (COHORT) it is not there, or not whole.
        """
        folder = Path(folder)
        for name in (TABLE, ATTRITION, TASK):
            if not (folder / name).is_file():
                raise _not_a_cohort(f"{name} is missing", folder)
        try:
            table, attrition = pl.read_parquet(folder / TABLE), pl.read_parquet(folder / ATTRITION)
            task = TaskConfig.model_validate_json((folder / TASK).read_text(encoding="utf-8"))
        except (OSError, ValueError, pl.exceptions.PolarsError) as error:
            raise _not_a_cohort(f"a file is damaged: {str(error).splitlines()[0]}", folder) from error
        if dict(table.schema) != SCHEMA:
            raise _not_a_cohort(f"unexpected columns in {TABLE}: {dict(table.schema)}", folder)
        return cls(table, attrition, task)

    def _write_into(self, folder: Path) -> None:
        self.table.write_parquet(folder / TABLE)
        self.attrition.write_parquet(folder / ATTRITION)
        for_people(self.attrition).write_csv(folder / "attrition.csv")
        (folder / TASK).write_text(self.task.model_dump_json(by_alias=True, indent=2), encoding="utf-8")
        if self.task.horizon_days is not None:
            for (split,), part in self.table.group_by("split", maintain_order=True):
                labels = within_horizon(part, self.task.horizon_days)
                write_labels(labels, folder / "labels" / f"{split}.parquet")

    def _exact_counts(self) -> list[tuple[str, int, int]]:
        """``split, patients, outcomes`` (within the horizon), usual splits first."""
        happened = pl.col("event") == 1
        if self.task.horizon_days is not None:
            happened &= pl.col("duration") <= self.task.horizon_days
        order = {TRAIN: 0, TUNING: 1, HELD_OUT: 2}
        counts = self.table.group_by("split").agg(pl.len().alias("patients"), happened.sum().alias("outcomes"))
        return sorted(counts.iter_rows(), key=lambda row: (order.get(row[0], 3), row[0]))

    def _split_counts(self) -> pl.DataFrame:
        """The exact counts as text, the whole last."""
        rows = self._exact_counts()
        splits, patients, outcomes = zip(*rows, strict=True)
        columns = {"patients": [*patients, sum(patients)], "outcomes": [*outcomes, sum(outcomes)]}
        return pl.DataFrame({"split": [*splits, "all"], **{name: suppress(cells) for name, cells in columns.items()}})

    def _labels_said(self) -> str:
        horizon = self.task.horizon_days
        if horizon is None:
            return "No MEDS label files: a yes-or-no label needs horizon_days, and the task has none."
        unknown = self.table.height - within_horizon(self.table, horizon).height
        left_out = suppress([unknown])[0]
        return f"MEDS label files: the outcome within {horizon:g} days; {left_out} censored before that are left out."


def _not_a_cohort(what: str, folder: Path) -> EhrError:
    return EhrError(what, str(folder), "give a folder that `ehrseq cohort` wrote, or make it again", code=Exit.COHORT)
