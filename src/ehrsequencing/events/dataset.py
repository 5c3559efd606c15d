"""A MEDS dataset on disk, opened with its promises checked and read lazily."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from jaxtyping import Int64

from ehrsequencing.errors import EhrError, nearest

BIRTH = "MEDS_BIRTH"
DEATH = "MEDS_DEATH"
CORE = ("subject_id", "time", "code", "numeric_value")
_WANTED = {"subject_id": "int64", "time": "timestamp[us] without time zone", "code": "string"}
_MEDS_PAGE = "convert it to MEDS 0.4 (data/**/*.parquet with subject_id, time, code)"


@dataclass(frozen=True)
class MedsDataset:
    """A folder with ``data/**/*.parquet`` and, where its maker wrote them, ``metadata/`` files."""

    root: Path

    @classmethod
    def open(cls, root: Path | str) -> MedsDataset:
        """Open a dataset and check that every shard has the MEDS columns in the MEDS types.

        Raises:
            EhrError: no such folder, no shard in it, an unreadable shard, or a column that is missing or of another
                type; the message says what was found.
        """
        dataset = cls(Path(root))
        if not dataset.root.is_dir():
            raise EhrError("the dataset's folder does not exist", str(root), "check the path")
        shards = dataset.shards()
        if not shards:
            raise EhrError("no data/**/*.parquet in this folder", str(root), _MEDS_PAGE)
        for shard in shards:
            _check_schema(shard)
        return dataset

    def shards(self) -> list[Path]:
        """The shard files, sorted by path."""
        return sorted(path for path in (self.root / "data").rglob("*.parquet") if not path.name.startswith("."))

    def scan(self) -> pl.LazyFrame:
        """All events, lazily: subject_id, time (null = static), code, numeric_value (float32), then extra columns."""
        return pl.concat([self.scan_shard(shard) for shard in self.shards()], how="diagonal_relaxed")

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
        """subject_id and split as the dataset brings them, sorted by subject; None where it brings none."""
        table = self._metadata_table("subject_splits.parquet", ("subject_id", "split"))
        if table is None:
            return None
        return table.select(pl.col("subject_id").cast(pl.Int64), pl.col("split").cast(pl.String)).sort("subject_id")

    def subject_ids(self) -> Int64[np.ndarray, " n"]:
        """The distinct subjects, ascending."""
        ids = self.scan().select(pl.col("subject_id").drop_nulls().unique().sort()).collect(engine="streaming")
        return ids["subject_id"].to_numpy().astype(np.int64)

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
        schema = _read_schema(path)
        for column in required:
            if column not in schema:
                raise _missing_column(column, list(schema), path)
        return pl.read_parquet(path, hive_partitioning=False)


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


def _check_schema(path: Path) -> None:
    schema = _read_schema(path)
    for column in _WANTED:
        if column not in schema:
            raise _missing_column(column, list(schema), path)
    text = (pl.String(), pl.Categorical())
    right = {
        "subject_id": schema["subject_id"] == pl.Int64,
        "time": schema["time"] == pl.Datetime("us", None),
        "code": schema["code"] in text or isinstance(schema["code"], pl.Enum),
    }
    for column, wanted in _WANTED.items():
        if not right[column]:
            what = f"column '{column}' should be {wanted}, found {schema[column]}"
            raise EhrError(what, str(path), "write the column in the type MEDS 0.4 asks for")
    value = schema.get("numeric_value", pl.Float32())
    if not (value.is_numeric() or value == pl.Null):
        raise EhrError(f"column 'numeric_value' should be float32, found {value}", str(path), "write it as float32")


def _read_schema(path: Path) -> dict[str, Any]:
    try:
        return dict(pl.read_parquet_schema(path))
    except (pl.exceptions.PolarsError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise EhrError(f"not readable as parquet: {reason}", str(path), "write the file again") from None


def _missing_column(column: str, found: list[str], path: Path) -> EhrError:
    close = nearest(column, found, 1)
    fix = f"did you mean '{close[0]}'? Rename it" if close else f"found: {', '.join(found)}"
    return EhrError(f"column '{column}' is missing", str(path), fix)
