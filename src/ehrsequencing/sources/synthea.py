"""Synthea's CSV export becomes a MEDS dataset.

What becomes an event, at its START (or DATE), with the encounter as ``visit_id`` (int64, a hash of the encounter's id):

- patients: ``MEDS_BIRTH`` (BIRTHDATE), ``MEDS_DEATH`` (DEATHDATE), static ``SEX//F``, ``RACE//white``,
  ``ETHNICITY//hispanic``;
- encounters: ``ENCOUNTER//inpatient//183452005``, with parent ``ENCOUNTER//inpatient``;
- conditions and procedures: ``SNOMED//44054006`` (the concept itself says whether it is a disorder or a procedure);
- medications: ``RXNORM//860975``; immunizations: ``CVX//140``;
- observations: ``LOINC//4548-4`` with numeric_value and ``unit``, or ``LOINC//72166-2//Never smoker`` for a text, with
  parent ``LOINC//72166-2``.

A code is ``VOCABULARY//code``, from the general to the special: cut from the right, part by part, it climbs its own
hierarchy. A SYSTEM column, where there is one, names the vocabulary. Observation codes that are not LOINC's (QALY,
DALY) become ``SYNTHEA//QALY``.

Never events: names, addresses and every other identifier, coordinates, costs, and what is known only later than START
(STOP, DISPENSES, TOTALCOST, HEALTHCARE_*). Conditions carry dates only and stand at midnight of their day.

Records after death, the death-certification encounter (308646001) among them, stay in the stream where they were
recorded; ``check`` counts them. A certificate makes no MEDS_DEATH: only DEATHDATE does.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import polars as pl

from ehrsequencing.config import SUBJECTS_PER_SHARD
from ehrsequencing.errors import EhrError
from ehrsequencing.events import BIRTH, DEATH, MedsDataset, fill, hash_ids, parse_times, staged
from ehrsequencing.events.frames import write_rejects
from ehrsequencing.events.subjects import write_id_map
from ehrsequencing.sources.conversion import ConversionReport, Tally
from ehrsequencing.sources.spill import Spill
from ehrsequencing.sources.synthea_tables import RULES, Rule, to_events
from ehrsequencing.sources.tables import SUFFIXES, RawTable, find_table, read_blocks

DEATH_CERTIFICATION = "308646001"
_METADATA = {"code_modifier_columns": ["unit"], "other_extension_columns": ["visit_id"]}
_STATIC = {"GENDER": "SEX", "RACE": "RACE", "ETHNICITY": "ETHNICITY"}


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
        fill(folder, conversion.shards(), name=src.resolve().name, codes=conversion.described, metadata=_METADATA)
        conversion.spill.remove()
        for tally in conversion.tallies:
            write_rejects(folder, tally.table, tally.rejects_table())
        known = conversion.people.drop_nulls("subject_id")
        private = write_id_map(out, known["PATIENT"], known["subject_id"])
    return ConversionReport(
        dataset=MedsDataset.open(out),
        subjects=known.height,
        tallies=tuple(conversion.tallies),
        ignored=_ignored(src, tables),
        notes=conversion.notes(),
        private=private,
    )


def _find_tables(src: Path) -> dict[str, RawTable]:
    if not src.is_dir():
        raise EhrError("the export's folder does not exist", str(src), "check the path")
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


def _ignored(src: Path, tables: dict[str, RawTable]) -> tuple[str, ...]:
    read = {table.path for table in tables.values()}
    return tuple(
        sorted(path.name for path in src.iterdir() if path.name.lower().endswith(SUFFIXES) and path not in read)
    )


class _Conversion:
    """One pass over the tables: events spilled by shard, rows accounted for, descriptions counted."""

    def __init__(self, folder: Path, tables: dict[str, RawTable], subjects_per_shard: int) -> None:
        self.descriptions = pl.DataFrame(schema={"code": pl.String, "description": pl.String, "len": pl.UInt32})
        self.certified: list[np.ndarray] = []
        patients = tables["patients"]
        tally = Tally("patients", patients.path.name)
        rows = _read_patients(patients, tally)
        self.tallies = [tally]
        self.people = _people(rows, tally, str(patients.path))
        subjects = rows.join(self.people, left_on="ID", right_on="PATIENT").filter(pl.col("subject_id").is_not_null())
        if subjects.is_empty():
            raise EhrError("no patient's row can be read", str(patients.path), "check the dates and ids in it")
        self.dead = subjects.filter(pl.col("death").is_not_null())["subject_id"]
        self.spill = Spill(folder, -(-subjects.height // subjects_per_shard))
        self._keep(tally, _life_events(subjects))
        for rule in RULES:
            if rule.table in tables:
                self._convert(rule, tables[rule.table])

    def shards(self) -> Iterator[pl.DataFrame]:
        return self.spill.read()

    def described(self) -> pl.DataFrame:
        """The commonest description of each code, and the code above it where it has three parts."""
        best = self.descriptions.sort(["code", "len", "description"], descending=[False, True, False])
        parts = pl.col("code").str.splitn("//", 3).struct
        above = pl.concat_str(parts.field("field_0"), pl.lit("//"), parts.field("field_1"))
        return best.unique("code", keep="first", maintain_order=True).select(
            "code",
            "description",
            pl.when(parts.field("field_2").is_not_null()).then(pl.concat_list(above)).alias("parent_codes"),
        )

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
        tally = Tally(rule.table, table.path.name)
        self.tallies.append(tally)
        for block, ragged in read_blocks(table, rule.columns(table)):
            tally.reject_ragged(ragged)
            tally.rows += block.height
            events = to_events(rule, block.join(self.people, on="PATIENT", how="left", maintain_order="left"))
            bad = events["reason"].is_not_null()
            tally.reject(events.filter(bad))
            good = events.filter(~bad)
            tally.accepted += good.height
            self._keep(tally, good)
            if rule.table == "encounters":
                self.certified.append(good.filter(pl.col("CODE") == DEATH_CERTIFICATION)["subject_id"].to_numpy())

    def _keep(self, tally: Tally, events: pl.DataFrame) -> None:
        tally.events += events.height
        self.spill.add(events)
        counts = events.filter(pl.col("description").is_not_null()).group_by("code", "description").len()
        together = pl.concat([self.descriptions, counts])
        self.descriptions = together.group_by("code", "description").agg(pl.col("len").sum())


def _read_patients(table: RawTable, tally: Tally) -> pl.DataFrame:
    blocks = []
    for block, ragged in read_blocks(table, _patient_columns(table)):
        tally.reject_ragged(ragged)
        tally.rows += block.height
        blocks.append(
            block.with_columns(birth=parse_times(pl.col("BIRTHDATE")), death=parse_times(pl.col("DEATHDATE")))
        )
    if not blocks:
        raise EhrError("there is no patient in it", str(table.path), "export the table again")
    return pl.concat(blocks)


def _people(rows: pl.DataFrame, tally: Tally, where: str) -> pl.DataFrame:
    """PATIENT, subject_id (null where the patient's row was set aside), known = true; rejects go into the tally."""
    said = pl.struct("BIRTHDATE", "DEATHDATE", *_STATIC)
    once = pl.int_range(pl.len()).over("ID") == 0
    reasons = [
        pl.when(pl.col("ID").is_null()).then(pl.lit("ID is empty")),
        *(
            pl.when(pl.col(written).is_not_null() & pl.col(read).is_null()).then(pl.lit(f"{written} cannot be read"))
            for written, read in (("BIRTHDATE", "birth"), ("DEATHDATE", "death"))
        ),
        pl.when(said.n_unique().over("ID") > 1).then(pl.lit("the patient's rows contradict each other")),
        pl.when(~once).then(pl.lit("the patient stands in an earlier row, too")),
    ]
    marked = rows.with_columns(reason=pl.coalesce(reasons))
    bad = marked["reason"].is_not_null()
    tally.reject(marked.filter(bad))
    good = marked.filter(~bad)["ID"]
    tally.accepted = len(good)
    lost = marked.filter(bad & marked["ID"].is_not_null() & ~marked["ID"].is_in(good.implode()))["ID"].unique()
    ids = pl.DataFrame(
        {"PATIENT": good, "subject_id": hash_ids(good, where=where)}, schema_overrides={"subject_id": pl.Int64}
    )
    return pl.concat([ids, lost.alias("PATIENT").to_frame()], how="diagonal").with_columns(known=pl.lit(True))


def _life_events(subjects: pl.DataFrame) -> pl.DataFrame:
    """Birth, death and the static facts of each subject."""
    subjects = subjects.unique("subject_id", keep="first", maintain_order=True)
    never = pl.lit(None, dtype=pl.Datetime("us"))
    parts: list[Iterable[pl.Expr]] = [
        (pl.col("birth").alias("time"), pl.lit(BIRTH).alias("code"), pl.lit("Birth").alias("description")),
        (pl.col("death").alias("time"), pl.lit(DEATH).alias("code"), pl.lit("Death").alias("description")),
    ]
    timed = [subjects.select("subject_id", *part).drop_nulls("time") for part in parts]
    static = [
        subjects.drop_nulls(column).select(
            "subject_id",
            never.alias("time"),
            pl.concat_str(pl.lit(f"{name}//"), pl.col(column)).alias("code"),
            pl.concat_str(pl.lit(f"{name.capitalize()}: "), pl.col(column)).alias("description"),
        )
        for column, name in _STATIC.items()
    ]
    blank = {"numeric_value": pl.Float32, "unit": pl.String, "visit_id": pl.Int64}
    return pl.concat([*timed, *static]).with_columns(
        pl.lit(None, dtype=dtype).alias(name) for name, dtype in blank.items()
    )
