"""Net benefit against its plain formula, against weights for censoring, and against what must win."""

from __future__ import annotations

import numpy as np
import pytest

from ehrsequencing.errors import EhrError
from ehrsequencing.evaluation import nested
from ehrsequencing.evaluation.decision import default_thresholds, net_benefit
from ehrsequencing.evaluation.metrics import known_outcome
from ehrsequencing.evaluation.nested import nested_incidence
from ehrsequencing.nonparametric import AalenJohansen, KaplanMeier, censoring_distribution

DAY = 365.0


def patients(n: int, seed: int = 0, *, competing: bool = False, censored: bool = True) -> tuple[np.ndarray, ...]:
    """duration, event, and the true probability of no outcome by DAY."""
    rng = np.random.default_rng(seed)
    hazard = np.exp(rng.normal(-0.5, 1.0, n)) / 730
    other = np.full(n, 1 / 1000 if competing else 0.0)
    first = rng.exponential(1 / (hazard + other))
    cause = np.where(rng.random(n) < hazard / (hazard + other), 1, 2)
    end = rng.exponential(900, n) if censored else np.full(n, np.inf)
    risk = hazard / (hazard + other) * -np.expm1(-(hazard + other) * DAY)
    return np.minimum(np.minimum(first, end), 1_500.0), np.where(first <= np.minimum(end, 1_500.0), cause, 0), 1 - risk


def shifted(free: np.ndarray, scale: float, shift: float = 0.0) -> np.ndarray:
    odds = np.log((1 - free) / free) * scale + shift
    return 1 / (1 + np.exp(odds))


def test_without_censoring_it_is_the_plain_formula() -> None:
    duration, event, free = patients(300, censored=False)
    thresholds = np.array([0.05, 0.2, 0.4])
    found = net_benefit(duration, event, free, DAY, censoring_distribution(duration, event), thresholds)
    had = (event == 1) & (duration <= DAY)
    for p, model, everybody, flagged in zip(thresholds, found.model, found.treat_all, found.flagged, strict=True):
        positive = 1 - free >= p
        expected = (positive & had).mean() - (positive & ~had).mean() * p / (1 - p)
        assert model == pytest.approx(expected, abs=1e-12)
        assert everybody == pytest.approx(had.mean() - (1 - had.mean()) * p / (1 - p), abs=1e-12)
        assert flagged == positive.mean()
    assert not found.treat_none.any()
    np.testing.assert_allclose(found.gain, found.model - np.maximum(found.treat_all, 0))


def test_published_estimator_by_hand() -> None:
    """Twelve flagged (Vickers et al. 2008): Kaplan–Meier in them by day 5 is 11/12 · 9/10, of 24 patients."""
    duration = np.array([1.0, 2.0, 3.0, *[9.0] * 9, *[9.0] * 12])
    event = np.array([1, 0, 1, *[0] * 21])
    free = np.repeat([0.5, 0.9], 12)
    risk = 1 - 11 / 12 * 9 / 10
    found = net_benefit(duration, event, free, 5.0, censoring_distribution(duration, event), np.array([0.25]))
    assert found.model[0] == pytest.approx(risk * 0.5 - (1 - risk) * 0.5 / 3, abs=1e-12)


@pytest.mark.parametrize("competing", [False, True])
def test_groups_have_their_own_kaplan_meier_or_aalen_johansen(competing: bool) -> None:
    duration, event, free = patients(400, 2, competing=competing)
    duration = np.ceil(duration / 30) * 30  # with ties
    member = np.searchsorted([0.1, 0.3], 1 - free, side="right")
    counts = np.ones((2, 400))
    counts[1] = np.random.default_rng(0).multinomial(400, np.full(400, 1 / 400))
    risk, share = nested_incidence(duration, event, DAY, counts, member, 3)
    for b, drawn in enumerate(counts.astype(int)):
        for group in range(3):
            rows = np.repeat(np.arange(400), drawn * (member >= group))
            assert share[b, group] == rows.size / 400
            if competing:
                expected = AalenJohansen.fit(duration[rows], event[rows]).at(DAY)[0]
            else:
                expected = 1 - KaplanMeier.fit(duration[rows], event[rows]).at(DAY)
            assert risk[b, group] == pytest.approx(float(expected), abs=1e-12)


