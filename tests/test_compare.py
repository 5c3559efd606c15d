"""Bootstrap intervals and paired differences against resampling by hand, and what they refuse."""

from __future__ import annotations

import json
from dataclasses import dataclass

import numpy as np
import pytest

from ehrsequencing.errors import EhrError, Exit
from ehrsequencing.evaluation import compare, evaluated, sweep
from ehrsequencing.evaluation.compare import Evaluation, Interval, evaluate, paired_difference, resample_counts
from ehrsequencing.evaluation.metrics import brier, harrell_c, integrated_brier, uno_c
from ehrsequencing.evaluation.resampling import MIN_RESAMPLES
from ehrsequencing.evaluation.verdict import family_bound
from ehrsequencing.nonparametric import censoring_distribution
from ehrsequencing.predictions import Predictions
from ehrsequencing.timegrid import truncate

TAU = 1500.0
Outcome = tuple[np.ndarray, np.ndarray]


def patients(n: int, seed: int = 0, yearly: bool = False) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """duration, event and the true log hazard."""
    rng = np.random.default_rng(seed)
    truth = rng.normal(size=n)
    failure, censoring = rng.exponential(1000 * np.exp(-truth)), rng.exponential(1800, n)
    duration, event = np.minimum(failure, censoring), (failure <= censoring).astype(np.int64)
    return (np.ceil(duration / 365) * 365.0 if yearly else duration), event, truth


def predict(score: np.ndarray, points: int = 100, end: float = TAU) -> Predictions:
    times = np.linspace(0, end, points + 1)[1:]
    survival = np.exp(-np.exp(score)[:, None] * times / 1000)
    n = score.size
    return Predictions(np.arange(n), np.zeros(n, dtype="datetime64[us]"), score, times, survival)


def noisy(truth: np.ndarray, noise: float, seed: int) -> Predictions:
    return predict(truth + noise * np.random.default_rng(seed).normal(size=truth.size))


def prepare(duration: np.ndarray, event: np.ndarray, train: Outcome | None = None, **more: object) -> Evaluation:
    train = train or (duration, event)
    settings: dict = {"tau": TAU, "n_boot": 60} | more
    return Evaluation.of(duration, event, train_duration=train[0], train_event=train[1], **settings)


@pytest.mark.parametrize("yearly", [False, True])
def test_every_figure_equals_its_definition_on_every_resample(yearly: bool) -> None:
    duration, event, truth = patients(80, yearly=yearly)
    train = patients(300, 9, yearly)[:2]
    evaluation = prepare(duration, event, train, horizons=(365.0, 1000.0), n_boot=15)
    model = predict(np.round(truth, 1))
    figures = evaluation.score(model).figures
    cut = truncate(duration, event, TAU)
    times = np.linspace(0, TAU, 101)[1:]
    for b, counts in enumerate(evaluation.counts):
        rows = np.repeat(np.arange(80), counts)
        d, e, g = cut[0][rows], cut[1][rows], evaluation.censoring
        curve = model.survival_at(times)[rows]
        assert figures["harrell_c"][b] == pytest.approx(harrell_c(d, e, model.risk[rows]), abs=1e-12)
        assert figures["uno_c"][b] == pytest.approx(uno_c(d, e, model.risk[rows], g, TAU), abs=1e-12)
        assert figures["ibs"][b] == pytest.approx(integrated_brier(d, e, curve, times, g, TAU), abs=1e-12)
        for horizon in (365.0, 1000.0):
            at = model.survival_at(np.array([horizon]))[rows, 0]
            assert figures[f"brier@{horizon:g}"][b] == pytest.approx(brier(d, e, at, horizon, g), abs=1e-12)


def test_evaluate_gives_value_and_percentiles_by_name() -> None:
    duration, event, truth = patients(150)
    result = evaluate(
        predict(truth), duration, event,
        train_duration=duration, train_event=event, tau=TAU, horizons=(365.0,), n_boot=200,
    )  # fmt: skip
    assert list(result) == [
        "harrell_c", "uno_c", "harrell_c@365", "uno_c@365", "antolini_c", "auc@365", "mean_auc",
        "ibs", "brier@365", "scaled_ibs", "scaled_brier@365",
        *(f"{name}@365" for name in ("ici", "e50", "e90", "slope", "intercept", "oe")), "km_calibration",
    ]  # fmt: skip
    assert result["harrell_c"].value == harrell_c(*truncate(duration, event, TAU), truth)
    for interval in result.values():
        assert interval.low < interval.value < interval.high
        assert interval.skipped == 0
        assert json.loads(json.dumps(interval.to_json())) == {
            "value": interval.value, "low": interval.low, "high": interval.high,
        }  # fmt: skip


