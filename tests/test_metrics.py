"""C-index and Brier against brute force, lifelines, scikit-survival and the truth."""

from __future__ import annotations

import numpy as np
import pytest
from lifelines.utils import concordance_index
from sksurv.metrics import brier_score, concordance_index_censored, concordance_index_ipcw, integrated_brier_score
from sksurv.util import Surv

from ehrsequencing.errors import EhrError, Exit
from ehrsequencing.evaluation.metrics import brier, harrell_c, integrated_brier, uno_c
from ehrsequencing.nonparametric import KaplanMeier, censoring_distribution
from ehrsequencing.timegrid import truncate

Outcome = tuple[np.ndarray, np.ndarray, np.ndarray]


def cohort(kind: str, n: int = 120, seed: int = 0) -> Outcome:
    """duration, event, risk; ``kind`` names what is awkward about it."""
    rng = np.random.default_rng(seed)
    risk = rng.normal(size=n)
    failure = rng.exponential(1000 * np.exp(-risk))
    censoring = rng.exponential(100 if kind == "heavily censored" else 1500, n)
    duration, event = np.minimum(failure, censoring), (failure <= censoring).astype(np.int64)
    if kind == "yearly":
        duration = np.minimum(np.ceil(duration / 365), 6) * 365.0
    if kind in ("yearly", "tied risks"):
        risk = np.round(risk)
    return duration, event, risk


TAU = {"continuous": 1500.0, "tied risks": 1500.0, "yearly": 1825.0, "heavily censored": 150.0}
KINDS = list(TAU)


def brute_force_c(duration: np.ndarray, event: np.ndarray, risk: np.ndarray, weight: np.ndarray) -> float:
    """All ordered pairs, one at a time."""
    above = below = 0.0
    for i in range(duration.size):
        for j in range(duration.size):
            outlived = duration[j] > duration[i] or (duration[j] == duration[i] and event[j] == 0)
            if event[i] == 1 and outlived:
                above += weight[i] * (1.0 if risk[i] > risk[j] else 0.5 if risk[i] == risk[j] else 0.0)
                below += weight[i]
    return above / below


