"""`simulate`: a MEDS dataset, its prediction times and task, and the truth behind it, in one folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import meds
import polars as pl
import pyarrow.parquet as pq
import yaml

from ehrsequencing.config import SUBJECTS_PER_SHARD, SimulateConfig, TaskConfig, parse
from ehrsequencing.events import DEATH, MedsDataset, fill, staged
from ehrsequencing.synthetic import every_visit
from ehrsequencing.synthetic.blocks import blocks
from ehrsequencing.synthetic.hospital import HOSPITALS
from ehrsequencing.synthetic.truth import DEATH_CAUSE, TRUTH_FILE
from ehrsequencing.synthetic.vocabulary import OUTCOME, Vocabulary

LABEL_FILE = "labels/prediction_times.parquet"
TASK_FILE = "task.yaml"
HORIZON_DAYS = 1_826.0
EVERY_VISIT_TASK: dict[str, object] = {
    "name": "heart_failure_at_every_visit",
    "index": {"after_history_days": 180},
    "outcome": {"code": OUTCOME},
    "horizon_days": HORIZON_DAYS,
    "follow_up": {"end": "last_record"},
    "predict_at": "every_visit",
    "evaluate_at": {"after_history_days": 730},
}
BLOCKS = {"index": blocks, "every_visit": every_visit.blocks}


def simulate(out: Path | str, config: SimulateConfig, *, subjects_per_shard: int = SUBJECTS_PER_SHARD) -> MedsDataset:
    """Write a simulated MEDS dataset with a known truth.

    Beside ``data/`` and ``metadata/`` the folder holds ``labels/prediction_times.parquet`` (a MEDS label file; not
    where every visit is asked about), ``task.yaml`` (names the label file within the dataset) and ``truth.parquet``
    (see ``read_truth``). Patients are the same whatever their number and that of shards; the same seed gives the same
    bytes.

    Raises:
        EhrError: (ENVIRONMENT) ``out`` cannot be written or holds something else.
    """
    out, vocabulary = Path(out), Vocabulary(config.noise_codes, HOSPITALS[config.hospital].name_of)
    truths: list[pl.DataFrame] = []
    with staged(out) as folder:
        frames = _shards(config, vocabulary, truths, subjects_per_shard)
        elsewhere = "" if config.hospital == "a" else f", hospital {config.hospital}"
        facts = {"dataset_version": f"seed {config.seed}, {config.patients} patients{elsewhere}"}
        fill(folder, frames, name="simulated", codes=vocabulary.table(), metadata=facts)
        truth = pl.concat(truths)
        truth.write_parquet(folder / TRUTH_FILE)
        if config.question == "index":
            _write_labels(truth, folder / LABEL_FILE)
        text = yaml.safe_dump(_task(config), sort_keys=False)
        (folder / TASK_FILE).write_text(text, encoding="utf-8")
    return MedsDataset.open(out)


def simulated_task(config: SimulateConfig = SimulateConfig()) -> TaskConfig:
    """The task of a simulated dataset: heart failure within five years of each patient's prediction_time.

    >>> simulated_task().outcome.code, simulated_task(SimulateConfig(competing_death=True)).causes
    ('ICD10CM//I50.9', ('outcome', 'death'))
    """
    return parse(TaskConfig, _task(config), TASK_FILE)


def _task(config: SimulateConfig) -> dict[str, object]:
    if config.question == "every_visit":
        return EVERY_VISIT_TASK
    task: dict[str, object] = {
        "name": "heart_failure",
        "index": {"labels": LABEL_FILE},
        "outcome": {"code": OUTCOME},
        "horizon_days": HORIZON_DAYS,
        "follow_up": {"end": "last_record"},
    }
    return task | ({"competing": {DEATH_CAUSE: DEATH}} if config.competing_death else {})


def _shards(
    config: SimulateConfig, vocabulary: Vocabulary, truths: list[pl.DataFrame], size: int
) -> Iterator[pl.DataFrame]:
    """Blocks regrouped into shards of ``size`` patients; each block's truth is kept in ``truths``."""
    waiting, first = pl.DataFrame(), 1
    for events, truth in BLOCKS[config.question](config, vocabulary):
        truths.append(truth)
        waiting = pl.concat([waiting, events]) if waiting.height else events
        last = int(events["subject_id"].max() or 0)  # type: ignore[arg-type]
        while last - first + 1 >= size:
            shard = pl.col("subject_id") < first + size
            yield waiting.filter(shard)
            waiting, first = waiting.filter(~shard), first + size
    if waiting.height:
        yield waiting


def _write_labels(truth: pl.DataFrame, path: Path) -> None:
    path.parent.mkdir()
    pq.write_table(meds.LabelSchema.align(truth.select("subject_id", "prediction_time").to_arrow()), path)
