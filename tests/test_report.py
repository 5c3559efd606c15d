"""The report: what it says by its rules, what it must never show, and that it stands on its own."""

from __future__ import annotations

import datetime as dt
import itertools
import json
import re
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import polars as pl
import pytest
from lifelines import AalenJohansenFitter

from ehrsequencing.cohort import Cohort
from ehrsequencing.cohort.attrition import suppress_attrition
from ehrsequencing.config import IndexConfig, Predicate, TaskConfig
from ehrsequencing.errors import EhrError, Exit
from ehrsequencing.evaluation.compare import INTERVAL_MEANING
from ehrsequencing.predictions import Predictions
from ehrsequencing.report import courses, figures, readme_figure, render, write_report
from ehrsequencing.report.contents import Difference, Interval, Row, Run
from ehrsequencing.report.drawing import COLORS, color
from ehrsequencing.report.findings import find_difference, headline, power
from ehrsequencing.report.patients import risk_thirds
from ehrsequencing.report.summary import read_runs, summarise

TAU = 1826.0
FIRST_ID = 907_000_001
PREDICTED = dt.datetime(2013, 1, 1)
TRUE_SKILL = {"lora": 1.0, "lora+wide": 1.1, "full": 0.9, "frozen": 0.8, "cox": 1.0, "wide": 1.05, "age-sex": 0.5}
WHY = {
    "oracle": "the simulator's own hazard",
    "frozen": "the encoder as pretrained, a small head on top",
    "frozen-ridge": "the encoder as pretrained, a penalised linear head",
    "lora": "low-rank adapters in every attention layer, rank 16",
    "full": "every weight is trained",
    "from-scratch": "full, without pretraining",
    "frozen-random": "frozen, with random weights",
    "cox": "ridge Cox on counts, recency and last values",
    "boosting": "gradient-boosted trees on the same features",
    "wide": "the statistician's model in the same head",
    "age-sex": "Cox on age and sex alone",
    "kaplan-meier": "the same curve for everybody",
}


def estimate(value: float, half: float) -> dict[str, float]:
    return {"value": value, "low": value - half, "high": value + half}


def row(model: str, kind: str, uno: float, half: float = 0.03, **more: Any) -> dict[str, Any]:
    metrics = {
        "uno_c": estimate(uno, half),
        "harrell_c": estimate(uno + 0.004, half),
        "ibs": estimate(0.16 - 0.12 * uno, 0.006),
        "brier@1826": estimate(0.2 - 0.15 * uno, 0.01),
    }
    return {
        "model": model, "kind": kind, "why": WHY.get(model.split("+")[0], ""), "seeds": [0, 1, 2], "trainable": None,
        "total": None, "seconds": 1.5, "alpha": None, "notes": [], "not_computed": {}, "metrics": metrics,
    } | more  # fmt: skip


ROWS = [
    row("oracle", "oracle", 0.858, seconds=None, seeds=[0]),
    row("cox", "baseline", 0.799, seconds=4.1, trainable=256, total=256),
    row("boosting", "baseline", 0.788, seconds=9.7),
    row("wide", "baseline", 0.802, trainable=1_204, total=1_204, seconds=2.9),
    row("age-sex", "baseline", 0.671, trainable=2, total=2, seconds=0.2),
    row("kaplan-meier", "baseline", 0.5, 0.0, seconds=0.01, trainable=0, total=0),
    row("frozen", "strategy", 0.784, trainable=16_424, total=499_112, seconds=21.0),
    row("frozen-ridge", "strategy", 0.787, trainable=405, total=483_093, seconds=3.2),
    row("lora", "strategy", 0.799, trainable=65_576, total=548_264, seconds=190.0),
    row("full", "strategy", 0.795, trainable=499_112, total=499_112, seconds=171.0),
    row("lora+wide", "strategy", 0.818, trainable=66_780, total=549_468, seconds=192.0, alpha=0.5),
    row("full+wide", "strategy", 0.814, trainable=500_316, total=500_316, seconds=173.0, alpha=0.4,
        notes=["seed 2 chose α at the edge of its range"]),
    row("from-scratch", "control", 0.752, trainable=499_112, total=499_112, seconds=168.0),
    row("frozen-random", "control", 0.741, trainable=16_424, total=499_112, seconds=20.0),
]  # fmt: skip


