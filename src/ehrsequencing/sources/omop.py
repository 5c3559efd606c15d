"""An OMOP Common Data Model (5.3 or 5.4) becomes a MEDS dataset.

What becomes an event, at its datetime (or, without one, at the midnight of its date):

- person: ``MEDS_BIRTH`` (birth_datetime, or year, month and day), static gender, race and ethnicity;
- visit_occurrence: the visit's concept at its start (``Visit//IP``), ``ADMITTED_FROM//…`` there, and at its end
  ``VISIT_END//Visit//IP`` and ``DISCHARGED_TO//…``;
- condition_occurrence, drug_exposure, procedure_occurrence, device_exposure: the concept, at the start;
- measurement, observation: the concept with numeric_value and ``unit``, or with the value's concept behind its own
  (``LOINC//5802-4//SNOMED//10828004``), with parent ``LOINC//5802-4``;
- observation_period: ``OBSERVATION_PERIOD//START`` and ``//END``: follow-up reaches as far as a person was observed;
- death: ``MEDS_DEATH`` (the earliest row a person) and ``DEATH_CAUSE//…``.

A concept is ``VOCABULARY//CODE`` where the concept table has it, otherwise ``OMOP//<id>`` (gender, race and ethnicity
have their CDM codes always). Concept 0 means that the source's code has no match: then the source's own concept stands
in, or else its text, as ``SOURCE//CONDITION//<source value>``; the report counts both, and ``metadata/codes.parquet``
flags such codes (``unmapped``).

``subject_id`` is person_id and ``visit_id`` is visit_occurrence_id where visit_occurrence has that visit of that person
(null elsewhere: grouped by day); both are the CDM's own surrogate numbers. Never events: person_source_value, visits'
source values that hold digits (encounter numbers), device ids, lot numbers, notes, free text values, costs, and what is
known only later than the start (ends of conditions and exposures, days of supply, eras).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
from jaxtyping import Int64

from ehrsequencing.config import SUBJECTS_PER_SHARD
from ehrsequencing.errors import EhrError, nearest
from ehrsequencing.events import MedsDataset, fill, staged
from ehrsequencing.sources.blocks import read_blocks
from ehrsequencing.sources.conversion import REASON, ConversionReport, Ledger, Tally
from ehrsequencing.sources.omop_concepts import Concepts, whole
from ehrsequencing.sources.omop_people import convert_deaths, person_columns, person_events, read_persons
from ehrsequencing.sources.omop_tables import RULES, concept_id, first_events, further_events, rules_of, shared_columns
from ehrsequencing.sources.spill import Spill
from ehrsequencing.sources.tables import RawTable, find_parts, source_folder

TABLES = tuple(dict.fromkeys(rule.table for rule in RULES))
_METADATA = {"code_modifier_columns": ["unit"], "other_extension_columns": ["visit_id"]}
_DERIVED = ("condition_era", "drug_era", "dose_era", "episode", "episode_event")
_WORDS = ("note", "note_nlp")


def convert_omop(src: Path, out: Path, *, subjects_per_shard: int = SUBJECTS_PER_SHARD) -> ConversionReport:
    """Convert a folder of OMOP tables to MEDS.

    A table is one file (``.csv``, ``.tsv``, ``.txt``, plain or ``.gz``, or ``.parquet``) or a folder of such parts, in
    any letter case; ``person`` must be there, of the others whichever are. Memory holds the persons, the visits'
    numbers and one block of a table, or one shard. Rows that cannot be read go to ``rejects/<table>.parquet``.

    Raises:
        EhrError: exit 11 where the folder, person or a column is missing, or a file is damaged; 14 where ``out`` cannot
            be written.
    """
    src, out = Path(src), Path(out)
    tables = _find_tables(src)
    with staged(out) as folder:
        conversion = _Conversion(folder / "spill", tables, subjects_per_shard)
        ledger, concepts = conversion.ledger, conversion.concepts
        concepts.read(tables["concept"])
        shards = map(concepts.named, ledger.spill.read())
        fill(folder, shards, name=src.resolve().name, codes=concepts.described, metadata=_METADATA)
        ledger.spill.remove()
        ledger.write_rejects(folder)
    return ConversionReport(
        dataset=MedsDataset.open(out),
        subjects=conversion.persons.count,
        tallies=ledger.tallies,
        ignored=_ignored(src, tables),
        notes=(*_version(tables["cdm_source"]), *_mapped(tables["concept"], concepts)),
    )


def _find_tables(src: Path) -> dict[str, tuple[RawTable, ...]]:
    source_folder(src)
    plain = {name: find_parts(src, name) for name in ("person", *TABLES, "death", "cdm_source")}
    tables = {**plain, "concept": find_parts(src, "concept", plain_tabs=True)}
    if not tables["person"]:
        raise _no_person(src)
    for table in tables["person"]:
        person_columns(table)
    for name in TABLES:
        for table in tables[name]:
            _columns(table, name)
    return tables


def _no_person(src: Path) -> EhrError:
    names = sorted(path.name for path in src.iterdir())
    close = nearest("person.csv", (name.lower() for name in names), 1)
    found = f"found: {', '.join(names[:8])}{', …' if len(names) > 8 else ''}" if names else "the folder is empty"
    fix = f"is it '{close[0]}'? Rename it" if close else f"give the folder with the CDM's tables ({found})"
    return EhrError("the person table (.csv, .csv.gz, .parquet, or a folder of them) is missing", str(src), fix)


def _columns(table: RawTable, name: str) -> dict[str, str | None]:
    columns = shared_columns(table)
    for rule in rules_of(name):
        columns |= rule.columns(table)
    return columns


def _ignored(src: Path, tables: dict[str, tuple[RawTable, ...]]) -> tuple[str, ...]:
    used = {src / Path(table.name).parts[0] for parts in tables.values() for table in parts}
    left = sorted(path.name for path in src.iterdir() if path not in used and not path.name.startswith("."))
    return tuple(map(_why, left))


def _why(name: str) -> str:
    stem = name.lower().split(".")[0]
    if stem in _DERIVED:
        return f"{name} (derived from other tables)"
    return f"{name} (free text)" if stem in _WORDS else name


def _version(tables: tuple[RawTable, ...]) -> tuple[str, ...]:
    found = [
        version
        for table in tables
        for block in read_blocks(table, {"version": table.column(("cdm_version",))})
        for version in block.frame["version"].drop_nulls().unique()
    ]
    return (f"cdm_source says {', '.join(sorted(found))}",) if found else ()


def _mapped(tables: tuple[RawTable, ...], concepts: Concepts) -> tuple[str, ...]:
    used, missing = len(concepts.used()), concepts.missing()
    if not tables:
        return (f"there is no concept table: {missing:,} of {used:,} concepts are OMOP//<id>",)
    return (f"of {used:,} concepts used, the concept table lacks {missing:,}, which are OMOP//<id>",) if missing else ()


class _Conversion:
    """One pass over the tables: persons, visits, what names them, deaths."""

    def __init__(self, folder: Path, tables: dict[str, tuple[RawTable, ...]], subjects_per_shard: int) -> None:
        tally = Tally("person", "birth")
        self.persons = read_persons(tables["person"], tally)
        self.ledger = Ledger(Spill(folder, -(-self.persons.count // subjects_per_shard)), tally)
        self.concepts = Concepts()
        self.visits = _Visits()
        for part, events in person_events(self.persons.rows):
            self.concepts.note(self.ledger.enter(self.ledger.tally("person", part), events))
        vague = self.persons.rows.filter(pl.col(REASON).is_null())["vague"].sum()
        tally.remark("births are known by their year or month only and stand at its first day", int(vague))
        for name in TABLES:
            for table in tables[name]:
                self._convert(name, table)
        for events in convert_deaths(tables["death"], self.persons.people, self.ledger):
            self.concepts.note(events)

    def _convert(self, name: str, table: RawTable) -> None:
        first, *further = rules_of(name)
        tally = self.ledger.tally(name, first.part)
        for block in read_blocks(table, _columns(table, name)):
            tally.opened(block)
            rows = self._joined(name, block.frame)
            events = self.ledger.enter(tally, first_events(first, rows))
            self.concepts.note(events)
            self._remark(name, tally, events)
            for rule in further:
                more = self.ledger.enter(self.ledger.tally(name, rule.part), further_events(rule, events))
                self.concepts.note(more)

    def _joined(self, name: str, rows: pl.DataFrame) -> pl.DataFrame:
        """Rows with their subject, and the visit they name where it is one of that subject's."""
        rows = rows.with_columns(whole(pl.col("PERSON")).alias("person"), whole(pl.col("VISIT")).alias("visit"))
        rows = rows.join(self.persons.people, on="person", how="left", maintain_order="left")
        if name == "visit_occurrence":
            self.visits.add(rows)
        return rows.with_columns(self.visits.resolve(rows["visit"], rows["subject_id"]).alias("visit_id"))

    def _remark(self, name: str, tally: Tally, events: pl.DataFrame) -> None:
        first = rules_of(name)[0]
        if first.fixed is None:
            zero = events.filter(concept_id(first, "CONCEPT").is_null())
            own = zero.filter(concept_id(first, "SOURCE_CONCEPT").is_not_null()).height
            tally.remark("have concept 0 and are coded by the source's own concept", own)
            tally.remark("have concept 0 and are coded by their source value (SOURCE//…)", zero.height - own)
            if first.values:
                beside = concept_id(first, "VALUE_CONCEPT").is_not_null() & pl.col("numeric_value").is_not_null()
                tally.remark("have a number and a concept as value: the number is kept", events.filter(beside).height)
        lost = events.filter((pl.col("visit") != 0) & pl.col("visit_id").is_null()).height
        tally.remark("name a visit that visit_occurrence does not have for their person: grouped by day", lost)


