"""Raw tables of an export: found by name, with their header, delimiter and parts; read by ``blocks``."""

from __future__ import annotations

import csv
import gzip
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
from pyarrow import parquet as pq

from ehrsequencing.errors import EhrError, nearest

CSV_SUFFIXES = (".csv", ".csv.gz")
SUFFIXES = (*CSV_SUFFIXES, ".tsv", ".tsv.gz", ".txt", ".txt.gz", ".parquet")
_DELIMITERS = ",\t;|"
_QUOTED = re.compile(r'"[^"]*"')
_ESCAPED = re.compile("[\udc80-\udcff]")
_LEGACY = {0xDC00 + byte: bytes([byte]).decode("cp1252", "ignore") or chr(byte) for byte in range(0x80, 0x100)}
UTF8 = "utf-8"


@dataclass(frozen=True)
class RawTable:
    """One file of a table: its header as the file writes it, and how to read it.

    Attributes:
        path: the file.
        name: how reports call it: its name or, as a part, its path below the export.
        header: the columns' names.
        delimiter: what stands between two fields (text files).
        quoted: whether ``"`` opens a field that may hold the delimiter (text files).
        encoding: of the text.
        empty: whether nothing follows the header.
    """

    path: Path
    name: str
    header: tuple[str, ...]
    delimiter: str = ","
    quoted: bool = True
    encoding: str = UTF8
    empty: bool = False

    @property
    def is_parquet(self) -> bool:
        """A parquet file; everything else is delimited text."""
        return self.path.name.lower().endswith(".parquet")

    @property
    def is_gzipped(self) -> bool:
        """Compressed text."""
        return self.path.name.lower().endswith(".gz")

    def column(self, names: Sequence[str]) -> str | None:
        """The header's own spelling of the first of ``names`` it has, whatever the case; None where it has none."""
        spelled = {found.strip().upper(): found for found in self.header}
        return next((spelled[name.upper()] for name in names if name.upper() in spelled), None)

    def require(self, names: Sequence[str]) -> str:
        """The header's spelling of the first of ``names`` it has.

        Raises:
            EhrError: it has none of them; the nearest column is named.
        """
        found = self.column(names)
        if found is not None:
            return found
        spelled = {column.strip().upper(): column for column in self.header}
        close = [spelled[word] for name in names for word in nearest(name.upper(), spelled, 1)]
        fix = f"did you mean '{close[0]}'? Rename it" if close else f"found: {', '.join(self.header)}"
        raise EhrError(f"column {' or '.join(names)} is missing", str(self.path), fix)


def source_folder(src: Path) -> Path:
    """``src``, a folder.

    Raises:
        EhrError: there is nothing, or a file.
    """
    if src.is_file():
        raise EhrError("expected the export's folder, found a file", str(src), f"give its folder: {src.parent}")
    if not src.is_dir():
        raise EhrError("the export's folder does not exist", str(src), "check the path")
    return src


def find_table(folder: Path, name: str) -> RawTable | None:
    """``name.csv`` or ``name.csv.gz`` in ``folder``, whatever the case; None where there is neither.

    Raises:
        EhrError: there are several, or the file has no readable header or two columns of one name.
    """
    found = _candidates(folder, name, CSV_SUFFIXES)
    return open_table(found) if found is not None and found.is_file() else None


def find_parts(folder: Path, name: str, *, plain_tabs: bool = False) -> tuple[RawTable, ...]:
    """The table ``name``, whatever the case: one file, or a folder (``name``, ``name.csv``, …) of parts.

    Args:
        folder: the export.
        name: the table's.
        plain_tabs: a tab-separated file does not quote (vocabulary files, whose names hold inches and quotes).

    Raises:
        EhrError: as ``find_table``.
    """
    found = _candidates(folder, name, ("", *SUFFIXES))
    if found is None:
        return ()
    paths = sorted(filter(_is_part, found.rglob("*"))) if found.is_dir() else [found]
    return tuple(open_table(path, name=str(path.relative_to(folder)), plain_tabs=plain_tabs) for path in paths)


