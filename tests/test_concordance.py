"""C-index by compiled sweep, by its NumPy twin and by all pairs; Antolini's C; C and scaled errors at horizons."""

from __future__ import annotations

import builtins
from collections.abc import Iterator

import numpy as np
import pytest

from ehrsequencing.errors import EhrError, Exit
from ehrsequencing.evaluation import antolini, families, roc, sweep
from ehrsequencing.evaluation.antolini import TimeRanking, antolini_c
from ehrsequencing.evaluation.compare import Evaluation
from ehrsequencing.evaluation.concordance import Pairs, PairWeights, comparable_sums, concordant_sums, harrell_c, uno_c
from ehrsequencing.evaluation.metrics import brier, integrated_brier
from ehrsequencing.evaluation.sweep import below, below_numpy
from ehrsequencing.nonparametric import AalenJohansen, KaplanMeier, censoring_distribution
from ehrsequencing.timegrid import truncate
from test_compare import TAU, competing_patients, patients, predict, prepare, with_causes
from test_metrics import competing

KERNELS = (sweep, antolini, roc)


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiled code even where it does not pay."""
    monkeypatch.setattr(sweep, "COMPILED_FROM", 0)
    for module in KERNELS:
        monkeypatch.setattr(module, "COMPILED_WORK", 0.0)


@pytest.fixture
def no_numba(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As on a machine without numba."""
    load = builtins.__import__

    def refuse(name: str, *rest: object) -> object:
        if name == "numba":
            raise ImportError(name)
        return load(name, *rest)

    for module in KERNELS:
        module.kernel.cache_clear()
    monkeypatch.setattr(builtins, "__import__", refuse)
    yield
    for module in KERNELS:
        module.kernel.cache_clear()


