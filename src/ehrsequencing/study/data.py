"""From a study's settings to what models read: records, cohort, splits, tokens, features and the time grid."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from jaxtyping import Int64

from ehrsequencing.batches import SurvivalData, VisitData
from ehrsequencing.bundle import Encoder
from ehrsequencing.cohort import Cohort, whole_records
from ehrsequencing.cohort.attrition import suppress
from ehrsequencing.cohort.predicates import distinct_codes, matching_codes
from ehrsequencing.cohort.splits import periods, subject_splits, units
from ehrsequencing.cohort.times import midnight
from ehrsequencing.config import (
    HELD_OUT,
    SPLIT_FRACTIONS,
    TRAIN,
    TUNING,
    CalendarConfig,
    DataConfig,
    FeaturesConfig,
    InputConfig,
    PretrainConfig,
    SplitConfig,
    TaskConfig,
    TokensConfig,
    load_task,
)
from ehrsequencing.errors import EhrError, Exit
from ehrsequencing.events import MedsDataset, among, assign_folds, rank_hash
from ehrsequencing.features import FeatureSpec, build_features
from ehrsequencing.horizon import choose_tau
from ehrsequencing.inference import read_visits
from ehrsequencing.progress import tracked
from ehrsequencing.sources.mapped import convert_csv
from ehrsequencing.sources.omop import convert_omop
from ehrsequencing.sources.synthea import convert_synthea
from ehrsequencing.study.casemix import describe_casemix
from ehrsequencing.study.readable import Readable
from ehrsequencing.study.telling_pairs import with_pairs
from ehrsequencing.synthetic import simulate
from ehrsequencing.timegrid import TimeGrid, truncate
from ehrsequencing.tokens import Fitting, Tokenizer, TokenStore, grow, tokenize, tokenize_windows
from ehrsequencing.training.pretraining_objectives import OBJECTIVES

INNER_TUNING = SPLIT_FRACTIONS[TUNING] / (SPLIT_FRACTIONS[TRAIN] + SPLIT_FRACTIONS[TUNING])


def open_data(config: DataConfig, out: Path) -> tuple[MedsDataset, str]:
    """The study's records, simulated or converted into ``out`` where asked; and a sentence on where they came from.

    A dataset that lies there already is one that an interrupted run made, whole, from the same settings.
    """
    if config.meds is None and out.is_dir():
        return MedsDataset.open(out), f"records: taken over from the interrupted run ({out})"
    if config.simulate is not None:
        dataset = simulate(out, config.simulate)
        return dataset, f"simulated: {config.simulate.patients:,} patients, seed {config.simulate.seed}"
    if config.csv is not None:
        report = convert_csv(_folder(config.csv.src), out, _folder(config.csv.mapping))
        return report.dataset, report.text()
    for convert, source in ((convert_synthea, config.synthea), (convert_omop, config.omop)):
        if source is not None:
            report = convert(_folder(source), out)
            return report.dataset, report.text()
    return MedsDataset.open(_folder(str(config.meds))), "a MEDS dataset"


def _folder(text: str) -> Path:
    path = Path(text).expanduser()
    if "$" in text:
        name = text[text.index("$") :].split("/")[0].strip("${}")
        raise EhrError(f"the environment variable {name} is not set", text, f"export {name}=…", code=Exit.CONFIG)
    if not path.exists():
        raise EhrError("the folder does not exist", os.fspath(path), "check the path under 'data'")
    return path


def task_of(study_task: TaskConfig | str, dataset: MedsDataset, beside: Path) -> TaskConfig:
    """The study's own task, or the TASK.yaml it names: looked for beside the data, then beside the study."""
    if isinstance(study_task, TaskConfig):
        return study_task
    places = [dataset.root / study_task, beside / study_task]
    return load_task(next((place for place in places if place.is_file()), places[-1]))


