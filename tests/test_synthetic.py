"""The simulator: its formula held against plain loops, its truth against what was drawn, its bytes against its seed."""

from __future__ import annotations

import datetime as dt
import math
from collections import defaultdict
from pathlib import Path

import meds
import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest
from scipy.integrate import quad
from scipy.optimize import minimize

from ehrsequencing.cohort import build_cohort
from ehrsequencing.cohort.cut import cut
from ehrsequencing.config import FeaturesConfig, InputConfig, SimulateConfig, TaskConfig, load_yaml
from ehrsequencing.errors import EhrError, Exit
from ehrsequencing.evaluation.metrics import brier, harrell_c, integrated_brier
from ehrsequencing.events import MedsDataset, check
from ehrsequencing.features import FeatureSpec, build_features
from ehrsequencing.nonparametric import AalenJohansen, KaplanMeier, censoring_distribution
from ehrsequencing.synthetic import (
    HOSPITALS,
    in_codes_of_a,
    log_hazard,
    read_truth,
    simulate,
    simulated_task,
    true_cif,
    true_event_free,
    true_survival,
)
from ehrsequencing.synthetic import vocabulary as v
from ehrsequencing.synthetic.blocks import BLOCK
from ehrsequencing.synthetic.hazard import Weibull
from ehrsequencing.timegrid import truncate

