"""Every setting and its default, validated; unknown keys are refused with the nearest known one."""

from __future__ import annotations

import datetime as dt
import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationError,
    field_validator,
    model_validator,
)

from ehrsequencing.errors import EhrError, Exit, nearest

DAYS_PER_YEAR = 365.25
MAX_YEARS, MAX_DAYS = 200, 100_000
"""The longest spans that a task may name, in years and days: longer ones are slips, and past what dates can hold."""
MIN_CELL = 10
"""Counts of patients below this are suppressed in everything written for people."""
SPLIT_FRACTIONS = {"train": 0.70, "tuning": 0.15, "held_out": 0.15}
TRAIN, TUNING, HELD_OUT = "train", "tuning", "held_out"
CURVE_POINTS = 100
"""Equally spaced points on (0, tau] at which a prediction's survival curve is written."""
MIN_CURVE_POINTS = 20
"""Points reaching tau that somebody else's survival curve needs for figures that read the whole curve."""
MIN_CENSORING_SURVIVAL = 0.1
"""A horizon at which the censoring distribution is below this is refused."""
MIN_TRAIN_EVENTS, MIN_TUNING_EVENTS = 100, 20
TOKEN_BUDGET = 4_096
"""Padded tokens in one micro-batch: bounds memory, never the size of an optimiser step."""
SUBJECTS_PER_SHARD = 2_000
"""Subjects in one file of a written dataset; what is in memory at once while converting."""
SAVE_SECONDS = 30.0
"""Seconds between two savings of a training run's state, at least."""


class Strict(BaseModel):
    """A frozen settings object that refuses keys it does not know."""

    model_config = ConfigDict(extra="forbid", frozen=True)


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


class TokensConfig(Strict):
    """How a history becomes tokens; the same for every split and strategy."""

    max_tokens: int = Field(default=512, ge=8, description="tokens of a history; the most recent whole visits are kept")
    min_subjects: int = Field(default=5, ge=1, description="a code needs this many training subjects to get an id")
    max_codes: int = Field(default=20_000, ge=1, description="at most so many codes, the most widespread")
    visit_column: str | None = Field(
        default=None, description="the events' column whose values are visits; without it, calendar days"
    )
    min_values: int = Field(default=20, ge=1, description="a code needs this many training values to carry values")
    value_clip: float = Field(default=4.0, gt=0, description="largest absolute standardised value")


class FeaturesConfig(Strict):
    """The count-recency-value matrix that the wide model and the baselines read."""

    min_subjects: int = Field(default=10, ge=1, description="a column needs this many training subjects")
    max_columns: int = Field(default=4_000, ge=8, description="at most so many columns")
    recency_days: float = Field(default=365.0, gt=0, description="recency is exp(-days since the last / this)")
    trend_days: float = Field(default=30.0, gt=0, description="a trend needs values at least this far apart")
    value_clip: float = Field(default=4.0, gt=0, description="largest absolute standardised value")


class ModelConfig(Strict):
    """The encoder's size; single numbers override it."""

    size: Literal["small", "medium", "large", "base"] = Field(default="small", description="widths and layers by name")
    dropout: float = Field(default=0.1, ge=0, lt=1, description="share of activations dropped in training")
    code_dropout: float = Field(
        default=0.3, ge=0, lt=1, description="mean share of a record's codes hidden from each pass of fine-tuning"
    )
    attention: Literal["bidirectional", "block_causal"] = Field(
        default="bidirectional", description="block_causal lets a token see its own and earlier visits only"
    )
    code_vectors: str | None = Field(
        default=None, description="a file of code vectors (parquet or safetensors) that code embeddings start from"
    )


class OptimizerConfig(Strict):
    """AdamW with linear warm-up and cosine decay."""

    learning_rate: float = Field(default=1e-3, gt=0, description="at its highest")
    weight_decay: float = Field(default=1e-5, ge=0, description="of weights, not of biases, norms and embeddings")
    warmup_fraction: float = Field(default=0.1, ge=0, lt=1, description="share of the steps in which the rate rises")
    clip_norm: float = Field(default=1.0, gt=0, description="largest norm of a gradient")


