"""A large dataset read part by part gives what it gives whole, in memory that does not grow with it."""

from __future__ import annotations

import datetime as dt
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ehrsequencing import prediction_checks
from ehrsequencing.bundle import Bundle
from ehrsequencing.cohort import build_cohort, eligible, prediction_rows, whole_records
from ehrsequencing.config import (
    IndexConfig,
    InputConfig,
    ModelConfig,
    PretrainConfig,
    SimulateConfig,
    TaskConfig,
    TokensConfig,
    load_task,
    parse,
)
from ehrsequencing.errors import EhrError
from ehrsequencing.events import MedsDataset, write_dataset
from ehrsequencing.events import dataset as events_dataset
from ehrsequencing.inference import predict, predict_to_file, row_logits
from ehrsequencing.predictions import Predictions
from ehrsequencing.study import data as study_data
from ehrsequencing.study.data import pretraining_records
from ehrsequencing.study.steps import pretrain, write_bundle, write_encoder
from ehrsequencing.synthetic import simulate
from ehrsequencing.timegrid import TimeGrid
from ehrsequencing.tokens import Fitting, Tokenizer, grow, tokenize
from ehrsequencing.tokens.numbers import in_order, numbered
from ehrsequencing.tokens.store import TOKEN_ARRAYS
from ehrsequencing.tokens.vocabulary import SubjectCounts, ancestors, parent
from ehrsequencing.training import pretrain as pretraining
from ehrsequencing.training.resume import Resume
from interrupted import KillAfter, KilledError

CODES = [
    "A",
    "ICD10CM//E11",
    "ICD10CM//E11.6",
    "ICD10CM//E11.65",
    "ICD10CM//E11.64",
    "LAB//1//mg",
    "LAB//1//g",
    "LAB//1",
]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> MedsDataset:
    return simulate(tmp_path_factory.mktemp("large") / "sim", SimulateConfig(patients=130), subjects_per_shard=10)


@pytest.fixture
def in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Datasets of more than 1,500 events are large."""
    monkeypatch.setattr(events_dataset, "PART_EVENTS", 1_500)


def test_parts_are_all_shards_and_share_no_subject(dataset: MedsDataset) -> None:
    assert dataset.parts() == [dataset]
    parts = dataset.parts(1_500)
    assert len(parts) > 3
    assert sorted(path for part in parts for path in part.shards()) == dataset.shards()
    people = [set(part.subject_ids()) for part in parts]
    assert sum(map(len, people)) == len(set.union(*people)) == 130


def test_shards_that_share_a_subject_stay_together(dataset: MedsDataset, tmp_path) -> None:
    (tmp_path / "data").mkdir()
    for number, path in enumerate(dataset.shards()):
        events = pl.read_parquet(path)
        moved = [pl.read_parquet(dataset.shards()[0]).tail(3)] if number in (4, 9) else []
        pl.concat([events, *moved]).write_parquet(tmp_path / "data" / path.name)
    torn = MedsDataset.open(tmp_path)
    own = {path: at for at, part in enumerate(torn.parts(800)) for path in part.shards()}
    shards = torn.shards()
    assert own[shards[0]] == own[shards[4]] == own[shards[9]]
    assert sorted(own) == shards


def test_a_part_has_the_columns_of_the_whole(dataset: MedsDataset, tmp_path) -> None:
    """A column that stands in one shard alone is there, and empty, in parts without that shard."""
    (tmp_path / "data").mkdir()
    for number, path in enumerate(dataset.shards()):
        events = pl.read_parquet(path)
        extra = [pl.lit(f"stay {number}").alias("visit_id")] if number == 0 else []
        events.with_columns(extra).write_parquet(tmp_path / "data" / path.name)
    whole = MedsDataset.open(tmp_path)
    schema = whole.scan().collect_schema()
    parts = whole.parts(1_500)
    assert len(parts) > 3
    assert all(part.scan().collect_schema() == schema for part in parts)
    together = pl.concat([part.scan().collect() for part in parts])
    assert together.sort(pl.all()).equals(whole.scan().collect().sort(pl.all()))
    assert together["visit_id"].null_count() < together.height


def test_cohort_of_parts_is_that_of_the_whole(dataset: MedsDataset, tmp_path, monkeypatch) -> None:
    """A label file names one patient whom nobody has recorded, and an age must have come by anybody's last record."""
    task = load_task(dataset.root / "task.yaml")
    rows = prediction_rows(dataset, task)
    stranger = pl.DataFrame({"subject_id": [10**9], "prediction_time": [rows["prediction_time"].max()]}, rows.schema)
    pl.concat([rows, stranger]).write_parquet(tmp_path / "labels.parquet")
    tasks = [
        task,
        task.model_copy(update={"index": IndexConfig(labels=tmp_path / "labels.parquet")}),
        task.model_copy(update={"index": IndexConfig(age=70)}),
    ]
    whole = [(build_cohort(dataset, each), eligible(dataset, each)) for each in tasks]
    monkeypatch.setattr(events_dataset, "PART_EVENTS", 1_500)
    assert len(dataset.parts()) > 3
    for each, (cohort, (asked, attrition)) in zip(tasks, whole, strict=True):
        found = build_cohort(dataset, each)
        assert found.table.equals(cohort.table)
        assert found.attrition.equals(cohort.attrition)
        assert found.subgroups.equals(cohort.subgroups)
        assert eligible(dataset, each)[0].equals(asked)
        assert eligible(dataset, each)[1].equals(attrition)
    assert whole[1][0].attrition.filter(rule="no records")["removed"].to_list() == [1]
    assert whole[2][1][1].filter(rule="not reached")["removed"].item() > 0


