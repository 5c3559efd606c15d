"""Our models on public survival data, as records of one visit, beside a Cox model and boosting of scikit-survival.

    python benchmarks/external.py [flchain gbsg2 whas500] [--quick] [--no-page]

Five folds; strategies and baselines are fitted by ``run_study`` as in any study, scikit-survival's on the training and
tuning rows of the same folds, and all are scored by one ``Evaluation``. ``--quick`` leaves out what learns by epochs.
Figures are kept in ``benchmarks/results/external.json`` and told in the README.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import readme
import yaml
from sksurv.datasets import load_flchain, load_gbsg2, load_whas500
from sksurv.ensemble import GradientBoostingSurvivalAnalysis
from sksurv.linear_model import CoxPHSurvivalAnalysis
from sksurv.util import Surv

from ehrsequencing import Cohort, MedsDataset, Predictions, from_dataframe, run_study
from ehrsequencing.config import CURVE_POINTS, SplitConfig
from ehrsequencing.evaluation.compare import Evaluation, Scores, paired_difference
from ehrsequencing.study.data import divisions, fold_numbers

FOLDS, BOOTSTRAP = 5, 1_000
INDEX = dt.datetime(2000, 1, 1)
VISIT, OUTCOME, END = "VISIT", "OUTCOME", "END_OF_FOLLOW_UP"
SHORTEST = 0.5
"""Days: who is followed for 0 days leaves half a day later, since what happens at prediction_time is no outcome."""
STUDY: dict[str, Any] = {
    "folds": FOLDS,
    "pretrain": {"epochs": 3},
    "strategies": ["frozen-ridge", "lora"],
    "baselines": ["age-sex", "cox", "boosting", "wide"],
    "seeds": [0],
    "budget": {"max_epochs": 8, "patience": 3},
    "bootstrap": 0,
}
QUICK: dict[str, Any] = {"pretrain": {"epochs": 1}, "strategies": ["frozen-ridge"], "baselines": ["cox", "wide"]}


@dataclass(frozen=True)
class Source:
    """One public data set: how it is read, which columns are used, what was measured elsewhere."""

    load: Callable[[], tuple[pd.DataFrame, np.ndarray]]
    numbers: tuple[str, ...]
    codes: tuple[str, ...]
    about: str
    elsewhere: Mapping[str, float]
    sex: str | None = None
    """The column that is written as SEX//."""

    def read(self) -> tuple[pd.DataFrame, np.ndarray, np.ndarray]:
        """The columns used with ``age``, and duration in days and event."""
        x, y = self.load()
        event, duration = (y[name] for name in y.dtype.names)
        x = x[["age", *self.numbers, *self.codes]].astype(dict.fromkeys(self.numbers, float))
        return x, np.maximum(duration.astype(np.float64), SHORTEST), event.astype(np.int64)


SOURCES: Mapping[str, Source] = {
    "flchain": Source(
        load_flchain,
        ("creatinine", "kappa", "lambda", "flc.grp", "sample.yr"),
        ("sex", "mgus"),
        "free light chains and death (Dispenzieri et al. 2012); the cause of death (`chapter`) is left out",
        {"Coxnet C": 0.797, "Coxnet IBS": 0.1085},
        sex="sex",
    ),
    "gbsg2": Source(
        load_gbsg2,
        ("estrec", "pnodes", "progrec", "tsize"),
        ("horTh", "menostat", "tgrade"),
        "breast cancer recurrence (Schumacher et al. 1994)",
        {"boosting C": 0.691},
    ),
    "whas500": Source(
        load_whas500,
        ("bmi", "diasbp", "hr", "los", "sysbp"),
        ("gender", "afb", "av3", "chf", "cvd", "miord", "mitype", "sho"),
        "death after myocardial infarction (Hosmer et al. 2008)",
        {"Coxnet C": 0.770, "boosting C": 0.779},
        sex="gender",
    ),
}