PretrainingObjectiveName = Literal["masked-codes", "masked-values", "next-visit", "time-to-event", "record-summary"]


class PretrainConfig(Strict):
    """What the encoder learns before any outcome is shown to it: a mix of objectives, trained jointly."""

    epochs: int = Field(default=10, ge=1, description="passes over the records")
    batch_size: int = Field(default=16, ge=1, description="records a step")
    objectives: dict[PretrainingObjectiveName, Annotated[float, Field(gt=0, allow_inf_nan=False)]] = Field(
        default={"masked-codes": 1.0, "record-summary": 1.0},
        min_length=1,
        description="what is learned jointly, by name, and its weight",
    )
    mask_fraction: float = Field(default=0.15, gt=0, lt=1, description="share of codes to guess")
    cut_fraction: float = Field(
        default=0.5,
        ge=0,
        le=1,
        description="share of records cut at a random time; all are, after a random visit, where an objective predicts "
        "what comes next from a bidirectional encoder",
    )
    n_codes: int = Field(default=64, ge=1, description="time-to-event: so many codes, those of most training subjects")
    n_pieces: int = Field(default=8, ge=1, description="time-to-event: pieces of constant hazard")
    rank: int = Field(default=32, ge=1, description="time-to-event: rank of the head")
    summary_codes: int = Field(
        default=512, ge=1, description="record-summary: so many codes, those of most training subjects"
    )
    visits_per_record: int = Field(
        default=8, ge=1, description="visits of a record after which the future is predicted, under block_causal"
    )
    exclude_codes: tuple[str, ...] = Field(
        default=(), description="codes that time-to-event and next-visit never predict"
    )
    exclude_outcome: bool = Field(
        default=True, description="nor the codes of the task's outcome and competing events: they would be labels"
    )
    validation_fraction: float = Field(
        default=0.1, gt=0, lt=1, description="share of the subjects kept to choose the epoch"
    )
    optimizer: OptimizerConfig = OptimizerConfig(learning_rate=2e-3, weight_decay=1e-2)


class SimulateConfig(Strict):
    """The built-in simulator."""

    patients: int = Field(default=5_000, ge=1, description="how many")
    seed: int = Field(default=0, ge=0, description="of everything random")
    noise_codes: int = Field(default=300, ge=0, description="codes that mean nothing")
    competing_death: bool = Field(default=False, description="patients may die before the outcome")
    question: Literal["index", "every_visit"] = Field(
        default="index", description="one prediction a patient, or one at every visit"
    )
    hospital: Literal["a", "b"] = Field(default="a", description="b codes otherwise and has other patients")

    @model_validator(mode="after")
    def _possible(self) -> SimulateConfig:
        if self.question == "every_visit" and self.competing_death:
            raise ValueError("question: every_visit goes without competing_death")
        if self.question == "every_visit" and self.hospital != "a":
            raise ValueError("question: every_visit is of hospital a only")
        return self


class TablesConfig(Strict):
    """Long tables and the MAPPING.yaml that explains their columns."""

    src: str = Field(description="folder of tables")
    mapping: str = Field(description="a MAPPING.yaml")


class DataConfig(Strict):
    """Where the records come from: a MEDS folder, a raw export to convert, or the simulator."""

    meds: str | None = Field(default=None, description="a MEDS dataset")
    synthea: str | None = Field(default=None, description="folder of Synthea's CSV files")
    omop: str | None = Field(default=None, description="folder of OMOP CDM tables")
    csv: TablesConfig | None = None
    simulate: SimulateConfig | None = None

    @model_validator(mode="before")
    @classmethod
    def _bare_path(cls, data: Any) -> Any:
        return {"meds": data} if isinstance(data, str) else data

    @model_validator(mode="after")
    def _exactly_one(self) -> DataConfig:
        if sum(getattr(self, name) is not None for name in type(self).model_fields) != 1:
            raise ValueError(f"give exactly one of {', '.join(type(self).model_fields)}")
        return self


