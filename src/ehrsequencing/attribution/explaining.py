"""``explain``: a bundle's predictions of some patients, attributed to their codes and visits."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from ehrsequencing.attribution.attributions import Attributions
from ehrsequencing.attribution.deep import BASELINES, BATCH_FIELDS, DeepInput, deep_logits, reading
from ehrsequencing.attribution.gradients import POINTS, STEP_BUDGET, TOLERANCE, Integrated, integrate
from ehrsequencing.attribution.records import (
    Records,
    feature_attributions,
    merged,
    pair_attributions,
    sample,
    token_attributions,
)
from ehrsequencing.attribution.risk import RowRisk, WideLogits
from ehrsequencing.batches import Batch, collate, micro_batches
from ehrsequencing.bundle import Bundle
from ehrsequencing.cohort import prediction_rows
from ehrsequencing.errors import EhrError, Exit
from ehrsequencing.events import MedsDataset
from ehrsequencing.features import RECORD_COLUMNS
from ehrsequencing.progress import Progress, listening, tracked
from ehrsequencing.tokens import TokenStore

TITLE = "explaining patients"
WIDE_WORDS = "the average training patient's age and length of record, without codes (wide part)"
WIDE_ROWS = 256
"""Patients at once where nothing but the wide part is read."""


def explain(
    bundle: Bundle,
    dataset: MedsDataset,
    rows: pl.DataFrame | None = None,
    *,
    row: str | None = None,
    horizon: float | None = None,
    labels: Path | None = None,
    patients: int | None = None,
    seed: int = 0,
    baseline: str = "mask",
    tolerance: float = TOLERANCE,
) -> Attributions:
    """Attributions of the risk by ``horizon`` to the codes and visits of patients, by integrated gradients.

    They tell what the model's prediction rests on, not what causes the outcome; codes that occur together share. Of a
    patient they sum to risk − baseline_risk, within ``tolerance`` (``completeness`` tells how near).

    The risk is 1 − S(horizon), or the outcome's cumulative incidence where causes compete: what people are told. It is
    bounded, so that in a patient at high risk all codes get less than they would alone; on the scale of the log
    cumulative hazard a linear model's attributions would not depend on each other.

    The deep part is compared with the same patient at the same visits whose codes are all unknown, ``[MASK]``, which
    is what pretraining taught the encoder to read as "something is here, and you are not told what"; age and times
    are the same in both, so nothing is attributed to them. The wide part is compared with a patient who has none of
    the codes (a count of nothing is 0, unlike a mean of nobody), of the average training patient's age and length of
    record: these two are reported as the codes ``age`` and ``record``.

    Args:
        rows: ``subject_id, prediction_time`` to explain; None: everybody the task may ask about, or ``labels``.
        row: which of the bundle's rows; None is its default.
        horizon: days, at most the bundle's τ, which is the default.
        patients: at most so many subjects, drawn by hash of ``seed``; of each subject the latest row is explained.
        baseline: which content stands for unknown codes (``BASELINES``).
        tolerance: of the sum, in risk.

    Raises:
        EhrError: exit 2 for an unknown row or a horizon past τ; exit 12 where there is nobody.
    """
    name, chosen = bundle.row(row)
    if rows is None:
        column = bundle.tokenizer.config.visit_column
        rows = prediction_rows(dataset, bundle.task, labels, visit_column=column)
    rows = sample(rows, patients, seed)
    if not rows.height:
        raise EhrError("there is nobody to explain", "rows", "give at least one row", code=Exit.COHORT)
    horizon = bundle.grid.tau if horizon is None else float(horizon)
    explained = _Explained.of(bundle, RowRisk.of(chosen, bundle.grid, horizon), baseline, tolerance)
    records = Records.read(bundle, dataset, rows, chosen)
    people, table = explained.attribute(records)
    return Attributions(
        model=name,
        seed=int(bundle.facts.get("seed", 0)),
        horizon=horizon,
        baseline="; ".join(explained.words),
        patients=people,
        table=table,
        descriptions=_descriptions(dataset),
    )


def explain_rows(
    bundle: Bundle,
    dataset: MedsDataset,
    rows: pl.DataFrame,
    *,
    max_patients: int = 100,
    seed: int = 0,
    row: str | None = None,
    horizon: float | None = None,
    tolerance: float = 2 * TOLERANCE,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """The content of ``attributions.json`` for at most ``max_patients`` of ``rows`` (a cohort's held-out rows, say).

    As ``explain``, to twice its tolerance: cheap enough for every study. ``progress`` hears how far it is; None:
    whoever listens already.
    """
    asked = {"row": row, "horizon": horizon, "patients": max_patients, "seed": seed, "tolerance": tolerance}
    with contextlib.nullcontext() if progress is None else listening(progress):
        return explain(bundle, dataset, rows, **asked).to_json()  # type: ignore[arg-type]


def _descriptions(dataset: MedsDataset) -> dict[str, str]:
    return dict(dataset.codes().drop_nulls().select("code", "description").iter_rows())


@dataclass(frozen=True)
class _Explained:
    """A row of a bundle as a function that captum can differentiate."""

    bundle: Bundle
    risk: RowRisk
    wide: WideLogits
    baseline: str
    tolerance: float

    @classmethod
    def of(cls, bundle: Bundle, risk: RowRisk, baseline: str, tolerance: float) -> _Explained:
        return cls(bundle, risk, WideLogits.of(bundle.wide), baseline, tolerance)

    @property
    def has_deep(self) -> bool:
        return self.risk.alpha > 0

    @property
    def has_wide(self) -> bool:
        return self.risk.alpha < 1

    @property
    def words(self) -> list[str]:
        """What patients are compared with."""
        return [BASELINES[self.baseline].words] * self.has_deep + [WIDE_WORDS] * self.has_wide

    def __call__(self, *tensors: Tensor) -> Float64[Tensor, " B"]:
        """The risk, from content and pairs, and the wide columns (what there is of the two), then the batch's
        tensors."""
        left = list(tensors)
        content, pairs = (left.pop(0), left.pop(0)) if self.has_deep else (None, None)
        columns = left.pop(0) if self.has_wide else None
        deep = None
        if content is not None and pairs is not None:
            deep = deep_logits(self.bundle.model, content, Batch(**dict(zip(BATCH_FIELDS, left, strict=True))), pairs)
        return self.risk(deep, None if columns is None else self.wide(columns))

    def attribute(self, records: Records) -> tuple[pl.DataFrame, pl.DataFrame]:
        """``Attributions.patients`` and ``Attributions.table`` of these records."""
        n = len(records)
        value, start, steps = np.zeros(n), np.zeros(n), np.zeros(n, dtype=np.int64)
        wide = np.zeros((n, len(self.wide.columns)))
        deep = np.zeros(0 if records.tokens is None else len(records.tokens.code))
        pairs = np.zeros((n, len(self.bundle.model.config.pairs)))
        with reading(self.bundle.model):
            for at, found in self._integrated(records):
                value[at], start[at], steps[at] = found.value.numpy(), found.start.numpy(), found.steps.numpy()
                parts = list(found.parts)
                if records.tokens is not None:
                    deep[_token_places(records.tokens, at)] = _per_token(parts.pop(0), records.tokens, at)
                    pairs[at] = parts.pop(0).numpy()
                if records.features is not None:
                    wide[at] = parts.pop(0).numpy()
        if records.tokens is not None:
            deep += pair_attributions(records.tokens, self.bundle.model.config.pairs, pairs)
        people = records.rows.with_columns(risk=value, baseline_risk=start, steps=steps)
        return people, self._table(records, deep, wide)

    def _integrated(self, records: Records) -> Iterator[tuple[Int64[np.ndarray, " b"], Integrated]]:
        """Some patients at a time, of similar length."""
        if records.tokens is None:
            parts = [np.arange(i, min(i + WIDE_ROWS, len(records))) for i in range(0, len(records), WIDE_ROWS)]
        else:
            parts = micro_batches(records.tokens, np.arange(len(records)), STEP_BUDGET // POINTS)
        for at in tracked(parts, TITLE, [float(len(part)) for part in parts]):
            inputs, baselines, beside, at_once = self._tensors(records, at)
            yield at, integrate(self, inputs, baselines, beside, tolerance=self.tolerance, at_once=at_once)

    def _tensors(
        self, records: Records, at: Int64[np.ndarray, " b"]
    ) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...], tuple[Tensor, ...], int | None]:
        inputs: list[Tensor] = []
        baselines: list[Tensor] = []
        beside: tuple[Tensor, ...] = ()
        at_once = None
        if records.tokens is not None:
            model = self.bundle.model
            vector = BASELINES[self.baseline].vector(model.behrt.embeddings, records.tokens).detach()
            deep = DeepInput.of(model, collate(records.tokens, at), vector)
            inputs, beside = [deep.content, deep.pairs], deep.beside
            baselines = [deep.baseline, torch.zeros_like(deep.pairs)]
            at_once = STEP_BUDGET // deep.content.shape[1]
        if records.features is not None:
            x = torch.from_numpy(records.features.values[at][:, self.wide.columns].astype(np.float64))  # [b,u]
            whole = torch.from_numpy(self.wide.columns < len(RECORD_COLUMNS))  # [u]
            inputs.append(x)
            baselines.append(torch.where(whole, self.wide.mean, torch.zeros_like(x)))
        return tuple(inputs), tuple(baselines), beside, at_once

    def _table(
        self, records: Records, deep: Float64[np.ndarray, " T"], wide: Float64[np.ndarray, "n u"]
    ) -> pl.DataFrame:
        parts = []
        if records.tokens is not None:
            parts.append(token_attributions(records.tokens, self.bundle.tokenizer, deep))
        if records.features is not None:
            about = records.features.names, self.wide.columns, wide, self.bundle.features.pairs
            parts.append(feature_attributions(records, *about))
        keys = records.rows.select("subject_id", "prediction_time").with_row_index("row").cast({"row": pl.Int64})
        return merged(parts).join(keys, on="row", how="left", maintain_order="left").select(
            "subject_id", "prediction_time", "code", "days_before", "attribution"
        )  # fmt: skip


def _token_places(store: TokenStore, at: Int64[np.ndarray, " b"]) -> Int64[np.ndarray, " t"]:
    """Places in the store's flat arrays of the tokens of some rows, row after row."""
    return np.concatenate([np.arange(store.offsets[i], store.offsets[i + 1]) for i in at])


def _per_token(part: Tensor, store: TokenStore, at: Int64[np.ndarray, " b"]) -> Float64[np.ndarray, " t"]:
    """Attributions to content [b, L, W], summed over its channels, of the real tokens row after row."""
    by_token = part.double().sum(dim=2).numpy()  # [b,L]
    return by_token[np.arange(by_token.shape[1]) < store.lengths[at][:, None]]
