"""A killed study, pretraining or fine-tuning goes on where it stood; what it leaves is the uninterrupted run's."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml

from ehrsequencing.errors import EhrError, Exit
from ehrsequencing.files import publish, staged, workplace
from ehrsequencing.predictions import Predictions
from ehrsequencing.study import run_study, steps
from ehrsequencing.study.compare import pool
from ehrsequencing.study.document import write_predictions
from ehrsequencing.study.kept import Kept, Scored
from ehrsequencing.training.resume import StateStore
from interrupted import KillAfter, KilledError

STUDY = {
    "name": "tiny",
    "data": {"simulate": {"patients": 120, "noise_codes": 10}},
    "task": "task.yaml",
    "pretrain": {"epochs": 2},
    "strategies": ["frozen", "lora"],
    "baselines": ["kaplan-meier", "cox"],
    "seeds": [0],
    "budget": {"max_epochs": 2},
    "bootstrap": 20,
}
TIMED = ("history.json", "pretraining.json", "bundle.json", "comparison.json")
"""Files that state how long things took."""


@pytest.fixture(autouse=True)
def saved_at_every_step(monkeypatch):
    monkeypatch.setattr(StateStore, "due", lambda self: True)


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("study") / "study.yaml"
    path.write_text(yaml.safe_dump(STUDY))
    return path


@pytest.fixture(scope="module")
def whole(study) -> Path:
    """What the uninterrupted run leaves."""
    run_study(study, study.parent / "whole")
    return study.parent / "whole"


def timeless(value):
    """The same without seconds, and without the digests of files that state them."""
    if isinstance(value, dict):
        return {key: timeless(part) for key, part in value.items() if key not in ("seconds", *TIMED)}
    return [timeless(part) for part in value] if isinstance(value, list) else value


def assert_same_files(one: Path, two: Path) -> None:
    names = [{str(p.relative_to(root)) for p in root.rglob("*") if p.is_file()} for root in (one, two)]
    assert names[0] == names[1]
    for name in sorted(names[0]):
        if Path(name).name in TIMED:
            assert timeless(json.loads((one / name).read_text())) == timeless(json.loads((two / name).read_text())), (
                name
            )
        elif name != "report.html":
            assert (one / name).read_bytes() == (two / name).read_bytes(), name


CHILD = """
import os, signal, sys
from pathlib import Path
import torch
from ehrsequencing.study import run_study
from ehrsequencing.training.resume import StateStore
torch.set_num_threads(1)
StateStore.due = lambda self: True
title, left = sys.argv[3], int(sys.argv[4])
def progress(tick):
    global left
    if tick.title == title and not tick.note:
        left -= 1
        if left < 0:
            os.kill(os.getpid(), signal.SIGKILL)