class BudgetConfig(Strict):
    """Departures from the recipe, printed wherever they bite."""

    max_epochs: int | None = Field(default=None, ge=1, description="at most so many epochs, where the recipe has more")
    patience: int | None = Field(default=None, ge=1, description="another patience than the recipe's")


class CalendarConfig(Strict):
    """Splits by prediction_time: training before ``tuning``, tuning before ``held_out``, held-out from then on."""

    tuning: When = Field(description="tuning rows begin here")
    held_out: When = Field(description="held-out rows begin here")

    @model_validator(mode="after")
    def _in_order(self) -> CalendarConfig:
        if as_moment(self.tuning) >= as_moment(self.held_out):
            raise ValueError("tuning must come before held_out")
        return self


def as_moment(when: dt.date | dt.datetime) -> dt.datetime:
    """A date is the midnight at which that day begins; a date and time is itself."""
    return when if isinstance(when, dt.datetime) else dt.datetime(when.year, when.month, when.day)


class SplitConfig(Strict):
    """How rows are divided: by one fixed seed, apart from the training seeds, or by the calendar."""

    seed: int = Field(default=0, ge=0, description="of the hash that divides subjects")
    calendar: CalendarConfig | None = None


NonNegative = Annotated[int, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]


class StudyConfig(Strict):
    """A whole run: data, task, models, comparison (a STUDY.yaml)."""

    name: str = Field(min_length=1, pattern=r"^[A-Za-z0-9_.-]+$", description="letters, digits, `_ . -`")
    data: DataConfig
    task: TaskConfig | str = Field(description="a task, or a TASK.yaml beside the data or the study")
    split: SplitConfig = SplitConfig()
    folds: int | None = Field(
        default=None, ge=2, le=20, description="cross-validation with so many folds instead of one split"
    )
    labelled: int | None = Field(default=None, ge=1, description="limits train + tuning")
    tokens: TokensConfig = TokensConfig()
    features: FeaturesConfig = FeaturesConfig()
    pretrain: PretrainConfig = PretrainConfig()
    model: ModelConfig = ModelConfig()
    strategies: tuple[str, ...] = Field(
        default=("frozen", "frozen-ridge", "lora", "full", "from-scratch", "frozen-random"),
        description="what adapts the encoder, by name",
    )
    baselines: tuple[str, ...] = Field(
        default=("kaplan-meier", "age-sex", "cox", "boosting", "wide", "lstm"), description="simple models, by name"
    )
    seeds: tuple[NonNegative, ...] = Field(default=(0, 1, 2), min_length=1, description="training seeds")
    horizons_days: tuple[Positive, ...] = Field(
        default=(),
        description="days at which errors and calibration are reported; without any, one year and the horizon",
    )
    budget: BudgetConfig = BudgetConfig()
    bootstrap: int = Field(default=1_000, ge=0, description="resamples for the intervals")
    explain: int = Field(
        default=64, ge=0, description="so many held-out patients' predictions are attributed to their codes; 0: none"
    )

    @model_validator(mode="after")
    def _distinct(self) -> StudyConfig:
        for name in ("strategies", "baselines", "seeds"):
            given = getattr(self, name)
            if len(set(given)) < len(given):
                raise ValueError(f"{name} names the same twice")
        if not self.strategies and not self.baselines:
            raise ValueError("name at least one strategy or baseline")
        return self

    @model_validator(mode="after")
    def _no_calendar_folds(self) -> StudyConfig:
        if self.folds is not None and self.split.calendar is not None:
            raise ValueError("folds divide by hash: they do not go with split.calendar")
        if isinstance(self.task, TaskConfig) and self.task.split_by and self.split.calendar:
            raise ValueError("split_by divides by hash: it does not go with split.calendar")
        return self

    @model_validator(mode="after")
    def _no_labelled_folds(self) -> StudyConfig:
        if self.folds is not None and self.labelled is not None:
            raise ValueError("labelled limits train + tuning of one split: it does not go with folds")
        return self


