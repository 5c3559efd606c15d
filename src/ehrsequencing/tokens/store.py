"""Token sequences of many subjects as flat arrays plus offsets: never padded, memory-mapped from disk."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32, Int32, Int64, Integer

from ehrsequencing.errors import EhrError, Exit
from ehrsequencing.files import staged
from ehrsequencing.tokens.vocabulary import UNK

TOKEN_ARRAYS: dict[str, type] = {
    "code": np.int32,
    "value": np.float32,
    "age": np.float32,
    "visit": np.int32,
    "gap": np.float32,
    "day": np.float32,
}
"""What is kept of each token, and how."""
TOKENS_AT_ONCE, ROWS_AT_ONCE = 2_000_000, 20_000
"""Read together, of a store larger than that."""
_DESCRIPTION = "store.json"
ROW_ARRAYS = ("subject_id", "prediction_time", "truncated")


@dataclass(frozen=True)
class Counts:
    """What ``tokenize`` counted on the way; of several histories together, the sum."""

    tokens: int = 0
    fallbacks: int = 0
    bad_values: int = 0
    left_out_tokens: int = 0
    rows_without_birth: int = 0
    events_before_birth: int = 0

    def __add__(self, other: Counts) -> Counts:
        return Counts(**{item.name: getattr(self, item.name) + getattr(other, item.name) for item in fields(self)})

    @classmethod
    def of(cls, store: TokenStore) -> Counts:
        """What a store that ``tokenize`` made tells."""
        if not store.counts:
            return cls()
        tokens = int(store.offsets[-1]) - len(store)
        told = dict(store.counts)
        return cls(tokens=tokens, fallbacks=round(told.pop("fallback_share") * tokens), **told)

    def to_json(self) -> dict[str, Any]:
        """For people: the share of tokens that fell back to an ancestor, and the numbers."""
        numbers = asdict(self)
        return {"fallback_share": float(numbers.pop("fallbacks") / max(numbers.pop("tokens"), 1)), **numbers}


@dataclass(frozen=True, eq=False)
class TokenStore:
    """N sequences of T tokens together; row i is ``[offsets[i], offsets[i + 1])`` and begins with ``[CLS]``.

    Attributes:
        code: token ids.
        value: standardised values; NaN where there is none.
        age: years at the token; NaN for static tokens and where the birth is unknown. Of ``[CLS]``: at prediction_time.
        visit: 1, 2, … of the kept visits in order; 0 for ``[CLS]`` and static tokens.
        gap: days between the visit's first event and the last one of the visit before it; 0 for a record's first visit.
            Of ``[CLS]``: days from the last event to prediction_time; 0 without any event.
        day: days before prediction_time, at least 0; inf for static tokens, 0 for ``[CLS]``.
        offsets: where each row begins, and T.
        subject_id: of each row.
        prediction_time: of each row, datetime64[us].
        truncated: rows of which visits or tokens were left out to keep ``max_tokens``.
        tokenizer_fingerprint: of the tokenizer that made it.
        counts: what ``tokenize`` counted on the way; part of ``stats``.
    """

    code: Int32[np.ndarray, " T"]
    value: Float32[np.ndarray, " T"]
    age: Float32[np.ndarray, " T"]
    visit: Int32[np.ndarray, " T"]
    gap: Float32[np.ndarray, " T"]
    day: Float32[np.ndarray, " T"]
    offsets: Int64[np.ndarray, " N1"]
    subject_id: Int64[np.ndarray, " N"]
    prediction_time: np.ndarray
    truncated: Bool[np.ndarray, " N"]
    tokenizer_fingerprint: str = ""
    counts: dict[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.subject_id)

    @property
    def lengths(self) -> Int64[np.ndarray, " N"]:
        """Tokens of each row, ``[CLS]`` included."""
        return np.diff(self.offsets)

    @cached_property
    def stats(self) -> dict[str, Any]:
        """Figures for people: how many rows and tokens, how many were cut short, how much of it is unknown."""
        lengths, events = self.lengths, max(int((self.code >= UNK).sum()), 1)
        return {
            "n_rows": len(self),
            "n_tokens": int(self.offsets[-1]),
            "median_length": float(np.median(lengths)) if len(lengths) else 0.0,
            "max_length": int(lengths.max(initial=0)),
            "truncated_rows": int(self.truncated.sum()),
            "rows_without_events": int((lengths <= 1).sum()),
            "oov_share": float((self.code == UNK).sum() / events),
            "value_share": float(np.isfinite(self.value).sum() / events),
            **self.counts,
        }

    def take(self, rows: Integer[np.ndarray, " M"] | slice) -> TokenStore:
        """The given rows, in the given order; ``counts`` of the whole store are left behind."""
        chosen = np.arange(len(self))[rows]
        source, offsets = self._places(chosen)
        arrays: dict[str, Any] = {name: np.asarray(getattr(self, name)[source]) for name in TOKEN_ARRAYS}
        arrays |= {name: np.asarray(getattr(self, name)[chosen]) for name in ROW_ARRAYS}
        return replace(self, **arrays, offsets=offsets, counts={})

    def _places(self, rows: Integer[np.ndarray, " M"]) -> tuple[Int64[np.ndarray, " t"], Int64[np.ndarray, " M1"]]:
        """Where the tokens of the rows stand, and the offsets of the rows among them."""
        lengths = self.lengths[rows]
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        inside = np.arange(offsets[-1]) - np.repeat(offsets[:-1], lengths)
        return np.repeat(self.offsets[rows], lengths) + inside, offsets

    def groups(
        self, rows: Integer[np.ndarray, " M"] | None = None, tokens: int = TOKENS_AT_ONCE
    ) -> Iterator[Int64[np.ndarray, " m"]]:
        """The rows, by subject, in groups of about so many tokens that no subject is divided between."""
        rows = np.arange(len(self)) if rows is None else rows
        rows = rows[np.argsort(self.subject_id[rows], kind="stable")]
        ends = np.cumsum(self.lengths[rows])
        last = np.append(np.diff(self.subject_id[rows]) != 0, True)[: len(rows)]  # of its subject
        begin = 0
        while begin < len(rows):
            done = int(ends[begin - 1]) if begin else 0
            full = begin + int(np.searchsorted(ends[begin:], done + tokens))
            end = full + int(np.argmax(last[full:])) + 1 if full < len(rows) else len(rows)
            yield rows[begin:end]
            begin = end

    def code_counts(self, vocab_size: int, rows: Integer[np.ndarray, " M"] | None = None) -> Int64[np.ndarray, " V"]:
        """How often each id occurs, in all rows or in those given."""
        counts = np.zeros(vocab_size, dtype=np.int64)
        for group in self.groups(rows):
            counts += np.bincount(self.code[self._places(group)[0]], minlength=vocab_size)
        return counts

    @classmethod
    def joined(cls, stores: Sequence[TokenStore]) -> TokenStore:
        """The rows of several stores of one tokenizer, one store after the other; ``counts`` are left behind.

        Raises:
            EhrError: they were made by different tokenizers (exit 10).
        """
        if len({store.tokenizer_fingerprint for store in stores}) != 1:
            fix = "tokenise all of them with one tokenizer"
            raise EhrError("token stores of different tokenizers", "TokenStore.joined", fix, code=Exit.CONFIG)
        names = (*TOKEN_ARRAYS, *ROW_ARRAYS)
        arrays: dict[str, Any] = {name: np.concatenate([getattr(store, name) for store in stores]) for name in names}
        lengths = np.concatenate([store.lengths for store in stores])
        return replace(stores[0], **arrays, offsets=np.append(0, np.cumsum(lengths)).astype(np.int64), counts={})

    @cached_property
    def fingerprint(self) -> str:
        """blake2b of the tokenizer's fingerprint and the content; the order of rows does not matter."""
        order = np.lexsort((self.prediction_time, self.subject_id))
        digest = hashlib.blake2b(self.tokenizer_fingerprint.encode(), digest_size=16)
        for name in TOKEN_ARRAYS:
            for begin in range(0, len(order), ROWS_AT_ONCE):
                values = getattr(self, name)[self._places(order[begin : begin + ROWS_AT_ONCE])[0]]
                canonical = (
                    np.where(np.isnan(values), np.float32(np.nan), values) if values.dtype.kind == "f" else values
                )
                digest.update(np.ascontiguousarray(canonical).tobytes())
        offsets = np.concatenate([[0], np.cumsum(self.lengths[order])]).astype(np.int64)
        for column in (offsets, self.subject_id[order], self.prediction_time[order]):
            digest.update(np.ascontiguousarray(column).tobytes())
        return digest.hexdigest()

    def save(self, folder: Path | str) -> None:
        """Write one ``.npy`` file an array and ``store.json`` beside them; whole, or not at all."""
        with staged(folder, marker=_DESCRIPTION) as draft:
            for name in (*TOKEN_ARRAYS, *ROW_ARRAYS, "offsets"):
                np.save(draft / f"{name}.npy", getattr(self, name), allow_pickle=False)
            meta = {"tokenizer": self.tokenizer_fingerprint, "counts": self.counts}
            (draft / _DESCRIPTION).write_text(json.dumps(meta, sort_keys=True), encoding="utf-8")

    @classmethod
    def load(cls, folder: Path | str, mmap: bool = True) -> TokenStore:
        """Read what ``save`` wrote, memory-mapped unless told otherwise; EhrError (exit 13) where it is not whole."""
        folder = Path(folder)
        try:
            meta = json.loads((folder / _DESCRIPTION).read_text(encoding="utf-8"))
            arrays = {
                name: np.load(folder / f"{name}.npy", mmap_mode="r" if mmap else None, allow_pickle=False)
                for name in (*TOKEN_ARRAYS, *ROW_ARRAYS, "offsets")
            }
            return cls(**arrays, tokenizer_fingerprint=meta["tokenizer"], counts=meta["counts"])
        except (OSError, ValueError, KeyError) as error:
            raise EhrError(
                f"the token store cannot be read: {error}", str(folder), "tokenise again", code=Exit.BUNDLE
            ) from None
