"""What a conversion did, table by table: rows in, events out, rows set aside and why."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import polars as pl

from ehrsequencing.events.dataset import MedsDataset


@dataclass
class Tally:
    """One table's account: ``rows == accepted + rejected``, always."""

    table: str
    file: str
    rows: int = 0
    accepted: int = 0
    events: int = 0
    rejects: list[pl.DataFrame] = field(default_factory=list)

    def reject(self, rows: pl.DataFrame) -> None:
        """Set rows aside: ``row`` (as a spreadsheet numbers them) and ``reason``, never what stood in them."""
        self.rejects.append(rows.select(pl.col("row").cast(pl.Int64), pl.col("reason").cast(pl.Categorical)))

    def reject_ragged(self, rows: Iterable[int]) -> None:
        """Set aside the rows that have too few or too many fields."""
        numbers = pl.Series("row", list(rows), dtype=pl.Int64)
        self.rows += len(numbers)
        self.reject(
            numbers.to_frame().with_columns(reason=pl.lit("the row has another number of fields than the header"))
        )

    @property
    def rejected(self) -> int:
        """How many rows were set aside."""
        return sum(part.height for part in self.rejects)

    def rejects_table(self) -> pl.DataFrame:
        """file, row, reason of every row set aside, by row."""
        empty = pl.DataFrame(schema={"row": pl.Int64, "reason": pl.Categorical})
        table = pl.concat([empty, *self.rejects]).sort("row")
        return table.select(pl.lit(self.file).alias("file"), "row", pl.col("reason").cast(pl.String))

    def reasons(self) -> dict[str, int]:
        """How often each reason was given, most often first."""
        counts = self.rejects_table().group_by("reason").len().sort(["len", "reason"], descending=[True, False])
        return dict(counts.iter_rows())


@dataclass(frozen=True)
class ConversionReport:
    """The account of a whole conversion."""

    dataset: MedsDataset
    subjects: int
    tallies: tuple[Tally, ...]
    ignored: tuple[str, ...]
    notes: tuple[str, ...]
    private: Path

    @property
    def rejected(self) -> int:
        """Rows set aside over all tables."""
        return sum(tally.rejected for tally in self.tallies)

    def text(self) -> str:
        """The account for the person who holds the raw files; counts of rows, no identifier."""
        lines = [f"{'table':<16}{'rows in':>12}{'events':>12}{'rejects':>12}"]
        for tally in self.tallies:
            lines.append(f"{tally.table:<16}{tally.rows:>12,}{tally.events:>12,}{tally.rejected:>12,}")
            lines += [f"  set aside {count:,}: {reason}" for reason, count in tally.reasons().items()]
        lines.append(f"{self.subjects:,} subjects in {self.dataset.root}")
        if self.rejected:
            lines.append(f"rows set aside, with file, row and reason: {self.dataset.root / 'rejects'}")
        if self.ignored:
            lines.append(f"not converted: {', '.join(self.ignored)}")
        lines += self.notes
        lines.append(f"source identifiers, not to be shared: {self.private}")
        return "\n".join(lines)
