"""Which codes get an id, and where a code without one falls back to."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

import numpy as np
import polars as pl
from jaxtyping import Int64, Integer

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


class SubjectCounts:
    """How many subjects have each code, added up over groups of subjects, and what gets an id by that.

    A code needs ``min_subjects`` training subjects. One that has fewer hands its subjects to its parent, level by
    level, so that an ancestor gets an id only where rare codes below it need one; a code with an id of its own
    hands nothing on.

    Of codes that have fewer than ``min_subjects`` so far, and of these alone, it is kept who has them, and which of
    those subjects have an ancestor of theirs: so that levels can be joined without counting anybody twice.
    """

    def __init__(self, min_subjects: int) -> None:
        self.min_subjects = min_subjects
        self.counts: Counter[str] = Counter()
        self._rare = self._above = pl.DataFrame(schema=_PAIRS)

    def add(self, subject: Int64[np.ndarray, " n"], code: Integer[np.ndarray, " n"], names: Sequence[str]) -> None:
        """Distinct pairs of a subject, who was in no group before, and the number of one of the ``names``."""
        self.counts.update(dict(zip(names, np.bincount(code, minlength=len(names)).tolist(), strict=True)))
        rare = np.array([self.counts[name] < self.min_subjects for name in names], dtype=bool)
        number = {name: place for place, name in enumerate(names)}
        low_counts = np.flatnonzero(rare).tolist()
        up = [(low, number[above]) for low in low_counts for above in ancestors(names[low]) if above in number]
        if up:
            self._above = pl.concat([self._above, _named(*_with_ancestors(subject, code, np.array(up)), names)])
        still = self._rare["code"].is_in([name for name, n in self.counts.items() if n < self.min_subjects])
        own = rare[code]
        self._rare = pl.concat([self._rare.filter(still), _named(subject[own], code[own], names)])

    def codes(self, max_codes: int) -> tuple[str, ...]:
        """The codes that get an id, the most widespread first (ties by name), ``max_codes`` at most.

        >>> counts = SubjectCounts(min_subjects=2)
        >>> names = ["I10", "ICD10//E11.1", "ICD10//E11.2"]
        >>> counts.add(np.array([1, 2, 3, 4]), np.array([0, 0, 1, 2]), names)
        >>> counts.codes(max_codes=10)
        ('I10', 'ICD10//E11')
        """
        depth_of = {code: len(ancestors(code)) for code in self.counts}
        columns = {"code": list(depth_of), "subjects": list(self.counts.values()), "depth": list(depth_of.values())}
        own = pl.DataFrame(columns, schema_overrides=_DEPTH)
        waiting = self._rare.join(own.select("code", "depth"), on="code", how="left")
        kept: list[pl.DataFrame] = []
        for depth in range(max(depth_of.values(), default=0), -1, -1):
            frequent = own.filter((pl.col("depth") == depth) & (pl.col("subjects") >= self.min_subjects))
            level = waiting.filter(pl.col("depth") == depth).select("subject_id", "code").unique()
            handed = level.join(frequent, on="code", how="semi").join(
                self._above, on=["subject_id", "code"], how="anti"
            )
            more = handed.group_by("code").agg(pl.len().cast(pl.Int64).alias("more"))
            joined = frequent.join(more, on="code", how="left")
            kept.append(joined.select("code", pl.col("subjects") + pl.col("more").fill_null(0)))
            level = level.join(frequent, on="code", how="anti")
            sizes = level.group_by("code").agg(pl.len().cast(pl.Int64).alias("subjects"))
            kept.append(sizes.filter(pl.col("subjects") >= self.min_subjects))
            rare = level.join(kept[-1], on="code", how="anti")
            waiting = pl.concat([waiting.filter(pl.col("depth") < depth), _to_parents(rare, depth)])
        chosen = pl.concat(kept).sort(["subjects", "code"], descending=[True, False]).head(max_codes)
        return tuple(chosen["code"].to_list())


_PAIRS = {"subject_id": pl.Int64, "code": pl.String}
_DEPTH = {"code": pl.String, "subjects": pl.Int64, "depth": pl.Int64}


def _named(subject: np.ndarray, code: np.ndarray, names: Sequence[str]) -> pl.DataFrame:
    return pl.DataFrame({"subject_id": subject, "code": pl.Series(names, dtype=pl.String).gather(code)}, schema=_PAIRS)


def _with_ancestors(
    subject: Int64[np.ndarray, " n"], code: Integer[np.ndarray, " n"], up: Int64[np.ndarray, "e 2"]
) -> tuple[Int64[np.ndarray, " m"], Int64[np.ndarray, " m"]]:
    """The pairs at an ancestor (``up``: code, ancestor) whose subject has a pair below it."""
    pairs = pl.DataFrame({"subject_id": subject, "code": code.astype(np.int64)})
    edges = pl.DataFrame({"code": up[:, 0], "above": up[:, 1]})
    asked = pairs.join(edges, on="code", how="inner").select("subject_id", code="above")
    found = pairs.join(asked.unique(), on=["subject_id", "code"], how="semi")
    return found["subject_id"].to_numpy(), found["code"].to_numpy()


def _to_parents(rare: pl.DataFrame, depth: int) -> pl.DataFrame:
    names = rare["code"].unique().to_list()
    up = pl.DataFrame({"code": names, "above": [parent(code) for code in names]}, schema_overrides=_UP)
    joined = rare.join(up, on="code", how="inner").drop_nulls("above")
    return joined.select("subject_id", pl.col("above").alias("code"), pl.lit(depth - 1, pl.Int64).alias("depth"))


_UP = {"code": pl.String, "above": pl.String}
