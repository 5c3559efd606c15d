"""The report: what it says by its rules, what it must never show, and that it stands on its own."""

from __future__ import annotations

import itertools
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import polars as pl
import pytest
from lifelines import AalenJohansenFitter

from ehrsequencing.cohort.attrition import suppress_attrition
from ehrsequencing.errors import EhrError, Exit
from ehrsequencing.evaluation.calibration import calibration_curve
from ehrsequencing.report import (
    courses,
    figures,
    read_inputs,
    readme_figure,
    render,
    write_report,
    write_report_from,
)
from ehrsequencing.report.contents import Interval, Row, Run
from ehrsequencing.report.drawing import COLORS, PALETTE, color
from ehrsequencing.report.explained import attributions_of
from ehrsequencing.report.gallery import FIGURES
from ehrsequencing.report.inputs import read_runs
from ehrsequencing.report.patients import risk_thirds
from ehrsequencing.report.summary import ABSENT
from ehrsequencing.report.summary import summarise_folder as summarise
from ehrsequencing.report.tripod import ITEMS, answers
from ehrsequencing.timegrid import truncate
from report_study import (
    ATTRIBUTIONS,
    ROWS,
    Fake,
    Page,
    history,
    row,
    write_competing,
    write_lone,
    write_study,
    write_trajectories,
)


def page_of(folder: Path) -> tuple[str, Page]:
    html = write_report(folder).read_text(encoding="utf-8")
    return html, Page(html)


def section(html: str, hook: str) -> str:
    """The text of the element with this data-test hook, tags taken out."""
    found = re.search(rf"<(\w+)[^>]* data-test-{hook}[^>]*>(.*?)</\1>", html, re.S)
    assert found is not None, hook
    return " ".join(re.sub(r"<[^>]+>", " ", found[2]).replace("&#39;", "'").split())


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_study(tmp_path_factory.mktemp("report") / "demo")


