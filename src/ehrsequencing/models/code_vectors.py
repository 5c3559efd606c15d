"""Starts an encoder's code embeddings from given vectors, for instance of the codes' descriptions."""

from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from jaxtyping import Float64, Integer
from safetensors import SafetensorError, safe_open

from ehrsequencing.errors import EhrError
from ehrsequencing.models.behrt import BEHRTModel
from ehrsequencing.tokens import N_SPECIAL, Tokenizer, TokenStore

PARQUET = "a parquet file with the columns code (text) and vector (a list of numbers, as many for every code)"
SAFETENSORS = (
    "a safetensors file with one tensor 'vectors' [n, d] and the n codes as a JSON list in its metadata 'codes'"
)


@dataclass(frozen=True, eq=False)
class CodeVectors:
    """n codes and a vector for each, all of one width d, finite, no code twice."""

    codes: tuple[str, ...]
    vectors: Float64[np.ndarray, "n d"]

    @classmethod
    def read(cls, path: Path | str) -> CodeVectors:
        """Read a parquet or a safetensors file.

        Raises:
            EhrError: exit 11 where it is missing, of another form, or has repeated codes or numbers that are not
                finite.
        """
        path = Path(path).expanduser()
        if not path.is_file():
            raise EhrError("the file of code vectors does not exist", str(path), "check the path")
        readers = {".parquet": _parquet, ".safetensors": _safetensors}
        if path.suffix not in readers:
            what = f"code vectors in a '{path.suffix}' file"
            raise EhrError(what, str(path), f"give {PARQUET}, or {SAFETENSORS}")
        return cls(*_checked(*readers[path.suffix](path), path))


def start_from_vectors(
    encoder: BEHRTModel, tokenizer: Tokenizer, store: TokenStore, given: CodeVectors
) -> dict[str, Any]:
    """Start the codes that have a vector from it; returns how much of the vocabulary and of the tokens that covers.

    Vectors are centred, projected to the embedding's width W where theirs is another (see ``fitted_to``), and scaled to
    the standard deviation 1/√W at which embeddings start. Codes without a vector start at random, as always.

    Raises:
        EhrError: exit 11 where no code of the vocabulary has a vector, or all vectors are the same.
    """
    of_code = {code: row for row, code in enumerate(given.codes)}
    known = [(number, of_code[code]) for number, code in enumerate(tokenizer.codes) if code in of_code]
    known = [(number, row) for number, row in known if number >= N_SPECIAL]
    if not known:
        what = f"none of the {len(given.codes):,} code vectors is of a code in the vocabulary"
        fix = f"name codes as the records do, for instance {', '.join(tokenizer.codes[N_SPECIAL : N_SPECIAL + 3])}"
        raise EhrError(what, "code vectors", fix)
    ids, rows = (np.array(part) for part in zip(*known, strict=True))
    width = encoder.embeddings.code_embedding.embedding_dim
    vectors = torch.from_numpy(fitted_to(given.vectors, width)[rows]).float()
    encoder.embeddings.set_code_vectors(torch.from_numpy(ids), vectors)
    return _coverage(ids, store, tokenizer, given, width)


def fitted_to(vectors: Float64[np.ndarray, "n d"], width: int) -> Float64[np.ndarray, "n W"]:
    """The vectors centred, on their first W principal components where d is not W, at a standard deviation of 1/√W.

    Fewer components than W leave zeros. The sign of a component is such that its largest loading is positive, so that
    the same file gives the same vectors.
    """
    size = float(np.abs(vectors).max()) or 1.0
    centred = vectors / size  # so that no product overflows
    centred = centred - centred.mean(axis=0)
    found = centred
    if vectors.shape[1] != width:
        _, axes = np.linalg.eigh(centred.T @ centred)  # ascending
        axes = axes[:, ::-1][:, :width]  # [d, ≤W]
        axes = axes * np.sign(axes[np.abs(axes).argmax(axis=0), np.arange(axes.shape[1])])
        found = np.zeros((len(vectors), width))
        found[:, : axes.shape[1]] = centred @ axes
    spread = float(np.sqrt((found**2).mean()))
    if spread <= 1e-12:
        raise EhrError("all code vectors are the same", "code vectors", "give vectors that tell the codes apart")
    return np.asarray(found / (spread * math.sqrt(width)))


