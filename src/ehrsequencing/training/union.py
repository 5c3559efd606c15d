"""The rows that several outcomes ask about, each once: what one encoder reads for all of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
import torch
from jaxtyping import Float32, Int64
from torch import Tensor

from ehrsequencing.batches import SurvivalData
from ehrsequencing.errors import EhrError, Exit
from ehrsequencing.models.behrt_survival import BEHRTForSurvival
from ehrsequencing.models.forward import encode
from ehrsequencing.tokens import TokenStore
from ehrsequencing.training.finetune import FeatureCache
from ehrsequencing.training.resume import module_digest

ALIKE = "prepare all of them with one encoder, under tasks with the same input and delay"


@dataclass(frozen=True, eq=False)
class UnionRows:
    """N distinct predictions (a subject at a prediction_time), ascending, and where each outcome's own rows are.

    Attributes:
        places: of row i of the outcome's data in ``tokens``, by the outcome's name.
    """

    tokens: TokenStore
    places: Mapping[str, Int64[np.ndarray, " n"]]

    def __len__(self) -> int:
        return len(self.tokens)

    @classmethod
    def of(cls, datas: Mapping[str, SurvivalData]) -> UnionRows:
        """The union of the rows of ``datas``.

        Raises:
            EhrError: another tokenizer, or other tokens of the same prediction, in two of them (exit 10).
        """
        stores = [data.tokens for data in datas.values()]
        keys = np.concatenate([_keys(store) for store in stores])
        _, first, place = np.unique(keys, axis=0, return_index=True, return_inverse=True)
        begins = np.cumsum([0, *(len(store) for store in stores)])
        tokens = _gather(stores, first, begins)
        found = cls(tokens, dict(zip(datas, np.split(place.reshape(-1), begins[1:-1]), strict=True)))
        for name, data in datas.items():
            if found.tokens.take(found.places[name]).fingerprint != data.tokens.fingerprint:
                what = f"the records of '{name}' are cut otherwise than those of '{next(iter(datas))}'"
                raise EhrError(what, "several outcomes at once", ALIKE, code=Exit.CONFIG)
        return found


def _keys(store: TokenStore) -> Int64[np.ndarray, "n 2"]:
    """Subject and prediction_time, in microseconds, of every row."""
    return np.stack([store.subject_id, store.prediction_time.astype("datetime64[us]").astype(np.int64)], axis=1)


def _gather(stores: Sequence[TokenStore], rows: Int64[np.ndarray, " n"], begins: Int64[np.ndarray, " s"]) -> TokenStore:
    """Rows numbered through all stores, the first of each beginning at ``begins``; no store is copied whole."""
    ordered = np.sort(rows)
    parts = np.split(ordered, np.searchsorted(ordered, begins[1:-1]))
    joined = TokenStore.joined([store.take(part - at) for store, part, at in zip(stores, parts, begins, strict=False)])
    return joined.take(np.searchsorted(ordered, rows))


class SharedFeatures:
    """Pooled features of the union's rows: the encoder runs once for all outcomes, as long as it has not moved."""

    def __init__(self, rows: UnionRows) -> None:
        self.rows = rows
        self.encoder_passes = 0
        self._kept: dict[str, Float32[Tensor, "N F"]] = {}

    def all(self, model: BEHRTForSurvival) -> Float32[Tensor, "N F"]:
        """Of every row, under the model's encoder, in eval mode."""
        key = f"{module_digest(model.behrt)}/{model.config.attention}"
        if key not in self._kept:
            self._kept[key] = encode(model, self.rows.tokens, np.arange(len(self.rows)))
            self.encoder_passes += 1
        return self._kept[key]

    def of(self, name: str) -> OutcomeFeatures:
        """The cache that one outcome's fine-tuning reads."""
        return OutcomeFeatures(self, name)


class OutcomeFeatures(FeatureCache):
    """One outcome's rows of shared features."""

    def __init__(self, shared: SharedFeatures, name: str) -> None:
        super().__init__()
        self._shared, self._place = shared, torch.from_numpy(shared.rows.places[name])

    def pooled(self, model: BEHRTForSurvival, data: SurvivalData) -> Float32[Tensor, "n F"]:
        """Pooled vectors of every row of the outcome's own ``data``."""
        return self._shared.all(model)[self._place]


def refuse_unlike(datas: Mapping[str, SurvivalData]) -> None:
    """One encoder can learn from all of ``datas`` without a patient of one being held out of another.

    Raises:
        EhrError: no outcome, an unfit name, predictions at every visit (exit 10); a subject in two splits (exit 15).
    """
    where = "several outcomes at once"
    if not datas:
        raise EhrError("no outcome was given", where, "give at least one", code=Exit.CONFIG)
    unfit = [name for name in datas if not name or "/" in name]
    if unfit:
        raise EhrError(f"'{unfit[0]}' cannot name an outcome", where, "give it a name without '/'", code=Exit.CONFIG)
    at_visits = [name for name, data in datas.items() if data.visits is not None]
    if at_visits:
        what = f"'{at_visits[0]}' is predicted at every visit; several outcomes are predicted at the index only"
        fix = "set predict_at: index, or fine-tune this outcome by itself"
        raise EhrError(what, where, fix, code=Exit.CONFIG)
    refuse_crossed(datas)


def refuse_crossed(datas: Mapping[str, SurvivalData]) -> None:
    """EhrError (exit 15) where a subject is in one split for one outcome and in another for another."""
    each = [data.rows.select("subject_id", "split", of=pl.lit(name)).unique() for name, data in datas.items()]
    splits = pl.concat(each).sort("subject_id", "of").group_by("subject_id", maintain_order=True).agg("split", "of")
    crossed = splits.filter(pl.col("split").list.n_unique() > 1)
    if crossed.height:
        one = crossed.row(0, named=True)
        told = ", ".join(f"{split} in '{name}'" for split, name in zip(one["split"], one["of"], strict=True))
        what = f"{crossed.height:,} subjects are in several splits, one of them {told}"
        fix = "divide all cohorts by one seed and one split_by; by the calendar, let all tasks have one index"
        raise EhrError(what, "several outcomes at once", fix, code=Exit.LEAKAGE)