def test_no_bit_of_a_duration_depends_on_how_many_rows_a_part_leaves(tmp_path, monkeypatch) -> None:
    rng, begin = np.random.default_rng(0), dt.datetime(2012, 1, 1)
    ends = [begin + dt.timedelta(days=400, microseconds=int(n)) for n in rng.integers(0, 10**14, 40)]
    frames = [
        pl.DataFrame({"subject_id": [i] * 2, "time": [begin, end], "code": ["A", "OUT" if i % 2 else "B"]})
        for i, end in enumerate(ends)
    ]
    data = write_dataset(tmp_path / "meds", frames, name="odd times")
    task = parse(TaskConfig, {"name": "t", "index": {"date": "2013-01-01"}, "outcome": {"code": "OUT"}}, "test")
    whole = build_cohort(data, task)
    monkeypatch.setattr(events_dataset, "PART_EVENTS", 1)
    assert len(data.parts()) == 40
    assert build_cohort(data, task).fingerprint == whole.fingerprint


def test_tokens_of_parts_are_those_of_the_whole(dataset: MedsDataset, tmp_path, monkeypatch, in_parts) -> None:
    subjects = dataset.subject_ids()[::2]
    history = whole_records(dataset.scan(), subjects, InputConfig()).collect()
    rows = history.select("subject_id", "prediction_time").unique().sort("subject_id")
    tokenizer = Tokenizer.fit(history, TokensConfig())
    expected = tokenize(history, rows, tokenizer)
    reads = []
    monkeypatch.setattr(
        study_data, "whole_records", lambda *args, **given: reads.append(1) or whole_records(*args, **given)
    )
    parts = len(dataset.parts())
    found, store = pretraining_records(dataset, subjects, InputConfig(), TokensConfig(), folder=tmp_path / "tokens")
    assert found.fingerprint == tokenizer.fingerprint
    assert len(reads) == 2 * parts  # once for the vocabulary, once for the tokens
    assert store.fingerprint == expected.fingerprint
    np.testing.assert_array_equal(store.subject_id, expected.subject_id)
    assert store.counts == expected.counts
    assert store.stats == expected.stats
    for name in TOKEN_ARRAYS:
        np.testing.assert_array_equal(getattr(store, name), getattr(expected, name))
        assert isinstance(getattr(store, name), np.memmap)
    on_disk = sum(path.stat().st_size for path in (tmp_path / "tokens").rglob("*") if path.is_file())
    assert on_disk == 24 * store.offsets[-1]  # bytes a token: nothing is padded, nothing is kept twice
    in_memory = pretraining_records(dataset, subjects, InputConfig(), TokensConfig())[1]
    assert in_memory.fingerprint == expected.fingerprint


def test_windows_of_parts_are_those_of_the_whole(dataset: MedsDataset, tmp_path, in_parts, monkeypatch) -> None:
    subjects, config = dataset.subject_ids(), TokensConfig(max_tokens=16)
    several = pretraining_records(dataset, subjects, InputConfig(), config, "block_causal", folder=tmp_path / "t")[1]
    monkeypatch.setattr(events_dataset, "PART_EVENTS", 10**9)
    whole = pretraining_records(dataset, subjects, InputConfig(), config, "block_causal")[1]
    assert several.fingerprint == whole.fingerprint
    assert several.counts == whole.counts


