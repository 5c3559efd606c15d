"""Raw tables read block by block as text, with the number of every row kept."""

from __future__ import annotations

import codecs
import math
from bisect import bisect_left
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
from pyarrow import csv as pacsv
from pyarrow import parquet as pq

from ehrsequencing.errors import EhrError
from ehrsequencing.progress import counting
from ehrsequencing.sources.tables import UTF8, RawTable, damaged, mend

BLOCK_BYTES = 8 << 20
"""How much of a text table is parsed at once; Arrow reads up to 32 such blocks ahead."""
BLOCK_ROWS = 65_536
"""How many rows of a parquet table are read at once."""
_UNPACKED = 8
"""A gzipped table is about so many times as long as its file: for the remaining time."""


@dataclass(frozen=True)
class Block:
    """Some rows of a table.

    Attributes:
        file: the table's name.
        frame: the wanted columns as stripped text (empty = null), ``row``, its number, and ``file``.
        ragged: the numbers of rows that have too few or too many fields.
        mended: how many bytes were no UTF-8 and were read as Windows-1252.
    """

    file: str
    frame: pl.DataFrame
    ragged: list[int]
    mended: int = 0


def read_blocks(table: RawTable, columns: Mapping[str, str | None]) -> Iterator[Block]:
    """The wanted columns of a table, block by block.

    Args:
        table: where to read.
        columns: name wanted -> name in the header; None for a column the table does not have, which is then all null.

    Rows are numbered as a spreadsheet does: a header is row 1 (a parquet file has none; its first row is row 1). Dates
    and times of a parquet file are written in ISO 8601, UTC where they have a zone; whole numbers without a point.

    Raises:
        EhrError: the file is damaged: cut short, with an unclosed quote, or of another encoding than the one stated.
    """
    if table.empty:
        return
    present = {name: found for name, found in columns.items() if found is not None}
    absent = [pl.lit(None, dtype=pl.String).alias(name) for name in columns if name not in present]
    for block in _parquet_blocks(table, present) if table.is_parquet else _text_blocks(table, present):
        stripped = [pl.col(name).str.strip_chars().replace("", None) for name in present]
        file = pl.lit(table.name).alias("file")
        yield replace(block, frame=block.frame.with_columns(*stripped, *absent, file))


def _text_blocks(table: RawTable, present: Mapping[str, str]) -> Iterator[Block]:
    ragged: list[int] = []
    text = _Text(table.encoding)
    told, row, mended = 0, 2, 0
    report = counting(f"reading {table.name}", table.path.stat().st_size * (_UNPACKED if table.is_gzipped else 1))
    position = {name: str(table.header.index(found)) for name, found in present.items()}
    for batch in _batches(table, text, ragged, sorted(set(position.values()))):
        frame = pl.DataFrame(pl.from_arrow(batch)).select(pl.col(at).alias(name) for name, at in position.items())
        rows = _row_numbers(row, batch.num_rows, ragged)
        row = int(rows[-1]) + 1 if len(rows) else row
        new, told = ragged[told:], len(ragged)
        frame = frame.with_columns(pl.Series("row", rows, dtype=pl.Int64))
        yield Block(table.name, frame, new, text.mended - mended)
        mended = text.mended
        report(text.bytes)
    if ragged[told:]:
        empty = pl.DataFrame(schema={**dict.fromkeys(present, pl.String), "row": pl.Int64})
        yield Block(table.name, empty, ragged[told:])
    report(math.inf)


def _row_numbers(start: int, count: int, ragged: list[int]) -> np.ndarray:
    """The next ``count`` row numbers from ``start`` that are not among the rows of a wrong width (ascending).

    >>> _row_numbers(2, 3, [3]).tolist()
    [2, 4, 5]
    """
    ahead = ragged[bisect_left(ragged, start) :]
    candidates = np.arange(start, start + count + len(ahead), dtype=np.int64)
    return candidates[~np.isin(candidates, ahead)][:count]


