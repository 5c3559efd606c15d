"""What a mapping file may say: which columns of which files are subjects, times, codes and values."""

from __future__ import annotations

import codecs
import re
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from ehrsequencing.config import Strict
from ehrsequencing.events.dataset import CORE

ISO = "iso"
_TAKEN = (*CORE, "unit", "visit_id")


class TimeColumn(Strict):
    """A column of dates or times (or several, joined by a space), and how they are written.

    ``formats`` are tried in order: ``iso`` (ISO 8601), or strptime's words (``%d.%m.%Y``, ``%m/%d/%Y %H:%M``, with
    ``%z`` turned into UTC). A date stands for its midnight.
    """

    column: tuple[str, ...] = Field(min_length=1, description="a column, or several, joined by a space")
    formats: tuple[str, ...] = Field(
        default=(ISO,), min_length=1, description="tried in order: iso, or as strptime writes them, %d.%m.%Y"
    )

    @model_validator(mode="before")
    @classmethod
    def _bare(cls, data: Any) -> Any:
        return {"column": data} if isinstance(data, str | list | tuple) else data

    @field_validator("column", "formats", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return _as_tuple(value)

    @field_validator("formats")
    @classmethod
    def _dated(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for form in value:
            if form != ISO and not re.search("%[YyDFcx]", form):
                raise ValueError(f"'{form}' names no year: write 'iso', or as strptime does, '%d.%m.%Y'")
        return value


class EventMapping(Strict):
    """One kind of event in each row: exactly one of ``code``, ``each`` and ``fixed`` says what it is called."""

    code: tuple[str, ...] | None = Field(default=None, description="the column of the code, or several, joined by //")
    each: tuple[str, ...] | None = Field(
        default=None,
        description="columns, or patterns (dx*), each of which makes an event of its own where it is filled",
    )
    fixed: str | None = Field(
        default=None, min_length=1, description="one code for all rows, as for a column of weights"
    )
    prefix: str = Field(default="", description="written before the code, as ICD10CM//")
    time: TimeColumn | None = Field(default=None, description="when; absent, the file's; static where there is none")
    static: bool = Field(default=False, description="known always, although the file has a time")
    value: str | None = Field(default=None, description="the column of the value")
    values: Literal["number", "text", "mixed"] = Field(
        default="number", description="numbers (others are set aside), text (the code's last part), or either"
    )
    unit: str | None = Field(default=None, description="the column of the unit")
    description: str | None = Field(default=None, description="the column of the code's description")

    @field_validator("code", "each", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return value if value is None else _as_tuple(value)

    @property
    def kinds(self) -> tuple[str, ...]:
        """Which of code, each, fixed are given."""
        return tuple(name for name in ("code", "each", "fixed") if getattr(self, name))

    @model_validator(mode="after")
    def _one_code(self) -> EventMapping:
        self.refuse_unclear()
        return self

    def refuse_unclear(self) -> None:
        """ValueError unless exactly one key names the code."""
        if len(self.kinds) != 1:
            raise ValueError(f"give exactly one of code, each, fixed (found: {', '.join(self.kinds) or 'none'})")


class FileMapping(EventMapping):
    """A file and its events: one kind of them at this level, further ones under ``events``."""

    file: str = Field(min_length=1, description="its name below the folder, or a pattern of several (labs_*.csv)")
    subject: str = Field(min_length=1, description="the column of the subject's identifier; becomes a number by a hash")
    events: tuple[EventMapping, ...] = Field(default=(), description="further kinds of events in each row")
    birth: TimeColumn | None = Field(default=None, description="the column of the birth; once a subject")
    death: TimeColumn | None = Field(default=None, description="the column of the death; once a subject")
    visit: str | None = Field(default=None, description="the column of the visit; becomes visit_id by a hash")
    extra: dict[str, str] = Field(
        default_factory=dict, description="further columns to keep as text, name: column; no identifiers"
    )
    delimiter: str | None = Field(
        default=None, min_length=1, max_length=1, description="absent, the header tells: comma, tab, semicolon, bar"
    )
    encoding: str = Field(default="utf-8", description="what is not UTF-8 is read as Windows-1252 if none is given")
    decimal: Literal[".", ","] = Field(default=".", description="the decimal mark of values")

    @field_validator("encoding")
    @classmethod
    def _known(cls, value: str) -> str:
        try:
            codecs.lookup(value)
        except LookupError:
            raise ValueError(f"'{value}' is no encoding: utf-8, windows-1252, utf-16 …") from None
        return value

    @field_validator("extra")
    @classmethod
    def _free(cls, value: dict[str, str]) -> dict[str, str]:
        taken = sorted(set(value) & set(_TAKEN))
        if taken:
            raise ValueError(f"'{taken[0]}' has a meaning of its own: choose another name")
        return value

    def refuse_unclear(self) -> None:
        """ValueError where several keys name the code, or the file yields nothing."""
        if len(self.kinds) > 1:
            super().refuse_unclear()
        if not (self.kinds or self.events or self.birth or self.death):
            raise ValueError("say what its rows are: code, each, fixed, events, birth or death")

    def kinds_of_events(self) -> tuple[EventMapping, ...]:
        """All kinds of events of a row, the file's own first."""
        return (self, *self.events) if self.kinds else self.events

    def time_of(self, event: EventMapping) -> TimeColumn | None:
        """When an event is; None: known always."""
        return None if event.static else event.time or self.time


class MappingConfig(Strict):
    """Files of a registry, a spreadsheet export or a claims extract, and what their columns mean (a MAPPING.yaml)."""

    name: str | None = Field(default=None, min_length=1, description="the dataset's; absent, the folder's")
    files: tuple[FileMapping, ...] = Field(min_length=1)


def _as_tuple(value: Any) -> Any:
    return value if isinstance(value, list | tuple) else (value,)
