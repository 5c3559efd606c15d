"""A MEDS dataset on disk, opened with its promises checked and read lazily."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow.parquet as pq
from jaxtyping import Int64

from ehrsequencing.config import HELD_OUT, PART_EVENTS, TRAIN, TUNING
from ehrsequencing.errors import EhrError
from ehrsequencing.events.deaths import in_order, late_records
from ehrsequencing.events.schema import check_schema, missing_column, read_schema
from ehrsequencing.progress import tracked

BIRTH = "MEDS_BIRTH"
CORE = ("subject_id", "time", "code", "numeric_value")
SPLITS = "subject_splits.parquet"
_MEDS_PAGE = "convert it to MEDS 0.4 (data/**/*.parquet with subject_id, time, code)"


@dataclass(frozen=True)
class MedsDataset:
    """A folder with ``data/**/*.parquet`` and, where its maker wrote them, ``metadata/`` files.

    ``files`` are the shards of a part of it (see ``parts``), which has the ``columns`` of the whole; None is all of
    them.
    """

    root: Path
    files: tuple[Path, ...] | None = None
    columns: tuple[tuple[str, Any], ...] = ()

    @classmethod
    def open(cls, root: Path | str) -> MedsDataset:
        """Open a dataset and check that every shard has the MEDS columns in the MEDS types.

        Raises:
            EhrError: no such folder, no shard in it, an unreadable shard, a column that is missing or of another type,
                an older MEDS, or rows without subject or code; the message says what was found.
        """
        dataset = cls(Path(root))
        if not dataset.root.is_dir():
            raise EhrError("the dataset's folder does not exist", str(root), "check the path")
        shards = dataset.shards()
        if not shards:
            raise EhrError("no data/**/*.parquet in this folder", str(root), _MEDS_PAGE)
        for shard in shards:
            check_schema(shard)
        return dataset

    def shards(self) -> list[Path]:
        """The shard files, sorted by path."""
        if self.files is not None:
            return list(self.files)
        return sorted(path for path in (self.root / "data").rglob("*.parquet") if not path.name.startswith("."))

    def scan(self) -> pl.LazyFrame:
        """All events, lazily: subject_id, time (null = static), code, numeric_value (float32), then extra columns.

        A death known by its date alone (midnight sharp) is given the time of the last record of that day, so that it
        does not come before what was recorded of a living patient; ``check`` counts these.
        """
        return in_order(self._as_written(), self._late_records)

    @cached_property
    def _late_records(self) -> pl.DataFrame:
        return late_records(self._as_written().select("subject_id", "time", "code"))

    def _as_written(self) -> pl.LazyFrame:
        shards = [self.scan_shard(shard) for shard in self.shards()]
        whole = [pl.LazyFrame(schema=dict(self.columns))] if self.columns else []
        return pl.concat([*whole, *shards], how="diagonal_relaxed")

    @staticmethod
    def scan_shard(path: Path) -> pl.LazyFrame:
        """One shard's events, lazily, in the columns of ``scan``."""
        frame = pl.scan_parquet(path, hive_partitioning=False, glob=False)
        found = frame.collect_schema().names()
        value = pl.col("numeric_value") if "numeric_value" in found else pl.lit(None).alias("numeric_value")
        extra = [pl.col(name) for name in found if name not in CORE]
        return frame.select("subject_id", "time", pl.col("code").cast(pl.String), value.cast(pl.Float32), *extra)

    def codes(self) -> pl.DataFrame:
        """Code and description (null where there is none) from the metadata; empty without a metadata file."""
        empty = pl.DataFrame(schema={"code": pl.String, "description": pl.String})
        table = self._metadata_table("codes.parquet", ("code",))
        if table is None:
            return empty
        table = table.select(pl.col(column).cast(pl.String) for column in empty.columns if column in table.columns)
        merged = pl.concat([empty, table], how="diagonal").filter(pl.col("code").is_not_null())
        return merged.sort("code", "description", nulls_last=True).unique("code", keep="first", maintain_order=True)

    def splits(self) -> pl.DataFrame | None:
        """subject_id and split as the dataset brings them, each subject once, sorted; None where it brings none.

        Raises:
            EhrError: a subject in two splits, ids that are no integers, or splits of an older MEDS.
        """
        table = self.split_rows()
        if table is None:
            return None
        distinct = table.unique()
        several = distinct.height - distinct["subject_id"].n_unique()
        if several:
            what = f"{several:,} subjects are in more than one split"
            raise EhrError(what, str(self.root / "metadata" / SPLITS), "keep one split a subject")
        return distinct.sort("subject_id")

    def split_rows(self) -> pl.DataFrame | None:
        """The rows of the splits file as they stand there."""
        table = self._metadata_table(SPLITS, ("subject_id", "split"))
        if table is None:
            self._refuse_older_splits()
            return None
        path = str(self.root / "metadata" / SPLITS)
        if not table.schema["subject_id"].is_integer():
            what = f"column 'subject_id' should be int64, found {table.schema['subject_id']}"
            raise EhrError(what, path, "write it as the events have it")
        if table.null_count().select("subject_id", "split").sum_horizontal().item():
            raise EhrError("some rows have no subject_id or no split", path, "complete or remove these rows")
        return table.select(pl.col("subject_id").cast(pl.Int64), pl.col("split").cast(pl.String))

    def refuse_unnamed_split(self, wanted: str) -> None:
        """EhrError (exit 11) where the dataset brings splits and none of them is ``wanted``."""
        splits = self.splits()
        if splits is not None and wanted not in splits["split"]:
            found = ", ".join(splits["split"].unique().sort())
            raise EhrError(
                f"no subject is in the split '{wanted}' (found: {found})",
                str(self.root / "metadata" / SPLITS),
                f"name the splits as MEDS does ({TRAIN}, {TUNING}, {HELD_OUT}), or remove the file to have them made",
            )

    def _refuse_older_splits(self) -> None:
        older = self.root / "metadata" / "patient_splits.parquet"
        if older.is_file():
            what = "splits of MEDS 0.3 or older, which would be left unused"
            raise EhrError(what, str(older), f"rename it to {SPLITS}, and patient_id in it to subject_id")

    def subject_ids(self) -> Int64[np.ndarray, " n"]:
        """The distinct subjects, ascending."""
        ids = self._as_written().select(pl.col("subject_id").drop_nulls().unique().sort()).collect(engine="streaming")
        return ids["subject_id"].to_numpy().astype(np.int64)

    def parts(self, events: int | None = None) -> list[MedsDataset]:
        """The dataset in groups of neighbouring shards with about so many events (None: ``PART_EVENTS``), no subject in
        two of them.

        A dataset of no more events is one part: itself. A subject whose events stand in several shards (which MEDS
        forbids and ``check`` reports) keeps these together.
        """
        events = PART_EVENTS if events is None else events
        shards = self.shards()
        sizes = [pq.read_metadata(shard).num_rows for shard in shards]
        if sum(sizes) <= events:
            return [self]
        found: list[list[Path]] = []
        room = 0
        for group in _apart(shards):
            size = sum(sizes[at] for at in group)
            if not found or size > room:
                found.append([])
                room = events
            found[-1] += [shards[at] for at in group]
            room -= size
        columns = tuple(self._as_written().collect_schema().items())
        return [MedsDataset(self.root, tuple(sorted(part)), columns) for part in found]

    def describe(self) -> dict[str, Any]:
        """What ``metadata/dataset.json`` says; empty where there is none."""
        return read_dataset_json(self.root)

    def fingerprint(self) -> str:
        """blake2b (16 bytes, hex) over the shards' bytes in the order of their paths: same bytes, same fingerprint."""
        digest = hashlib.blake2b(digest_size=16)
        for shard in self.shards():
            with shard.open("rb") as file:
                digest.update(hashlib.file_digest(file, hashlib.blake2b).digest())
        return digest.hexdigest()

    def _metadata_table(self, name: str, required: tuple[str, ...]) -> pl.DataFrame | None:
        path = self.root / "metadata" / name
        if not path.is_file():
            return None
        schema = read_schema(path)
        for column in required:
            if column not in schema:
                raise missing_column(column, list(schema), path)
        return pl.read_parquet(path, hive_partitioning=False)