@dataclass(frozen=True)
class Fake:
    """What a finished study is faked from; everything can be left out."""

    n: int = 900
    rows: tuple[dict[str, Any], ...] = tuple(ROWS)
    event_rate: float = 0.25
    difference: tuple[float, float, float] = (0.016, 0.004, 0.028)
    histories: bool = True
    folds: int | None = None
    seed: int = 3


def write_study(folder: Path, fake: Fake = Fake(), **changes: Any) -> Path:
    """A finished study's folder with plausible numbers and one common truth behind predictions and outcomes."""
    rng = np.random.default_rng(fake.seed)
    cohort, log_hazard = make_cohort(fake, rng)
    cohort.write(folder / "cohort")
    (folder / "predictions").mkdir(parents=True)
    for model in (r["model"] for r in fake.rows if r["model"] in TRUE_SKILL):
        write_predictions(folder, model, cohort, log_hazard, TRUE_SKILL[model], rng)
    if fake.histories:
        write_histories(folder, fake, rng)
    events = int(cohort.table["event"].sum())
    against = "wide"
    others = [r for r in fake.rows if r["kind"] in ("strategy", "control")]
    comparison = {
        "study": "demo", "task": json.loads(cohort.task.model_dump_json(by_alias=True)),
        "split": "out_of_fold" if fake.folds else "held_out", "n": fake.n, "events": events,
        "n_train": 1_400, "events_train": 340, "n_tuning": 300, "events_tuning": 72, "horizons": [365.0, 1826.0],
        "tau": TAU, "cohort_fingerprint": cohort.fingerprint, "token_fingerprint": "5d0c" * 8,
        "recipe": {
            "name": "medium", "strategy": "lora", "departures": ["at most 12 epochs instead of 100"],
            "sentence": "Recipe 'medium' (2,000 to 20,000 labelled patients; here 2,000 with 412 events): lora, "
            "because low-rank adapters adapt the encoder with a tenth of its weights: the default for transfer.",
        },
        "warnings": ["31% of the codes occur in fewer than 5 training patients", "only 7 tuning events (under 20)"],
        "interval": INTERVAL_MEANING,
        "tokens": {"n_rows": 2_600, "n_tokens": 214_310, "median_length": 61.0, "truncated_rows": 4, "oov_share": 0.01},
        "rows": list(fake.rows),
        "differences": [
            {"model": r["model"], "against": against, "metric": "uno_c"}
            | dict(zip(("value", "low", "high"), fake.difference, strict=True))
            if r["model"] == "lora+wide"
            else {"model": r["model"], "against": against, "metric": "uno_c"}
            | estimate(r["metrics"]["uno_c"]["value"] - 0.802, 0.015)
            for r in others
        ],
    }  # fmt: skip
    (folder / "comparison.json").write_text(json.dumps(comparison | changes), encoding="utf-8")
    study = {
        "study": {"data": {"synthea": "/home/jane/exports/csv", "meds": None}, "split": {"seed": 0}, "bootstrap": 1000},
        "environment": {"python": "3.11.2", "packages": {"torch": "2.13.0", "polars": "2.1.0"}, "hostname": "ward-pc"},
    }
    (folder / "study.json").write_text(json.dumps(study), encoding="utf-8")
    return folder