class _Visits:
    """Which visits there are, and whose: two arrays sorted by visit."""

    def __init__(self) -> None:
        self.visit: Int64[np.ndarray, " n"] = np.empty(0, dtype=np.int64)
        self.subject: Int64[np.ndarray, " n"] = np.empty(0, dtype=np.int64)

    def add(self, rows: pl.DataFrame) -> None:
        """Take in the visits of known subjects; of two with one number, the first."""
        known = rows.drop_nulls(["visit", "subject_id"])
        visit = np.concatenate([self.visit, known["visit"].to_numpy()])
        subject = np.concatenate([self.subject, known["subject_id"].to_numpy()])
        self.visit, first = np.unique(visit, return_index=True)
        self.subject = subject[first]

    def resolve(self, visit: pl.Series, subject: pl.Series) -> pl.Series:
        """The visit, where it is one of the subject's; null elsewhere."""
        if not len(self.visit):
            return pl.Series([None] * len(visit), dtype=pl.Int64)
        wanted, whose = visit.fill_null(0).to_numpy(), subject.fill_null(0).to_numpy()
        at = np.minimum(np.searchsorted(self.visit, wanted), len(self.visit) - 1)
        found = (self.visit[at] == wanted) & (self.subject[at] == whose)
        stated = visit.is_not_null() & subject.is_not_null()
        return pl.select(pl.when(pl.Series(found) & stated).then(visit)).to_series()
