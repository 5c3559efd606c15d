"""How the rows of OMOP's clinical tables become events; each part of a table is an entry in ``RULES``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl

from ehrsequencing.events import parse_times
from ehrsequencing.sources.conversion import LEFT_OUT, REASON
from ehrsequencing.sources.omop_concepts import SOURCE, mark, source_text, whole
from ehrsequencing.sources.tables import RawTable

_WORDS_ONLY = r"^\p{L}[\p{L} /&_-]*$"
_VALUES = {
    "NUMBER": ("VALUE_AS_NUMBER",),
    "VALUE_CONCEPT": ("VALUE_AS_CONCEPT_ID",),
    "UNIT_CONCEPT": ("UNIT_CONCEPT_ID",),
    "UNIT_SOURCE": ("UNIT_SOURCE_VALUE",),
}

Names = tuple[str, ...]


@dataclass(frozen=True)
class Rule:
    """How a table's rows become the events of one part of it.

    Attributes:
        table, part: the part is empty for a table's only, or named in the account; the first of a table is its rows,
            the others are further events of the rows the first one took.
        domain: names source values, ``SOURCE//<domain>//<value>``.
        concept, source_concept, source_value: the columns that hold them, newer names first.
        moment, day: the datetime and date columns.
        prefix: before the concept's code.
        fixed: the code of every row, where it is no concept.
        values: whether the row may carry a number, a unit, or a concept as its value.
        words_only: source values with digits are no words but numbers of visits: they are not used.
        further: not the first part: what it reads may be missing.
    """

    table: str
    part: str
    domain: str
    concept: Names = ()
    source_concept: Names = ()
    source_value: Names = ()
    moment: Names = ()
    day: Names = ()
    prefix: str = ""
    fixed: str | None = None
    values: bool = False
    words_only: bool = False
    further: bool = False

    def columns(self, table: RawTable) -> dict[str, str | None]:
        """Each column the part reads, as this table's header spells it (None: not there).

        Raises:
            EhrError: the concept or the date is missing.
        """
        found: dict[str, str | None] = {
            "SOURCE_CONCEPT": table.column(self.source_concept),
            "SOURCE_VALUE": table.column(self.source_value),
            "MOMENT": table.column(self.moment),
            "CONCEPT": table.column(self.concept) if self.fixed or self.further else table.require(self.concept),
        }
        optional = self.further or found["MOMENT"] is not None
        found["DAY"] = table.column(self.day) if optional else table.require(self.day)
        if self.values:
            found |= {name: table.column(names) for name, names in _VALUES.items()}
        return {self.key(name): column for name, column in found.items()}

    def key(self, name: str) -> str:
        """The part's own name of a column, so that the parts of a table are read together."""
        return f"{self.part} {name}"


def _plain(table: str, stem: str, time: str = "", *, values: bool = False) -> Rule:
    """A table with one event a row, whose columns are called after ``stem`` (and its dates after ``time``)."""
    time = time or stem
    return Rule(
        table,
        "",
        stem.upper(),
        concept=(f"{stem}_concept_id",),
        source_concept=(f"{stem}_source_concept_id",),
        source_value=(f"{stem}_source_value",),
        moment=(f"{time}_datetime",),
        day=(f"{time}_date",),
        values=values,
    )


_START: dict[str, Any] = {"moment": ("visit_start_datetime",), "day": ("visit_start_date",)}
_END: dict[str, Any] = {"moment": ("visit_end_datetime",), "day": ("visit_end_date",)}
_VISIT: dict[str, Any] = {"concept": ("visit_concept_id",), "source_concept": ("visit_source_concept_id",)}
_VISIT_VALUE: Names = ("visit_source_value",)

RULES = (
    Rule("visit_occurrence", "start", "VISIT", **_VISIT, source_value=_VISIT_VALUE, words_only=True, **_START),
    Rule(
        "visit_occurrence",
        "admitted from",
        "ADMITTED_FROM",
        concept=("admitted_from_concept_id", "admitting_source_concept_id"),
        source_value=("admitted_from_source_value", "admitting_source_value"),
        prefix="ADMITTED_FROM//",
        further=True,
        **_START,
    ),
    Rule(
        "visit_occurrence",
        "end",
        "VISIT_END",
        **_VISIT,
        source_value=_VISIT_VALUE,
        prefix="VISIT_END//",
        further=True,
        words_only=True,
        **_END,
    ),
    Rule(
        "visit_occurrence",
        "discharged to",
        "DISCHARGED_TO",
        concept=("discharged_to_concept_id", "discharge_to_concept_id"),
        source_value=("discharged_to_source_value", "discharge_to_source_value"),
        prefix="DISCHARGED_TO//",
        further=True,
        **_END,
    ),
    _plain("condition_occurrence", "condition", "condition_start"),
    _plain("drug_exposure", "drug", "drug_exposure_start"),
    _plain("procedure_occurrence", "procedure"),
    _plain("measurement", "measurement", values=True),
    _plain("observation", "observation", values=True),
    _plain("device_exposure", "device", "device_exposure_start"),
    Rule(
        "observation_period",
        "start",
        "OBSERVATION_PERIOD",
        day=("observation_period_start_date",),
        fixed="OBSERVATION_PERIOD//START",
    ),
    Rule(
        "observation_period",
        "end",
        "OBSERVATION_PERIOD",
        day=("observation_period_end_date",),
        fixed="OBSERVATION_PERIOD//END",
        further=True,
    ),
)
"""Visits first: the others name them."""