def make_cohort(fake: Fake, rng: np.random.Generator) -> tuple[Cohort, np.ndarray]:
    log_hazard = rng.normal(0, 1.1, fake.n)
    base = fake.event_rate / TAU
    event_time = rng.exponential(1 / (base * np.exp(log_hazard)))
    censoring = rng.uniform(300, 2_600, fake.n)
    table = pl.DataFrame(
        {
            "subject_id": FIRST_ID + np.sort(rng.choice(10 * fake.n, fake.n, replace=False)),
            "prediction_time": [PREDICTED] * fake.n,
            "duration": np.minimum.reduce([event_time, censoring, np.full(fake.n, TAU)]),
            "event": ((event_time <= censoring) & (event_time <= TAU)).astype(np.int8),
            "split": ["held_out"] * fake.n,
        },
        schema_overrides={"prediction_time": pl.Datetime("us")},
    )
    steps = [
        ("subjects", 0, "everybody in the data"),
        ("alive", 171, "dead at prediction_time"),
        ("adult", 268, "under 18 years"),
        ("history", 7, "no record in the input window"),
        ("washout", 0, "outcome at or before prediction_time"),
        ("follow_up", 5, "no record afterwards"),
    ]
    remaining = fake.n + sum(removed for _, removed, _ in steps)
    rows = []
    for rule, removed, why in steps:
        remaining -= removed
        rows.append((rule, removed, remaining, why))
    attrition = pl.DataFrame(rows, schema=["rule", "removed", "remaining", "why"], orient="row")
    task = TaskConfig(
        name="death",
        index=IndexConfig(date=dt.date(2013, 1, 1)),
        outcome=Predicate(code="MEDS_DEATH"),
        horizon_days=TAU,
    )
    return Cohort(table, attrition, task), log_hazard


def write_predictions(
    folder: Path, model: str, cohort: Cohort, log_hazard: np.ndarray, skill: float, rng: np.random.Generator
) -> None:
    seen = skill * log_hazard + rng.normal(0, 0.5, len(log_hazard))
    times = TAU * np.arange(1, 101) / 100
    survival = np.exp(-0.25 / TAU * np.exp(seen)[:, None] * times)  # (n, 100)
    made = Predictions(
        subject_id=cohort.table["subject_id"].to_numpy(),
        prediction_time=cohort.table["prediction_time"].to_numpy(),
        risk=-survival.mean(axis=1) * TAU,
        horizon_days=times,
        survival=survival,
        cohort_fingerprint=cohort.fingerprint,
        model=model,
    )
    made.write(folder / "predictions" / f"{model}-0.parquet")


def write_histories(folder: Path, fake: Fake, rng: np.random.Generator) -> None:
    folds = [None] if fake.folds is None else range(fake.folds)
    for model, seed, fold in itertools.product(
        ("frozen", "lora", "full", "from-scratch", "frozen-random"), range(3), folds
    ):
        place = folder / "models" / (f"{model}-{seed}" + ("" if fold is None else f"-fold{fold}"))
        place.mkdir(parents=True)
        (place / "history.json").write_text(json.dumps(history(model, rng)), encoding="utf-8")
    ridge = folder / "models" / "frozen-ridge-0"
    ridge.mkdir()
    (ridge / "metrics.json").write_text("{}", encoding="utf-8")


def history(model: str, rng: np.random.Generator) -> list[dict[str, Any]]:
    epochs, top = int(rng.integers(7, 13)), {"frozen-random": 0.745, "from-scratch": 0.755}.get(model, 0.8)
    x = np.arange(1, epochs + 1)
    c = top - 0.12 * np.exp(-x / 2) - 0.0008 * np.maximum(x - 6, 0) ** 2 + rng.normal(0, 0.004, epochs)
    best = int(np.argmax(c))
    return [
        {
            "epoch": int(e), "train_loss": 1.0, "tuning_c": c[i], "tuning_brier": 0.19 - 0.09 * c[i], "tuning_nll": 0.6,
            "train_c": c[i] + 0.004 * e, "learning_rate": 1e-3, "seconds": 4.0, "best": i == best,
        }
        for i, e in enumerate(x)
    ]  # fmt: skip


class Page(HTMLParser):
    """Tags that do not match, the text, and every attribute."""

    VOID = frozenset({"meta", "link", "br", "img", "input", "hr"})

    def __init__(self, html: str) -> None:
        super().__init__()
        self.stack: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.text = ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in self.VOID:
            self.stack.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.stack.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.stack and self.stack[-1] not in ("style", "script"):
            self.text += data

    def values(self, name: str) -> list[str]:
        return [value for _, attribute, value in self.attributes if attribute == name]


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
    names = ("forest", "calibration", "thirds", "footprint")
    monkeypatch.setattr(
        render, "draw", lambda *_: dict.fromkeys([*names, "incidence", "trajectories"]) | {"training": []}
    )


