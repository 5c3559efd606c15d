"""The headline, sentence by sentence: every rule of the table, calibration, and how little data can tell."""

# ruff: noqa: E501  (whole sentences, as the page has them)

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from ehrsequencing.evaluation.sample_size import check
from ehrsequencing.report.calibrated import AGREEMENTS, calibration_finding, calibration_off
from ehrsequencing.report.contents import Difference, Interval, Row
from ehrsequencing.report.findings import best_of, headline, power
from ehrsequencing.report.verdicts import VERDICTS, contest_of

NONE = (float("nan"),) * 3


def made(model: str, value: float, kind: str = "strategy", **more: tuple[float, float, float]) -> Row:
    metrics = {"uno_c": Interval(value, value - 0.03, value + 0.03)}
    metrics |= {name.replace("_at", "@365"): Interval(*figures) for name, figures in more.items()}
    return Row(model, kind, "", (), None, None, None, None, (), metrics)


WIDE = made("wide", 0.80, "baseline")


def against(
    value: float,
    low: float,
    high: float,
    word: str = "",
    bounds: tuple[float, float, float] = NONE,
    pair: tuple[str, str] = ("lora", "wide"),
    why: str = "",
    ibs: tuple[float, float, float] | None = None,
) -> list[Difference]:
    metrics = {"uno_c": Interval(value, low, high)} | ({} if ibs is None else {"ibs": Interval(*ibs)})
    return [Difference(*pair, metrics, word, Interval(*bounds), why)]


def first_line(value: float, differences: list[Difference]) -> str:
    return headline([made("lora", value), WIDE], differences)[0].replace("\N{NO-BREAK SPACE}", " ")


