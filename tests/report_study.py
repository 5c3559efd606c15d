"""Finished studies faked on disk: plausible numbers, one common truth behind predictions and outcomes."""

from __future__ import annotations

import datetime as dt
import itertools
import json
from dataclasses import dataclass, replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from ehrsequencing.cohort import Cohort
from ehrsequencing.config import IndexConfig, Predicate, TaskConfig
from ehrsequencing.evaluation.compare import INTERVAL_MEANING
from ehrsequencing.evaluation.sample_size import check
from ehrsequencing.predictions import Predictions

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
        "antolini_c": estimate(uno + 0.002, half),
        "mean_auc": estimate(uno + 0.02, half),
        "scaled_ibs": estimate(0.9 * (uno - 0.5), 0.02),
        "km_calibration": estimate(0.01, 0.005),
    }
    for days in ("365", "1826"):
        metrics |= {
            f"auc@{days}": estimate(uno + 0.01, half),
            f"brier@{days}": estimate(0.2 - 0.15 * uno, 0.01),
            f"scaled_brier@{days}": estimate(0.8 * (uno - 0.5), 0.03),
            f"oe@{days}": estimate(1.02, 0.08),
            f"slope@{days}": estimate(0.97, 0.1),
            f"intercept@{days}": estimate(0.03, 0.12),
            f"ici@{days}": estimate(0.012, 0.006),
            f"e50@{days}": estimate(0.01, 0.005),
            f"e90@{days}": estimate(0.03, 0.01),
        }
    checks = {"d_calibration": {"statistic": 9.4, "p": 0.4, "adjusted_p": 0.3, "bins": [0.1] * 10}}
    return {
        "model": model, "kind": kind, "why": WHY.get(model.split("+")[0], ""), "seeds": [0, 1, 2], "trainable": None,
        "total": None, "seconds": 1.5, "alpha": None, "notes": [], "not_computed": {}, "metrics": metrics,
        "checks": checks,
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


def group(name: str, n: int, events: int, uno: float) -> dict[str, Any]:
    figures = {"uno_c": estimate(uno, 0.05), "oe@1826": estimate(1.1, 0.3)}
    return {"group": name, "n": n, "events": events, "metrics": {"lora": figures, "wide": figures}}


SUBGROUPS = [
    {"name": "sex", "groups": [group("SEX//F", 480, 100, 0.81), group("SEX//M", 420, 90, 0.79)]},
    {"name": "age", "groups": [group("under 50", 600, 80, 0.78), group("50 to 69", 293, 107, 0.8),
                               group("70 or more", 7, 3, 0.9)]},
]  # fmt: skip
ATTRIBUTIONS = {
    "model": "lora", "seed": 0, "horizon": TAU, "patients": 900, "baseline": "the average training patient",
    "completeness": 0.0004,
    "codes": [
        {"code": "ICD10CM//I50.9", "description": "Heart failure", "patients": 88, "mean": 0.061, "mean_abs": 0.063},
        {"code": "LAB//HB", "description": None, "patients": 310, "mean": -0.012, "mean_abs": 0.02},
        {"code": "RARE//1", "description": "Rare", "patients": 4, "mean": 0.3, "mean_abs": 0.3},
    ],
    "examples": [
        {
            "patient": 1, "risk": 0.62, "baseline_risk": 0.2, "earlier": 0.02,
            "visits": [
                {"days_before": 365, "attribution": 0.1,
                 "codes": [{"code": "LAB//HB", "description": None, "attribution": 0.1}]},
                {"days_before": 14, "attribution": 0.2,
                 "codes": [{"code": "ICD10CM//I50.9", "description": "Heart failure", "attribution": 0.2}]},
            ],
            "undated": [{"code": "SEX//M", "description": None, "attribution": 0.1}],
        }
    ],
}  # fmt: skip
CASEMIX = {
    "patients": "1400", "events": {"outcome": "340"}, "age_years": [52.0, 63.0, 71.0],
    "follow_up_days": [600.0, 1100.0, 1800.0], "events_per_patient": [20.0, 41.0, 80.0],
    "sex": {"SEX//F": 0.53, "SEX//M": 0.47},
}  # fmt: skip


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
    extras: bool = True
    """Predictions from before recalibration, attributions, a case mix."""


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
    if fake.extras:
        write_extras(folder, cohort, log_hazard, rng)
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
            | {"word": "climb" if fake.difference[1] > 0 else "underpowered"}
            | dict(zip(("low90", "high90"), fake.difference[1:], strict=True))
            if r["model"] == "lora+wide"
            else {"model": r["model"], "against": against, "metric": "uno_c"}
            | estimate(r["metrics"]["uno_c"]["value"] - 0.802, 0.015)
            for r in others
        ],
        "sample_size": check(1_700, 412, 4.0, 5.0, 256, evaluated=(fake.n, events)),
        "subgroups": SUBGROUPS,
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
    folder: Path,
    model: str,
    cohort: Cohort,
    log_hazard: np.ndarray,
    skill: float,
    rng: np.random.Generator,
    place: str = "",
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
    made.write(folder / "predictions" / f"{place}{model}-0.parquet")


def write_extras(folder: Path, cohort: Cohort, log_hazard: np.ndarray, rng: np.random.Generator) -> None:
    (folder / "attributions.json").write_text(json.dumps(ATTRIBUTIONS), encoding="utf-8")
    place = folder / "predictions" / "raw"
    place.mkdir()
    write_predictions(folder, "lora", cohort, log_hazard, 1.5, rng, "raw/")
    bundle = folder / "models" / "lora-0" / "bundle.json"
    bundle.parent.mkdir(parents=True, exist_ok=True)
    bundle.write_text(json.dumps({"facts": {"casemix": CASEMIX}}), encoding="utf-8")


def write_histories(folder: Path, fake: Fake, rng: np.random.Generator) -> None:
    folds = [None] if fake.folds is None else range(fake.folds)
    for model, seed, fold in itertools.product(
        ("frozen", "lora", "full", "from-scratch", "frozen-random"), range(3), folds
    ):
        place = folder / "models" / (f"{model}-{seed}" + ("" if fold is None else f"-fold{fold}"))
        place.mkdir(parents=True, exist_ok=True)
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


def write_trajectories(folder: Path) -> None:
    rows = {
        "patient": [2, 1, 1, 2],
        "days_since_first_visit": [0.0, 0.0, 900.0, 40.0],
        "risk_at_horizon": [0.4, 0.1, 0.3, 0.2],
    }
    pl.DataFrame(rows).write_parquet(folder / "trajectories.parquet")


def write_lone(folder: Path, fake: Fake = Fake(extras=False, histories=False)) -> Path:
    """What ``ehrseq evaluate --report`` leaves: one file of predictions, its figures, the cohort."""
    rows = (row("theirs", "predictions", 0.8, seeds=[0], seconds=None),)
    write_study(folder, replace(fake, rows=rows), differences=[], subgroups=[], recipe={}, tokens={}, warnings=[])
    (folder / "study.json").unlink()
    cohort, log_hazard = make_cohort(fake, np.random.default_rng(fake.seed))
    write_predictions(folder, "theirs", cohort, log_hazard, 1.0, np.random.default_rng(1))
    return folder


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
        "cause_figures": {"death": [{"model": "lora", "metrics": {"uno_c": estimate(0.52, half)}}]},
        "differences": [{"model": "lora", "against": "wide", "metric": "uno_c"} | estimate(0.01, half / 2)],
    }  # fmt: skip
    (folder / "comparison.json").write_text(json.dumps(comparison), encoding="utf-8")
    return folder
