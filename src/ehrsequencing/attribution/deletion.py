"""The deletion test: are the codes that attributions point at those that the model's prediction rests on?

After Samek et al. 2017 (IEEE TNNLS 28:2660): codes are taken out of records one share after the other, in the order of
their attribution, and the model predicts anew from what is left. Events are deleted from the history itself, before
tokens and features are made of it, so that no baseline is favoured.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
from jaxtyping import Float64

from ehrsequencing.attribution.attributions import OWN_WORDS, Attributions
from ehrsequencing.attribution.records import Records
from ehrsequencing.bundle import Bundle, Row
from ehrsequencing.cohort import cut
from ehrsequencing.config import TaskConfig
from ehrsequencing.events import BIRTH, MedsDataset
from ehrsequencing.models.forward import hazard_logits

SHARES = (0.1, 0.2, 0.35, 0.5)
ORDERS = ("top", "random", "bottom")
_KEYS = ("subject_id", "prediction_time")


@dataclass(frozen=True)
class Deletion:
    """The risk of n patients after a share of each one's codes was deleted.

    Attributes:
        shares: of a patient's distinct codes, ascending.
        risk: by order: ``top`` (the codes that raise the risk most first), ``random``, ``bottom``.
    """

    shares: tuple[float, ...]
    risk: Mapping[str, Float64[np.ndarray, "s n"]]

    def areas(self, higher: str = "bottom", lower: str = "top") -> Float64[np.ndarray, " n"]:
        """Of each patient the mean difference in risk between two orders over the shares; on average above 0 where
        attributions are faithful."""
        return (self.risk[higher] - self.risk[lower]).mean(axis=0)


def deletion_test(
    bundle: Bundle, dataset: MedsDataset, found: Attributions, *, shares: Sequence[float] = SHARES, seed: int = 0
) -> Deletion:
    """Delete what ``found`` names, and predict again with the same row of the bundle (of predictions at an index)."""
    chosen, rows = bundle.rows[found.model], found.patients.select(_KEYS)
    history = _readable(bundle, dataset, rows, bundle.task)
    ranked = _ranked(found, np.random.default_rng(seed))
    risk = {
        order: np.array([_risk(bundle, chosen, _without(history, ranked, order, share), found) for share in shares])
        for order in ORDERS
    }
    return Deletion(tuple(shares), risk)


def _readable(bundle: Bundle, dataset: MedsDataset, rows: pl.DataFrame, task: TaskConfig) -> pl.DataFrame:
    """The cut histories, with ``read_as``: the code that the tokenizer reads each event as."""
    column = bundle.tokenizer.config.visit_column
    history = cut(dataset.scan(), rows, task, visit_column=column).collect(engine="streaming")
    known = bundle.tokenizer.lookup(history["code"])
    names = pl.Series(bundle.tokenizer.codes, dtype=pl.String)[known["id"].cast(pl.Int64)]
    table = known.select("code").with_columns(read_as=names)
    return history.join(table, on="code", how="left", maintain_order="left")


def _ranked(found: Attributions, draw: np.random.Generator) -> pl.DataFrame:
    """``subject_id, prediction_time, code`` with the place of the code in each order, from 0 to under 1."""
    codes = found.by_patient().filter(~pl.col("code").is_in(list(OWN_WORDS)))
    codes = codes.with_columns(random=draw.permutation(codes.height))

    def place(by: pl.Expr) -> pl.Expr:
        return (by.rank("ordinal").over(_KEYS) - 1) / pl.len().over(_KEYS)

    value = pl.col("attribution")
    return codes.select(*_KEYS, "code", top=place(-value), random=place(pl.col("random")), bottom=place(value))


def _without(history: pl.DataFrame, ranked: pl.DataFrame, order: str, share: float) -> pl.DataFrame:
    """The histories without the codes of the first ``share`` in an order."""
    gone = ranked.filter(pl.col(order) < share).select(*_KEYS, "code")
    gone = gone.filter(pl.col("code") != BIRTH)
    left = history.join(gone, on=[*_KEYS, "code"], how="anti")
    return left.join(gone.rename({"code": "read_as"}), on=[*_KEYS, "read_as"], how="anti").drop("read_as")


def _risk(bundle: Bundle, chosen: Row, history: pl.DataFrame, found: Attributions) -> Float64[np.ndarray, " n"]:
    records = Records.of_history(bundle, history, found.patients.select(_KEYS), chosen)
    deep = wide = None
    if records.tokens is not None:
        deep = hazard_logits(bundle.model, records.tokens, np.arange(len(records)))
    if records.features is not None:
        wide = bundle.wide.logits(records.features.values)
    return bundle.grid.risk(chosen.logits(deep, wide), found.horizon)
