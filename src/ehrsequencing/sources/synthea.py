"""Synthea's CSV export becomes a MEDS dataset.

What becomes an event, at its START (or DATE), with the encounter as ``visit_id`` (int64, a hash of the encounter's id):

- patients: ``MEDS_BIRTH`` (BIRTHDATE), ``MEDS_DEATH`` (DEATHDATE), static ``SEX//F``, ``RACE//white``,
  ``ETHNICITY//hispanic``;
- encounters: ``ENCOUNTER//inpatient//183452005``, with parent ``ENCOUNTER//inpatient``;
- conditions, procedures, careplans, devices and supplies: ``SNOMED//44054006`` (the concept itself says what it is);
- medications: ``RXNORM//860975``; immunizations: ``CVX//140``;
- allergies: ``ALLERGY//SNOMED//300916003`` (newer exports give the substance's code, which is no disorder and no drug
  taken);
- imaging_studies: ``IMAGING//DX//40983000``, the modality and the SNOMED code of the body site;
- observations: ``LOINC//4548-4`` with numeric_value and ``unit``, or ``LOINC//72166-2//Never smoker`` for a text, with
  parent ``LOINC//72166-2``.

A code is ``VOCABULARY//code``, from the general to the special: cut from the right, part by part, it climbs its own
hierarchy. A SYSTEM column, where there is one, names the vocabulary. Observation codes that are not LOINC's (QALY,
DALY) become ``SYNTHEA//QALY``.

Never events: names, addresses and every other identifier (UDI, series and instance numbers among them), coordinates,
costs, and what is known only later than START (STOP, DISPENSES, TOTALCOST, HEALTHCARE_*, outcomes of claims).
Conditions, allergies and careplans carry dates only and stand at midnight of their day.

Records after death, the death-certification encounter (308646001) among them, stay in the stream where they were
recorded; ``check`` counts them. A certificate makes no MEDS_DEATH: only DEATHDATE does.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import polars as pl

from ehrsequencing.config import SUBJECTS_PER_SHARD
from ehrsequencing.errors import EhrError
from ehrsequencing.events import BIRTH, DEATH, MedsDataset, fill, hash_ids, parse_times, staged
from ehrsequencing.events.subjects import write_id_map
from ehrsequencing.sources.blocks import read_blocks
from ehrsequencing.sources.conversion import LEFT_OUT, REASON, ConversionReport, Ledger, Tally, climb, not_read
from ehrsequencing.sources.spill import Spill
from ehrsequencing.sources.synthea_tables import RULES, Rule, to_events
from ehrsequencing.sources.tables import CSV_SUFFIXES, RawTable, find_table, source_folder

DEATH_CERTIFICATION = "308646001"
_METADATA = {"code_modifier_columns": ["unit"], "other_extension_columns": ["visit_id"]}
_STATIC = {"GENDER": "SEX", "RACE": "RACE", "ETHNICITY": "ETHNICITY"}
_LIFE = {"BIRTHDATE": ("birth", BIRTH), "DEATHDATE": ("death", DEATH)}


def convert_synthea(src: Path, out: Path, *, subjects_per_shard: int = SUBJECTS_PER_SHARD) -> ConversionReport:
    """Convert a folder of Synthea CSV files (``.csv`` or ``.csv.gz``, any letter case) to MEDS.

    ``patients`` must be there; of the other tables, whichever are. Subjects are parted into shards by their id (a hash
    of the patient's); memory holds one block of a table, or one shard, at a time. Rows that cannot be read go to
    ``rejects/<table>.parquet`` (file, row as a spreadsheet numbers it, reason). The way back to the patients' ids lies
    beside the dataset in ``<out>.private/``, and must not be shared with it.

    Raises:
        EhrError: exit 11 where the folder, patients or a column is missing, or a file is damaged; 14 where ``out``
            cannot be written.
    """
    src, out = Path(src), Path(out)
    tables = _find_tables(src)
    with staged(out) as folder:
        conversion = _Conversion(folder / "spill", tables, subjects_per_shard)
        ledger = conversion.ledger
        fill(folder, ledger.spill.read(), name=src.resolve().name, codes=conversion.described, metadata=_METADATA)
        ledger.spill.remove()
        ledger.write_rejects(folder)
        known = conversion.people.drop_nulls("subject_id")
        private = write_id_map(out, known["PATIENT"], known["subject_id"])
    return ConversionReport(
        dataset=MedsDataset.open(out),
        subjects=known.height,
        tallies=ledger.tallies,
        ignored=not_read(src, CSV_SUFFIXES, (table.path for table in tables.values())),
        notes=conversion.notes(),
        private=private,
    )


def _find_tables(src: Path) -> dict[str, RawTable]:
    source_folder(src)
    names = ("patients", *(rule.table for rule in RULES))
    tables = {name: table for name in names if (table := find_table(src, name)) is not None}
    if "patients" not in tables:
        inside = (src / "csv").is_dir()
        fix = f"did you mean {src / 'csv'}?" if inside else "every Synthea CSV export has one: give its folder"
        raise EhrError("patients.csv (or .csv.gz) is missing", str(src), fix)
    for rule in RULES:
        if rule.table in tables:
            rule.columns(tables[rule.table])
    _patient_columns(tables["patients"])
    return tables


def _patient_columns(table: RawTable) -> dict[str, str | None]:
    needed = {name: table.require((name,)) for name in ("ID", "BIRTHDATE", "DEATHDATE", "GENDER")}
    return {**needed, "RACE": table.column(("RACE",)), "ETHNICITY": table.column(("ETHNICITY",))}


class _Conversion:
    """One pass over the tables: events spilled by shard, rows accounted for, descriptions counted."""

    def __init__(self, folder: Path, tables: dict[str, RawTable], subjects_per_shard: int) -> None:
        self.certified: list[np.ndarray] = []
        patients = tables["patients"]
        tally = Tally("patients", "birth")
        rows = _read_patients(patients, tally)
        rows, self.people = _people(rows, str(patients.path))
        subjects = rows.filter(pl.col(REASON).is_null()).join(self.people, left_on="ID", right_on="PATIENT")
        if subjects.is_empty():
            raise EhrError("no patient's row can be read", str(patients.path), "check the dates and ids in it")
        self.dead = subjects.filter(pl.col("death").is_not_null())["subject_id"]
        self.ledger = Ledger(Spill(folder, -(-subjects.height // subjects_per_shard)), tally)
        tally.settle(rows.filter(pl.col(REASON).is_not_null()))
        for part, events in _life_events(subjects):
            self.ledger.enter(self.ledger.tally("patients", part), events)
        for rule in RULES:
            if rule.table in tables:
                self._convert(rule, tables[rule.table])

    def described(self) -> pl.DataFrame:
        """The commonest description of each code, and the code above it where it has three parts."""
        return self.ledger.described().with_columns(climb(pl.col("code")).alias("parent_codes"))

    def notes(self) -> tuple[str, ...]:
        certified = np.concatenate([np.empty(0, dtype=np.int64), *self.certified])
        if not certified.size:
            return ()
        undated = int((~np.isin(np.unique(certified), self.dead.to_numpy())).sum())
        return (
            f"{certified.size:,} encounters certify a death ({DEATH_CERTIFICATION}) and stay where they were recorded; "
            f"{undated:,} of their patients have no DEATHDATE and so no {DEATH}",
        )

    def _convert(self, rule: Rule, table: RawTable) -> None:
        tally = self.ledger.tally(rule.table)
        for block in read_blocks(table, rule.columns(table)):
            tally.opened(block)
            rows = block.frame.join(self.people, on="PATIENT", how="left", maintain_order="left")
            events = self.ledger.enter(tally, to_events(rule, rows))
            if rule.table == "encounters":
                self.certified.append(events.filter(pl.col("CODE") == DEATH_CERTIFICATION)["subject_id"].to_numpy())


def _read_patients(table: RawTable, tally: Tally) -> pl.DataFrame:
    frames = []
    for block in read_blocks(table, _patient_columns(table)):
        tally.opened(block)
        read = (parse_times(pl.col(column)).alias(name) for column, (name, _) in _LIFE.items())
        frames.append(block.frame.with_columns(*read))
    if not frames:
        raise EhrError("there is no patient in it", str(table.path), "export the table again")
    return pl.concat(frames)


def _people(rows: pl.DataFrame, where: str) -> tuple[pl.DataFrame, pl.DataFrame]:
    """The rows with their ``reason``; and PATIENT, subject_id (null where their row was set aside), known = true."""
    said = pl.struct("BIRTHDATE", "DEATHDATE", *_STATIC)
    once = pl.int_range(pl.len()).over("ID") == 0
    reasons = [
        pl.when(pl.col("ID").is_null()).then(pl.lit("ID is empty")),
        *(
            pl.when(pl.col(written).is_not_null() & pl.col(read).is_null()).then(pl.lit(f"{written} cannot be read"))
            for written, (read, _) in _LIFE.items()
        ),
        pl.when(said.n_unique().over("ID") > 1).then(pl.lit("the patient's rows contradict each other")),
        pl.when(~once).then(pl.lit("the patient stands in an earlier row, too")),
    ]
    marked = rows.with_columns(pl.coalesce(reasons).alias(REASON))
    bad = marked[REASON].is_not_null()
    good = marked.filter(~bad)["ID"]
    lost = marked.filter(bad & marked["ID"].is_not_null() & ~marked["ID"].is_in(good.implode()))["ID"].unique()
    ids = pl.DataFrame(
        {"PATIENT": good, "subject_id": hash_ids(good, where=where)}, schema_overrides={"subject_id": pl.Int64}
    )
    people = pl.concat([ids, lost.alias("PATIENT").to_frame()], how="diagonal").with_columns(known=pl.lit(True))
    return marked, people


def _life_events(subjects: pl.DataFrame) -> Iterator[tuple[str, pl.DataFrame]]:
    """Each part of the patients' table with its events: births, deaths, and one kind of static fact each."""
    blank = {"numeric_value": pl.Float32, "unit": pl.String, "visit_id": pl.Int64, REASON: pl.String}
    subjects = subjects.drop(REASON).with_columns(
        pl.lit(None, dtype=dtype).alias(name) for name, dtype in blank.items()
    )
    for column, (part, code) in _LIFE.items():
        yield (
            part,
            subjects.with_columns(
                pl.col(part).alias("time"),
                pl.lit(code).alias("code"),
                pl.lit(part.capitalize()).alias("description"),
                pl.when(pl.col(part).is_null()).then(pl.lit(f"{column} is empty")).alias(LEFT_OUT),
            ),
        )
    for column, name in _STATIC.items():
        yield (
            name.lower(),
            subjects.with_columns(
                pl.lit(None, dtype=pl.Datetime("us")).alias("time"),
                pl.concat_str(pl.lit(f"{name}//"), pl.col(column)).alias("code"),
                pl.concat_str(pl.lit(f"{name.capitalize()}: "), pl.col(column)).alias("description"),
                pl.when(pl.col(column).is_null()).then(pl.lit(f"{column} is empty")).alias(LEFT_OUT),
            ),
        )
