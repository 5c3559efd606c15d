"""A finished cohort: its rows, its attrition, its files."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from ehrsequencing.cohort.attrition import aligned, for_people, suppress
from ehrsequencing.cohort.labels import within_horizon, write_labels
from ehrsequencing.cohort.subjects import KEYS
from ehrsequencing.config import HELD_OUT, TRAIN, TUNING, TaskConfig
from ehrsequencing.errors import EhrError, Exit
from ehrsequencing.files import staged, write_json

SCHEMA: dict[str, pl.DataType] = {
    "subject_id": pl.Int64(),
    "prediction_time": pl.Datetime("us"),
    "duration": pl.Float64(),
    "event": pl.Int8(),
    "split": pl.String(),
}
TABLE, VISITS, ATTRITION, TASK = "cohort.parquet", "visits.parquet", "attrition.parquet", "task.json"
SUBGROUPS = "subgroups.parquet"


@dataclass(frozen=True)
class Cohort:
    """Who is asked about, from when, and what happened.

    Attributes:
        table: ``subject_id, prediction_time, duration`` (days, > 0), ``event`` (0 censored, 1 outcome, 2, … the
            competing events in the task's order), ``split``; one row a subject and prediction_time, sorted by both.
        attrition: ``rule, removed, remaining`` (subjects), ``why, rows_removed, rows``, exact counts.
        task: the question.
        visits: with a prediction at every visit, every eligible visit in the same columns, prediction_time its last
            event; ``table`` then holds the visits that are evaluated, one a subject.
        subgroups: ``subject_id, prediction_time`` and a column of text a name, for figures told apart; nobody learns
            from it, and the fingerprint leaves it out. None in a cohort that was made without.
    """

    table: pl.DataFrame
    attrition: pl.DataFrame
    task: TaskConfig
    visits: pl.DataFrame | None = None
    subgroups: pl.DataFrame | None = None

    @property
    def causes(self) -> tuple[str, ...]:
        """The names of events 1, 2, …"""
        return self.task.causes

    @property
    def fingerprint(self) -> str:
        """blake2b (hex, 16 bytes) over everything in the table but the split."""
        digest = hashlib.blake2b(digest_size=16)
        for name, dtype in list(SCHEMA.items())[:-1]:
            column = self.table[name].cast(dtype).to_physical().to_numpy()
            digest.update(f"{name}:{column.dtype.str}:{len(column)};".encode())
            digest.update(np.ascontiguousarray(column).tobytes())
        return digest.hexdigest()

    def with_splits(self, split: np.ndarray, visits: np.ndarray | None = None) -> Cohort:
        """The same cohort under other splits, one name a row of the table and, where there are some, of the visits.

        Raises:
            EhrError: (COHORT) not one a row.
        """
        table = self._with_split(self.table, split)
        if self.visits is None:
            return replace(self, table=table)
        return replace(self, table=table, visits=self._with_split(self.visits, [] if visits is None else visits))

    def _with_split(self, rows: pl.DataFrame, split: Sequence[str] | np.ndarray) -> pl.DataFrame:
        if len(split) != rows.height:
            what = f"expected {rows.height} splits, found {len(split)}"
            raise EhrError(what, self.task.name, "give one split a row of the cohort", code=Exit.COHORT)
        return rows.with_columns(pl.Series("split", list(map(str, split)), dtype=pl.String))

    def describe(self) -> str:
        """Attrition and events per split, as text for people; small cells are suppressed."""
        parts = [f"Cohort {self.task.name}", aligned(for_people(self.attrition)), aligned(self._split_counts())]
        return "\n\n".join([*parts, self._labels_said()])

    def to_json(self) -> dict[str, Any]:
        """Fingerprint, attrition, and patients and outcomes (within the horizon) a split: exact, for programs."""
        counts = self._exact_counts()
        splits = {row.pop("split"): row for row in counts.to_dicts()}
        return {
            "task": self.task.name,
            "fingerprint": self.fingerprint,
            "attrition": self.attrition.to_dicts(),
            "splits": splits,
        }

    def write(self, folder: Path, beside: Mapping[str, Any] | None = None) -> None:
        """Write ``cohort.parquet, attrition.parquet, attrition.csv`` (for people), ``task.json``, where there are some
        ``subgroups.parquet``, where the task has a horizon ``labels/<split>.parquet`` (MEDS), and with a prediction at
        every visit ``visits.parquet``; ``beside`` are further JSON files, by name. A cohort there is replaced whole, at
        once.

        Raises:
            EhrError: (ENVIRONMENT) the folder holds something else, or cannot be written.
        """
        with staged(folder, marker=TABLE) as draft:
            self._write_into(draft)
            for name, content in (beside or {}).items():
                write_json(draft / name, content)

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
            visits, groups = (
                pl.read_parquet(folder / name) if (folder / name).is_file() else None for name in (VISITS, SUBGROUPS)
            )
            task = TaskConfig.model_validate_json((folder / TASK).read_text(encoding="utf-8"))
        except (OSError, ValueError, pl.exceptions.PolarsError) as error:
            raise _not_a_cohort(f"a file is damaged: {str(error).splitlines()[0]}", folder) from error
        for name, rows in ((TABLE, table), (VISITS, visits)):
            if rows is not None and dict(rows.schema) != SCHEMA:
                raise _not_a_cohort(f"unexpected columns in {name}: {dict(rows.schema)}", folder)
        if (visits is None) != (task.predict_at == "index"):
            raise _not_a_cohort(f"{VISITS} {'is missing' if visits is None else 'does not belong here'}", folder)
        if groups is not None and not _are_subgroups(groups, table):
            raise _not_a_cohort(f"{SUBGROUPS} does not belong to {TABLE}", folder)
        return cls(table, attrition, task, visits, groups)

    def _write_into(self, folder: Path) -> None:
        self.table.write_parquet(folder / TABLE)
        if self.visits is not None:
            self.visits.write_parquet(folder / VISITS)
        if self.subgroups is not None:
            rows = self.table.select(KEYS)
            groups = rows.join(self.subgroups, on=KEYS, how="left", maintain_order="left")
            groups.write_parquet(folder / SUBGROUPS)
        self.attrition.write_parquet(folder / ATTRITION)
        for_people(self.attrition).write_csv(folder / "attrition.csv")
        (folder / TASK).write_text(self.task.model_dump_json(by_alias=True, indent=2), encoding="utf-8")
        if self.task.horizon_days is not None:
            for (split,), part in self.table.group_by("split", maintain_order=True):
                labels = within_horizon(part, self.task.horizon_days)
                write_labels(labels, folder / "labels" / f"{split}.parquet")

    def _exact_counts(self) -> pl.DataFrame:
        """``split, patients, outcomes`` and each competing event by name (within the horizon), usual splits first;
        with several rows a patient also ``rows``, with a prediction at every visit ``visits``."""
        seen = pl.lit(True) if self.task.horizon_days is None else pl.col("duration") <= self.task.horizon_days
        names = ("outcomes", *self.causes[1:])
        events = {name: ((pl.col("event") == code) & seen).sum() for code, name in enumerate(names, start=1)}
        counts = self.table.group_by("split").agg(patients=pl.col("subject_id").n_unique(), rows=pl.len(), **events)
        counts = counts.with_columns(pl.exclude("split").cast(pl.Int64))
        if counts["rows"].equals(counts["patients"]):
            counts = counts.drop("rows")
        if self.visits is not None:
            visits = self.visits.group_by("split").agg(visits=pl.len())
            counts = counts.join(visits.cast({"visits": pl.Int64}), on="split", how="left", maintain_order="left")
        order = pl.col("split").replace_strict({TRAIN: 0, TUNING: 1, HELD_OUT: 2}, default=3)
        return counts.sort(order, "split")

    def _split_counts(self) -> pl.DataFrame:
        """The exact counts as text, the whole last; small counts suppressed, also those of patients without event."""
        exact = self._exact_counts()
        whole = pl.concat([exact, exact.select(pl.lit("all").alias("split"), pl.exclude("split").sum())])
        events = ["outcomes", *self.causes[1:]]
        happened = pl.sum_horizontal(events)
        without = whole.select(pl.col("rows" if "rows" in whole.columns else "patients") - happened).to_series()
        cells = suppress([*without, *(count for name in events for count in whole[name])])[whole.height :]
        shown = {name: cells[k * whole.height : (k + 1) * whole.height] for k, name in enumerate(events)}
        others = [name for name in whole.columns if name not in ("split", *events)]
        return whole.with_columns(
            **{name: pl.Series(suppress(whole[name].to_list())) for name in others},
            **{name: pl.Series(text) for name, text in shown.items()},
        )

    def _labels_said(self) -> str:
        horizon = self.task.horizon_days
        if horizon is None:
            return "No MEDS label files: a yes-or-no label needs horizon_days, and the task has none."
        unknown = self.table.height - within_horizon(self.table, horizon).height
        left_out = suppress([unknown])[0]
        return f"MEDS label files: the outcome within {horizon:g} days; {left_out} censored before that are left out."


def _are_subgroups(groups: pl.DataFrame, table: pl.DataFrame) -> bool:
    """Whether these are the table's rows, with columns of text."""
    if tuple(groups.columns[:2]) != KEYS or set(groups.dtypes[2:]) - {pl.String}:
        return False
    return groups.select(KEYS).equals(table.select(KEYS))


def _not_a_cohort(what: str, folder: Path) -> EhrError:
    return EhrError(what, str(folder), "give a folder that `ehrseq cohort` wrote, or make it again", code=Exit.COHORT)