def test_blocks_of_events_and_resamples_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    duration, event, truth = patients(70)
    whole = prepare(duration, event, horizons=(365.0,)).score(predict(truth)).figures
    monkeypatch.setattr(sweep, "PAIRS_AT_ONCE", 500)
    monkeypatch.setattr(evaluated, "WEIGHTS_AT_ONCE", 300)
    parts = prepare(duration, event, horizons=(365.0,)).score(predict(truth)).figures
    for metric in whole:
        np.testing.assert_allclose(parts[metric], whole[metric], rtol=1e-12)


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    duration, event, truth = patients(60_000, 1)
    score = truth + np.random.default_rng(2).normal(size=truth.size)
    train = duration[:20_000], event[:20_000]
    censoring, times = censoring_distribution(*train), np.linspace(0, TAU, 101)[1:]
    expected = {
        "uno_c": uno_c(duration, event, score, censoring, TAU),
        "ibs": integrated_brier(duration, event, predict(score).survival_at(times), times, censoring, TAU),
    }
    covered = dict.fromkeys(expected, 0)
    for k in range(100):
        rows = slice(20_000 + 200 * k, 20_200 + 200 * k)
        evaluation = prepare(duration[rows], event[rows], train, n_boot=200, seed=k)
        intervals = evaluation.score(predict(score[rows]), only=("concordance", "errors")).intervals()
        for metric, value in expected.items():
            covered[metric] += intervals[metric].low < value < intervals[metric].high
    assert all(88 <= count <= 100 for count in covered.values()), covered


def test_several_seeds_are_averaged_and_widen_the_interval() -> None:
    duration, event, truth = patients(400)
    evaluation = prepare(duration, event, n_boot=400)
    seeds = [noisy(truth, 1.5, s) for s in range(3)]
    each = [evaluation.score(one).figures["uno_c"] for one in seeds]
    together = evaluation.score(seeds).figures["uno_c"]
    assert together[0] == pytest.approx(np.mean([figures[0] for figures in each]))
    spread = np.std([figures[0] for figures in each], ddof=1)
    fixed = np.mean(each, axis=0)[1:]  # were the seeds not drawn
    assert np.var(together[1:]) == pytest.approx(np.var(fixed) + spread**2 / 3, rel=0.25)
    both, patients_only = (Interval.of(np.append(together[0], drawn)) for drawn in (together[1:], fixed))
    assert spread**2 / 3 > 0.1 * np.var(fixed)
    assert both.high - both.low > patients_only.high - patients_only.low
    assert "that of who was evaluated, and that of the training seeds" in compare.INTERVAL_MEANING


def test_equal_seeds_are_one_model() -> None:
    duration, event, truth = patients(100)
    evaluation = prepare(duration, event)
    alone, thrice = evaluation.score(predict(truth)), evaluation.score([predict(truth)] * 3)
    np.testing.assert_allclose(alone.figures["uno_c"], thrice.figures["uno_c"])


def test_differences_are_paired() -> None:
    duration, event, truth = patients(300)
    evaluation = prepare(duration, event, n_boot=300)
    good, near, poor = (evaluation.score(noisy(truth, noise, 1)) for noise in (0.5, 0.6, 2.0))
    assert paired_difference(good, good) == Interval(0.0, 0.0, 0.0)
    worse = paired_difference(good, poor)  # poor − good
    assert worse.high < 0
    assert worse.value == pytest.approx(poor.figures["uno_c"][0] - good.figures["uno_c"][0])
    assert paired_difference(good, poor, "ibs").low > 0
    small, own = paired_difference(good, near), good.intervals()["uno_c"]
    assert small.high - small.low < (own.high - own.low) / 2
    one_sided = paired_difference(good, poor, level=0.90)
    assert worse.low < one_sided.low < one_sided.high < worse.high


def test_an_order_preserving_change_of_risk_is_no_difference_in_c() -> None:
    duration, event, truth = patients(200, yearly=True)
    evaluation, model = prepare(duration, event), predict(truth)
    scaled = Predictions(model.subject_id, model.prediction_time, model.risk * 1e-9, model.horizon_days, model.survival)
    assert paired_difference(evaluation.score(model), evaluation.score(scaled)) == Interval(0.0, 0.0, 0.0)


def test_a_constant_model_is_one_half_in_every_resample() -> None:
    duration, event, _ = patients(100)
    figures = prepare(duration, event).score(predict(np.zeros(100))).figures
    np.testing.assert_allclose(figures["harrell_c"], 0.5, atol=1e-12)
    np.testing.assert_allclose(figures["uno_c"], 0.5, atol=1e-12)