def members(n: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Ranks and groups with ties, and weights, some of them 0."""
    rng = np.random.default_rng(seed)
    weight = rng.random(n) * (rng.random(n) < 0.8)
    return rng.integers(0, max(n // 2, 1), n), np.sort(rng.integers(0, max(n // 3, 1), n)), weight


@pytest.mark.parametrize("n", [1, 2, 7, 300])
def test_compiled_sweep_its_twin_and_all_pairs_agree(n: int, compiled: None) -> None:
    for seed in range(3):
        rank, group, weight = members(n, seed)
        score = (rank < rank[:, None]) + 0.5 * (rank == rank[:, None])
        plain = (score * (group < group[:, None]) * weight).sum(axis=1)
        np.testing.assert_allclose(below(rank, group, weight), plain, atol=1e-12)
        np.testing.assert_allclose(below_numpy(rank, group, weight), plain, atol=1e-12)
        ones = np.ones(n)
        np.testing.assert_array_equal(below(rank, group, ones), below_numpy(rank, group, ones))  # counts are exact
        asks = np.random.default_rng(seed).random(n) < 0.5
        np.testing.assert_array_equal(below(rank, group, ones, asks)[asks], below_numpy(rank, group, ones)[asks])


def test_counts_beyond_single_precision_are_kept_in_double(compiled: None, monkeypatch: pytest.MonkeyPatch) -> None:
    rank, group, ones = np.arange(5_000) % 17, np.arange(5_000), np.ones(5_000)
    expected, seen, sweep_one = below_numpy(rank, group, ones), [], sweep.single_kernel()
    monkeypatch.setattr(sweep, "single_kernel", lambda: lambda *given: seen.append(given[3].dtype) or sweep_one(*given))
    for at_most, dtype in ((5_001, np.float32), (5_000, np.float64)):
        monkeypatch.setattr(sweep, "EXACT_COUNTS", at_most)
        np.testing.assert_array_equal(below(rank, group, ones), expected)
        assert seen.pop() == dtype


def test_without_numba_the_twin_runs(no_numba: None) -> None:
    assert sweep.kernel() is None
    assert roc.kernel() is None
    rank, group, weight = members(50, 0)
    np.testing.assert_array_equal(below(rank, group, weight), below_numpy(rank, group, weight))


@pytest.mark.parametrize("yearly", [False, True])
def test_every_resample_agrees_compiled_and_not(yearly: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ties, competing risks, strata and several horizons at once."""
    duration, event, risk = competing(300, yearly=yearly)
    train = competing(400, 9, yearly=yearly)[:2]
    model = with_causes(np.round(risk, 1))

    def figures() -> dict[str, np.ndarray]:
        evaluation = Evaluation.of(
            duration, np.minimum(event, 2), train_duration=train[0], train_event=np.minimum(train[1], 2), tau=1095.0,
            horizons=(365.0, 730.0), n_boot=40, stratum=np.arange(300) % 3,
        )  # fmt: skip
        return dict(evaluation.score(model, only=("concordance", "antolini", "auc")).figures)

    plain = figures()
    monkeypatch.setattr(sweep, "COMPILED_FROM", 0)
    for module in KERNELS:
        monkeypatch.setattr(module, "COMPILED_WORK", 0.0)
    monkeypatch.setattr(sweep, "COLUMNS_AT_ONCE", 16)
    fast = figures()
    assert list(fast) == list(plain)
    for metric in plain:
        np.testing.assert_allclose(fast[metric], plain[metric], rtol=1e-12, err_msg=metric)
    np.testing.assert_array_equal(fast["harrell_c"], plain["harrell_c"])


def brute_force(pairs: Pairs, rank: np.ndarray, weights: PairWeights) -> tuple[np.ndarray, np.ndarray]:
    """Weights (n, n) of concordant and of all pairs, one pair at a time."""
    n = rank.size
    concordant, comparable = np.zeros((2, n, n))
    for i, j in np.ndindex(n, n):
        if pairs.event[i] != 1 or pairs.stratum[i] != pairs.stratum[j]:
            continue
        early = pairs.event[j] > 1 and pairs.duration[j] < pairs.duration[i]
        at_once = pairs.duration[j] == pairs.duration[i] and pairs.event[j] != 1
        if early or at_once or pairs.duration[j] > pairs.duration[i]:
            comparable[i, j] = weights.early[i] * weights.given[j] if early else weights.later[i]
            concordant[i, j] = comparable[i, j] * ((rank[j] < rank[i]) + 0.5 * (rank[j] == rank[i]))
    return concordant, comparable


@pytest.mark.parametrize("strata", [1, 3])
def test_pairs_by_row_by_column_and_by_resample_equal_all_pairs(strata: int) -> None:
    duration, event, risk = competing(70, yearly=True)
    pairs = Pairs.of(duration, event, np.arange(70) % strata)
    censoring = censoring_distribution(*competing(300, 9, yearly=True)[:2])
    rank, drawn = pairs.ranks(np.round(risk)), np.random.default_rng(0).poisson(1.0, (5, 70)).astype(np.float32)
    kinds = [pairs.harrell(), pairs.harrell(730.0), pairs.uno(censoring, 1095.0)]
    found, whole = concordant_sums(pairs, rank, kinds, drawn), comparable_sums(pairs, kinds, drawn)
    for k, weights in enumerate(kinds):
        concordant, comparable = brute_force(pairs, rank, weights)
        np.testing.assert_allclose(pairs.concordant(rank, weights), concordant.sum(axis=1), atol=1e-12)
        np.testing.assert_allclose(pairs.concordant_with(rank, weights), concordant.sum(axis=0), atol=1e-12)
        np.testing.assert_allclose(pairs.comparable(weights), comparable.sum(axis=1), atol=1e-12)
        np.testing.assert_allclose(pairs.comparable_with(weights), comparable.sum(axis=0), atol=1e-12)
        np.testing.assert_allclose(found[:, k], np.einsum("bi,ij,bj->b", drawn, concordant, drawn), rtol=1e-12)
        np.testing.assert_allclose(whole[:, k], np.einsum("bi,ij,bj->b", drawn, comparable, drawn), rtol=1e-12)


def test_concordance_at_a_horizon_is_that_of_truncated_follow_up_and_of_the_risk_by_then() -> None:
    duration, event, score = competing_patients(200)
    evaluation = prepare(duration, event, competing_patients(400, 9)[:2], horizons=(400.0, 1000.0), n_boot=5)
    model = with_causes(score)
    figures = evaluation.score(model, only=("concordance",)).figures
    for horizon in (400.0, 1000.0):
        risk = model.outcome_risk_at(np.array([horizon]))[:, 0]
        for b, counts in enumerate(evaluation.counts):
            rows = np.repeat(np.arange(200), counts)
            cut = truncate(duration[rows], event[rows], horizon)
            assert figures[f"harrell_c@{horizon:g}"][b] == pytest.approx(harrell_c(*cut, risk[rows]), abs=1e-12)
            uno = uno_c(*cut, risk[rows], evaluation.censoring, horizon)
            assert figures[f"uno_c@{horizon:g}"][b] == pytest.approx(uno, abs=1e-12)


def test_a_horizon_before_any_outcome_is_named_not_guessed() -> None:
    duration, event, truth = patients(60)
    early = float(duration[event == 1].min()) / 2
    train = np.append(duration, early / 2), np.append(event, 1)  # others had it by then
    scores = prepare(duration, event, train, horizons=(early,)).score(
        predict(truth), only=("concordance", "antolini", "auc", "errors")
    )
    name = f"{early:.10g}"
    assert "no two patients can be compared" in scores.not_computed[f"uno_c@{name}"]
    assert "nobody is known to have had the outcome" in scores.not_computed[f"auc@{name}"]
    quick = prepare(duration, event, train, horizons=(early,), n_boot=0).quick(predict(truth))
    assert {metric: quick.not_computed[metric] for metric in scores.not_computed} == scores.not_computed


# --- Antolini ---------------------------------------------------------------------------------------------------------


def crossing(n: int, seed: int = 0, yearly: bool = False) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """duration, event, curves that cross, and their times."""
    rng = np.random.default_rng(seed)
    duration, event, _ = patients(n, seed, yearly)
    times = np.array([200.0, 365.0, 800.0, 1095.0, 4000.0])
    hazard = rng.exponential(size=(n, times.size))
    return np.minimum(duration, 4000.0), event, np.round(np.exp(-np.cumsum(hazard, axis=1) / 4), 1), times


def brute_force_antolini(
    duration: np.ndarray, event: np.ndarray, curves: np.ndarray, times: np.ndarray, stratum: np.ndarray
) -> float:
    """Antolini, Boracchi & Biganzoli (2005), pair by pair; ties count one half."""
    above = below_ = 0.0
    for i, j in np.ndindex(duration.size, duration.size):
        later = duration[j] > duration[i] or (duration[j] == duration[i] and event[j] == 0) or event[j] > 1
        if event[i] != 1 or not later or stratum[i] != stratum[j]:
            continue
        mine, theirs = (np.interp(duration[i], np.append(0, times), np.append(1, curves[k])) for k in (i, j))
        above += 1.0 if mine < theirs else 0.5 if mine == theirs else 0.0
        below_ += 1.0
    return above / below_


@pytest.mark.parametrize("yearly", [False, True])
def test_antolini_equals_its_definition(yearly: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    duration, event, curves, times = crossing(90, yearly=yearly)
    event = np.where(np.arange(90) % 7 == 0, 2, event)
    stratum = np.arange(90) % 2
    expected = brute_force_antolini(duration, event, curves, times, stratum)
    assert antolini_c(duration, event, curves, times, stratum) == pytest.approx(expected, abs=1e-14)
    monkeypatch.setattr(antolini, "PAIRS_AT_ONCE", 200)
    assert antolini_c(duration, event, curves, times, stratum) == pytest.approx(expected, abs=1e-14)
    monkeypatch.setattr(antolini, "COMPILED_WORK", 0.0)
    assert antolini_c(duration, event, curves, times, stratum) == pytest.approx(expected, abs=1e-14)


def test_antolini_of_curves_that_never_cross_is_harrell() -> None:
    duration, event, truth = patients(300)
    times = np.linspace(0, 20_000, 50)[1:]
    curves = np.exp(-np.exp(np.round(truth, 1))[:, None] * times / 20_000)  # high everywhere: no two round to the same
    ours = antolini_c(duration, event, curves, times)
    assert ours == pytest.approx(harrell_c(duration, event, np.round(truth, 1)), abs=1e-12)


def test_antolini_sees_what_one_risk_cannot() -> None:
    """Whoever is at high risk early is at low risk late: any one ranking is wrong about half of the time."""
    rng = np.random.default_rng(0)
    early = rng.random(2_000) < 0.5
    failure = np.where(early, rng.exponential(200, 2_000), 500 + rng.exponential(200, 2_000))
    sooner = np.where(early, rng.random(2_000) < 0.8, rng.random(2_000) < 0.2)
    times = np.array([500.0, 3000.0])
    curves = np.where(sooner[:, None], [0.3, 0.2], [0.8, 0.01])
    ones = np.ones(2_000, dtype=np.int64)
    over_time = antolini_c(np.minimum(failure, 3000.0), ones, curves, times)
    assert over_time > harrell_c(failure, ones, -curves[:, 1]) + 0.1


def test_antolini_on_resamples_equals_its_definition_and_to_first_order_is_near(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    duration, event, score = competing_patients(400)
    evaluation = prepare(duration, event, competing_patients(400, 9)[:2], n_boot=60)
    model = with_causes(score)
    exact = evaluation.score(model, only=("antolini",))
    cut = truncate(duration, event, TAU)
    for b in (0, 1, 2):
        rows = np.repeat(np.arange(400), evaluation.counts[b])
        free = 1.0 - model.outcome_risk_at(model.horizon_days)[rows]
        expected = antolini_c(cut[0][rows], cut[1][rows], free, model.horizon_days)
        assert exact.figures["antolini_c"][b] == pytest.approx(expected, abs=1e-12)
    assert not exact.notes
    monkeypatch.setattr(families, "ANTOLINI_WORK", 0.0)
    linear = evaluation.score(model, only=("antolini",))
    assert "to first order" in linear.notes["antolini_c"]
    assert linear.figures["antolini_c"][0] == pytest.approx(exact.figures["antolini_c"][0], abs=1e-12)
    gap = linear.figures["antolini_c"] - exact.figures["antolini_c"]
    assert np.std(gap) < 0.1 * np.std(exact.figures["antolini_c"])


def test_curves_that_end_before_the_last_outcome_have_no_antolini() -> None:
    duration, event, curves, times = crossing(50)
    with pytest.raises(EhrError, match="last outcome") as error:
        antolini_c(duration, np.ones(50, dtype=np.int64), curves[:, :2], times[:2])
    assert error.value.code is Exit.BUNDLE
    with pytest.raises(EhrError, match="no two patients"):
        antolini_c(duration, np.zeros(50, dtype=np.int64), curves, times)
    with pytest.raises(EhrError, match="probabilities"):
        antolini_c(duration, event, curves + 1.0, times)


def test_the_tallies_of_a_ranking_add_up() -> None:
    duration, event, curves, times = crossing(60)
    ranking = TimeRanking(Pairs.of(duration, event), times, curves)
    own, others = ranking.tallies
    assert own.sum() == pytest.approx(others.sum())


# --- scaled errors ----------------------------------------------------------------------------------------------------


def test_errors_are_scaled_by_the_training_curve() -> None:
    duration, event, score = competing_patients(150)
    train = competing_patients(400, 9)[:2]
    evaluation = prepare(duration, event, train, horizons=(500.0,), n_boot=4)
    model = with_causes(score)
    figures = evaluation.score(model, only=("errors",)).figures
    times, (cut, codes) = evaluation.curve_times, truncate(duration, event, TAU)
    null = 1 - AalenJohansen.fit(*train).at(times)[:, 0]
    for b, counts in enumerate(evaluation.counts):
        rows = np.repeat(np.arange(150), counts)
        outcome, g = (cut[rows], codes[rows]), evaluation.censoring
        whole = integrated_brier(*outcome, np.tile(null, (150, 1)), times, g, TAU)
        assert figures["scaled_ibs"][b] == pytest.approx(1 - figures["ibs"][b] / whole, abs=1e-12)
        at = brier(*outcome, np.full(150, 1 - AalenJohansen.fit(*train).at(500.0)[0]), 500.0, g)
        assert figures["scaled_brier@500"][b] == pytest.approx(1 - figures["brier@500"][b] / at, abs=1e-12)


def test_the_training_curve_itself_saves_nothing() -> None:
    duration, event, _ = patients(300)
    evaluation = prepare(duration, event, horizons=(700.0,), n_boot=3)
    times = np.union1d(np.unique(duration[duration < TAU]), evaluation.curve_times)
    model = predict(np.zeros(300))
    curve = np.tile(KaplanMeier.fit(duration, event).at(times), (300, 1))
    model = type(model)(model.subject_id, model.prediction_time, model.risk, times, curve)
    figures = evaluation.score(model, only=("errors",)).figures
    np.testing.assert_allclose(figures["scaled_ibs"], 0.0, atol=1e-12)
    np.testing.assert_allclose(figures["scaled_brier@700"], 0.0, atol=1e-4)  # 700 lies between two steps


def test_where_the_training_curve_makes_no_error_there_is_no_scale() -> None:
    duration, event = np.array([50.0, 60.0, 70.0, 80.0]), np.array([1, 0, 1, 0])
    evaluation = prepare(duration, event, (duration, event), tau=75.0, horizons=(20.0,), n_boot=2)
    scores = evaluation.score(predict(np.array([1.0, 0.0, 0.5, 0.2]), end=75.0), only=("errors",))
    assert "makes no error" in scores.not_computed["scaled_brier@20"]
    assert "brier@20" in scores.figures
