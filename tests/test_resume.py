"""A killed training run goes on in mid-epoch to the bytes of the uninterrupted one; no other state is ever taken up."""

from __future__ import annotations

import dataclasses
import time

import numpy as np
import pytest
import torch

from ehrsequencing.config import BudgetConfig, InputConfig, ModelConfig, PretrainConfig, SplitConfig, TokensConfig
from ehrsequencing.study.data import divisions, pretraining_records
from ehrsequencing.training.finetune import finetune
from ehrsequencing.training.pretrain import pretrain
from ehrsequencing.training.recipes import RECIPES
from ehrsequencing.training.resume import STATE, Resume, Snapshot, StateStore
from interrupted import KillAfter, KilledError

CONFIG = PretrainConfig(epochs=2, batch_size=16)


@pytest.fixture(scope="module")
def records(dataset):
    """Three steps an epoch."""
    train = divisions(dataset, None, SplitConfig())[0].train_subjects()[:48]
    return pretraining_records(dataset, train, InputConfig(), TokensConfig())


@pytest.fixture(autouse=True)
def savings_cost_nothing(monkeypatch):
    """So that an interval of 0 means every step, however slow the disk."""
    monkeypatch.setattr("ehrsequencing.training.resume.SHARE", 0)


def pretrained(records, resume=None, progress=None, seed=0):
    tokenizer, store = records
    keywords = {} if progress is None else {"progress": progress}
    return pretrain(store, tokenizer, CONFIG, ModelConfig(), seed=seed, resume=resume, **keywords)


def timeless(value):
    """The same without seconds, which differ from run to run."""
    if isinstance(value, dict):
        return {name: timeless(part) for name, part in value.items() if name != "seconds"}
    return [timeless(part) for part in value] if isinstance(value, list) else value


def assert_same(one, two):
    states = [fitted.model.state_dict() for fitted in (one, two)]
    assert states[0].keys() == states[1].keys()
    for name, tensor in states[0].items():
        assert torch.equal(tensor, states[1][name]), name


@pytest.fixture(scope="module")
def whole(records):
    return pretrained(records)


@pytest.mark.parametrize(("ticks", "every"), [(1, 1), (5, 2)])
def test_pretraining_goes_on_to_the_same_bytes(records, whole, tmp_path, ticks, every, monkeypatch):
    """KilledError in the first or in the second epoch; saved at every step, or some steps before the end."""
    calls = iter(range(10_000))
    monkeypatch.setattr(StateStore, "due", lambda self: next(calls) % every == 0)
    resume = Resume(tmp_path / "work")
    with pytest.raises(KilledError):
        pretrained(records, resume, KillAfter(ticks))
    again = KillAfter(10_000)
    found = pretrained(records, resume, again)
    assert any("resumed in epoch" in note for note in again.notes)
    assert_same(found, whole)
    assert timeless(found.record) == timeless(whole.record)


def test_killed_again_and_again_it_still_arrives(records, whole, tmp_path):
    resume = Resume(tmp_path / "work", every=0)
    for _ in range(100):
        try:
            found = pretrained(records, resume, KillAfter(2))
            break
        except KilledError:
            continue
    assert_same(found, whole)