def test_scores_of_different_patients_are_not_compared() -> None:
    duration, event, truth = patients(60)
    one, other = (prepare(duration, event).score(predict(truth)) for _ in range(2))
    with pytest.raises(ValueError, match="one Evaluation"):
        paired_difference(one, other)


def test_resamples_without_comparable_pairs_are_skipped_and_counted() -> None:
    duration, event = np.array([10.0, 20.0, 30.0, 40.0]), np.array([1, 0, 0, 0])
    evaluation = prepare(duration, event, patients(200)[:2], tau=50.0, n_boot=500)
    scores = evaluation.score(predict(np.array([2.0, 3.0, 1.0, 0.0]), end=50.0))
    interval = scores.intervals()["harrell_c"]
    drawn = evaluation.counts[1:]
    without = int(((drawn[:, 0] == 0) | (drawn[:, 1:].sum(axis=1) == 0)).sum())
    assert interval.skipped == without > 100
    assert interval.value == pytest.approx(2 / 3)
    seen = scores.figures["harrell_c"][1:]
    assert np.isnan(seen).sum() == without
    assert interval.low == pytest.approx(np.nanquantile(seen, 0.025))
    assert scores.intervals()["ibs"].skipped == 0
    assert interval.to_json()["skipped"] == without


def test_no_events_at_all_is_an_error_not_a_number() -> None:
    duration, event = np.array([10.0, 20.0]), np.array([0, 0])
    evaluation = prepare(duration, event, patients(200)[:2], tau=50.0)
    with pytest.raises(EhrError, match="no two patients can be compared"):
        evaluation.score(predict(np.array([1.0, 2.0]), end=50.0))


def test_without_resamples_there_are_no_limits() -> None:
    duration, event, truth = patients(60)
    interval = prepare(duration, event, n_boot=0).score(predict(truth)).intervals()["uno_c"]
    assert (interval.low, interval.high, interval.skipped) == (None, None, 0)


def test_a_strangers_curve_that_is_too_coarse_or_too_short_is_named_not_guessed() -> None:
    duration, event, truth = patients(60)
    evaluation = prepare(duration, event, horizons=(375.0, 500.0, 1500.0))

    def names(model: Predictions) -> tuple[set[str], dict[str, str]]:
        scores = evaluation.score(model)
        shown = ("harrell_c", "uno_c", "ibs", "brier")
        assert set(scores.figures) | set(scores.not_computed) >= {"antolini_c", "mean_auc", "auc@375", "scaled_ibs"}
        return (
            {name for name in scores.figures if name in shown or name.startswith("brier")},
            {name: why for name, why in scores.not_computed.items() if name in shown or name.startswith("brier")},
        )

    computed, missing = names(predict(truth, points=20))
    assert computed == {"harrell_c", "uno_c", "ibs", "brier@375", "brier@500", "brier@1500"}
    assert missing == {}
    computed, missing = names(predict(truth, points=4))
    assert computed == {"harrell_c", "uno_c", "brier@375", "brier@1500"}
    assert "at least 20 curve points reaching 1500 days" in missing["ibs"]
    assert missing["brier@500"] == "the predictions have no point at 500 days"
    computed, missing = names(predict(truth, points=100, end=600.0))
    assert computed == {"harrell_c", "uno_c", "brier@375", "brier@500"}
    assert set(missing) == {"ibs", "brier@1500"}
    with pytest.raises(EhrError, match="has no ibs") as error:
        paired_difference(evaluation.score(predict(truth)), evaluation.score(predict(truth, points=4)), "ibs")
    assert error.value.code is Exit.BUNDLE


@pytest.mark.parametrize(
    ("more", "found"),
    [
        ({"tau": 1e5}, "horizon of 100000 days is past the longest training duration"),
        ({"horizons": (1600.0,)}, "reported horizon of 1600 days is past τ, 1500 days"),
        ({"horizons": (0.0,)}, "reported horizon must be above 0"),
    ],
)
def test_impossible_horizons_are_refused(more: dict, found: str) -> None:
    duration, event, _ = patients(500)
    with pytest.raises(EhrError, match=found) as error:
        prepare(duration, event, **more)
    assert error.value.code is Exit.COHORT


def test_rows_that_do_not_match_are_refused() -> None:
    duration, event, truth = patients(60)
    evaluation = prepare(duration, event)
    with pytest.raises(EhrError, match=r"expected the same 60 subjects .*found 59") as error:
        evaluation.score(predict(truth[:59]))
    assert error.value.code is Exit.BUNDLE
    with pytest.raises(EhrError, match="others"):
        evaluation.score([predict(truth), predict(truth).take(np.arange(59, -1, -1))])


