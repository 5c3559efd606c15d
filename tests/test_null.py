"""Null tests: where the outcome has nothing to do with the input, nothing scores other than one half.

Records go on until the outcome or the end of follow-up, so that their length tells almost everything: what sees any of
it (visits after prediction_time, sums over visits, positions counted from the end) does not score one half.
"""

from __future__ import annotations

import datetime as dt
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest
import yaml

from ehrsequencing import Cohort, Encoder, MedsDataset, Predictions, build_cohort, finetune, from_dataframe
from ehrsequencing.baselines import BASELINES
from ehrsequencing.batches import SurvivalData
from ehrsequencing.cohort import whole_records
from ehrsequencing.config import HELD_OUT, TRAIN, FeaturesConfig, ModelConfig, PretrainConfig, TaskConfig, parse
from ehrsequencing.evaluation.compare import Evaluation, Interval
from ehrsequencing.features import FeatureSpec, build_features
from ehrsequencing.inference import to_predictions
from ehrsequencing.models.strategies import STRATEGIES
from ehrsequencing.study import run_study
from ehrsequencing.study.data import prepare
from ehrsequencing.study.simple import NAMES
from ehrsequencing.study.steps import pretrain

pytestmark = pytest.mark.slow
DAY, INDEX = dt.timedelta(days=1), dt.datetime(2010, 1, 1)
PATIENTS, CODES, HORIZON, BETWEEN = 600, 8, 1_200.0, 90.0
SHARES = {"train": 0.45, "tuning": 0.15, "held_out": 0.4}
TASK = {"name": "null", "index": {"date": INDEX.date()}, "outcome": "OUT", "horizon_days": HORIZON}
AT_VISITS = {**TASK, "index": {"after_history_days": 0}, "predict_at": "every_visit", "evaluate_at": TASK["index"]}
STUDY = {
    "name": "null",
    "pretrain": {"epochs": 1},
    "seeds": [0],
    "budget": {"max_epochs": 1, "patience": 1},
    "bootstrap": 300,
}
STANDARD_ERRORS = 3
BLENDS = [f"{name}+wide" for name, strategy in STRATEGIES.items() if strategy.kind == "strategy"]


def records(effect: float, seed: int) -> pl.DataFrame:
    """Events of everybody: visits every 90 days on average, until the outcome or the end of follow-up.

    The log hazard after INDEX is ``effect`` times what a history says: the age, and whether it has C0 every time.
    """
    rng, rows = np.random.default_rng(seed), []
    for subject in range(PATIENTS):
        age, lab, ill = rng.uniform(40, 80), rng.normal(), rng.random() < 0.5
        hazard = np.exp(effect * (ill + (age - 60) / 12)) / 900
        failure, censored = rng.exponential(1 / hazard), rng.uniform(300, 2_000)
        last = min(failure, censored)
        before = -np.cumsum(rng.exponential(BETWEEN, 1 + rng.poisson(4)))
        after = np.cumsum(rng.exponential(BETWEEN, 60))
        rows.append((subject, INDEX - 365.25 * age * DAY, "MEDS_BIRTH", None))
        rows.append((subject, None, f"SEX//{'FM'[rng.integers(2)]}", None))
        for at in [*before, *after[after < last]]:
            codes = {f"C{k}" for k in rng.integers(1, CODES, 1 + rng.poisson(0.5))} | ({"C0"} if ill else set())
            rows += [(subject, INDEX + at * DAY, code, None) for code in sorted(codes)]
            rows.append((subject, INDEX + at * DAY, "LAB", lab + 0.3 * rng.normal()))
        rows.append((subject, INDEX + last * DAY, "OUT" if failure <= censored else "END", None))
    schema = {"subject_id": pl.Int64, "time": pl.Datetime("us"), "code": pl.String, "numeric_value": pl.Float64}
    return pl.DataFrame(rows, schema=schema, orient="row").sort("subject_id", "time", nulls_last=False)


def written(folder: Path, effect: float, seed: int) -> MedsDataset:
    """The records on disk, split by number."""
    from_dataframe(records(effect, seed), folder)
    split = np.repeat(list(SHARES), [round(share * PATIENTS) for share in SHARES.values()])
    splits = pl.DataFrame({"subject_id": np.arange(PATIENTS), "split": split})
    splits.write_parquet(folder / "metadata" / "subject_splits.parquet")
    return MedsDataset.open(folder)


