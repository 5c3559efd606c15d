"""Raw CSV tables, plain or gzipped, read block by block as text, with the number of every row kept."""

from __future__ import annotations

import csv
import gzip
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
from pyarrow import csv as pacsv

from ehrsequencing.errors import EhrError, nearest

BLOCK_BYTES = 8 << 20
"""How much of a table is parsed at once; Arrow reads up to 32 such blocks ahead."""
SUFFIXES = (".csv", ".csv.gz")


@dataclass(frozen=True)
class RawTable:
    """A table of an export, found by its name, and the header as its file writes it."""

    path: Path
    header: tuple[str, ...]

    def column(self, names: Sequence[str]) -> str | None:
        """The header's own spelling of the first of ``names`` it has, whatever the case; None where it has none."""
        spelled = {found.strip().upper(): found for found in self.header}
        return next((spelled[name] for name in names if name in spelled), None)

    def require(self, names: Sequence[str]) -> str:
        """The header's spelling of the first of ``names`` it has.

        Raises:
            EhrError: it has none of them; the nearest column is named.
        """
        found = self.column(names)
        if found is not None:
            return found
        spelled = {column.strip().upper(): column for column in self.header}
        close = [spelled[word] for name in names for word in nearest(name, spelled, 1)]
        fix = f"did you mean '{close[0]}'? Rename it" if close else f"found: {', '.join(self.header)}"
        raise EhrError(f"column {' or '.join(names)} is missing", str(self.path), fix)


def find_table(folder: Path, name: str) -> RawTable | None:
    """``name.csv`` or ``name.csv.gz`` in ``folder``, whatever the case; None where there is neither.

    Raises:
        EhrError: there are several, or the file has no readable header or two columns of one name.
    """
    wanted = {name.lower() + suffix for suffix in SUFFIXES}
    found = sorted(path for path in folder.iterdir() if path.name.lower() in wanted)
    if len(found) > 1:
        names = ", ".join(path.name for path in found)
        raise EhrError(f"found {names}, expected one of them", str(folder), "remove those that should not be read")
    return RawTable(found[0], _read_header(found[0])) if found else None


def read_blocks(table: RawTable, columns: Mapping[str, str | None]) -> Iterator[tuple[pl.DataFrame, list[int]]]:
    """Blocks of the wanted columns as stripped text (empty = null) with their ``row``, and rows of a wrong width.

    Args:
        table: where to read.
        columns: name wanted -> name in the header; None for a column the table does not have, which is then all null.

    Rows are numbered as a spreadsheet does: the header is row 1.

    Raises:
        EhrError: the file is damaged: not UTF-8, cut short, or with an unclosed quote.
    """
    present = {name: found for name, found in columns.items() if found is not None}
    ragged: list[int] = []
    told, row = 0, 2
    for block in _batches(table.path, list(present.values()), ragged):
        frame = pl.DataFrame(pl.from_arrow(block)).select(
            pl.col(found).str.strip_chars().replace("", None).alias(name) for name, found in present.items()
        )
        rows = _row_numbers(row, frame.height, ragged)
        row = int(rows[-1]) + 1 if frame.height else row
        absent = [pl.lit(None, dtype=pl.String).alias(name) for name, found in columns.items() if found is None]
        new, told = ragged[told:], len(ragged)
        yield frame.with_columns(pl.Series("row", rows, dtype=pl.Int64), *absent), new
    if ragged[told:]:
        yield pl.DataFrame(schema={**dict.fromkeys(columns, pl.String), "row": pl.Int64}), ragged[told:]


def _row_numbers(start: int, count: int, ragged: list[int]) -> np.ndarray:
    """The next ``count`` row numbers from ``start`` that are not among the rows of a wrong width (ascending).

    >>> _row_numbers(2, 3, [3]).tolist()
    [2, 4, 5]
    """
    ahead = ragged[bisect_left(ragged, start) :]
    candidates = np.arange(start, start + count + len(ahead), dtype=np.int64)
    return candidates[~np.isin(candidates, ahead)][:count]


def _batches(path: Path, columns: list[str], ragged: list[int]) -> Iterator[pa.RecordBatch]:
    unclosed: list[int] = []

    def set_aside(row: Any) -> str:
        if "\n" in (row.text or "").strip():
            unclosed.append(row.number)
        ragged.append(row.number)
        return "skip"

    convert = pacsv.ConvertOptions(
        include_columns=columns,
        column_types=dict.fromkeys(columns, pa.string()),
        strings_can_be_null=True,
        null_values=[""],
    )
    parse = pacsv.ParseOptions(newlines_in_values=True, ignore_empty_lines=False, invalid_row_handler=set_aside)
    read = pacsv.ReadOptions(use_threads=False, block_size=BLOCK_BYTES)
    try:
        with pa.input_stream(path, compression="detect") as stream:
            for batch in pacsv.open_csv(stream, read_options=read, parse_options=parse, convert_options=convert):
                _refuse_unclosed(path, unclosed)
                yield batch
            _refuse_unclosed(path, unclosed)
    except (pa.ArrowException, OSError) as error:
        raise _damaged(path, error) from None


def _read_header(path: Path) -> tuple[str, ...]:
    try:
        unpack = gzip.open if path.name.lower().endswith(".gz") else open
        with unpack(path, "rt", encoding="utf-8-sig", newline="") as text:
            header = tuple(next(csv.reader(text), []))
    except (OSError, EOFError, UnicodeDecodeError, csv.Error) as error:
        raise _damaged(path, error) from None
    names = [name.strip().upper() for name in header]
    if not names:
        raise EhrError("the file is empty, expected a header", str(path), "export the table again, or remove it")
    if len(set(names)) < len(names):
        twice = ", ".join(sorted({name for name in names if names.count(name) > 1}))
        raise EhrError(f"several columns are called {twice}", str(path), "rename or remove all but one")
    return header


def _refuse_unclosed(path: Path, rows: list[int]) -> None:
    if rows:
        what = f"row {rows[0]} runs over several lines and does not fit the header: a quote is not closed"
        raise EhrError(what, str(path), "close the quote, or export the table again")


def _damaged(path: Path, error: BaseException) -> EhrError:
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return EhrError(f"the file cannot be read: {reason}", str(path), "export it again as UTF-8 CSV, plain or gzipped")
