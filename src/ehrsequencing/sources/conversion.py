"""What every conversion shares: rows accounted for, events spilled by shard, codes described."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import polars as pl

from ehrsequencing.events.dataset import MedsDataset
from ehrsequencing.events.frames import write_rejects
from ehrsequencing.events.subjects import hash_ids
from ehrsequencing.sources.blocks import Block
from ehrsequencing.sources.spill import Spill

REASON, LEFT_OUT = "reason", "left_out"
"""Columns of a frame on its way: why a row is set aside (a mistake), why it is left out (as documented)."""
_NAME = 34
_REJECTS = pl.Schema({"file": pl.Categorical(), "row": pl.Int64(), "reason": pl.Categorical()})


@dataclass
class Tally:
    """The account of what one table's rows became in one part (a birth, an end): rows = events + left out + rejects."""

    table: str
    part: str = ""
    rows: int = 0
    events: int = 0
    left_out: Counter[str] = field(default_factory=Counter)
    rejects: list[pl.DataFrame] = field(default_factory=list)
    remarks: Counter[str] = field(default_factory=Counter)

    @property
    def name(self) -> str:
        """The table, and the part where it has several."""
        return f"{self.table}: {self.part}" if self.part else self.table

    @property
    def excluded(self) -> int:
        """How many rows were left out as documented."""
        return sum(self.left_out.values())

    @property
    def rejected(self) -> int:
        """How many rows were set aside."""
        return sum(part.height for part in self.rejects)

    @property
    def balanced(self) -> bool:
        """Nothing is lost."""
        return self.rows == self.events + self.excluded + self.rejected

    def opened(self, block: Block) -> None:
        """Account for the rows of a wrong width, and for values in another encoding."""
        if block.ragged:
            rows = pl.DataFrame({"row": block.ragged}, schema={"row": pl.Int64})
            why = pl.lit("the row has another number of fields than the header").alias(REASON)
            self.rows += rows.height
            self.reject(rows.with_columns(pl.lit(block.file).alias("file"), why))
        self.remark("bytes are no UTF-8 and were read as Windows-1252", block.mended)

    def settle(self, rows: pl.DataFrame) -> pl.DataFrame:
        """Count the rows, set aside and leave out those that say so, and return the rest."""
        self.rows += rows.height
        bad = rows[REASON].is_not_null()
        self.reject(rows.filter(bad))
        good = rows.filter(~bad)
        if LEFT_OUT not in good.columns:
            return good
        self.left_out.update(dict(good.drop_nulls(LEFT_OUT).group_by(LEFT_OUT).len().iter_rows()))
        return good.filter(pl.col(LEFT_OUT).is_null())

    def reject(self, rows: pl.DataFrame) -> None:
        """Set rows aside: ``file``, ``row`` and ``reason``, never what stood in them."""
        if rows.height:
            self.rejects.append(rows.select(*_REJECTS).cast(_REJECTS))

    def remark(self, what: str, count: int) -> None:
        """Count something the reader should know of rows that were converted."""
        if count:
            self.remarks[what] += count

    def rejects_table(self) -> pl.DataFrame:
        """file, row, reason of every row set aside, by file and row."""
        table = pl.concat([pl.DataFrame(schema=_REJECTS), *self.rejects])
        return table.cast({"file": pl.String, "reason": pl.String}).sort("file", "row")

    def reasons(self) -> dict[str, int]:
        """How often each reason was given, most often first."""
        counts = self.rejects_table().group_by("reason").len().sort(["len", "reason"], descending=[True, False])
        return dict(counts.iter_rows())

    def lines(self) -> list[str]:
        """The account in words."""
        name = self.name if len(self.name) <= _NAME else self.name[: _NAME - 1] + "…"
        lines = [f"{name:<{_NAME}}{self.rows:>12,}{self.events:>12,}{self.excluded:>12,}{self.rejected:>12,}"]
        lines += [f"  set aside {count:,}: {reason}" for reason, count in self.reasons().items()]
        lines += [f"  left out {count:,}: {reason}" for reason, count in self.left_out.most_common()]
        return lines + [f"  {count:,} {what}" for what, count in self.remarks.most_common()]