def _candidates(folder: Path, name: str, suffixes: Sequence[str]) -> Path | None:
    wanted = {name.lower() + suffix for suffix in suffixes}
    found = sorted(
        path for path in folder.iterdir() if path.name.lower() in wanted and (path.is_dir() or path.suffix != "")
    )
    if len(found) > 1:
        names = ", ".join(path.name for path in found)
        raise EhrError(f"found {names}, expected one of them", str(folder), "remove those that should not be read")
    return found[0] if found else None


def _is_part(path: Path) -> bool:
    return path.is_file() and not path.name.startswith((".", "_")) and path.name.lower().endswith(SUFFIXES)


def open_table(
    path: Path,
    *,
    name: str | None = None,
    delimiter: str | None = None,
    encoding: str = UTF8,
    plain_tabs: bool = False,
) -> RawTable:
    """A file with its header read and its delimiter (comma, tab, semicolon, bar) told from the header's line.

    Raises:
        EhrError: no readable header, or two columns of one name.
    """
    name = name or path.name
    if path.name.lower().endswith(".parquet"):
        table = RawTable(path, name, _parquet_header(path))
    else:
        table = _text_table(path, name, delimiter, encoding, plain_tabs)
    _refuse_repeated(table)
    return table


def _parquet_header(path: Path) -> tuple[str, ...]:
    try:
        return tuple(pq.read_schema(path).names)
    except (pa.ArrowException, OSError) as error:
        raise damaged(path, error) from None


def _text_table(path: Path, name: str, delimiter: str | None, encoding: str, plain_tabs: bool) -> RawTable:
    unpack = gzip.open if path.name.lower().endswith(".gz") else open
    marked = "utf-8-sig" if encoding.lower().replace("_", "-") in (UTF8, "utf8") else encoding
    try:
        with unpack(path, "rt", encoding=marked, errors="surrogateescape", newline="") as text:
            first = text.readline()
            delimiter = delimiter or _sniff(first)
            quoted = not (plain_tabs and delimiter == "\t" and not first.startswith('"'))
            text.seek(0)
            rows = csv.reader(text, delimiter=delimiter, quoting=csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE)
            header = tuple(mend(name)[0] for name in next(rows, []))
            empty = _is_over(rows)
    except (OSError, EOFError, UnicodeError, csv.Error) as error:
        raise damaged(path, error) from None
    return RawTable(path, name, header, delimiter, quoted, encoding, empty)


def _is_over(rows: Iterator[list[str]]) -> bool:
    try:
        return next(rows, None) is None
    except csv.Error:  # a field longer than this reader takes: there is a row
        return False


def _sniff(line: str) -> str:
    r"""The delimiter that occurs most often in the header, outside quotes; a comma where none does.

    >>> _sniff("id\tbirth\tname, given"), _sniff('"a;b;c";d'), _sniff("id")
    ('\t', ';', ',')
    """
    bare = _QUOTED.sub("", line)
    return max(_DELIMITERS, key=bare.count)


def mend(text: str) -> tuple[str, int]:
    r"""Text whose bytes were no UTF-8 (decoded by ``surrogateescape``) with these read as Windows-1252; and how many.

    >>> mend(b"An\xe4mie".decode(errors="surrogateescape"))
    ('Anämie', 1)
    """
    return text.translate(_LEGACY), len(_ESCAPED.findall(text))


def _refuse_repeated(table: RawTable) -> None:
    names = [name.strip().upper() for name in table.header]
    if not names:
        raise EhrError("the file is empty, expected a header", str(table.path), "export the table again, or remove it")
    if len(set(names)) < len(names):
        twice = ", ".join(sorted({name for name in names if names.count(name) > 1}))
        raise EhrError(f"several columns are called {twice}", str(table.path), "rename or remove all but one")


def damaged(path: Path, error: BaseException) -> EhrError:
    """The error for a file that cannot be read."""
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return EhrError(
        f"the file cannot be read: {reason}", str(path), "export it again (CSV in UTF-8, gzipped CSV, or parquet)"
    )