def studied(folder: Path, dataset: MedsDataset, **changes: object) -> dict[str, dict[str, Interval]]:
    """Run a study of the dataset; model → its C by Harrell and by Uno."""
    settings = {**STUDY, "task": TASK, "data": {"meds": str(dataset.root)}, **changes}
    (folder / "study.yaml").write_text(yaml.safe_dump(settings))
    run_study(folder / "study.yaml", folder / "out")
    found = json.loads((folder / "out" / "comparison.json").read_text())
    return {
        row["model"]: {name: Interval(**row["metrics"][name]) for name in ("harrell_c", "uno_c")}
        for row in found["rows"]
    }


def off(interval: Interval) -> float:
    """By how many standard errors C differs from one half; the error is a quarter of the 95% interval's width."""
    error = (interval.high - interval.low) / (2 * 1.96)
    return 0.0 if interval.value == pytest.approx(0.5, abs=1e-12) else abs(interval.value - 0.5) / error


@pytest.fixture(scope="module")
def null(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """Every strategy and every simple model on records that say nothing of the outcome."""
    folder = tmp_path_factory.mktemp("null")
    dataset = written(folder / "meds", effect=0.0, seed=1)
    models = studied(folder, dataset, strategies=list(STRATEGIES), baselines=list(NAMES))
    cohort = Cohort.read(folder / "out" / "cohort")
    data = prepare(dataset, cohort, Encoder.load(folder / "out" / "encoder")).data
    return SimpleNamespace(dataset=dataset, models=models, cohort=cohort, data=data)


def held_out(cohort: Cohort, n_boot: int = 300) -> Evaluation:
    """An evaluation of the cohort's held-out rows."""
    rows, train = (cohort.table.filter(pl.col("split") == split) for split in (HELD_OUT, TRAIN))
    return Evaluation.of(
        rows["duration"].to_numpy(),
        rows["event"].to_numpy().astype(np.int64),
        train_duration=train["duration"].to_numpy(),
        train_event=train["event"].to_numpy(),
        tau=HORIZON,
        n_boot=n_boot,
        subject_id=rows["subject_id"].to_numpy(),
    )


def scored(cohort: Cohort, risk: np.ndarray) -> dict[str, Interval]:
    """Figures of a bare risk of the held-out rows."""
    rows = cohort.table.filter(pl.col("split") == HELD_OUT)
    curve = np.full((rows.height, 1), 0.5)
    ids, when = rows["subject_id"].to_numpy(), rows["prediction_time"].to_numpy()
    return held_out(cohort).score(Predictions(ids, when, risk, np.array([HORIZON]), curve)).intervals()


def visits(dataset: MedsDataset, cohort: Cohort, *, whole: bool) -> np.ndarray:
    """How many days with an event each held-out record has: up to prediction_time, or in all."""
    rows = cohort.table.filter(pl.col("split") == HELD_OUT)
    events = dataset.scan().collect().join(rows.select("subject_id", "prediction_time"), on="subject_id")
    seen = events.filter(pl.col("time").is_not_null() & (pl.lit(whole) | (pl.col("time") <= pl.col("prediction_time"))))
    days = seen.group_by("subject_id").agg(pl.col("time").dt.date().n_unique().alias("days"))
    return rows.join(days, on="subject_id", how="left", maintain_order="left")["days"].to_numpy().astype(np.float64)


def test_every_strategy_and_simple_model_is_tried(null: SimpleNamespace) -> None:
    assert {*STRATEGIES, *BLENDS, *NAMES} == set(null.models)


@pytest.mark.parametrize("name", [*STRATEGIES, *BLENDS, *NAMES])
def test_what_the_outcome_does_not_depend_on_does_not_predict_it(null: SimpleNamespace, name: str) -> None:
    for metric, interval in null.models[name].items():
        assert off(interval) < STANDARD_ERRORS, (metric, interval)


def test_the_visits_up_to_prediction_time_say_nothing(null: SimpleNamespace) -> None:
    found = scored(null.cohort, visits(null.dataset, null.cohort, whole=False))
    for metric in ("harrell_c", "uno_c"):
        assert off(found[metric]) < STANDARD_ERRORS, metric


def test_the_visits_of_the_whole_record_would_say_nearly_everything(null: SimpleNamespace) -> None:
    """The teeth of the tests above: such a leak scores far from one half, in either direction."""
    found = scored(null.cohort, -visits(null.dataset, null.cohort, whole=True))
    for metric in ("harrell_c", "uno_c"):
        assert found[metric].value > 0.75
        assert off(found[metric]) > 5 * STANDARD_ERRORS


# --- real signal, and outcomes that changed places -------------------------------------------------------------------


@pytest.fixture(scope="module")
def signal(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """Records that do say something, an encoder of them, and what models read."""
    dataset = written(tmp_path_factory.mktemp("signal") / "meds", effect=1.0, seed=2)
    cohort = build_cohort(dataset, parse(TaskConfig, TASK, "test"))
    encoder = pretrain(dataset, PretrainConfig(epochs=1), model=ModelConfig(dropout=0.0))
    return SimpleNamespace(dataset=dataset, cohort=cohort, encoder=encoder, prepared=prepare(dataset, cohort, encoder))


def permuted(cohort: Cohort, seed: int) -> Cohort:
    """Outcomes change places across patients, within each split."""
    order, rng = np.arange(cohort.table.height), np.random.default_rng(seed)
    for split in SHARES:
        at = np.flatnonzero(cohort.table["split"] == split)
        order[at] = rng.permutation(at)
    outcome = cohort.table.select("duration", "event")[order]
    return replace(cohort, table=cohort.table.with_columns(outcome["duration"], outcome["event"]))


def refitted(signal: SimpleNamespace, cohort: Cohort, recipe) -> dict[str, Interval]:
    """Uno's C of three models fitted anew to the cohort's outcomes."""
    data = prepare(signal.dataset, cohort, signal.encoder).data
    evaluation, at = held_out(cohort), data.index(HELD_OUT)
    ridge = finetune(data, "frozen-ridge", recipe, signal.encoder.model).logits
    found = {"frozen-ridge": to_predictions(ridge[at], data.rows[at], data.grid, "frozen-ridge", "")}
    for name in ("wide", "cox"):
        found[name] = predicted(data, name)
    return {name: evaluation.score(one).intervals()["uno_c"] for name, one in found.items()}


def predicted(data: SurvivalData, name: str) -> Predictions:
    """A simple model's predictions of held-out rows."""
    at, fitted = data.index(HELD_OUT), BASELINES[name].fit(data, 0)
    ids, when = (data.rows[column].to_numpy()[at] for column in ("subject_id", "prediction_time"))
    return Predictions(ids, when, fitted.risk[at], data.grid.curve_times(), fitted.survival[at])


def test_real_signal_is_found(signal: SimpleNamespace, recipe) -> None:
    for name, interval in refitted(signal, signal.cohort, recipe).items():
        assert interval.value > 0.58, name
        assert off(interval) > STANDARD_ERRORS, name


@pytest.mark.parametrize("seed", [0, 1])
def test_permuting_outcomes_across_patients_kills_it(signal: SimpleNamespace, recipe, seed: int) -> None:
    for name, interval in refitted(signal, permuted(signal.cohort, seed), recipe).items():
        assert off(interval) < STANDARD_ERRORS, (name, interval)


def test_models_that_read_whole_records_are_caught(null: SimpleNamespace) -> None:
    """Simple models on features of everything ever recorded but the end itself: the tests above would notice."""
    table, data = null.cohort.table, null.data
    records = whole_records(null.dataset.scan(), table["subject_id"].to_numpy(), null.cohort.task).collect()
    history = records.filter(~pl.col("code").is_in(["OUT", "END"]))
    ends = history.select("subject_id", "prediction_time").unique()
    rows = table.select("subject_id").join(ends, on="subject_id", how="left", maintain_order="left")
    spec = FeatureSpec.fit(history, rows.filter(table["split"] == TRAIN), FeaturesConfig())
    leaky = replace(data, features=build_features(history, rows, spec))
    for name in ("wide", "cox"):
        honest, caught = (held_out(null.cohort).score(predicted(one, name)).intervals() for one in (data, leaky))
        assert off(honest["uno_c"]) < STANDARD_ERRORS, name
        assert caught["uno_c"].value > 0.75, name
        assert off(caught["uno_c"]) > 5 * STANDARD_ERRORS, name


# --- at every visit --------------------------------------------------------------------------------------------------


def test_at_every_visit_too_nothing_predicts_it(null: SimpleNamespace, tmp_path: Path) -> None:
    """Patients are evaluated at their first visit after INDEX; long records have more visits to learn from."""
    found = studied(
        tmp_path, null.dataset, task=AT_VISITS, model={"attention": "block_causal"},
        strategies=["frozen-ridge", "lora"], baselines=["wide"], bootstrap=200,
    )  # fmt: skip
    assert {"frozen-ridge", "lora", "wide"} <= set(found)
    for name, metrics in found.items():
        for metric, interval in metrics.items():
            assert off(interval) < STANDARD_ERRORS, (name, metric, interval)
