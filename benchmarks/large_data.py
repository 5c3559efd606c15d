"""Large MEDS datasets, and the same as one long table, made of random codes: for costs, not for what can be predicted.

The simulator draws what it writes from a hazard, 61 events a patient; here codes and times are drawn at random, 100
events a patient, of 100,000 patients at most; larger datasets repeat them. Nothing in them predicts the outcome.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import polars as pl
import yaml

from ehrsequencing.config import SUBJECTS_PER_SHARD
from ehrsequencing.events import BIRTH, MedsDataset, write_dataset

VISITS, EVENTS_A_VISIT = (2, 36), 5.2
"""Fewest and most visits of a patient, uniformly; mean of 1 + Poisson events at each."""
CODES = 1_000
VALUED = 5
"""Every so many-th code carries a value."""
DISTINCT = 50
"""Shards that are drawn; those after them repeat their patients under other ids."""
OUTCOME = "OUTCOME//A"
OUTCOME_SHARE = 0.2
BEGIN, END = dt.date(2010, 1, 1), dt.date(2020, 1, 1)
INDEX = dt.date(2015, 1, 1)
DAY, MINUTE = 86_400_000_000, 60_000_000
TASK = {
    "name": "random_outcome",
    "index": {"date": INDEX},
    "require": {"visits": 1},
    "outcome": {"code": OUTCOME},
    "horizon_days": 1_000.0,
}
MAPPING = {
    "name": "random",
    "files": [
        {"file": "events.csv", "subject": "subject_id", "time": "time", "code": "code", "value": "numeric_value"}
    ],
}


def shard(number: int, patients: int, seed: int) -> pl.DataFrame:
    """MEDS events of one shard, in order; its patients' ids follow those of the shards before it."""
    rng = np.random.default_rng([seed, number])
    ids = number * SUBJECTS_PER_SHARD + 1 + np.arange(patients)
    visits = rng.integers(*VISITS, patients, endpoint=True)
    days = (END - BEGIN).days
    begin = (BEGIN - dt.date(1970, 1, 1)).days
    at_visit = (begin + rng.integers(0, days, visits.sum())) * DAY + rng.integers(480, 1_020, visits.sum()) * MINUTE
    each = 1 + rng.poisson(EVENTS_A_VISIT - 1, visits.sum())
    names = np.array([f"LAB//{n:04d}" if n % VALUED == 0 else f"ICD10CM//X{n:04d}" for n in range(CODES)])
    share = np.cumsum(1.0 / np.arange(1, CODES + 1) ** 0.8)
    code = np.searchsorted(share / share[-1], rng.random(each.sum()))
    value = np.where(code % VALUED == 0, rng.normal(100.0, 15.0, each.sum()), np.nan)
    sick = np.flatnonzero(rng.random(patients) < OUTCOME_SHARE)
    birth = (begin - rng.integers(20 * 365, 90 * 365, patients)) * DAY
    parts = [
        (ids, birth, pl.repeat(BIRTH, patients, eager=True), np.full(patients, np.nan)),
        (
            np.repeat(np.repeat(ids, visits), each),
            np.repeat(at_visit, each),
            pl.Series(names).gather(code),
            value,
        ),
        (
            ids[sick],
            (begin + rng.integers(0, days, len(sick))) * DAY + 720 * MINUTE,
            pl.repeat(OUTCOME, len(sick), eager=True),
            np.full(len(sick), np.nan),
        ),
    ]
    frames = [
        pl.DataFrame({"subject_id": subject, "time": time, "code": name, "numeric_value": x.astype(np.float32)})
        for subject, time, name, x in parts
    ]
    events = pl.concat(frames).with_columns(
        pl.col("time").cast(pl.Datetime("us")), pl.col("numeric_value").fill_nan(None)
    )
    return events.sort("subject_id", "time", "code")


def shards(patients: int, seed: int = 0) -> Iterator[pl.DataFrame]:
    """All shards in turn."""
    for number, first in enumerate(range(0, patients, SUBJECTS_PER_SHARD)):
        yield shard(number, min(SUBJECTS_PER_SHARD, patients - first), seed)


def write_meds(out: Path, patients: int, seed: int = 0) -> Path:
    """A MEDS dataset of random records, ``task.yaml`` in it; beyond ``DISTINCT`` shards the same patients again."""
    distinct = min(patients, DISTINCT * SUBJECTS_PER_SHARD)
    write_dataset(out, shards(distinct, seed), name="random")
    for first in range(distinct, patients, SUBJECTS_PER_SHARD):
        number = first // SUBJECTS_PER_SHARD
        events = pl.read_parquet(out / "data" / f"{number % DISTINCT}.parquet", glob=False)
        moved = pl.col("subject_id") + (number - number % DISTINCT) * SUBJECTS_PER_SHARD
        again = events.with_columns(moved).filter(pl.col("subject_id") <= patients)
        again.write_parquet(out / "data" / f"{number}.parquet", compression="zstd")
    (out / "task.yaml").write_text(yaml.safe_dump(TASK, sort_keys=False), encoding="utf-8")
    return out


def write_table(out: Path, meds: Path) -> Path:
    """The events of a dataset as one CSV file, with the mapping that converts it."""
    out.mkdir(parents=True)
    with (out / "events.csv").open("wb") as file:
        for number, path in enumerate(MedsDataset.open(meds).shards()):
            events = pl.read_parquet(path, glob=False)
            text = events.with_columns(pl.col("time").dt.strftime("%Y-%m-%dT%H:%M:%SZ"))
            text.write_csv(file, include_header=number == 0)
    (out / "mapping.yaml").write_text(yaml.safe_dump(MAPPING, sort_keys=False), encoding="utf-8")
    return out
