"""Who is in a cohort and what its records speak of, in a few suppressed numbers: what a validation compares."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl
from jaxtyping import Float64

from ehrsequencing.cohort.attrition import suppress
from ehrsequencing.cohort.subgroups import SEX_CODES
from ehrsequencing.config import DAYS_PER_YEAR, MIN_CELL
from ehrsequencing.events import BIRTH, DEATH
from ehrsequencing.nonparametric import AalenJohansen
from ehrsequencing.timegrid import truncate
from ehrsequencing.tokens import Tokenizer
from ehrsequencing.tokens.vocabulary import UNK

MAX_CODES = 200
"""The most widespread codes whose prevalence is kept."""
MAX_UNKNOWN = 20
_SEX = re.compile(SEX_CODES, re.IGNORECASE)


def describe_casemix(
    history: pl.DataFrame, rows: pl.DataFrame, tokenizer: Tokenizer, tau: float, causes: Sequence[str]
) -> dict[str, Any]:
    """Plain data on a cohort's rows and their cut histories; nothing in it is of fewer than 10 patients.

    Args:
        history: what ``cohort.cut`` gives for (at least) these rows.
        rows: ``subject_id, prediction_time, duration, event``.
        tokenizer: the model's own, for the share of events it does not know.
        tau: days at which durations are truncated.
        causes: the names of events 1, 2, ….
    """
    own = history.join(rows.select("subject_id", "prediction_time"), on=["subject_id", "prediction_time"], how="semi")
    events = own.filter(pl.col("code").is_not_null() & ~pl.col("code").is_in([BIRTH, DEATH]))
    prevalence = _prevalence(events, rows["subject_id"].n_unique())
    return {
        **_outcomes(rows, tau, causes),
        "age_years": _quartiles(_ages(own, rows)),
        "events_per_patient": _quartiles(_events_per_row(events, rows)),
        "sex": {code: share for code, share in prevalence.items() if _SEX.match(code)},
        "codes": {code: share for code, share in prevalence.items() if not _SEX.match(code)},
        "vocabulary": vocabulary_shares(events, tokenizer),
    }


def _outcomes(rows: pl.DataFrame, tau: float, causes: Sequence[str]) -> dict[str, Any]:
    """Counts as text, follow-up, and the observed risk (Aalen–Johansen) of the outcome by τ."""
    duration, event = truncate(rows["duration"].to_numpy(), rows["event"].to_numpy(), tau)
    counts = [rows["subject_id"].n_unique(), *(int((event == cause + 1).sum()) for cause in range(len(causes)))]
    patients, *outcomes = suppress(counts)
    enough = min(int((event == 1).sum()), int((event != 1).sum())) >= MIN_CELL
    risk = _incidence(duration, event, len(causes), tau) if enough else None
    return {
        "patients": patients,
        "events": dict(zip(causes, outcomes, strict=True)),
        "observed_risk": risk,
        "tau_days": tau,
        "follow_up_days": _quartiles(rows["duration"].to_numpy()),
    }


def _incidence(duration: np.ndarray, event: np.ndarray, n_causes: int, tau: float) -> float:
    return float(AalenJohansen.fit(duration, event, n_causes).at(np.array([tau]))[0, 0])


def _ages(own: pl.DataFrame, rows: pl.DataFrame) -> Float64[np.ndarray, " n"]:
    """Years at prediction_time, of the rows with a dated birth."""
    births = own.filter(pl.col("code") == BIRTH).group_by("subject_id").agg(birth=pl.col("time").min())
    known = rows.join(births.drop_nulls(), on="subject_id", how="inner")
    lived = (known["prediction_time"].cast(pl.Datetime("us")) - known["birth"]).dt.total_seconds()
    return lived.to_numpy().astype(np.float64) / (86_400 * DAYS_PER_YEAR)


def _events_per_row(events: pl.DataFrame, rows: pl.DataFrame) -> Float64[np.ndarray, " n"]:
    counts = events.group_by("subject_id", "prediction_time").len("events")
    joined = rows.join(counts, on=["subject_id", "prediction_time"], how="left")
    return joined["events"].fill_null(0).to_numpy().astype(np.float64)


def _quartiles(values: np.ndarray) -> list[float] | None:
    """The three quartiles; None for fewer than 10."""
    if values.size < MIN_CELL:
        return None
    return [float(value) for value in np.quantile(values.astype(np.float64), [0.25, 0.5, 0.75])]


def _prevalence(events: pl.DataFrame, patients: int) -> dict[str, float]:
    """The share of patients with each of the most widespread codes, where at least 10 have it."""
    counts = events.group_by("code").agg(n=pl.col("subject_id").n_unique()).filter(pl.col("n") >= MIN_CELL)
    top = counts.sort(["n", "code"], descending=[True, False]).head(MAX_CODES)
    return {code: _share(n, patients) for code, n in top.iter_rows()}


def _share(n: int, of: int) -> float:
    """``n`` of ``of``; fewer than 10 others are counted as 10, so that nobody stands out by not being among them."""
    return min(n, max(of - MIN_CELL, 0)) / of if 0 < of - n < MIN_CELL else n / of


def vocabulary_shares(events: pl.DataFrame, tokenizer: Tokenizer) -> dict[str, Any]:
    """How much of these events the tokenizer knows.

    Returns:
        ``unknown`` (no id, nor any ancestor's) and ``fallback`` (read as an ancestor) as shares of the events;
        ``patients_with_unknown`` as a share of the patients; ``codes``: the unknown ones that at least 10 patients
        have, with their share of the patients, most widespread first.
    """
    found = tokenizer.lookup(events["code"]).select("code", "id", "exact")
    read = events.select("subject_id", "code").join(found, on="code", how="left")
    unknown = read.filter(pl.col("id") == UNK)
    patients, total = read["subject_id"].n_unique(), max(read.height, 1)
    fallback = read.filter(~pl.col("exact") & (pl.col("id") != UNK)).height
    touched = unknown["subject_id"].n_unique()
    return {
        "unknown": unknown.height / total,
        "fallback": fallback / total,
        "patients_with_unknown": None if 0 < touched < MIN_CELL else touched and _share(touched, patients),
        "codes": dict(list(_prevalence(unknown, patients).items())[:MAX_UNKNOWN]),
    }