def test_a_group_that_nobody_followed_is_unknown() -> None:
    duration, event = np.array([1.0, 2.0, 9.0]), np.array([1, 0, 0])
    risk, share = nested_incidence(duration, event, 5.0, np.ones((1, 3)), np.array([1, 1, 0]), 3)
    assert risk[0, 0] == pytest.approx(1 / 3)
    assert np.isnan(risk[0, 1:]).all()
    assert share[0].tolist() == [1.0, pytest.approx(2 / 3), 0.0]
    ended = nested_incidence(np.array([1.0, 2.0]), np.array([1, 2]), 5.0, np.ones((1, 2)), np.zeros(2, dtype=int), 1)
    assert ended[0] == [[0.5]]  # nobody was followed that long, and nobody could be
    assert nested_incidence(duration, event * 0, 5.0, np.ones((1, 3)), np.zeros(3, dtype=int), 1)[0] == [[0.0]]


def weighted(duration, event, free, censoring, thresholds) -> np.ndarray:
    happened, weight = (x[:, 0] for x in known_outcome(duration, event, np.array([DAY]), censoring))
    positive = (1 - free) >= thresholds[:, None]  # (k, n)
    return (positive * happened * weight).mean(1) - (positive * ~happened * weight).mean(1) * thresholds / (
        1 - thresholds
    )


@pytest.mark.parametrize("competing", [False, True])
def test_weights_for_censoring_agree(competing: bool) -> None:
    """One consistent estimator against another, on the same 3,000 patients: within a tenth of the interval's width
    (measured: under a twenty-fifth), and the same thing where Ĝ is that of the flagged."""
    duration, event, free = patients(3_000, 5, competing=competing)
    censoring, thresholds = censoring_distribution(duration, event), np.linspace(0.05, 0.4, 8)
    found = net_benefit(duration, event, free, DAY, censoring, thresholds, n_boot=200)
    width = found.high - found.low
    assert (np.abs(weighted(duration, event, free, censoring, thresholds) - found.model) < width / 10).all()
    own = 1 - free >= 0.3
    inside = censoring_distribution(duration[own], event[own])
    same = net_benefit(duration[own], event[own], free[own], DAY, inside, np.array([0.3])).model
    assert same == pytest.approx(weighted(duration[own], event[own], free[own], inside, np.array([0.3])), abs=1e-9)


def test_censoring_that_depends_on_the_risk_harms_the_published_estimator_less() -> None:
    """High risks are followed shorter: against the truth, Kaplan–Meier in the flagged errs less than one Ĝ for all."""
    rng = np.random.default_rng(8)
    n = 60_000
    high = rng.random(n) < 0.3
    failure = rng.exponential(np.where(high, 500.0, 3_000.0))
    end = rng.exponential(np.where(high, 300.0, 4_000.0))
    duration, event = np.minimum(failure, end), (failure <= end).astype(np.int64)
    risk = -np.expm1(-DAY / np.where(high, 500.0, 3_000.0))
    censoring, thresholds = censoring_distribution(duration, event), np.array([0.3])
    truth = (risk * high).mean() - ((1 - risk) * high).mean() * 3 / 7
    found = net_benefit(duration, event, 1 - risk, DAY, censoring, thresholds)
    error = abs(found.model[0] - truth)
    assert error < 0.004  # 3 standard errors of the share and risk of 18,000 flagged patients
    assert abs(weighted(duration, event, 1 - risk, censoring, thresholds)[0] - truth) > 3 * error


@pytest.mark.parametrize("competing", [False, True])
def test_true_risks_are_worth_more_than_distorted_ones(competing: bool) -> None:
    """In expectation at every threshold: 12 samples of 2,000, mean paired difference above −2 standard errors, and
    clearly above 0 where the distortion moves patients across the threshold."""
    thresholds = np.linspace(0.05, 0.5, 10)
    noise = np.random.default_rng(9)
    gains: dict[str, list[np.ndarray]] = {"extreme": [], "high": [], "noisy": []}
    for seed in range(12):
        duration, event, free = patients(2_000, 100 + seed, competing=competing)
        censoring = censoring_distribution(duration, event)

        def curve(prediction: np.ndarray) -> np.ndarray:
            found = net_benefit(duration, event, prediction, DAY, censoring, thresholds)  # noqa: B023
            return found.model

        best = curve(free)
        gains["extreme"].append(best - curve(shifted(free, 2.0)))
        gains["high"].append(best - curve(shifted(free, 1.0, 1.0)))
        gains["noisy"].append(best - curve(shifted(free, 1.0, noise.normal(0, 1.0, free.size))))
    for name, each in gains.items():
        mean, se = np.nanmean(each, axis=0), np.nanstd(each, axis=0) / np.sqrt(12)
        assert (mean > -2 * se - 1e-4).all(), name
        assert (mean > 3 * se).sum() >= 4, name


