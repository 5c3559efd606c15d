"""Predictions written and read back, a stranger's bad files refused by column, horizon files."""

from __future__ import annotations

import datetime as dt
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from ehrsequencing.errors import EhrError, Exit
from ehrsequencing.predictions import Predictions, write_horizon_labels

DAY = dt.datetime(2020, 1, 1)


def made(n: int = 5, m: int = 4) -> Predictions:
    rng = np.random.default_rng(n)
    return Predictions(
        subject_id=np.arange(n, dtype=np.int64) * 7,
        prediction_time=np.full(n, np.datetime64(DAY, "us")),
        risk=rng.normal(size=n),
        horizon_days=np.linspace(0, 100, m + 1)[1:],
        survival=np.exp(-np.cumsum(rng.random((n, m)), axis=1)),
        cohort_fingerprint="f00d",
        model="lora",
    )


def test_written_and_read_is_the_same(tmp_path: Path) -> None:
    predictions = made()
    predictions.write(tmp_path / "deep" / "p.parquet")
    again = Predictions.read(tmp_path / "deep" / "p.parquet")
    for name in ("subject_id", "prediction_time", "risk", "horizon_days", "survival"):
        np.testing.assert_array_equal(getattr(again, name), getattr(predictions, name))
    assert (again.cohort_fingerprint, again.model) == ("f00d", "lora")
    schema = pl.read_parquet_schema(tmp_path / "deep" / "p.parquet")
    assert schema == {
        "subject_id": pl.Int64,
        "prediction_time": pl.Datetime("us"),
        "risk": pl.Float64,
        "horizon_days": pl.List(pl.Float64),
        "survival": pl.List(pl.Float64),
    }
    assert not list(tmp_path.rglob("*.tmp"))


def test_risk_alone_is_a_valid_file(tmp_path: Path) -> None:
    made(m=0).write(tmp_path / "p.parquet")
    assert Predictions.read(tmp_path / "p.parquet").survival.shape == (5, 0)


def test_a_strangers_types_are_read(tmp_path: Path) -> None:
    made().to_frame().with_columns(
        pl.col("subject_id").cast(pl.Int32),
        pl.col("prediction_time").cast(pl.Datetime("ms")),
        pl.col("risk").cast(pl.Float32),
        pl.col("survival").cast(pl.List(pl.Float32)),
        pl.lit("site B").alias("remark"),
    ).write_parquet(tmp_path / "theirs.parquet")
    read = Predictions.read(tmp_path / "theirs.parquet")
    np.testing.assert_allclose(read.survival, made().survival, rtol=1e-6)
    assert (read.model, read.cohort_fingerprint) == ("theirs", "")


def first(column: str, value: object) -> pl.Expr:
    dtype = made().to_frame().schema[column]
    return pl.when(pl.int_range(pl.len()) == 0).then(pl.lit(value, dtype=dtype)).otherwise(pl.col(column)).alias(column)


BAD = {
    "subject_id": [
        pl.lit(3, pl.Int64).alias("subject_id"),
        pl.col("subject_id").cast(pl.String),
        first("subject_id", None),
    ],
    "prediction_time": [first("prediction_time", None), pl.col("prediction_time").dt.replace_time_zone("UTC")],
    "risk": [first("risk", float("nan")), first("risk", None), pl.lit("high").alias("risk")],
    "horizon_days": [
        first("horizon_days", [25.0, 50.0]),
        first("horizon_days", [25.0, 50.0, 75.0, 101.0]),
        first("horizon_days", [25.0, 50.0, 75.0, float("nan")]),
        pl.col("horizon_days").list.reverse(),
        pl.col("horizon_days").list.eval(pl.element() - 25.0),
        pl.lit(1.0).alias("horizon_days"),
    ],
    "survival": [
        first("survival", [0.9, 0.8]),
        first("survival", [0.9, 0.8, 0.7, None]),
        first("survival", [0.9, 0.8, 0.7, float("nan")]),
        first("survival", [1.1, 0.8, 0.7, 0.6]),
        first("survival", [0.9, 0.8, 0.7, -0.1]),
        first("survival", [0.9, 0.8, 0.81, 0.6]),
        first("survival", None),
    ],
}