@pytest.fixture(scope="module")
def html(study: Path) -> str:
    return page_of(study)[0]


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
    figures = re.findall(r'data-test-figure="(\w+)"', html)
    assert figures == ["forest", "calibration", "thirds", "training", "footprint"]
    assert html.count('role="img"') == html.count("<desc ") == 5
    assert "data-test-missing" not in html


def test_text_in_figures_is_text(html: str) -> None:
    for model in ("lora+wide", "boosting", "frozen-random"):
        assert re.search(rf"<text[^>]*>{re.escape(model)}</text>", html)


def test_the_same_data_gives_the_same_bytes(study: Path, html: str) -> None:
    found = summarise(study)
    assert str(courses.thirds(found.thirds)) in html
    assert str(figures.calibration(found.calibration, "5 years")) in html


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
    assert "patients cut to their most recent visits &lt;10" in section(html, "tokens")
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
    drawn = figures.forest([strategy("<b>&$x$", 0.7)])
    assert "<b>" not in drawn
    assert drawn.count("&lt;b&gt;&amp;$x$") == 2


def test_many_strategies_go_on_to_a_second_figure() -> None:
    x = np.arange(1.0, 4.0)
    drawn = figures.training([Run(f"lora-{k}", 0, None, x, x / 10, x / 20, x / 5, selected=k % 3) for k in range(6)])
    assert len(drawn) == 2
    ids = [set(Page(svg).values("id")) for svg in drawn]
    assert not ids[0] & ids[1]


# The first line, by its rules.

WIDE = Row("wide", "baseline", "", (), None, None, None, None, (), {"uno_c": Interval(0.80, 0.77, 0.83)})


def strategy(model: str, value: float, kind: str = "strategy") -> Row:
    metrics = {"uno_c": Interval(value, value - 0.03, value + 0.03)}
    return Row(model, kind, "", (), None, None, None, None, (), metrics)


def against_wide(value: float, low: float, high: float, model: str = "lora") -> list[Any]:
    return [Difference(model, "wide", {"uno_c": Interval(value, low, high)})]


@pytest.mark.parametrize(
    ("value", "difference", "said"),
    [
        (0.84, (0.04, 0.01, 0.07), "lora ranks patients better than the best simple model"),
        (0.81, (0.01, -0.01, 0.03), "A simple model ties"),
        (0.79, (-0.01, -0.03, 0.01), "A simple model is at least as good: wide"),
        (0.75, (-0.05, -0.08, -0.02), "A simple model wins: wide"),
        (0.80, (0.0, -0.02, 0.02), "A simple model is at least as good: wide"),
    ],
)
def test_a_simple_model_that_wins_or_ties_comes_first(value: float, difference: Any, said: str) -> None:
    first, _ = headline([strategy("lora", value), WIDE], against_wide(*difference))
    assert first.startswith(said)
    assert ("excludes zero" in first) == (difference[1] > 0 or difference[2] < 0)


def test_an_interval_that_touches_zero_includes_it() -> None:
    first, _ = headline([strategy("lora", 0.81), WIDE], against_wide(0.01, 0.0, 0.02))
    assert "ties" in first


def test_without_a_paired_interval_nothing_is_decided() -> None:
    first, _ = headline([strategy("lora", 0.9), WIDE], [])
    assert first.startswith("Which is better is not decided")


def test_a_pair_given_the_other_way_round_is_turned() -> None:
    turned = find_difference(
        [Difference("wide", "lora", {"uno_c": Interval(-0.04, -0.07, -0.01)})], strategy("lora", 0.84), WIDE
    )
    assert turned == Interval(0.04, 0.01, 0.07)