def rules_of(table: str) -> list[Rule]:
    """The parts of a table, its rows first."""
    return [rule for rule in RULES if rule.table == table]


def shared_columns(table: RawTable) -> dict[str, str | None]:
    """Person and visit, which every part shares."""
    return {"PERSON": table.require(("person_id",)), "VISIT": table.column(("visit_occurrence_id",))}


def code_of(rule: Rule) -> pl.Expr:
    """Concept, else the source's concept, else the source value; null where there is none of them."""
    if rule.fixed is not None:
        return pl.lit(rule.fixed)
    coded = pl.coalesce(concept_id(rule, "CONCEPT"), concept_id(rule, "SOURCE_CONCEPT"))
    stated = pl.concat_str(pl.lit(f"{SOURCE}{rule.domain}//"), _source_value(rule))
    return pl.coalesce(pl.concat_str(pl.lit(rule.prefix), mark(coded)), stated)


def concept_id(rule: Rule, name: str) -> pl.Expr:
    """A concept's id; null where it is 0 (no matching concept) or none."""
    found = whole(pl.col(rule.key(name)))
    return pl.when(found != 0).then(found)


def _source_value(rule: Rule) -> pl.Expr:
    text = source_text(pl.col(rule.key("SOURCE_VALUE")))
    if not rule.words_only:
        return text
    return pl.when(text.str.contains(_WORDS_ONLY)).then(text).otherwise(pl.lit("unknown"))


def time_of(rule: Rule) -> pl.Expr:
    """The datetime, else the date's midnight."""
    return pl.coalesce(parse_times(pl.col(rule.key("MOMENT"))), parse_times(pl.col(rule.key("DAY"))))


def first_events(rule: Rule, rows: pl.DataFrame) -> pl.DataFrame:
    """The rows (joined to their subjects) as events of the first part; ``reason`` where a row is none."""
    rows = rows.with_columns(time_of(rule).alias("time"), *_coded(rule))
    stated = pl.coalesce(rule.key("MOMENT"), rule.key("DAY"))
    concept = pl.col(rule.key("CONCEPT"))
    reasons = [
        *subject_reasons(),
        pl.when(stated.is_null()).then(pl.lit("the date is empty")),
        pl.when(pl.col("time").is_null()).then(pl.lit("the date cannot be read")),
        pl.when(concept.is_not_null() & whole(concept).is_null()).then(pl.lit("the concept id is no whole number")),
        pl.when(pl.col("code").is_null()).then(pl.lit("the concept is 0 or empty, and so is the source value")),
    ]
    if rule.values:
        bad = pl.col(rule.key("NUMBER")).is_not_null() & ~_number(rule).is_finite().fill_null(False)
        reasons.append(pl.when(bad).then(pl.lit("the value is not a finite number")))
    return rows.with_columns(pl.coalesce(reasons).alias(REASON), pl.lit(None, dtype=pl.String).alias("description"))


def subject_reasons() -> list[pl.Expr]:
    """Why a row has no subject."""
    return [
        pl.when(pl.col("PERSON").is_null()).then(pl.lit("person_id is empty")),
        pl.when(pl.col("person").is_null()).then(pl.lit("person_id is no whole number")),
        pl.when(~pl.col("known").fill_null(False)).then(pl.lit("the person is not in the person table")),
        pl.when(pl.col("subject_id").is_null()).then(pl.lit("the person's own row was set aside")),
    ]


def _coded(rule: Rule) -> Sequence[pl.Expr]:
    """code, numeric_value and unit; a concept as value stands behind the code of a row without a number."""
    if not rule.values:
        none = [pl.lit(None, dtype=pl.Float32).alias("numeric_value"), pl.lit(None, dtype=pl.String).alias("unit")]
        return [code_of(rule).alias("code"), *none]
    number = _number(rule)
    unit = pl.coalesce(mark(concept_id(rule, "UNIT_CONCEPT")), source_text(pl.col(rule.key("UNIT_SOURCE"))))
    value = pl.when(number.is_null()).then(pl.concat_str(pl.lit("//"), mark(concept_id(rule, "VALUE_CONCEPT"))))
    return [
        pl.concat_str(code_of(rule), pl.coalesce(value, pl.lit(""))).alias("code"),
        number.alias("numeric_value"),
        pl.when(number.is_not_null()).then(unit).alias("unit"),
    ]


def _number(rule: Rule) -> pl.Expr:
    return pl.col(rule.key("NUMBER")).cast(pl.Float64, strict=False).cast(pl.Float32)


def further_events(rule: Rule, rows: pl.DataFrame) -> pl.DataFrame:
    """Another part's events of rows that the first part took; what a row does not state is left out."""
    time, stated = time_of(rule), pl.coalesce(rule.key("MOMENT"), rule.key("DAY"))
    return rows.with_columns(
        code_of(rule).alias("code"),
        pl.when(code_of(rule).is_null())
        .then(None)
        .when(stated.is_not_null() & time.is_null())
        .then(pl.lit(f"the date of '{rule.part}' cannot be read"))
        .when(time < pl.col("time"))
        .then(pl.lit(f"'{rule.part}' lies before the start"))
        .alias(REASON),
        pl.when(code_of(rule).is_null())
        .then(pl.lit("the row states none"))
        .when(stated.is_null())
        .then(pl.lit("the row has no such date"))
        .alias(LEFT_OUT),
        time.alias("time"),
    )
