"""`ehrseq evaluate`: rows joined by subject and prediction_time, calibration, and competing events."""

from __future__ import annotations

import datetime as dt
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from ehrsequencing.cohort import Cohort
from ehrsequencing.config import IndexConfig, Predicate, TaskConfig
from ehrsequencing.errors import EhrError, Exit
from ehrsequencing.nonparametric import AalenJohansen
from ehrsequencing.predictions import Predictions
from ehrsequencing.study.score_file import evaluate_file
from ehrsequencing.timegrid import TimeGrid

TAU, PATIENTS = 1_000.0, 200
FIRST, SECOND = dt.datetime(2015, 1, 1), dt.datetime(2016, 1, 1)


def write_cohort(folder: Path) -> tuple[Cohort, np.ndarray]:
    """Two rows a patient, death competing; and the outcome's score of each row."""
    rng = np.random.default_rng(0)
    score = np.repeat(rng.normal(size=PATIENTS), 2)
    times = np.stack([rng.exponential(900 * np.exp(-score)), rng.exponential(2_500, score.size)])
    censoring = rng.uniform(200, 2_000, score.size)
    event = np.where(times.min(axis=0) <= censoring, times.argmin(axis=0) + 1, 0)
    subject = np.repeat(np.arange(1, PATIENTS + 1), 2)
    table = pl.DataFrame(
        {
            "subject_id": subject,
            "prediction_time": pl.Series([FIRST, SECOND] * PATIENTS).cast(pl.Datetime("us")),
            "duration": np.minimum(times.min(axis=0), censoring),
            "event": event.astype(np.int8),
            "split": np.where(subject <= PATIENTS // 2, "train", "held_out"),
        }
    )
    task = TaskConfig(
        name="readmission",
        index=IndexConfig(event="each", code="DISCHARGE"),
        outcome=Predicate(code="ADMISSION"),
        competing={"death": Predicate(code="MEDS_DEATH")},
        horizon_days=TAU,
    )
    attrition = pl.DataFrame({"rule": ["subjects"], "removed": [0], "remaining": [PATIENTS], "why": [""]})
    cohort = Cohort(table, attrition, task)
    cohort.write(folder)
    return cohort, score


def predict(cohort: Cohort, score: np.ndarray) -> Predictions:
    grid = np.linspace(0, TAU, 101)[1:]
    hazard = np.stack([np.exp(score) / 900, np.full(score.size, 1 / 2_500)])  # (2, n)
    gone = 1 - np.exp(-hazard.sum(axis=0)[:, None] * grid)
    cif = (hazard / hazard.sum(axis=0))[:, :, None] * gone
    keys = (cohort.table[name].to_numpy() for name in ("subject_id", "prediction_time"))
    return Predictions(*keys, score, grid, 1 - gone, model="truth", cif={"outcome": cif[0], "death": cif[1]})


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Predictions, Cohort]:
    folder = tmp_path_factory.mktemp("scores")
    cohort, score = write_cohort(folder / "cohort")
    predictions = predict(cohort, score)
    predictions.write(folder / "p.parquet")
    return folder, predictions, cohort