def brute_force_g_before(duration: np.ndarray, event: np.ndarray, t: float) -> float:
    """Ĝ(t−) as a product over each distinct time below t; events at a time leave before its censorings."""
    g = 1.0
    for s in sorted({x for x in duration if x < t}):
        censored = int(((duration == s) & (event == 0)).sum())
        at_risk = int((duration >= s).sum()) - int(((duration == s) & (event > 0)).sum())
        g *= 1 - censored / at_risk if at_risk else 1.0
    return g


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_harrell_equals_brute_force_and_both_libraries(kind: str, seed: int) -> None:
    duration, event, risk = cohort(kind, seed=seed)
    ours = harrell_c(duration, event, risk)
    assert ours == pytest.approx(brute_force_c(duration, event, risk, np.ones(risk.size)), abs=1e-14)
    assert ours == pytest.approx(concordance_index(duration, -risk, event), abs=1e-12)
    assert ours == pytest.approx(concordance_index_censored(event.astype(bool), duration, risk)[0], abs=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_uno_equals_brute_force(kind: str) -> None:
    duration, event, risk = cohort(kind)
    train = cohort(kind, 400, seed=9)
    weight = [brute_force_g_before(*train[:2], t) ** -2 if t < TAU[kind] else 0.0 for t in duration]
    ours = uno_c(duration, event, risk, censoring_distribution(*train[:2]), TAU[kind])
    assert ours == pytest.approx(brute_force_c(duration, event, risk, np.array(weight)), abs=1e-12)


def test_uno_equals_sksurv_on_untied_times() -> None:
    duration, event, risk = cohort("continuous", 300)
    train = cohort("continuous", 500, seed=9)[:2]
    inside = duration < train[0].max()  # scikit-survival refuses the others
    duration, event, risk = duration[inside], event[inside], risk[inside]
    theirs = concordance_index_ipcw(
        Surv.from_arrays(train[1], train[0]), Surv.from_arrays(event, duration), risk, tau=1500.0
    )
    assert uno_c(duration, event, risk, censoring_distribution(*train), 1500.0) == pytest.approx(theirs[0], abs=1e-3)


def test_uno_does_not_depend_on_follow_up_after_tau() -> None:
    duration, event, risk = cohort("continuous", 300)
    train = cohort("continuous", 500, seed=9)[:2]
    full = uno_c(duration, event, risk, censoring_distribution(*train), 1000.0)
    cut = uno_c(*truncate(duration, event, 1000.0), risk, censoring_distribution(*truncate(*train, 1000.0)), 1000.0)
    assert full == pytest.approx(cut, abs=1e-14)


def test_uno_is_free_of_the_censoring_that_biases_harrell() -> None:
    """Early and late hazards favour opposite risks; censoring hides the late ones from Harrell, not from Uno."""
    rng = np.random.default_rng(0)
    n, tau = 40_000, 2.0
    risk = rng.normal(size=n)
    failure = np.where(rng.random(n) < 1 / (1 + np.exp(-3 * risk)), rng.uniform(0, 1, n), rng.uniform(1, 3, n))
    censoring = rng.exponential(1.0, n)
    duration, event = np.minimum(failure, censoring), (failure <= censoring).astype(np.int64)
    truth = harrell_c(*truncate(failure, np.ones(n, dtype=np.int64), tau), risk)
    naive = harrell_c(*truncate(duration, event, tau), risk)
    weighted = uno_c(duration, event, risk, censoring_distribution(duration, event), tau)
    assert abs(naive - truth) > 0.015
    assert abs(weighted - truth) < 0.005


@pytest.mark.parametrize("kind", KINDS)
def test_a_constant_model_scores_one_half(kind: str) -> None:
    duration, event, _ = cohort(kind)
    constant = np.full(duration.size, 0.3)
    assert harrell_c(duration, event, constant) == 0.5
    assert uno_c(duration, event, constant, censoring_distribution(duration, event), TAU[kind]) == pytest.approx(0.5)


@pytest.mark.parametrize("kind", KINDS)
def test_scaling_the_risk_changes_nothing(kind: str) -> None:
    duration, event, risk = cohort(kind)
    censoring = censoring_distribution(duration, event)
    assert harrell_c(duration, event, risk * 1e-9) == harrell_c(duration, event, risk)
    assert uno_c(duration, event, risk * 1e-9, censoring, TAU[kind]) == uno_c(
        duration, event, risk, censoring, TAU[kind]
    )
    assert harrell_c(duration, event, -risk) == pytest.approx(1 - harrell_c(duration, event, risk))


def test_no_comparable_pair_and_broken_risks_are_refused() -> None:
    duration, nobody = np.array([1.0, 2.0]), np.zeros(2, dtype=np.int64)
    with pytest.raises(EhrError, match="no two patients can be compared") as error:
        harrell_c(duration, nobody, np.array([0.1, 0.2]))
    assert error.value.code is Exit.COHORT
    with pytest.raises(EhrError, match="expected 2 finite risks, found 1 not finite") as error:
        harrell_c(duration, 1 - nobody, np.array([0.1, np.nan]))
    assert error.value.code is Exit.BUNDLE


@pytest.mark.parametrize(
    ("tau", "found"), [(99.0, "past the longest training duration, 50 days"), (49.0, "Ĝ")], ids=["too long", "Ĝ"]
)
def test_a_horizon_that_training_cannot_support_is_refused(tau: float, found: str) -> None:
    duration = np.arange(1.0, 51.0)
    event = (np.arange(50) % 2).astype(np.int64)
    censoring = censoring_distribution(duration, np.zeros(50, dtype=np.int64))
    survival = np.full((50, 2), 0.5)
    for call in (
        lambda: uno_c(duration, event, duration, censoring, tau),
        lambda: brier(duration, event, survival[:, 0], tau, censoring),
        lambda: integrated_brier(duration, event, survival, np.array([1.0, tau]), censoring, tau),
    ):
        with pytest.raises(EhrError, match=found) as error:
            call()
        assert error.value.code is Exit.COHORT


def brute_force_brier(
    duration: np.ndarray, event: np.ndarray, survival: np.ndarray, t: float, train: tuple[np.ndarray, np.ndarray]
) -> float:
    total = 0.0
    for T, d, s in zip(duration, event, survival, strict=True):
        if t >= T and d == 1:
            total += s**2 / brute_force_g_before(*train, T)
        elif t < T or (t == T and d == 0):
            total += (1 - s) ** 2 / brute_force_g_before(*train, t)
    return total / duration.size


def curves(risk: np.ndarray, times: np.ndarray) -> np.ndarray:
    return np.exp(-np.exp(risk)[:, None] * times / 1000.0)


@pytest.mark.parametrize("kind", KINDS)
def test_brier_equals_brute_force(kind: str) -> None:
    duration, event, risk = cohort(kind)
    train = cohort(kind, 400, seed=9)[:2]
    t = 730.0 if kind == "yearly" else 100.0
    survival = curves(risk, np.array([t]))[:, 0]
    ours = brier(duration, event, survival, t, censoring_distribution(*train))
    assert ours == pytest.approx(brute_force_brier(duration, event, survival, t, train), abs=1e-12)


def test_brier_and_its_integral_equal_sksurv_where_definitions_meet() -> None:
    """Evaluated on the sample Ĝ is fitted on, with untied times, scikit-survival's Ĝ(T) is our Ĝ(T−) at each event."""
    duration, event, risk = cohort("continuous", 400)
    times = np.linspace(10.0, 1400.0, 100)
    survival = curves(risk, times)
    y, censoring = Surv.from_arrays(event, duration), censoring_distribution(duration, event)
    theirs = brier_score(y, y, survival, times)[1]
    ours = [brier(duration, event, survival[:, k], float(t), censoring) for k, t in enumerate(times)]
    np.testing.assert_allclose(ours, theirs, atol=1e-12)
    whole = integrated_brier(duration, event, survival, times, censoring, 1400.0)
    head = 0.5 * times[0] * ours[0]  # they begin at the first time, we at 0, and they divide by the shorter span
    assert whole * 1400.0 - head == pytest.approx(integrated_brier_score(y, y, survival, times) * 1390.0, abs=1e-9)


def test_brier_is_the_same_on_truncated_and_full_follow_up() -> None:
    duration, event, risk = cohort("continuous", 300)
    train = cohort("continuous", 400, seed=9)[:2]
    survival = curves(risk, np.array([1000.0]))[:, 0]
    full = brier(duration, event, survival, 1000.0, censoring_distribution(*train))
    cut = brier(*truncate(duration, event, 1000.0), survival, 1000.0, censoring_distribution(*truncate(*train, 1000.0)))
    assert full == pytest.approx(cut, abs=1e-14)


def test_integrated_brier_of_a_known_curve() -> None:
    """All fail at 1 without censoring and S(t) = 1 before, 0 after: only the trapezium that holds the step scores."""
    ones = np.ones(10, dtype=np.int64)
    duration, times = np.ones(10), np.linspace(0, 2, 101)[1:]
    censoring = censoring_distribution(np.append(duration, 2.0), np.append(ones, 1))
    perfect = np.tile((times < 1).astype(np.float64), (10, 1))
    assert integrated_brier(duration, ones, perfect, times, censoring, 2.0) == 0.0
    half = np.full((10, 100), 0.5)
    # 1/4 all along but for the first trapezium, which starts at 0
    assert integrated_brier(duration, ones, half, times, censoring, 2.0) == pytest.approx(0.25 * (1 - 0.005))


def test_curves_must_end_at_tau_and_be_probabilities() -> None:
    duration, event, risk = cohort("continuous")
    censoring, times = censoring_distribution(duration, event), np.linspace(10, 500.0, 20)
    with pytest.raises(EhrError, match="found 10 to 500") as error:
        integrated_brier(duration, event, curves(risk, times), times, censoring, 600.0)
    assert error.value.code is Exit.BUNDLE
    with pytest.raises(EhrError, match=r"probabilities in \[0, 1\].* to 1\.5"):
        brier(duration, event, np.full(duration.size, 1.5), 500.0, censoring)


def test_the_true_curve_has_the_lowest_brier_and_integrated_brier() -> None:
    duration, event, risk = cohort("continuous", 20_000)
    censoring, times = censoring_distribution(duration, event), np.linspace(0, 1500, 51)[1:]
    truth = curves(risk, times)
    rivals = {
        "too extreme": curves(1.3 * risk, times),
        "too flat": curves(0.7 * risk, times),
        "too high": curves(risk + 0.2, times),
        "too low": curves(risk - 0.2, times),
        "Kaplan-Meier": np.tile(KaplanMeier.fit(duration, event).at(times), (duration.size, 1)),
    }
    best = integrated_brier(duration, event, truth, times, censoring, 1500.0)
    for name, rival in rivals.items():
        assert best < integrated_brier(duration, event, rival, times, censoring, 1500.0), name
        for k in (10, 49):
            t = float(times[k])
            assert brier(duration, event, truth[:, k], t, censoring) < brier(duration, event, rival[:, k], t, censoring)


def test_the_expected_brier_does_not_depend_on_censoring() -> None:
    rng = np.random.default_rng(3)
    risk = rng.normal(size=60_000)
    failure, censoring = rng.exponential(1000 * np.exp(-risk)), rng.exponential(1500, risk.size)
    duration, event = np.minimum(failure, censoring), (failure <= censoring).astype(np.int64)
    ones, survival = np.ones(risk.size, dtype=np.int64), curves(risk, np.array([900.0]))[:, 0]
    seen = brier(duration, event, survival, 900.0, censoring_distribution(duration, event))
    assert seen == pytest.approx(
        brier(failure, ones, survival, 900.0, censoring_distribution(failure, ones)), abs=0.003
    )


# --- competing risks -------------------------------------------------------------------------------------------------


def competing(n: int, seed: int = 0, *, censored: bool = True, yearly: bool = False) -> Outcome:
    """duration, event (1 outcome, 2 and 3 competing) and the outcome's log hazard, all hazards depending on it."""
    rng = np.random.default_rng(seed)
    score = rng.normal(size=n)
    times = [rng.exponential(1000 * np.exp(-k * score)) for k in (1.0, -0.5, 0.3)]
    cause = np.argmin(times, axis=0) + 1
    failure = np.min(times, axis=0)
    censoring = rng.exponential(1200, n) if censored else np.full(n, 1e6)
    duration, event = np.minimum(failure, censoring), np.where(failure <= censoring, cause, 0).astype(np.int64)
    return (np.ceil(duration / 365) * 365.0 if yearly else duration), event, score


def brute_force_wolbers(
    duration: np.ndarray, event: np.ndarray, risk: np.ndarray, train: tuple[np.ndarray, np.ndarray] | None, tau: float
) -> float:
    """Pair by pair from Wolbers et al. (2014): with ``train`` weighted, without it the plain share."""
    g = [1.0 if train is None else brute_force_g_before(*train, t) for t in duration]
    above = below = 0.0
    for i in range(duration.size):
        if event[i] != 1 or (train is not None and duration[i] >= tau):
            continue
        for j in range(duration.size):
            early = event[j] > 1 and duration[j] <= duration[i]
            later = duration[j] > duration[i] or (duration[j] == duration[i] and event[j] == 0)
            if not (early or later):
                continue
            weight = 1 / (g[i] * g[j if early else i])
            above += weight * (1.0 if risk[i] > risk[j] else 0.5 if risk[i] == risk[j] else 0.0)
            below += weight
    return above / below


@pytest.mark.parametrize("yearly", [False, True])
def test_concordance_with_competing_events_equals_brute_force(yearly: bool) -> None:
    duration, event, risk = competing(90, yearly=yearly)
    train = competing(300, 9, yearly=yearly)[:2]
    tau = 1095.0 if yearly else 900.0
    risk = np.round(risk, 1)
    assert harrell_c(duration, event, risk) == pytest.approx(
        brute_force_wolbers(duration, event, risk, None, tau), abs=1e-13
    )
    ours = uno_c(duration, event, risk, censoring_distribution(*train), tau)
    assert ours == pytest.approx(brute_force_wolbers(duration, event, risk, train, tau), abs=1e-12)


def test_weighted_concordance_recovers_what_is_seen_without_censoring() -> None:
    tau = 800.0
    full = competing(12_000, 2, censored=False)
    truth = harrell_c(*truncate(full[0], full[1], tau), full[2])
    duration, event, risk = competing(12_000, 2)
    weighted = uno_c(duration, event, risk, censoring_distribution(duration, event), tau)
    as_censored = uno_c(duration, (event == 1).astype(np.int64), risk, censoring_distribution(duration, event), tau)
    assert weighted == pytest.approx(truth, abs=0.009)
    assert abs(as_censored - truth) > abs(weighted - truth) + 0.005  # competing events are no censoring


def test_brier_with_competing_events_equals_brute_force() -> None:
    duration, event, risk = competing(150)
    train = competing(400, 9)[:2]
    free = 1 / (1 + np.exp(risk))
    for t in (100.0, 600.0):
        total = 0.0
        for T, d, s in zip(duration, event, free, strict=True):
            if t >= T and d > 0:
                total += (float(d == 1) - (1 - s)) ** 2 / brute_force_g_before(*train, T)
            elif t < T:
                total += (1 - s) ** 2 / brute_force_g_before(*train, t)
        ours = brier(duration, event, free, t, censoring_distribution(*train))
        assert ours == pytest.approx(total / duration.size, abs=1e-12)


def test_without_censoring_the_brier_score_is_the_mean_squared_error() -> None:
    duration, event, risk = competing(500, censored=False)
    free = 1 / (1 + np.exp(risk))
    happened = (event == 1) & (duration <= 700.0)
    everybody = censoring_distribution(np.append(duration, 1e7), np.append(event, 1))
    assert brier(duration, event, free, 700.0, everybody) == pytest.approx(((1 - free - happened) ** 2).mean())


def test_renumbering_competing_causes_changes_nothing() -> None:
    duration, event, risk = competing(300)
    swapped = np.array([0, 1, 3, 2])[event]
    merged = np.minimum(event, 2)
    g = censoring_distribution(duration, event)
    for other in (swapped, merged):
        assert uno_c(duration, other, risk, g, 900.0) == uno_c(duration, event, risk, g, 900.0)
        assert brier(duration, other, 1 / (1 + np.exp(risk)), 500.0, g) == brier(
            duration, event, 1 / (1 + np.exp(risk)), 500.0, g
        )
