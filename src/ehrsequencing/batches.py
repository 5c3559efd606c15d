"""From token stores and cohorts to tensors: padded batches, micro-batches, targets, random cuts for pretraining."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from functools import cached_property

import numpy as np
import polars as pl
import torch
from jaxtyping import Bool, Float32, Float64, Int64, Integer, Shaped
from torch import Tensor
from torch.nn.functional import pad

from ehrsequencing.config import DAYS_PER_YEAR, OUTCOME
from ehrsequencing.device import moved
from ehrsequencing.errors import EhrError, Exit
from ehrsequencing.features import FeatureMatrix
from ehrsequencing.outline import Outline
from ehrsequencing.pairs import Pair
from ehrsequencing.timegrid import TimeGrid
from ehrsequencing.tokens import PAD, Tokenizer, TokenStore

PADDED = 4
"""A micro-batch has at most so many times its budget of places, padding included."""
_US_PER_DAY = 86_400_000_000


@dataclass(frozen=True, eq=False)
class Batch:
    """B padded sequences of at most L tokens; ``[CLS]`` stands first in each.

    Attributes:
        code: token ids, ``PAD`` where padded.
        value, has_value: standardised values; 0 and False where there is none.
        age, age_known: years; 0 and False where unknown (static tokens, subjects without a birth).
        visit: 0 for ``[CLS]``, static tokens and padding; 1, 2, … otherwise.
        gap: days since the previous visit.
        mask: True at real tokens.
    """

    code: Int64[Tensor, "B L"]
    value: Float32[Tensor, "B L"]
    has_value: Bool[Tensor, "B L"]
    age: Float32[Tensor, "B L"]
    age_known: Bool[Tensor, "B L"]
    visit: Int64[Tensor, "B L"]
    gap: Float32[Tensor, "B L"]
    mask: Bool[Tensor, "B L"]

    def __len__(self) -> int:
        return self.code.shape[0]

    def widened(self, length: int) -> Batch:
        """The same records padded to ``length`` tokens, at least their own L."""
        if length == self.code.shape[1]:
            return self
        wide = self.laid(lambda x: widened(x, length))
        return wide.outlined(self.outline.widened(length)) if "outline" in self.__dict__ else wide

    def laid(self, pack: Callable[[Tensor], Tensor]) -> Batch:
        """The same tokens in another layout: ``pack`` of every array."""
        return Batch(**{item.name: pack(getattr(self, item.name)) for item in fields(self)})

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on another device, its outline known there without asking the device."""
        there = torch.device(device)
        if self.code.device == there:
            return self
        return self.laid(lambda x: moved(x, there)).outlined(self.outline)

    @cached_property
    def outline(self) -> Outline:
        """How the records lie, on the host; of a batch elsewhere that did not come by ``to`` this waits for it."""
        return Outline.of(self.mask.cpu().numpy(), self.visit.cpu().numpy())

    def outlined(self, outline: Outline) -> Batch:
        """The same batch, told its outline."""
        self.__dict__["outline"] = outline  # what cached_property would have put there
        return self


def widened(x: Shaped[Tensor, "B L *rest"], length: int) -> Shaped[Tensor, "B L2 *rest"]:
    """Padded with zeros to ``length`` along the second axis."""
    return pad(x, (0, 0) * (x.ndim - 2) + (0, length - x.shape[1]))


def collate(store: TokenStore, rows: Integer[np.ndarray, " B"]) -> Batch:
    """The given rows of ``store``, padded to the longest of them."""
    mask, source = _padded(store, rows)  # [B, L]
    value = np.where(mask, store.value[source], np.float32(np.nan))  # [B, L]
    age = np.where(mask, store.age[source], np.float32(np.nan))  # [B, L]
    return Batch(
        code=torch.from_numpy(np.where(mask, store.code[source], PAD).astype(np.int64)),
        value=torch.from_numpy(np.nan_to_num(value)),
        has_value=torch.from_numpy(~np.isnan(value)),
        age=torch.from_numpy(np.nan_to_num(age)),
        age_known=torch.from_numpy(~np.isnan(age)),
        visit=torch.from_numpy(np.where(mask, store.visit[source], 0).astype(np.int64)),
        gap=torch.from_numpy(np.where(mask, store.gap[source], np.float32(0))),
        mask=torch.from_numpy(mask),
    )