class Ledger:
    """The events of a conversion on their way to shards, the accounts of its tables, the descriptions of its codes."""

    def __init__(self, spill: Spill, *opened: Tally) -> None:
        self.spill = spill
        self._tallies = {(tally.table, tally.part): tally for tally in opened}
        self._descriptions = pl.DataFrame(schema={"code": pl.String, "description": pl.String, "len": pl.UInt32})

    @property
    def tallies(self) -> tuple[Tally, ...]:
        """The accounts, in the order they were opened."""
        return tuple(self._tallies.values())

    def tally(self, table: str, part: str = "") -> Tally:
        """The account of a table's part, opened where it is not."""
        return self._tallies.setdefault((table, part), Tally(table, part))

    def enter(self, tally: Tally, rows: pl.DataFrame) -> pl.DataFrame:
        """Settle the rows, keep what is left of them as events, and return these."""
        events = tally.settle(rows)
        tally.events += events.height
        self.spill.add(events)
        counts = events.drop_nulls("description").group_by("code", "description").len()
        together = pl.concat([self._descriptions, counts])
        self._descriptions = together.group_by("code", "description").agg(pl.col("len").sum())
        return events

    def described(self) -> pl.DataFrame:
        """code and its commonest description."""
        best = self._descriptions.sort(["code", "len", "description"], descending=[False, True, False])
        return best.unique("code", keep="first", maintain_order=True).select("code", "description")

    def write_rejects(self, folder: Path) -> None:
        """One file of rows set aside a table, if any."""
        for table in dict.fromkeys(tally.table for tally in self.tallies):
            parts = [tally.rejects_table() for tally in self.tallies if tally.table == table]
            write_rejects(folder, table, pl.concat(parts))


def visit_numbers(visits: pl.Series) -> pl.Series:
    """Visits' identifiers as numbers, by a hash; null stays null."""
    known = visits.drop_nulls().unique()
    numbers = pl.Series(hash_ids(known, where="visits"), dtype=pl.Int64)
    return visits.replace_strict(known, numbers, default=None, return_dtype=pl.Int64)


def climb(codes: pl.Expr) -> pl.Expr:
    """The first two ``//`` parts of a code of more, as a list (``parent_codes``); null for the others.

    >>> pl.DataFrame({"code": ["LOINC//1-1//high", "LOINC//1-1"]}).select(climb(pl.col("code")))["code"].to_list()
    [['LOINC//1-1'], None]
    """
    parts = codes.str.splitn("//", 3).struct
    above = pl.concat_str(parts.field("field_0"), pl.lit("//"), parts.field("field_1"))
    return pl.when(parts.field("field_2").is_not_null()).then(pl.concat_list(above)).alias(codes.meta.output_name())


@dataclass(frozen=True)
class ConversionReport:
    """The account of a whole conversion; ``private`` is where the way back to the source's identifiers lies."""

    dataset: MedsDataset
    subjects: int
    tallies: tuple[Tally, ...]
    ignored: tuple[str, ...]
    notes: tuple[str, ...] = ()
    private: Path | None = None

    @property
    def rejected(self) -> int:
        """Rows set aside over all tables."""
        return sum(tally.rejected for tally in self.tallies)

    def text(self) -> str:
        """The account for the person who holds the raw files; counts of rows, no identifier."""
        lines = [f"{'table':<{_NAME}}{'rows in':>12}{'events':>12}{'left out':>12}{'rejects':>12}"]
        lines += [line for tally in self.tallies for line in tally.lines()]
        lines.append("on every line: rows in = events + left out + rejects")
        lines.append(f"{self.subjects:,} subjects in {self.dataset.root}")
        if self.rejected:
            lines.append(f"rows set aside, with file, row and reason: {self.dataset.root / 'rejects'}")
        if self.ignored:
            lines.append(f"not converted: {', '.join(self.ignored)}")
        lines += self.notes
        if self.private is not None:
            lines.append(f"source identifiers, not to be shared: {self.private}")
        return "\n".join(lines)


def not_read(src: Path, suffixes: Iterable[str], read: Iterable[Path]) -> tuple[str, ...]:
    """The names of tables in ``src`` (files by suffix) that no rule reads."""
    used, ends = set(read), tuple(suffixes)
    return tuple(sorted(p.name for p in src.iterdir() if p.name.lower().endswith(ends) and p not in used))