def limit_labelled(cohort: Cohort, labelled: int | None, seed: int) -> Cohort:
    """At most ``labelled`` subjects of train + tuning, drawn by hash; held-out subjects all stay."""
    if labelled is None:
        return cohort
    rows = cohort.table if cohort.visits is None else cohort.visits
    learning = rows.filter(pl.col("split") != HELD_OUT)["subject_id"].unique().sort().to_numpy()
    order = np.argsort(rank_hash(learning, seed, "labelled"), kind="stable")
    kept = (pl.col("split") == HELD_OUT) | pl.col("subject_id").is_in(learning[order[:labelled]])
    visits = None if cohort.visits is None else cohort.visits.filter(kept)
    return replace(cohort, table=cohort.table.filter(kept), visits=visits)


@dataclass(frozen=True)
class Division:
    """Who trains, tunes and is held out, among all subjects of the dataset; ``tag`` names the fold."""

    tag: str
    subject_id: Int64[np.ndarray, " n"]
    split: np.ndarray

    def of(self, subjects: Int64[np.ndarray, " m"]) -> np.ndarray:
        """The split of each of ``subjects``."""
        return self.split[np.searchsorted(self.subject_id, subjects)]

    def train_subjects(self) -> Int64[np.ndarray, " k"]:
        return self.subject_id[self.split == TRAIN]


def divisions(
    dataset: MedsDataset,
    folds: int | None,
    split: SplitConfig,
    *,
    task: TaskConfig | None = None,
    cohort: Cohort | None = None,
) -> list[Division]:
    """One division (the dataset's own splits, made by hash, or by the calendar), or one a fold with tuning inside.

    Groups of the task's ``split_by`` stay together. By the calendar a subject has the split of its rows in ``cohort``;
    one without rows, the period in which its records begin.
    """
    subjects = dataset.subject_ids()
    split_by = None if task is None else task.split_by
    if split.calendar is not None:
        return [Division("", subjects, _by_calendar(dataset, subjects, split.calendar, cohort))]
    if folds is None:
        return [Division("", subjects, subject_splits(dataset, subjects, split.seed, split_by))]
    hashed = units(dataset, subjects, split_by)
    fold = assign_folds(hashed, split.seed, folds)
    parts = []
    for k in range(folds):
        tunes = rank_hash(hashed, split.seed, f"tuning-{k}") < INNER_TUNING
        parts.append(Division(f"-fold{k}", subjects, np.where(fold == k, HELD_OUT, np.where(tunes, TUNING, TRAIN))))
    return parts


def fold_numbers(parts: Sequence[Division], subjects: Int64[np.ndarray, " m"]) -> Int64[np.ndarray, " m"]:
    """The fold in which each of ``subjects`` is held out."""
    return np.argmax([part.of(subjects) == HELD_OUT for part in parts], axis=0)


def _by_calendar(
    dataset: MedsDataset, subjects: Int64[np.ndarray, " n"], calendar: CalendarConfig, cohort: Cohort | None
) -> np.ndarray:
    begin = dataset.scan().group_by("subject_id").agg(pl.col("time").min()).collect(engine="streaming")
    found = begin.drop_nulls().with_columns(split=periods(begin.drop_nulls()["time"], calendar))
    named = pl.DataFrame({"subject_id": subjects}).join(found, on="subject_id", how="left", maintain_order="left")
    if cohort is not None:
        rows = cohort.table if cohort.visits is None else cohort.visits
        own = rows.select("subject_id", own="split").unique("subject_id")
        named = named.join(own, on="subject_id", how="left", maintain_order="left")
        named = named.with_columns(split=pl.coalesce("own", "split"))
    return named["split"].fill_null(HELD_OUT).to_numpy().astype(np.str_)


