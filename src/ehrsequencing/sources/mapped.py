"""Long tables become a MEDS dataset by a mapping file: subject, time, code and value columns of each."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np
import polars as pl

from ehrsequencing.config import load_yaml
from ehrsequencing.errors import EhrError, nearest
from ehrsequencing.events import BIRTH, DEATH, MedsDataset, among, fill, hash_ids, parse_times, staged
from ehrsequencing.events.subjects import write_id_map
from ehrsequencing.sources.blocks import Block, read_blocks
from ehrsequencing.sources.conversion import (
    LEFT_OUT,
    REASON,
    ConversionReport,
    Ledger,
    Tally,
    climb,
    not_read,
    visit_numbers,
)
from ehrsequencing.sources.mapping import ISO, EventMapping, FileMapping, MappingConfig, TimeColumn
from ehrsequencing.sources.spill import EVENT, Spill
from ehrsequencing.sources.tables import SUFFIXES, RawTable, open_table, source_folder

SHARD_BYTES = 64 << 20
"""Of raw text, about so much becomes one shard: what is in memory at once."""
_UNPACKED = {".gz": 6, ".parquet": 8}
_MARK = "@"
_OK = pl.col(REASON).is_null() & pl.col(LEFT_OUT).is_null()


def convert_csv(src: Path, out: Path, mapping: Path | MappingConfig) -> ConversionReport:
    """Convert the files that a mapping names (``.csv``, ``.tsv``, ``.txt``, plain or ``.gz``, ``.parquet``) to MEDS.

    Subjects' identifiers become numbers by a hash; the way back lies beside the dataset in ``<out>.private/``, and must
    not be shared with it. Memory holds the subjects' identifiers and static facts, and one block of a file or a shard.

    Raises:
        EhrError: exit 10 for a mapping that is not valid; 11 where a file or column is missing, or a file is damaged;
            14 where ``out`` cannot be written.
    """
    src, out = source_folder(Path(src)), Path(out)
    config = mapping if isinstance(mapping, MappingConfig) else load_yaml(MappingConfig, mapping)
    files = [_File(entry, table) for entry in config.files for table in _tables(src, entry)]
    extras = sorted({name for entry in config.files for name in entry.extra})
    metadata = {"code_modifier_columns": ["unit"], "other_extension_columns": ["visit_id", *extras]}
    with staged(out) as folder:
        schema = {**EVENT, **dict.fromkeys(extras, pl.String())}
        conversion = _Conversion(Ledger(Spill(folder / "spill", _shards(files), schema)), extras)
        for file in files:
            conversion.convert(file)
        ledger = conversion.ledger
        name = config.name or src.resolve().name
        fill(folder, ledger.spill.read(), name=name, codes=conversion.described, metadata=metadata)
        ledger.spill.remove()
        ledger.write_rejects(folder)
        subjects = conversion.subjects.table
        private = write_id_map(out, subjects["source"], subjects["subject_id"])
    return ConversionReport(
        dataset=MedsDataset.open(out),
        subjects=subjects.height,
        tallies=ledger.tallies,
        ignored=not_read(src, SUFFIXES, (file.table.path for file in files)),
        private=private,
    )


def _tables(src: Path, entry: FileMapping) -> Iterator[RawTable]:
    plain = src / entry.file
    found = [plain] if plain.is_file() else sorted(path for path in src.glob(entry.file) if path.is_file())
    if not found:
        names = [str(path.relative_to(src)) for path in src.rglob("*") if path.name.lower().endswith(SUFFIXES)]
        close = nearest(entry.file, names, 1)
        fix = f"did you mean '{close[0]}'?" if close else f"found: {', '.join(sorted(names)[:8]) or 'no table'}"
        raise EhrError(f"no file is called {entry.file}", str(src), fix)
    for path in found:
        name = str(path.relative_to(src))
        yield open_table(path, name=name, delimiter=entry.delimiter, encoding=entry.encoding)


def _shards(files: list[_File]) -> int:
    size = sum(file.table.path.stat().st_size * _UNPACKED.get(file.table.path.suffix.lower(), 1) for file in files)
    return size // SHARD_BYTES + 1


class _File:
    """A file, the entry that explains it, and its columns as its header spells them."""

    def __init__(self, entry: FileMapping, table: RawTable) -> None:
        self.entry, self.table = entry, table
        self.name = re.sub(r"\W+", "_", Path(entry.file).name.split(".")[0]).strip("_") or "files"
        self.parts = [part for event in entry.kinds_of_events() for part in self._parts(event)]
        times = [entry.birth, entry.death, *(part.time for part in self.parts)]
        wanted = [entry.subject, entry.visit, *entry.extra.values()]
        wanted += [column for time in times if time is not None for column in time.column]
        wanted += [column for part in self.parts for column in part.columns]
        self.columns = {_MARK + name: table.require((name,)) for name in wanted if name is not None}

    def _parts(self, event: EventMapping) -> Iterator[_Part]:
        time = self.entry.time_of(event)
        if event.fixed is not None:
            yield _Part(event.fixed, event, (), time)
        elif event.code is not None:
            yield _Part(" + ".join(event.code), event, event.code, time)
        else:
            for column in self._matching(event.each or ()):
                yield _Part(column, event, (column,), time)

    def _matching(self, patterns: tuple[str, ...]) -> Iterator[str]:
        for pattern in patterns:
            found = [name for name in self.table.header if fnmatchcase(name.strip().lower(), pattern.lower())]
            yield from found or [self.table.require((pattern,))]


class _Part:
    """One kind of event in each row of a file: ``code`` columns (none: a fixed code), and when."""

    def __init__(self, name: str, event: EventMapping, code: tuple[str, ...], time: TimeColumn | None) -> None:
        self.name, self.event, self.code, self.time = name, event, code, time
        further = (event.value, event.unit, event.description)
        self.columns = [*code, *(column for column in further if column is not None)]

    def events(self, rows: pl.DataFrame, decimal: str) -> pl.DataFrame:
        """The rows as events, with ``reason`` and ``left_out`` where one is none."""
        number, text = self._number(decimal), self._text(decimal)
        parts = [_clean(_raw(column)) for column in self.code] or [pl.lit(self.event.fixed)]
        code = pl.concat_str([parts[0], *parts[1:], text], separator="//", ignore_nulls=True)
        time = pl.lit(None, dtype=pl.Datetime("us")) if self.time is None else read_time(self.time)
        unit = pl.lit(None, dtype=pl.String) if self.event.unit is None else _clean(_raw(self.event.unit))
        described = self.event.description
        return rows.with_columns(
            time.alias("time"),
            pl.when(parts[0].is_not_null()).then(pl.concat_str(pl.lit(self.event.prefix), code)).alias("code"),
            number.alias("numeric_value"),
            pl.when(number.is_not_null()).then(unit).alias("unit"),
            (pl.lit(None, dtype=pl.String) if described is None else _clean(_raw(described))).alias("description"),
            pl.coalesce(self._reasons(parts[0], number, time)).alias(REASON),
            self._left_out(parts[0]).alias(LEFT_OUT),
        )

    def _number(self, decimal: str) -> pl.Expr:
        if self.event.value is None or self.event.values == "text":
            return pl.lit(None, dtype=pl.Float32)
        written = _raw(self.event.value)
        if decimal == ",":
            written = written.str.replace_all(".", "", literal=True).str.replace(",", ".", literal=True)
        return written.cast(pl.Float64, strict=False).cast(pl.Float32)

    def _text(self, decimal: str) -> pl.Expr:
        if self.event.value is None or self.event.values == "number":
            return pl.lit(None, dtype=pl.String)
        return pl.when(self._number(decimal).is_null()).then(_clean(_raw(self.event.value)))

    def _reasons(self, code: pl.Expr, number: pl.Expr, time: pl.Expr) -> list[pl.Expr]:
        reasons = [pl.when(code.is_null()).then(pl.lit("the code is empty"))]
        if self.time is not None:
            empty = _raw(self.time.column[0]).is_null()
            reasons += [
                pl.when(empty).then(pl.lit("the date is empty")),
                pl.when(time.is_null()).then(pl.lit("the date cannot be read")),
            ]
        if self.event.value is not None and self.event.values != "text":
            stated = _raw(self.event.value).is_not_null() if self.event.values == "number" else number.is_not_null()
            bad = stated & ~number.is_finite().fill_null(False)
            reasons.append(pl.when(bad).then(pl.lit("the value is not a finite number")))
        wanted = self._left_out(code).is_null()
        return [pl.when(wanted).then(reason) for reason in reasons]

    def _left_out(self, code: pl.Expr) -> pl.Expr:
        none = pl.lit(None, dtype=pl.String)
        if self.event.each:
            return pl.when(code.is_null()).then(pl.lit("the column is empty")).otherwise(none)
        if self.event.fixed is not None and self.event.value is not None:
            return pl.when(_raw(self.event.value).is_null()).then(pl.lit("the column is empty")).otherwise(none)
        return none


def read_time(column: TimeColumn) -> pl.Expr:
    """Written times by the first format that fits, as naive UTC; null where none does."""
    first, *others = column.column
    joined = pl.concat_str([_raw(first), *map(_raw, others)], separator=" ", ignore_nulls=True)
    text = pl.when(_raw(first).is_not_null()).then(joined)
    return pl.coalesce(parse_times(text) if form == ISO else _by_format(text, form) for form in column.formats)


def _by_format(text: pl.Expr, form: str) -> pl.Expr:
    read = text.str.to_datetime(form, time_unit="us", strict=False)
    return read.dt.convert_time_zone("UTC").dt.replace_time_zone(None) if "%z" in form else read


def _raw(column: str) -> pl.Expr:
    """A column of the source, which may be called as one of ours."""
    return pl.col(_MARK + column)


def _clean(text: pl.Expr) -> pl.Expr:
    return text.str.replace_all(r"\s+", " ")


class _Subjects:
    """The subjects met so far: their identifier in the source and their number, which is its hash.

    Blocks look them up in sorted arrays, so that a block costs what its own subjects cost, however many there are.
    """

    def __init__(self) -> None:
        self._met: list[pl.DataFrame] = []
        self._numbers, self._marks = np.empty(0, dtype=np.int64), np.empty(0, dtype=np.uint64)

    @property
    def table(self) -> pl.DataFrame:
        """``source, subject_id``."""
        return pl.concat([pl.DataFrame(schema={"source": pl.String, "subject_id": pl.Int64}), *self._met])

    def join(self, rows: pl.DataFrame, column: str, where: str) -> pl.DataFrame:
        """The rows with ``subject_id``; whole numbers count as equal with and without ``.0``."""
        rows = rows.with_columns(_raw(column).str.replace(r"^(\d+)\.0+$", "${1}").alias("_source"))
        sources = rows["_source"].drop_nulls().unique(maintain_order=True)
        numbers = pl.Series(hash_ids(sources, where=where), dtype=pl.Int64)
        own = pl.DataFrame({"source": sources, "subject_id": numbers})
        self._meet(own, where)
        return rows.join(own, left_on="_source", right_on="source", how="left", maintain_order="left")

    def _meet(self, own: pl.DataFrame, where: str) -> None:
        """Remember those not met before; a second hash of the identifier tells whether a number is one subject's."""
        numbers, marks = own["subject_id"].to_numpy(), own["source"].hash().to_numpy()
        known = among(numbers, self._numbers)
        if (self._marks[np.searchsorted(self._numbers, numbers[known])] != marks[known]).any():
            raise EhrError("two identifiers have the same hash", where, "rename one of the identifiers")
        new = own.with_columns(mark=marks).filter(~known).sort("subject_id")
        at = np.searchsorted(self._numbers, new["subject_id"].to_numpy())
        self._numbers = np.insert(self._numbers, at, new["subject_id"].to_numpy())
        self._marks = np.insert(self._marks, at, new["mark"].to_numpy())
        self._met.append(own.filter(~known))


