"""Columns of the pairs of codes that tell of an outcome, beside the features that a study prepares."""

from __future__ import annotations

from dataclasses import replace

import polars as pl

from ehrsequencing.batches import SurvivalData
from ehrsequencing.features import FeatureSpec, build_pairs, widespread
from ehrsequencing.models.pair_search import find_pairs, searched_rows, still_better


def with_pairs(data: SurvivalData, spec: FeatureSpec, history: pl.DataFrame) -> tuple[SurvivalData, FeatureSpec]:
    """The same with the columns of the pairs that tell of the outcome on the training rows, where there are any."""
    if data.visits is not None or not spec.config.pair_codes:  # heads at every visit read no pairs, nor does wide then
        return data, spec
    searched = searched_rows(data)
    seen = widespread(history, data.rows[searched], spec.config)
    pairs = find_pairs(data, seen, searched, spec.config.recency_days)
    if not pairs:
        return data, spec
    columns = build_pairs(history, data.rows, pairs, spec.config)
    if not still_better(data, columns.values):
        return data, spec
    return replace(data, features=data.features.beside(columns), pairs=pairs), replace(spec, pairs=pairs)