def pretraining_records(
    dataset: MedsDataset,
    subjects: Int64[np.ndarray, " n"],
    task: TaskConfig | InputConfig,
    config: TokensConfig,
    attention: str = "bidirectional",
    *,
    calendar: CalendarConfig | None = None,
    folder: Path | None = None,
) -> tuple[Tokenizer, TokenStore]:
    """Tokenizer and whole records of training subjects, under the task's own input rules; with a calendar split, up to
    the end of its training period.

    Under the block-causal mask records come as windows from their start, as they do for predictions at every visit.

    A large dataset is read part by part (``MedsDataset.parts``), once for the tokenizer and once for the tokens, which
    are then memory-mapped from ``folder``; without one they are kept in memory.
    """
    before = None if calendar is None else midnight(calendar.tuning, "split.calendar.tuning")
    parts, wanted = dataset.parts(), np.sort(subjects)

    @lru_cache(maxsize=1)  # a dataset of one part is read once
    def read(part: MedsDataset) -> pl.DataFrame:
        own = subjects if len(parts) == 1 else (found := part.subject_ids())[among(found, wanted)]
        records = whole_records(part.scan(), own, task, visit_column=config.visit_column, before=before)
        return records.collect(engine="streaming")

    fitting, each = Fitting(config), [1.0] * len(parts)
    for part in tracked(parts, "reading codes", each):
        fitting.add(read(part))
    tokenizer = fitting.tokenizer()

    def tokens(part: MedsDataset) -> TokenStore:
        rows = read(part).select("subject_id", "prediction_time").unique().sort("subject_id")
        if attention == "block_causal":
            return tokenize_windows(read(part), rows, tokenizer).tokens
        return tokenize(read(part), rows, tokenizer)

    stores = map(tokens, tracked(parts, "making tokens", each))
    if len(parts) == 1:
        return tokenizer, next(iter(stores))
    if folder is not None:
        return tokenizer, grow(stores, folder)
    joined = TokenStore.joined(list(stores))
    return tokenizer, joined.take(np.argsort(joined.subject_id, kind="stable"))


def kept_from_outcomes(config: PretrainConfig, dataset: MedsDataset, task: TaskConfig | InputConfig) -> PretrainConfig:
    """The settings with the codes of the task's outcome and competing events among those never predicted.

    Their times in the records of training subjects without a label would be labels by another name. Settings under
    which no code is asked for by name are returned as they are.
    """
    names = any(OBJECTIVES[name].named for name in config.objectives)
    if not (names and config.exclude_outcome and isinstance(task, TaskConfig)):
        return config
    known = distinct_codes(dataset.scan())
    own = {code for event in (task.outcome, *task.competing.values()) for code in matching_codes(event.code, known)}
    return config.model_copy(update={"exclude_codes": tuple(sorted(own.union(config.exclude_codes)))})


@dataclass(frozen=True)
class Prepared:
    """What every model of one division reads, and the feature specification behind it."""

    data: SurvivalData
    features: FeatureSpec
    tau: float
    casemix: dict[str, Any] = field(default_factory=dict)
    """Who the training rows are, in suppressed numbers: what a validation compares with."""

    def events(self, split: str) -> int:
        """Outcomes up to τ in a split."""
        return int((self.data.targets(self.data.index(split)).event == 1).sum())

    @property
    def n_labelled(self) -> int:
        """Subjects of train + tuning."""
        return len(self.data.index(TRAIN)) + len(self.data.index(TUNING))

    @property
    def n_labelled_events(self) -> int:
        """Outcomes among them, up to τ."""
        return self.events(TRAIN) + self.events(TUNING)