class _Text:
    """Bytes in any encoding, piece by piece, as UTF-8; what claims to be UTF-8 and is not, as Windows-1252."""

    def __init__(self, encoding: str) -> None:
        lenient = encoding == UTF8
        self._decoder = codecs.getincrementaldecoder(encoding)("surrogateescape" if lenient else "strict")
        self.mended = self.bytes = 0

    def __call__(self, piece: pa.Buffer) -> bytes:
        self.bytes += piece.size
        text = self._decoder.decode(piece.to_pybytes(), final=piece.size == 0)
        try:
            return text.encode()
        except UnicodeEncodeError:
            whole, count = mend(text)
            self.mended += count
            return whole.encode()


def _batches(table: RawTable, text: _Text, ragged: list[int], columns: list[str]) -> Iterator[pa.RecordBatch]:
    unclosed: list[int] = []

    def set_aside(row: Any) -> str:
        if "\n" in (row.text or "").strip():
            unclosed.append(row.number)
        ragged.append(row.number)
        return "skip"

    names = [str(position) for position in range(len(table.header))]
    convert = pacsv.ConvertOptions(
        include_columns=columns,
        column_types=dict.fromkeys(columns, pa.string()),
        strings_can_be_null=True,
        null_values=[""],
    )
    parse = pacsv.ParseOptions(
        delimiter=table.delimiter,
        quote_char='"' if table.quoted else False,
        newlines_in_values=table.quoted,
        ignore_empty_lines=False,
        invalid_row_handler=set_aside,
    )
    read = pacsv.ReadOptions(
        use_threads=False,
        block_size=BLOCK_BYTES,
        column_names=names,
        skip_rows_after_names=1,
    )
    compression = "gzip" if table.is_gzipped else None
    try:
        with pa.input_stream(table.path, compression=compression) as stream:
            utf8 = pa.TransformInputStream(stream, text)
            for batch in pacsv.open_csv(utf8, read_options=read, parse_options=parse, convert_options=convert):
                _refuse_unclosed(table, unclosed)
                yield batch
            _refuse_unclosed(table, unclosed)
    except (pa.ArrowException, OSError, UnicodeError) as error:
        raise damaged(table.path, error) from None


def _refuse_unclosed(table: RawTable, rows: list[int]) -> None:
    if rows:
        what = f"row {rows[0]} runs over several lines and does not fit the header: a quote is not closed"
        raise EhrError(what, str(table.path), "close the quote, or export the table again")


def _parquet_blocks(table: RawTable, present: Mapping[str, str]) -> Iterator[Block]:
    first = 1
    try:
        with pq.ParquetFile(table.path) as file:
            report = counting(f"reading {table.name}", file.metadata.num_rows)
            for batch in file.iter_batches(BLOCK_ROWS, columns=sorted(set(present.values()))):
                read = pl.DataFrame(pl.from_arrow(batch))
                texts = [_written(read[found], table).alias(name) for name, found in present.items()]
                rows = pl.int_range(first, first + batch.num_rows, eager=True).alias("row")
                first += batch.num_rows
                yield Block(table.name, pl.DataFrame([*texts, rows]), [])
                report(first - 1)
    except (pa.ArrowException, OSError) as error:
        raise damaged(table.path, error) from None


def _written(values: pl.Series, table: RawTable) -> pl.Series:
    """A typed column as the text a CSV file would hold."""
    kind = values.dtype
    if kind.is_nested():
        what = f"column '{values.name}' holds {kind}, expected plain values"
        raise EhrError(what, str(table.path), "flatten the column, or leave it out of the file")
    if isinstance(kind, pl.Datetime) and kind.time_zone is not None:
        values = values.dt.convert_time_zone("UTC").dt.replace_time_zone(None)
    if not kind.is_float():
        return values.cast(pl.String)
    whole = values.cast(pl.Int64, strict=False)
    told = pl.when(whole == values).then(whole.cast(pl.String)).otherwise(values.fill_nan(None).cast(pl.String))
    return pl.select(told).to_series()