@pytest.fixture
def without_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes most of the time; the template must hold without any figure, too."""
    monkeypatch.setattr(render, "draw", lambda _: dict.fromkeys(FIGURES, ()))


@pytest.fixture(scope="module")
def html(study: Path) -> str:
    return page_of(study)[0]


@pytest.fixture(scope="module")
def full(study: Path) -> Summary:
    return summarise(study)


def test_the_page_is_whole_small_and_loads_nothing(html: str) -> None:
    page = Page(html)
    assert page.stack == []
    assert len(html.encode()) < 2_000_000
    assert "<script" not in html
    assert "http" not in html.replace("http-equiv", "")
    assert all(value.startswith("#") for value in page.values("href"))
    assert not page.values("src")
    assert not re.search(r"url\((?!#)|@import", html)


def test_ids_are_unique_and_every_reference_has_its_target(html: str) -> None:
    page = Page(html)
    ids = page.values("id")
    assert len(ids) == len(set(ids))
    wanted = {v[1:] for v in page.values("href")} | set(re.findall(r"url\(#([^)]+)\)", html))
    wanted |= {word for value in page.values("aria-labelledby") for word in value.split()}
    assert wanted <= set(ids)


def test_every_figure_is_there_with_a_title_and_a_description(html: str) -> None:
    found = re.findall(r'data-test-figure="(\w+)"', html)
    assert found == [name for name in FIGURES if name not in ("incidence", "trajectories")
                     for _ in range(2 if name == "calibration" else 1)]  # fmt: skip
    assert html.count('role="img"') == html.count("<desc ") == len(found)
    assert "data-test-missing=" not in html


def test_every_figure_has_its_numbers_in_a_table(html: str) -> None:
    drawn = set(re.findall(r'data-test-figure="(\w+)"', html))
    with_table = set(re.findall(r'data-test-numbers="(\w+)"', html))
    assert drawn - with_table == {"flow", "influence"}
    assert 'data-test-table="attrition"' in html
    assert 'data-test-table="codes"' in html


def test_text_in_figures_is_text(html: str) -> None:
    for model in ("lora+wide", "boosting", "frozen-random"):
        assert re.search(rf"<text[^>]*>{re.escape(model)}</text>", html)


def test_the_same_data_gives_the_same_bytes(full: Summary, html: str) -> None:
    found = full
    assert str(courses.thirds(found.thirds)) in html
    last = [curve for curve in found.calibration if curve.horizon == 1826.0]
    assert str(figures.calibration(last, "5 years", "calibration1")) in html


def test_rows_are_sorted_by_kind_then_by_uno_c(html: str) -> None:
    models = re.findall(r'data-test-row="([^"]+)"', html)
    assert models[:3] == ["oracle", "lora+wide", "full+wide"]
    assert models[-5:] == ["wide", "cox", "boosting", "age-sex", "kaplan-meier"]
    assert models[-7:-5] == ["from-scratch", "frozen-random"]
    assert re.search(r'data-test-row="lora\+wide" class="best" data-test-best', html)
    assert html.count(" data-test-best") == 1


def test_no_identifier_no_path_no_machine(study: Path, html: str) -> None:
    for subject in pl.read_parquet(study / "cohort" / "cohort.parquet")["subject_id"]:
        assert str(subject) not in html
    for private in (str(study), str(study.parent), "/home", "jane", "ward-pc", "/tmp"):
        assert private not in html
    assert "synthea …/csv" in section(html, "provenance")


def test_small_counts_are_suppressed(html: str) -> None:
    assert "Patients cut to their most recent visits &lt;10" in section(html, "recorded")
    assert "only &lt;10 tuning events (under 20)" in section(html, "warnings")
    assert "fewer than 5 training patients" in section(html, "warnings")
    table = section(html, "attrition")
    assert re.search(r"history .* follow_up no record afterwards", table)
    assert "12 together 900" in table
    assert not re.search(r"\b(905|7|5) ", table)


@pytest.mark.usefixtures("without_figures")
def test_markup_in_sentences_is_escaped(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>"
    rows = [*ROWS, row(f"x{evil}", "strategy", 0.7, why=evil, notes=[evil])]
    folder = write_study(
        tmp_path / "s", study=evil, rows=rows, task={"name": evil, "outcome": {"code": evil}}, warnings=[evil],
        recipe={"sentence": evil, "departures": [evil]},
    )  # fmt: skip
    html, page = page_of(folder)
    assert "<script" not in html
    assert page.stack == []
    assert html.count("&lt;script&gt;alert(1)") >= 9


def test_markup_in_a_models_name_is_escaped_in_figures() -> None:
    drawn = figures.forest([Row("<b>&$x$", "strategy", "", (), None, None, None, None, (), {"uno_c": Interval(0.7)})])
    assert "<b>" not in drawn
    assert drawn.count("&lt;b&gt;&amp;$x$") == 2


def test_many_strategies_go_on_to_a_second_figure() -> None:
    x = np.arange(1.0, 4.0)
    drawn = figures.training([Run(f"lora-{k}", 0, None, x, x / 10, x / 20, x / 5, selected=k % 3) for k in range(6)])
    assert len(drawn) == 2
    ids = [set(Page(svg).values("id")) for svg in drawn]
    assert not ids[0] & ids[1]


# The first line (its rules: test_findings.py).


def test_the_headline_of_the_page_is_that_of_the_rules(html: str) -> None:
    assert section(html, "headline").startswith("The blend lora+wide ranks patients better than the best simple model")
    assert "excludes zero" in section(html, "headline")


# What may be missing.


@pytest.mark.usefixtures("without_figures")
def test_a_small_study_in_folds_says_how_little_it_tells(tmp_path: Path) -> None:
    rows = tuple(r for r in ROWS if r["kind"] != "oracle")
    fake = Fake(n=720, rows=rows, event_rate=0.03, folds=5, difference=(0.016, -0.06, 0.09))
    html, page = page_of(write_study(tmp_path / "s", fake))
    assert page.stack == []
    assert "This can tell little" in section(html, "power")
    assert section(html, "headline").startswith("The sample is too small to say whether the blend lora+wide")
    assert "out of fold" in section(html, "evaluated")


def test_nothing_but_the_comparison(tmp_path: Path) -> None:
    bare = {"study": "bare", "n": 40, "events": 4, "tau": 365.0, "rows": [row("cox", "baseline", 0.7)]}
    (tmp_path / "comparison.json").write_text(json.dumps(bare), encoding="utf-8")
    html, page = page_of(tmp_path)
    assert page.stack == []
    absent = set(re.findall(r'data-test-missing="(\w+)"', html))
    assert absent == set(ABSENT)
    assert html.count("The cohort was not kept beside this report.") == 7
    assert "40 patients, &lt;10 of them" in html


@pytest.mark.usefixtures("without_figures")
@pytest.mark.parametrize("part", ["cohort", "predictions", "models", "study.json"])
def test_a_part_that_is_missing_is_named_not_fatal(tmp_path: Path, part: str) -> None:
    folder = write_study(tmp_path / "s")
    (folder / part).rename(tmp_path / "elsewhere")
    assert page_of(folder)[1].stack == []


def test_rows_without_intervals_metrics_or_seeds(tmp_path: Path) -> None:
    odd = [
        row("lora", "strategy", 0.8, metrics={"uno_c": {"value": 0.8, "low": None, "high": None}}, seeds=[]),
        row("full", "strategy", 0.8, metrics={}),
        row("cox", "baseline", 0.7, metrics={"uno_c": {"value": float("nan"), "low": None, "high": None}}),
    ]
    _, page = page_of(write_study(tmp_path / "s", Fake(histories=False), rows=odd, differences=[]))
    assert page.stack == []
    assert not re.search(r"\bnan\b", page.text)


def test_few_events_leave_out_the_calibration_plot(tmp_path: Path) -> None:
    found = summarise(write_study(tmp_path / "s", Fake(n=120, event_rate=0.01, histories=False)))
    assert found.calibration == ()
    assert found.missing["calibration"].startswith("Too few patients or events")
    assert found.thirds == ()
    assert found.missing["thirds"].startswith("Too few patients or events")


def test_an_unfinished_study_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EhrError, match="not finished") as caught:
        write_report(tmp_path)
    assert caught.value.code == Exit.BUNDLE
    assert list(tmp_path.iterdir()) == []


def test_predictions_of_another_cohort_are_refused(tmp_path: Path) -> None:
    folder = write_study(tmp_path / "s", cohort_fingerprint="0" * 32)
    with pytest.raises(EhrError, match="another cohort"):
        write_report(folder)
    assert not (folder / "report.html").exists()


# Small cells.


def consistent_removals(start: str, groups: list[Any], rules: int) -> list[tuple[int, ...]]:
    """All removals (0 to 30 a rule) that would print the same table."""
    printed = []
    for removed in itertools.product(range(31), repeat=rules):
        steps, remaining = [("subjects", "", 0, 100)], 100
        for k, r in enumerate(removed):
            remaining -= r
            steps.append((str(k), "", r, remaining))
        if suppress_attrition(steps) == (start, groups):
            printed.append(removed)
    return printed


@pytest.mark.parametrize("removed", [(9, 9), (1, 30), (30, 1), (9, 0), (4, 6)])
def test_no_small_removal_can_be_worked_out(removed: tuple[int, int]) -> None:
    steps = [
        ("subjects", "", 0, 100),
        ("0", "", removed[0], 100 - removed[0]),
        ("1", "", removed[1], 100 - sum(removed)),
    ]
    printed = suppress_attrition(steps)
    possible = consistent_removals(*printed, 2)
    assert removed in possible or printed[0] == "withheld"
    for k, count in enumerate(removed):
        if 0 < count < 10 and printed[0] != "withheld":
            assert len({p[k] for p in possible}) > 1


def test_a_cohort_that_lost_few_hides_where_it_started() -> None:
    start, groups = suppress_attrition([("subjects", "", 0, 100), ("a", "", 3, 97)])
    assert (start, groups[0].removed, groups[0].remaining) == ("withheld", "<10", "97")


def test_curves_stop_where_few_are_at_risk() -> None:
    rng = np.random.default_rng(0)
    duration, risk = rng.uniform(1, 1000, 90), rng.normal(size=90)
    found = risk_thirds("m", 0, risk, duration, np.ones(90, dtype=np.int64), 1000.0)
    assert found is not None
    third = (risk[:, None] > np.quantile(risk, [1 / 3, 2 / 3])).sum(axis=1)
    for k, curve in enumerate(found.curves):
        own = duration[third == k]
        assert (own >= curve.times[-1]).sum() >= 10
        assert curve.at_risk[0] == "30"
        assert curve.at_risk[-1] in ("<10", "0")


def test_a_risk_that_is_the_same_for_all_has_no_thirds() -> None:
    ones = np.ones(90)
    assert risk_thirds("m", 0, ones, ones, np.ones(90, dtype=np.int64), 10.0) is None


def grouped(had: tuple[int, ...], size: int = 60) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Risk, duration and event of groups of rising risk, each with so many outcomes by 500 of 1000 days."""
    event = np.concatenate([np.arange(size) < k for k in had]).astype(np.int64)
    return np.arange(event.size, dtype=np.float64), np.where(event == 1, 500.0, 1000.0), event


