"""Records made for a test: subjects with visits at given days, each a list of codes or of (code, value)."""

from __future__ import annotations

import datetime as dt

import polars as pl

from ehrsequencing.config import TokensConfig
from ehrsequencing.tokens import Tokenizer, TokenStore, tokenize, tokenize_windows

BEGIN = dt.datetime(2010, 1, 1, 8)
SCHEMA = {
    "subject_id": pl.Int64,
    "prediction_time": pl.Datetime("us"),
    "time": pl.Datetime("us"),
    "code": pl.String,
    "numeric_value": pl.Float32,
}
Record = list[tuple[float, list[str | tuple[str, float]]]]


def planted(
    records: list[Record], *, static: list[str] | None = None, causal: bool = False, **tokens
) -> tuple[Tokenizer, TokenStore]:
    """The records of subjects 1, 2, … tokenised whole; ``static`` names one undated code of each."""
    rows = []
    for number, record in enumerate(records, start=1):
        moments = [(BEGIN + dt.timedelta(days=day), event) for day, events in record for event in events]
        end = max(moment for moment, _ in moments)
        if static is not None:
            rows.append((number, end, None, static[number - 1], None))
        for moment, event in moments:
            code, value = event if isinstance(event, tuple) else (event, None)
            rows.append((number, end, moment, code, value))
    history = pl.DataFrame(rows, schema=SCHEMA, orient="row")
    keys = history.select("subject_id", "prediction_time").unique().sort("subject_id")
    tokenizer = Tokenizer.fit(history, TokensConfig(**{"min_subjects": 1, "min_values": 2, **tokens}))
    store = tokenize_windows(history, keys, tokenizer).tokens if causal else tokenize(history, keys, tokenizer)
    return tokenizer, store