HORIZON = 1_826.0
PREDICTION = dt.datetime(2012, 6, 1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("simulated") / "demo"
    simulate(out, SimulateConfig(patients=8_000, seed=0))
    return out


@pytest.fixture(scope="module")
def truth(folder: Path) -> pl.DataFrame:
    return read_truth(folder)


@pytest.fixture(scope="module")
def history(folder: Path, truth: pl.DataFrame) -> pl.DataFrame:
    return cut(MedsDataset.open(folder).scan(), truth, InputConfig()).collect()


def truncated(truth: pl.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    duration, event = truth["duration"].to_numpy(), truth["event"].to_numpy() == 1
    return np.minimum(duration, HORIZON), (event & (duration <= HORIZON)).astype(np.int64)


def microseconds(table: pl.DataFrame) -> np.ndarray:
    return np.round(table["duration"].to_numpy() * 86_400e6).astype(np.int64)


# --- the formula, once more, in plain Python from the documentation page ---------------------------------------------


def plain_log_hazard(events: list[tuple[dt.datetime | None, str, float | None]], now: dt.datetime) -> float:
    dated = sorted((((now - time) / dt.timedelta(days=1)), code, value) for time, code, value in events if time)
    days: dict[str, list[float]] = defaultdict(list)
    for ago, code, _ in dated:
        days[code].append(ago)
    first = {code: max(found) for code, found in days.items()}
    last = {code: min(found) for code, found in days.items()}
    eta = -1.15 + 0.30 * (first["MEDS_BIRTH"] / 365.25 - 63) / 10
    eta += 0.20 * any(code == "SEX//M" for _, code, _ in events)
    chronic = {"I10": 0.30, "E11.9": 0.50, "I25.10": 0.50, "J44.9": 0.30, "N18.3": 0.20, "I48.91": 0.20}
    eta += sum(effect for code, effect in chronic.items() if f"ICD10CM//{code}" in days)
    care = {(ago, code) for ago, code, _ in dated if code.startswith("ADMISSION//")}
    acute = (("ICD10CM//I21.9", "ADMISSION//WARD", 365.0), ("ICD10CM//J18.9", "ADMISSION//INTENSIVE_CARE", 240.0))
    for code, harmful, decay in acute:
        load = sum((1 if (ago, harmful) in care else 0.15) * math.exp(-ago / decay) for ago in days[code])
        eta += 2.2 * math.log1p(load)
    for condition, drug in (("ICD10CM//I10", "ATC//C09AA05"), ("ICD10CM//I25.10", "ATC//C10AA05")):
        if condition in first and drug in first and first[condition] > first[drug]:
            eta -= 0.9 * math.exp(-last[drug] / 365)
    pairs = (
        ("ICD10CM//N18.3", "ATC//M01AE01", 0.8, math.inf),
        ("ICD10CM//I48.91", "ATC//B01AC06", -0.9, 5 * 365.25),
    )
    for a, b, effect, decay in pairs:
        if a in first and b in first and first[a] != first[b]:
            sign = 1 if first[a] > first[b] else -1
            eta += effect * sign * math.exp(-min(first[a], first[b]) / decay)
    pressures = [(ago, value) for ago, code, value in dated if code == "LOINC//8480-6" and value is not None]
    if pressures:
        eta += 0.30 * (min(pressures)[1] - 135) / 18
    rates = [(-ago / 365.25, value) for ago, code, value in dated if code == "LOINC//33914-3"]
    if len(rates) >= 3 and first["LOINC//33914-3"] - last["LOINC//33914-3"] >= 90:
        years, values = np.array(rates).T
        slope = np.polyfit(years, values, 1)[0]
        eta -= 0.30 * min(max((slope + 1) / 3, -2), 2)
    return eta


def test_the_log_hazard_is_the_documented_function_of_the_recorded_history(
    history: pl.DataFrame, truth: pl.DataFrame
) -> None:
    some = truth.head(600)
    for subject, now, expected in some.select("subject_id", "prediction_time", "log_hazard").iter_rows():
        events = history.filter(pl.col("subject_id") == subject).select("time", "code", "numeric_value").rows()
        assert plain_log_hazard(events, now) == pytest.approx(expected, abs=1e-9)


def test_the_written_records_give_the_written_log_hazard(history: pl.DataFrame, truth: pl.DataFrame) -> None:
    rows = truth.select("subject_id", "prediction_time").sample(fraction=1.0, shuffle=True, seed=1)
    expected = rows.join(truth, on="subject_id", how="left", maintain_order="left")["log_hazard"].to_numpy()
    np.testing.assert_allclose(log_hazard(history, rows), expected, atol=1e-12)


def eta_of(*events: tuple[float, str] | tuple[float, str, float]) -> float:
    """The log hazard of one woman of 63 with the given events (days before prediction_time, code, value)."""
    rows = [(23_010.75, "MEDS_BIRTH"), *events]
    frame = pl.DataFrame(
        {
            "subject_id": [1] * len(rows),
            "prediction_time": [PREDICTION] * len(rows),
            "time": [PREDICTION - dt.timedelta(days=row[0]) for row in rows],
            "code": [row[1] for row in rows],
            "numeric_value": [float(row[2]) if len(row) > 2 else None for row in rows],
        },
        schema_overrides={"numeric_value": pl.Float32},
    )
    return float(log_hazard(frame, frame.select("subject_id", "prediction_time").head(1))[0])


def test_order_recency_and_trend_move_the_hazard_as_they_should() -> None:
    plain = eta_of()
    assert plain == pytest.approx(-1.15, abs=1e-6)
    kidney_first = eta_of((900, v.KIDNEY), (400, v.NSAID))
    nsaid_first = eta_of((400, v.KIDNEY), (900, v.NSAID))
    assert kidney_first - nsaid_first == pytest.approx(1.6)
    assert eta_of((900, v.KIDNEY), (900, v.NSAID)) == pytest.approx((kidney_first + nsaid_first) / 2)
    recent = eta_of((900, v.FIBRILLATION), (30, v.ASPIRIN))
    long_ago = eta_of((3_000, v.FIBRILLATION), (2_500, v.ASPIRIN))
    assert recent < long_ago < eta_of((900, v.FIBRILLATION))
    treated = eta_of((900, v.HYPERTENSION), (300, v.ACE_INHIBITOR), (20, v.ACE_INHIBITOR))
    stopped = eta_of((2_900, v.HYPERTENSION), (2_300, v.ACE_INHIBITOR), (2_020, v.ACE_INHIBITOR))
    started_before = eta_of((900, v.HYPERTENSION), (1_300, v.ACE_INHIBITOR), (20, v.ACE_INHIBITOR))
    assert treated < stopped - 0.8
    assert stopped < started_before == pytest.approx(eta_of((900, v.HYPERTENSION)))
    on_ward, intensive = eta_of((5, v.INFARCTION), (5, v.WARD)), eta_of((5, v.INFARCTION), (5, v.INTENSIVE))
    assert plain + 0.2 < intensive < on_ward - 1.0
    assert eta_of((5, v.PNEUMONIA), (5, v.WARD)) < eta_of((5, v.PNEUMONIA), (5, v.INTENSIVE)) - 1.0
    assert eta_of((5, v.INFARCTION), (6, v.WARD)) == pytest.approx(intensive)
    assert eta_of((3_000, v.INFARCTION), (3_000, v.WARD)) < plain + 0.001
    falling = eta_of(*((day, v.FILTRATION, 40 + day / 100) for day in (10, 400, 900)))
    rising = eta_of(*((day, v.FILTRATION, 60 - day / 100) for day in (10, 400, 900)))
    assert falling > plain > rising
    assert eta_of((5, v.PRESSURE, 171), (9, v.PRESSURE, 90)) == pytest.approx(plain + 0.6)


# --- the files -------------------------------------------------------------------------------------------------------


def contents(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def test_same_seed_same_bytes_and_another_seed_others(tmp_path: Path) -> None:
    config = SimulateConfig(patients=300, seed=5)
    first, second = simulate(tmp_path / "a", config), simulate(tmp_path / "b", config)
    assert contents(first.root) == contents(second.root)
    other = simulate(tmp_path / "c", SimulateConfig(patients=300, seed=6))
    assert other.fingerprint() != first.fingerprint() == second.fingerprint()


def test_a_patient_depends_neither_on_the_shards_nor_on_the_number_of_patients(tmp_path: Path) -> None:
    many = simulate(tmp_path / "a", SimulateConfig(patients=BLOCK + 120))
    sharded = simulate(tmp_path / "b", SimulateConfig(patients=BLOCK + 120), subjects_per_shard=333)
    few = simulate(tmp_path / "c", SimulateConfig(patients=70))
    assert len(sharded.shards()) == 4
    assert len(many.shards()) == 1
    whole = many.scan().collect()
    assert sharded.scan().collect().equals(whole)
    assert few.scan().collect().equals(whole.filter(pl.col("subject_id") <= 70))
    assert read_truth(few.root).equals(read_truth(many.root).head(70))
    assert few.subject_ids().tolist() == list(range(1, 71))


def test_the_dataset_is_clean_meds_with_a_strict_label_file(folder: Path, truth: pl.DataFrame) -> None:
    dataset = MedsDataset.open(folder)
    assert check(dataset).problems == []
    labels = pq.read_table(folder / "labels/prediction_times.parquet")
    meds.LabelSchema.validate(labels)
    assert pl.DataFrame(labels).equals(truth.select("subject_id", "prediction_time"))
    assert dataset.codes()["description"].null_count() == 0


def test_the_task_is_ready_and_gives_exactly_the_durations_and_events_drawn(folder: Path, truth: pl.DataFrame) -> None:
    task = load_yaml(TaskConfig, folder / "task.yaml")
    assert task == simulated_task()
    table = build_cohort(MedsDataset.open(folder), task).table
    assert table["subject_id"].equals(truth["subject_id"])
    assert microseconds(table).tolist() == microseconds(truth).tolist()
    assert table["event"].cast(pl.Int8).equals(truth["event"])


def test_noise_codes_are_as_many_as_asked_for_and_skewed(tmp_path: Path, history: pl.DataFrame) -> None:
    none = simulate(tmp_path / "none", SimulateConfig(patients=50, noise_codes=0))
    assert not any(code.startswith("SIM//") for code in none.codes()["code"])
    many = simulate(tmp_path / "many", SimulateConfig(patients=50, noise_codes=2_000))
    assert sum(code.startswith("SIM//") for code in many.codes()["code"]) == 2_000
    counts = history.filter(pl.col("code").str.starts_with("SIM//"))["code"].value_counts(sort=True)["count"].to_numpy()
    assert len(counts) > 290
    assert counts[:30].sum() > 0.4 * counts.sum()


def test_competing_death_ends_records_and_leaves_histories_alone(tmp_path: Path) -> None:
    plain = simulate(tmp_path / "plain", SimulateConfig(patients=BLOCK))
    deadly = simulate(tmp_path / "deadly", SimulateConfig(patients=BLOCK, competing_death=True))
    a, b = read_truth(plain.root), read_truth(deadly.root)
    assert a["log_hazard"].equals(b["log_hazard"])
    dead = b["event"] == 2
    assert 0.05 * BLOCK < dead.sum() < 0.4 * BLOCK
    assert (b["duration"] <= a["duration"]).all()
    assert (b.filter(dead)["duration"] < a.filter(dead)["duration"]).all()
    assert check(deadly).problems == []
    last = deadly.scan().sort("subject_id", "time", nulls_last=False).group_by("subject_id").last().collect()
    died = set(last.filter(pl.col("code") == "MEDS_DEATH")["subject_id"])
    assert set(b.filter(dead)["subject_id"]) <= died
    cohort = build_cohort(deadly, simulated_task()).table
    assert microseconds(cohort).tolist() == microseconds(b).tolist()
    assert (cohort["event"].to_numpy() == (b["event"].to_numpy() == 1)).all()


def test_what_is_no_simulation_is_said_to_be_none(tmp_path: Path) -> None:
    with pytest.raises(EhrError, match=r"truth\.parquet is missing") as raised:
        read_truth(tmp_path)
    assert raised.value.code == Exit.DATA
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(EhrError) as raised:
        simulate(tmp_path, SimulateConfig(patients=5))
    assert raised.value.code == Exit.ENVIRONMENT
    assert (tmp_path / "mine.txt").read_text() == "keep"


# --- the population --------------------------------------------------------------------------------------------------


def test_the_population_is_as_promised(history: pl.DataFrame, truth: pl.DataFrame) -> None:
    lengths = history.filter(pl.col("code") != "MEDS_BIRTH").group_by("subject_id").len()["len"].to_numpy()
    assert 35 <= np.median(lengths) <= 46
    assert 150 <= np.quantile(lengths, 0.99) <= 250
    duration, event = truncated(truth)
    assert 0.28 <= event.mean() <= 0.40
    assert censoring_distribution(duration, event).before(np.array([HORIZON])).item() > 0.3
    assert 0.74 <= harrell_c(duration, event, truth["log_hazard"].to_numpy()) <= 0.80


def test_record_length_gives_little_away(folder: Path, history: pl.DataFrame, truth: pl.DataFrame) -> None:
    duration, event = truncated(truth)
    before = history.group_by("subject_id").len().sort("subject_id")["len"].to_numpy().astype(float)
    assert 0.47 < harrell_c(duration, event, before) < 0.56
    later = MedsDataset.open(folder).scan().join(truth.lazy(), on="subject_id")
    follow_up = later.filter(pl.col("time") > pl.col("prediction_time")).group_by("subject_id")
    last = follow_up.agg(pl.col("time").max()).collect().sort("subject_id")
    years = (last["time"] - truth["prediction_time"]).dt.total_days().to_numpy() / 365.25
    # follow-up goes on to the drawn end, whatever happened: uniform on 1 to 8 years, also after an outcome
    np.testing.assert_allclose(np.quantile(years, [0, 0.5, 1]), [1.0, 4.5, 8.0], atol=0.1)
    risk = truth["log_hazard"].to_numpy()
    assert abs(np.corrcoef(years, risk)[0, 1]) < 0.04


def test_both_orders_are_common(history: pl.DataFrame) -> None:
    first = history.group_by("subject_id", "code").agg(pl.col("time").min())
    for a, b in ((v.KIDNEY, v.NSAID), (v.FIBRILLATION, v.ASPIRIN)):
        both = first.filter(code=a).join(first.filter(code=b), on="subject_id")
        assert both.height > 0.2 * 8_000
        assert 0.35 * both.height < (both["time"] < both["time_right"]).sum() < 0.7 * both.height


# --- the truth -------------------------------------------------------------------------------------------------------


def test_the_true_survival_is_calibrated(truth: pl.DataFrame) -> None:
    times = np.array([365.0, 1_096.0, HORIZON])
    duration, event = truth["duration"].to_numpy(), (truth["event"].to_numpy() == 1).astype(np.int64)
    survival = true_survival(truth, times)  # [n, 3]
    group = np.digitize(survival[:, 1], np.quantile(survival[:, 1], [0.2, 0.4, 0.6, 0.8]))
    for number in range(5):
        rows = group == number
        observed = KaplanMeier.fit(duration[rows], event[rows]).at(times)
        np.testing.assert_allclose(survival[rows].mean(axis=0), observed, atol=0.035)
    observed = KaplanMeier.fit(duration, event).at(times)
    np.testing.assert_allclose(survival.mean(axis=0), observed, atol=0.015)


def test_the_drawn_times_follow_the_true_survival(truth: pl.DataFrame) -> None:
    """With the exact hazard, H(T | history) is a censored unit exponential: events / total H is 1."""
    days, scale, shape = (truth[n].to_numpy() for n in ("duration", "baseline_scale_days", "baseline_shape"))
    h = (days / scale) ** shape * np.exp(truth["log_hazard"].to_numpy())
    np.testing.assert_allclose(np.exp(-h[:9]), true_survival(truth.head(9), days[:9]).diagonal())
    events = (truth["event"].to_numpy() == 1).sum()
    assert events / h.sum() == pytest.approx(1.0, abs=4 / math.sqrt(events))


def test_nothing_ranks_or_scores_better_than_the_truth(truth: pl.DataFrame) -> None:
    duration, event = truncated(truth)
    eta, rng = truth["log_hazard"].to_numpy(), np.random.default_rng(0)
    censoring = censoring_distribution(duration, event)
    at = np.array([1_096.0])

    def score(log_hazard: np.ndarray) -> tuple[float, float]:
        survival = true_survival(truth.with_columns(log_hazard=pl.Series(log_hazard)), at)[:, 0]
        return harrell_c(duration, event, log_hazard), brier(duration, event, survival, 1_096.0, censoring)

    c, b = score(eta)
    for wrong in (eta + rng.normal(0, 0.4, len(eta)), np.roll(eta, 1), -eta):
        worse_c, worse_b = score(wrong)
        assert worse_c < c
        assert worse_b > b
    for miscalibrated in (eta + 0.3, eta - 0.3, 1.4 * eta, 0.6 * eta):
        assert score(miscalibrated)[1] > b


def test_weibull_inverts() -> None:
    baseline = Weibull(shape=1.3, scale_days=500.0)
    days = np.array([1.0, 400.0, 5_000.0])
    np.testing.assert_allclose(baseline.inverse(baseline.cumulative(days)), days)


# --- the sequence matters --------------------------------------------------------------------------------------------


def ridge_cox(x: np.ndarray, duration: np.ndarray, event: np.ndarray, penalty: float) -> np.ndarray:
    """Coefficients of a ridge-penalised Cox model (Breslow; the durations are untied)."""
    order = np.argsort(-duration)
    x, event = x[order], event[order].astype(float)

    def objective(beta: np.ndarray) -> tuple[float, np.ndarray]:
        score = x @ beta
        weight = np.exp(score - score.max())
        at_risk = np.cumsum(weight)
        loss = -(event * (score - score.max() - np.log(at_risk))).sum() + 0.5 * penalty * beta @ beta
        expected = weight * np.cumsum((event / at_risk)[::-1])[::-1]
        return loss, -x.T @ (event - expected) + penalty * beta

    return minimize(objective, np.zeros(x.shape[1]), jac=True, method="L-BFGS-B", options={"maxiter": 200}).x


def test_ridge_cox_on_counts_falls_well_short_of_the_oracle(history: pl.DataFrame, truth: pl.DataFrame) -> None:
    rows, training = truth.select("subject_id", "prediction_time"), np.arange(truth.height) < 5_600
    spec = FeatureSpec.fit(history, rows.head(5_600), FeaturesConfig())
    matrix = build_features(history, rows, spec)
    duration, event = truncated(truth)
    oracle = harrell_c(duration[~training], event[~training], truth["log_hazard"].to_numpy()[~training])

    def recovered(kinds: tuple[str, ...]) -> float:
        x = matrix.values[:, [name.startswith(kinds) for name in matrix.names]].astype(np.float64)
        x = (x - x[training].mean(axis=0)) / x[training].std(axis=0)
        beta = ridge_cox(x[training], duration[training], event[training], 300.0)
        return (harrell_c(duration[~training], event[~training], x[~training] @ beta) - 0.5) / (oracle - 0.5)

    counts, everything = recovered(("age", "static:", "count:")), recovered(("",))
    assert 0.55 < counts < 0.85
    assert counts < everything < 0.92


# --- competing death -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def deadly(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("deadly") / "demo"
    simulate(out, SimulateConfig(patients=4_000, seed=1, competing_death=True, noise_codes=20))
    return out


def test_the_incidences_are_the_integrals_they_claim_to_be(deadly: Path) -> None:
    """Against adaptive quadrature in u = (t / scale)^shape, where the outcome's density has no corner at 0."""
    truth, times = read_truth(deadly).head(8), np.array([5.0, HORIZON, 400.0])
    cif = true_cif(truth, times)
    for i, row in enumerate(truth.rows(named=True)):
        a, b = math.exp(row["log_hazard"]), math.exp(row["death_log_hazard"])
        k, s = row["baseline_shape"], row["baseline_scale_days"]

        def density(u: float, a: float = a, b: float = b, row: dict = row, k: float = k, s: float = s) -> float:
            return a * math.exp(-a * u - b * (s * u ** (1 / k) / row["death_scale_days"]) ** row["death_shape"])

        for j, t in enumerate(times):
            expected = quad(density, 0, (t / s) ** k, epsabs=1e-12)[0]
            assert cif["outcome"][i, j] == pytest.approx(expected, abs=1e-9)
    whole = cif["outcome"] + cif["death"] + true_event_free(truth, times)
    np.testing.assert_allclose(whole, 1.0, atol=1e-12)
    assert true_cif(truth, np.array([0.0]))["outcome"].tolist() == [[0.0]] * 8


def test_the_incidences_are_calibrated_and_survival_of_the_outcome_alone_is_not(deadly: Path) -> None:
    truth, times = read_truth(deadly), np.array([730.0, HORIZON])
    duration, event = truth["duration"].to_numpy(), truth["event"].cast(pl.Int64).to_numpy()
    cif = true_cif(truth, times)
    group = np.digitize(truth["log_hazard"].to_numpy(), np.quantile(truth["log_hazard"], [0.25, 0.5, 0.75]))
    for number in range(4):
        rows = group == number
        observed = AalenJohansen.fit(duration[rows], event[rows]).at(times)  # [2, causes]
        np.testing.assert_allclose(cif["outcome"][rows].mean(axis=0), observed[:, 0], atol=0.035)
        np.testing.assert_allclose(cif["death"][rows].mean(axis=0), observed[:, 1], atol=0.035)
    alone = 1 - true_survival(truth, times).mean(axis=0)  # what the risk would be, were there no death
    assert alone[1] > cif["outcome"].mean(axis=0)[1] + 0.01


def test_nothing_has_a_lower_brier_score_than_the_true_incidences(deadly: Path) -> None:
    truth, times = read_truth(deadly), np.linspace(0, HORIZON, 11)[1:]
    event = truth["event"].cast(pl.Int64).to_numpy()
    duration, event = truncate(truth["duration"].to_numpy(), event, HORIZON)
    censoring = censoring_distribution(truth["duration"].to_numpy(), truth["event"].cast(pl.Int64).to_numpy())

    def score(changed: pl.DataFrame) -> float:
        free = 1 - true_cif(changed, times)["outcome"]
        return integrated_brier(duration, event, free, times, censoring, HORIZON)

    best = score(truth)
    for wrong in (pl.col("log_hazard") + 0.3, pl.col("log_hazard") * 1.4, pl.col("log_hazard") * 0.6):
        assert score(truth.with_columns(log_hazard=wrong)) > best
    for wrong in (pl.col("death_log_hazard") + 1.0, pl.col("death_log_hazard") - 2.0):
        assert score(truth.with_columns(death_log_hazard=wrong)) > best
    assert integrated_brier(duration, event, true_survival(truth, times), times, censoring, HORIZON) > best


def test_the_task_of_a_deadly_simulation_names_death(deadly: Path) -> None:
    task = load_yaml(TaskConfig, deadly / "task.yaml")
    assert task == simulated_task(SimulateConfig(competing_death=True))
    assert task.causes == ("outcome", "death")
    table = build_cohort(MedsDataset.open(deadly), task).table
    assert table["event"].cast(pl.Int8).equals(read_truth(deadly)["event"])


# --- a second hospital -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("elsewhere") / "demo"
    simulate(out, SimulateConfig(patients=3_000, seed=0, hospital="b"))
    return out


def test_at_the_second_hospital_the_same_causes_act_under_other_names(elsewhere: Path) -> None:
    truth = read_truth(elsewhere)
    assert check(MedsDataset.open(elsewhere)).problems == []
    history = cut(MedsDataset.open(elsewhere).scan(), truth, InputConfig()).collect()
    rows = truth.select("subject_id", "prediction_time")
    translated = in_codes_of_a(history, HOSPITALS["b"])
    np.testing.assert_allclose(log_hazard(translated, rows), truth["log_hazard"], atol=1e-12)
    assert np.abs(log_hazard(history, rows) - truth["log_hazard"].to_numpy()).mean() > 0.1  # names not understood
    duration, event = truth["duration"].to_numpy(), truth["event"].cast(pl.Int64).to_numpy()
    observed = KaplanMeier.fit(duration, event).at(np.array([HORIZON]))
    np.testing.assert_allclose(true_survival(truth, np.array([HORIZON])).mean(axis=0), observed, atol=0.03)


def test_the_second_hospital_has_other_codes_and_other_patients(
    folder: Path, truth: pl.DataFrame, elsewhere: Path
) -> None:
    own, theirs = (MedsDataset.open(place).scan().collect() for place in (folder, elsewhere))
    unknown = ~theirs["code"].is_in(own["code"].unique().implode())
    assert 0.2 < unknown.mean() < 0.7
    assert not set(HOSPITALS["b"].codes) & set(theirs["code"])
    other = read_truth(elsewhere)
    assert other["log_hazard"].mean() > truth["log_hazard"].mean() + 0.2
    assert KaplanMeier.fit(other["duration"].to_numpy(), other["event"].cast(pl.Int64).to_numpy()).at(HORIZON) < 0.55
    born = pl.col("code") == "MEDS_BIRTH"

    def age(events: pl.DataFrame, known: pl.DataFrame) -> float:
        both = events.filter(born).join(known, on="subject_id")
        return (both["prediction_time"] - both["time"]).dt.total_days().mean() / 365.25

    assert age(theirs, other) == pytest.approx(age(own, truth) + 5, abs=0.7)
    assert not truth.head(100)["log_hazard"].equals(other.head(100)["log_hazard"])


def test_a_model_from_the_first_hospital_is_miscalibrated_at_the_second(truth: pl.DataFrame, elsewhere: Path) -> None:
    """Even the true η with hospital a's baseline foresees too few outcomes: what recalibration is there to mend."""
    other, at = read_truth(elsewhere), np.array([HORIZON])
    carried = other.with_columns(baseline_scale_days=pl.lit(truth["baseline_scale_days"][0]))
    expected = 1 - true_survival(carried, at).mean()
    observed = 1 - KaplanMeier.fit(other["duration"].to_numpy(), other["event"].cast(pl.Int64).to_numpy()).at(HORIZON)
    assert observed > 1.1 * expected