def days_ago(store: TokenStore, rows: Integer[np.ndarray, " B"]) -> Float32[Tensor, "B L"]:
    """Days before prediction_time of each token of ``collate``'s batch; infinite where it has no time, or pads."""
    mask, source = _padded(store, rows)  # [B, L]
    return torch.from_numpy(np.where(mask, store.day[source], np.float32(np.inf)))


def _padded(
    store: TokenStore, rows: Integer[np.ndarray, " B"]
) -> tuple[Bool[np.ndarray, "B L"], Int64[np.ndarray, "B L"]]:
    """Which places of rows padded to the longest are real, and where their tokens stand in the store (0: nowhere)."""
    lengths = store.lengths[rows]  # [B]
    at = np.arange(lengths.max(initial=1))  # [L]
    mask = at < lengths[:, None]  # [B, L]
    return mask, np.where(mask, store.offsets[rows][:, None] + at, 0)


def micro_batches(
    store: TokenStore, rows: Integer[np.ndarray, " B"], token_budget: int
) -> list[Integer[np.ndarray, " b"]]:
    """Split one random batch by length, longest first, each part of at most ``token_budget`` tokens.

    Padded it has at most PADDED times as many places. A row longer than the budget makes a micro-batch of its own. The
    same rows come out, each once.
    """
    lengths = store.lengths[rows]
    order = rows[np.argsort(-lengths, kind="stable")]
    ordered = -np.sort(-lengths)
    parts: list[Integer[np.ndarray, " b"]] = []
    begin, ends = 0, np.cumsum(ordered)
    while begin < len(order):
        real = int(np.searchsorted(ends, (ends[begin - 1] if begin else 0) + token_budget, side="right")) - begin
        size = max(min(real, int(PADDED * token_budget // ordered[begin])), 1)
        parts.append(order[begin : begin + size])
        begin += size
    return parts


def epoch_batches(n: int, batch_size: int, generator: np.random.Generator) -> Iterator[Int64[np.ndarray, " b"]]:
    """Every index in [0, n) once, in random batches; the last may be smaller."""
    order = generator.permutation(n)
    for begin in range(0, n, batch_size):
        yield order[begin : begin + batch_size]


def cut_at_random(
    store: TokenStore, rows: Integer[np.ndarray, " B"], generator: np.random.Generator, fraction: float
) -> TokenStore:
    """The given rows, ``fraction`` of them (each by its own coin) cut at a time uniform over the record's span.

    The cut plays prediction_time: what lies after it goes, ``[CLS]`` takes its age and the days since the event
    before it, and ``day`` counts from it. Static tokens and the first event always stay. For pretraining, so that the
    encoder knows short histories, too.
    """
    whole = store.take(rows)
    dated = np.isfinite(whole.day)
    dated[whole.offsets[:-1]] = False  # [CLS] is no event
    row = np.repeat(np.arange(len(whole)), whole.lengths)  # [T]
    first, last = _row_extremes(whole.day, dated, row, len(whole))  # [B] days before prediction_time
    coin, place = generator.random(len(whole)), generator.random(len(whole))  # drawn for all: no dependence on data
    moved = (coin < fraction) & np.isfinite(first)
    cut = np.where(moved, last + place * (first - last), 0.0).astype(np.float32)  # [B] days before prediction_time
    cut = np.where(moved, np.minimum(cut, first), cut)  # rounding must not lose the first event
    stays = ~np.isfinite(whole.day) | (whole.day >= cut[row])
    return cut_at(whole, cut, moved, stays)


def cut_at(
    whole: TokenStore,
    cut: Float32[np.ndarray, " B"],
    moved: Bool[np.ndarray, " B"],
    stays: Bool[np.ndarray, " T"],
) -> TokenStore:
    """The rows ``moved`` cut at ``cut`` days before their prediction_time, of all rows the tokens that stay.

    ``[CLS]`` stays, with the age at the cut and the days since the last event that stays; ``day`` counts from the cut.
    """
    row = np.repeat(np.arange(len(whole)), whole.lengths)  # [T]
    cls = np.zeros(len(row), dtype=bool)
    cls[whole.offsets[:-1]] = True
    stays = cls | stays
    _, latest = _row_extremes(whole.day, np.isfinite(whole.day) & ~cls & stays, row, len(whole))
    age, gap = whole.age.copy(), whole.gap.copy()
    day = np.where(cls, whole.day, whole.day - cut[row])
    starts = whole.offsets[:-1]
    age[starts] = np.where(moved, np.maximum(age[starts] - cut / np.float32(DAYS_PER_YEAR), 0), age[starts])
    gap[starts] = np.where(moved, latest - cut, gap[starts])
    lengths = np.bincount(row[stays], minlength=len(whole))
    return replace(
        whole,
        code=whole.code[stays],
        value=whole.value[stays],
        age=age[stays],
        visit=whole.visit[stays],
        gap=gap[stays],
        day=day[stays],
        offsets=np.append(0, np.cumsum(lengths)),
        prediction_time=whole.prediction_time - (cut.astype(np.float64) * _US_PER_DAY).astype("timedelta64[us]"),
    )


def _row_extremes(
    day: Float32[np.ndarray, " T"], chosen: Bool[np.ndarray, " T"], row: Int64[np.ndarray, " T"], n: int
) -> tuple[Float32[np.ndarray, " n"], Float32[np.ndarray, " n"]]:
    """Largest and smallest ``day`` of each row's chosen tokens; NaN where there is none."""
    largest, smallest = np.full(n, np.nan, np.float32), np.full(n, np.nan, np.float32)
    own, days = row[chosen], day[chosen]
    begin = np.flatnonzero(np.diff(own, prepend=-1))
    if len(begin):
        largest[own[begin]] = np.maximum.reduceat(days, begin)
        smallest[own[begin]] = np.minimum.reduceat(days, begin)
    return largest, smallest


@dataclass(frozen=True, eq=False)
class Targets:
    """Outcomes of n rows, truncated at τ and located on the grid; CPU tensors (``numpy()`` shares their memory).

    Attributes:
        duration: days.
        event: 0 censored, 1 outcome, 2, 3, … competing events.
        bin: index k of the bin (a, b] that holds the duration.
        fraction: elapsed share of that bin, in (0, 1].
    """

    duration: Float64[Tensor, " n"]
    event: Int64[Tensor, " n"]
    bin: Int64[Tensor, " n"]
    fraction: Float64[Tensor, " n"]

    @classmethod
    def of(cls, duration: Float64[np.ndarray, " n"], event: Integer[np.ndarray, " n"], grid: TimeGrid) -> Targets:
        """Locate durations (days) on ``grid``."""
        bins, fraction = grid.locate(duration)
        return cls(
            torch.tensor(duration), torch.tensor(event.astype(np.int64)), torch.tensor(bins), torch.tensor(fraction)
        )

    def __len__(self) -> int:
        return self.duration.shape[0]

    def take(self, index: Int64[Tensor, " m"] | Integer[np.ndarray, " m"]) -> Targets:
        """The given rows."""
        at = torch.as_tensor(index)
        return Targets(**{item.name: getattr(self, item.name)[at] for item in fields(self)})

    def to(self, device: torch.device | str) -> Targets:
        """The same targets on another device."""
        return Targets(**{item.name: moved(getattr(self, item.name), torch.device(device)) for item in fields(self)})


@dataclass(frozen=True, eq=False)
class VisitPlaces:
    """Where n visits are predicted: each in a window (a row of ``tokens``), after the visit of that number there."""

    tokens: TokenStore
    window: Int64[np.ndarray, " n"]
    visit: Int64[np.ndarray, " n"]

    def __len__(self) -> int:
        return len(self.window)

    def take(self, rows: Integer[np.ndarray, " m"]) -> VisitPlaces:
        """The given visits, over the same windows."""
        return replace(self, window=self.window[rows], visit=self.visit[rows])

    @cached_property
    def fingerprint(self) -> str:
        """blake2b of the windows' content and of the places, in order (32 hexadecimal digits)."""
        digest = hashlib.blake2b(self.tokens.fingerprint.encode(), digest_size=16)
        for part in (self.tokens.subject_id, self.tokens.prediction_time, self.window, self.visit):
            digest.update(np.ascontiguousarray(part).tobytes())
        return digest.hexdigest()


@dataclass(frozen=True, eq=False)
class VisitData:
    """Every visit of a cohort's subjects as a prediction of its own, read from windows of their whole records.

    Attributes:
        rows: ``subject_id, prediction_time, duration, event, split``, truncated at τ, sorted by subject and time; the
            rows of a subject share its split.
        places: where each row is predicted.
        evaluated: which of these rows each row of the SurvivalData is.
    """

    rows: pl.DataFrame
    places: VisitPlaces
    evaluated: Int64[np.ndarray, " m"]
    grid: TimeGrid

    def __len__(self) -> int:
        return self.rows.height

    def index(self, split: str) -> Int64[np.ndarray, " k"]:
        """Positions of the visits of ``train``, ``tuning`` or ``held_out``, ascending."""
        return np.flatnonzero((self.rows["split"] == split).to_numpy())

    def targets(self, index: Integer[np.ndarray, " k"]) -> Targets:
        """Outcomes of the given visits, each from its own prediction_time on."""
        return _targets(self.rows, index, self.grid)

    def patients(self, split: str) -> tuple[Int64[np.ndarray, " p"], Int64[np.ndarray, " p"]]:
        """The position of each patient's first visit, and how many there are, in a split."""
        at = self.index(split)
        _, first, count = np.unique(self.rows["subject_id"].to_numpy()[at], return_index=True, return_counts=True)
        return at[first], count

    def evenly(self, split: str, each: int) -> Int64[np.ndarray, " k"]:
        """``each`` visits of every patient of a split, evenly over its record; of short records some come twice."""
        begin, count = self.patients(split)
        places = (np.arange(each) + 0.5) / each
        return (begin[:, None] + np.floor(places * count[:, None]).astype(np.int64)).ravel()


@dataclass(frozen=True, eq=False)
class SurvivalData:
    """What all models of one split or fold share; row i is the same subject everywhere.

    Attributes:
        rows: ``subject_id, prediction_time, duration, event, split``, truncated at τ.
        tokens, features: of the same rows, in the same order.
        causes: the names of events 1, 2, …, the outcome first.
        visits: with predictions at every visit, what the encoder learns from; ``rows`` are then the visits evaluated.
        pairs: of codes that tell of the outcome on the training rows; their columns are the last ones of ``features``.
    """

    rows: pl.DataFrame
    tokens: TokenStore
    features: FeatureMatrix
    grid: TimeGrid
    tokenizer: Tokenizer
    cohort_fingerprint: str
    causes: tuple[str, ...] = (OUTCOME,)
    visits: VisitData | None = None
    pairs: tuple[Pair, ...] = ()

    def __post_init__(self) -> None:
        sizes = {"tokens": len(self.tokens), "features": len(self.features.values)}
        for name, size in sizes.items():
            if size != self.rows.height:
                raise EhrError(
                    f"expected {self.rows.height} rows of {name}, found {size}",
                    "SurvivalData",
                    "build them from the same rows",
                    code=Exit.COHORT,
                )
        if not np.array_equal(self.rows["subject_id"].to_numpy(), self.tokens.subject_id):
            raise EhrError("tokens are of other subjects", "SurvivalData", "tokenise these rows", code=Exit.COHORT)
        if self.tokens.tokenizer_fingerprint != self.tokenizer.fingerprint:
            raise EhrError("tokens were made by another tokenizer", "SurvivalData", "tokenise again", code=Exit.COHORT)
        highest = int(self.rows["event"].max() or 0)  # type: ignore[arg-type]
        if highest > len(self.causes):
            what = f"expected event codes up to {len(self.causes)} ({', '.join(self.causes)}), found {highest}"
            raise EhrError(what, "SurvivalData", "name the competing causes", code=Exit.COHORT)

    def __len__(self) -> int:
        return self.rows.height

    @property
    def n_causes(self) -> int:
        """R."""
        return len(self.causes)

    def index(self, split: str) -> Int64[np.ndarray, " m"]:
        """Positions of the rows of ``train``, ``tuning`` or ``held_out``, ascending."""
        return np.flatnonzero((self.rows["split"] == split).to_numpy())

    def targets(self, index: Integer[np.ndarray, " m"]) -> Targets:
        """Outcomes of the given positions."""
        return _targets(self.rows, index, self.grid)


def _targets(rows: pl.DataFrame, index: Integer[np.ndarray, " m"], grid: TimeGrid) -> Targets:
    duration = rows["duration"].cast(pl.Float64).to_numpy()[index]
    return Targets.of(duration, rows["event"].cast(pl.Int64).to_numpy()[index], grid)
