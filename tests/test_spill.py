"""Events on their way to shards: parted when there are many, in the order they came."""

from __future__ import annotations

import datetime as dt
from pathlib import Path

import polars as pl
import pyarrow as pa

from ehrsequencing.sources import spill
from ehrsequencing.sources.spill import EVENT, Spill

SHARDS, BLOCKS, ROWS = 20, 60, 40
EVENTS = pl.DataFrame(
    {
        "subject_id": [(7 * i) % 311 for i in range(BLOCKS * ROWS)],
        "time": [dt.datetime(2010, 1, 1) + dt.timedelta(days=i) for i in range(BLOCKS * ROWS)],
        "code": [f"C{i % 13}" for i in range(BLOCKS * ROWS)],
        "numeric_value": [None] * (BLOCKS * ROWS),
        "unit": [None] * (BLOCKS * ROWS),
        "visit_id": [None] * (BLOCKS * ROWS),
    },
    schema=EVENT,
)


def spilled(folder: Path) -> list[pl.DataFrame]:
    own = Spill(folder, SHARDS)
    for block in EVENTS.iter_slices(ROWS):
        own.add(block)
    return list(own.read())


def test_blocks_wait_until_they_are_worth_parting(tmp_path, monkeypatch) -> None:
    """Parted one by one, each of many shards is opened for each of many blocks: more than in proportion."""
    opened, make = [], pa.ipc.new_stream
    monkeypatch.setattr(spill.pa.ipc, "new_stream", lambda *given: opened.append(1) or make(*given))
    assert pl.concat(spilled(tmp_path / "s")).height == EVENTS.height
    assert len(opened) == SHARDS


def test_shards_keep_the_order_of_what_was_added(tmp_path, monkeypatch) -> None:
    at_once = spilled(tmp_path / "at_once")
    monkeypatch.setattr(spill, "EVENTS_AT_ONCE", 3 * ROWS)
    by_and_by = spilled(tmp_path / "by_and_by")
    for shard, (one, other) in enumerate(zip(at_once, by_and_by, strict=True)):
        assert one.equals(other)
        assert one.equals(EVENTS.filter(pl.col("subject_id") % SHARDS == shard))
