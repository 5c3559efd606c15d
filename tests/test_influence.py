"""Influence functions against numerical derivatives and the bootstrap; quick intervals, differences, several seeds."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from ehrsequencing.errors import EhrError, Exit
from ehrsequencing.evaluation.compare import QUICK, Evaluation, Interval, Scores, evaluate, paired_difference
from ehrsequencing.evaluation.influence import Influence, influence_interval
from ehrsequencing.evaluation.verdict import difference_table, judge
from ehrsequencing.predictions import Predictions
from test_compare import TAU, competing_patients, noisy, patients, predict, prepare, with_causes

Z = 1.959963985


def test_influence_is_the_derivative_of_every_figure() -> None:
    """A row that is drawn a million and one times in a million: with ties, competing risks, strata and horizons."""
    duration, event, score = competing_patients(60)
    model = with_causes(np.round(score, 1))
    more = {"horizons": (400.0,), "stratum": np.arange(60) % 2}
    evaluation = prepare(duration, event, competing_patients(300, 9)[:2], **more, n_boot=0)
    quick = evaluation.quick(model)
    step = 2.0**-10  # exact in float32, as resamples are
    tilted = np.concatenate(
        [np.ones((1, 60)), np.ones((60, 60)) + step * np.eye(60), np.ones((60, 60)) - step * np.eye(60)]
    )
    figures = replace(evaluation, counts=tilted).score(model, only=tuple(QUICK)).figures
    assert set(figures) == set(quick.figures)
    for metric, (figure,) in quick.figures.items():
        slope = (figures[metric][1:61] - figures[metric][61:]) / (2 * step)
        assert figure.value == pytest.approx(figures[metric][0], abs=1e-12), metric
        np.testing.assert_allclose(figure.terms, slope, atol=3e-6, err_msg=metric)


@pytest.mark.slow
@pytest.mark.parametrize("causes", [1, 2])
def test_standard_errors_agree_with_the_bootstrap(causes: int) -> None:
    duration, event, score = patients(2_000) if causes == 1 else competing_patients(2_000)
    models = (noisy(score, 0.5, 1), noisy(score, 1.0, 2)) if causes == 1 else (with_causes(score), with_causes(-score))
    evaluation = prepare(duration, event, horizons=(600.0,), n_boot=1_000)
    families = ("concordance", "antolini", "auc")
    boot = [evaluation.score(model, only=families) for model in models]
    quick = [evaluation.quick(model, only=families) for model in models]
    assert set(quick[0].figures) == set(boot[0].figures)
    for metric, (figure,) in quick[0].figures.items():
        # 1,000 resamples know a standard error to 2.2%; the first order leaves out terms of about 1%
        assert figure.standard_error() == pytest.approx(np.std(boot[0].figures[metric][1:]), rel=0.07), metric
        ours, theirs = quick[0].intervals()[metric], boot[0].intervals()[metric]
        width = theirs.high - theirs.low
        assert ours.low == pytest.approx(theirs.low, abs=0.06 * width)
        assert ours.high == pytest.approx(theirs.high, abs=0.06 * width)
        fast, slow = (paired_difference(*scores, metric) for scores in (quick, boot))
        assert fast.value == pytest.approx(slow.value, abs=1e-9)
        assert fast.high - fast.low == pytest.approx(slow.high - slow.low, rel=0.08), metric


def test_rows_of_one_patient_are_not_independent() -> None:
    duration, event, truth = patients(400)
    once = prepare(duration, event, n_boot=0).quick(predict(truth)).intervals()
    pair = np.repeat(np.arange(400), 2)
    model = predict(truth[pair])
    when = np.tile(np.array(["2020-01-01", "2021-01-01"], dtype="datetime64[us]"), 400)
    model = Predictions(pair, when, model.risk, model.horizon_days, model.survival)
    twice = prepare(duration[pair], event[pair], n_boot=0, subject_id=pair).quick(model).intervals()
    rows = prepare(duration[pair], event[pair], n_boot=0)
    naive = rows.quick(replace(model, subject_id=np.arange(800))).intervals()
    for metric in once:
        width = twice[metric].high - twice[metric].low
        assert width == pytest.approx(once[metric].high - once[metric].low, rel=0.02), metric
        assert naive[metric].high - naive[metric].low == pytest.approx(width / np.sqrt(2), rel=0.02), metric


def test_several_seeds_add_their_variance_as_the_bootstrap_does() -> None:
    duration, event, truth = patients(400)
    evaluation = prepare(duration, event, n_boot=2_000)
    seeds = [noisy(truth, 1.5, s) for s in range(3)]
    boot, quick = evaluation.score(seeds, only=("concordance",)), evaluation.quick(seeds, only=("concordance",))
    each = quick.figures["uno_c"]
    alone = Influence(0.5, np.mean([figure.terms for figure in each], axis=0)).standard_error()
    spread = np.var([figure.value for figure in each], ddof=1) / 3
    assert spread > 0.1 * alone**2
    interval, drawn = quick.intervals()["uno_c"], boot.figures["uno_c"]
    assert interval.value == pytest.approx(drawn[0])
    assert interval.high - interval.low == pytest.approx(2 * Z * np.sqrt(alone**2 + spread), rel=0.02)
    assert np.std(drawn[1:]) == pytest.approx(np.sqrt(alone**2 + spread), rel=0.06)
    others = [noisy(truth, 1.5, s) for s in (0, 1, 5)]  # two seeds in common
    other = evaluation.quick(others, only=("concordance",))
    paired, unpaired = (
        paired_difference(quick, other),
        paired_difference(quick, evaluation.quick(others[:2], only=("concordance",))),
    )
    slow = paired_difference(boot, evaluation.score(others, only=("concordance",)))
    assert paired.high - paired.low == pytest.approx(slow.high - slow.low, rel=0.15)
    assert unpaired.high - unpaired.low > paired.high - paired.low


def test_quick_intervals_need_no_resamples_and_are_a_choice_of_evaluate() -> None:
    duration, event, truth = patients(300)
    settings: dict = {"train_duration": duration, "train_event": event, "tau": TAU, "horizons": (365.0,)}
    quick = evaluate(predict(truth), duration, event, **settings, interval="influence")
    by_hand = Evaluation.of(duration, event, **settings, n_boot=0).quick(predict(truth)).intervals()
    assert quick == by_hand
    boot = evaluate(predict(truth), duration, event, **settings, n_boot=10)
    fitted = {"ici@365", "e50@365", "e90@365", "slope@365", "intercept@365", "oe@365", "km_calibration"}
    assert set(quick) == set(boot) - fitted
    for metric, interval in quick.items():
        assert interval.value == pytest.approx(boot[metric].value, abs=1e-12)
        assert interval.low < interval.value < interval.high


def test_an_interval_of_no_kind_is_refused() -> None:
    duration, event, truth = patients(60)
    with pytest.raises(EhrError, match="no interval 'jackknife'") as error:
        evaluate(
            predict(truth), duration, event, train_duration=duration, train_event=event, tau=TAU, interval="jackknife"
        )
    assert error.value.code is Exit.USAGE


def test_a_perfect_ranking_has_no_standard_error_and_no_limits() -> None:
    n = 50
    duration, event = np.arange(1.0, n + 1), np.ones(n, dtype=np.int64)
    quick = prepare(duration, event, tau=40.0, n_boot=0).quick(predict(-duration, end=40.0), only=("concordance",))
    assert quick.intervals()["harrell_c"] == Interval(1.0, None, None)
    assert influence_interval(Influence(0.5, np.zeros(3)), scale="plain") == Interval(0.5, None, None)


def test_the_logit_interval_stays_within_0_and_1() -> None:
    terms = np.array([0.05, -0.05, 0.06, -0.06])
    near_one = influence_interval(Influence(0.97, terms))
    assert 0 < near_one.low < 0.97 < near_one.high < 1
    assert influence_interval(Influence(0.97, terms), scale="plain").high > 1


def test_quick_scores_are_paired_within_one_evaluation_only() -> None:
    duration, event, truth = patients(80)
    one, other = (prepare(duration, event, n_boot=0).quick(predict(truth)) for _ in range(2))
    with pytest.raises(ValueError, match="one Evaluation"):
        paired_difference(one, other)
    with pytest.raises(EhrError, match="has no ici@365"):
        paired_difference(one, one, "ici@365")


# --- the rule of three words, and its table ---------------------------------------------------------------------------


def test_the_table_judges_every_model_against_the_simple_one() -> None:
    duration, event, truth = patients(1_500)
    evaluation = prepare(duration, event, n_boot=300)
    models = {"cox": noisy(truth, 1.5, 7), "deep": noisy(truth, 0.3, 8), "same": noisy(truth, 1.5, 7)}
    scores = {
        name: evaluation.score(model, only=("concordance", "antolini", "errors")) for name, model in models.items()
    }
    table = {row.model: row for row in difference_table(scores, "cox")}
    assert list(table) == ["deep", "same"]
    assert table["deep"].verdict.word == "climb"
    assert table["deep"].differences["uno_c"].low > 0 > table["deep"].differences["ibs"].high
    assert table["same"].verdict.word == "stay"
    entries = table["deep"].to_json()
    assert [entry["metric"] for entry in entries] == ["uno_c", "ibs", "antolini_c"]
    assert entries[0]["word"] == "climb"
    assert "word" not in entries[1]
    assert entries[0]["low"] < entries[0]["low90"] < entries[0]["high90"] < entries[0]["high"]
    turned = {row.model: row for row in difference_table(scores, "deep")}  # the dearer model loses
    assert turned["cox"].verdict.word == "stay"
    with pytest.raises(EhrError, match="no scores of 'kaplan-meier'"):
        difference_table(scores, "kaplan-meier")


def test_without_a_curve_the_verdict_is_underpowered_and_says_what_c_alone_says() -> None:
    duration, event, truth = patients(1_500)
    evaluation = prepare(duration, event, n_boot=300)
    simple, good = evaluation.score(noisy(truth, 1.5, 7)), noisy(truth, 0.3, 8)
    bare = Predictions(good.subject_id, good.prediction_time, good.risk, np.zeros(0), np.zeros((1_500, 0)))
    verdict = judge(simple, evaluation.score(bare))
    assert verdict.word == "underpowered"
    assert verdict.gain_ibs is None
    assert "by C alone: climb" in verdict.reason
    assert "curve points" in str(verdict)
    (row,) = difference_table({"cox": simple, "bare": evaluation.score(bare)}, "cox")
    assert list(row.differences) == ["uno_c"]
    assert "no IBS" in row.to_json()[0]["reason"]
    assert row.to_json()[0]["why"] == "ibs_missing"


@pytest.mark.parametrize(
    ("gain", "spread", "ibs", "ibs_spread", "word", "why"),
    [
        (0.003, 0.0007, 0.10, 0.002, "underpowered", "ibs_better"),
        (0.000, 0.0007, 0.14, 0.002, "underpowered", "ibs_undecided"),
        (0.030, 0.0050, 0.15, 0.002, "underpowered", "ibs_worse"),
        (0.030, 0.0050, 0.1425, 0.01, "underpowered", "ibs_undecided"),
        (0.030, 0.0500, 0.14, 0.002, "underpowered", "c_undecided"),
        (0.030, 0.0050, 0.13, 0.002, "climb", ""),
        (0.000, 0.0007, 0.14, 0.0001, "stay", ""),
    ],
)
def test_underpowered_has_its_reason(
    gain: float, spread: float, ibs: float, ibs_spread: float, word: str, why: str
) -> None:
    evaluation, rng = prepare(*patients(80)[:2], n_boot=0), np.random.default_rng(0)
    noise = np.append(0.0, rng.normal(size=500))
    simple = Scores(evaluation, {"uno_c": np.full(501, 0.8), "ibs": np.full(501, 0.14)}, {})
    dearer = Scores(evaluation, {"uno_c": 0.8 + gain + spread * noise, "ibs": ibs + ibs_spread * noise}, {})
    found = judge(simple, dearer)
    assert (found.word, found.why) == (word, why)
    entry = difference_table({"simple": simple, "dearer": dearer}, "simple")[0].to_json()[0]
    assert entry.get("why", "") == why


def test_without_resamples_nothing_can_be_said() -> None:
    duration, event, truth = patients(200)
    evaluation = prepare(duration, event, n_boot=0)
    assert judge(evaluation.score(predict(truth)), evaluation.score(predict(-truth))).word == "underpowered"