def test_stores_of_two_tokenizers_do_not_grow_together(dataset: MedsDataset, tmp_path) -> None:
    stores = [
        pretraining_records(dataset, dataset.subject_ids(), InputConfig(), TokensConfig(min_subjects=n))[1]
        for n in (1, 9)
    ]
    with pytest.raises(EhrError, match="2 tokenizers"):
        grow(stores, tmp_path / "tokens")


def test_groups_hold_whole_subjects(dataset: MedsDataset) -> None:
    _, store = pretraining_records(
        dataset, dataset.subject_ids(), InputConfig(), TokensConfig(max_tokens=16), "block_causal"
    )
    rows = np.random.default_rng(0).permutation(len(store))[:200]
    groups = list(store.groups(rows, tokens=100))
    assert len(groups) > 10
    assert sorted(np.concatenate(groups)) == sorted(rows)
    people = [set(store.subject_id[group]) for group in groups]
    assert sum(map(len, people)) == len(set.union(*people))
    vocab = int(store.code.max()) + 1
    np.testing.assert_array_equal(store.code_counts(vocab, rows), np.bincount(store.take(rows).code, minlength=vocab))


def reference_vocabulary(pairs: set[tuple[int, str]], min_subjects: int, max_codes: int) -> tuple[str, ...]:
    """Level by level, in plain Python."""
    waiting: dict[str, set[int]] = {}
    for subject, code in pairs:
        waiting.setdefault(code, set()).add(subject)
    kept = {}
    while waiting:
        code = max(waiting, key=lambda name: len(ancestors(name)))
        subjects, above = waiting.pop(code), parent(code)
        if len(subjects) >= min_subjects:
            kept[code] = len(subjects)
        elif above is not None:
            waiting.setdefault(above, set()).update(subjects)
    return tuple(sorted(kept, key=lambda code: (-kept[code], code))[:max_codes])


pairs = st.sets(st.tuples(st.integers(1, 12), st.sampled_from(CODES)), min_size=1, max_size=60)


@settings(deadline=None, max_examples=100)
@given(pairs, st.integers(1, 6), st.integers(1, 4), st.integers(1, 8))
def test_vocabulary_of_groups_is_that_of_all(found, min_subjects, groups, max_codes) -> None:
    frame = pl.DataFrame(sorted(found), schema={"subject_id": pl.Int64, "code": pl.String}, orient="row")
    expected = reference_vocabulary(found, min_subjects, max_codes)
    counts = SubjectCounts(min_subjects)
    for group in range(groups):
        own = frame.filter(pl.col("subject_id") % groups == group)
        number, names = numbered(own["code"])
        counts.add(own["subject_id"].to_numpy(), number - 1, names)
    assert counts.codes(max_codes) == expected


def test_a_subject_in_several_stretches_counts_once() -> None:
    history = pl.DataFrame(
        {"subject_id": [1, 2, 1, 2], "code": ["A", "A", "A", "B"], "numeric_value": [1.0, None, 2.0, None]},
        schema_overrides={"numeric_value": pl.Float32},
    )
    fitting = Fitting(TokensConfig(min_subjects=2))
    fitting.add(history)
    assert fitting.tokenizer().codes[4:] == ("A",)


@given(st.lists(st.tuples(*[st.integers(0, 3)] * 4), max_size=40))
def test_the_order_is_that_of_a_full_sort(rows: list[tuple[int, int, int, int]]) -> None:
    columns = [np.array([row[at] for row in rows], dtype=np.int64) for at in range(4)]
    for known in (columns, [columns[0] * 0, columns[1] * 0, *columns[2:]]):
        order = in_order(known[:2], known[2:])
        found = [list(column if order is None else column[order]) for column in known]
        assert list(zip(*found, strict=True)) == sorted(zip(*(list(column) for column in known), strict=True))


def test_a_run_of_so_many_steps(dataset: MedsDataset, monkeypatch) -> None:
    rates: list[float] = []
    step = pretraining.train

    def spied(learner, objective, schedule, **given):
        history = step(learner, objective, schedule, **given)
        rates.extend(epoch.learning_rate for epoch in history)
        return history

    monkeypatch.setattr(pretraining, "train", spied)
    config = PretrainConfig(epochs=3, max_steps=11, batch_size=16, validation_subjects=4)
    record = pretrain(dataset, config, model=ModelConfig(dropout=0.0)).record
    assert record["steps"] == 11
    assert record["validation_subjects"] == 4
    assert len(record["history"]) == 2  # seven steps, and four of the second pass
    assert rates[-1] < 0.05 * config.optimizer.learning_rate  # the decay ends with the last step
    assert pretrain(dataset, PretrainConfig(epochs=1, max_steps=10_000, batch_size=64)).record["steps"] == 2


