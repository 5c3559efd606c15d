"""The count–recency–value matrix of a cut history, read by the wide model and the baselines alike."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import polars as pl
from jaxtyping import Bool, Float32, Float64, Int64, Integer

from ehrsequencing.config import DAYS_PER_YEAR, FeaturesConfig
from ehrsequencing.errors import EhrError, Exit
from ehrsequencing.events import BIRTH, DEATH
from ehrsequencing.pairs import Occurrences, Pair, pair_columns

_US_PER_DAY = 86_400_000_000
_KEYS = ("subject_id", "prediction_time")
RECORD_COLUMNS = ("age", "record_years", "log_days_since_last", "log_visits")
CODE_KINDS = ("static", "count", "recency")
VALUE_KINDS = ("last", "mean", "trend")
_IQR = 1.349
"""Interquartile range of a normal distribution in standard deviations."""


@dataclass(frozen=True, eq=False)
class FeatureMatrix:
    """Dense features of N rows; ``names`` says what each of the P columns is."""

    values: Float32[np.ndarray, "N P"]
    names: list[str]

    def __len__(self) -> int:
        return len(self.values)

    def take(self, rows: Integer[np.ndarray, " M"]) -> FeatureMatrix:
        """The given rows, in the given order."""
        return FeatureMatrix(self.values[rows], self.names)

    def beside(self, other: FeatureMatrix) -> FeatureMatrix:
        """The same rows with the columns of another matrix after these."""
        return FeatureMatrix(np.concatenate([self.values, other.values], axis=1), [*self.names, *other.names])


@dataclass(frozen=True, eq=False)
class FeatureSpec:
    """Which columns there are and how values are standardised, as fitted on training rows.

    Attributes:
        names: the record's own columns first, then ``kind:code`` by falling number of training rows that have it.
        rows_with: that number, of each column.
        location, scale: value columns become (x − location) / scale; 0 and 1 elsewhere.
        mean_age: years; stands in where the birth is unknown.
        pairs: of codes, whose columns follow all others (``names`` are of those alone).
    """

    names: tuple[str, ...]
    rows_with: Int64[np.ndarray, " P"]
    location: Float64[np.ndarray, " P"]
    scale: Float64[np.ndarray, " P"]
    mean_age: float
    config: FeaturesConfig
    pairs: tuple[Pair, ...] = ()

    @classmethod
    def fit(cls, history: pl.DataFrame, rows: pl.DataFrame, config: FeaturesConfig) -> FeatureSpec:
        """Choose columns on the training ``rows``: those that at least ``min_subjects`` of them have.

        Of more than ``max_columns``, the most widespread are kept (ties by name). Value columns are standardised by
        the median and interquartile range over the rows that have them; one that hardly varies is left out.
        """
        placed = _Placed.of(history, rows)
        codes = placed.events["code"].unique().drop_nulls().sort().to_list()
        columns = [_fit_columns(kind, entries, codes) for kind, entries in _summarise(placed, codes, config).items()]
        chosen = (
            pl.concat(columns)
            .filter((pl.col("rows") >= config.min_subjects) & (pl.col("scale") > 0))
            .sort(["rows", "name"], descending=[True, False])
            .head(config.max_columns - len(RECORD_COLUMNS))
        )
        plain = len(RECORD_COLUMNS)
        age = placed.age()
        return cls(
            names=(*RECORD_COLUMNS, *chosen["name"].to_list()),
            rows_with=np.append(np.full(plain, placed.n), chosen["rows"].to_numpy()).astype(np.int64),
            location=np.append(np.zeros(plain), chosen["location"].to_numpy()),
            scale=np.append(np.ones(plain), chosen["scale"].to_numpy()),
            mean_age=float(np.nanmean(age)) if np.isfinite(age).any() else 0.0,
            config=config,
        )

    @cached_property
    def fingerprint(self) -> str:
        """blake2b of the content (32 hexadecimal digits)."""
        return hashlib.blake2b(json.dumps(self.to_json(), sort_keys=True).encode(), digest_size=16).hexdigest()

    def to_json(self) -> dict[str, Any]:
        """The specification as plain data for a JSON file; exact."""
        arrays = {name: getattr(self, name).tolist() for name in ("rows_with", "location", "scale")}
        config = self.config.model_dump(mode="json")
        pairs = [[pair.kind, pair.first, pair.second] for pair in self.pairs]
        return {"names": list(self.names), **arrays, "mean_age": self.mean_age, "pairs": pairs, "config": config}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> FeatureSpec:
        """The specification of ``to_json``; EhrError (exit 13) where ``data`` is something else."""
        try:
            return cls(
                names=tuple(data["names"]),
                rows_with=np.array(data["rows_with"], dtype=np.int64),
                location=np.array(data["location"], dtype=np.float64),
                scale=np.array(data["scale"], dtype=np.float64),
                mean_age=float(data["mean_age"]),
                config=FeaturesConfig.model_validate(data["config"]),
                pairs=tuple(Pair(*map(str, pair)) for pair in data.get("pairs", [])),
            )
        except (ValueError, KeyError, TypeError) as error:
            raise EhrError(
                f"not a feature specification: {error}", "features.json", "use the bundle's file", code=Exit.BUNDLE
            ) from None


def build_features(history: pl.DataFrame, rows: pl.DataFrame, spec: FeatureSpec) -> FeatureMatrix:
    """The features of each row of ``rows``, in that order, over its whole cut history (not cut to ``max_tokens``).

    ==================== ==================================================================================
    age                  years at prediction_time (the training mean where unknown)
    record_years         from the first dated event to prediction_time
    log_days_since_last  log1p of the days from the last event to prediction_time
    log_visits           log1p of the number of calendar days with an event
    static:CODE          1 where the subject has it without a time
    count:CODE           log1p of the number of dated events
    recency:CODE         exp(−days since the last one / ``recency_days``); 0 without any
    last:CODE, mean:CODE last (of equal times the largest) and mean finite value, standardised and clipped
    trend:CODE           least-squares slope a year of values at least ``trend_days`` apart, likewise
    before:A > B         +1 where A was first recorded on an earlier day than B, -1 on a later one
    together:A & B       exp(−days since both were last recorded on one day / 365)
    ==================== ==================================================================================

    A missing value is 0, the median of those who have it. Births and deaths count for none of these but the age.

    Raises:
        EhrError: exit 15 for an event after prediction_time; exit 11 for repeated rows or a missing column.
    """
    placed = _Placed.of(history, rows)
    values = np.zeros((placed.n, len(spec.names)), dtype=np.float32)  # [N, P]
    values[:, : len(RECORD_COLUMNS)] = _record_columns(placed, spec.mean_age)
    codes = sorted({name.partition(":")[2] for name in spec.names[len(RECORD_COLUMNS) :]})
    at = {name: number for number, name in enumerate(spec.names)}
    for kind, entries in _summarise(placed, codes, spec.config).items():
        column_of = np.array([at.get(f"{kind}:{code}", -1) for code in codes], dtype=np.int64)
        column = column_of[entries.code] if len(codes) else entries.code
        known = column >= 0
        row, column, x = entries.row[known], column[known], entries.value[known]
        if kind in VALUE_KINDS:
            x = np.clip(
                (x - spec.location[column]) / spec.scale[column], -spec.config.value_clip, spec.config.value_clip
            )
        values[row, column] = x
    found = FeatureMatrix(values, list(spec.names))
    return found.beside(_pairs(placed, spec.pairs)) if spec.pairs else found


def build_pairs(history: pl.DataFrame, rows: pl.DataFrame, pairs: tuple[Pair, ...]) -> FeatureMatrix:
    """The columns of pairs alone, as ``build_features`` has them."""
    return _pairs(_Placed.of(history, rows), pairs)


def widespread(history: pl.DataFrame, rows: pl.DataFrame, config: FeaturesConfig) -> Occurrences:
    """When the codes that most of ``rows`` have with a time were recorded: ``pair_codes`` of them at most, each in at
    least ``min_subjects`` rows (ties by name)."""
    placed = _Placed.of(history, rows)
    days = placed.days()
    common = days.group_by("code").agg(pl.col("row").n_unique().alias("rows"))
    common = common.filter(pl.col("rows") >= config.min_subjects).sort(["rows", "code"], descending=[True, False])
    return Occurrences.of(days, placed.n, common["code"].head(config.pair_codes).to_list())


def _pairs(placed: _Placed, pairs: tuple[Pair, ...]) -> FeatureMatrix:
    codes = sorted({code for pair in pairs for code in (pair.first, pair.second)})
    seen = Occurrences.of(placed.days(), placed.n, codes)
    return FeatureMatrix(pair_columns(seen, pairs), [pair.name for pair in pairs])


@dataclass(frozen=True, eq=False)
class _Placed:
    """The events of n rows: ``row, code, day (before prediction_time; null: static), value (finite or null)``."""

    n: int
    events: pl.DataFrame
    now: Int64[np.ndarray, " n"]
    birth: Float64[np.ndarray, " n"]

    @classmethod
    def of(cls, history: pl.DataFrame, rows: pl.DataFrame) -> _Placed:
        _refuse_missing(history, (*_KEYS, "time", "code", "numeric_value"), "history")
        _refuse_missing(rows, _KEYS, "rows")
        now = pl.col("prediction_time").cast(pl.Datetime("us"))
        keys = rows.select(pl.col("subject_id").cast(pl.Int64), now).with_row_index("row")
        if keys.select(_KEYS).is_duplicated().any():
            raise EhrError("a subject and prediction_time occurs twice", "rows", "give every row once", code=Exit.DATA)
        time = pl.col("time").cast(pl.Datetime("us"))
        own = history.with_columns(now, time).join(keys, on=_KEYS, how="inner")
        late = int((own["time"] > own["prediction_time"]).sum())
        if late:
            raise EhrError(
                f"{late} events lie after their prediction_time", "history", "cut it with cohort.cut", code=Exit.LEAKAGE
            )
        value = pl.col("numeric_value").cast(pl.Float64)
        events = own.filter(~pl.col("code").is_in([BIRTH, DEATH])).select(
            pl.col("row").cast(pl.Int64),
            "code",
            "time",
            ((pl.col("prediction_time") - pl.col("time")).dt.total_microseconds() / _US_PER_DAY).alias("day"),
            pl.when(value.is_finite()).then(value).alias("value"),
        )
        births = own.filter(pl.col("code") == BIRTH).group_by("row").agg(pl.col("time").min()).drop_nulls()
        birth = np.full(keys.height, np.nan)
        birth[births["row"].to_numpy()] = births["time"].to_physical().to_numpy()
        return cls(keys.height, events, keys["prediction_time"].to_physical().to_numpy(), birth)

    def days(self) -> pl.DataFrame:
        """``row, code, day`` of dated events, in whole days before the day of prediction."""
        today = pl.Series(self.now).cast(pl.Datetime("us")).dt.date()
        dated = self.events.filter(pl.col("time").is_not_null() & pl.col("code").is_not_null())
        ago = today[dated["row"].to_numpy()] - dated["time"].dt.date()
        return dated.select("row", "code").with_columns(day=ago.dt.total_days())

    def age(self) -> Float64[np.ndarray, " n"]:
        """Years at prediction_time; NaN where the birth is unknown."""
        return (self.now - self.birth) / (_US_PER_DAY * DAYS_PER_YEAR)


def _refuse_missing(frame: pl.DataFrame, needed: tuple[str, ...], name: str) -> None:
    missing = [column for column in needed if column not in frame.columns]
    if missing:
        found = f"{name} has no column {', '.join(missing)} (found: {', '.join(frame.columns)})"
        raise EhrError(found, name, "add the column", code=Exit.DATA)


def _record_columns(placed: _Placed, mean_age: float) -> Float64[np.ndarray, "n 4"]:
    per_row = (
        placed.events.drop_nulls("day")
        .group_by("row")
        .agg(
            (pl.col("day").max() / DAYS_PER_YEAR).alias("record_years"),
            pl.col("day").min().log1p().alias("log_days_since_last"),
            pl.col("time").dt.date().n_unique().log1p().alias("log_visits"),
        )
    )
    age = placed.age()
    columns = np.zeros((placed.n, len(RECORD_COLUMNS)))
    columns[:, 0] = np.where(np.isfinite(age), age, mean_age)
    columns[per_row["row"].to_numpy(), 1:] = per_row.select(RECORD_COLUMNS[1:]).to_numpy()
    return columns


@dataclass(frozen=True, eq=False)
class _Entries:
    """The entries of one kind of column: at most one for a row and code."""

    row: Int64[np.ndarray, " e"]
    code: Int64[np.ndarray, " e"]
    value: Float64[np.ndarray, " e"]

    def where(self, chosen: Bool[np.ndarray, " e"]) -> _Entries:
        return _Entries(self.row[chosen], self.code[chosen], self.value[chosen])


def _summarise(placed: _Placed, codes: list[str], config: FeaturesConfig) -> dict[str, _Entries]:
    """Per kind, one number for each row and code that has it, not yet standardised; ``codes`` sorted."""
    known = placed.events.filter(pl.col("code").is_in(codes)).with_columns(
        pl.col("code").cast(pl.Enum(codes)).to_physical().cast(pl.Int64)
    )
    static = known.filter(pl.col("day").is_null()).select("row", "code").unique()
    dated = known.drop_nulls("day").sort(["row", "code", "day", "value"], descending=[False, False, True, False])
    row, code, day = (dated[name].to_numpy() for name in ("row", "code", "day"))
    begin, end = _runs(row, code)
    found = {
        "static": _Entries(static["row"].to_numpy(), static["code"].to_numpy(), np.ones(static.height)),
        "count": _Entries(row[begin], code[begin], np.log1p(end - begin)),
        "recency": _Entries(row[begin], code[begin], np.exp(-day[end - 1] / config.recency_days)),
    }
    return found | _summarise_values(dated.drop_nulls("value"), config.trend_days)


def _summarise_values(valued: pl.DataFrame, trend_days: float) -> dict[str, _Entries]:
    row, code, day, value = (valued[name].to_numpy() for name in ("row", "code", "day", "value"))
    begin, end = _runs(row, code)
    count = end - begin
    last = _Entries(row[begin], code[begin], value[end - 1])
    if not len(begin):
        return dict.fromkeys(VALUE_KINDS, last)
    year = -day / DAYS_PER_YEAR
    centred = year - np.repeat(np.add.reduceat(year, begin) / count, count)
    mean = np.add.reduceat(value, begin) / count
    deviation = value - np.repeat(mean, count)
    long = (day[begin] - day[end - 1] >= trend_days) & (count > 1)
    spread = np.where(long, np.add.reduceat(centred**2, begin), 1.0)
    slope = np.add.reduceat(centred * deviation, begin) / spread
    means, slopes = _Entries(last.row, last.code, mean), _Entries(last.row, last.code, slope)
    return {"last": last, "mean": means, "trend": slopes.where(long)}


def _runs(
    row: Int64[np.ndarray, " e"], code: Int64[np.ndarray, " e"]
) -> tuple[Int64[np.ndarray, " r"], Int64[np.ndarray, " r"]]:
    """First and one past last position of each stretch of equal row and code."""
    begins = np.ones(len(row), dtype=bool)
    begins[1:] = (row[1:] != row[:-1]) | (code[1:] != code[:-1])
    begin = np.flatnonzero(begins)
    return begin, np.append(begin, len(row))[1:] if len(begin) else begin


def _fit_columns(kind: str, entries: _Entries, codes: list[str]) -> pl.DataFrame:
    """``name, rows, location, scale`` of every column of one kind."""
    value = pl.col("value")
    spread = (value.quantile(0.75, "linear") - value.quantile(0.25, "linear")) / _IQR
    plain = kind in CODE_KINDS
    fitted = (
        pl.DataFrame({"code": entries.code, "value": entries.value})
        .group_by("code")
        .agg(
            pl.len().cast(pl.Int64).alias("rows"),
            (pl.lit(0.0) if plain else value.median()).alias("location"),
            (pl.lit(1.0) if plain else spread).alias("scale"),
        )
    )
    names = pl.DataFrame({"code": range(len(codes)), "name": [f"{kind}:{code}" for code in codes]}, schema_overrides=_N)
    return fitted.join(names, on="code").select("name", "rows", "location", "scale")


_N = {"code": pl.Int64, "name": pl.String}
