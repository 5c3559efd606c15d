"""The task language: a TASK.yaml as settings."""

from __future__ import annotations

import datetime as dt
import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, Tag, field_validator, model_validator

from ehrsequencing.config.base import MAX_DAYS, MAX_YEARS, Strict


class CodeMatch(Strict):
    """How a predicate names codes, beside the plain string: any of several, a regular expression, a prefix."""

    any: tuple[str, ...] | None = Field(default=None, description="any of these codes")
    regex: str | None = Field(default=None, description="codes in which this regular expression is found")
    prefix: str | None = Field(default=None, description="codes that begin with this")

    @model_validator(mode="after")
    def _exactly_one(self) -> CodeMatch:
        if "" in (self.prefix, *(self.any or ())) or self.any == ():
            raise ValueError("it is empty: name codes, or a beginning")
        given = [name for name in ("any", "regex", "prefix") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError("give exactly one of any, regex, prefix")
        if self.regex is not None:
            try:
                re.compile(self.regex)
            except re.error as error:
                raise ValueError(f"not a regular expression: {error}") from error
        return self


class Predicate(Strict):
    """An event that counts: a code, optionally with a range of its numeric value (inclusive)."""

    code: str | CodeMatch = Field(description="a code, or how codes are matched")
    value_min: float | None = Field(default=None, description="least numeric value, included")
    value_max: float | None = Field(default=None, description="greatest numeric value, included")

    @model_validator(mode="before")
    @classmethod
    def _bare_code(cls, data: Any) -> Any:
        return {"code": data} if isinstance(data, str) else data


def _form_of_group(value: Any) -> str:
    """Which form a subgroup has: a code or ``code: …`` is a predicate, anything else a kind of codes."""
    if isinstance(value, BaseModel):
        return type(value).__name__
    return "Predicate" if isinstance(value, str) or (isinstance(value, dict) and "code" in value) else "CodeMatch"


Subgroup = Annotated[
    Annotated[CodeMatch, Tag("CodeMatch")] | Annotated[Predicate, Tag("Predicate")], Discriminator(_form_of_group)
]
"""Groups by which of several codes a patient has, or by whether a predicate held."""


def _whole_date(value: Any) -> Any:
    """Text of a date as that date; a bare number, which would be read as seconds since 1970, is refused."""
    if isinstance(value, int | float) or (isinstance(value, str) and value.strip().replace(".", "", 1).isdigit()):
        raise ValueError("expected a date, found a number: write the whole date, as in 2013-01-01")
    if isinstance(value, str) and re.fullmatch(r"\d{4}-\d{2}-\d{2}", value.strip()):
        return dt.date.fromisoformat(value.strip())
    return value


When = Annotated[dt.datetime | dt.date, BeforeValidator(_whole_date)]
"""A moment; a date is the midnight at which that day begins."""
OUTCOME = "outcome"
"""The name of cause 1 wherever causes are named (``cif_outcome``)."""


class IndexConfig(Strict):
    """Where each subject's prediction_time comes from: exactly one of age, date, event, after_history_days, labels."""

    age: float | None = Field(default=None, ge=0, le=MAX_YEARS, description="years; the birthday itself")
    date: When | None = Field(default=None, description="the midnight at which this day begins, or a moment")
    event: Literal["first", "last", "each", "random"] | None = Field(
        default=None, description="at the first, last or each event with `code`, or one drawn at random"
    )
    code: str | CodeMatch | None = Field(default=None, description="the code of `event`")
    after_history_days: float | None = Field(
        default=None, ge=0, le=MAX_DAYS, description="end of the first visit with so much"
    )
    labels: Path | None = Field(default=None, description="a MEDS label file (parquet), or a folder of them")

    @model_validator(mode="after")
    def _exactly_one(self) -> IndexConfig:
        kinds = ("age", "date", "event", "after_history_days", "labels")
        given = [name for name in kinds if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"give exactly one of {', '.join(kinds)} (found: {', '.join(given) or 'none'})")
        if (self.event is None) != (self.code is None):
            raise ValueError("event and code go together, as in {event: first, code: ...}")
        return self


class RequireConfig(Strict):
    """What a subject must bring at prediction_time to be in the cohort."""

    history_days: float = Field(default=0, ge=0, le=MAX_DAYS, description="days since the first readable record")
    visits: int = Field(default=1, ge=0, description="visits that a model may read")
    age_min: float | None = Field(default=None, ge=0, le=MAX_YEARS, description="years at prediction_time")
    age_max: float | None = Field(default=None, ge=0, le=MAX_YEARS, description="years at prediction_time")


class FollowUpEnd(Strict):
    """An end of follow-up other than the last record: the first such event after prediction_time, or a date."""

    code: str | CodeMatch | None = Field(
        default=None, description="the first such event after prediction_time ends follow-up"
    )
    date: When | None = Field(default=None, description="follow-up ends here for everybody")

    @model_validator(mode="after")
    def _exactly_one(self) -> FollowUpEnd:
        if (self.code is None) == (self.date is None):
            raise ValueError("give exactly one of code, date")
        return self


class FollowUpConfig(Strict):
    """When follow-up ends; death, and the last record, end it always."""

    end: Literal["last_record"] | FollowUpEnd = "last_record"


class InputConfig(Strict):
    """Which part of the history up to prediction_time a model may read."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)
    from_: When | None = Field(default=None, alias="from", description="nothing older is read")
    lookback_days: float | None = Field(
        default=None, gt=0, le=MAX_DAYS, description="read only so many days before prediction_time"
    )
    exclude: tuple[Predicate, ...] = Field(default=(), description="events that no model reads")

    @field_validator("exclude", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return _as_tuple(value)


class DelayConfig(Predicate):
    """Events that become known only later than they are stamped: after so many days, or when visit or day ends."""

    until: Literal["end_of_visit", "end_of_day"] | None = Field(
        default=None, description="known when the visit, or the day, ends"
    )
    days: float | None = Field(default=None, gt=0, le=MAX_DAYS, description="known so many days later")

    @model_validator(mode="after")
    def _exactly_one(self) -> DelayConfig:
        if (self.until is None) == (self.days is None):
            raise ValueError("give exactly one of until (end_of_visit, end_of_day), days")
        return self


class SplitByConfig(Strict):
    """Groups whose subjects must share a split: a column of the events, or the codes of a kind (a site, a practice)."""

    column: str | None = Field(default=None, description="a column of the events")
    code: str | CodeMatch | None = Field(default=None, description="codes of which each patient has one: the group")

    @model_validator(mode="after")
    def _exactly_one(self) -> SplitByConfig:
        if (self.column is None) == (self.code is None):
            raise ValueError("give exactly one of column, code")
        return self


class TaskConfig(Strict):
    """One time-to-event question over a MEDS dataset (a TASK.yaml)."""

    name: str = Field(min_length=1, pattern=r"^[A-Za-z0-9_.-]+$", description="letters, digits, `_ . -`")
    index: IndexConfig
    outcome: Predicate = Field(description="the event whose time is predicted")
    competing: dict[str, Predicate] = Field(
        default_factory=dict, description="events after which the outcome cannot come, by name"
    )
    exclude: tuple[Predicate, ...] = Field(
        default=(), description="events at or before prediction_time that exclude a patient"
    )
    require: RequireConfig = RequireConfig()
    washout: bool = Field(default=True, description="whether an outcome at or before prediction_time excludes")
    horizon_days: float | None = Field(
        default=None, gt=0, description="longest time asked about; without it, the longest that the data support"
    )
    follow_up: FollowUpConfig = FollowUpConfig()
    input: InputConfig = InputConfig()
    delay: tuple[DelayConfig, ...] = ()
    predict_at: Literal["index", "every_visit"] = Field(
        default="index", description="once, or at every visit from the index on"
    )
    evaluate_at: IndexConfig | None = None
    split_by: SplitByConfig | None = None
    subgroups: dict[str, Subgroup] = Field(
        default_factory=dict,
        description="names of groups in which figures are told apart, beside sex and age: codes (which of them), or a "
        "predicate (whether)",
    )

    @field_validator("exclude", "delay", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return _as_tuple(value)

    @model_validator(mode="after")
    def _causes_named(self) -> TaskConfig:
        for name in self.competing:
            if name == OUTCOME or not re.fullmatch(r"[A-Za-z0-9_]+", name):
                raise ValueError(f"a competing event cannot be named '{name}': letters, digits and _, not '{OUTCOME}'")
        return self

    @field_validator("subgroups")
    @classmethod
    def _columns_named(cls, value: dict[str, Any]) -> dict[str, Any]:
        for name in value:
            if name in ("subject_id", "prediction_time", "time", "code") or not re.fullmatch(r"[A-Za-z0-9_]+", name):
                raise ValueError(f"subgroups cannot be named '{name}': letters, digits and _, not a key of the cohort")
        return value

    @model_validator(mode="after")
    def _visits_possible(self) -> TaskConfig:
        if self.predict_at == "index":
            if self.evaluate_at is not None:
                raise ValueError("evaluate_at goes with predict_at: every_visit")
            return self
        if self.index.event in ("each", "last", "random"):
            raise ValueError("predict_at: every_visit begins at one time a subject: index {event: first}, not others")
        if self.evaluate_at is not None and self.evaluate_at.event in ("each", "last", "random"):
            raise ValueError("evaluate_at is a time that can be known when it comes: {event: first}, not others")
        if self.input.lookback_days is not None:
            raise ValueError("input.lookback_days does not go with predict_at: every_visit")
        return self

    @property
    def causes(self) -> tuple[str, ...]:
        """The names of events 1, 2, …: the outcome first, then the competing events in the task's order."""
        return (OUTCOME, *self.competing)


def _as_tuple(value: Any) -> Any:
    return value if isinstance(value, list | tuple) else (value,)
