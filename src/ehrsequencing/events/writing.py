"""Writing a MEDS dataset so that it appears whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import meds
import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Int64

from ehrsequencing import files
from ehrsequencing.errors import EhrError, Exit
from ehrsequencing.events.dataset import CORE, MedsDataset, read_dataset_json

MAKER = "ehrsequencing"
_DESCRIPTION = "metadata/dataset.json"
_TYPES = {"subject_id": pl.Int64(), "time": pl.Datetime("us"), "code": pl.String(), "numeric_value": pl.Float32()}
_ORDER = ("subject_id", "time", "code")

Codes = pl.DataFrame | Callable[[], pl.DataFrame] | None


def write_dataset(
    out: Path,
    frames: Iterable[pl.DataFrame],
    *,
    name: str,
    codes: Codes = None,
    splits: pl.DataFrame | None = None,
    metadata: Mapping[str, Any] | None = None,
    extras: Mapping[str, pl.DataFrame] | None = None,
) -> MedsDataset:
    """Write one shard a frame, and open what was written.

    Args:
        out: the dataset's folder; new, empty, or an earlier dataset of this package, which is then replaced.
        frames: each one shard of whole subjects with subject_id, time, code, numeric_value (optional) and any extra
            columns; written sorted by subject_id, time (static first), code, ties in the order given.
        name: the dataset's name in ``metadata/dataset.json``.
        codes: code, description and, optionally, parent_codes; or a function that gives them once all frames are
            written. Codes in the data that it lacks are added without a description.
        splits: subject_id, split.
        metadata: further entries of ``dataset.json`` (MEDS DatasetMetadataSchema).
        extras: further parquet files of the same folder, by their path in it.

    Raises:
        EhrError: exit 11 where a frame breaks a MEDS rule or there are no events; 14 where the folder cannot be
            written or holds something else.
    """
    with staged(out) as folder:
        fill(folder, frames, name=name, codes=codes, splits=splits, metadata=metadata)
        for path, table in (extras or {}).items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            write_parquet(table, folder / path)
    return MedsDataset.open(out)


@contextmanager
def staged(out: Path) -> Iterator[Path]:
    """A temporary folder that becomes the dataset ``out`` when the block ends well, and vanishes when it does not.

    Only an empty folder, or a dataset this package wrote and to which nobody added anything, is replaced.
    """
    out = Path(out)
    with files.staged(out, _DESCRIPTION) as draft:
        _refuse_foreign(out)
        yield draft
        _refuse_strangers(draft, out)


def fill(
    folder: Path,
    frames: Iterable[pl.DataFrame],
    *,
    name: str,
    codes: Codes = None,
    splits: pl.DataFrame | None = None,
    metadata: Mapping[str, Any] | None = None,
) -> int:
    """Write data/ and metadata/ into an existing folder (see ``write_dataset``); returns the number of events."""
    (folder / "data").mkdir()
    (folder / "metadata").mkdir()
    written, seen, used = 0, np.empty(0, dtype=np.int64), pl.DataFrame(schema={"code": pl.String})
    full = (frame for frame in frames if frame.height)
    for number, frame in enumerate(full):
        shard = _as_shard(frame, f"shard {number}")
        seen = _with_new(seen, shard["subject_id"].unique().sort().to_numpy(), number)
        used = pl.concat([used, shard.select("code")]).unique()
        _write(meds.DataSchema, shard, folder / "data" / f"{number}.parquet")
        written += shard.height
    if not written:
        raise EhrError("there is no event to write", name, "check the input: a dataset needs at least one event")
    _write_metadata(folder / "metadata", used, codes() if callable(codes) else codes, splits, name, metadata)
    return written


def _as_shard(frame: pl.DataFrame, where: str) -> pl.DataFrame:
    if "numeric_value" not in frame.columns:
        frame = frame.with_columns(pl.lit(None, dtype=pl.Float32).alias("numeric_value"))
    for column, dtype in _TYPES.items():
        found = frame.schema.get(column)
        close_enough = found is not None and dtype.is_float() and (found.is_numeric() or found == pl.Null)
        if found != dtype and not close_enough and not (found == pl.Null and column == "time"):
            what = f"column '{column}' should be {dtype}, found {found if found is not None else 'no such column'}"
            raise EhrError(what, where, "convert the column before writing")
    for column in ("subject_id", "code"):
        if frame[column].null_count():
            raise EhrError(f"column '{column}' has nulls", where, "set these rows aside before writing")
    extra = [column for column in frame.columns if column not in CORE]
    cast = frame.select(*(pl.col(column).cast(dtype) for column, dtype in _TYPES.items()), *extra)
    return cast.sort(*_ORDER, nulls_last=False, maintain_order=True)


def _with_new(seen: Int64[np.ndarray, " n"], subjects: Int64[np.ndarray, " m"], number: int) -> Int64[np.ndarray, " k"]:
    """The subjects of the shards before and of this one, ascending; EhrError where somebody is in both."""
    at = np.searchsorted(seen, subjects)
    repeated = int((seen[np.minimum(at, len(seen) - 1)] == subjects).sum()) if len(seen) else 0
    if repeated:
        what = f"{repeated} subjects of shard {number} are in an earlier shard, too"
        raise EhrError(what, f"shard {number}", "give whole subjects: all events of one in one frame")
    return np.insert(seen, at, subjects)


def _write(schema: Any, frame: pl.DataFrame, path: Path) -> None:
    table = schema.align(_plain(frame))
    schema.validate(table)
    pq.write_table(table, path, compression="zstd")


def write_parquet(frame: pl.DataFrame, path: Path) -> None:
    """Write a table with plain strings; a full disk raises OSError (polars' own writer raises its ComputeError)."""
    pq.write_table(_plain(frame), path, compression="zstd")


def _plain(frame: pl.DataFrame) -> pa.Table:
    table = frame.to_arrow()
    wide = (pa.large_string(), pa.string_view())
    fields = [field.with_type(pa.string()) if field.type in wide else field for field in table.schema]
    return table.cast(pa.schema(fields))


def _write_metadata(
    folder: Path,
    used: pl.DataFrame,
    codes: pl.DataFrame | None,
    splits: pl.DataFrame | None,
    name: str,
    metadata: Mapping[str, Any] | None,
) -> None:
    described = pl.DataFrame(schema={"code": pl.String, "description": pl.String, "parent_codes": pl.List(pl.String)})
    if codes is not None:
        described = pl.concat([described, codes], how="diagonal").unique("code", keep="first", maintain_order=True)
    every = used.join(described, on="code", how="full", coalesce=True).sort("code")
    _write(meds.CodeMetadataSchema, every, folder / "codes.parquet")
    if splits is not None:
        columns = splits.select(pl.col("subject_id").cast(pl.Int64), pl.col("split").cast(pl.String))
        _write(meds.SubjectSplitSchema, columns.sort("subject_id"), folder / "subject_splits.parquet")
    facts = {"dataset_name": name, "etl_name": MAKER, "meds_version": meds.__version__, **(metadata or {})}
    checked = meds.DatasetMetadataSchema(**facts).to_dict()
    (folder / "dataset.json").write_text(json.dumps(checked, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _refuse_foreign(out: Path) -> None:
    if (out / _DESCRIPTION).exists() and read_dataset_json(out).get("etl_name") != MAKER:
        what = "the output folder holds a dataset that this package did not write"
        raise EhrError(what, str(out), "choose a new folder", code=Exit.ENVIRONMENT)


def _refuse_strangers(draft: Path, out: Path) -> None:
    known = {path.name for path in draft.iterdir()} | {"data", "metadata", "rejects"}
    strangers = sorted(path.name for path in out.iterdir() if path.name not in known) if out.exists() else []
    if strangers:
        what = f"the earlier dataset's folder also holds {', '.join(strangers)}, which replacing it would delete"
        raise EhrError(what, str(out), "move them elsewhere, or choose a new folder", code=Exit.ENVIRONMENT)
