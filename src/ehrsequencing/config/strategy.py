"""A strategy of one's own: a named one with some of its settings changed."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from ehrsequencing.config.base import Strict

Rate = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class StrategyConfig(Strict):
    """A named strategy, ``like``, with what is set here changed (`ehrseq finetune --set`, or a study's entry)."""

    name: str = Field(
        min_length=1,
        max_length=64,
        pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$",
        description="of its own: letters, digits, `_ . -`",
    )
    like: str = Field(description="the strategy that it changes, by name")
    lora_rank: int | None = Field(default=None, ge=1, description="rank of the adapters")
    lora_alpha: Rate | None = Field(default=None, description="scale of the adapters; twice the rank unless given")
    lora_dropout: float | None = Field(default=None, ge=0, lt=1, description="dropout on the adapters' input")
    lora_targets: str | tuple[str, ...] | None = Field(
        default=None, description="attention, feed_forward, attention+feed_forward, or names of layers"
    )
    lora_rank_stabilised: bool | None = Field(default=None, description="scale by alpha over the root of the rank")
    lora_dora: bool | None = Field(default=None, description="adapters with trained magnitudes (DoRA)")
    train_beside: tuple[Literal["embeddings", "norms"], ...] | None = Field(
        default=None, description="what is trained beside adapters: embeddings, norms"
    )
    head: Literal["mlp", "linear", "residual", "best"] | None = Field(
        default=None, description="mlp, linear (convex), residual (both), or best (of mlp and linear, on tuning)"
    )
    hazards: Literal["proportional", "per_bin"] | None = Field(
        default=None, description="whether the bins share what the features say"
    )
    learning_rate: Rate | None = Field(default=None, description="of the head and adapters, at its highest")
    learning_rates: tuple[Rate, ...] | None = Field(
        default=None, min_length=1, description="several to try; the lowest tuning likelihood loss is kept"
    )
    encoder_rate: float | None = Field(
        default=None, gt=0, le=1, description="the encoder's learning rate as a share of the head's"
    )
    unfreeze_every: int | None = Field(
        default=None, ge=0, description="epochs until the next layer, from the top, begins to move; 0: all at once"
    )

    @model_validator(mode="after")
    def _one_rate(self) -> StrategyConfig:
        if self.learning_rate is not None and self.learning_rates is not None:
            raise ValueError("give learning_rate or learning_rates, not both")
        return self

    @model_validator(mode="after")
    def _distinct_rates(self) -> StrategyConfig:
        if self.learning_rates is not None and len(set(self.learning_rates)) < len(self.learning_rates):
            raise ValueError("learning_rates names the same twice")
        return self

    @model_validator(mode="before")
    @classmethod
    def _one_is_a_list(cls, data: Any) -> Any:
        """``train_beside: norms`` and ``learning_rates: 0.001`` are lists of one."""
        lists = ("train_beside", "learning_rates")
        if not isinstance(data, dict):
            return data
        return {k: [v] if k in lists and isinstance(v, str | int | float) else v for k, v in data.items()}

    @property
    def changes(self) -> dict[str, Any]:
        """What is set, by name."""
        given = self.model_dump(exclude={"name", "like"}, exclude_none=True)
        return {name: given[name] for name in type(self).model_fields if name in given}
