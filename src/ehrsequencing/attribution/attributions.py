"""Attributions of a model's predictions: one line an event, summed to codes, and what people are shown of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from ehrsequencing.attribution.records import AGE, RECORD
from ehrsequencing.config import MIN_CELL
from ehrsequencing.files import staged_file

UNKNOWN = "[UNK]"
OWN_WORDS: Mapping[str, str] = {
    AGE: "Age, against the average training patient (wide part)",
    RECORD: "Length of the record, number of visits, time since the last one (wide part)",
    UNKNOWN: "Codes that the model does not know",
}
"""Descriptions of what is no code of the dataset."""
MAX_CODES = 100
"""Codes that the table for people holds at most."""


@dataclass(frozen=True, eq=False)
class Attributions:
    """Why some patients have the risk they have.

    Attributes:
        model, seed: the row of the bundle, and the seed it was trained with.
        horizon: days; risk is that of the outcome by then.
        baseline: what patients are compared with, in words.
        patients: ``subject_id, prediction_time, risk, baseline_risk, steps``, a line a patient.
        table: ``subject_id, prediction_time, code, days_before`` (null: static or of the whole record),
            ``attribution`` (to risk); of a patient they sum to risk − baseline_risk.
        descriptions: of codes; not every code has one.
    """

    model: str
    seed: int
    horizon: float
    baseline: str
    patients: pl.DataFrame
    table: pl.DataFrame
    descriptions: Mapping[str, str]

    def __len__(self) -> int:
        return self.patients.height

    @property
    def completeness(self) -> float:
        """The largest |sum of a patient's attributions − (risk − baseline_risk)|."""
        keys = ["subject_id", "prediction_time"]
        sums = self.table.group_by(keys).agg(pl.col("attribution").sum())
        own = self.patients.join(sums, on=keys, how="left").with_columns(pl.col("attribution").fill_null(0.0))
        gaps = own.select((pl.col("attribution") - pl.col("risk") + pl.col("baseline_risk")).abs().max())
        return float(gaps.item() or 0.0)

    def by_patient(self) -> pl.DataFrame:
        """``subject_id, prediction_time, code, attribution``: what each code a patient has adds to the risk."""
        keys = ["subject_id", "prediction_time", "code"]
        return self.table.group_by(keys).agg(pl.col("attribution").sum()).sort(keys)

    def by_code(self) -> pl.DataFrame:
        """``code, patients, mean, mean_abs`` over the patients who have it, the largest ``mean_abs`` first."""
        value = pl.col("attribution")
        found = self.by_patient().group_by("code").agg(
            pl.col("subject_id").n_unique().alias("patients"),
            value.mean().alias("mean"),
            value.abs().mean().alias("mean_abs"),
        )  # fmt: skip
        return found.sort(["mean_abs", "code"], descending=[True, False])

    def describe(self, code: str) -> str | None:
        """The code in words, where the dataset has some."""
        return OWN_WORDS.get(code, self.descriptions.get(code))

    @property
    def n_patients(self) -> int:
        """Patients explained; of an evaluation at every visit, patients have several lines."""
        return self.patients["subject_id"].n_unique()

    def common(self) -> pl.DataFrame:
        """``by_code`` of the codes that can be named: at least MIN_CELL of the patients have them, and all or at least
        MIN_CELL fewer than all, so that no count under it can be had by subtraction."""
        others = self.n_patients - pl.col("patients")
        return self.by_code().filter(pl.col("patients") >= MIN_CELL, (others == 0) | (others >= MIN_CELL))

    def codes(self) -> list[dict[str, Any]]:
        """The most influential codes, for people: those of ``common``."""
        shown = self.common().head(MAX_CODES)
        return [
            {
                "code": row["code"],
                "description": self.describe(row["code"]),
                "patients": row["patients"],
                "mean": round(row["mean"], 6),
                "mean_abs": round(row["mean_abs"], 6),
            }
            for row in shown.to_dicts()
        ]

    def to_json(self) -> dict[str, Any]:
        """What people may read: codes that hide whose they are, example patients without ids and dates; ``patients`` is
        None where fewer than MIN_CELL are explained."""
        from ehrsequencing.attribution.examples import examples

        return {
            "model": self.model,
            "seed": self.seed,
            "horizon": self.horizon,
            "patients": self.n_patients if self.n_patients >= MIN_CELL else None,
            "baseline": self.baseline,
            "completeness": self.completeness,
            "codes": self.codes(),
            "examples": examples(self),
        }

    def to_parquet(self, path: Path | str) -> None:
        """Every line, with ids: data of the place it was made at, as predictions are. Whole, or not at all."""
        with staged_file(path) as draft:
            self.table.write_parquet(draft)