def test_small_flagged_groups_give_no_figure() -> None:
    duration, event, _ = patients(200)
    free = np.append(np.full(9, 0.2), np.full(191, 0.8))
    censoring = censoring_distribution(duration, event)
    found = net_benefit(duration, event, free, DAY, censoring, np.array([0.1, 0.5, 0.9]), n_boot=20)
    assert np.isfinite(found.model).tolist() == [True, False, False]
    for column in (found.flagged, found.low, found.high, found.gain, found.gain_low, found.gain_high):
        assert np.isfinite(column).tolist() == [True, False, False]
    free[9] = 0.2
    found = net_benefit(duration, event, free, DAY, censoring, np.array([0.1, 0.5, 0.9]))
    assert np.isfinite(found.model).tolist() == [True, True, False]
    owner = np.arange(200)
    owner[:2] = 0  # nine patients, one of them with two rows
    found = net_benefit(duration, event, free, DAY, censoring, np.array([0.1, 0.5, 0.9]), subject_id=owner)
    assert np.isfinite(found.model).tolist() == [True, False, False]


def test_intervals_cover_and_joined_times_hardly_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    duration, event, free = patients(1_500, 4)
    censoring, thresholds = censoring_distribution(duration, event), np.linspace(0.05, 0.3, 4)
    assert np.unique(duration[(event > 0) & (duration <= DAY)]).size > nested.RESAMPLE_TIMES / 2
    exact = net_benefit(duration, event, free, DAY, censoring, thresholds, n_boot=150)
    monkeypatch.setattr(nested, "RESAMPLE_TIMES", 60)
    rough = net_benefit(duration, event, free, DAY, censoring, thresholds, n_boot=150)
    assert (exact.low < exact.model).all()
    assert (exact.model < exact.high).all()
    np.testing.assert_array_equal(exact.model, rough.model)
    width = exact.high - exact.low
    assert (np.abs(exact.low - rough.low) < width / 20).all()
    assert (np.abs(exact.high - rough.high) < width / 20).all()
    assert (exact.gain_high - exact.gain_low < width).all()  # what is common to both policies cancels
    again = net_benefit(duration, event, free, DAY, censoring, thresholds, n_boot=150)
    np.testing.assert_array_equal(rough.low, again.low)


def test_the_interval_is_about_as_wide_as_it_should_be() -> None:
    """The bootstrap's standard error of 800 patients against the spread over 150 samples (its own error: 6%)."""
    thresholds, values = np.array([0.2]), []
    for seed in range(150):
        duration, event, free = patients(800, 1_000 + seed)
        values.append(net_benefit(duration, event, free, DAY, censoring_distribution(duration, event), thresholds))
    spread = np.std([found.model[0] for found in values])
    duration, event, free = patients(800, 77)
    found = net_benefit(duration, event, free, DAY, censoring_distribution(duration, event), thresholds, n_boot=400)
    assert (found.high - found.low)[0] / (2 * 1.96) == pytest.approx(spread, rel=0.25)


def test_default_thresholds() -> None:
    free = patients(1_000)[2]
    found = default_thresholds(free)
    assert found.size == 50
    assert found[0] > 0
    assert found[-1] == pytest.approx(np.quantile(1 - free, 0.99))
    np.testing.assert_allclose(np.diff(found), found[0])
    rare = 1 - np.append(np.full(900, 1e-3), np.full(100, 0.5))
    assert default_thresholds(rare)[-1] == pytest.approx(5 * 0.0509)
    assert default_thresholds(np.stack([rare, np.full(1_000, 0.6)]))[-1] == pytest.approx(0.4)  # the widest range
    for constant in (np.zeros(20), np.ones(20)):
        assert ((default_thresholds(constant) > 0) & (default_thresholds(constant) < 1)).all()


def test_what_is_refused() -> None:
    duration, event, free = patients(100)
    censoring = censoring_distribution(duration, event)
    for wrong in ([0.2, 0.1], [0.0, 0.1], [0.5, 1.0], [0.1, 0.1]):
        with pytest.raises(ValueError, match="rising thresholds"):
            net_benefit(duration, event, free, DAY, censoring, np.array(wrong))
    with pytest.raises(EhrError, match="past the longest"):
        net_benefit(duration, event, free, 9_999.0, censoring, np.array([0.1]))
    with pytest.raises(EhrError, match="probabilities"):
        net_benefit(duration, event, free + 1, DAY, censoring, np.array([0.1]))


def test_a_risk_of_exactly_the_threshold_is_flagged() -> None:
    """1 − 0.8 is a hair below 0.2 in floating point."""
    duration, event = np.full(40, 2.0), np.repeat([1, 0], 20)
    found = net_benefit(
        duration, event, np.full(40, 0.8), 2.0, censoring_distribution(duration, event), np.array([0.2])
    )
    assert found.flagged[0] == 1.0