def test_a_blend_does_not_hide_what_the_transformer_does_alone() -> None:
    rows = [strategy("lora+wide", 0.84), strategy("lora", 0.78), WIDE]
    _, findings = headline(rows, [*against_wide(0.04, 0.01, 0.07, "lora+wide"), *against_wide(-0.02, -0.04, -0.001)])
    assert "By itself, without the wide model, the best transformer is lora" in findings[0]
    assert "worse than wide" in findings[0]


def test_a_control_as_good_as_the_strategies_is_named() -> None:
    rows = [strategy("lora", 0.82), strategy("from-scratch", 0.83, "control"), WIDE]
    _, findings = headline(rows, against_wide(0.02, 0.01, 0.03))
    assert any(f.startswith("Pretraining is not shown to help: the control from-scratch") for f in findings)


def test_few_events_or_wide_intervals_are_said(tmp_path: Path) -> None:
    rows = [strategy("lora", 0.81), WIDE]
    assert power(rows, against_wide(0.01, -0.01, 0.03), 3_000, 400) == []
    said = " ".join(power(rows, against_wide(0.01, -0.05, 0.07), 720, 36))
    assert "only 36 of 720" in said
    assert "smaller than about 0.09" in said
    vague = Row("lora", "strategy", "", (), None, None, None, None, (), {"uno_c": Interval(0.8, 0.7, 0.9)})
    assert power([vague, WIDE], [], 3_000, 400)[0].startswith("This can tell little")
    assert "<10 of 50" in power(rows, [], 50, 4)[0]


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
    assert section(html, "headline").startswith("A simple model ties")
    assert "out of fold" in section(html, "evaluated")


def test_nothing_but_the_comparison(tmp_path: Path) -> None:
    bare = {"study": "bare", "n": 40, "events": 4, "tau": 365.0, "rows": [row("cox", "baseline", 0.7)]}
    (tmp_path / "comparison.json").write_text(json.dumps(bare), encoding="utf-8")
    html, page = page_of(tmp_path)
    assert page.stack == []
    assert set(re.findall(r'data-test-missing="(\w+)"', html)) == {"attrition", "calibration", "thirds", "training"}
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
    assert [t.model for t in found.thirds] == ["lora", "wide"]


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


def test_thirds_separate_the_truth(study: Path) -> None:
    thirds = summarise(study).thirds
    assert [t.model for t in thirds] == ["lora", "wide"]
    for t in thirds:
        ends = [curve.share[-1] for curve in t.curves]
        assert ends[0] > ends[1] > ends[2]


def test_calibration_shows_risks_near_the_truth(study: Path) -> None:
    shown = summarise(study).calibration
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


