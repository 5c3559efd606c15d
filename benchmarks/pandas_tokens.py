"""Token sequences by a loop over the groups of a pandas frame: the plain way, to compare with."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from ehrsequencing.events import BIRTH, DEATH
from ehrsequencing.tokens import CLS, Tokenizer

DAY = pd.Timedelta(days=1)
YEAR = 365.25 * DAY


def pandas_tokens(history: pd.DataFrame, tokenizer: Tokenizer) -> dict[str, np.ndarray]:
    """The arrays of ``tokenize``, for visits by calendar day; one subject at a time."""
    values = tokenizer.standardiser
    scales = dict(zip(values.ids.tolist(), zip(values.median, values.scale, strict=True), strict=True))
    exact = {code: number for number, code in enumerate(tokenizer.codes)}
    known: dict[str, int] = {}
    parts: dict[str, list[Any]] = {name: [] for name in ("code", "value", "age", "visit", "gap", "day", "offsets")}
    end = 0
    for _, group in history.groupby("subject_id", sort=True):
        now = group["prediction_time"].iloc[0]
        births = group.loc[group["code"] == BIRTH, "time"]
        born = births.min() if len(births) else pd.NaT
        own = group[~group["code"].isin([BIRTH, DEATH])]
        own = own.sort_values(["time", "code", "numeric_value"], na_position="first")
        codes, scaled = [], []
        for name, value in zip(own["code"], own["numeric_value"], strict=True):
            if name not in known:
                known[name] = tokenizer.encode(name)
            code = known[name]
            codes.append(code)
            if name in exact and code in scales and np.isfinite(value):
                median, scale = scales[code]
                scaled.append(min(max((value - median) / scale, -values.clip), values.clip))
            else:
                scaled.append(np.nan)
        dated = own["time"].notna()
        date = own["time"].dt.date.where(dated)
        visit = np.where(dated, (date != date.shift()).where(dated, False).cumsum(), 0)
        last = own["time"].groupby(visit).max()
        first = own["time"].groupby(visit).min()
        gaps = {n: (first[n] - last[n - 1]) / DAY if n > 1 else 0.0 for n in set(visit) if n > 0}
        sizes = pd.Series(visit).value_counts()
        places, kept = tokenizer.config.max_tokens - 1 - int((visit == 0).sum()), set()
        for number in sorted(gaps, reverse=True):
            places -= int(sizes[number])
            if places < 0:
                break
            kept.add(number)
        stays = np.array([number == 0 or number in kept for number in visit], dtype=bool)
        lowest = min(kept, default=1)
        since = (now - own["time"].max()) / DAY if dated.any() else 0.0
        age = ((own["time"] - born) / YEAR).clip(lower=0).to_numpy(dtype=float)
        day = ((now - own["time"]) / DAY).fillna(np.inf).to_numpy(dtype=float)
        parts["code"].append(np.append(CLS, np.array(codes, dtype=np.int32)[stays]))
        parts["value"].append(np.append(np.nan, np.array(scaled)[stays]))
        parts["age"].append(np.append(max((now - born) / YEAR, 0.0), age[stays]))
        parts["visit"].append(np.append(0, np.where(visit > 0, visit - lowest + 1, 0)[stays]))
        parts["gap"].append(np.append(since, np.array([gaps.get(number, 0.0) for number in visit])[stays]))
        parts["day"].append(np.append(0.0, day[stays]))
        end += int(stays.sum()) + 1
        parts["offsets"].append([end])
    return {name: np.concatenate(found) for name, found in parts.items()}