run_study(Path(sys.argv[1]), Path(sys.argv[2]), progress=progress)
"""


@pytest.mark.slow
def test_killed_twice_in_mid_epoch_a_study_leaves_what_the_uninterrupted_run_leaves(study, whole, tmp_path):
    out, said = tmp_path / "out", []
    for title, steps_done in (("pretraining", 9), ("lora", 3)):
        command = [sys.executable, "-c", CHILD, str(study), str(out), title, str(steps_done)]
        assert subprocess.run(command, capture_output=True).returncode == -signal.SIGKILL
        assert not out.exists()
        assert (tmp_path / "out.partial").is_dir()
    notes = KillAfter(10_000)
    run_study(study, out, progress=notes, say=said.append)
    assert any("which an interrupted run left" in text for text in said)
    assert any("encoder: taken over" in text for text in said)
    assert any("resumed in epoch" in note for note in notes.notes)
    assert {title for title in notes.titles if title in ("pretraining", "frozen", "kaplan-meier", "lora")} == {"lora"}
    assert_same_files(out, whole)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_pretraining_and_fine_tuning_go_on_from_their_own_folder(dataset, tmp_path):
    task = dataset.root / "task.yaml"

    def run(folder: Path, pretraining: KillAfter, tuning: KillAfter) -> None:
        if not (folder / "encoder").exists():
            steps.write_encoder(dataset.root, folder / "encoder", epochs=1, progress=pretraining)
        steps.write_bundle(
            dataset.root, task, folder / "bundle", encoder=folder / "encoder", strategy="frozen",
            budget=steps.BudgetConfig(max_epochs=1), progress=tuning,
        )  # fmt: skip

    never = KillAfter(10_000)
    run(tmp_path / "whole", never, never)
    for pretraining, tuning in ((KillAfter(2), never), (never, KillAfter(1))):
        with pytest.raises(KilledError):
            run(tmp_path / "out", pretraining, tuning)
    notes = KillAfter(10_000)
    run(tmp_path / "out", notes, notes)
    assert any("resumed in epoch" in note for note in notes.notes)
    assert_same_files(tmp_path / "out", tmp_path / "whole")


def interrupted(out: Path, error: BaseException | None = None, step: str = "done") -> Path:
    """The work folder of a run that ended in ``error`` (an interruption) after a step."""
    try:
        with workplace(out, "m", "a") as place:
            if step:
                (place / step).write_text("step 1")
            raise error or KeyboardInterrupt
    except (KeyboardInterrupt, EhrError):
        return place


class TestWorkplace:
    def test_interrupted_it_stays_for_the_same_key_and_drafts_are_swept(self, tmp_path):
        place = interrupted(tmp_path / "out")
        (place / ".next.0123abcd.tmp").write_text("half")
        said: list[str] = []
        with workplace(tmp_path / "out", "m", "a", said.append) as place:
            assert {path.name for path in place.iterdir()} == {"done", "work.json"}
        assert "going on from" in said[0]
        assert list(tmp_path.iterdir()) == []

    def test_with_another_key_it_is_emptied_and_said(self, tmp_path):
        interrupted(tmp_path / "out")
        said: list[str] = []
        with workplace(tmp_path / "out", "m", "b", said.append) as place:
            assert [path.name for path in place.iterdir()] == ["work.json"]
        assert "starting anew" in said[0]

    @pytest.mark.parametrize(("code", "left"), [(Exit.CONFIG, []), (Exit.ENVIRONMENT, ["out.partial"])])
    def test_a_mistake_leaves_nothing_a_full_disk_leaves_what_is_finished(self, tmp_path, code, left):
        interrupted(tmp_path / "out", EhrError("something", code=code))
        assert [path.name for path in tmp_path.iterdir()] == left

    def test_where_nothing_was_finished_nothing_is_left(self, tmp_path):
        interrupted(tmp_path / "out", step="")
        assert list(tmp_path.iterdir()) == []

    def test_one_at_a_time_and_never_over_somebody_elses(self, tmp_path):
        with (
            workplace(tmp_path / "out", "m", "a"),
            pytest.raises(EhrError, match="another run") as caught,
            workplace(tmp_path / "out", "m", "a"),
        ):
            pass
        assert caught.value.code == Exit.ENVIRONMENT
        (tmp_path / "out.partial").mkdir()
        (tmp_path / "out.partial" / "thesis.txt").write_text("years of work")
        with pytest.raises(EhrError, match="something else"), workplace(tmp_path / "out", "m", "a"):
            pass
        assert (tmp_path / "out.partial" / "thesis.txt").exists()

    def test_published_it_replaces_the_earlier_result_whole(self, tmp_path):
        with staged(tmp_path / "out", "m") as draft:
            (draft / "m").write_text("earlier")
        with workplace(tmp_path / "out", "m", "a") as place:
            (place / "result").mkdir()
            (place / "result" / "m").write_text("later")
            assert (tmp_path / "out" / "m").read_text() == "earlier"
            publish(place / "result", tmp_path / "out")
        assert (tmp_path / "out" / "m").read_text() == "later"
        assert [path.name for path in tmp_path.iterdir()] == ["out"]


def scored(seed: int) -> Scored:
    rng = np.random.default_rng(seed)
    day = np.full(5, np.datetime64("2020-01-01", "us"))
    curve = np.exp(-np.cumsum(rng.random((5, 4)), axis=1))
    predictions = Predictions(np.arange(5), day, rng.random(5), np.arange(1.0, 5.0), curve, "f", "m", {})
    return Scored("m", "strategy", "why", seed, predictions, 1.5, 10, 20, 0.1 + 0.2, ("a note",))


def test_scores_are_kept_to_the_last_bit_and_made_once(tmp_path):
    kept, made = Kept(tmp_path), []

    def make(resume):
        made.append(resume.folder)
        return [scored(0), scored(1)]

    for _ in range(2):
        found = Kept(tmp_path).scored("m-0", make)
    assert len(made) == 1
    for one, two in zip(found, [scored(0), scored(1)], strict=True):
        assert one.to_json() == two.to_json()
        for name in ("subject_id", "prediction_time", "risk", "horizon_days", "survival"):
            assert np.array_equal(getattr(one.predictions, name), getattr(two.predictions, name))
    assert kept.scored("m-1", lambda resume: [scored(2)])[0].seed == 2


def test_predictions_before_recalibration_are_kept_and_written_beside_the_others(tmp_path):
    before, after = scored(0).predictions, scored(1).predictions
    adjusted = replace(scored(1), seed=0, predictions=after, raw=before)
    (found,) = Kept(tmp_path).scored("m-0", lambda resume: [adjusted])
    assert np.array_equal(found.raw.survival, before.survival)
    write_predictions(pool([found, replace(scored(2), model="plain")]), tmp_path / "predictions")
    assert np.array_equal(Predictions.read(tmp_path / "predictions" / "raw" / "m-0.parquet").risk, before.risk)
    assert np.array_equal(Predictions.read(tmp_path / "predictions" / "m-0.parquet").risk, after.risk)
    assert [path.name for path in (tmp_path / "predictions" / "raw").iterdir()] == ["m-0.parquet"]


def test_a_step_that_failed_is_made_again(tmp_path):
    def fails(resume):
        yield scored(0)
        raise KilledError

    with pytest.raises(KilledError):
        Kept(tmp_path).scored("m-0", fails)
    assert len(Kept(tmp_path).scored("m-0", lambda resume: [scored(0)])) == 1


def test_steps_on_another_cohort_are_thrown_away(tmp_path):
    kept = Kept(tmp_path)
    kept.for_cohort("one")
    kept.scored("m-0", lambda resume: [scored(0)])
    (kept.result / "encoder-fold0").mkdir(parents=True)
    (kept.result / "meds").mkdir()
    kept.for_cohort("one")
    assert (kept.result / "encoder-fold0").exists()
    kept.for_cohort("two")
    assert not (kept.result / "encoder-fold0").exists()
    assert (kept.result / "meds").exists()
    assert kept.scored("m-0", lambda resume: [scored(7)])[0].seed == 7
