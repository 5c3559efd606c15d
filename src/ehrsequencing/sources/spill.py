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
EVENTS_AT_ONCE = 1_000_000
"""So many events wait in memory before they are parted."""


@dataclass(frozen=True)
class Spill:
    """A folder with one growing Arrow file a shard; a subject's shard is its id modulo the number of shards.

    Events wait until there are many: the more shards there are, the fewer of a block go to each.
    """

    folder: Path
    shards: int
    schema: Mapping[str, Any] = field(default_factory=lambda: EVENT)
    waiting: list[pl.DataFrame] = field(default_factory=list, repr=False)

    def add(self, events: pl.DataFrame) -> None:
        """Append events to their shards' files, sooner or later."""
        self.waiting.append(events.select(pl.col(name).cast(dtype) for name, dtype in self.schema.items()))
        if sum(frame.height for frame in self.waiting) >= EVENTS_AT_ONCE:
            self._write()

    def _write(self) -> None:
        if not self.waiting:
            return
        self.folder.mkdir(exist_ok=True)
        events = pl.concat(self.waiting).with_columns(_shard=pl.col("subject_id") % self.shards)
        self.waiting.clear()
        for (shard,), part in events.partition_by("_shard", as_dict=True, include_key=False).items():
            table = part.to_arrow()
            with self._path(int(shard)).open("ab") as file, pa.ipc.new_stream(file, table.schema) as stream:
                stream.write_table(table)

    def read(self) -> Iterator[pl.DataFrame]:
        """The events of each shard in turn, in the order they were added."""
        self._write()
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
