"""What is explained: records of a few patients as the model reads them, and where in them an attribution belongs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import polars as pl
from jaxtyping import Float64, Int64

from ehrsequencing.batches import VisitPlaces
from ehrsequencing.bundle import Bundle, Row
from ehrsequencing.cohort import cut
from ehrsequencing.events import BIRTH, DEATH, MedsDataset, rank_hash
from ehrsequencing.features import RECORD_COLUMNS, FeatureMatrix, build_features
from ehrsequencing.inference import read_visits
from ehrsequencing.models.pair_reader import PairIds
from ehrsequencing.pairs import PAIR_KINDS, Pair
from ehrsequencing.tokens import CLS, Tokenizer, TokenStore, tokenize

US_PER_DAY = 86_400_000_000
AGE, RECORD = "age", "record"
"""What columns of the wide part that belong to no code are reported as."""
DAY_DECIMALS = 1
"""To which days before prediction_time are rounded, so that both parts name an event alike."""
LONG = {"row": pl.Int64, "code": pl.String, "days_before": pl.Float64, "attribution": pl.Float64}
_LATEST = pl.col("day") == pl.col("day").min().over("row", "code")
_VALUED = pl.col("value").is_not_null()
_LATEST_VALUED = _VALUED & (pl.col("day") == pl.col("day").filter(_VALUED).min().over("row", "code"))
EVENTS_OF: Mapping[str, pl.Expr] = {
    "count": pl.lit(True),
    "recency": _LATEST,
    "last": _LATEST_VALUED,
    "mean": _VALUED,
    "trend": _VALUED,
    **dict.fromkeys(PAIR_KINDS, pl.lit(True)),
}
"""Which dated events of its code a wide column speaks of; what is attributed to it is shared evenly by them. What is
attributed to a pair belongs by halves to its two codes."""


def sample(rows: pl.DataFrame, patients: int | None, seed: int) -> pl.DataFrame:
    """Each subject at its latest prediction_time, and of more than ``patients`` subjects so many, drawn by hash."""
    latest = rows.group_by("subject_id").agg(pl.col("prediction_time").max()).sort("subject_id")
    if patients is None or latest.height <= patients:
        return latest
    order = np.argsort(rank_hash(latest["subject_id"].to_numpy(), seed, "explained"), kind="stable")
    return latest[np.sort(order[:patients])]


@dataclass(frozen=True, eq=False)
class Records:
    """The records of n rows; what the row of the bundle has no weight for is None.

    Attributes:
        history: the cut history the wide part is built from.
        tokens: one sequence a row, ending at the last visit by prediction_time.
    """

    rows: pl.DataFrame
    history: pl.DataFrame | None
    tokens: TokenStore | None
    features: FeatureMatrix | None

    @classmethod
    def read(cls, bundle: Bundle, dataset: MedsDataset, rows: pl.DataFrame, row: Row) -> Records:
        """The records of ``rows`` as prediction reads them (``inference.row_logits``)."""
        column, at_visits = bundle.tokenizer.config.visit_column, bundle.model.config.predict_at == "every_visit"
        if row.alpha == 1 and at_visits:
            places = read_visits(dataset, rows, bundle.task, bundle.tokenizer)
            return cls(rows, None, up_to_visit(places, rows), None)
        history = cut(dataset.scan(), rows, bundle.task, visit_column=column).collect(engine="streaming")
        return cls.of_history(bundle, history, rows, row)

    @classmethod
    def of_history(cls, bundle: Bundle, history: pl.DataFrame, rows: pl.DataFrame, row: Row) -> Records:
        """The same from histories that are cut already; not for predictions at every visit."""
        tokens = tokenize(history, rows, bundle.tokenizer) if row.alpha > 0 else None
        features = build_features(history, rows, bundle.features) if row.alpha < 1 else None
        return cls(rows, history, tokens, features)

    def __len__(self) -> int:
        return self.rows.height


def up_to_visit(places: VisitPlaces, rows: pl.DataFrame) -> TokenStore:
    """The windows of predictions at visits, each ended by its own visit: what lies after it is never seen anyway."""
    whole = places.tokens.take(places.window)
    number = np.repeat(np.arange(len(whole)), whole.lengths)  # [T]
    stays = whole.visit <= places.visit[number]
    moment = rows["prediction_time"].cast(pl.Datetime("us")).to_numpy()
    later = (whole.prediction_time - moment).astype(np.int64) / US_PER_DAY  # [n] days that a window goes on
    cls_token = whole.code == CLS
    day = np.where(cls_token, whole.day, whole.day - later[number].astype(np.float32))
    return replace(
        whole,
        code=whole.code[stays],
        value=whole.value[stays],
        age=whole.age[stays],
        visit=whole.visit[stays],
        gap=whole.gap[stays],
        day=day[stays],
        offsets=np.append(0, np.cumsum(np.bincount(number[stays], minlength=len(whole)))),
        prediction_time=moment,
    )


def token_attributions(store: TokenStore, tokenizer: Tokenizer, attribution: Float64[np.ndarray, " T"]) -> pl.DataFrame:
    """One line a token of the record: ``row, code, days_before`` (null: static), ``attribution``.

    ``code`` is what the model reads: the ancestor that a code fell back to, or ``[UNK]``.
    """
    names = pl.Series(tokenizer.codes, dtype=pl.String)
    real = store.code != CLS
    row = np.repeat(np.arange(len(store)), store.lengths)
    days = pl.Series(store.day[real].astype(np.float64))
    columns = {
        "row": row[real],
        "code": names[store.code[real].astype(np.int64)],
        "days_before": days.set(days.is_infinite(), None),
        "attribution": attribution[real],
    }
    return pl.DataFrame(columns, schema=LONG)


def feature_attributions(
    records: Records,
    names: list[str],
    columns: Int64[np.ndarray, " u"],
    attribution: Float64[np.ndarray, "n u"],
    pairs: tuple[Pair, ...] = (),
) -> pl.DataFrame:
    """One line an event that a column of the wide part speaks of, as ``token_attributions``.

    Columns of the record as a whole are the codes ``age`` and ``record``, without days.

    Args:
        names: of all columns of the feature matrix.
        columns: which of them ``attribution`` is of.
        pairs: whose columns are among them.
    """
    if records.history is None:
        raise ValueError("attributions to features need the history they were built from")
    row, place = np.nonzero(attribution)
    first = len(names) - len(pairs)  # columns of pairs come last
    kind, codes = zip(*(_kind_and_codes(names[at], pairs[at - first : at - first + 1] if at >= first else ())
                        for at in columns), strict=True)  # fmt: skip
    given = pl.DataFrame(
        {
            "row": row,
            "kind": pl.Series(kind, dtype=pl.String)[place],
            "code": pl.Series(codes, dtype=pl.List(pl.String))[place],
            "attribution": attribution[row, place],
        }
    )
    given = given.with_columns(pl.col("attribution") / pl.col("code").list.len()).explode("code")
    events = _events(records.history, records.rows)
    parts = [_shared(given.filter(pl.col("kind") == name), events, which) for name, which in EVENTS_OF.items()]
    undated = given.filter(~pl.col("kind").is_in(list(EVENTS_OF)))
    parts.append(undated.with_columns(days_before=pl.lit(None, pl.Float64)).select(list(LONG)))
    return pl.concat(parts).cast(LONG)  # type: ignore[arg-type]


def _kind_and_codes(name: str, pair: tuple[Pair, ...]) -> tuple[str, list[str]]:
    if pair:
        return pair[0].kind, [pair[0].first, pair[0].second]
    if name in RECORD_COLUMNS:
        return "", [AGE if name == "age" else RECORD]
    kind, _, code = name.partition(":")
    return kind, [code]


def pair_attributions(
    store: TokenStore, pairs: Sequence[PairIds], attribution: Float64[np.ndarray, "n P"]
) -> Float64[np.ndarray, " T"]:
    """What is attributed to pairs of ids, by halves to the dated tokens of either, of each row alike."""
    row = np.repeat(np.arange(len(store)), store.lengths)  # [T]
    found = np.zeros(len(store.code))
    for column, (_, *ids) in enumerate(pairs):
        for code in ids:
            own = (store.code == code) & (store.visit > 0)  # [T]
            number = np.bincount(row[own], minlength=len(store))  # [n]
            found[own] += (attribution[:, column] / 2 / np.maximum(number, 1))[row[own]]
    return found


def _events(history: pl.DataFrame, rows: pl.DataFrame) -> pl.DataFrame:
    """``row, code, day`` (before prediction_time), ``value`` (finite or null) of every dated event."""
    keys = rows.select("subject_id", "prediction_time").with_row_index("row").cast({"row": pl.Int64})
    own = history.filter(pl.col("time").is_not_null() & ~pl.col("code").is_in([BIRTH, DEATH]))
    value = pl.col("numeric_value").cast(pl.Float64)
    return own.join(keys, on=["subject_id", "prediction_time"], how="inner").select(
        "row",
        "code",
        ((pl.col("prediction_time") - pl.col("time")).dt.total_microseconds() / US_PER_DAY).alias("day"),
        pl.when(value.is_finite()).then(value).alias("value"),
    )


def _shared(given: pl.DataFrame, events: pl.DataFrame, which: pl.Expr) -> pl.DataFrame:
    """What is given to a code of a row, in equal parts to those of its events that ``which`` names."""
    joined = events.filter(which).join(given, on=["row", "code"], how="inner")
    each = pl.col("attribution") / pl.len().over("row", "code")
    return joined.select("row", "code", pl.col("day").alias("days_before"), each.alias("attribution"))


def merged(parts: list[pl.DataFrame]) -> pl.DataFrame:
    """The lines of both parts of a blend together: one a row, code and day."""
    rounded = pl.concat(parts).with_columns(pl.col("days_before").round(DAY_DECIMALS))
    keys = ["row", "code", "days_before"]
    return rounded.group_by(keys).agg(pl.col("attribution").sum()).sort(keys, nulls_last=False)
