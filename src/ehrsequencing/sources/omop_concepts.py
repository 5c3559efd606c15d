"""OMOP's concept ids become codes; while events are on their way, a concept stands as a mark in its code."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import polars as pl

from ehrsequencing.sources.blocks import read_blocks
from ehrsequencing.sources.conversion import climb
from ehrsequencing.sources.tables import RawTable

SOURCE = "SOURCE//"
"""Before a source value that stands in for concept 0: ``SOURCE//CONDITION//E11.9``."""
_OPEN, _CLOSE = "\x02", "\x03"
_MARK = re.compile(f"{_OPEN}(-?\\d+){_CLOSE}")
_COLUMNS = ("CONCEPT_ID", "CONCEPT_NAME", "VOCABULARY_ID", "CONCEPT_CODE")
_FIXED = {
    8507: ("Gender//M", "MALE"),
    8532: ("Gender//F", "FEMALE"),
    8521: ("Gender//O", "OTHER"),
    8551: ("Gender//U", "UNKNOWN"),
    8657: ("Race//1", "American Indian or Alaska Native"),
    8515: ("Race//2", "Asian"),
    8516: ("Race//3", "Black or African American"),
    8557: ("Race//4", "Native Hawaiian or Other Pacific Islander"),
    8527: ("Race//5", "White"),
    38003563: ("Ethnicity//Hispanic", "Hispanic or Latino"),
    38003564: ("Ethnicity//Not Hispanic", "Not Hispanic or Latino"),
}
"""Concepts that the CDM itself lays down for persons, so that sex is known without a concept table, too."""


def mark(concept: pl.Expr) -> pl.Expr:
    """A concept id as it stands in a code until its name is known."""
    return pl.concat_str(pl.lit(_OPEN), concept, pl.lit(_CLOSE))


def whole(text: pl.Expr) -> pl.Expr:
    """Whole numbers, also as ``123.0`` (where nulls made a column of ids floating); null where it is none.

    >>> pl.DataFrame({"id": ["12", "12.0", "1.5", "x"]}).select(whole(pl.col("id")))["id"].to_list()
    [12, 12, None, None]
    """
    return text.str.replace(r"\.0+$", "").cast(pl.Int64, strict=False)


def source_text(text: pl.Expr) -> pl.Expr:
    """A source value as part of a code: no control characters, single spaces."""
    return text.str.replace_all(r"[\x00-\x1f\x7f]+", " ").str.replace_all(r"\s+", " ").str.strip_chars()


@dataclass
class Concepts:
    """The concepts that occur, with code and name where the concept table has them."""

    marked: set[str] = field(default_factory=set)
    units: set[str] = field(default_factory=set)
    names: dict[int, tuple[str, str | None]] = field(default_factory=dict)

    def note(self, events: pl.DataFrame) -> None:
        """Remember which codes and units occur."""
        self.marked.update(events["code"].unique())
        self.units.update(events["unit"].drop_nulls().unique())

    def used(self) -> list[int]:
        """The ids of the concepts that occur."""
        return sorted({int(found) for text in (*self.marked, *self.units) for found in _MARK.findall(text)})

    def read(self, tables: Sequence[RawTable]) -> None:
        """Read code and name of the concepts that occur from the parts of the concept table."""
        used = self.used()
        self.names = {concept: named for concept, named in _FIXED.items() if concept in set(used)}
        for table in tables:
            columns = {name: table.require((name,)) for name in _COLUMNS}
            for block in read_blocks(table, columns):
                self._take(block.frame.filter(whole(pl.col("CONCEPT_ID")).is_in(used)))

    def _take(self, rows: pl.DataFrame) -> None:
        rows = rows.drop_nulls(["VOCABULARY_ID", "CONCEPT_CODE"])
        code = pl.concat_str(pl.col("VOCABULARY_ID"), pl.lit("//"), pl.col("CONCEPT_CODE"))
        for concept, text, name in rows.select(whole(pl.col("CONCEPT_ID")), code, "CONCEPT_NAME").iter_rows():
            self.names[concept] = (text, name)

    def missing(self) -> int:
        """How many of the concepts that occur have no code but their id."""
        return sum(1 for concept in self.used() if concept not in self.names)

    def named(self, events: pl.DataFrame) -> pl.DataFrame:
        """Events whose marks are replaced by ``VOCABULARY//CODE``, or ``OMOP//<id>``; units by their bare code."""
        codes = {text: self._code(text) for text in events["code"].unique()}
        units = {text: self._unit(text) for text in events["unit"].drop_nulls().unique()}
        return events.with_columns(_replace(events["code"], codes), _replace(events["unit"], units))

    def described(self) -> pl.DataFrame:
        """code, description, parent_codes, and ``unmapped``: whether a source value stands for a missing concept."""
        rows = {self._code(text): self._description(text) for text in sorted(self.marked)}
        table = pl.DataFrame(
            {"code": list(rows), "description": list(rows.values())},
            schema={"code": pl.String, "description": pl.String},
        )
        unmapped = pl.col("code").str.starts_with(SOURCE).alias("unmapped")
        return table.with_columns(climb(pl.col("code")).alias("parent_codes"), unmapped)

    def _code(self, text: str) -> str:
        return _MARK.sub(lambda found: self._of(int(found[1])), text)

    def _of(self, concept: int) -> str:
        return self.names[concept][0] if concept in self.names else f"OMOP//{concept}"

    def _unit(self, text: str) -> str:
        found = _MARK.fullmatch(text)
        if found is None or int(found[1]) not in self.names:
            return self._code(text)
        return self.names[int(found[1])][0].partition("//")[2]

    def _description(self, text: str) -> str | None:
        if text.startswith(SOURCE):
            domain, _, value = text.removeprefix(SOURCE).partition("//")
            return f"{_words(domain)} as the source writes it, without a concept: {value}"
        stem = _words(text.partition(_OPEN)[0].strip("/"))
        names = [self.names.get(int(found), ("", None))[1] for found in _MARK.findall(text)]
        return None if None in names else ": ".join(filter(None, [stem, *names]))


def _words(code: str) -> str:
    """A code's stem as words.

    >>> _words("VISIT_END")
    'Visit end'
    """
    return code.replace("_", " ").replace("//", " ").capitalize()


def _replace(column: pl.Series, new: Mapping[str, str]) -> pl.Series:
    return column.replace_strict(_keys(new), list(new.values()), default=None, return_dtype=pl.String)


def _keys(new: Iterable[str]) -> pl.Series:
    return pl.Series(list(new), dtype=pl.String)