def write_competing(
    folder: Path, n: int = 600, *, rate: float = 0.25, models: tuple[str, ...] = ("lora", "wide")
) -> Path:
    """A finished study in which death competes, with one common truth; ``rate`` of the outcome within τ."""
    rng = np.random.default_rng(8)
    score = rng.normal(0, 0.9, n)
    hazards = np.stack([rate / TAU * np.exp(score), np.full(n, 0.2 / TAU)])
    times, censoring = rng.exponential(1 / hazards), rng.uniform(300, 2_600, n)
    end = np.minimum(censoring, TAU)
    event = np.where(times.min(axis=0) <= end, times.argmin(axis=0) + 1, 0)
    fake = Fake(n=n, histories=False)
    cohort = make_cohort(fake, rng)[0]
    table = cohort.table.with_columns(
        duration=pl.Series(np.minimum(times.min(axis=0), end)), event=pl.Series(event.astype(np.int8))
    )
    task = cohort.task.model_copy(
        update={"outcome": Predicate(code="I50"), "competing": {"death": Predicate(code="D")}}
    )
    cohort = Cohort(table, cohort.attrition, task)
    cohort.write(folder / "cohort")
    (folder / "predictions").mkdir(parents=True)
    grid = TAU * np.arange(1, 101) / 100
    gone = 1 - np.exp(-hazards.sum(axis=0)[:, None] * grid)
    share = (hazards / hazards.sum(axis=0))[:, :, None]
    for model in models:
        Predictions(
            table["subject_id"].to_numpy(), table["prediction_time"].to_numpy(), score, grid, 1 - gone,
            cohort.fingerprint, model, {"outcome": share[0] * gone, "death": share[1] * gone},
        ).write(folder / "predictions" / f"{model}-0.parquet")  # fmt: skip
    counts = {"outcome": int((event == 1).sum()), "death": int((event == 2).sum())}
    half = 0.12 if counts["outcome"] < 100 else 0.02
    comparison = {
        "study": "competing", "task": json.loads(task.model_dump_json(by_alias=True)), "split": "out_of_fold",
        "folds": 5, "n": n, "events": counts["outcome"], "causes": counts, "horizons": [TAU], "tau": TAU,
        "cohort_fingerprint": cohort.fingerprint,
        "rows": [row("lora", "strategy", 0.73, half, seeds=[0]), row("wide", "baseline", 0.72, half, seeds=[0])],
        "differences": [{"model": "lora", "against": "wide", "metric": "uno_c"} | estimate(0.01, half / 2)],
    }  # fmt: skip
    (folder / "comparison.json").write_text(json.dumps(comparison), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def competing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_competing(tmp_path_factory.mktemp("competing") / "study")


def test_with_competing_events_nothing_is_by_kaplan_meier(competing: Path) -> None:
    html, _ = page_of(competing)
    text = re.sub(r"<[^>]+>", " ", html)
    assert "Aalen–Johansen" in text
    assert [m.start() for m in re.finditer("Kaplan–Meier", text)] == [text.index("Kaplan–Meier curve would overstate")]
    assert "with the competing event “death” first" in section(html, "evaluated")
    assert "death: first event D" in section(html, "facts")


def test_curves_by_third_are_incidences_of_the_outcome(competing: Path) -> None:
    found = summarise(competing)
    table = pl.read_parquet(competing / "cohort" / "cohort.parquet")
    risk = Predictions.read(competing / "predictions" / "lora-0.parquet").risk
    highest = risk > np.quantile(risk, 2 / 3)
    duration, event = (table[name].to_numpy()[highest] for name in ("duration", "event"))
    theirs = AalenJohansenFitter(jitter_level=0).fit(duration, event, 1)
    expected = theirs.predict(found.thirds[0].curves[2].times[-1])
    assert found.thirds[0].curves[2].share[-1] == pytest.approx(float(expected), abs=1e-9)
    assert found.thirds[0].competing
    ends = [curve.share[-1] for curve in found.thirds[0].curves]
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
    rows = {
        "patient": [2, 1, 1, 2],
        "days_since_first_visit": [0.0, 0.0, 900.0, 40.0],
        "risk_at_horizon": [0.4, 0.1, 0.3, 0.2],
    }
    pl.DataFrame(rows).write_parquet(folder / "trajectories.parquet")
    found = summarise(folder).trajectories
    assert [(t.patient, t.days.tolist(), t.risk.tolist()) for t in found] == [
        (1, [0.0, 900.0], [0.1, 0.3]),
        (2, [0.0, 40.0], [0.4, 0.2]),
    ]
    html, _ = page_of(folder)
    drawn = html[html.index('data-test-figure="trajectories"') :]
    assert "patient 1: 2 visits, 10% at the first, 30% at the last" in drawn


def test_a_hundred_patients_prove_nothing_and_the_report_says_so(tmp_path: Path) -> None:
    """About 100 patients in five folds, some 25 events: the first screen says how little that can tell."""
    folder = write_competing(tmp_path / "s", n=100, rate=0.30)
    events = json.loads((folder / "comparison.json").read_text())["events"]
    assert 15 <= events <= 30
    html, page = page_of(folder)
    header = re.sub(r"<[^>]+>", " ", html[html.index("<header>") : html.index("</header>")])
    assert f"only {events} of 100 evaluated patients had the outcome" in header
    assert "under 100 events models are hard to rank" in header
    assert "0.24 wide" in header
    assert "A simple model ties" in header
    assert "read the order of the models below as undecided" in header
    assert page.stack == []
