"""The feature matrix, held against plain Python over random records."""

from __future__ import annotations

import datetime as dt
import math

import numpy as np
import polars as pl
import pytest

from ehrsequencing.config import FeaturesConfig
from ehrsequencing.errors import EhrError, Exit
from ehrsequencing.features import RECORD_COLUMNS, FeatureSpec, build_features

NOW = dt.datetime(2020, 1, 1, 12)
DAY = dt.timedelta(days=1)
SCHEMA = {
    "subject_id": pl.Int64,
    "prediction_time": pl.Datetime("us"),
    "time": pl.Datetime("us"),
    "code": pl.String,
    "numeric_value": pl.Float32,
}


def frame(events: list[tuple]) -> pl.DataFrame:
    return pl.DataFrame([(s, NOW, *rest) for s, *rest in events], schema=SCHEMA, orient="row")


def rows_of(subjects: list[int]) -> pl.DataFrame:
    schema = {"subject_id": pl.Int64, "prediction_time": pl.Datetime("us")}
    return pl.DataFrame({"subject_id": subjects, "prediction_time": [NOW] * len(subjects)}, schema_overrides=schema)


def random_history(n: int, seed: int) -> pl.DataFrame:
    rng = np.random.default_rng(seed)
    events: list[tuple] = []
    for subject in range(n):
        if rng.random() < 0.8:
            events.append((subject, NOW - int(rng.integers(0, 30_000)) * DAY, "MEDS_BIRTH", None))
        if rng.random() < 0.9:
            events.append((subject, None, f"SEX//{'MF'[subject % 2]}", None))
        for _ in range(int(rng.integers(0, 40))):
            time = NOW - dt.timedelta(hours=int(rng.integers(0, 24 * 300)))
            value = rng.choice([None, math.nan, 1.0, 2.0, 3.5, -4.0, 100.0])
            events.append((subject, time, f"C{int(rng.integers(0, 8))}", value))
    return frame(events)


def reference(history: pl.DataFrame, subject: int, spec: FeatureSpec) -> list[float]:
    """One row of features, column by column, in plain Python."""
    own = [row for row in history.iter_rows(named=True) if row["subject_id"] == subject]
    born = [row["time"] for row in own if row["code"] == "MEDS_BIRTH"]
    events = [row for row in own if row["code"] != "MEDS_BIRTH"]
    days = [(NOW - row["time"]) / DAY for row in events if row["time"]]
    record = [
        (NOW - min(born)) / DAY / 365.25 if born else spec.mean_age,
        max(days) / 365.25 if days else 0.0,
        math.log1p(min(days)) if days else 0.0,
        math.log1p(len({row["time"].date() for row in events if row["time"]})),
    ]
    return record + [_cell(name, number, events, spec) for number, name in enumerate(spec.names) if number >= 4]


def _cell(name: str, number: int, events: list[dict], spec: FeatureSpec) -> float:
    kind, _, code = name.partition(":")
    same = [row for row in events if row["code"] == code]
    dated = [(NOW - row["time"]) / DAY for row in same if row["time"]]
    if kind == "static":
        return float(len(dated) < len(same))
    if kind == "count":
        return math.log1p(len(dated))
    if kind == "recency":
        return math.exp(-min(dated) / spec.config.recency_days) if dated else 0.0
    raw = _value(kind, same, spec.config.trend_days)
    if raw is None:
        return 0.0
    z = (raw - spec.location[number]) / spec.scale[number]
    return min(max(z, -spec.config.value_clip), spec.config.value_clip)


def _value(kind: str, same: list[dict], trend_days: float) -> float | None:
    pairs = sorted(
        (row["time"], row["numeric_value"])
        for row in same
        if row["time"] and row["numeric_value"] is not None and math.isfinite(row["numeric_value"])
    )
    if not pairs or (kind == "trend" and (pairs[-1][0] - pairs[0][0]) / DAY < trend_days):
        return None
    if kind == "last":
        return pairs[-1][1]
    if kind == "mean":
        return sum(value for _, value in pairs) / len(pairs)
    years = [(time - NOW) / DAY / 365.25 for time, _ in pairs]
    return float(np.polyfit(years, [value for _, value in pairs], 1)[0])