@pytest.mark.parametrize(
    ("strategy", "size"),
    [("frozen", "large"), pytest.param("lora", "medium", marks=pytest.mark.slow), ("frozen-random", "small")],
)
def test_fine_tuning_goes_on_to_the_same_bytes(data, encoder, tmp_path, strategy, size):
    """Also where the epoch is chosen at the end by calibration, from logits collected at every epoch."""
    recipe = RECIPES[size].within(BudgetConfig(max_epochs=2, patience=2))[0]
    expected = finetune(data, strategy, recipe, encoder.model, seed=1)
    resume = Resume(tmp_path / "work", every=0)
    steps = -(-len(data.index("train")) // recipe.batch_size)
    with pytest.raises(KilledError):
        finetune(data, strategy, recipe, encoder.model, seed=1, resume=resume, progress=KillAfter(2 * steps - 1))
    found = finetune(data, strategy, recipe, encoder.model, seed=1, resume=resume)
    assert_same(found, expected)
    assert np.array_equal(found.logits, expected.logits)
    assert found.notes == expected.notes
    assert [timeless(epoch.to_dict()) for epoch in found.history] == [timeless(e.to_dict()) for e in expected.history]


def test_a_finished_training_is_not_repeated(records, whole, tmp_path):
    resume = Resume(tmp_path / "work", every=0)
    pretrained(records, resume)
    found = pretrained(records, resume, listener := KillAfter(0))
    assert "finished earlier" in listener.notes
    assert_same(found, whole)
    assert timeless(found.record) == timeless(whole.record)


def test_a_state_of_another_seed_is_ignored_and_said(records, whole, tmp_path):
    resume = Resume(tmp_path / "work", every=0)
    with pytest.raises(KilledError):
        pretrained(records, resume, KillAfter(4), seed=1)
    found = pretrained(records, resume, listener := KillAfter(10_000))
    assert any("other settings or data" in note for note in listener.notes)
    assert_same(found, whole)


def test_a_state_of_other_records_is_ignored(records, tmp_path):
    tokenizer, store = records
    resume = Resume(tmp_path / "work", every=0)
    with pytest.raises(KilledError):
        pretrained(records, resume, KillAfter(4))
    fewer = tokenizer, store.take(np.arange(len(store) - 1))
    found = pretrained(fewer, resume, listener := KillAfter(10_000))
    assert any("other settings or data" in note for note in listener.notes)
    assert_same(found, pretrained(fewer))


@pytest.mark.parametrize("damage", ["cut short", "garbage", "a kept epoch is gone"])
def test_a_damaged_state_is_ignored_and_said(records, whole, tmp_path, damage):
    resume = Resume(tmp_path / "work", every=0)
    with pytest.raises(KilledError):
        pretrained(records, resume, KillAfter(5))
    file = resume.folder / STATE
    if damage == "cut short":
        file.write_bytes(file.read_bytes()[:-100])
    elif damage == "garbage":
        file.write_bytes(b"not a state")
    else:
        next(resume.folder.glob("kept-*")).unlink()
    found = pretrained(records, resume, listener := KillAfter(10_000))
    assert any("cannot be read" in note for note in listener.notes)
    assert_same(found, whole)


def test_a_saving_that_fails_midway_leaves_the_earlier_state(tmp_path, monkeypatch):
    store = StateStore(Resume(tmp_path, 0), "f")
    store.save(Snapshot({"a": torch.ones(3)}, {"n": 1}), {})

    def killed(*_):
        raise KilledError

    monkeypatch.setattr("ehrsequencing.files.os.replace", killed)
    with pytest.raises(KilledError):
        store.save(Snapshot({"a": torch.zeros(3)}, {"n": 2}), {})
    kept = StateStore(Resume(tmp_path, 0), "f").load()
    assert kept is not None
    assert kept[0].facts["n"] == 1
    assert kept[0].tensors["a"].tolist() == [1, 1, 1]


def test_savings_take_a_small_share_of_the_time(tmp_path, monkeypatch):
    """Even where a saving is slow and the interval short: at most one part in fifty."""
    clock = [0.0]
    monkeypatch.setattr("ehrsequencing.training.resume.SHARE", 50)
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    store = StateStore(Resume(tmp_path, 1.0), "f")
    write = StateStore._kept

    def slow(self, epoch):
        clock[0] += 4.0
        return write(self, epoch)

    monkeypatch.setattr(StateStore, "_kept", slow)
    saved = 0
    while clock[0] < 2_000:
        clock[0] += 0.5
        if store.due():
            store.save(Snapshot({"a": torch.zeros(1)}), {saved: {"w": torch.zeros(1)}})
            saved += 1
    assert saved > 3
    assert 4.0 * 2 * saved < 2_000 / 20


def test_nothing_is_saved_before_the_interval_is_over(records, tmp_path):
    resume = dataclasses.replace(Resume(tmp_path / "work"), every=3_600.0)
    with pytest.raises(KilledError):
        pretrained(records, resume, KillAfter(5))
    assert not resume.folder.exists()
