"""The law of the one cut, for any function downstream of it: what is recorded later changes nothing, to the bit."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from hypothesis import strategies as st

from ehrsequencing.cohort import cut
from ehrsequencing.config import InputConfig, TaskConfig, parse

SCHEMA = {
    "subject_id": pl.Int64,
    "time": pl.Datetime("us"),
    "code": pl.String,
    "numeric_value": pl.Float32,
    "hadm_id": pl.Int64,
}
CODES = [
    "MEDS_BIRTH",
    "MEDS_DEATH",
    "SEX//F",
    "ICD10CM//E11.9",
    "ICD10CM//E11.65",
    "LAB//HBA1C",
    "LAB//NA",
    "UNSEEN//X",
]
NOW = dt.datetime(2013, 1, 1, 12)
TICK = dt.timedelta(microseconds=1)

Cut = Callable[..., pl.LazyFrame]
Downstream = Callable[[pl.DataFrame, pl.DataFrame], Sequence[Any]]
"""From a history (what the cut lets through) and its rows to arrays or frames, with everything fitted held fixed."""


@dataclass(frozen=True)
class Futures:
    """The same pasts twice, each with a future of its own."""

    one: pl.DataFrame
    other: pl.DataFrame
    rows: pl.DataFrame
    task: TaskConfig | InputConfig
    visit_column: str | None = None

    def history(self, events: pl.LazyFrame, cut: Cut = cut) -> pl.LazyFrame:
        """What the cut lets through of one of the two."""
        return cut(events, self.rows, self.task, visit_column=self.visit_column)


def assert_blind_to_the_future(futures: Futures, downstream: Mapping[str, Downstream], cut: Cut = cut) -> None:
    """Each downstream function gives the same bits for both futures."""
    histories = [futures.history(events.lazy(), cut).collect() for events in (futures.one, futures.other)]
    for name, function in downstream.items():
        one, other = (bits(function(history, futures.rows)) for history in histories)
        assert one == other, f"{name} differs with the future"


def bits(results: Sequence[Any]) -> list[bytes]:
    """Arrays and frames as bytes: shapes, types, nulls and the bits of every number."""
    found = []
    for result in results:
        if isinstance(result, pl.DataFrame):
            found += [part for column in result for part in _column_bits(column)]
        else:
            array = np.asarray(result)
            found += [f"{array.dtype}{array.shape}".encode(), np.ascontiguousarray(array).tobytes()]
    return found


def _column_bits(column: pl.Series) -> list[bytes]:
    described = f"{column.name}:{column.dtype}:{len(column)}".encode()
    values = column.drop_nulls().to_physical()
    content = "\0".join(values).encode() if column.dtype == pl.String else values.to_numpy().tobytes()
    return [described, column.is_null().to_numpy().tobytes(), content]


VALUES = st.none() | st.floats(width=32, allow_infinity=True, allow_nan=True)


def _lines(
    times: st.SearchStrategy[dt.datetime | None], max_size: int, stays: tuple[int, ...] = (1, 2)
) -> st.SearchStrategy[list[tuple[Any, ...]]]:
    visits = st.sampled_from([None, *stays])
    return st.lists(st.tuples(times, st.sampled_from(CODES), VALUES, visits), max_size=max_size)


_BEFORE = st.datetimes(dt.datetime(1930, 1, 1), NOW)
_PAST = st.none() | st.sampled_from([NOW, NOW - TICK, NOW - dt.timedelta(days=40)]) | _BEFORE
_FUTURE = st.sampled_from([NOW + TICK, NOW + dt.timedelta(hours=1)]) | st.datetimes(NOW + TICK, dt.datetime(2050, 1, 1))
_INPUT = st.sampled_from(
    [
        {},
        {"from": dt.date(2010, 5, 1)},
        {"from": NOW},
        {"lookback_days": 40},
        {"exclude": ["LAB//NA", {"code": {"prefix": "ICD10CM//"}}, {"code": "LAB//HBA1C", "value_min": 0}]},
        {"exclude": {"code": {"regex": "F$|X$"}}, "lookback_days": 10_000},
    ]
)
_DELAY = st.sampled_from(
    [
        [],
        [{"code": {"prefix": "ICD10CM//"}, "days": 40}],
        [{"code": {"regex": ""}, "until": "end_of_day"}],
        [{"code": {"prefix": "LAB//"}, "until": "end_of_visit"}, {"code": "LAB//NA", "days": 1}],
    ]
)
_TASK = st.builds(
    lambda input, delay: parse(
        TaskConfig, {"name": "cut", "index": {"age": 1}, "outcome": "X", "input": input, "delay": delay}, "cut"
    ),
    _INPUT,
    _DELAY,
)


@st.composite
def futures(draw: st.DrawFn) -> Futures:
    """A few subjects, each with a past and two unlike futures; some are not asked about.

    Where a delay may wait for the end of a stay, no stay goes on into the future: whether it is over at prediction_time
    is known then, but told by its later records alone.
    """
    task, visit_column = draw(_TASK), draw(st.sampled_from([None, "hadm_id"]))
    stays = (3, 4) if task.delay and visit_column else (1, 2)
    pasts = draw(st.lists(_lines(_PAST, 8), min_size=1, max_size=4))
    one, other = (_records(pasts, draw, stays) for _ in range(2))
    asked = draw(st.permutations(range(len(pasts))))[: draw(st.integers(1, len(pasts)))]
    rows = pl.DataFrame(
        {"subject_id": asked, "prediction_time": [NOW] * len(asked)},
        schema={"subject_id": pl.Int64, "prediction_time": pl.Datetime("us")},
    )
    return Futures(one, other, rows, task, visit_column)


def _records(pasts: list[list[tuple[Any, ...]]], draw: st.DrawFn, stays: tuple[int, ...]) -> pl.DataFrame:
    lines = [(subject, *line) for subject, past in enumerate(pasts) for line in past + draw(_lines(_FUTURE, 5, stays))]
    frame = pl.DataFrame(lines, schema=SCHEMA, orient="row")
    return frame.sort("subject_id", "time", "code", nulls_last=False, maintain_order=True)