class _Once:
    """What is said of a subject once and for all (birth, death, static codes), and is often written in every row."""

    def __init__(self) -> None:
        self.said = pl.DataFrame(schema={"subject_id": pl.Int64, "code": pl.String, "said": pl.String})

    def settle(self, events: pl.DataFrame) -> pl.DataFrame:
        """Leave out what an earlier row said; set aside what contradicts it."""
        keys = ["subject_id", "code"]
        rows = events.with_row_index("_at").with_columns(pl.col("time").cast(pl.String).fill_null("").alias("now"))
        good = rows.filter(_OK)
        first = good.unique(keys, keep="first", maintain_order=True)
        said = self.said.join(first, on=keys, how="semi")  # by this block's subjects: the fewer are looked up
        new = first.join(said, on=keys, how="anti")
        told_now = new.select(*keys, said="now")
        self.said = pl.concat([self.said, told_now])
        fresh = pl.col("_at").is_in(new["_at"].implode())
        told = rows.join(pl.concat([said, told_now]), on=keys, how="left", maintain_order="left")
        again = _OK & ~fresh
        differs = pl.col("now") != pl.col("said")
        return told.with_columns(
            _where(again & differs, "an earlier row states another date", REASON),
            _where(again & ~differs, "an earlier row states the same", LEFT_OUT),
        )