def test_figures_of_the_outcome_with_calibration_and_causes(place: tuple[Path, Predictions, Cohort]) -> None:
    folder, predictions, cohort = place
    found = evaluate_file(
        folder / "p.parquet", folder / "cohort", horizons=(400.0, TAU), bootstrap=20, split="held_out"
    )
    assert (found.n, found.of, found.patients) == (PATIENTS, PATIENTS, PATIENTS // 2)
    held_out = cohort.table.filter(pl.col("split") == "held_out")
    seen = held_out.filter(pl.col("duration") <= TAU)
    assert found.events == {
        cause: seen.filter(pl.col("event") == k)["subject_id"].n_unique() for k, cause in ((1, "outcome"), (2, "death"))
    }
    duration, event = held_out["duration"].to_numpy(), held_out["event"].cast(pl.Int64).to_numpy()
    summary = found.calibration[400.0]
    assert summary.observed == pytest.approx(AalenJohansen.fit(duration, event).at(400.0)[0])
    rows = (cohort.table["split"] == "held_out").to_numpy()
    assert summary.expected == pytest.approx(predictions.outcome_risk_at(np.array([400.0]))[rows, 0].mean())
    assert 0.5 < summary.slope < 1.7
    text = found.text()
    assert "200 of 200 rows (100 patients) of 'held_out'" in text
    assert "competing events are no censoring" in text
    assert "Slope at 400 days" in text
    assert "by 400 days: observed risk" in text
    assert found.to_json()["calibration"]["1000"]["intercept"] is not None
    assert found.figures["ici@400"].low is not None


def test_rows_are_matched_by_time_not_only_by_subject(place: tuple[Path, Predictions, Cohort], tmp_path: Path) -> None:
    folder, predictions, _ = place
    whole = evaluate_file(folder / "p.parquet", folder / "cohort", bootstrap=0, split="held_out")
    shuffled = predictions.take(np.random.default_rng(1).permutation(len(predictions)))
    shuffled.write(tmp_path / "shuffled.parquet")
    again = evaluate_file(tmp_path / "shuffled.parquet", folder / "cohort", bootstrap=0, split="held_out")
    assert {name: figure.value for name, figure in again.figures.items()} == pytest.approx(
        {name: figure.value for name, figure in whole.figures.items()}
    )
    predictions.take(np.arange(0, len(predictions), 2)).write(tmp_path / "first.parquet")
    half = evaluate_file(tmp_path / "first.parquet", folder / "cohort", bootstrap=0, split="held_out")
    assert (half.n, half.of) == (PATIENTS // 2, PATIENTS)
    assert "left out" in half.text()


def test_predictions_at_other_times_are_refused(place: tuple[Path, Predictions, Cohort], tmp_path: Path) -> None:
    folder, predictions, _ = place
    late = predictions.prediction_time + np.timedelta64(1, "D")
    moved = Predictions(
        predictions.subject_id, late, predictions.risk, predictions.horizon_days, predictions.survival,
        cif=predictions.cif,
    )  # fmt: skip
    moved.write(tmp_path / "late.parquet")
    with pytest.raises(EhrError, match="another prediction_time") as raised:
        evaluate_file(tmp_path / "late.parquet", folder / "cohort", bootstrap=0, split="held_out")
    assert raised.value.code is Exit.LEAKAGE


def weaker(predictions: Predictions, noise: float) -> Predictions:
    """The same patients in a noisier order, the curves as they were."""
    risk = predictions.risk + np.random.default_rng(2).normal(scale=noise, size=len(predictions))
    return replace(predictions, risk=risk, model="noisy")


def test_two_files_are_compared_on_the_rows_they_share(place: tuple[Path, Predictions, Cohort], tmp_path: Path) -> None:
    folder, predictions, _ = place
    weaker(predictions, 2.0).take(np.arange(len(predictions) - 50)).write(tmp_path / "noisy.parquet")
    found = evaluate_file(
        folder / "p.parquet", folder / "cohort", against=[tmp_path / "noisy.parquet"], bootstrap=50, split="held_out"
    )
    assert (found.n, found.of) == (PATIENTS - 50, PATIENTS)
    c, ibs, _ = found.differences
    assert (c["model"], c["against"], c["metric"]) == ("truth", "noisy", "uno_c")
    assert c["low"] > 0
    assert c["value"] == pytest.approx(found.figures["uno_c"].value - found.others["noisy"]["uno_c"].value)
    assert ibs["value"] == ibs["low"] == ibs["high"] == 0.0, "equal curves on equal resamples"
    assert "Uno C: truth − noisy +" in found.text()
    json.dumps(found.to_json(), allow_nan=False)


def test_two_files_of_one_name_are_told_apart(place: tuple[Path, Predictions, Cohort], tmp_path: Path) -> None:
    folder, predictions, _ = place
    predictions.write(tmp_path / "again.parquet")
    found = evaluate_file(
        folder / "p.parquet", folder / "cohort", against=[tmp_path / "again.parquet"], bootstrap=0, split="held_out"
    )
    assert (found.model, *found.others) == ("p", "again")


def test_a_stranger_s_predictions_get_the_whole_report(place: tuple[Path, Predictions, Cohort], tmp_path: Path) -> None:
    folder, _, _ = place
    out = tmp_path / "report"
    found = evaluate_file(folder / "p.parquet", folder / "cohort", report=out, bootstrap=20, split="held_out")
    page = (out / "report.html").read_text()
    assert found.report == out / "report.html"
    assert "truth" in page
    kept = json.loads((out / "comparison.json").read_text())
    assert [row["model"] for row in kept["rows"]] == ["truth"]
    assert kept["rows"][0]["metrics"]["uno_c"] == found.to_json()["metrics"]["uno_c"]


def test_a_report_never_replaces_something_else(place: tuple[Path, Predictions, Cohort], tmp_path: Path) -> None:
    folder, _, _ = place
    (tmp_path / "diary.txt").write_text("mine")
    with pytest.raises(EhrError) as raised:
        evaluate_file(folder / "p.parquet", folder / "cohort", report=tmp_path, bootstrap=0, split="held_out")
    assert raised.value.code is Exit.ENVIRONMENT
    assert [path.name for path in tmp_path.iterdir()] == ["diary.txt"]


def test_survival_alone_is_no_risk_of_the_outcome_where_events_compete(
    place: tuple[Path, Predictions, Cohort], tmp_path: Path
) -> None:
    folder, predictions, _ = place
    replace(predictions, cif={}).write(tmp_path / "any.parquet")
    found = evaluate_file(tmp_path / "any.parquet", folder / "cohort", bootstrap=0, split="held_out")
    whole = evaluate_file(folder / "p.parquet", folder / "cohort", bootstrap=0, split="held_out")
    assert found.figures["uno_c"] == whole.figures["uno_c"], "risks still rank"
    assert not {"ibs", "oe@1000", "auc@1000", "antolini_c"} & set(found.figures)
    assert "no cif_outcome" in found.not_computed["ibs"]
    assert "no cif_outcome" in found.text()


def test_a_horizon_at_the_first_outcome_itself_has_harrell_s_c_and_no_uno_s(
    place: tuple[Path, Predictions, Cohort],
) -> None:
    folder, _, cohort = place
    outcomes = cohort.table.filter((pl.col("split") == "held_out") & (pl.col("event") == 1))
    first = float(outcomes["duration"].min())
    found = evaluate_file(folder / "p.parquet", folder / "cohort", horizons=(first,), bootstrap=20, split="held_out")
    assert f"harrell_c@{first:.10g}" in found.figures
    assert "no two patients can be compared" in found.not_computed[f"uno_c@{first:.10g}"]
    json.dumps(found.to_json(), allow_nan=False)


def test_a_cohort_without_a_training_split_is_refused(place: tuple[Path, Predictions, Cohort], tmp_path: Path) -> None:
    folder, _, cohort = place
    grid = {"grid.json": TimeGrid(np.linspace(0.0, TAU, 5)).to_json()}
    replace(cohort, table=cohort.table.filter(pl.col("split") == "held_out")).write(tmp_path / "cohort", beside=grid)
    with pytest.raises(EhrError, match="no training split") as raised:
        evaluate_file(folder / "p.parquet", tmp_path / "cohort", bootstrap=0, split="held_out")
    assert raised.value.code is Exit.COHORT


def test_patients_are_counted_once_however_many_rows_they_have(place: tuple[Path, Predictions, Cohort]) -> None:
    folder, _, cohort = place
    found = evaluate_file(folder / "p.parquet", folder / "cohort", bootstrap=0, split="held_out")
    seen = cohort.table.filter((pl.col("split") == "held_out") & (pl.col("duration") <= TAU))
    assert found.events["outcome"] == seen.filter(pl.col("event") == 1)["subject_id"].n_unique()
    assert found.events["outcome"] < seen.filter(pl.col("event") == 1).height


def test_a_study_is_never_replaced_by_an_evaluation(place: tuple[Path, Predictions, Cohort], tmp_path: Path) -> None:
    folder, _, _ = place
    study = tmp_path / "study"
    (study / "models").mkdir(parents=True)
    (study / "comparison.json").write_text("{}")
    shutil.copytree(folder / "cohort", study / "cohort")
    for out, inside in ((study, study / "cohort"), (study / "cohort" / "report", study / "cohort"), (study, folder)):
        given = inside if inside.name == "cohort" else folder / "cohort"
        with pytest.raises(EhrError) as raised:
            evaluate_file(folder / "p.parquet", given, report=out, bootstrap=0, split="held_out")
        assert raised.value.code is Exit.ENVIRONMENT
    assert (study / "models").is_dir()
    assert (study / "cohort" / "cohort.parquet").is_file()


def test_a_report_of_its_own_is_replaced(place: tuple[Path, Predictions, Cohort], tmp_path: Path) -> None:
    folder, _, _ = place
    for _ in range(2):
        evaluate_file(folder / "p.parquet", folder / "cohort", report=tmp_path / "r", bootstrap=0, split="held_out")
    assert (tmp_path / "r" / "report.html").is_file()


def test_the_current_folder_is_no_output(
    place: tuple[Path, Predictions, Cohort], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _, _ = place
    monkeypatch.chdir(tmp_path)
    with pytest.raises(EhrError, match="the folder you are in") as raised:
        evaluate_file(folder / "p.parquet", folder / "cohort", report=Path("."), bootstrap=0, split="held_out")
    assert raised.value.code is Exit.ENVIRONMENT


@pytest.mark.parametrize("name", ["../../../escaped", "a/b/c", "nul\0", "x" * 5_000, "  ", "\n"])
def test_a_model_s_name_is_no_path(place: tuple[Path, Predictions, Cohort], tmp_path: Path, name: str) -> None:
    folder, predictions, _ = place
    replace(predictions, model=name).write(tmp_path / "named.parquet")
    found = evaluate_file(
        tmp_path / "named.parquet", folder / "cohort", report=tmp_path / "r", bootstrap=0, split="held_out"
    )
    assert 0 < len(found.model) <= 80
    assert len(list((tmp_path / "r" / "predictions").glob("*.parquet"))) == 1
    assert {path.name for path in tmp_path.iterdir()} == {"named.parquet", "r"}


def test_too_few_patients_are_not_judged(place: tuple[Path, Predictions, Cohort], tmp_path: Path) -> None:
    folder, predictions, _ = place
    held_out = np.flatnonzero(predictions.subject_id > PATIENTS // 2)
    predictions.take(held_out[:10]).write(tmp_path / "five.parquet")
    with pytest.raises(EhrError, match="under 10 patients") as raised:
        evaluate_file(tmp_path / "five.parquet", folder / "cohort", bootstrap=0, split="held_out")
    assert raised.value.code is Exit.COHORT


def test_training_patients_are_warned_about(place: tuple[Path, Predictions, Cohort]) -> None:
    folder, _, _ = place
    text = evaluate_file(folder / "p.parquet", folder / "cohort", bootstrap=0, split="train").text()
    assert "warning: these patients are the training split" in text
    assert "No intervals" in text
    assert "percentile intervals" not in text