def test_the_same_resamples_for_the_same_seed() -> None:
    np.testing.assert_array_equal(resample_counts(50, 20, 3), resample_counts(50, 20, 3))
    assert (resample_counts(50, 20, 3)[1:] != resample_counts(50, 20, 4)[1:]).any()
    counts = resample_counts(1000, 400, 0)
    assert (counts[0] == 1).all()
    assert (counts.sum(axis=1) == 1000).all()
    assert counts[1:].var() == pytest.approx(1.0, rel=0.02)  # multinomial


def test_a_patients_rows_are_drawn_together() -> None:
    owner = np.array([5, 5, 7, 9, 9, 9])
    counts = resample_counts(6, 50, 0, owner)
    assert (counts[:, 0] == counts[:, 1]).all()
    assert (counts[:, 3] == counts[:, 5]).all()
    assert (counts[:, [0, 2, 3]].sum(axis=1) == 3).all()


# --- competing risks, and several rows a patient ---------------------------------------------------------------------


@dataclass(frozen=True)
class WithCauses:
    """Predictions with cumulative incidences: the least that an evaluation reads."""

    subject_id: np.ndarray
    prediction_time: np.ndarray
    risk: np.ndarray
    horizon_days: np.ndarray
    cif: dict[str, np.ndarray]

    def _at(self, times: np.ndarray, cause: str) -> np.ndarray:
        knots = np.append(0.0, self.horizon_days)
        return np.stack([np.interp(times, knots, np.append(0.0, row)) for row in self.cif[cause]])

    def survival_at(self, times: np.ndarray) -> np.ndarray:
        return 1.0 - self._at(times, "outcome") - self._at(times, "death")

    def outcome_risk_at(self, times: np.ndarray) -> np.ndarray:
        return self._at(times, "outcome")


def with_causes(score: np.ndarray) -> WithCauses:
    """Constant hazards e^score and e^-score/2 a thousand days, whose incidences are known."""
    times = np.linspace(0, TAU, 101)[1:]
    one, two = np.exp(score)[:, None] / 1000, np.exp(-score)[:, None] / 2000
    gone = 1 - np.exp(-(one + two) * times)
    n = score.size
    cif = {"outcome": one / (one + two) * gone, "death": two / (one + two) * gone}
    return WithCauses(np.arange(n), np.zeros(n, dtype="datetime64[us]"), cif["outcome"][:, -1], times, cif)


