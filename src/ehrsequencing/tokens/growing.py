"""A token store on disk that grows part by part and ends sorted by subject: no more than a part is in memory."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from ehrsequencing.errors import EhrError, Exit
from ehrsequencing.files import unwritable
from ehrsequencing.tokens.store import ROWS_AT_ONCE, TOKEN_ARRAYS, Counts, TokenStore

_DRAFT = "in_parts"


def grow(stores: Iterable[TokenStore], folder: Path) -> TokenStore:
    """The rows of all stores, of one tokenizer, sorted by subject (a subject's own rows as they came); memory-mapped.

    What stands in ``folder`` is replaced; it is there as long as the store is read.

    Raises:
        EhrError: exit 14 where the folder cannot be written; exit 10 where the stores are of several tokenizers.
    """
    try:
        shutil.rmtree(folder, ignore_errors=True)
        parts = _append(stores, folder / _DRAFT)
        order = np.argsort(parts.subject_id, kind="stable")
        if (np.diff(order) == 1).all():
            return parts
        blocks = (parts.take(order[begin : begin + ROWS_AT_ONCE]) for begin in range(0, len(order), ROWS_AT_ONCE))
        whole = _append(blocks, folder)
        shutil.rmtree(folder / _DRAFT)
        return TokenStore(**{**vars(whole), "counts": parts.counts})
    except OSError as error:
        refused = unwritable(folder, error)
        if refused is None:
            raise
        raise refused from None


def _append(stores: Iterable[TokenStore], folder: Path) -> TokenStore:
    """The rows of all stores one after the other: tokens in files, rows in memory."""
    folder.mkdir(parents=True, exist_ok=True)
    rows: dict[str, list[np.ndarray]] = {"subject_id": [], "prediction_time": [], "truncated": [], "lengths": []}
    makers, counts = set[str](), Counts()
    paths = {name: folder / f"{name}.bin" for name in TOKEN_ARRAYS}
    for path in paths.values():
        path.unlink(missing_ok=True)
    for store in stores:
        makers.add(store.tokenizer_fingerprint)
        counts += Counts.of(store)
        for name, kept in rows.items():
            kept.append(np.asarray(getattr(store, name)))
        for name, path in paths.items():
            with path.open("ab") as file:
                file.write(np.ascontiguousarray(getattr(store, name), dtype=TOKEN_ARRAYS[name]).data)
    if len(makers) != 1:
        fix = "tokenise all of them with one tokenizer"
        raise EhrError(f"token stores of {len(makers)} tokenizers", str(folder), fix, code=Exit.CONFIG)
    joined = {name: np.concatenate(kept) for name, kept in rows.items()}
    offsets = np.concatenate([[0], np.cumsum(joined.pop("lengths"))]).astype(np.int64)
    tokens: dict[str, Any] = {
        name: np.memmap(path, TOKEN_ARRAYS[name], mode="r", shape=(int(offsets[-1]),)) for name, path in paths.items()
    }
    return TokenStore(**tokens, **joined, offsets=offsets, tokenizer_fingerprint=makers.pop(), counts=counts.to_json())
