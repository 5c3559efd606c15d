"""Which codes get an id, and where a code without one falls back to."""

from __future__ import annotations

import re

import polars as pl

PAD, CLS, MASK, UNK = 0, 1, 2, 3
SPECIAL = ("[PAD]", "[CLS]", "[MASK]", "[UNK]")
N_SPECIAL = len(SPECIAL)

_SEPARATOR = "//"
_ICD = re.compile(r"ICD-?(9|10|11)?([A-Z]*|-[A-Z]+)", re.IGNORECASE)
_ATC_LEVELS = (1, 3, 4, 5)
_ICD_CATEGORY = 3
"""Characters of an ICD category (E11), the coarsest level a code falls back to within ICD."""


def parent(code: str) -> str | None:
    """The next coarser code, or None at the top of a hierarchy.

    ICD codes lose their last character down to the three-character category, ATC codes one level;
    any other code loses its last ``//`` part while at least two parts remain (a vocabulary's bare name is no code).

    >>> parent("ICD10CM//E11.65"), parent("ICD10CM//E11.6"), parent("ICD10CM//E11")
    ('ICD10CM//E11.6', 'ICD10CM//E11', None)
    >>> parent("DIAGNOSIS//ICD//10//E1165"), parent("ATC//A10BA02"), parent("LAB//50912//mg/dL"), parent("SEX//F")
    ('DIAGNOSIS//ICD//10//E116', 'ATC//A10BA', 'LAB//50912', None)
    """
    *vocabulary, last = code.split(_SEPARATOR)
    shorter = _shorten(vocabulary, last)
    if shorter:
        return _SEPARATOR.join([*vocabulary, shorter])
    return _SEPARATOR.join(vocabulary) if len(vocabulary) > 1 else None


def _shorten(vocabulary: list[str], last: str) -> str | None:
    if any(part.upper() == "ATC" for part in vocabulary):
        return next((last[:n] for n in reversed(_ATC_LEVELS) if n < len(last)), None)
    if not any(_ICD.fullmatch(part) for part in vocabulary):
        return None
    category, dot, rest = last.partition(".")
    if dot:
        return f"{category}.{rest[:-1]}" if len(rest) > 1 else category
    return last[:-1] if len(last) > _ICD_CATEGORY else None


def ancestors(code: str) -> list[str]:
    """All coarser codes, nearest first.

    >>> ancestors("ICD10CM//E11.65")
    ['ICD10CM//E11.6', 'ICD10CM//E11']
    """
    found: list[str] = []
    above = parent(code)
    while above is not None:
        found.append(above)
        above = parent(above)
    return found


def fit_vocabulary(pairs: pl.DataFrame, min_subjects: int, max_codes: int) -> tuple[str, ...]:
    """The codes that get an id, the most widespread first (ties by name).

    A code needs ``min_subjects`` training subjects. One that has fewer hands its subjects to its parent, level by
    level, so that an ancestor gets an id only where rare codes below it need one; a code with an id of its own
    hands nothing on. Of more than ``max_codes``, the most widespread are kept.

    Args:
        pairs: distinct ``subject_id, code`` of the training split.

    >>> pairs = pl.DataFrame({"subject_id": [1, 2, 3, 4], "code": ["I10", "I10", "ICD10//E11.1", "ICD10//E11.2"]})
    >>> fit_vocabulary(pairs, min_subjects=2, max_codes=10)
    ('I10', 'ICD10//E11')
    """
    names = pairs["code"].unique().sort().to_list()
    lineage = {code: ancestors(code) for code in names}
    depths = pl.DataFrame({"code": names, "depth": [len(lineage[code]) for code in names]}, schema_overrides=_DEPTH)
    waiting = pairs.select("subject_id", "code").join(depths, on="code", how="left")
    kept: list[pl.DataFrame] = []
    for depth in range(max((len(above) for above in lineage.values()), default=0), -1, -1):
        level = waiting.filter(pl.col("depth") == depth).select("subject_id", "code").unique()
        sizes = level.group_by("code").len("subjects")
        kept.append(sizes.filter(pl.col("subjects") >= min_subjects))
        rare = level.join(kept[-1], on="code", how="anti")
        waiting = pl.concat([waiting.filter(pl.col("depth") < depth), _to_parents(rare, depth)])
    chosen = pl.concat(kept).sort(["subjects", "code"], descending=[True, False]).head(max_codes)
    return tuple(chosen["code"].to_list())


_DEPTH = {"code": pl.String, "depth": pl.Int64}


def _to_parents(rare: pl.DataFrame, depth: int) -> pl.DataFrame:
    names = rare["code"].unique().to_list()
    up = pl.DataFrame({"code": names, "above": [parent(code) for code in names]}, schema_overrides=_UP)
    joined = rare.join(up, on="code", how="inner").drop_nulls("above")
    return joined.select("subject_id", pl.col("above").alias("code"), pl.lit(depth - 1, pl.Int64).alias("depth"))


_UP = {"code": pl.String, "above": pl.String}
