"""The one error a user meets: what was expected, what was found, what to do about it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from enum import IntEnum


class Exit(IntEnum):
    """Exit codes of the command line, one a kind of mistake (documented in docs/reference/exit-codes.md)."""

    USAGE = 2
    CONFIG = 10
    DATA = 11
    COHORT = 12
    BUNDLE = 13
    ENVIRONMENT = 14
    LEAKAGE = 15


class EhrError(Exception):
    """A mistake in the input, told without a traceback.

    Args:
        what: what is wrong: expected and found.
        where: the file, row, key or column concerned.
        fix: what the reader can do about it.
        code: the exit code of the command line.

    >>> print(EhrError("column 'code' is missing", "visits.csv", "add the column", code=Exit.DATA))
    column 'code' is missing
      where: visits.csv
      fix:   add the column
    """

    def __init__(self, what: str, where: str = "", fix: str = "", *, code: Exit = Exit.DATA) -> None:
        super().__init__(what, where, fix)
        self.what, self.where, self.fix, self.code = what, where, fix, code

    def __str__(self) -> str:
        lines = [self.what]
        if self.where:
            lines.append(f"  where: {self.where}")
        if self.fix:
            lines.append(f"  fix:   {self.fix}")
        return "\n".join(lines)


def nearest(word: str, known: Iterable[str], count: int = 3) -> list[str]:
    """The known words that look most like ``word``, best first; possibly none.

    >>> nearest("horizon_day", ["horizon_days", "washout"])
    ['horizon_days']
    """
    return difflib.get_close_matches(word, list(known), n=count, cutoff=0.6)