BRANCHES: list[tuple[str, float, list[Difference], str]] = [
    ("undecided", 0.90, [],
     "Which is better is not decided: lora has Uno C 0.900 (0.870 to 0.930), wide 0.800 (0.770 to 0.830), and no paired "
     "interval of the difference was computed."),
    ("wins", 0.84, against(0.04, 0.01, 0.07, "climb"),
     "lora ranks patients better than the best simple model: Uno C 0.840 (0.810 to 0.870) against 0.800 (0.770 to "
     "0.830) for wide; the paired difference, +0.040 (+0.010 to +0.070), excludes zero, and by the rule below the gain "
     "is worth having (climb)."),
    ("wins on one side", 0.82, against(0.02, -0.001, 0.04, "climb", (0.02, 0.002, 0.037)),
     "lora probably ranks patients better than the best simple model: Uno C 0.820 (0.790 to 0.850) against 0.800 "
     "(0.770 to 0.830) for wide; the paired difference, +0.020 (−0.001 to +0.040), includes zero, but the one-sided 95% "
     "bound of the gain, +0.002, is above it (climb)."),
    ("wins by too little", 0.803, against(0.003, 0.001, 0.0045, "stay"),
     "A simple model suffices: lora ranks patients better, with Uno C 0.803 (0.773 to 0.833) against 0.800 (0.770 to "
     "0.830) for wide, but the paired difference, +0.003 (+0.001 to +0.004), is too small to matter: 0.005 or more is "
     "excluded with 95% certainty (stay)."),
    ("predicts better, ranks alike", 0.803,
     against(0.003, 0.001, 0.0045, "underpowered", (0.003, 0.0012, 0.0043), why="ibs_better", ibs=(-0.04, -0.05, -0.03)),
     "lora shows no gain in Uno C that matters over the best simple model, 0.803 (0.773 to 0.833) against 0.800 (0.770 to "
     "0.830) for wide: by the paired difference, +0.003 (+0.001 to +0.004), 0.005 or more is excluded with 95% certainty. "
     "Yet its integrated Brier score is better by 0.0400 (0.0300 to 0.0500), so that the rule below does not let the "
     "cheaper model stay (underpowered)."),
    ("ranks alike, Brier score undecided", 0.80,
     against(0.0, -0.004, 0.004, "underpowered", (0.0, -0.003, 0.003), why="ibs_undecided", ibs=(-0.002, -0.006, 0.002)),
     "A simple model ranks about as well: wide has Uno C 0.800 (0.770 to 0.830), the best transformer strategy is lora with "
     "0.800 (0.770 to 0.830); by the paired difference, 0.000 (−0.004 to +0.004), a gain of 0.005 or more is excluded with "
     "95% certainty. Whether its risks are closer to the truth is not decided: the integrated Brier score differs by −0.0020 "
     "(−0.0060 to +0.0020), and a gain of 1% is not excluded (underpowered)."),
    ("wins, Brier score worse", 0.82,
     against(0.02, -0.001, 0.04, "underpowered", (0.02, 0.002, 0.037), why="ibs_worse", ibs=(0.02, 0.015, 0.025)),
     "lora probably ranks patients better than the best simple model, but its risks are further from the truth: Uno C 0.820 "
     "(0.790 to 0.850) against 0.800 (0.770 to 0.830) for wide; the paired difference, +0.020 (−0.001 to +0.040), includes "
     "zero, yet the integrated Brier score is worse by 0.0200 (0.0150 to 0.0250), so that the rule below does not call it a "
     "gain (underpowered)."),
    ("wins, Brier score undecided", 0.82,
     against(0.02, 0.001, 0.04, "underpowered", (0.02, 0.003, 0.037), why="ibs_undecided", ibs=(0.002, -0.004, 0.008)),
     "lora ranks patients better than the best simple model: Uno C 0.820 (0.790 to 0.850) against 0.800 (0.770 to 0.830) for "
     "wide; the paired difference, +0.020 (+0.001 to +0.040), excludes zero. Whether its risks are further from the truth is "
     "not decided, the integrated Brier score differing by +0.0020 (−0.0040 to +0.0080), so that the rule below does not call "
     "it a gain (underpowered)."),
    ("no Brier score", 0.82, against(0.02, 0.001, 0.04, "underpowered", (0.02, 0.003, 0.037), why="ibs_missing"),
     "By Uno C alone the gain is worth having: lora has 0.820 (0.790 to 0.850), wide 0.800 (0.770 to 0.830); the paired "
     "difference, +0.020 (+0.001 to +0.040), excludes zero. The rule below also asks for the integrated Brier score, which "
     "could not be computed (underpowered)."),
    ("best of several", 0.84, against(0.04, 0.01, 0.07, "underpowered", why="family"),
     "lora has the higher Uno C, 0.840 (0.810 to 0.870) against 0.800 (0.770 to 0.830) for wide; the paired difference, "
     "+0.040 (+0.010 to +0.070), excludes zero. But it is the best of several models that were set against wide, and "
     "allowing for that choice the gain is not shown (underpowered)."),
    ("wins, not called a gain", 0.84, against(0.04, 0.01, 0.07, "underpowered"),
     "lora ranks patients better than the best simple model: Uno C 0.840 (0.810 to 0.870) against 0.800 (0.770 to "
     "0.830) for wide; the paired difference, +0.040 (+0.010 to +0.070), excludes zero. The rule below, which looks at the "
     "integrated Brier score too, does not call it a gain (underpowered)."),
    ("wins, not judged", 0.84, against(0.04, 0.01, 0.07),
     "lora ranks patients better than the best simple model: Uno C 0.840 (0.810 to 0.870) against 0.800 (0.770 to "
     "0.830) for wide; the paired difference, +0.040 (+0.010 to +0.070), excludes zero."),
    ("loses", 0.75, against(-0.05, -0.08, -0.02, "stay"),
     "A simple model wins: wide has Uno C 0.800 (0.770 to 0.830), the best transformer strategy is lora with 0.750 "
     "(0.720 to 0.780); the paired difference, −0.050 (−0.080 to −0.020), excludes zero."),
    ("suffices", 0.80, against(0.0, -0.003, 0.004, "stay"),
     "A simple model suffices: wide has Uno C 0.800 (0.770 to 0.830), the best transformer strategy is lora with 0.800 "
     "(0.770 to 0.830); the paired difference, 0.000 (−0.003 to +0.004), includes zero, and a gain of 0.005 or more is "
     "excluded with 95% certainty (stay)."),
    ("too small to say", 0.81, against(0.01, -0.01, 0.03, "underpowered"),
     "The sample is too small to say whether lora ranks patients better than the best simple model: Uno C 0.810 (0.780 "
     "to 0.840) against 0.800 (0.770 to 0.830) for wide; the paired difference, +0.010 (−0.010 to +0.030), includes "
     "zero, and a gain that matters (0.005) is not excluded (underpowered)."),
    ("ties", 0.81, against(0.01, 0.0, 0.03),
     "A simple model ties: lora has the higher Uno C, 0.810 (0.780 to 0.840) against 0.800 (0.770 to 0.830) for wide, "
     "but the paired difference, +0.010 (0.000 to +0.030), includes zero."),
    ("at least as good", 0.79, against(-0.01, -0.03, 0.01),
     "A simple model is at least as good: wide has Uno C 0.800 (0.770 to 0.830), the best transformer strategy is lora "
     "with 0.790 (0.760 to 0.820), and the paired difference, −0.010 (−0.030 to +0.010), includes zero."),
]  # fmt: skip


