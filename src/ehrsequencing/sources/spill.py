"""Events on their way from tables to shards: parted on disk, so that one shard at a time is in memory."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa

from ehrsequencing.progress import tracked

EVENT = {
    "subject_id": pl.Int64(),
    "time": pl.Datetime("us"),
    "code": pl.String(),
    "numeric_value": pl.Float32(),
    "unit": pl.String(),
    "visit_id": pl.Int64(),
}


@dataclass(frozen=True)
class Spill:
    """A folder with one growing Arrow file a shard; a subject's shard is its id modulo the number of shards."""

    folder: Path
    shards: int
    schema: Mapping[str, Any] = field(default_factory=lambda: EVENT)

    def add(self, events: pl.DataFrame) -> None:
        """Append events to their shards' files."""
        self.folder.mkdir(exist_ok=True)
        events = events.select(pl.col(name).cast(dtype) for name, dtype in self.schema.items())
        parted = events.with_columns(_shard=pl.col("subject_id") % self.shards).partition_by(
            "_shard", as_dict=True, include_key=False
        )
        for (shard,), part in parted.items():
            table = part.to_arrow()
            with self._path(int(shard)).open("ab") as file, pa.ipc.new_stream(file, table.schema) as stream:
                stream.write_table(table)

    def read(self) -> Iterator[pl.DataFrame]:
        """The events of each shard in turn, in the order they were added."""
        for shard in tracked(range(self.shards), "writing subjects", [1.0] * self.shards):
            path = self._path(shard)
            yield _read_streams(path) if path.exists() else pl.DataFrame(schema=dict(self.schema))

    def remove(self) -> None:
        """Delete the files."""
        shutil.rmtree(self.folder)

    def _path(self, shard: int) -> Path:
        return self.folder / f"{shard}.arrows"


def _read_streams(path: Path) -> pl.DataFrame:
    size, parts = path.stat().st_size, []
    with pa.OSFile(str(path)) as file:
        while file.tell() < size:
            parts.append(pl.DataFrame(pl.from_arrow(pa.ipc.open_stream(file).read_all())))
    return pl.concat(parts)