Config = TypeVar("Config", bound=Strict)


def parse(model: type[Config], data: Any, where: str) -> Config:
    """Validate ``data`` as ``model``; the first problem is told as an EhrError (exit 10) with the nearest known key."""
    if not isinstance(data, dict):
        raise EhrError(
            f"expected a mapping of settings, found {type(data).__name__}",
            where,
            f"known keys: {', '.join(model.model_fields)}",
            code=Exit.CONFIG,
        )
    try:
        return model.model_validate(data)
    except ValidationError as error:
        raise _explain(error, model, where) from None


class _OnceOnly(yaml.SafeLoader):
    """Plain data only, like the safe loader; a key given twice is refused rather than overwritten."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        twice = sorted({key for key in keys if keys.count(key) > 1})
        if twice:
            raise yaml.constructor.ConstructorError(None, None, f"'{twice[0]}' stands twice", node.start_mark)
        return super().construct_mapping(node, deep)


def load_yaml(model: type[Config], path: Path | str) -> Config:
    """Read a YAML file into ``model``; environment variables in it expand, and paths in ``task`` stay as written."""
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise EhrError("the file does not exist", str(path), "check the path", code=Exit.CONFIG) from None
    except (OSError, UnicodeDecodeError) as error:
        raise EhrError(f"the file cannot be read: {error}", str(path), "check the file", code=Exit.CONFIG) from None
    try:
        data = yaml.load(os.path.expandvars(text), _OnceOnly)
    except (yaml.YAMLError, ValueError) as error:
        raise EhrError(f"not valid YAML: {error}", str(path), "mend the syntax", code=Exit.CONFIG) from None
    return parse(model, data, str(path))


def load_task(path: Path | str) -> TaskConfig:
    """Read a TASK.yaml."""
    return load_yaml(TaskConfig, path)


def _explain(error: ValidationError, model: type[Strict], where: str) -> EhrError:
    problem = max(error.errors(), key=_tells_most)
    key = ".".join(str(part) for part in problem["loc"] if not _is_branch(part))
    if problem["type"] == "extra_forbidden":
        known = _known_keys(model, problem["loc"][:-1])
        close = nearest(str(problem["loc"][-1]), known, 1)
        fix = f"did you mean '{close[0]}'?" if close else f"known keys: {', '.join(known)}"
        return EhrError(f"unknown key '{key}'", where, fix, code=Exit.CONFIG)
    found = "" if problem["type"] == "missing" or not key else f" (found {problem['input']!r})"
    message = problem["msg"].removeprefix("Value error, ")
    return EhrError(f"{key or 'settings'}: {message}{found}", where, "correct this setting", code=Exit.CONFIG)


def _tells_most(problem: Any) -> tuple[bool, bool, int]:
    """Of the problems with each of several possible forms, that of the form which was meant: found deepest.

    An unknown key goes before a missing one: it is mostly that very key, misspelt.
    """
    another_form = problem["type"] in (
        "string_type",
        "literal_error",
        "model_type",
        "dict_type",
        "model_attributes_type",
    )
    return not another_form, problem["type"] != "missing", len(problem["loc"])


def _is_branch(part: Any) -> bool:
    """True where a part of a problem's place names one of several possible forms, not a key."""
    return isinstance(part, str) and (part == "str" or "[" in part or _is_model(part))


def _is_model(part: Any) -> bool:
    model = globals().get(part)
    return isinstance(model, type) and issubclass(model, BaseModel)


def _known_keys(model: type[Strict], path: tuple[Any, ...]) -> list[str]:
    current: Any = model
    for part in path:
        if _is_model(part):
            current = globals()[part]
            continue
        field = getattr(current, "model_fields", {}).get(part)
        if field is None:
            continue
        candidates = [field.annotation, *getattr(field.annotation, "__args__", ())]
        models = [c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)]
        current = models[0] if models else current
    return [field.alias or name for name, field in current.model_fields.items()]
