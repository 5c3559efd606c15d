"""OMOP's persons and deaths: who is a subject, when they were born and died, what is known of them always."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import polars as pl

from ehrsequencing.errors import EhrError
from ehrsequencing.events import BIRTH, DEATH, parse_times
from ehrsequencing.sources.blocks import read_blocks
from ehrsequencing.sources.conversion import LEFT_OUT, REASON, Ledger, Tally
from ehrsequencing.sources.omop_concepts import whole
from ehrsequencing.sources.omop_tables import Rule, code_of, first_events, shared_columns
from ehrsequencing.sources.tables import RawTable

PERSON_PARTS = tuple(
    Rule(
        "person",
        stem,
        stem.upper(),
        concept=(f"{stem}_concept_id",),
        source_concept=(f"{stem}_source_concept_id",),
        source_value=(f"{stem}_source_value",),
        further=True,
    )
    for stem in ("gender", "race", "ethnicity")
)
DEATHS = Rule("death", "death", "DEATH", moment=("death_datetime",), day=("death_date",), fixed=DEATH)
CAUSE = Rule(
    "death",
    "cause",
    "DEATH_CAUSE",
    concept=("cause_concept_id",),
    source_concept=("cause_source_concept_id",),
    source_value=("cause_source_value",),
    prefix="DEATH_CAUSE//",
    further=True,
)
_BIRTH = ("BIRTH_DATETIME", "YEAR_OF_BIRTH", "MONTH_OF_BIRTH", "DAY_OF_BIRTH")
_BLANK = {"numeric_value": pl.Float32, "unit": pl.String, "visit_id": pl.Int64, "description": pl.String}


@dataclass(frozen=True)
class Persons:
    """``people``: person, subject_id (null where the person's row was set aside), known = true; ``count`` subjects."""

    rows: pl.DataFrame
    people: pl.DataFrame

    @property
    def count(self) -> int:
        return self.people.height - self.people["subject_id"].null_count()


def person_columns(table: RawTable) -> dict[str, str | None]:
    """The columns that are read of a part of the person table; its source value, an identifier, is not among them."""
    columns: dict[str, str | None] = {"PERSON": table.require(("person_id",))}
    columns |= {name: table.column((name,)) for name in _BIRTH}
    if columns["BIRTH_DATETIME"] is None:
        columns["YEAR_OF_BIRTH"] = table.require(("YEAR_OF_BIRTH",))
    for rule in PERSON_PARTS:
        columns |= rule.columns(table)
    return columns


def read_persons(tables: Sequence[RawTable], tally: Tally) -> Persons:
    """All persons; ``rows`` with the reason why one is none. ``tally`` accounts for rows of a wrong width.

    Raises:
        EhrError: nobody can be read.
    """
    frames = []
    for table in tables:
        for block in read_blocks(table, person_columns(table)):
            tally.opened(block)
            frames.append(block.frame)
    where = str(tables[0].path)
    if not frames:
        raise EhrError("there is no person in it", where, "export the table again")
    rows = _marked(pl.concat(frames))
    read = rows.filter(pl.col(REASON).is_null())["person"]
    if read.is_empty():
        raise EhrError("no person's row can be read", where, "check the ids (whole numbers) and births in it")
    lost = rows.filter(pl.col(REASON).is_not_null() & ~pl.col("person").is_in(read.implode()))["person"]
    ids = pl.DataFrame({"person": read, "subject_id": read})
    people = pl.concat([ids, lost.drop_nulls().unique().to_frame()], how="diagonal").with_columns(known=pl.lit(True))
    return Persons(rows, people)


def _marked(rows: pl.DataFrame) -> pl.DataFrame:
    parts = [pl.when(whole(pl.col(name)) != 0).then(whole(pl.col(name))).cast(pl.String) for name in _BIRTH[1:]]
    year, month, day = (part.str.zfill(width) for part, width in zip(parts, (4, 2, 2), strict=True))
    vague = month.is_null() | day.is_null()
    written = pl.concat_str(year, month.fill_null("01"), day.fill_null("01"), separator="-")
    moment = parse_times(pl.col("BIRTH_DATETIME"))
    birth = pl.coalesce(moment, parse_times(written)).alias("birth")
    rows = rows.with_columns(whole(pl.col("PERSON")).alias("person"), birth)
    rows = rows.with_columns((vague & moment.is_null() & pl.col("birth").is_not_null()).alias("vague"))
    said = pl.struct(pl.exclude("row", "file", "PERSON"))
    reasons = [
        pl.when(pl.col("PERSON").is_null()).then(pl.lit("person_id is empty")),
        pl.when(pl.col("person").is_null()).then(pl.lit("person_id is no whole number")),
        pl.when(pl.any_horizontal(pl.col(*_BIRTH).is_not_null()) & pl.col("birth").is_null()).then(
            pl.lit("the birth cannot be read")
        ),
        pl.when(said.n_unique().over("person") > 1).then(pl.lit("the person's rows contradict each other")),
        pl.when(pl.int_range(pl.len()).over("person") > 0).then(pl.lit("the person stands in an earlier row, too")),
    ]
    return rows.with_columns(pl.coalesce(reasons).alias(REASON))


def person_events(rows: pl.DataFrame) -> Iterator[tuple[str, pl.DataFrame]]:
    """Each part of the person table with its events; the first, births, carries the rows set aside."""
    blank = [pl.lit(None, dtype=dtype).alias(name) for name, dtype in _BLANK.items()]
    rows = rows.with_columns(pl.col("person").alias("subject_id"), *blank)
    yield (
        "birth",
        rows.with_columns(
            pl.col("birth").alias("time"),
            pl.lit(BIRTH).alias("code"),
            pl.when(pl.col("birth").is_null()).then(pl.lit("the row states no birth")).alias(LEFT_OUT),
        ),
    )
    good = rows.filter(pl.col(REASON).is_null())
    for rule in PERSON_PARTS:
        yield (
            rule.part,
            good.with_columns(
                pl.lit(None, dtype=pl.Datetime("us")).alias("time"),
                code_of(rule).alias("code"),
                pl.when(code_of(rule).is_null()).then(pl.lit("the row states none")).alias(LEFT_OUT),
            ),
        )


def convert_deaths(tables: Sequence[RawTable], people: pl.DataFrame, ledger: Ledger) -> Iterator[pl.DataFrame]:
    """Deaths, the earliest a person, and their causes; yields the events entered."""
    if not tables:
        return
    tally, frames = ledger.tally("death", DEATHS.part), []
    for table in tables:
        columns = {**shared_columns(table), **DEATHS.columns(table), **CAUSE.columns(table)}
        for block in read_blocks(table, columns):
            tally.opened(block)
            frames.append(block.frame)
    if not frames:
        return
    rows = pl.concat(frames).with_columns(whole(pl.col("PERSON")).alias("person"))
    rows = rows.join(people, on="person", how="left", maintain_order="left")
    rows = rows.with_columns(pl.lit(None, dtype=pl.Int64).alias("visit_id"))
    deaths = first_events(DEATHS, rows).sort("time", nulls_last=True, maintain_order=True)
    good = pl.col(REASON).is_null()
    again = good & (pl.int_range(pl.len()).over("subject_id", good) > 0)
    told = pl.when(again).then(pl.lit("the person's death stands in another row, too"))
    entered = ledger.enter(tally, deaths.with_columns(told.alias(LEFT_OUT)))
    yield entered
    none = pl.when(code_of(CAUSE).is_null()).then(pl.lit("the row states none")).alias(LEFT_OUT)
    causes = entered.with_columns(code_of(CAUSE).alias("code"), none)
    yield ledger.enter(ledger.tally("death", CAUSE.part), causes)
