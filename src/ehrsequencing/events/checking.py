"""What a dataset holds and where it breaks MEDS or common sense, told without naming a subject."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal

import polars as pl

from ehrsequencing.config import HELD_OUT, MIN_CELL, TRAIN, TUNING
from ehrsequencing.errors import EhrError
from ehrsequencing.events.dataset import BIRTH, MedsDataset
from ehrsequencing.events.deaths import DEATH, bare_date
from ehrsequencing.progress import tracked

Severity = Literal["error", "warning", "note"]
LONG_AFTER_DAYS = 30
"""Events later than this after a death are more than paperwork and late results."""
_COUNTED = ("subject_id", "events", "runs", "unsorted", "shard")
_ABOUT_PEOPLE = ("subjects", "events", "rows")


@dataclass(frozen=True)
class Problem:
    """One finding: how bad, what, how many (of how many, in which unit), and what to do."""

    severity: Severity
    what: str
    count: int
    fix: str
    unit: str = "subjects"
    total: int | None = None

    def text(self) -> str:
        """The finding in two lines; counts of people and their records below 10 are shown as "<10" (see ``_share``)."""
        found = _share(self.count, self.total, self.unit)
        return f"{self.severity}: {self.what}: {found} {self.unit}\n  fix: {self.fix}"


@dataclass(frozen=True)
class CheckReport:
    """``facts`` (name -> exact number) and ``problems``, worst first."""

    name: str
    facts: dict[str, int]
    problems: list[Problem]

    @property
    def ok(self) -> bool:
        """No finding is an error."""
        return all(problem.severity != "error" for problem in self.problems)

    def to_json(self) -> dict[str, Any]:
        """The report as plain data with exact counts, for programs."""
        return {"name": self.name, "ok": self.ok, "facts": self.facts, "problems": [asdict(p) for p in self.problems]}

    def text(self) -> str:
        """The report for people: no identifier, no small cell."""
        width = max(map(len, self.facts))
        lines = [self.name, *(f"  {key:<{width}}  {_fact(key, self.facts)}" for key in self.facts)]
        lines += [problem.text() for problem in self.problems] or ["no problems found"]
        return "\n".join(lines)


def check(dataset: MedsDataset) -> CheckReport:
    """Look beyond the schema, one shard in memory at a time.

    Order and contiguity of subjects, null ids and codes, exact copies of rows, births and deaths, events before birth
    and after death, values that are no numbers, codes without metadata, splits that do not match, and rows set aside
    when the dataset was made.

    Raises:
        EhrError: exit 11, naming the shard, where its content is damaged.
    """
    subjects, rows, codes = _survey(dataset)
    facts = _facts(dataset, subjects, rows, codes)
    found = [*_structure(subjects, rows), *_lives(subjects, facts), *_metadata(dataset, subjects, codes)]
    found += [*_values(dataset, rows), *_set_aside(facts)]
    rank = {"error": 0, "warning": 1, "note": 2}
    problems = sorted((problem for problem in found if problem.count), key=lambda problem: rank[problem.severity])
    return CheckReport(str(dataset.describe().get("dataset_name", "unnamed dataset")), facts, problems)


def _survey(dataset: MedsDataset) -> tuple[pl.DataFrame, dict[str, int], pl.Series]:
    """Per subject (and shard) flags, totals over rows, distinct codes."""
    people, totals, codes = [], [], pl.Series("code", [], dtype=pl.String)
    shards = list(dataset.shards())
    sizes = [float(shard.stat().st_size) for shard in shards]
    for number, shard in enumerate(tracked(shards, "checking events", sizes)):
        frame = _read(shard)
        people.append(_per_subject(frame).with_columns(pl.lit(number).alias("shard")))
        totals.append(_per_row(frame))
        codes = pl.concat([codes, frame["code"].drop_nulls()]).unique()
    rows = {key: value or 0 for key, value in pl.concat(totals).sum().row(0, named=True).items()}
    years = pl.concat(totals).select(pl.col("first_year").min(), pl.col("last_year").max()).row(0, named=True)
    return pl.concat(people), {**rows, **{key: value or 0 for key, value in years.items()}}, codes


def _read(shard: Path) -> pl.DataFrame:
    try:
        return MedsDataset.scan_shard(shard).collect()
    except pl.exceptions.PolarsError as error:
        raise EhrError(f"the file is damaged: {str(error).splitlines()[0]}", str(shard), "write it again") from None


def _per_subject(frame: pl.DataFrame) -> pl.DataFrame:
    """subject_id, events, runs (1 = contiguous), unsorted, births, deaths, undated, and whether events lie before
    birth, after death (of a death at midnight: after its day), later that day, long after, and death before birth."""
    same = pl.col("subject_id").eq_missing(pl.col("subject_id").shift(1))
    earlier = pl.col("time").shift(1)
    back = (pl.col("time") < earlier) | (pl.col("time").is_null() & earlier.is_not_null())
    birth, death = pl.col("code") == BIRTH, pl.col("code") == DEATH
    marked = frame.with_columns(
        (~same).cum_sum().alias("run"), (same & back).fill_null(False).alias("back"), row=pl.int_range(pl.len())
    ).filter(pl.col("subject_id").is_not_null())
    time, first_birth = pl.col("time"), pl.col("time").filter(birth).min()
    died = pl.col("time").filter(death).min()
    day_over = pl.when(bare_date(died)).then(died + pl.duration(days=1, microseconds=-1)).otherwise(died)
    return marked.group_by("subject_id", maintain_order=True).agg(
        events=pl.len(),
        runs=pl.col("run").n_unique(),
        unsorted=pl.col("back").any(),
        births=birth.sum(),
        deaths=death.sum(),
        undated=((birth | death) & pl.col("time").is_null()).any(),
        after_death=(time > day_over).any(),
        later_that_day=((time > died) & (time <= day_over)).any(),
        long_after=(time > died + pl.duration(days=LONG_AFTER_DAYS)).any(),
        before_birth=((time < first_birth) & ~death).any(),
        unborn=(died < first_birth),
    )


def _per_row(frame: pl.DataFrame) -> pl.DataFrame:
    lived = pl.col("time").filter(pl.col("code") != BIRTH).dt.year()
    return frame.select(
        events=pl.len(),
        static_events=pl.col("time").is_null().sum(),
        numeric_values=pl.col("numeric_value").count(),
        null_ids=pl.col("subject_id").null_count(),
        null_codes=(pl.col("code").is_null() | (pl.col("code") == "")).sum(),
        copies=pl.lit(frame.height - frame.n_unique()),
        not_finite=(~pl.col("numeric_value").is_finite()).sum(),
        first_year=lived.min(),
        last_year=lived.max(),
    ).cast(pl.Int64)


def _facts(dataset: MedsDataset, subjects: pl.DataFrame, rows: dict[str, int], codes: pl.Series) -> dict[str, int]:
    rejects = sorted((dataset.root / "rejects").glob("*.parquet"))
    median = subjects["events"].median()
    return {
        "subjects": subjects["subject_id"].n_unique(),
        "events": rows["events"],
        "codes": len(codes),
        "shards": len(dataset.shards()),
        "median_events_a_subject": int(median) if isinstance(median, int | float) else 0,
        "static_events": rows["static_events"],
        "numeric_values": rows["numeric_values"],
        "first_year": rows["first_year"],
        "last_year": rows["last_year"],
        "subjects_with_birth": _count(subjects, pl.col("births") > 0),
        "subjects_with_death": _count(subjects, pl.col("deaths") > 0),
        "rows_set_aside": sum(pl.scan_parquet(path).select(pl.len()).collect().item() for path in rejects),
    }


def _structure(subjects: pl.DataFrame, rows: dict[str, int]) -> Iterator[Problem]:
    shards = subjects.group_by("subject_id").agg(pl.col("shard").n_unique().alias("shards"))
    mend = "sort each shard by subject_id and time (static rows first), whole subjects in one file"
    yield Problem("error", "events not in order of time", _count(subjects, pl.col("unsorted")), mend)
    yield Problem("error", "events not in one block of the file", _count(subjects, pl.col("runs") > 1), mend)
    yield Problem("error", "events in more than one shard", _count(shards, pl.col("shards") > 1), mend)
    remove = "remove these rows, or find what they should have said"
    yield Problem("error", "no subject_id", rows["null_ids"], remove, "events", rows["events"])
    yield Problem("error", "no code", rows["null_codes"], remove, "events", rows["events"])
    kept = "kept and counted as they are; remove them where they are no repeated measurements"
    yield Problem("note", "exact copies of another row", rows["copies"], kept, "events", rows["events"])


def _lives(subjects: pl.DataFrame, facts: dict[str, int]) -> Iterator[Problem]:
    total, born, dead = facts["subjects"], facts["subjects_with_birth"], facts["subjects_with_death"]
    births = subjects.group_by("subject_id").agg(
        pl.col("births", "deaths").sum(), pl.exclude(*_COUNTED, "births", "deaths").any()
    )
    yield Problem(
        "warning",
        f"no {BIRTH}",
        total - born,
        "ages are unknown for them; add births where they are known",
        total=total,
    )
    once = "keep one a subject; the earliest counts until then"
    yield Problem("warning", f"more than one {BIRTH}", _count(births, pl.col("births") > 1), once, total=born)
    yield Problem("warning", f"more than one {DEATH}", _count(births, pl.col("deaths") > 1), once, total=dead)
    dated = "give these events a time; without one they are read as static"
    yield Problem("warning", "birth or death without a time", _count(births, pl.col("undated")), dated)
    yield Problem(
        "warning",
        f"events after {DEATH}",
        _count(births, pl.col("after_death")),
        "kept as they are; often late results or a certificate. No prediction_time may lie after death",
        total=dead,
    )
    wrong = "check whether the death, or the events, are somebody else's. Nothing after death counts as an outcome"
    long_after = _count(births, pl.col("long_after"))
    yield Problem("warning", f"events more than {LONG_AFTER_DAYS} days after {DEATH}", long_after, wrong, total=dead)
    moved = "a death known by its date alone: read as at the last record of its day"
    same_day = _count(births, pl.col("later_that_day"))
    yield Problem("note", f"{DEATH} at midnight, records later that day", same_day, moved, total=dead)
    unborn = "no cohort takes them: they are dead at, or unborn before, any prediction_time. Check the dates"
    yield Problem("warning", f"{DEATH} before {BIRTH}", _count(births, pl.col("unborn")), unborn, total=dead)
    early = "kept as they are; often a birthday known only by its year. Check the dates"
    yield Problem("warning", f"events before {BIRTH}", _count(births, pl.col("before_birth")), early, total=born)


def _metadata(dataset: MedsDataset, subjects: pl.DataFrame, codes: pl.Series) -> Iterator[Problem]:
    known = dataset.codes()["code"]
    yield Problem(
        "warning",
        "codes without metadata",
        len(codes) - int(codes.is_in(known.implode()).sum()),
        "they are used without a description; add them to metadata/codes.parquet",
        "codes",
        len(codes),
    )
    if not dataset.describe():
        yield Problem("note", "no metadata/dataset.json", 1, "add one to say what this dataset is", "files")
    splits = dataset.split_rows()
    if splits is None:
        return
    people = subjects["subject_id"].unique()
    inside = splits["subject_id"].is_in(people.implode())
    left = len(people) - splits["subject_id"].filter(inside).n_unique()
    several = splits.group_by("subject_id").agg(pl.col("split").n_unique()).filter(pl.col("split") > 1).height
    foreign = splits["split"].is_in([TRAIN, TUNING, HELD_OUT]).not_().sum()
    mend = "mend metadata/subject_splits.parquet, or remove it to have splits made"
    yield Problem("warning", "splits of subjects without events", int((~inside).sum()), mend)
    yield Problem("warning", "no split", left, mend, total=len(people))
    yield Problem("error", "more than one split", several, mend)
    yield Problem("warning", f"splits other than {TRAIN}, {TUNING}, {HELD_OUT}", int(foreign), mend)


def _values(dataset: MedsDataset, rows: dict[str, int]) -> Iterator[Problem]:
    schemas = [pl.read_parquet_schema(shard) for shard in dataset.shards()]
    other = sum(schema.get("numeric_value", pl.Float32()) != pl.Float32() for schema in schemas)
    yield Problem("note", "numeric_value is not float32", other, "read as float32; write it so", "shards", len(schemas))
    yield Problem(
        "warning",
        "numeric_value is NaN or infinite",
        rows["not_finite"],
        "write null where there is no value",
        "events",
        rows["numeric_values"],
    )


def _set_aside(facts: dict[str, int]) -> Iterator[Problem]:
    fix = "see rejects/*.parquet (file, row, reason), mend the source and convert again"
    yield Problem("note", "rows set aside when the dataset was made", facts["rows_set_aside"], fix, "rows")


def _count(frame: pl.DataFrame, condition: pl.Expr) -> int:
    return frame.filter(condition)["subject_id"].n_unique()


def _cell(count: int, unit: str) -> str:
    return f"<{MIN_CELL}" if unit in _ABOUT_PEOPLE and 0 < count < MIN_CELL else f"{count:,}"


def _share(count: int, total: int | None, unit: str) -> str:
    """Count of total; where the few that are left over could be had by subtraction, only a lower bound.

    >>> _share(3, 40, "subjects"), _share(38, 40, "subjects"), _share(3, 40, "codes")
    ('<10 of 40', '>30 of 40', '3 of 40')
    """
    if total is None:
        return _cell(count, unit)
    rest = total - count
    hidden = unit in _ABOUT_PEOPLE and 0 < rest < MIN_CELL <= count
    shown = f">{max(total - MIN_CELL, 0):,}" if hidden else _cell(count, unit)
    return f"{shown} of {_cell(total, unit)}"


def _fact(key: str, facts: dict[str, int]) -> str:
    value = facts[key]
    if key in ("first_year", "last_year"):
        return str(value) if value else "-"
    if key.startswith("subjects_with"):
        return _share(value, facts["subjects"], "subjects")
    people = ("subjects", "events", "static_events", "numeric_values", "rows_set_aside")
    return _cell(value, "subjects" if key in people else "other")