def competing_patients(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    score = rng.normal(size=n)
    times = np.stack([rng.exponential(1000 * np.exp(-score)), rng.exponential(2000 * np.exp(score))])
    censoring = rng.exponential(1800, n)
    event = np.where(times.min(axis=0) <= censoring, times.argmin(axis=0) + 1, 0).astype(np.int64)
    return np.minimum(times.min(axis=0), censoring), event, score


def test_with_competing_events_every_figure_equals_its_definition_on_every_resample() -> None:
    duration, event, score = competing_patients(90)
    train = competing_patients(300, 9)[:2]
    evaluation = prepare(duration, event, train, horizons=(365.0,), n_boot=10)
    model = with_causes(np.round(score, 1))
    figures = evaluation.score(model).figures
    cut, times = truncate(duration, event, TAU), np.linspace(0, TAU, 101)[1:]
    for b, counts in enumerate(evaluation.counts):
        rows = np.repeat(np.arange(90), counts)
        d, e, g = cut[0][rows], cut[1][rows], evaluation.censoring
        free = 1.0 - model.outcome_risk_at(times)[rows]
        assert figures["harrell_c"][b] == pytest.approx(harrell_c(d, e, model.risk[rows]), abs=1e-6)
        assert figures["uno_c"][b] == pytest.approx(uno_c(d, e, model.risk[rows], g, TAU), abs=1e-6)
        assert figures["ibs"][b] == pytest.approx(integrated_brier(d, e, free, times, g, TAU), abs=1e-12)
        at = 1.0 - model.outcome_risk_at(np.array([365.0]))[rows, 0]
        assert figures["brier@365"][b] == pytest.approx(brier(d, e, at, 365.0, g), abs=1e-12)


def test_the_true_incidences_score_best_and_survival_alone_is_not_read_as_the_outcome_s() -> None:
    duration, event, score = competing_patients(4_000, 3)
    evaluation = prepare(duration, event, horizons=(1000.0,), n_boot=0)
    wanted = ("errors", "calibration")
    truth = evaluation.score(with_causes(score), only=wanted).figures
    for rival in (score + 0.3, score - 0.3, 0.6 * score, 1.5 * score):
        worse = evaluation.score(with_causes(rival), only=wanted).figures
        assert worse["ibs"][0] > truth["ibs"][0]
        assert worse["ici@1000"][0] > truth["ici@1000"][0]
    assert truth["ici@1000"][0] < 0.02
    model = with_causes(score)
    any_event = Predictions(
        model.subject_id, model.prediction_time, model.risk, model.horizon_days, model.survival_at(model.horizon_days)
    )
    assert "no cif_outcome" in evaluation.score(any_event, only=wanted).not_computed["ibs"]


def test_predictions_of_other_rows_are_refused_also_where_only_the_time_differs() -> None:
    duration, event, truth = patients(60)
    owner = np.repeat(np.arange(30), 2)
    evaluation = prepare(duration, event, subject_id=owner)
    model = predict(truth)
    visits = np.tile(np.array(["2020-01-01", "2021-01-01"], dtype="datetime64[us]"), 30)

    def rows(ids: np.ndarray, when: np.ndarray) -> WithCauses:
        return WithCauses(
            ids, when, model.risk, model.horizon_days, dict.fromkeys(("outcome", "death"), np.zeros((60, 100)))
        )

    first = rows(owner, visits)
    assert np.isfinite(evaluation.score([first, first]).figures["uno_c"][0])
    with pytest.raises(EhrError, match="others' prediction_time"):
        evaluation.score([first, rows(owner, visits + np.timedelta64(1, "D"))])
    with pytest.raises(EhrError, match="others"):
        evaluation.score(rows(np.arange(60), visits))


def test_repeating_every_patients_rows_leaves_the_interval_as_wide() -> None:
    """Two equal rows a patient carry no more knowledge than one; drawing rows instead of patients would believe so."""
    duration, event, truth = patients(300)
    once = prepare(duration, event, n_boot=300).score(predict(truth)).intervals()["ibs"]
    pair, model = np.repeat(np.arange(300), 2), predict(np.repeat(truth, 2))
    doubled = duration[pair], event[pair]
    model = Predictions(np.arange(600), model.prediction_time, model.risk, model.horizon_days, model.survival)
    naive = prepare(*doubled, n_boot=300).score(model).intervals()["ibs"]
    when = np.tile(np.array(["2020-01-01", "2021-01-01"], dtype="datetime64[us]"), 300)
    clustered = prepare(*doubled, n_boot=300, subject_id=pair).score(
        WithCauses(
            pair, when, model.risk, model.horizon_days, {"outcome": 1 - model.survival, "death": 0 * model.survival}
        )
    )
    wide = clustered.intervals()["ibs"]
    assert wide.value == pytest.approx(once.value)
    assert wide.high - wide.low == pytest.approx(once.high - once.low, rel=1e-9)
    assert naive.high - naive.low < 0.85 * (wide.high - wide.low)


# --- after a review ---------------------------------------------------------------------------------------------------


def test_few_resamples_give_no_interval() -> None:
    duration, event, truth = patients(100)
    few = prepare(duration, event, n_boot=MIN_RESAMPLES - 1).score(predict(truth)).intervals()["uno_c"]
    assert few.low is few.high is None
    mostly_missing = np.append(0.7, np.where(np.arange(1_000) < 900, np.nan, 0.6))
    assert Interval.of(mostly_missing).low is None


def test_outcomes_on_the_horizon_alone_have_harrell_s_c_and_a_reason_for_uno_s() -> None:
    duration, event = np.array([100.0, 100.0, 300.0, 400.0, 500.0]), np.array([1, 1, 0, 1, 0])
    scores = prepare(duration, event, tau=450.0, horizons=(100.0,), n_boot=30).score(predict(-duration / 300))
    assert np.isfinite(scores.figures["harrell_c@100"][0])
    assert "no two patients can be compared" in scores.not_computed["uno_c@100"]
    assert all(np.isfinite(values[0]) for values in scores.figures.values())


def test_the_best_of_many_equal_models_is_no_climb() -> None:
    duration, event, truth = patients(400)
    evaluation = prepare(duration, event, n_boot=300)
    simple = evaluation.score(noisy(truth, 1.5, 99), only=("concordance", "errors"))
    many = [evaluation.score(noisy(truth, 1.5, s), only=("concordance", "errors")) for s in range(1, 13)]
    one = family_bound(simple, many[:1])
    assert family_bound(simple, many) > one > 0
    gains = [scores.figures["uno_c"][0] - simple.figures["uno_c"][0] for scores in many]
    assert max(gains) < family_bound(simple, many)
