"""From fitted parts to a bundle: α chosen on raw logits, the result recalibrated once, last, both on tuning."""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Float64

from ehrsequencing.batches import SurvivalData
from ehrsequencing.bundle import Bundle, Row
from ehrsequencing.config import MIN_CELL, TRAIN, TUNING, TaskConfig
from ehrsequencing.evaluation.recalibration import Recalibration
from ehrsequencing.models.blend import choose_alpha
from ehrsequencing.models.footprint import footprint
from ehrsequencing.models.wide import RidgeHazard
from ehrsequencing.pairs import told
from ehrsequencing.study.data import Prepared
from ehrsequencing.training.finetune import FineTuned

WIDE = "wide"
Logits = Float64[np.ndarray, "N K *R"]


def blend_name(strategy: str) -> str:
    """The row that blends a strategy with the wide companion.

    >>> blend_name("lora")
    'lora+wide'
    """
    return f"{strategy}+{WIDE}"


def make_bundle(
    prepared: Prepared, task: TaskConfig, fitted: FineTuned, wide: RidgeHazard, facts: dict[str, Any]
) -> Bundle:
    """One bundle with its rows: blend (the default), deep alone, wide alone.

    A control has no blend, nor has a model of every visit: wide is fitted where the cohort is evaluated only.
    """
    data, strategy = prepared.data, fitted.strategy
    wide_logits = wide.logits(data.features.values)
    rows: dict[str, Row] = {}
    if strategy.kind == "strategy" and data.visits is None:
        alpha = choose_alpha_on_tuning(data, fitted.logits, wide_logits)
        rows[blend_name(strategy.name)] = calibrated_row(data, alpha, fitted.logits, wide_logits)
    rows[strategy.name] = calibrated_row(data, 1.0, fitted.logits, wide_logits)
    rows[WIDE] = calibrated_row(data, 0.0, fitted.logits, wide_logits)
    return Bundle(
        task=task,
        tokenizer=data.tokenizer,
        features=prepared.features,
        grid=data.grid,
        model=fitted.model,
        wide=wide,
        rows=rows,
        facts={**facts, **_facts(data, fitted), "casemix": prepared.casemix},
        history=[epoch.to_dict() for epoch in fitted.history],
    )


def choose_alpha_on_tuning(data: SurvivalData, deep: Logits, wide: Logits) -> float:
    """The weight of the deep part with the lowest tuning NLL, on raw logits."""
    at = data.index(TUNING)
    targets = data.targets(at)
    return choose_alpha(deep[at], wide[at], data.grid, targets.duration.numpy(), targets.event.numpy())


def calibrated_row(data: SurvivalData, alpha: float, deep: Logits, wide: Logits) -> Row:
    """The row with its recalibration fitted on the tuning split."""
    at = data.index(TUNING)
    targets = data.targets(at)
    raw = Row(alpha, None).logits(deep[at], wide[at])
    fitted = Recalibration.fit(raw, targets.duration.numpy(), targets.event.numpy(), data.grid)
    return Row(alpha, fitted)


def _facts(data: SurvivalData, fitted: FineTuned) -> dict[str, Any]:
    train = data.targets(data.index(TRAIN))
    tuning = fitted.tuning(data)
    text = ", ".join(f"{name.removeprefix('tuning_')} {value:.3f}" for name, value in tuning.items() if name != "score")
    return {
        "strategy": fitted.strategy.name,
        "predict_at": fitted.model.config.predict_at,
        "architecture": fitted.model.config.architecture,
        "attention": fitted.model.config.attention,
        "parameters": fitted.counts,
        "footprint": footprint(fitted.model),
        "seconds": fitted.seconds,
        "notes": [*fitted.notes, *told(data.pairs)],
        "tuning": tuning,
        "tuning_text": text,
        "trained_on": f"{_count(len(train))} patients with {_count(int((train.event == 1).sum()))} outcomes",
        "cohort_fingerprint": data.cohort_fingerprint,
        "token_fingerprint": data.tokens.fingerprint,
        "tokenizer_fingerprint": data.tokenizer.fingerprint,
        "grid_fingerprint": data.grid.fingerprint,
    }


def _count(n: int) -> str:
    return f"{n:,}" if n == 0 or n >= MIN_CELL else f"under {MIN_CELL}"
