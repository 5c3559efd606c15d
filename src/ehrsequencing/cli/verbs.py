"""The verbs of ``ehrseq``; each works alone on the files that the step before it wrote."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    name="ehrseq",
    help="Time-to-event prediction from longitudinal health records.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
convert = typer.Typer(help="Turn a raw export into a MEDS dataset.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(convert, name="convert")

Out = Annotated[Path, typer.Argument(help="where to write; made whole or not at all")]
Meds = Annotated[Path, typer.Argument(help="a MEDS dataset (folder with data/ and metadata/)")]
Task = Annotated[Path, typer.Argument(help="the question: a TASK.yaml")]
Seed = Annotated[int, typer.Option(min=0, help="seed of everything random")]
Threads = Annotated[int | None, typer.Option(min=1, help="CPU threads; default: all cores")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="no progress lines")]


def _say(text: str) -> None:
    typer.echo(text)


def _threads(count: int | None) -> None:
    if count is not None:
        import torch

        torch.set_num_threads(count)


@app.command(epilog="Example: ehrseq simulate out/sim --patients 5000 --seed 0")
def simulate(
    out: Out,
    patients: Annotated[int, typer.Option(min=1, help="number of patients")] = 5_000,
    seed: Seed = 0,
    noise_codes: Annotated[int, typer.Option(min=0, help="codes that mean nothing")] = 300,
    competing_death: Annotated[bool, typer.Option(help="patients may die before the outcome")] = False,
) -> None:
    """Write a MEDS dataset whose true hazards are known, with task.yaml and truth.parquet beside it."""
    from ehrsequencing.config import SimulateConfig
    from ehrsequencing.synthetic import simulate as run

    config = SimulateConfig(patients=patients, seed=seed, noise_codes=noise_codes, competing_death=competing_death)
    dataset = run(out, config)
    _say(f"{patients:,} simulated patients in {dataset.root}; the task is {dataset.root / 'task.yaml'}")


@convert.command("synthea", epilog="Example: ehrseq convert synthea exports/csv out/synthea")
def convert_synthea(
    src: Annotated[Path, typer.Argument(help="folder of Synthea's CSV files (.csv or .csv.gz)")], out: Out
) -> None:
    """Synthea CSV export -> MEDS; rejected rows are counted and kept in rejects/."""
    from ehrsequencing.sources.synthea import convert_synthea as run

    _say(run(src, out).text())


@app.command(epilog="Example: ehrseq check out/synthea")
def check(meds: Meds) -> None:
    """Facts and problems of a MEDS dataset, looking beyond the schema."""
    from ehrsequencing.events import MedsDataset
    from ehrsequencing.events import check as run

    _say(run(MedsDataset.open(meds)).text())


@app.command(epilog="Example: ehrseq cohort out/sim out/sim/task.yaml out/cohort")
def cohort(meds: Meds, task: Task, out: Out, split_seed: Seed = 0) -> None:
    """Who, when, and what happened: labels with durations, and the attrition table."""
    from ehrsequencing.study import steps

    _say(steps.write_cohort(meds, task, out, split_seed=split_seed).describe())


@app.command(epilog="Example: ehrseq advise --patients 4000 --events 600")
def advise(
    patients: Annotated[int, typer.Option(min=1, help="labelled patients (training + tuning)")],
    events: Annotated[int, typer.Option(min=0, help="how many of them have the outcome")],
) -> None:
    """The recipe for a cohort of this size, and why."""
    from ehrsequencing.errors import EhrError, Exit
    from ehrsequencing.training.recipes import choose_recipe

    if events > patients:
        raise EhrError(f"{events:,} events among {patients:,} patients", "--events", "count patients", code=Exit.USAGE)
    _say(choose_recipe(patients, events).text())


@app.command(epilog="Example: ehrseq pretrain out/sim out/encoder --epochs 10")
def pretrain(
    meds: Meds,
    out: Out,
    task: Annotated[Path | None, typer.Option(help="a TASK.yaml whose input rules the records obey")] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="passes over the training records")] = None,
    size: Annotated[str, typer.Option(help="small, medium, large or base")] = "small",
    split_seed: Seed = 0,
    seed: Seed = 0,
    threads: Threads = None,
    quiet: Quiet = False,
) -> None:
    """Pretrain an encoder by masked codes on the training subjects' whole records."""
    from ehrsequencing.cli.progress import ProgressDisplay
    from ehrsequencing.study import steps

    _threads(threads)
    with ProgressDisplay(quiet) as progress:
        summary = steps.write_encoder(
            meds, out, task=task, epochs=epochs, size=size, split_seed=split_seed, seed=seed, progress=progress
        )
    _say(summary)