@pytest.mark.parametrize(("name", "value", "differences", "said"), BRANCHES, ids=[b[0] for b in BRANCHES])
def test_every_rule_has_its_sentence(name: str, value: float, differences: list[Difference], said: str) -> None:
    assert first_line(value, differences) == said


@pytest.mark.parametrize(
    "each", [b for b in BRANCHES if b[2] and b[2][0].why not in ("", "family")], ids=lambda b: b[0]
)
def test_a_file_without_reason_codes_is_read_by_its_bounds(each: Any) -> None:
    _, value, (difference,), said = each
    assert first_line(value, [replace(difference, why="")]) == said


def test_every_rule_is_tested() -> None:
    assert [name for name, *_ in BRANCHES] == [rule.name for rule in VERDICTS]


def test_a_pair_given_the_other_way_round_is_turned() -> None:
    turned = contest_of(made("lora", 0.84), WIDE, against(-0.04, -0.07, -0.01, pair=("wide", "lora")))
    assert turned.difference == Interval(0.04, 0.01, 0.07)


def test_names_with_braces_are_said_as_they_are() -> None:
    first, _ = headline([made("{x}", 0.84), WIDE], against(0.04, 0.01, 0.07, pair=("{x}", "wide")))
    assert first.startswith("{x} ranks patients better")


# Anybody's files, alone and against each other.


def test_a_lone_model_is_said_to_rank_and_to_be_calibrated() -> None:
    row = made("theirs", 0.8, "predictions", oe_at=(1.0, 0.9, 1.1), scaled_ibs=(0.2, 0.1, 0.3))
    first, findings = headline([row], [], [365.0])
    said = [text.replace("\N{NO-BREAK SPACE}", " ") for text in (first, *findings)]
    assert said == [
        "theirs ranks patients with Uno C 0.800 (0.770 to 0.830): of two patients, the one whose outcome comes first has "
        "the higher predicted risk about 80 times in 100.",
        "The risks of theirs at 1 year agree with what was observed: observed / expected 1.00 (0.90 to 1.10).",
        "It removes 20% of the squared error of one curve for everybody (scaled IBS 0.200 (0.100 to 0.300)).",
    ]


def test_a_lone_model_that_ranks_like_a_coin_is_said_to() -> None:
    first, _ = headline([made("theirs", 0.52, "predictions")], [])
    assert first.startswith("theirs is not shown to rank patients better than a coin: Uno C 0.520")


def test_two_files_are_set_against_each_other_as_given() -> None:
    rows = [made("theirs", 0.75, "predictions"), made("ours", 0.8, "predictions")]
    lost = headline(rows, against(-0.05, -0.08, -0.02, pair=("theirs", "ours")))[0]
    assert lost.startswith("The model it is set against wins: ours has Uno C 0.800")
    assert "the other is theirs with 0.750" in lost


def test_a_file_is_set_against_what_may_be_anything() -> None:
    rows = [made("theirs", 0.84, "predictions"), WIDE]
    won = headline(rows, against(0.04, 0.01, 0.07, pair=("theirs", "wide")))[0]
    assert won.startswith("theirs ranks patients better than the model it is set against: Uno C 0.840")


def test_nothing_scored_is_said() -> None:
    assert headline([], []) == ("No model could be scored.", [])


