"""What models may read of a cohort's rows, read and tokenised once; of several cohorts that cut alike, together."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl

from ehrsequencing.cohort import cut
from ehrsequencing.config import TaskConfig
from ehrsequencing.events import MedsDataset
from ehrsequencing.tokens import Tokenizer, TokenStore, tokenize

_KEYS = ("subject_id", "prediction_time")


@dataclass(frozen=True)
class Readable:
    """What models may read of some predictions, each once: their cut histories, and their tokens in the rows' order."""

    rows: pl.DataFrame
    history: pl.DataFrame
    tokens: TokenStore

    @classmethod
    def of(cls, dataset: MedsDataset, rows: pl.DataFrame, task: TaskConfig, tokenizer: Tokenizer) -> Readable:
        """Read and tokenise the rows under the task's rules."""
        readable = cut(dataset.scan(), rows, task, visit_column=tokenizer.config.visit_column)
        history = readable.collect(engine="streaming")
        return cls(rows.select(_KEYS), history, tokenize(history, rows, tokenizer))

    def tokens_of(self, table: pl.DataFrame) -> TokenStore:
        """The tokens of some of the rows, in the order of ``table``."""
        if table.select(_KEYS).equals(self.rows):
            return self.tokens
        numbered = self.rows.with_row_index("at")
        at = table.select(_KEYS).join(numbered, on=_KEYS, how="left", maintain_order="left")["at"]
        return self.tokens.take(at.to_numpy().astype(np.int64))
