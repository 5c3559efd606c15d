"""What comes after a moment of a record: the next visit's codes, and the time to the next occurrence of each code."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float64, Int64, Integer

from ehrsequencing.batches import cut_at
from ehrsequencing.tokens import TokenStore
from ehrsequencing.tokens.numbers import distinct


@dataclass(frozen=True, eq=False)
class Moments:
    """Q moments, each after the visit of that number of a row of a store, ``day`` days before its prediction_time.

    What is known by then are the visits up to that one, and the static tokens.
    """

    row: Int64[np.ndarray, " Q"]
    visit: Int64[np.ndarray, " Q"]
    day: Float64[np.ndarray, " Q"]

    def __len__(self) -> int:
        return len(self.row)

    def take(self, index: Integer[np.ndarray, " m"]) -> Moments:
        """The given moments."""
        return Moments(self.row[index], self.visit[index], self.day[index])


@dataclass(frozen=True, eq=False)
class _Visits:
    """Of N rows: how many visits; days before prediction_time at which visit v begins, and all up to v have ended."""

    count: Int64[np.ndarray, " N"]
    begin: Float64[np.ndarray, "N V"]
    end: Float64[np.ndarray, "N V"]

    @classmethod
    def of(cls, store: TokenStore) -> _Visits:
        row = np.repeat(np.arange(len(store)), store.lengths)  # [T]
        dated = store.visit > 0
        own, visit, day = row[dated], store.visit[dated].astype(np.int64), store.day[dated].astype(np.float64)
        most = int(visit.max(initial=0)) + 1
        count = np.zeros(len(store), dtype=np.int64)
        begin, end = np.full((len(store), most), -np.inf), np.full((len(store), most), np.inf)
        opens = np.flatnonzero(np.diff(own * most + visit, prepend=-1))
        if len(opens):
            begin[own[opens], visit[opens]] = np.maximum.reduceat(day, opens)
            end[own[opens], visit[opens]] = np.minimum.reduceat(day, opens)
            count[own[opens]] = visit[opens]  # ascending within a row: the last one stays
        return cls(count, begin, np.minimum.accumulate(end, axis=1))


def one_moment_a_row(store: TokenStore, generator: np.random.Generator) -> Moments:
    """One moment of every row: the end of a visit drawn evenly from all but its last; for half of the rows, by a coin,
    a time drawn evenly between that and the next visit, as predictions are often asked for between two visits.

    A row of fewer than two visits keeps its only one, and nothing comes after.
    """
    visits = _Visits.of(store)
    draw, row = generator.random((3, len(store))), np.arange(len(store))
    several = visits.count > 1
    visit = np.where(several, 1 + np.floor(draw[0] * (visits.count - 1)).astype(np.int64), visits.count)
    day = np.where(visits.count > 0, visits.end[row, visit], 0.0)
    after = np.minimum(visits.begin[row, np.where(several, visit + 1, visit)], day)
    between = several & (draw[1] < 0.5)
    return Moments(row, visit, np.where(between, day - draw[2] * (day - np.where(between, after, 0.0)), day))


def several_moments(store: TokenStore, generator: np.random.Generator, each: int) -> Moments:
    """The ends of up to ``each`` different visits of every row, drawn from all but its last."""
    visits = _Visits.of(store)
    candidates = np.maximum(visits.count - 1, 0)
    row = np.repeat(np.arange(len(store)), candidates)
    begin = np.cumsum(candidates) - candidates
    visit = 1 + np.arange(len(row)) - begin[row]
    order = np.lexsort((generator.random(len(row)), row))  # shuffled within each row
    chosen = np.sort(order[np.arange(len(row)) - begin[row] < each])
    return Moments(row[chosen], visit[chosen], visits.end[row[chosen], visit[chosen]])


def cut_after(store: TokenStore, moments: Moments) -> TokenStore:
    """The rows, each cut at its one moment (row i is moment i's); see ``cut_at``."""
    row = np.repeat(np.arange(len(store)), store.lengths)  # [T]
    moved = _Visits.of(store).count > moments.visit
    cut = np.where(moved, moments.day, 0.0).astype(np.float32)
    return cut_at(store, cut, moved, store.visit <= moments.visit[row])


@dataclass(frozen=True, eq=False)
class Waits:
    """From each of Q moments, of N codes: days to the next occurrence, or to the record's end where there is none.

    ``seen`` tells whether the record had the code by then.
    """

    duration: Float64[np.ndarray, "Q N"]
    event: Bool[np.ndarray, "Q N"]
    seen: Bool[np.ndarray, "Q N"]


def waits(store: TokenStore, moments: Moments, codes: Integer[np.ndarray, " N"], vocab_size: int) -> Waits:
    """Time to the next occurrence of each code strictly later than the moment, in a later visit.

    The end of a record is its last event; a row that is a window of a record ends with the window, which is a stopping
    time, so that hazards are not biased by it.
    """
    own = store.take(moments.row)
    row = np.repeat(np.arange(len(own)), own.lengths)  # [T]
    slot_of = np.full(vocab_size, -1)
    slot_of[codes] = np.arange(len(codes))
    slot = slot_of[own.code]  # [T]
    place = row * len(codes) + slot  # [T] in the flattened [Q,N]
    past = own.visit <= moments.visit[row]
    wait = moments.day[row] - own.day  # [T] days; of static tokens minus infinity
    later = ~past & (wait > 0)
    end = np.zeros(len(own))
    np.maximum.at(end, row[later], wait[later])
    next_ = np.full(len(own) * len(codes), np.inf)
    comes = later & (slot >= 0)
    np.minimum.at(next_, place[comes], wait[comes])
    seen = np.zeros(len(next_), dtype=bool)
    seen[place[past & (slot >= 0)]] = True
    shape = (len(own), len(codes))
    event = np.isfinite(next_).reshape(shape)
    duration = np.where(event, next_.reshape(shape), end[:, None])
    return Waits(duration, event, seen.reshape(shape))


def next_codes(store: TokenStore, moments: Moments, vocab_size: int) -> Bool[np.ndarray, "Q V"]:
    """Which codes stand in the visit after each moment; none where there is no such visit."""
    own = store.take(moments.row)
    row = np.repeat(np.arange(len(own)), own.lengths)  # [T]
    following = own.visit == moments.visit[row] + 1
    found = np.zeros((len(own), vocab_size), dtype=bool)
    found[row[following], own.code[following]] = True
    return found


def frequent_codes(
    store: TokenStore,
    n: int,
    predicted: Bool[np.ndarray, " V"],
    rows: Int64[np.ndarray, " m"] | None = None,
    *,
    dated_only: bool = True,
) -> tuple[Int64[np.ndarray, " N"], Int64[np.ndarray, " N"]]:
    """The ``n`` codes of most subjects among those to be predicted (ties by id), and their subjects; unless asked
    otherwise only of dated ones. ``rows`` are those that count; None is all."""
    vocab = len(predicted)
    count = np.zeros(vocab, dtype=np.int64)  # [V]
    for own in map(store.take, store.groups(rows)):
        _, subject = np.unique(own.subject_id, return_inverse=True)
        owner = np.repeat(subject, own.lengths)  # [T]
        dated = ((own.visit > 0) | (not dated_only)) & predicted[own.code]
        pairs = distinct(owner[dated] * vocab + own.code[dated])
        count += np.bincount(pairs % vocab, minlength=vocab)
    order = np.argsort(-count, kind="stable")[:n]
    order = order[count[order] > 0]
    return order, count[order]


def visit_log_odds(
    store: TokenStore, vocab_size: int, rows: Int64[np.ndarray, " m"] | None = None
) -> Float64[np.ndarray, " V"]:
    """Log odds of each code's standing in a visit that follows another; half a visit is added to both sides."""
    n_visits, count = 0, np.zeros(vocab_size, dtype=np.int64)  # [V]
    for own in map(store.take, store.groups(rows)):
        row = np.repeat(np.arange(len(own)), own.lengths)  # [T]
        later = own.visit > 1
        most = int(own.visit.max(initial=0)) + 1
        visit = row[later].astype(np.int64) * most + own.visit[later]
        n_visits += len(distinct(visit))
        codes = distinct(visit * vocab_size + own.code[later]) % vocab_size
        count += np.bincount(codes, minlength=vocab_size)
    return np.log((count + 0.5) / (n_visits - count + 0.5))
