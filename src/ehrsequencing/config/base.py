"""Constants that everything shares, and the settings object that knows its own keys only."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

DAYS_PER_YEAR = 365.25
MAX_YEARS, MAX_DAYS = 200, 100_000
"""The longest spans that a task may name, in years and days: longer ones are slips, and past what dates can hold."""
MIN_CELL = 10
"""Counts of patients below this are suppressed in everything written for people."""
SPLIT_FRACTIONS = {"train": 0.70, "tuning": 0.15, "held_out": 0.15}
TRAIN, TUNING, HELD_OUT = "train", "tuning", "held_out"
CURVE_POINTS = 100
"""Equally spaced points on (0, tau] at which a prediction's survival curve is written."""
MIN_CURVE_POINTS = 20
"""Points reaching tau that somebody else's survival curve needs for figures that read the whole curve."""
MIN_CENSORING_SURVIVAL = 0.1
"""A horizon at which the censoring distribution is below this is refused."""
MIN_TRAIN_EVENTS, MIN_TUNING_EVENTS = 100, 20
TOKEN_BUDGET = 4_096
"""Tokens in one micro-batch: bounds memory, never the size of an optimiser step."""
SUBJECTS_PER_SHARD = 2_000
"""Subjects in one file of a written dataset; what is in memory at once while converting."""
PART_EVENTS = 2_000_000
"""Events read together of a large dataset, in whole shards; smaller datasets are read at once."""
SAVE_SECONDS = 30.0
"""Seconds between two savings of a training run's state, at least."""


class Strict(BaseModel):
    """A frozen settings object that refuses keys it does not know."""

    model_config = ConfigDict(extra="forbid", frozen=True)