def test_a_killed_run_of_so_many_steps_goes_on(dataset: MedsDataset, tmp_path) -> None:
    config = PretrainConfig(epochs=3, max_steps=11, batch_size=16)
    whole = pretrain(dataset, config)
    resume = Resume(tmp_path / "loop", every=0.0)
    with pytest.raises(KilledError):
        pretrain(dataset, config, resume=resume, progress=KillAfter(9))
    again = pretrain(dataset, config, resume=resume)
    for (name, one), other in zip(whole.model.state_dict().items(), again.model.state_dict().values(), strict=True):
        assert one.equal(other), name


@pytest.mark.parametrize("causes", [("outcome",), ("outcome", "death")])
def test_many_predictions_are_made_and_written_in_groups_of_rows(causes, tmp_path, monkeypatch) -> None:
    rng = np.random.default_rng(0)
    grid = TimeGrid.fit(rng.exponential(300.0, 400), np.ones(400, dtype=np.int64), 500.0)
    logits = rng.normal(-3.0, 1.0, (23, grid.n_bins, 2) if len(causes) > 1 else (23, grid.n_bins))
    day = np.repeat(np.datetime64("2020-01-01", "us"), 23)

    def made(name: str) -> Predictions:
        found = Predictions.from_logits(logits, grid, np.arange(23), day, causes, model="x", cohort_fingerprint="y")
        found.write(tmp_path / name)
        return Predictions.read(tmp_path / name)

    whole = made("whole.parquet")
    monkeypatch.setattr(prediction_checks, "ROWS_AT_ONCE", 5)
    parts = made("parts.parquet")
    assert pl.read_parquet(tmp_path / "parts.parquet").equals(pl.read_parquet(tmp_path / "whole.parquet"))
    assert (parts.model, parts.cohort_fingerprint) == (whole.model, whole.cohort_fingerprint) == ("x", "y")
    with pytest.raises(EhrError, match="23 curves increase"):
        replace(parts, survival=parts.survival[:, ::-1], cif={})


@pytest.mark.slow
def test_predictions_of_parts_are_those_of_the_whole(tmp_path, monkeypatch) -> None:
    data = simulate(tmp_path / "sim", SimulateConfig(patients=600), subjects_per_shard=50)
    task = data.root / "task.yaml"
    write_encoder(data.root, tmp_path / "encoder", max_steps=5)
    write_bundle(data.root, task, tmp_path / "bundle", encoder=tmp_path / "encoder", strategy="frozen")
    bundle = Bundle.load(tmp_path / "bundle")
    rows = prediction_rows(data, bundle.task).sample(fraction=1.0, shuffle=True, seed=0)
    for row in bundle.rows:
        name, whole = row_logits(bundle, data, rows, row)
        with monkeypatch.context() as patch:
            patch.setattr(events_dataset, "PART_EVENTS", 4_000)
            assert len(data.parts()) > 5
            assert row_logits(bundle, data, rows, row)[0] == name
            np.testing.assert_allclose(row_logits(bundle, data, rows, row)[1], whole, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_curves_are_made_for_some_rows_at_a_time(tmp_path, monkeypatch) -> None:
    data = simulate(tmp_path / "sim", SimulateConfig(patients=300))
    write_encoder(data.root, tmp_path / "encoder", max_steps=2)
    write_bundle(data.root, data.root / "task.yaml", tmp_path / "b", encoder=tmp_path / "encoder", strategy="frozen")
    predict(Bundle.load(tmp_path / "b"), data).write(tmp_path / "whole.parquet")
    made, make = [], Predictions.from_logits
    monkeypatch.setattr(prediction_checks, "ROWS_AT_ONCE", 40)
    monkeypatch.setattr(
        Predictions,
        "from_logits",
        lambda logits, *rest, **about: made.append(len(logits)) or make(logits, *rest, **about),
    )
    written = predict_to_file(tmp_path / "b", data.root, tmp_path / "groups.parquet")
    assert written.n == sum(made) > max(made) == 40
    whole, groups = (Predictions.read(tmp_path / f"{name}.parquet") for name in ("whole", "groups"))
    assert whole.to_frame().equals(groups.to_frame())
    assert (whole.model, whole.cohort_fingerprint) == (groups.model, groups.cohort_fingerprint)
