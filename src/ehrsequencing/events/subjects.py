"""Subjects' numbers: stable ids for foreign keys, and hashes that divide subjects into splits and folds."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import polars as pl
from jaxtyping import Bool, Float64, Int64, Shaped

from ehrsequencing.config import SPLIT_FRACTIONS
from ehrsequencing.errors import EhrError, Exit
from ehrsequencing.events.writing import write_parquet

PRIVATE_NOTE = "subject_ids.parquet leads from subject_id back to the source's own identifiers. Do not share it.\n"


def rank_hash(subject_ids: Shaped[np.ndarray, " n"], seed: int, purpose: str) -> Float64[np.ndarray, " n"]:
    """A uniform number in [0, 1) a subject (or group, by its name): the first 53 bits of blake2b(purpose, seed, id).

    It depends on nothing but its three arguments, so that adding a subject moves no other, and is the same on every
    machine and in every version.

    >>> rank_hash(np.array([1, 2]), 0, "splits").round(3).tolist()
    [0.611, 0.019]
    """
    stem = f"{purpose}/{seed}/"
    words = (hashlib.blake2b(f"{stem}{subject}".encode(), digest_size=8).digest() for subject in subject_ids.tolist())
    bits = np.frombuffer(b"".join(words), dtype=">u8") >> np.uint64(11)
    return bits.astype(np.float64) * 2.0**-53


def assign_splits(
    subject_ids: Shaped[np.ndarray, " n"], seed: int, fractions: Mapping[str, float] = SPLIT_FRACTIONS
) -> Shaped[np.ndarray, " n"]:
    """The split of each subject, from its own hash only; ``fractions`` (name -> share) add up to 1.

    >>> assign_splits(np.arange(6, 11), 0).tolist()
    ['train', 'train', 'train', 'held_out', 'train']
    """
    shares = np.array(list(fractions.values()), dtype=np.float64)
    if shares.min(initial=1.0) < 0 or not np.isclose(shares.sum(), 1.0):
        raise EhrError(
            f"the shares of the splits add up to {shares.sum():g}, expected 1",
            ", ".join(f"{name} {share:g}" for name, share in fractions.items()),
            "give shares of 0 or more that add up to 1",
            code=Exit.CONFIG,
        )
    upper = np.cumsum(shares)[:-1]
    return np.array(list(fractions))[np.searchsorted(upper, rank_hash(subject_ids, seed, "splits"), side="right")]


def assign_folds(subject_ids: Shaped[np.ndarray, " n"], seed: int, folds: int) -> Int64[np.ndarray, " n"]:
    """The fold, 0 to ``folds`` - 1, of each subject, from its own hash only (so of about equal sizes, not exactly)."""
    return np.floor(rank_hash(subject_ids, seed, "folds") * folds).astype(np.int64)


def among(subject_ids: Int64[np.ndarray, " n"], known: Int64[np.ndarray, " m"]) -> Bool[np.ndarray, " n"]:
    """Which of the subjects are among ``known`` (ascending): by look-ups, however many are known.

    >>> among(np.array([5, 2, 9]), np.array([1, 2, 9])).tolist()
    [False, True, True]
    """
    at = np.minimum(np.searchsorted(known, subject_ids), len(known) - 1)
    return known[at] == subject_ids if len(known) else np.zeros(len(subject_ids), dtype=bool)


def hash_ids(source_ids: Iterable[str], *, salt: str = "", where: str = "") -> Int64[np.ndarray, " n"]:
    """A positive 63-bit id for each foreign identifier: blake2b of the text, keyed by ``salt`` where one is given.

    Without a salt, an identifier that can be guessed (a short record number) can be found again by trying; give a
    secret one (at most 64 bytes) where ids leave the house.

    Raises:
        EhrError: two identifiers share a number (one chance in 10⁵ at ten million subjects), or the salt is too long.
    """
    texts, key = list(source_ids), salt.encode()
    if len(key) > hashlib.blake2b.MAX_KEY_SIZE:
        raise EhrError("the salt is longer than 64 bytes", where, "shorten it", code=Exit.CONFIG)
    blake2b = hashlib.blake2b
    words = [blake2b(text.encode(), digest_size=8, key=key).digest() for text in texts]
    numbers = (np.frombuffer(b"".join(words), dtype=">u8") >> np.uint64(1)).astype(np.int64)
    if pl.Series(numbers).n_unique() < len(set(texts)):
        raise EhrError("two identifiers have the same hash", where, "choose another salt", code=Exit.DATA)
    return numbers


def private_folder(out: Path) -> Path:
    """Where the way back to the source's identifiers is kept: beside the dataset, never inside it."""
    return out.parent / f"{out.name}.private"


def write_id_map(out: Path, source_ids: pl.Series, subject_ids: pl.Series) -> Path:
    """Write ``subject_ids.parquet`` (source_id, subject_id), readable by its owner only, and return its path."""
    folder = private_folder(out)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    target, draft = folder / "subject_ids.parquet", folder / ".subject_ids.parquet.tmp"
    table = pl.DataFrame({"source_id": source_ids, "subject_id": subject_ids}).sort("subject_id")
    os.close(os.open(draft, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600))
    write_parquet(table, draft)
    draft.replace(target)
    (folder / "README.txt").write_text(PRIVATE_NOTE, encoding="utf-8")
    return target
