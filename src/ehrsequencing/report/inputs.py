"""What a report is made from: a finished comparison and what is kept beside it, read from a folder or in hand."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from jaxtyping import Float64

from ehrsequencing.cohort import Cohort
from ehrsequencing.errors import EhrError, Exit
from ehrsequencing.predictions import Predictions
from ehrsequencing.report.contents import Run
from ehrsequencing.report.series import Trajectory

TRAJECTORIES = "trajectories.parquet"
RAW = "raw"
"""The folder, among the predictions, of those before recalibration."""
_RUN = re.compile(r"^(?P<model>.+?)-(?P<seed>\d+)(?:-fold(?P<fold>\d+))?$")
_FILE = re.compile(r"^(?P<model>.+)-(?P<seed>\d+)$")
Key = tuple[str, int]


@dataclass(frozen=True)
class Inputs:
    """All a report can be made from; only the comparison has to be there.

    Attributes:
        comparison: the content of comparison.json.
        cohort: whose rows the predictions are.
        predictions: by model and seed; ``raw``, those before a recalibration.
        study: the content of study.json.
        runs: what was recorded of each training.
        trajectories: example patients over their visits.
        attributions: the content of attributions.json.
        casemix: of the training patients, as a bundle keeps it; its counts are suppressed already.
        folder: where it was read from, which no page may name.
    """

    comparison: Mapping[str, Any]
    cohort: Cohort | None = None
    predictions: Mapping[Key, Predictions] = field(default_factory=dict)
    raw: Mapping[Key, Predictions] = field(default_factory=dict)
    study: Mapping[str, Any] = field(default_factory=dict)
    runs: tuple[Run, ...] = ()
    trajectories: tuple[Trajectory, ...] = ()
    attributions: Mapping[str, Any] = field(default_factory=dict)
    casemix: Mapping[str, Any] = field(default_factory=dict)
    folder: Path = Path("study")


def read_inputs(folder: Path) -> Inputs:
    """Read a finished study or evaluation: comparison.json, and where they are there study.json, attributions.json,
    cohort/, models/, predictions/ and trajectories.parquet.

    Raises:
        EhrError: comparison.json is absent or unreadable, or a file beside it is damaged (exit 13, 12).
    """
    return Inputs(
        comparison=_read_json(folder / "comparison.json"),
        cohort=Cohort.read(folder / "cohort") if (folder / "cohort" / "cohort.parquet").exists() else None,
        predictions=PredictionFiles(folder / "predictions"),
        raw=PredictionFiles(folder / "predictions" / RAW),
        study=_optional_json(folder / "study.json"),
        runs=tuple(read_runs(folder / "models")),
        trajectories=read_trajectories(folder),
        attributions=_optional_json(folder / "attributions.json"),
        casemix=_casemix(folder / "models"),
        folder=folder,
    )


class PredictionFiles(Mapping[Key, Predictions]):
    """The predictions of a folder by model and seed, each read when asked for: few of many are shown."""

    def __init__(self, folder: Path) -> None:
        found = ((path, _FILE.match(path.stem)) for path in sorted(folder.glob("*.parquet")))
        self._paths = {(match["model"], int(match["seed"])): path for path, match in found if match}

    def __getitem__(self, key: Key) -> Predictions:
        return Predictions.read(self._paths[key])

    def __contains__(self, key: object) -> bool:
        return key in self._paths

    def __iter__(self) -> Iterator[Key]:
        return iter(self._paths)

    def __len__(self) -> int:
        return len(self._paths)


def read_runs(models: Path) -> list[Run]:
    """Every history.json of at least two epochs under ``models``, by model, seed and fold."""
    runs = []
    for path in sorted(models.glob("*/history.json")):
        found = _RUN.match(path.parent.name)
        history = _read_json(path)
        if found is None or not isinstance(history, list) or len(history) < 2:
            continue
        columns = {key: _column(history, key) for key in ("tuning_c", "tuning_brier", "train_c")}
        epoch = np.arange(1.0, len(history) + 1)
        kept = [i for i, line in enumerate(history) if line.get("best")]
        fold = None if found["fold"] is None else int(found["fold"])
        selected = kept[-1] if kept else None
        runs.append(Run(found["model"], int(found["seed"]), fold, epoch, **columns, selected=selected))
    return runs


def _column(history: Sequence[Mapping[str, Any]], key: str) -> Float64[np.ndarray, " e"]:
    return np.array([math.nan if epoch.get(key) is None else float(epoch[key]) for epoch in history])


def read_trajectories(folder: Path) -> tuple[Trajectory, ...]:
    """Example patients' risks over their visits, where the study left them; patients are numbered, never named.

    ``trajectories.parquet``: patient (1, 2, …), days_since_first_visit, risk_at_horizon.
    """
    path = folder / TRAJECTORIES
    if not path.is_file():
        return ()
    table = pl.read_parquet(path).sort("patient", "days_since_first_visit")
    return tuple(
        Trajectory(
            int(patient),
            own["days_since_first_visit"].cast(pl.Float64).to_numpy(),
            own["risk_at_horizon"].cast(pl.Float64).to_numpy(),
        )
        for (patient,), own in table.group_by("patient", maintain_order=True)
    )


def _casemix(models: Path) -> dict[str, Any]:
    """Of the first bundle that keeps it: every bundle of a study has the same training patients, folds apart."""
    for path in sorted(models.glob("*/bundle.json")):
        if "-fold" not in path.parent.name:
            return dict(_read_json(path).get("facts", {}).get("casemix") or {})
    return {}


def _optional_json(path: Path) -> dict[str, Any]:
    return dict(_read_json(path)) if path.exists() else {}


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        what, fix = "the study is not finished: its comparison is missing", "run `ehrseq run` to its end first"
    except (OSError, ValueError) as error:
        what, fix = f"the file cannot be read as JSON: {error}", "run the study again"
    raise EhrError(what, str(path), fix, code=Exit.BUNDLE)
