"""Finished steps of a study, kept beside its output until all of it is there, so that a killed run repeats none."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from ehrsequencing.bundle import environment
from ehrsequencing.config import StudyConfig
from ehrsequencing.files import staged, write_json
from ehrsequencing.predictions import Predictions
from ehrsequencing.study.document import RAW
from ehrsequencing.training.resume import Resume, digest_of

FACTS = "scored.json"
COHORT = "cohort.json"


@dataclass(frozen=True)
class Scored:
    """Predictions of one model and seed for the held-out rows of one division, and what they cost."""

    model: str
    kind: str
    why: str
    seed: int
    predictions: Predictions
    seconds: float | None = None
    trainable: int | None = None
    total: int | None = None
    alpha: float | None = None
    notes: tuple[str, ...] = ()
    raw: Predictions | None = None
    """The predictions before recalibration, where one changed anything."""

    def to_json(self) -> dict[str, Any]:
        """All but the predictions."""
        return {item.name: getattr(self, item.name) for item in fields(self) if item.name not in ("predictions", "raw")}


@dataclass(frozen=True)
class Kept:
    """What a study has finished: results under ``result/`` as they will be left, the rest under ``steps/``."""

    place: Path

    @property
    def result(self) -> Path:
        """The output folder in the making."""
        return self.place / "result"

    @property
    def steps(self) -> Path:
        """What is thrown away once the output is whole."""
        return self.place / "steps"

    def loops(self, name: str) -> Resume:
        """Where a step's training loop keeps its state."""
        return Resume(self.steps / "loops" / name)

    def for_cohort(self, fingerprint: str) -> None:
        """Throw away what was fitted on another cohort than the one of this fingerprint."""
        told = self.steps / COHORT
        if told.is_file() and json.loads(told.read_text(encoding="utf-8")) == fingerprint:
            return
        if self.steps.exists():
            shutil.rmtree(self.steps)
        for folder in [path for path in self.result.glob("*") if path.is_dir() and not path.name.startswith("meds")]:
            shutil.rmtree(folder)
        for file in [*self.result.glob("*.parquet"), *self.result.glob("attributions.json")]:
            file.unlink()
        write_json(told, fingerprint)

    def scored(self, name: str, make: Callable[[Resume], Iterable[Scored]]) -> list[Scored]:
        """What ``make`` gives, or gave a run that was killed later; its loop's state goes once that is written."""
        place = self.steps / "scored" / name
        if not (place / FACTS).is_file():
            _write(place, list(make(self.loops(name))))
            shutil.rmtree(self.loops(name).folder, ignore_errors=True)
        return _read(place)


def _write(place: Path, found: list[Scored]) -> None:
    with staged(place, FACTS) as draft:
        for number, scored in enumerate(found):
            scored.predictions.write(draft / f"{number}.parquet")
            if scored.raw is not None:
                scored.raw.write(draft / f"{number}.{RAW}.parquet")
        write_json(draft / FACTS, [scored.to_json() for scored in found])


def _read(place: Path) -> list[Scored]:
    facts = json.loads((place / FACTS).read_text(encoding="utf-8"))
    return [
        Scored(
            predictions=Predictions.read(place / f"{number}.parquet"),
            raw=_read_raw(place / f"{number}.{RAW}.parquet"),
            **{**each, "notes": tuple(each["notes"])},
        )
        for number, each in enumerate(facts)
    ]


def _read_raw(path: Path) -> Predictions | None:
    return Predictions.read(path) if path.is_file() else None


def study_key(study: StudyConfig, beside: Path) -> str:
    """Of the settings, the task file, the source's files (name, size, time of change) and the versions in use."""
    settings = study.model_dump(mode="json", by_alias=True)
    task = beside / study.task if isinstance(study.task, str) else None
    text = task.read_text(encoding="utf-8") if task is not None and task.is_file() else ""
    return digest_of(
        [settings, text, list(_sources([settings["data"], settings["model"]["code_vectors"]])), environment()]
    )


def _sources(setting: Any) -> Iterator[list[Any]]:
    """Every file that a setting names, or that lies in a folder it names."""
    if isinstance(setting, dict | list):
        for value in setting.values() if isinstance(setting, dict) else setting:
            yield from _sources(value)
    if not isinstance(setting, str) or not (path := Path(setting).expanduser()).exists():
        return
    for file in sorted([path] if path.is_file() else path.rglob("*")):
        if file.is_file():
            facts = file.stat()
            yield [str(file), facts.st_size, facts.st_mtime_ns]
