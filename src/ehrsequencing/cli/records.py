"""Verbs that make, check and question a dataset."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ehrsequencing.cli.app import app, convert
from ehrsequencing.cli.options import (
    HeldOutFrom,
    Json,
    Meds,
    Out,
    Quiet,
    Seed,
    Task,
    TuningFrom,
    split_config,
    split_options,
)
from ehrsequencing.cli.output import Output, beside, task_beside


@app.command(epilog="Example: ehrseq simulate out/sim --patients 5000 --seed 0")
def simulate(
    out: Out,
    patients: Annotated[int, typer.Option(min=1, help="number of patients")] = 5_000,
    seed: Seed = 0,
    noise_codes: Annotated[int, typer.Option(min=0, help="codes that mean nothing")] = 300,
    competing_death: Annotated[bool, typer.Option(help="patients may die before the outcome")] = False,
    question: Annotated[str, typer.Option(help="index (one prediction a patient) or every_visit")] = "index",
    hospital: Annotated[str, typer.Option(help="a, or b: other codes, other patients, for 'ehrseq validate'")] = "a",
    quiet: Quiet = False,
) -> None:
    """Write a MEDS dataset whose true hazards are known, with task.yaml and truth.parquet beside it."""
    from ehrsequencing.cli.progress import ProgressDisplay
    from ehrsequencing.config import SimulateConfig, parse
    from ehrsequencing.synthetic import simulate as run

    settings = {"patients": patients, "seed": seed, "noise_codes": noise_codes}
    asked = {"competing_death": competing_death, "question": question, "hospital": hospital}
    to, config = Output(quiet=quiet), parse(SimulateConfig, settings | asked, "ehrseq simulate")
    with ProgressDisplay(quiet):
        dataset = run(out, config)
    to.say(f"{patients:,} simulated patients in {dataset.root}; the task is {dataset.root / 'task.yaml'}")
    to.next("cohort", out, out / "task.yaml", beside(out, "cohort"))


@convert.command("synthea", epilog="Example: ehrseq convert synthea exports/csv out/synthea")
def convert_synthea(
    src: Annotated[Path, typer.Argument(help="folder of Synthea's CSV files (.csv or .csv.gz)")],
    out: Out,
    quiet: Quiet = False,
) -> None:
    """Synthea CSV export -> MEDS; rejected rows are counted and kept in rejects/."""
    from ehrsequencing.cli.progress import ProgressDisplay
    from ehrsequencing.sources.synthea import convert_synthea as run

    to = Output(quiet=quiet)
    with ProgressDisplay(quiet):
        report = run(src, out)
    to.say(report.text())
    to.next("check", out)


@convert.command("omop", epilog="Example: ehrseq convert omop exports/cdm out/omop")
def convert_omop(
    src: Annotated[Path, typer.Argument(help="folder of OMOP CDM 5.3 or 5.4 tables (csv, csv.gz, tsv, parquet)")],
    out: Out,
    quiet: Quiet = False,
) -> None:
    """OMOP Common Data Model -> MEDS; every row is an event, left out as documented, or kept in rejects/."""
    from ehrsequencing.cli.progress import ProgressDisplay
    from ehrsequencing.sources.omop import convert_omop as run

    to = Output(quiet=quiet)
    with ProgressDisplay(quiet):
        report = run(src, out)
    to.say(report.text())
    to.next("check", out)


@convert.command("csv", epilog="Example: ehrseq convert csv exports/registry out/registry --mapping registry.yaml")
def convert_csv(
    src: Annotated[Path, typer.Argument(help="folder of tables (csv, tsv, gzipped, parquet)")],
    out: Out,
    mapping: Annotated[Path, typer.Option(help="a MAPPING.yaml: which columns are subject, time, code, value")],
    quiet: Quiet = False,
) -> None:
    """Any long tables -> MEDS, by a mapping file: a registry, a spreadsheet export, a claims extract."""
    from ehrsequencing.cli.progress import ProgressDisplay
    from ehrsequencing.sources.mapped import convert_csv as run

    to = Output(quiet=quiet)
    with ProgressDisplay(quiet):
        report = run(src, out, mapping)
    to.say(report.text())
    to.next("check", out)


@app.command(epilog="Example: ehrseq check out/synthea")
def check(meds: Meds, as_json: Json = False, quiet: Quiet = False) -> None:
    """Facts and problems of a MEDS dataset, looking beyond the schema; exit code 11 where one is an error."""
    from ehrsequencing.cli.progress import ProgressDisplay
    from ehrsequencing.errors import Exit
    from ehrsequencing.events import MedsDataset
    from ehrsequencing.events import check as run

    to = Output(as_json, quiet)
    with ProgressDisplay(quiet):
        report = run(MedsDataset.open(meds))
    to.result(report.text(), report.to_json())
    if not report.ok:
        raise typer.Exit(int(Exit.DATA))
    to.next("cohort", meds, task_beside(meds), beside(meds, "cohort"))


@app.command(epilog="Example: ehrseq cohort out/sim out/sim/task.yaml out/cohort")
def cohort(
    meds: Meds,
    task: Task,
    out: Out,
    split_seed: Seed = 0,
    tuning_from: TuningFrom = None,
    held_out_from: HeldOutFrom = None,
    visit_column: Annotated[str | None, typer.Option(help="the events' column of visits; default: days")] = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Who, when, and what happened: labels with durations, and the attrition table."""
    from ehrsequencing.cli.progress import ProgressDisplay
    from ehrsequencing.study.cohorts import write_cohort

    to, split = Output(as_json, quiet), split_config(split_seed, tuning_from, held_out_from)
    with ProgressDisplay(quiet):
        made = write_cohort(meds, task, out, split=split, visit_column=visit_column)
    to.result(made.describe(), {"cohort": str(out), **made.to_json()})
    again = split_options(split_seed, tuning_from, held_out_from)
    to.next("pretrain", meds, beside(out, "encoder"), "--task", task, *again)
