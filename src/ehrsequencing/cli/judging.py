"""Verbs that judge predictions and bundles, and the one that runs a whole study."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ehrsequencing.cli.app import app
from ehrsequencing.cli.options import (
    Bundle,
    Compile,
    Device,
    HeldOutFrom,
    Horizons,
    Json,
    Meds,
    Out,
    Precision,
    Quiet,
    Resamples,
    Row,
    Seed,
    Task,
    Threads,
    TuningFrom,
    split_config,
    use_device,
    use_threads,
)
from ehrsequencing.cli.output import Output, beside


@app.command(epilog="Example: ehrseq evaluate out/predictions.parquet out/cohort --horizon 365 --report out/evaluation")
def evaluate(
    predictions: Annotated[Path, typer.Argument(help="anybody's predictions, as parquet")],
    cohort: Annotated[Path, typer.Argument(help="a cohort (from 'ehrseq cohort')")],
    against: Annotated[
        list[Path] | None, typer.Option(help="another model's predictions, to compare with; may be given several times")
    ] = None,
    report: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="leave report.html there, with the numbers behind it")
    ] = None,
    horizon: Horizons = None,
    bootstrap: Resamples = 1_000,
    split: Annotated[str, typer.Option(help="which split of the cohort to score")] = "held_out",
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Discrimination and calibration with intervals, on the patients both files share."""
    from ehrsequencing.cli.progress import ProgressDisplay
    from ehrsequencing.study.score_file import evaluate_file

    to, asked = Output(as_json, quiet), tuple(horizon or ())
    with ProgressDisplay(quiet):
        found = evaluate_file(
            predictions, cohort, against=against or (), report=report, horizons=asked, bootstrap=bootstrap, split=split
        )
    to.result(found.text(), found.to_json())
    to.next("validate", "BUNDLE", "MEDS", "TASK.yaml", "OUT")


@app.command(epilog="Example: ehrseq validate out/bundle out/hospital-b out/hospital-b/task.yaml out/validation")
def validate(
    bundle: Bundle,
    meds: Meds,
    task: Task,
    out: Out,
    row: Row = None,
    development: Annotated[
        Path | None, typer.Option(help="the bundle's own dataset, where the bundle keeps no case mix")
    ] = None,
    horizon: Horizons = None,
    split: Annotated[str, typer.Option(help="whom to judge: all, or one split of the dataset")] = "all",
    split_seed: Seed = 0,
    tuning_from: TuningFrom = None,
    held_out_from: HeldOutFrom = None,
    bootstrap: Resamples = 1_000,
    seed: Seed = 0,
    threads: Threads = None,
    device: Device = "auto",
    precision: Precision = "auto",
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """A bundle on a second site or on later patients: what it does not know, case mix, figures before and after
    recalibration; leaves predictions and a report."""
    from ehrsequencing.cli.progress import ProgressDisplay
    from ehrsequencing.study.validate import validate as judge

    use_threads(threads)
    use_device(device, precision)
    to, asked = Output(as_json, quiet), tuple(horizon or ())
    with ProgressDisplay(quiet) as progress:
        found = judge(
            bundle, meds, task, out, row=row, development=development, horizons=asked, split=split,
            division=split_config(split_seed, tuning_from, held_out_from), bootstrap=bootstrap, seed=seed,
            progress=progress,
        )  # fmt: skip
    to.result(found.text(), found.to_json())
    to.next("pretrain", meds, beside(out, "encoder-of-its-own"), "--task", task)


@app.command(epilog="Example: ehrseq run studies/demo.yaml out/demo")
def run(
    study: Annotated[Path, typer.Argument(help="the whole run: a STUDY.yaml")],
    out: Out,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="only say what would run, and for how long")] = False,
    threads: Threads = None,
    device: Device = "auto",
    precision: Precision = "auto",
    compiled: Compile = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """All of it: data, cohort, pretraining, every strategy and simple model, comparison and report."""
    from ehrsequencing.cli.progress import ProgressDisplay
    from ehrsequencing.study import plan, run_study

    use_threads(threads)
    use_device(device, precision, compiled)
    to = Output(as_json, quiet)
    if dry_run:
        planned = plan(study)
        to.result(planned, {"plan": planned})
        to.next("run", study, out)
        return
    with ProgressDisplay(quiet) as progress:
        summary = run_study(study, out, progress=progress, say=to.say)
    left = {"comparison": str(out / "comparison.json"), "report": str(out / "report.html")}
    to.result(summary, {"out": str(out), **left})
    to.next("predict", _a_bundle(out), "MEDS", beside(out, "predictions.parquet"))


def _a_bundle(out: Path) -> Path:
    """A bundle of a finished study, for the example of what to do with one."""
    return next(iter(sorted((out / "models").glob("*"))), Path("BUNDLE"))