@pytest.mark.parametrize(
    ("column", "change"), [pytest.param(c, e, id=f"{c}-{n}") for c, es in BAD.items() for n, e in enumerate(es)]
)
def test_a_bad_file_is_refused_naming_the_column(column: str, change: pl.Expr, tmp_path: Path) -> None:
    made().to_frame().with_columns(change).write_parquet(tmp_path / "p.parquet")
    with pytest.raises(EhrError, match=f"column '{column}'") as caught:
        Predictions.read(tmp_path / "p.parquet")
    assert caught.value.code == Exit.BUNDLE
    assert caught.value.where == str(tmp_path / "p.parquet")


@pytest.mark.parametrize("column", ["subject_id", "prediction_time", "risk", "horizon_days", "survival"])
def test_a_missing_column_is_named(column: str, tmp_path: Path) -> None:
    made().to_frame().drop(column).write_parquet(tmp_path / "p.parquet")
    with pytest.raises(EhrError, match=f"column '{column}' is missing"):
        Predictions.read(tmp_path / "p.parquet")


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(EhrError, match="does not exist"):
        Predictions.read(tmp_path / "absent.parquet")
    (tmp_path / "text.parquet").write_text("subject_id,risk\n")
    with pytest.raises(EhrError, match="not a parquet file"):
        Predictions.read(tmp_path / "text.parquet")


def test_survival_at_is_linear_exact_at_horizons_and_never_extended() -> None:
    predictions = made()
    np.testing.assert_array_equal(predictions.survival_at(predictions.horizon_days), predictions.survival)
    np.testing.assert_array_equal(predictions.survival_at(np.zeros(1)), np.ones((5, 1)))
    times = np.sort(np.random.default_rng(0).uniform(0, 100, 40))
    expected = [np.interp(times, [0, *predictions.horizon_days], [1, *row]) for row in predictions.survival]
    np.testing.assert_allclose(predictions.survival_at(times), expected, rtol=1e-12)
    for wrong in (100.1, -1.0, np.nan):
        with pytest.raises(EhrError, match=r"expected times in \[0, 100\] days"):
            predictions.survival_at(np.array([50.0, wrong]))


def test_take_and_concat_undo_each_other() -> None:
    predictions = made()
    halves = [predictions.take(np.array([0, 1])), predictions.take(np.array([2, 3, 4]))]
    pooled = Predictions.concat(halves)
    np.testing.assert_array_equal(pooled.survival, predictions.survival)
    with pytest.raises(EhrError, match="repeat a subject"):
        Predictions.concat([predictions, halves[0]])
    with pytest.raises(EhrError, match="same horizon_days"):
        Predictions.concat([halves[0], made(m=3).take(np.array([4]))])


def test_horizon_files_leave_out_the_censored_and_count_them(tmp_path: Path) -> None:
    predictions = made()
    outcomes = pl.DataFrame(
        {
            "subject_id": predictions.subject_id,
            "prediction_time": predictions.prediction_time,
            "duration": [10.0, 10.0, 50.0, 60.0, 60.0],
            "event": [1, 0, 0, 1, 0],
        },
        schema_overrides={"event": pl.Int8},
    )
    counts = write_horizon_labels(predictions, outcomes, [50.0, 100.0], tmp_path)
    assert counts.rows() == [(50.0, "horizon-50.parquet", 4, 1), (100.0, "horizon-100.parquet", 2, 3)]
    labels = pl.read_parquet(tmp_path / "horizon-50.parquet")
    assert labels.schema == {
        "subject_id": pl.Int64,
        "prediction_time": pl.Datetime("us"),
        "boolean_value": pl.Boolean,
        "predicted_boolean_value": pl.Boolean,
        "predicted_boolean_probability": pl.Float64,
    }
    assert labels["subject_id"].to_list() == [0, 14, 21, 28]
    assert labels["boolean_value"].to_list() == [True, False, False, False]
    np.testing.assert_allclose(labels["predicted_boolean_probability"], 1 - predictions.survival[[0, 2, 3, 4], 1])
    with pytest.raises(EhrError, match="1 predicted subjects have no outcome"):
        write_horizon_labels(predictions, outcomes[1:], [50.0], tmp_path)
    with pytest.raises(EhrError, match="expected times"):
        write_horizon_labels(predictions, outcomes, [200.0], tmp_path)


