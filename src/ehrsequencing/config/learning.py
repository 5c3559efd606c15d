"""How histories are read, and how models are made and trained: every default."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from ehrsequencing.config.base import Strict


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
    pair_codes: int = Field(
        default=100, ge=0, le=500, description="so many widespread codes are searched for telling pairs; 0: none"
    )


class ModelConfig(Strict):
    """The encoder's size; single numbers override it."""

    size: Literal["small", "medium", "large", "base"] = Field(default="small", description="widths and layers by name")
    architecture: Literal["behrt", "hierarchical"] = Field(
        default="hierarchical",
        description="hierarchical pools each visit by attention and attends to visits; behrt attends to all tokens",
    )
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

    epochs: int = Field(default=20, ge=1, description="passes over the records")
    max_steps: int | None = Field(
        default=None, ge=1, description="at most so many optimiser steps in all, the last pass cut short"
    )
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
        default=(), description="codes that time-to-event, next-visit and record-summary never ask for"
    )
    exclude_outcome: bool = Field(
        default=True, description="nor the codes of the task's outcome and competing events: they would be labels"
    )
    validation_fraction: float = Field(
        default=0.1, gt=0, lt=1, description="share of the subjects kept to choose the epoch"
    )
    validation_subjects: int = Field(default=10_000, ge=1, description="at most so many subjects are kept for it")
    optimizer: OptimizerConfig = OptimizerConfig(learning_rate=2e-3, weight_decay=1e-2)


class BudgetConfig(Strict):
    """Departures from the recipe, printed wherever they bite."""

    max_epochs: int | None = Field(default=None, ge=1, description="at most so many epochs, where the recipe has more")
    patience: int | None = Field(default=None, ge=1, description="another patience than the recipe's")
