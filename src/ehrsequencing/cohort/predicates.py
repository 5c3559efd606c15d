"""Predicates of the task language, compiled to polars expressions over the codes that occur."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import polars as pl

from ehrsequencing.config import CodeMatch, Predicate
from ehrsequencing.errors import EhrError, Exit, nearest

NEAR_CODES_SHOWN = 5


def compile_predicate(predicate: Predicate, codes: Sequence[str], where: str, *, must_occur: bool = True) -> pl.Expr:
    """A boolean expression, never null, true on the rows of ``code`` and ``numeric_value`` that count.

    ``codes`` are the distinct codes of the data. A row without a value (null, NaN or infinite) is outside every range;
    limits are compared in the column's own float32, so that a stored 0.1 lies within ``value_max: 0.1``.

    Raises:
        EhrError: (COHORT) no code matches, unless ``must_occur`` is false; near codes are named.

    >>> frame = pl.DataFrame({"code": ["HBA1C", "HBA1C", "HBA1C"], "numeric_value": [6.5, 5.0, None]},
    ...                      schema_overrides={"numeric_value": pl.Float32})
    >>> diabetic = compile_predicate(Predicate(code="HBA1C", value_min=6.5), ["HBA1C"], "outcome")
    >>> frame.select(diabetic)["code"].to_list()
    [True, False, False]
    """
    matched = matching_codes(predicate.code, codes)
    if must_occur and not matched:
        raise _occurs_nowhere(predicate.code, codes, where)
    found = pl.col("code").is_in(matched).fill_null(False)
    if predicate.value_min is None and predicate.value_max is None:
        return found
    return found & _in_range(predicate.value_min, predicate.value_max)


def distinct_codes(events: pl.LazyFrame) -> list[str]:
    """The codes that occur, sorted."""
    codes = events.select(pl.col("code").unique()).collect(engine="streaming")
    return codes["code"].drop_nulls().sort().to_list()


def matching_codes(match: str | CodeMatch, codes: Sequence[str]) -> list[str]:
    """The codes that ``match`` names, in their given order; a regex is searched for anywhere in the code.

    >>> matching_codes(CodeMatch(regex="^ICD10CM//E1[01]"), ["ICD10CM//E10.9", "ICD10CM//E13"])
    ['ICD10CM//E10.9']
    """
    return list(filter(_matcher(match), codes))


def describe_match(match: str | CodeMatch) -> str:
    """How a predicate's codes are named in messages and attrition tables.

    >>> describe_match(CodeMatch(prefix="ICD10CM//C"))
    'prefix ICD10CM//C'
    """
    if isinstance(match, str):
        return match
    if match.any is not None:
        return "any of " + ", ".join(match.any)
    return f"regex {match.regex}" if match.regex is not None else f"prefix {match.prefix}"


def describe_predicate(predicate: Predicate) -> str:
    """A predicate in words: its codes and, where given, its range of values.

    >>> describe_predicate(Predicate(code="HBA1C", value_min=6.5))
    'HBA1C >= 6.5'
    """
    text = describe_match(predicate.code)
    text += "" if predicate.value_min is None else f" >= {predicate.value_min:g}"
    return text + ("" if predicate.value_max is None else f" <= {predicate.value_max:g}")


def _matcher(match: str | CodeMatch) -> Callable[[str], bool]:
    if isinstance(match, str):
        return match.__eq__
    if match.any is not None:
        return frozenset(match.any).__contains__
    if match.regex is not None:
        pattern = re.compile(match.regex)
        return lambda code: pattern.search(code) is not None
    prefix = match.prefix or ""
    return lambda code: code.startswith(prefix)


def _in_range(low: float | None, high: float | None) -> pl.Expr:
    value = pl.col("numeric_value")
    inside = value.is_finite()
    if low is not None:
        inside &= value >= pl.lit(low, dtype=pl.Float32)
    if high is not None:
        inside &= value <= pl.lit(high, dtype=pl.Float32)
    return inside.fill_null(False)


def _occurs_nowhere(match: str | CodeMatch, codes: Sequence[str], where: str) -> EhrError:
    words = [match] if isinstance(match, str) else list(match.any or (match.regex or match.prefix or "",))
    close = list(dict.fromkeys(code for word in words for code in nearest(word, codes)))[:NEAR_CODES_SHOWN]
    fix = f"near codes: {', '.join(close)}" if close else f"the data hold {len(codes)} codes, none of them like it"
    return EhrError(f"no event in the data matches {describe_match(match)}", where, fix, code=Exit.COHORT)
