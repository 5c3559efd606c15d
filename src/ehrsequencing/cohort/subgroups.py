"""Which groups a row of the cohort is in, for figures told apart: sex, age, and what the task names. Never an input."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence

import polars as pl

from ehrsequencing.cohort.predicates import compile_predicate
from ehrsequencing.cohort.subjects import ALWAYS, KEYS, count_up_to, last_up_to
from ehrsequencing.cohort.times import birthday
from ehrsequencing.config import CodeMatch, Predicate
from ehrsequencing.events import BIRTH

SEX_CODES = "^(SEX|GENDER)(//|$)"
"""A regular expression of the codes that name a sex, whatever their case."""
AGE_BANDS = (
    (0, "under 18"), (18, "18 to 39"), (40, "40 to 49"), (50, "50 to 59"), (60, "60 to 69"), (70, "70 to 79"),
    (80, "80 or over"),
)  # fmt: skip
"""From which birthday on, and the name."""
UNKNOWN, YES, NO = "unknown", "yes", "no"
Label = Callable[[str], str]


def subgroups(
    known: pl.LazyFrame,
    codes: Sequence[str],
    rows: pl.DataFrame,
    asked: Mapping[str, CodeMatch | Predicate],
    *,
    where: str = "subgroups",
    must_occur: bool = True,
) -> pl.DataFrame:
    """``subject_id, prediction_time`` and one column of text a name: ``sex``, ``age`` and those asked for.

    Only what is known at prediction_time counts: static records, and of dated ones the last at or before it (of several
    at one time the last by text). ``sex`` is a code ``SEX//…`` or ``GENDER//…``, ``age`` a band of years at
    prediction_time; a name that is asked for takes the place of one of these. Where nothing is recorded a group is
    called "unknown".

    Args:
        known: events at the times they became known (``as_known``).
        codes: those that occur.
        rows: one row a prediction.
        asked: by name, codes: which of them the patient has; or a predicate: whether it held ("yes", "no").
        where: for messages.
        must_occur: whether codes that do not occur at all are refused.

    Raises:
        EhrError: (COHORT) a name's codes do not occur.
    """
    sex = [code for code in codes if re.match(SEX_CODES, code, re.IGNORECASE)]
    wanted: dict[str, CodeMatch | Predicate] = {"sex": CodeMatch(any=tuple(sex))} if sex else {}
    wanted |= asked
    hits = {
        name: compile_predicate(_predicate(each), codes, f"{where}.{name}", must_occur=must_occur)
        for name, each in wanted.items()
    }
    events = _hits(known, rows, hits)
    columns = {} if "age" in asked else {"age": _ages(rows, events)}
    for name, each in wanted.items():
        own = events.filter(pl.col(name)).select("subject_id", "time", "code").unique()
        if isinstance(each, Predicate):
            columns[name] = _whether(rows, own)
        else:
            columns[name] = _which(rows, own, _after_slashes if name not in asked else _after_prefix(each))
    columns.setdefault("sex", pl.repeat(UNKNOWN, rows.height, dtype=pl.String, eager=True))
    order = dict.fromkeys(("sex", "age", *asked))
    return rows.select(KEYS).with_columns(columns[name].alias(name) for name in order)


def _predicate(asked: CodeMatch | Predicate) -> Predicate:
    return asked if isinstance(asked, Predicate) else Predicate(code=asked)


def _hits(known: pl.LazyFrame, rows: pl.DataFrame, hits: Mapping[str, pl.Expr]) -> pl.DataFrame:
    """``subject_id, time, code`` (static: ``ALWAYS``) of births and of named events, and which names they go by."""
    people = rows.lazy().select("subject_id").unique()
    named = known.filter(pl.any_horizontal(pl.col("code") == BIRTH, *hits.values()).fill_null(False))
    columns = named.select("subject_id", pl.col("time").fill_null(ALWAYS), "code", **hits)
    return columns.join(people, on="subject_id", how="semi").collect(engine="streaming")


def _ages(rows: pl.DataFrame, events: pl.DataFrame) -> pl.Series:
    births = events.filter((pl.col("code") == BIRTH) & (pl.col("time") > ALWAYS))
    born = births.group_by("subject_id").agg(birth=pl.col("time").min())
    dated = rows.select(KEYS).join(born, on="subject_id", how="left", maintain_order="left")
    band = pl.lit(UNKNOWN)
    for years, name in AGE_BANDS:
        begins = birthday(pl.col("birth"), years) if years else pl.col("birth")
        band = pl.when(begins <= pl.col("prediction_time")).then(pl.lit(name)).otherwise(band)
    return dated.select(band).to_series()


def _whether(rows: pl.DataFrame, own: pl.DataFrame) -> pl.Series:
    """Whether the patient had one of these events at or before prediction_time."""
    had = count_up_to(rows, own) > 0
    return had.replace_strict({True: YES, False: NO}, return_dtype=pl.String)


def _which(rows: pl.DataFrame, own: pl.DataFrame, label: Label) -> pl.Series:
    """The code of the last of these events at or before prediction_time."""
    found = last_up_to(rows, own.rename({"code": "found"}))
    codes = found.drop_nulls().unique().to_list()
    return found.replace_strict(codes, [label(code) for code in codes], default=UNKNOWN, return_dtype=pl.String)


def _after_slashes(code: str) -> str:
    """A code without its first part.

    >>> _after_slashes("SEX//F"), _after_slashes("Gender//FEMALE"), _after_slashes("SEX")
    ('F', 'FEMALE', 'SEX')
    """
    return code.split("//", 1)[-1] or code


def _after_prefix(match: CodeMatch | Predicate) -> Label:
    """A code without the prefix that it was asked for by; otherwise the whole code."""
    prefix = match.prefix or "" if isinstance(match, CodeMatch) else ""
    return lambda code: code.removeprefix(prefix) or code