def with_cifs(n: int = 5, m: int = 4) -> Predictions:
    base = made(n, m)
    share = np.random.default_rng(1).dirichlet(np.ones(2), n)
    lost = 1.0 - base.survival
    return replace(base, cif={"outcome": lost * share[:, :1], "death": lost * share[:, 1:]})


def test_incidences_are_written_read_taken_and_pooled(tmp_path: Path) -> None:
    predictions = with_cifs()
    predictions.write(tmp_path / "p.parquet")
    assert list(pl.read_parquet_schema(tmp_path / "p.parquet"))[-2:] == ["cif_outcome", "cif_death"]
    again = Predictions.read(tmp_path / "p.parquet")
    pooled = Predictions.concat([again.take(np.array([3, 4])), again.take(np.array([0, 1, 2]))])
    for cause in ("outcome", "death"):
        np.testing.assert_array_equal(again.cif[cause], predictions.cif[cause])
        np.testing.assert_array_equal(pooled.cif[cause], predictions.cif[cause][[3, 4, 0, 1, 2]])
    with pytest.raises(EhrError, match="causes"):
        Predictions.concat([again.take(np.array([0])), replace(again.take(np.array([1])), cif={})])


def test_risk_of_the_outcome_is_its_incidence_or_what_survival_lacks() -> None:
    several, one = with_cifs(), made()
    times = np.array([0.0, 12.5, 25.0, 100.0])
    np.testing.assert_allclose(several.outcome_risk_at(times)[:, 2:], several.cif["outcome"][:, [0, 3]])
    np.testing.assert_allclose(several.outcome_risk_at(times)[:, 1], several.cif["outcome"][:, 0] / 2)
    np.testing.assert_array_equal(several.outcome_risk_at(times)[:, 0], 0)
    np.testing.assert_array_equal(one.outcome_risk_at(times), 1 - one.survival_at(times))
    with pytest.raises(EhrError, match="no cumulative incidence of 'stroke'"):
        several.cif_at("stroke", times)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda cif: {"death": cif["death"]}, "column 'cif_outcome': is missing"),
        (lambda cif: {**cif, "death": cif["death"] / 2}, "do not add to 1"),
        (lambda cif: {**cif, "death": cif["death"][:, ::-1]}, "'cif_death': 5 curves decrease"),
        (lambda cif: {**cif, "death": cif["death"] - 1}, "'cif_death': 20 values outside"),
        (lambda cif: {**cif, "death": cif["death"] * np.nan}, "'cif_death': 20 values are NaN"),
        (lambda cif: {**cif, "death": cif["death"][:, :2]}, "'cif_death': expected as many values as survival"),
    ],
)
def test_incidences_that_cannot_be_are_refused(change, said) -> None:
    predictions = with_cifs()
    with pytest.raises(EhrError, match=said) as error:
        replace(predictions, cif=change(predictions.cif))
    assert error.value.code is Exit.BUNDLE


def test_a_subject_may_be_asked_about_twice_but_not_at_the_same_time(tmp_path: Path) -> None:
    predictions = made()
    days = predictions.prediction_time + np.arange(5).astype("timedelta64[D]")
    several = replace(predictions, subject_id=np.full(5, 7), prediction_time=days)
    several.write(tmp_path / "p.parquet")
    assert len(Predictions.read(tmp_path / "p.parquet")) == 5
    with pytest.raises(EhrError, match="1 rows repeat a subject at the same prediction_time"):
        replace(several, prediction_time=days[[0, 0, 2, 3, 4]])