@app.command(epilog="Example: ehrseq finetune out/sim out/sim/task.yaml out/bundle --encoder out/encoder")
def finetune(
    meds: Meds,
    task: Task,
    out: Out,
    encoder: Annotated[Path, typer.Option(help="a pretrained encoder (from 'ehrseq pretrain')")],
    strategy: Annotated[str, typer.Option(help="auto, or a strategy by name (see 'ehrseq advise')")] = "auto",
    max_epochs: Annotated[int | None, typer.Option(min=1, help="fewer epochs than the recipe's")] = None,
    patience: Annotated[int | None, typer.Option(min=1, help="another patience than the recipe's")] = None,
    labelled: Annotated[int | None, typer.Option(min=1, help="limit training + tuning to so many patients")] = None,
    split_seed: Seed = 0,
    seed: Seed = 0,
    threads: Threads = None,
    quiet: Quiet = False,
) -> None:
    """Adapt the encoder to one outcome; leaves one bundle and says what it chose and why."""
    from ehrsequencing.cli.progress import ProgressDisplay
    from ehrsequencing.config import BudgetConfig
    from ehrsequencing.study import steps

    _threads(threads)
    budget = BudgetConfig(max_epochs=max_epochs, patience=patience)
    with ProgressDisplay(quiet) as progress:
        summary = steps.write_bundle(
            meds,
            task,
            out,
            encoder=encoder,
            strategy=strategy,
            budget=budget,
            labelled=labelled,
            split_seed=split_seed,
            seed=seed,
            progress=progress,
            say=_say,
        )
    _say(summary)


@app.command(epilog="Example: ehrseq predict out/bundle out/sim out/predictions.parquet")
def predict(
    bundle: Annotated[Path, typer.Argument(help="a bundle (from 'ehrseq finetune' or 'ehrseq run')")],
    meds: Meds,
    out: Out,
    labels: Annotated[Path | None, typer.Option(help="a MEDS label file: whom to predict, and when")] = None,
    row: Annotated[str | None, typer.Option(help="which of the bundle's rows, e.g. lora, wide, lora+wide")] = None,
) -> None:
    """Risks and survival curves for the patients of a dataset, from their records up to prediction_time."""
    from ehrsequencing.inference import predict_to_file

    _say(predict_to_file(bundle, meds, out, labels=labels, row=row))


@app.command(epilog="Example: ehrseq evaluate out/predictions.parquet out/cohort --horizon 365 --horizon 1826")
def evaluate(
    predictions: Annotated[Path, typer.Argument(help="anybody's predictions, as parquet")],
    cohort: Annotated[Path, typer.Argument(help="a cohort (from 'ehrseq cohort')")],
    horizon: Annotated[list[float] | None, typer.Option(help="days; may be given several times")] = None,
    bootstrap: Annotated[int, typer.Option(min=0, help="resamples for the intervals")] = 1_000,
    split: Annotated[str, typer.Option(help="which split of the cohort to score")] = "held_out",
) -> None:
    """Discrimination and calibration with intervals, on the patients both files share."""
    from ehrsequencing.study import steps

    _say(steps.evaluate_file(predictions, cohort, horizons=tuple(horizon or ()), bootstrap=bootstrap, split=split))


@app.command(epilog="Example: ehrseq run studies/demo.yaml out/demo")
def run(
    study: Annotated[Path, typer.Argument(help="the whole run: a STUDY.yaml")],
    out: Out,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="only say what would run, and for how long")] = False,
    threads: Threads = None,
    quiet: Quiet = False,
) -> None:
    """All of it: data, cohort, pretraining, every strategy and simple model, comparison and report."""
    from ehrsequencing.cli.progress import ProgressDisplay
    from ehrsequencing.study import plan, run_study

    _threads(threads)
    if dry_run:
        _say(plan(study))
        return
    with ProgressDisplay(quiet) as progress:
        _say(run_study(study, out, progress=progress, say=_say))