@pytest.mark.parametrize("seed", [0, 1])
def test_equals_plain_reference(seed: int) -> None:
    history = random_history(60, seed)
    subjects = list(range(61))
    spec = FeatureSpec.fit(history, rows_of(subjects[:40]), FeaturesConfig(min_subjects=3))
    kinds = {name.partition(":")[0] for name in spec.names}
    assert kinds == {*RECORD_COLUMNS, "static", "count", "recency", "last", "mean", "trend"}
    built = build_features(history, rows_of(subjects), spec)
    expected = np.array([reference(history, subject, spec) for subject in subjects])
    np.testing.assert_allclose(built.values, expected, rtol=2e-5, atol=1e-5)
    assert built.names == list(spec.names)


def test_order_of_input_and_choice_of_rows_change_nothing() -> None:
    history = random_history(50, 3)
    everyone = rows_of(list(range(50)))
    config = FeaturesConfig(min_subjects=2)
    spec = FeatureSpec.fit(history, everyone, config)
    built = build_features(history, everyone, spec)
    shuffled = history.sample(fraction=1.0, shuffle=True, seed=5)
    assert FeatureSpec.fit(shuffled, everyone[::-1], config).fingerprint == spec.fingerprint
    assert build_features(shuffled, everyone, spec).values.tobytes() == built.values.tobytes()
    some = [31, 4, 17]
    alone = build_features(history.filter(pl.col("subject_id").is_in(some)), rows_of(some), spec)
    assert alone.values.tobytes() == built.take(np.array(some)).values.tobytes()


def test_columns_are_the_most_widespread_and_capped() -> None:
    history = random_history(50, 4)
    everyone = rows_of(list(range(50)))
    spec = FeatureSpec.fit(history, everyone, FeaturesConfig(min_subjects=1))
    capped = FeatureSpec.fit(history, everyone, FeaturesConfig(min_subjects=1, max_columns=20))
    assert capped.names == spec.names[:20]
    assert (np.diff(spec.rows_with[4:]) <= 0).all()
    values = build_features(history, everyone, spec).values
    count = [number for number, name in enumerate(spec.names) if name.startswith("count:")]
    np.testing.assert_array_equal((values[:, count] > 0).sum(axis=0), spec.rows_with[count])
    few = FeatureSpec.fit(history, everyone, FeaturesConfig(min_subjects=40))
    assert (few.rows_with >= 40).all()
    assert 4 < len(few.names) < len(spec.names)


def test_spec_survives_json() -> None:
    spec = FeatureSpec.fit(random_history(30, 1), rows_of(list(range(30))), FeaturesConfig(min_subjects=2))
    assert FeatureSpec.from_json(spec.to_json()).fingerprint == spec.fingerprint
    with pytest.raises(EhrError, match="not a feature specification"):
        FeatureSpec.from_json({"names": []})


def test_a_history_without_events_gives_the_record_columns_only() -> None:
    history = frame([])
    spec = FeatureSpec.fit(history, rows_of([1, 2]), FeaturesConfig())
    assert spec.names == RECORD_COLUMNS
    assert build_features(history, rows_of([1, 2]), spec).values.tolist() == [[0.0] * 4] * 2


def test_nothing_after_prediction_time() -> None:
    history = frame([(1, NOW + DAY, "A", None)])
    with pytest.raises(EhrError, match="1 events lie after") as caught:
        FeatureSpec.fit(history, rows_of([1]), FeaturesConfig())
    assert caught.value.code == Exit.LEAKAGE
    with pytest.raises(EhrError, match="rows has no column subject_id"):
        FeatureSpec.fit(history, rows_of([1]).drop("subject_id"), FeaturesConfig())
    with pytest.raises(EhrError, match="occurs twice"):
        FeatureSpec.fit(history.clear(), rows_of([1, 1]), FeaturesConfig())