@pytest.mark.parametrize(
    ("had", "labels"),
    [
        ((0, 20, 40), ["lowest third", "middle third", "highest third"]),
        ((3, 20, 40), ["lower half", "upper half"]),
        ((20, 20, 57), ["lower half", "upper half"]),
        ((3, 3, 40), None),
    ],
)
def test_groups_of_risk_give_no_small_count_away(had: tuple[int, ...], labels: list[str] | None) -> None:
    found = risk_thirds("m", 0, *grouped(had), 1000.0)
    assert (found and [curve.label for curve in found.curves]) == labels


def test_numbers_at_risk_do_not_differ_by_a_few() -> None:
    risk, duration, event = grouped((20, 20, 20))
    duration[:60:9] = 100.0  # seven leave early
    found = risk_thirds("m", 0, risk, duration, event, 1000.0)
    assert found is not None
    assert found.curves[0].at_risk[:3] == ("60", "–", "–")
    for curve in found.curves:
        shown = [int(text) for text in curve.at_risk if text.isdigit()]
        assert all(a == b or a - b >= 10 for a, b in itertools.pairwise(shown))


@pytest.mark.parametrize(
    ("had", "sizes"),
    [
        ((3, 4, 5, 30, 57, 58), [180, 180]),
        ((20, 30, 40, 10, 20, 50), [60] * 6),
        ((3, 3, 3, 3, 3, 3), [360]),
    ],
)
def test_calibration_groups_have_outcomes_enough_to_hide_each(had: tuple[int, ...], sizes: list[int]) -> None:
    risk, duration, event = grouped(had)
    free = 1.0 - (risk // 60) / 10
    assert calibration_curve(duration, event, free, 999.0, groups=6, fewest=10).n.tolist() == sizes


def test_thirds_separate_the_truth(full: Summary) -> None:
    thirds = full.thirds
    assert [t.model for t in thirds] == ["lora", "wide"]
    for t in thirds:
        ends = [curve.share[-1] for curve in t.curves]
        assert ends[0] > ends[1] > ends[2]


def test_calibration_shows_risks_near_the_truth(full: Summary) -> None:
    shown = [curve for curve in full.calibration if curve.horizon == 1826.0]
    assert [c.model for c in shown] == ["lora", "wide", "lora+wide"]
    for curve in shown:
        assert np.all(np.diff(curve.predicted) > 0)
        assert np.all((curve.low <= curve.observed) & (curve.observed <= curve.high))
        assert np.corrcoef(curve.predicted, curve.observed)[0, 1] > 0.8


# Parts.


def test_runs_are_read_by_model_seed_and_fold(tmp_path: Path) -> None:
    for name in ("lora-8-2", "frozen-random-0-fold4"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "history.json").write_text(json.dumps(history("lora", np.random.default_rng(1))))
    found = [(run.model, run.seed, run.fold) for run in read_runs(tmp_path)]
    assert found == [("frozen-random", 0, 4), ("lora-8", 2, None)]


def test_a_model_has_one_color() -> None:
    assert len(set(COLORS.values())) == len(COLORS)
    assert color("full+wide") == COLORS["full"]
    assert color("lora-8") == color("lora-8+wide")


@pytest.mark.parametrize("suffix", [".svg", ".png"])
def test_the_readme_figure_stands_alone(study: Path, tmp_path: Path, suffix: str) -> None:
    out = readme_figure(study, tmp_path / "docs" / f"forest{suffix}")
    start = out.read_bytes()
    assert start.startswith(b"<svg xmlns" if suffix == ".svg" else b"\x89PNG")
    assert len(start) < 200_000
    if suffix == ".svg":
        assert ElementTree.fromstring(start).tag.endswith("svg")
        assert b"http" not in start.replace(b'xmlns="http://www.w3.org/2000/svg"', b"")
    assert [p.name for p in out.parent.iterdir()] == [out.name]


def test_a_readme_figure_of_another_type_is_refused(study: Path, tmp_path: Path) -> None:
    with pytest.raises(EhrError, match=r"\.svg or \.png"):
        readme_figure(study, tmp_path / "forest.pdf")


# Competing events, trajectories, and studies that prove nothing.


@pytest.fixture(scope="module")
def competing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_competing(tmp_path_factory.mktemp("competing") / "study")


def test_with_competing_events_nothing_is_by_kaplan_meier(competing: Path) -> None:
    html, _ = page_of(competing)
    text = re.sub(r"<[^>]+>", " ", html)
    assert "Aalen–Johansen" in text
    assert [m.start() for m in re.finditer("(?<!reverse )Kaplan–Meier", text)] == [
        text.index("Kaplan–Meier curve would overstate")
    ]
    assert "with the competing event “death” first" in section(html, "evaluated")
    assert "death: first event D" in section(html, 'facts="outcome"')


def test_curves_by_third_are_incidences_of_the_outcome() -> None:
    rng = np.random.default_rng(0)
    risk = rng.normal(size=600)
    times = np.stack([rng.exponential(900 * np.exp(-risk)), rng.exponential(1_500, 600), rng.exponential(2_000, 600)])
    duration, event = truncate(times.min(axis=0), np.array([1, 2, 0])[times.argmin(axis=0)], 1_000.0)
    found = risk_thirds("m", 0, risk, duration, event, 1_000.0)
    assert found is not None
    assert found.competing
    highest = risk > np.quantile(risk, 2 / 3)
    theirs = AalenJohansenFitter(jitter_level=0).fit(duration[highest], event[highest], 1)
    expected = theirs.predict(found.curves[2].times[-1])
    assert found.curves[2].share[-1] == pytest.approx(float(expected), abs=1e-9)
    ends = [curve.share[-1] for curve in found.curves]
    assert ends[0] < ends[1] < ends[2]


def test_true_incidences_lie_on_the_observed_ones(competing: Path) -> None:
    found = summarise(competing)
    assert [cause.cause for cause in found.incidence] == ["outcome", "death"]
    for cause in found.incidence:
        np.testing.assert_allclose(cause.predicted["lora"], cause.observed, atol=0.04)
    for curve in found.calibration:
        assert np.corrcoef(curve.predicted, curve.observed)[0, 1] > 0.9
        assert abs(curve.predicted.mean() - curve.observed.mean()) < 0.04


def test_a_cause_with_few_events_is_neither_counted_nor_drawn(tmp_path: Path) -> None:
    folder = write_competing(tmp_path / "s", n=120, rate=0.03)
    counts = json.loads((folder / "comparison.json").read_text())["causes"]
    assert 0 < counts["outcome"] < 10 <= counts["death"]
    found = summarise(folder)
    assert found.causes == (("outcome", "<10"), ("death", str(counts["death"])))
    assert [cause.cause for cause in found.incidence] == ["death"]


def test_example_patients_are_drawn_over_their_visits_by_number(competing: Path, tmp_path: Path) -> None:
    assert summarise(competing).trajectories == ()
    folder = write_competing(tmp_path / "s", n=200)
    write_trajectories(folder)
    found = summarise(folder).trajectories
    assert [(t.patient, t.days.tolist(), t.risk.tolist()) for t in found] == [
        (1, [0.0, 900.0], [0.1, 0.3]),
        (2, [0.0, 40.0], [0.4, 0.2]),
    ]
    drawn = courses.trajectories(found, "5 years")
    assert "patient 1: 2 visits, 10% at the first, 30% at the last" in drawn


@pytest.mark.usefixtures("without_figures")
def test_a_hundred_patients_prove_nothing_and_the_report_says_so(tmp_path: Path) -> None:
    """About 100 patients in five folds, some 25 events: the first screen says how little that can tell."""
    folder = write_competing(tmp_path / "s", n=100, rate=0.30)
    events = json.loads((folder / "comparison.json").read_text())["events"]
    assert 15 <= events <= 30
    html, page = page_of(folder)
    header = re.sub(r"<[^>]+>", " ", html[html.index("<header ") : html.index("</header>")])
    assert f"only {events} of 100 evaluated patients had the outcome" in header
    assert "under 100 events models are hard to rank" in header
    assert "0.24 wide" in header
    assert "A simple model ties" in header
    assert "read the order of the models below as undecided" in header
    assert page.stack == []


# TRIPOD+AI, limitations, subgroups, one model alone, dark mode.


def test_the_checklist_is_complete_and_every_place_it_names_exists(html: str) -> None:
    numbers = [item.number for item in ITEMS]
    assert len(numbers) == len(set(numbers)) == 52
    assert re.findall(r'data-test-item="(\w+)"', html) == numbers
    places = {item.section for item in ITEMS if item.section}
    assert places <= set(re.findall(r'data-test-section="([\w-]+)"', html))


def test_sections_stand_in_the_order_of_the_guideline(html: str) -> None:
    assert re.findall(r'data-test-section="([\w-]+)"', html) == [
        "headline", "source", "eligibility", "outcome", "predictors", "sample-size", "missing", "model", "performance",
        "calibration", "decision", "risk-groups", "examples", "subgroups", "why", "limitations", "use", "tripod",
        "provenance",
    ]  # fmt: skip


def test_what_is_not_there_is_left_to_the_authors(full: Summary) -> None:
    bare = replace(full, subgroups=(), sample_size={}, casemix={}, attrition=())
    found = [{a.item.number: (a.status, a.left) for a in answers(s)} for s in (full, bare)]
    assert [each["10"][0] for each in found] == ["answered", "in part"]
    assert [each["23a"] for each in found] == [("answered", ""), ("in part", "performance by subgroup")]
    assert [each["14"][0] for each in found] == ["in part", "authors"]
    assert [each["20b"][0] for each in found] == ["in part", "authors"]
    assert found[0]["17"] == ("authors", "approval and consent")


def test_limitations_follow_from_the_facts(full: Summary, tmp_path: Path) -> None:
    said = " ".join(full.limitations)
    assert "The records are simulated" in said
    assert "Training departed from the recommended recipe" in said
    assert "Performance by subgroup" not in said
    assert "Fewer than 100" not in said
    rows = [row("lora", "strategy", 0.8, seeds=[0]), row("cox", "baseline", 0.7)]
    rows[0]["metrics"]["oe@1826"] = {"value": 1.3, "low": 1.1, "high": 1.5}
    few = Fake(n=200, event_rate=0.1, rows=tuple(rows), extras=False, histories=False)
    folder = write_study(tmp_path / "s", few, subgroups=[], tokens={"n_rows": 200, "truncated_rows": 40})
    said = " ".join(summarise(folder).limitations)
    for wanted in ("Fewer than 100 evaluated", "one seed", "too low on average", "longer records", "one dataset"):
        assert wanted in said
    assert "simulated" not in said


@pytest.mark.usefixtures("without_figures")
def test_strategies_stand_beside_their_controls_among_the_differences(study: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(study, tmp_path / "s")
    data = json.loads((folder / "comparison.json").read_text(encoding="utf-8"))
    pair = {"model": "full", "against": "from-scratch", "metric": "uno_c", "value": 0.04, "low": 0.01, "high": 0.07}
    why = {"word": "underpowered", "why": "ibs_worse", "low90": 0.02, "high90": 0.06}
    data["differences"].append(pair | why)
    (folder / "comparison.json").write_text(json.dumps(data), encoding="utf-8")
    html, _ = page_of(folder)
    assert "full from-scratch +0.040 (+0.010 to +0.070) excluded, better underpowered but IBS is worse" in section(
        html, 'table="differences"'
    )
    assert "Pretraining helps: full" in html


def test_small_subgroups_are_neither_counted_nor_scored(html: str) -> None:
    table = section(html, 'table="subgroups"')
    assert "70 or more &lt;10 &lt;10 too few" in table
    assert "under 50 600 withheld 0.780" in table
    assert "50 to 69 withheld withheld 0.800" in table
    assert "SEX//F 480 100 0.810 (0.760–0.860)" in table


def test_codes_of_few_patients_are_not_named(html: str) -> None:
    assert "RARE//1" not in html
    assert "Heart failure 88 +6.10 +6.30" in section(html, 'table="codes"')
    assert "Patient 1: risk 62.0%, against 20.0%" in section(html, 'table="explained"')
    assert "all other visits +2.00" in section(html, 'table="explained"')


@pytest.mark.parametrize(("n", "shown"), [(88, "88"), (90, None), (None, None)])
def test_codes_that_nearly_all_have_are_not_named_either(n: int | None, shown: str | None) -> None:
    found = attributions_of(ATTRIBUTIONS | {"patients": n})
    assert found is not None
    assert found.patients == ("<10" if n is None else str(n))
    assert next((code.patients for code in found.codes if "I50" in code.code), None) == shown if n else True


def test_recalibration_is_shown_before_and_after(full: Summary) -> None:
    (found,) = full.recalibrated
    assert found.model == "lora"
    before, after = found.before["slope"], found.after["slope"]
    assert before.low < before.value < before.high < after.high
    assert set(found.after) == {"slope", "intercept", "observed / expected"}


def test_decision_curves_have_the_interval_of_their_gain(study: Path) -> None:
    for panel in summarise(study).decisions:
        for model, line in panel.models.items():
            gain, low, high = panel.gains[model]
            known = np.isfinite(gain)
            np.testing.assert_allclose(gain[known], (line - np.maximum(panel.treat_all, 0))[known])
            assert np.all((low <= gain) & (gain <= high) | ~known)
            assert np.any(high > low)


@pytest.mark.usefixtures("without_figures")
def test_out_of_fold_no_patients_are_compared_across_folds(tmp_path: Path) -> None:
    folder = write_study(tmp_path / "s", Fake(n=300, folds=5, histories=False, extras=False))
    found = summarise(folder)
    assert [panel.measure for panel in found.over_time] == ["brier"]
    assert found.thirds == ()
    assert "not on one scale" in found.missing["thirds"]
    assert "AUC over time: not drawn out of fold" in page_of(folder)[1].text


def test_years_hide_whose_they_are(full: Summary) -> None:
    source = full.source
    assert (source.years, source.split, source.simulated) == ("2013", "random", True)


@pytest.mark.parametrize("dark", [False, True])
def test_colors_show_against_their_page(dark: bool) -> None:
    def luminance(color: str) -> float:
        parts = np.array([int(color[k : k + 2], 16) for k in (1, 3, 5)]) / 255
        linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
        return float(linear @ [0.2126, 0.7152, 0.0722])

    page = luminance(PALETTE["paper"][dark])
    for name, pair in PALETTE.items():
        low, high = sorted((page, luminance(pair[dark])))
        assert name in ("paper", "rule") or (high + 0.05) / (low + 0.05) >= 3.0, name


def test_one_file_of_predictions_is_a_whole_report(tmp_path: Path) -> None:
    html, page = page_of(write_lone(tmp_path / "s"))
    assert page.stack == []
    assert section(html, "headline").startswith("theirs ranks patients with Uno C 0.800")
    assert "agree with what was observed" in section(html, "findings")
    assert "data-test-differences" not in html
    assert "is for its authors to say" in section(html, 'section="predictors"')
    lone = {a.item.number: a.status for a in answers(summarise(tmp_path / "s"))}
    assert {lone[number] for number in ("9a", "9b", "11", "12b", "12c", "13", "22", "27a", "27b")} == {"authors"}
    drawn = set(re.findall(r'data-test-figure="(\w+)"', html))
    assert drawn >= {"flow", "brier", "calibration", "decision", "thirds", "examples"}
    assert not drawn & {"forest", "training", "footprint"}


@pytest.mark.usefixtures("without_figures")
def test_a_report_is_made_from_what_is_in_hand(study: Path, tmp_path: Path) -> None:
    inputs = read_inputs(study)
    kept = {key: inputs.predictions[key] for key in inputs.predictions}
    out = write_report_from(replace(inputs, predictions=kept, runs=()), tmp_path / "page.html")
    text = out.read_text(encoding="utf-8")
    assert 'data-test-missing="training"' in text
    assert 'data-test-missing="thirds"' in text  # no figure is drawn in this test