def _apart(shards: list[Path]) -> list[list[int]]:
    """Positions of shards in groups that share no subject, in the order of each group's first."""
    people, where = [], []
    for at, shard in enumerate(tracked(shards, "reading subjects", [1.0] * len(shards))):
        ids = pl.scan_parquet(shard, hive_partitioning=False, glob=False).select(pl.col("subject_id").unique())
        people.append(ids.collect().to_series().drop_nulls().to_numpy())
        where.append(np.full(len(people[-1]), at))
    every, owner = np.concatenate(people), np.concatenate(where)
    order = np.argsort(every, kind="stable")
    every, owner = every[order], owner[order]
    group, again = list(range(len(shards))), np.flatnonzero(every[1:] == every[:-1])
    for one, next_ in np.unique(np.stack([owner[again], owner[again + 1]], axis=1), axis=0):
        pair = (group[one], group[next_])
        group = [min(pair) if own in pair else own for own in group]
    return [[at for at, own in enumerate(group) if own == root] for root in sorted(set(group))]


def read_dataset_json(root: Path) -> dict[str, Any]:
    """The dataset's own description; empty where there is none.

    Raises:
        EhrError: the file is there and is not a JSON object.
    """
    path = root / "metadata" / "dataset.json"
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise EhrError(f"not readable as JSON: {error}", str(path), "mend or remove the file") from None
    if not isinstance(content, dict):
        raise EhrError(f"expected a JSON object, found {type(content).__name__}", str(path), "mend or remove the file")
    return content