def events(source: Source) -> pl.DataFrame:
    """``subject_id, time, code, numeric_value``: birth, one visit with what is known then, and how follow-up ended."""
    x, duration, event = source.read()
    subject, n = np.arange(len(x)), len(x)
    born = [INDEX - dt.timedelta(days=365.25 * float(age)) for age in x["age"]]
    left = [INDEX + dt.timedelta(days=float(days)) for days in duration]
    parts = [_part(subject, born, ["MEDS_BIRTH"] * n), _part(subject, [INDEX] * n, [VISIT] * n)]
    for name in source.numbers:
        known = np.flatnonzero(x[name].notna())
        parts.append(_part(known, [INDEX] * len(known), [f"LAB//{name}"] * len(known), x[name].to_numpy()[known]))
    for name in source.codes:
        prefix = "SEX" if name == source.sex else name
        parts.append(_part(subject, [INDEX] * n, [f"{prefix}//{value}" for value in x[name]]))
    parts.append(_part(subject, left, [OUTCOME if died else END for died in event]))
    return pl.concat(parts).sort("subject_id", "time", maintain_order=True)


def _part(
    subject: np.ndarray, when: Sequence[dt.datetime], code: Sequence[str], value: np.ndarray | None = None
) -> pl.DataFrame:
    columns = {
        "subject_id": subject.astype(np.int64),
        "time": pl.Series(when, dtype=pl.Datetime("us")),
        "code": code,
        "numeric_value": pl.Series([None] * len(subject) if value is None else value, dtype=pl.Float64),
    }
    return pl.DataFrame(columns)