@pytest.mark.parametrize(
    ("oe", "slope", "said"),
    [
        (NONE, NONE, ""),
        ((1.2, 1.1, 1.3), NONE, "The risks of lora at 1 year are too low on average: observed / expected 1.20 (1.10 to 1.30)."),
        ((0.8, 0.7, 0.9), (1.0, 0.9, 1.1), "The risks of lora at 1 year are too high on average: observed / expected 0.80 "
         "(0.70 to 0.90), calibration slope 1.00 (0.90 to 1.10)."),
        ((1.0, 0.9, 1.1), (0.8, 0.7, 0.9), "The risks of lora at 1 year are right on average but too extreme: observed / "
         "expected 1.00 (0.90 to 1.10), calibration slope 0.80 (0.70 to 0.90)."),
        ((1.0, 0.9, 1.1), (1.2, 1.1, 1.3), "The risks of lora at 1 year are right on average but not spread enough: observed "
         "/ expected 1.00 (0.90 to 1.10), calibration slope 1.20 (1.10 to 1.30)."),
        ((1.0, 0.9, 1.1), (1.0, 0.9, 1.1), "The risks of lora at 1 year agree with what was observed: observed / expected "
         "1.00 (0.90 to 1.10), calibration slope 1.00 (0.90 to 1.10)."),
        ((1.9, 0.4, 4.5), (0.3, -1.2, 1.8), "The risks of lora at 1 year are not shown to be off, but could be by a factor of "
         "4.5 on average and far too extreme or spread far too little: observed / expected 1.90 (0.40 to 4.50), calibration "
         "slope 0.30 (−1.20 to 1.80)."),
        ((1.0, 0.7, 1.4), (0.4, 0.2, 0.6), "The risks of lora at 1 year are not shown to be off on average but too extreme: "
         "observed / expected 1.00 (0.70 to 1.40), calibration slope 0.40 (0.20 to 0.60)."),
    ],
)  # fmt: skip
def test_calibration_is_said_by_its_limits(oe: Any, slope: Any, said: str) -> None:
    found = calibration_finding(made("lora", 0.8, oe_at=oe, slope_at=slope), [365.0])
    assert found.replace("\N{NO-BREAK SPACE}", " ") == said
    assert len(AGREEMENTS) == 7


def test_the_horizon_at_which_the_risks_are_worst_is_told() -> None:
    figures = {"oe@365": (0.42, 0.23, 0.63), "slope@365": (3.1, -0.7, 9.2), "oe@1826": (0.99, 0.9, 1.1)}
    row = made("lora", 0.8, **figures)
    for horizons in ([365.0, 1826.0], [1826.0, 365.0]):
        assert calibration_finding(row, horizons).startswith("The risks of lora at 1 year are too high on average")
        assert calibration_off(row, horizons) == calibration_finding(row, horizons)
    assert "at 5 years agree with what was observed" in calibration_finding(row, [1826.0])
    assert calibration_off(row, [1826.0]) == ""


# What follows the first line.


def test_a_blend_without_weight_is_best_at_nothing() -> None:
    wide, frozen = (
        made("wide", 0.72, "baseline", ibs=(0.1427, 0.12, 0.16)),
        made("frozen", 0.71, ibs=(0.143, 0.12, 0.16)),
    )
    weightless = replace(made("lora+wide", 0.73, ibs=(0.14, 0.12, 0.16)), alpha=0.0)
    rows = [weightless, frozen, wide]
    assert best_of(rows) == wide
    assert best_of(rows, metric="ibs") == wide
    assert best_of(rows, "strategy") == frozen
    equal = [replace(made("a+wide", 0.72), alpha=0.3), made("a", 0.72), made("wide", 0.72, "baseline")]
    assert [row.model for row in (best_of(equal), best_of(equal, "strategy")) if row] == ["wide", "a"]


@pytest.mark.parametrize(
    ("ibs", "said"),
    [
        (None, "frozen is lowest: 0.1400 against 0.1430 for wide (lower is better; no paired interval was computed)."),
        ((-0.003, -0.004, -0.002), "frozen is best: 0.1400 against 0.1430 for wide, difference −0.0030 (−0.0040 to −0.0020) "
         "(lower is better)."),
        ((-0.003, -0.008, 0.002), "frozen has the lowest, 0.1400 against 0.1430 for wide, but is not distinguishable from it: "
         "difference −0.0030 (−0.0080 to +0.0020)."),
    ],
)  # fmt: skip
def test_the_best_brier_score_is_the_best_only_beyond_chance(ibs: Any, said: str) -> None:
    rows = [made("frozen", 0.71, ibs=(0.14, 0.1, 0.2)), made("wide", 0.72, "baseline", ibs=(0.143, 0.1, 0.2))]
    _, findings = headline(rows, against(-0.01, -0.03, 0.01, pair=("frozen", "wide"), ibs=ibs))
    opening = "By the integrated Brier score, which also sees calibration, "
    assert opening + said in [text.replace("\N{NO-BREAK SPACE}", " ") for text in findings]


