"""How the rows of Synthea's event tables become events; each table is an entry in ``RULES``."""

from __future__ import annotations

from dataclasses import dataclass, field

import polars as pl

from ehrsequencing.events import parse_times
from ehrsequencing.sources.conversion import visit_numbers
from ehrsequencing.sources.tables import RawTable

_LOINC = r"^\d{1,7}-\d$"
_TIME = ("START", "DATE")
_OPTIONAL = ("CODE", "DESCRIPTION", "SYSTEM", "VALUE", "TYPE", "UNITS", "ENCOUNTERCLASS")
_OPTIONAL_SITE = ("BODYSITE_CODE", "BODYSITE_DESCRIPTION", "MODALITY_DESCRIPTION")


def _system(default: pl.Expr) -> pl.Expr:
    """The vocabulary's name: from SYSTEM where the row has one, otherwise the table's own."""
    stated = pl.col("SYSTEM")
    return (
        pl.when(stated.is_null())
        .then(default)
        .when(stated.str.contains("(?i)snomed"))
        .then(pl.lit("SNOMED"))
        .when(stated.str.contains("(?i)icd-?10-?cm"))
        .then(pl.lit("ICD10CM"))
        .when(stated.str.contains("(?i)loinc"))
        .then(pl.lit("LOINC"))
        .when(stated.str.contains("(?i)rxnorm"))
        .then(pl.lit("RXNORM"))
        .when(stated.str.contains("(?i)^unknown$"))
        .then(default)
        .otherwise(stated)
    )


def _coded(vocabulary: pl.Expr) -> pl.Expr:
    return pl.concat_str(_system(vocabulary), pl.lit("//"), pl.col("CODE"))


def _parts(*parts: pl.Expr) -> pl.Expr:
    return pl.concat_str(parts, separator="//", ignore_nulls=True)


_NUMBER = pl.col("VALUE").cast(pl.Float64, strict=False).cast(pl.Float32)
_SAYS_TEXT = pl.col("TYPE").str.to_lowercase() == "text"
_SAYS_NUMBER = pl.col("TYPE").str.to_lowercase() == "numeric"
_TEXT = pl.when(_SAYS_TEXT | (pl.col("TYPE").is_null() & _NUMBER.is_null())).then(
    pl.col("VALUE").str.replace_all(r"\s+", " ")
)
_OBSERVED = pl.concat_str(
    _coded(pl.when(pl.col("CODE").str.contains(_LOINC)).then(pl.lit("LOINC")).otherwise(pl.lit("SYNTHEA"))),
    pl.coalesce(pl.concat_str(pl.lit("//"), _TEXT), pl.lit("")),
)
_UNREADABLE = (
    pl.col("VALUE").is_not_null() & ~_NUMBER.is_finite().fill_null(False) & (_SAYS_NUMBER | _NUMBER.is_not_null())
)


@dataclass(frozen=True)
class Rule:
    """How one table's rows become events."""

    table: str
    code: pl.Expr
    needs: tuple[str, ...]
    encounter: str = "ENCOUNTER"
    description: pl.Expr = field(default_factory=lambda: pl.col("DESCRIPTION"))
    value: pl.Expr = field(default_factory=lambda: pl.lit(None, dtype=pl.Float32))
    unreadable: pl.Expr = field(default_factory=lambda: pl.lit(False))

    def columns(self, table: RawTable) -> dict[str, str | None]:
        """Each column the rule reads, as this table's header spells it (None: not there).

        Raises:
            EhrError: a needed one is missing.
        """
        columns: dict[str, str | None] = {name: table.column((name,)) for name in (*_OPTIONAL, *_OPTIONAL_SITE)}
        columns |= {name: table.require((name,)) for name in self.needs}
        return {**columns, "TIME": table.require(_TIME), "VISIT": table.column((self.encounter,))}


RULES = (
    Rule(
        "encounters",
        _parts(pl.lit("ENCOUNTER"), pl.col("ENCOUNTERCLASS").str.to_lowercase().fill_null("unknown"), pl.col("CODE")),
        ("PATIENT",),
        encounter="ID",
    ),
    Rule("conditions", _coded(pl.lit("SNOMED")), ("PATIENT", "CODE")),
    Rule("medications", _coded(pl.lit("RXNORM")), ("PATIENT", "CODE")),
    Rule("procedures", _coded(pl.lit("SNOMED")), ("PATIENT", "CODE")),
    Rule("immunizations", _coded(pl.lit("CVX")), ("PATIENT", "CODE")),
    Rule("allergies", pl.concat_str(pl.lit("ALLERGY//"), _coded(pl.lit("SNOMED"))), ("PATIENT", "CODE")),
    Rule("careplans", _coded(pl.lit("SNOMED")), ("PATIENT", "CODE")),
    Rule("devices", _coded(pl.lit("SNOMED")), ("PATIENT", "CODE")),
    Rule("supplies", _coded(pl.lit("SNOMED")), ("PATIENT", "CODE")),
    Rule(
        "imaging_studies",
        _parts(pl.lit("IMAGING"), pl.col("MODALITY_CODE"), pl.col("BODYSITE_CODE")),
        ("PATIENT", "MODALITY_CODE"),
        description=pl.concat_str(
            [pl.col("MODALITY_DESCRIPTION"), pl.col("BODYSITE_DESCRIPTION")], separator=": ", ignore_nulls=True
        ).replace("", None),
    ),
    Rule(
        "observations",
        _OBSERVED,
        ("PATIENT", "CODE", "VALUE"),
        description=pl.concat_str(pl.col("DESCRIPTION"), pl.coalesce(pl.concat_str(pl.lit(": "), _TEXT), pl.lit(""))),
        value=pl.when(_SAYS_TEXT.fill_null(False).not_()).then(_NUMBER),
        unreadable=_UNREADABLE & _SAYS_TEXT.fill_null(False).not_(),
    ),
)


def to_events(rule: Rule, rows: pl.DataFrame) -> pl.DataFrame:
    """The table's rows with the columns of an event, and the reason why a row is none (null where it is one)."""
    rows = rows.with_columns(time=parse_times(pl.col("TIME")), visit_id=visit_numbers(rows["VISIT"]))
    empty = [pl.when(pl.col(name).is_null()).then(pl.lit(f"{name} is empty")) for name in rule.needs if name != "VALUE"]
    reasons = [
        *empty,
        pl.when(~pl.col("known").fill_null(False)).then(pl.lit("the patient is not in the patients table")),
        pl.when(pl.col("subject_id").is_null()).then(pl.lit("the patient's own row was set aside")),
        pl.when(pl.col("TIME").is_null()).then(pl.lit("the date is empty")),
        pl.when(pl.col("time").is_null()).then(pl.lit("the date cannot be read")),
        pl.when(rule.unreadable).then(pl.lit("the value is not a finite number")),
    ]
    return rows.with_columns(
        code=rule.code,
        description=rule.description,
        numeric_value=rule.value,
        unit=pl.when(rule.value.is_not_null()).then(pl.col("UNITS")),
        reason=pl.coalesce(reasons),
    )
