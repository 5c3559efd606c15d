"""MEDS 0.4 event datasets: opened, checked, written whole, and divided into splits and folds."""

from ehrsequencing.events.checking import CheckReport, Problem, check
from ehrsequencing.events.dataset import BIRTH, MedsDataset
from ehrsequencing.events.deaths import DEATH
from ehrsequencing.events.frames import from_dataframe
from ehrsequencing.events.subjects import among, assign_folds, assign_splits, hash_ids, private_folder, rank_hash
from ehrsequencing.events.times import parse_times
from ehrsequencing.events.writing import fill, staged, write_dataset

__all__ = [
    "BIRTH",
    "DEATH",
    "CheckReport",
    "MedsDataset",
    "Problem",
    "among",
    "assign_folds",
    "assign_splits",
    "check",
    "fill",
    "from_dataframe",
    "hash_ids",
    "parse_times",
    "private_folder",
    "rank_hash",
    "staged",
    "write_dataset",
]