def test_pretraining_helps_where_the_paired_difference_says_so() -> None:
    rows = [made("full", 0.82), made("frozen", 0.81), made("from-scratch", 0.75, "control"), WIDE,
            made("frozen-random", 0.80, "control")]  # fmt: skip
    differences = [
        *against(0.02, 0.01, 0.03, pair=("full", "wide")),
        *against(0.07, 0.04, 0.10, pair=("full", "from-scratch")),
        *against(0.01, -0.02, 0.04, pair=("frozen", "frozen-random")),
    ]
    _, findings = headline(rows, differences)
    said = next(f for f in findings if "Pretraining" in f).replace("\N{NO-BREAK SPACE}", " ")
    assert said == (
        "Pretraining helps: full with 0.820 (0.790 to 0.850) against from-scratch with 0.750 (0.720 to 0.780) for the "
        "control, difference +0.070 (+0.040 to +0.100). Pretraining is not shown to help: frozen with 0.810 (0.780 to 0.840) "
        "against frozen-random with 0.800 (0.770 to 0.830) for the control, difference +0.010 (−0.020 to +0.040)."
    )


def test_what_goes_unnoticed_is_never_nothing_and_names_its_pair() -> None:
    said = power([made("lora", 0.81), WIDE], against(0.001, -0.0005, 0.001), 222, 69)[-1]
    assert "between lora and wide smaller than about 0.001 would go unnoticed" in said


def test_a_blend_does_not_hide_what_the_transformer_does_alone() -> None:
    rows = [made("lora+wide", 0.84), made("lora", 0.78), WIDE]
    differences = [*against(0.04, 0.01, 0.07, pair=("lora+wide", "wide")), *against(-0.02, -0.04, -0.001)]
    first, findings = headline(rows, differences)
    assert first.startswith("The blend lora+wide ranks patients better than the best simple model")
    assert "By itself, without the wide model, the best transformer is lora" in findings[0]
    assert "worse than wide" in findings[0]


def test_a_blend_without_the_transformer_is_called_what_it_is() -> None:
    blend = replace(made("lora+wide", 0.84), alpha=0.0)
    _, findings = headline([blend, WIDE], against(0.04, 0.01, 0.07, pair=("lora+wide", "wide")))
    assert findings == [
        "In the blend lora+wide the transformer has no weight (α 0): it is the wide model by another name."
    ]


def test_a_control_as_good_as_the_strategies_is_named() -> None:
    rows = [made("lora", 0.82), made("from-scratch", 0.83, "control"), WIDE]
    _, findings = headline(rows, against(0.02, 0.01, 0.03))
    assert any(f.startswith("Pretraining is not shown to help: the control from-scratch") for f in findings)


def test_few_events_or_wide_intervals_are_said() -> None:
    rows = [made("lora", 0.81), WIDE]
    assert power(rows, against(0.01, -0.01, 0.03), 3_000, 400) == []
    said = " ".join(power(rows, against(0.01, -0.05, 0.07), 720, 36))
    assert "only 36 of 720" in said
    assert "smaller than about 0.09" in said
    vague = Row("lora", "strategy", "", (), None, None, None, None, (), {"uno_c": Interval(0.8, 0.7, 0.9)})
    assert power([vague, WIDE], [], 3_000, 400)[0].startswith("This can tell little")
    assert "<10 of 50" in power(rows, [], 50, 4)[0]


def test_too_few_events_to_evaluate_by_rileys_numbers_are_said() -> None:
    small = check(1_700, 412, 4.0, 5.0, 256, evaluated=(720, 36))
    said = power([made("lora", 0.81), WIDE], [], 720, 36, small)
    assert said[-1] == (
        "An evaluation of this size would place observed / expected no closer than 0.73 to 1.37, and a calibration slope "
        "no closer than ± 0.37, even of a perfect model."
    )