def _where(condition: pl.Expr, text: str, column: str) -> pl.Expr:
    return pl.when(condition).then(pl.lit(text)).otherwise(pl.col(column)).alias(column)


class _Conversion:
    """One pass over the files."""

    def __init__(self, ledger: Ledger, extras: list[str]) -> None:
        self.ledger, self.extras = ledger, extras
        self.subjects, self.once = _Subjects(), _Once()

    def described(self) -> pl.DataFrame:
        """The commonest description of each code, and the code above it where it has three parts."""
        return self.ledger.described().with_columns(climb(pl.col("code")).alias("parent_codes"))

    def convert(self, file: _File) -> None:
        """All events of a file; rows that cannot be read at all stand with its first part."""
        for block in read_blocks(file.table, file.columns):
            rows = self._with_subjects(block, file)
            for part, events in self._parts(rows, file):
                self.ledger.enter(self.ledger.tally(file.name, part), events)
        if file.table.empty:
            self.ledger.tally(file.name, _first_part(file))

    def _with_subjects(self, block: Block, file: _File) -> pl.DataFrame:
        tally: Tally = self.ledger.tally(file.name, _first_part(file))
        tally.opened(block)
        rows = self.subjects.join(block.frame, file.entry.subject, file.table.name)
        nobody = rows["subject_id"].is_null()
        tally.settle(rows.filter(nobody).with_columns(pl.lit("the subject is empty").alias(REASON)))
        visits = (
            rows[_MARK + file.entry.visit] if file.entry.visit else pl.Series([None] * rows.height, dtype=pl.String)
        )
        extra = [self._extra(name, file.entry.extra) for name in self.extras]
        return rows.with_columns(visit_numbers(visits).alias("visit_id"), *extra).filter(~nobody)

    def _extra(self, name: str, given: Mapping[str, str]) -> pl.Expr:
        return (_raw(given[name]) if name in given else pl.lit(None, dtype=pl.String)).alias(name)

    def _parts(self, rows: pl.DataFrame, file: _File) -> Iterator[tuple[str, pl.DataFrame]]:
        for name, code, time in _lives(file.entry):
            part = _Part(name, EventMapping(fixed=code), (), time)
            empty = pl.when(_raw(time.column[0]).is_null()).then(pl.lit("the column is empty"))
            events = part.events(rows, file.entry.decimal).with_columns(
                empty.alias(LEFT_OUT),
                pl.when(empty.is_null()).then(pl.col(REASON)).alias(REASON),
                pl.lit(None, dtype=pl.Int64).alias("visit_id"),
            )
            yield name, self.once.settle(events)
        for part in file.parts:
            events = part.events(rows, file.entry.decimal)
            yield part.name, self.once.settle(events) if part.time is None else events


def _lives(entry: FileMapping) -> Iterator[tuple[str, str, TimeColumn]]:
    if entry.birth is not None:
        yield "birth", BIRTH, entry.birth
    if entry.death is not None:
        yield "death", DEATH, entry.death


def _first_part(file: _File) -> str:
    lives = [name for name, _, _ in _lives(file.entry)]
    return (lives + [part.name for part in file.parts])[0]
