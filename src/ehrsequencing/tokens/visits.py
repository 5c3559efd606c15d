"""Visits in a flat stream of sorted tokens: where they begin, the gaps between them, which of them are kept."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float64, Int64, Shaped

US_PER_DAY = 86_400_000_000


@dataclass(frozen=True, eq=False)
class Spans:
    """Rows and groups (a visit, or a row's static tokens) of T tokens sorted by row, static first, then visit.

    Attributes:
        row, static: of each token.
        row_begin, row_end: each row's range of tokens; N rows.
        begin: first token of each group; V groups.
        group: each token's group.
    """

    row: Int64[np.ndarray, " T"]
    static: Bool[np.ndarray, " T"]
    row_begin: Int64[np.ndarray, " N"]
    row_end: Int64[np.ndarray, " N"]
    begin: Int64[np.ndarray, " V"]
    group: Int64[np.ndarray, " T"]

    @classmethod
    def of(
        cls, row: Int64[np.ndarray, " T"], static: Bool[np.ndarray, " T"], key: Shaped[np.ndarray, " T"], n_rows: int
    ) -> Spans:
        """A group begins where the row changes or, within a row, the visit's ``key`` does."""
        row_end = np.cumsum(np.bincount(row, minlength=n_rows))  # [N]
        begins = np.ones(len(row), dtype=bool)  # [T]
        begins[1:] = (row[1:] != row[:-1]) | (key[1:] != key[:-1])
        begin = np.flatnonzero(begins)  # [V]
        return cls(row, static, np.append(0, row_end)[:-1], row_end, begin, np.cumsum(begins) - 1)

    @property
    def _row_of_group(self) -> Int64[np.ndarray, " V"]:
        return self.row[self.begin]

    def gaps(self, time: Int64[np.ndarray, " T"]) -> Float64[np.ndarray, " T"]:
        """Days from the last event of the visit before to the first of this one, at least 0; 0 where there is none.

        Args:
            time: in microseconds.
        """
        gap = np.zeros(len(self.begin))  # [V]
        first, before = self.begin[1:], self.begin[1:] - 1
        follows = (self.row[first] == self.row[before]) & ~self.static[before]
        gap[1:][follows] = np.maximum(time[first] - time[before], 0)[follows] / US_PER_DAY
        return gap[self.group]

    def keep(self, max_tokens: int) -> Bool[np.ndarray, " T"]:
        """Which tokens stay where a row, [CLS] included, may have ``max_tokens``.

        Static tokens (at most half the places) and the most recent whole visits; of a single longer visit its latest.
        """
        places = max_tokens - 1
        n_static = np.bincount(self.row[self.static], minlength=len(self.row_begin))
        if (self.row_end - self.row_begin).max(initial=0) <= places and n_static.max(initial=0) <= places // 2:
            return np.ones(len(self.row), dtype=bool)
        at = np.arange(len(self.row))
        static = self.keep_static(max_tokens)
        n_static = np.bincount(self.row[static], minlength=len(self.row_begin))
        budget = (places - n_static)[self.row]  # [T]
        row_end = self.row_end[self.row]  # [T]
        whole = row_end - self.begin[self.group] <= budget
        last = np.append(self._row_of_group[1:] != self._row_of_group[:-1], True)[: len(self.begin)]  # [V]
        latest = last[self.group] & (row_end - at <= budget)
        return static | (~self.static & (whole | latest))

    def keep_static(self, max_tokens: int) -> Bool[np.ndarray, " T"]:
        """The static tokens that stay: at most half the places beside [CLS]."""
        return self.static & (np.arange(len(self.row)) - self.row_begin[self.row] < (max_tokens - 1) // 2)

    def numbers(self, kept: Bool[np.ndarray, " T"]) -> Int64[np.ndarray, " T"]:
        """1, 2, … over each row's kept visits in order; 0 for static tokens."""
        last = np.append(self.begin[1:], len(self.row))[: len(self.begin)] - 1  # kept, if any of its visit is
        so_far = np.append(0, np.cumsum(kept[last] & ~self.static[last]))  # [V + 1]
        first_group = self.group[self.row_begin[self._row_of_group]]  # [V]
        return (so_far[1:] - so_far[first_group])[self.group]

    def smallest(self, values: np.ndarray, default: float) -> np.ndarray:
        """The smallest value of each row; ``default`` for rows without tokens. Shape [N]."""
        found = np.full(len(self.row_begin), default, dtype=values.dtype)
        filled = np.flatnonzero(self.row_end > self.row_begin)
        if len(filled):
            found[filled] = np.minimum.reduceat(values, self.row_begin[filled])
        return found