def _coverage(
    ids: Integer[np.ndarray, " m"], store: TokenStore, tokenizer: Tokenizer, given: CodeVectors, width: int
) -> dict[str, Any]:
    counts = store.code_counts(tokenizer.vocab_size)
    return {
        "given": len(given.codes),
        "width": given.vectors.shape[1],
        "projected": given.vectors.shape[1] != width,
        "codes_covered": len(ids),
        "share_of_vocabulary": len(ids) / (tokenizer.vocab_size - N_SPECIAL),
        "share_of_tokens": float(counts[ids].sum() / max(counts[N_SPECIAL - 1 :].sum(), 1)),  # [UNK] is a token, too
        "unknown_codes": len(given.codes) - len(ids),
    }


def _parquet(path: Path) -> tuple[list[Any], list[Any]]:
    try:
        frame = pl.read_parquet(path)
    except (OSError, pl.exceptions.PolarsError) as error:
        raise EhrError(f"the file cannot be read: {error}", str(path), f"give {PARQUET}") from None
    missing = [name for name in ("code", "vector") if name not in frame.columns]
    if missing:
        what = f"no column {', '.join(missing)} (found: {', '.join(frame.columns)})"
        raise EhrError(what, str(path), f"give {PARQUET}")
    if not isinstance(frame.schema["vector"], pl.List | pl.Array) or frame.schema["code"] != pl.String:
        what = f"columns code ({frame.schema['code']}) and vector ({frame.schema['vector']})"
        raise EhrError(what, str(path), f"give {PARQUET}")
    return frame["code"].to_list(), frame["vector"].to_list()


def _safetensors(path: Path) -> tuple[list[Any], list[Any]]:
    try:
        with safe_open(str(path), framework="np") as file:
            codes = json.loads((file.metadata() or {})["codes"])
            vectors = file.get_tensor("vectors")
    except (OSError, SafetensorError, KeyError, ValueError, TypeError, AttributeError) as error:
        raise EhrError(f"the file cannot be read: {error}", str(path), f"give {SAFETENSORS}") from None
    if vectors.ndim != 2 or not isinstance(codes, list) or len(codes) != len(vectors):
        what = f"vectors of shape {list(vectors.shape)} for {len(codes):,} codes"
        raise EhrError(what, str(path), f"give {SAFETENSORS}")
    return codes, list(vectors)


def _checked(codes: list[Any], vectors: list[Any], path: Path) -> tuple[tuple[str, ...], Float64[np.ndarray, "n d"]]:
    def refuse(what: str, fix: str) -> EhrError:
        return EhrError(what, str(path), fix)

    if not codes:
        raise refuse("no code vectors in the file", "write one vector a code")
    if not all(isinstance(code, str) and code for code in codes):
        raise refuse("a code that is not text, or empty", "name every code")
    twice = sorted(code for code, times in Counter(codes).items() if times > 1)
    if twice:
        raise refuse(f"{len(twice):,} codes stand twice, the first being {twice[0]}", "give one vector a code")
    widths = {0 if vector is None else len(vector) for vector in vectors}
    if len(widths) > 1 or 0 in widths:
        raise refuse(f"vectors of {len(widths)} widths ({min(widths)} to {max(widths)})", "give all the same width")
    try:
        table = np.array(vectors, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise refuse(f"vectors that are not numbers: {error}", "write numbers") from None
    wrong = ~np.isfinite(table).all(axis=1) if table.ndim == 2 else np.ones(1, dtype=bool)
    if wrong.any():
        first = codes[int(wrong.argmax())]
        raise refuse(
            f"{int(wrong.sum()):,} vectors with a number that is not finite, the first of {first}",
            "leave such codes out",
        )
    return tuple(codes), table
