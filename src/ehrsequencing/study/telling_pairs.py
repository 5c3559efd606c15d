"""Columns of the pairs of codes that tell of an outcome, beside the features that a study prepares."""

from __future__ import annotations

from dataclasses import replace

import polars as pl

from ehrsequencing.batches import SurvivalData
from ehrsequencing.features import FeatureSpec, build_pairs, widespread
from ehrsequencing.models.pair_search import LinearPart, find_pairs, searched_rows, still_better


def with_pairs(data: SurvivalData, spec: FeatureSpec, history: pl.DataFrame) -> tuple[SurvivalData, FeatureSpec]:
    """The same with the columns of the pairs that tell of the outcome on the training rows, where there are any."""
    if data.visits is not None or not spec.config.pair_codes:  # heads at every visit read no pairs, nor does wide then
        return data, spec
    searched = searched_rows(data)
    if not len(searched):
        return data, spec
    base = LinearPart.of(data)
    pairs = find_pairs(data, widespread(history, data.rows[searched], spec.config), searched, base)
    if not pairs:
        return data, spec
    columns = build_pairs(history, data.rows, pairs)
    if not still_better(data, base, columns.values):
        return data, spec
    return replace(data, features=data.features.beside(columns), pairs=pairs), replace(spec, pairs=pairs)
