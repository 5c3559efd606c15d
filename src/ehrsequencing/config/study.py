"""A whole study: where its records come from, how rows are divided, what is fitted and compared."""

from __future__ import annotations

import datetime as dt
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from ehrsequencing.config.base import Strict
from ehrsequencing.config.learning import BudgetConfig, FeaturesConfig, ModelConfig, PretrainConfig, TokensConfig
from ehrsequencing.config.strategy import StrategyConfig
from ehrsequencing.config.task import TaskConfig, When


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
    strategies: tuple[str | StrategyConfig, ...] = Field(
        default=("frozen", "frozen-ridge", "lora", "full", "from-scratch", "frozen-random"),
        description="what adapts the encoder: names, or a named one with changes (`{name: …, like: lora, …}`)",
    )
    baselines: tuple[str, ...] = Field(
        default=("kaplan-meier", "age-sex", "cox", "boosting", "wide", "lstm"), description="simple models, by name"
    )
    seeds: tuple[NonNegative, ...] = Field(default=(0, 1, 2), min_length=1, description="training seeds")
    ensemble: bool = Field(
        default=False, description="beside each strategy of several seeds, the mean of their hazards as a row"
    )
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
        own = [each if isinstance(each, str) else each.name for each in self.strategies]
        for name, given in (("strategies", own), ("baselines", self.baselines), ("seeds", self.seeds)):
            if len({str(each).lower() for each in given}) < len(given):
                raise ValueError(f"{name} names the same twice")
        if not self.strategies and not self.baselines:
            raise ValueError("name at least one strategy or baseline")
        return self

    @model_validator(mode="after")
    def _several_to_average(self) -> StudyConfig:
        if self.ensemble and len(self.seeds) < 2:
            raise ValueError("ensemble averages the seeds of a strategy: name two seeds or more")
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
