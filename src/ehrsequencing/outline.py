"""How the records of a batch lie in memory, as numbers on the host: so that no device is ever asked for them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Int64


@dataclass(frozen=True, eq=False)
class Outline:
    """Of B records in rows of L places, whose real tokens lead their row.

    Attributes:
        lengths: real tokens of each record.
        visit: the visit number of each of the T real tokens, record after record.
        width: L.
    """

    lengths: Int64[np.ndarray, " B"]
    visit: Int64[np.ndarray, " T"]
    width: int

    @classmethod
    def of(cls, mask: Bool[np.ndarray, "B L"], visit: Int64[np.ndarray, "B L"]) -> Outline:
        """From a batch's mask and visit numbers.

        >>> Outline.of(np.array([[True, True], [True, False]]), np.array([[0, 1], [0, 0]])).lengths.tolist()
        [2, 1]
        """
        return cls(mask.sum(axis=1), visit[mask], mask.shape[1])

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def full(self) -> bool:
        """No row is padded."""
        return len(self.visit) == len(self) * self.width

    @cached_property
    def row(self) -> Int64[np.ndarray, " T"]:
        """The record of each real token."""
        return np.repeat(np.arange(len(self)), self.lengths)

    @cached_property
    def position(self) -> Int64[np.ndarray, " T"]:
        """Where in its record each real token stands, from 0."""
        return np.arange(len(self.visit)) - np.repeat(np.cumsum(self.lengths) - self.lengths, self.lengths)

    @cached_property
    def places(self) -> Int64[np.ndarray, " T"]:
        """Where in the flattened [B, L] each real token lies."""
        return self.row * self.width + self.position

    @cached_property
    def n_visits(self) -> int:
        """V: the largest visit number, and one for visit 0."""
        return int(self.visit.max(initial=0)) + 1

    @cached_property
    def slots(self) -> Int64[np.ndarray, " T"]:
        """Where in the flattened [B, V] the visit of each real token lies."""
        return self.row * self.n_visits + self.visit

    @cached_property
    def visit_sizes(self) -> Int64[np.ndarray, "B V"]:
        """Tokens of each visit of each record."""
        return np.bincount(self.slots, minlength=len(self) * self.n_visits).reshape(len(self), self.n_visits)

    @cached_property
    def opens(self) -> Bool[np.ndarray, " T"]:
        """The first token of a visit."""
        return (np.diff(self.visit, prepend=-1) != 0) | (self.position == 0)

    @cached_property
    def visits(self) -> Outline:
        """Of the records' visits, each a "token" of its record; numbers are without gaps."""
        counts = np.bincount(self.row[self.opens], minlength=len(self))
        return Outline(counts, self.visit[self.opens], self.n_visits)

    def widened(self, width: int) -> Outline:
        """The same records in rows of ``width`` places."""
        return replace(self, width=width)