def prepare(
    dataset: MedsDataset,
    cohort: Cohort,
    encoder: Encoder,
    config: FeaturesConfig = FeaturesConfig(),
    tau: float | None = None,
    readable: Readable | None = None,
) -> Prepared:
    """Tokens, features and grid of a cohort; everything fitted is fitted on its training rows alone.

    ``readable`` is what has been read already, for these rows and perhaps more, under the same rules.

    Raises:
        EhrError: the encoder was pretrained on tuning or held-out subjects (exit 15); the horizon is too long (12).
    """
    table, tokenizer = cohort.table, encoder.tokenizer
    asked = table if cohort.visits is None else cohort.visits
    encoder.refuse_seen(asked.filter(pl.col("split") != TRAIN)["subject_id"].unique().to_numpy())
    train = table.filter(pl.col("split") == TRAIN)
    duration, event = train["duration"].to_numpy(), train["event"].to_numpy()
    tau = choose_tau(duration, event, cohort.task.horizon_days) if tau is None else tau
    grid = TimeGrid.fit(duration, event, tau)
    readable = Readable.of(dataset, table, cohort.task, tokenizer) if readable is None else readable
    history = readable.history
    spec = FeatureSpec.fit(history, train, config)
    shorter, seen = truncate(table["duration"].to_numpy(), table["event"].to_numpy(), tau)
    data = SurvivalData(
        rows=table.with_columns(pl.Series("duration", shorter), pl.Series("event", seen.astype(np.int8))),
        tokens=readable.tokens_of(table),
        features=build_features(history, table, spec),
        grid=grid,
        tokenizer=tokenizer,
        cohort_fingerprint=cohort.fingerprint,
        causes=cohort.task.causes,
        visits=None if cohort.visits is None else _visit_data(dataset, cohort, cohort.visits, tokenizer, grid),
    )
    data, spec = with_pairs(data, spec, history)
    return Prepared(data, spec, tau, describe_casemix(history, train, tokenizer, tau, cohort.task.causes))


def _visit_data(
    dataset: MedsDataset, cohort: Cohort, visits: pl.DataFrame, tokenizer: Tokenizer, grid: TimeGrid
) -> VisitData:
    """Every visit of the cohort, and which of them its table evaluates."""
    keys = ["subject_id", "prediction_time"]
    rows = visits.sort(keys)
    numbered = rows.select(keys).with_row_index("at")
    evaluated = cohort.table.select(keys).join(numbered, on=keys, how="left", maintain_order="left")["at"]
    if evaluated.null_count():
        what = f"{evaluated.null_count()} evaluated rows are no visits of the cohort"
        raise EhrError(what, f"task {cohort.task.name}", "make the cohort again", code=Exit.COHORT)
    shorter, seen = truncate(rows["duration"].to_numpy(), rows["event"].to_numpy(), grid.tau)
    return VisitData(
        rows=rows.with_columns(pl.Series("duration", shorter), pl.Series("event", seen.astype(np.int8))),
        places=read_visits(dataset, rows, cohort.task, tokenizer),
        evaluated=evaluated.to_numpy().astype(np.int64),
        grid=grid,
    )


def common_tau(cohort: Cohort, parts: Sequence[Division]) -> float:
    """One τ for all folds: the task's own, or the shortest that any fold's training rows support."""
    taus = []
    for part in parts:
        rows = cohort.table.filter(pl.Series(part.of(cohort.table["subject_id"].to_numpy()) == TRAIN))
        taus.append(choose_tau(rows["duration"].to_numpy(), rows["event"].to_numpy(), cohort.task.horizon_days))
    return min(taus)


def refuse_empty_splits(cohort: Cohort) -> None:
    """EhrError (exit 12) where a split has nobody in it, or another name than MEDS gives."""
    found, wanted = set(cohort.table["split"]), {TRAIN, TUNING, HELD_OUT}
    if found != wanted:
        raise EhrError(
            f"expected patients in the splits {', '.join(sorted(wanted))}, found {', '.join(sorted(found))}",
            "the cohort's splits",
            "name the splits as MEDS does, leave none empty; where 'labelled' limits them, raise it",
            code=Exit.COHORT,
        )


def cut_short(store: TokenStore, tokenizer: Tokenizer) -> str:
    """How many histories were longer than the tokenizer keeps; counts below 10 are suppressed."""
    cut, kept = suppress([int(store.truncated.sum()), int((~store.truncated).sum())])
    limit = f"histories of more than {tokenizer.config.max_tokens} tokens"
    return f"{limit}, cut to their latest visits: {cut} ({kept} whole)"