def study(name: str, folder: Path, **changes: Any) -> dict[str, Any]:
    """Run one data set's study under ``folder``: every model with its figures, and the facts of the comparison."""
    source, started = SOURCES[name], time.perf_counter()
    dataset = from_dataframe(events(source), folder / "meds", name=name)
    task = {
        "name": name,
        "index": {"event": "first", "code": VISIT},
        "outcome": OUTCOME,
        "follow_up": {"end": "last_record"},
    }
    settings = {**STUDY, "name": name, "data": {"meds": str(folder / "meds")}, "task": task, **changes}
    (folder / "study.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    run_study(folder / "study.yaml", folder / "out")
    found = score(name, dataset, folder / "out")
    return {**found, "seconds": time.perf_counter() - started, "settings": {**STUDY, **changes}}


def score(name: str, dataset: MedsDataset, out: Path) -> dict[str, Any]:
    """Every model of a finished study, and scikit-survival's, in one evaluation; differences from its Cox model."""
    comparison = json.loads((out / "comparison.json").read_text(encoding="utf-8"))
    cohort, tau = Cohort.read(out / "cohort"), comparison["tau"]
    rows = cohort.table.sort("subject_id")
    subject = rows["subject_id"].to_numpy()
    parts = divisions(dataset, FOLDS, SplitConfig(), task=cohort.task, cohort=cohort)
    fold = fold_numbers(parts, subject)
    outcome = rows["duration"].to_numpy(), rows["event"].to_numpy().astype(np.int64)
    evaluation = Evaluation.of(
        *outcome,
        train_duration=outcome[0],
        train_event=outcome[1],
        tau=tau,
        n_boot=BOOTSTRAP,
        subject_id=subject,
        stratum=fold,
    )
    scores: dict[str, Scores] = {}
    for row in comparison["rows"]:
        files = [Predictions.read(out / "predictions" / f"{row['model']}-{seed}.parquet") for seed in row["seeds"]]
        scores[row["model"]] = evaluation.score(files)
    for model, predictions in outside(SOURCES[name], rows, fold, tau):
        scores[model] = evaluation.score(predictions)
    against = scores["sksurv Cox"]
    return {
        "data": name,
        "n": len(subject),
        "events": int((evaluation.event == 1).sum()),
        "tau": tau,
        "models": {
            model: {
                **{metric: interval.to_json() for metric, interval in one.intervals().items()},
                "uno_c_difference": paired_difference(against, one).to_json(),
                "ibs_difference": paired_difference(against, one, "ibs").to_json(),
            }
            for model, one in scores.items()
        },
    }


def outside(source: Source, rows: pl.DataFrame, fold: np.ndarray, tau: float) -> Iterator[tuple[str, Predictions]]:
    """scikit-survival's Cox regression and its boosting, each fold predicted by a fit on the others."""
    x = matrix(source).to_numpy()[rows["subject_id"].to_numpy()]
    y = Surv.from_arrays(rows["event"].to_numpy() == 1, rows["duration"].to_numpy())
    times = np.linspace(0, tau, CURVE_POINTS + 1)[1:]
    for name, make in OUTSIDE.items():
        risk, survival = np.zeros(len(x)), np.zeros((len(x), CURVE_POINTS))
        for k in range(FOLDS):
            held, model = fold == k, make()
            model.fit(x[~held], y[~held])
            risk[held] = model.predict(x[held])
            knots = np.append(0.0, model.unique_times_)
            curves = model.predict_survival_function(x[held], return_array=True)
            steps = np.searchsorted(knots, times, side="right") - 1
            survival[held] = np.column_stack([np.ones(held.sum()), curves])[:, steps]
        ids, when = rows["subject_id"].to_numpy(), rows["prediction_time"].to_numpy()
        yield name, Predictions(ids, when, risk, times, survival, model=name)


def matrix(source: Source) -> pd.DataFrame:
    """What scikit-survival's models read: standardised numbers, one column a category but the first, missing as 0."""
    x, _, _ = source.read()
    numbers = ["age", *source.numbers]
    standard = (x[numbers] - x[numbers].mean()) / x[numbers].std()
    missing = x[numbers].isna().astype(float).add_prefix("missing ")
    codes = pd.get_dummies(x[list(source.codes)], drop_first=True, dtype=float)
    wide = pd.concat([standard.fillna(0.0), missing.loc[:, missing.any()], codes], axis=1)
    return wide.loc[:, wide.std() > 0]


OUTSIDE: Mapping[str, Callable[[], Any]] = {
    "sksurv Cox": lambda: CoxPHSurvivalAnalysis(alpha=1e-4, ties="efron"),
    "sksurv boosting": lambda: GradientBoostingSurvivalAnalysis(subsample=0.5, max_depth=2, random_state=0),
}


def figure(found: Mapping[str, float], digits: int = 3) -> str:
    """A figure with its interval.

    >>> figure({"value": 0.8, "low": 0.75, "high": 0.85})
    '0.800 (0.750–0.850)'
    """
    return f"{found['value']:.{digits}f} ({found['low']:.{digits}f}–{found['high']:.{digits}f})"


def section(found: Mapping[str, Any]) -> str:
    """One data set's table with what was measured elsewhere."""
    source = SOURCES[found["data"]]
    lines = [
        [
            f"`{model}`",
            figure(row["harrell_c"]),
            figure(row["uno_c"]),
            figure(row["ibs"], 4),
            figure(row["uno_c_difference"]),
        ]
        for model, row in found["models"].items()
    ]
    elsewhere = ", ".join(f"{name} {value:g}" for name, value in source.elsewhere.items())
    return "\n\n".join(
        [
            f"### {found['data'].upper()}: {source.about}",
            f"{found['n']:,} patients, {found['events']:,} events up to τ = {found['tau']:,.0f} days. "
            f"Measured elsewhere (other splits, so only near): {elsewhere}.",
            readme.table(["model", "Harrell C", "Uno C", "IBS", "Uno C − that of sksurv Cox"], lines),
        ]
    )


def page(results: Sequence[Mapping[str, Any]]) -> str:
    """Everything between the markers."""
    settings = results[0]["settings"]
    budget = (
        f"Five folds, {BOOTSTRAP:,} resamples, seeds {settings['seeds']}, {settings['pretrain']['epochs']} epochs of "
        f"pretraining, at most {settings['budget']['max_epochs']} of training (patience "
        f"{settings['budget']['patience']}); C compares patients of one fold only."
    )
    return "\n\n".join([f"{readme.made()} {budget}", *(section(found) for found in results)])


def main() -> None:
    """Run, print, keep."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help=f"data sets: {', '.join(SOURCES)} (default: all)")
    parser.add_argument("--quick", action="store_true", help="without what learns by epochs")
    parser.add_argument("--no-page", action="store_true", help="print only, keep nothing")
    arguments = parser.parse_args()
    results = []
    for name in arguments.names or SOURCES:
        with tempfile.TemporaryDirectory() as folder:
            results.append(study(name, Path(folder), **(QUICK if arguments.quick else {})))
        print(section(results[-1]), flush=True)
    if not arguments.no_page:
        (readme.RESULTS / "external.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
        readme.publish("external", page(results))


if __name__ == "__main__":
    main()
