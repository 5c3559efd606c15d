"""Verbs that train, and predict with what was trained."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from ehrsequencing.cli.app import app
from ehrsequencing.cli.options import (
    Bundle,
    Compile,
    Device,
    HeldOutFrom,
    Json,
    Meds,
    Out,
    Precision,
    Quiet,
    Row,
    Seed,
    Task,
    Threads,
    TuningFrom,
    split_config,
    split_options,
    use_device,
    use_threads,
)
from ehrsequencing.cli.output import Output, beside, cohort_beside, task_beside


@app.command(
    epilog="Example: ehrseq advise --patients 4000 --events 600 --parameters 30 --follow-up-years 4 --horizon-years 5"
)
def advise(
    patients: Annotated[int, typer.Option(min=1, help="labelled patients (training + tuning)")],
    events: Annotated[int, typer.Option(min=0, help="how many of them have the outcome")],
    parameters: Annotated[
        int | None, typer.Option(min=1, help="candidate parameters whose sample size is to be checked")
    ] = None,
    follow_up_years: Annotated[float | None, typer.Option(help="mean follow-up of these patients")] = None,
    horizon_years: Annotated[float | None, typer.Option(help="the horizon that is asked about")] = None,
    c: Annotated[float | None, typer.Option("--c", help="a C index to expect, from earlier work")] = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """The recipe for a cohort of this size, and why; whether that is enough patients to develop and judge a model."""
    from ehrsequencing.errors import EhrError, Exit
    from ehrsequencing.evaluation.sample_size import check
    from ehrsequencing.training.recipes import choose_recipe

    if events > patients:
        raise EhrError(f"{events:,} events among {patients:,} patients", "--events", "count patients", code=Exit.USAGE)
    to, choice = Output(as_json, quiet), choose_recipe(patients, events)
    size = check(patients, events, follow_up_years, horizon_years, parameters, c)
    to.result("\n".join([choice.text(), "", *size["sentences"]]), choice.to_json() | {"sample_size": size})
    to.next("finetune", "MEDS", "TASK.yaml", "OUT", "--encoder", "ENCODER")


@app.command(epilog="Example: ehrseq pretrain out/sim out/encoder --epochs 10")
def pretrain(
    meds: Meds,
    out: Out,
    task: Annotated[Path | None, typer.Option(help="a TASK.yaml whose input rules the records obey")] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="passes over the training records")] = None,
    max_steps: Annotated[
        int | None, typer.Option(min=1, help="at most so many optimiser steps, whatever the number of records")
    ] = None,
    size: Annotated[str, typer.Option(help="small, medium, large or base")] = "small",
    architecture: Annotated[
        str | None, typer.Option(help="hierarchical (the default: attends to visits), or behrt: attends to all tokens")
    ] = None,
    attention: Annotated[
        str, typer.Option(help="bidirectional, or block_causal for predictions at every visit")
    ] = "bidirectional",
    objective: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME[=WEIGHT]",
            help="masked-codes, record-summary (these two are the default), masked-values, next-visit, time-to-event; "
            "several are learned jointly",
        ),
    ] = None,
    code_vectors: Annotated[
        Path | None, typer.Option(help="parquet or safetensors: vectors that code embeddings start from")
    ] = None,
    split_seed: Seed = 0,
    tuning_from: TuningFrom = None,
    held_out_from: HeldOutFrom = None,
    seed: Seed = 0,
    threads: Threads = None,
    device: Device = "auto",
    precision: Precision = "auto",
    compiled: Compile = False,
    quiet: Quiet = False,
) -> None:
    """Pretrain an encoder, by a mix of objectives, on the training subjects' whole records."""
    from ehrsequencing.cli.progress import ProgressDisplay
    from ehrsequencing.study import steps

    use_threads(threads)
    use_device(device, precision, compiled)
    split = split_config(split_seed, tuning_from, held_out_from)
    with ProgressDisplay(quiet) as progress:
        summary = steps.write_encoder(
            meds,
            out,
            task=task,
            epochs=epochs,
            max_steps=max_steps,
            size=size,
            architecture=architecture,
            attention=attention,
            objectives=objective or (),
            code_vectors=code_vectors,
            split=split,
            seed=seed,
            progress=progress,
        )
    to = Output(quiet=quiet)
    to.say(summary)
    question = task_beside(meds) if task is None else task
    again = split_options(split_seed, tuning_from, held_out_from)
    to.next("finetune", meds, question, beside(out, "bundle"), "--encoder", out, *again)


@app.command(epilog="Example: ehrseq finetune out/sim out/sim/task.yaml out/bundle --encoder out/encoder")
def finetune(
    meds: Meds,
    task: Task,
    out: Out,
    encoder: Annotated[Path, typer.Option(help="a pretrained encoder (from 'ehrseq pretrain')")],
    strategy: Annotated[str, typer.Option(help="auto, or a strategy by name (see 'ehrseq advise')")] = "auto",
    also: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="TASK.yaml", help="another outcome, at once (may be repeated): OUT then has a bundle for each"
        ),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="change the strategy: lora_rank=32, hazards=per_bin, …"),
    ] = None,
    attention: Annotated[
        str | None, typer.Option(help="fine-tune under this mask though the encoder was pretrained under the other")
    ] = None,
    max_epochs: Annotated[int | None, typer.Option(min=1, help="fewer epochs than the recipe's")] = None,
    patience: Annotated[int | None, typer.Option(min=1, help="another patience than the recipe's")] = None,
    labelled: Annotated[int | None, typer.Option(min=1, help="limit training + tuning to so many patients")] = None,
    split_seed: Seed = 0,
    tuning_from: TuningFrom = None,
    held_out_from: HeldOutFrom = None,
    seed: Seed = 0,
    threads: Threads = None,
    device: Device = "auto",
    precision: Precision = "auto",
    compiled: Compile = False,
    quiet: Quiet = False,
) -> None:
    """Adapt the encoder to one outcome, or several at once; leaves a bundle for each and says what it chose and why."""
    from ehrsequencing.cli.progress import ProgressDisplay
    from ehrsequencing.config import BudgetConfig
    from ehrsequencing.study import outcomes, steps

    use_threads(threads)
    use_device(device, precision, compiled)
    to, budget = Output(quiet=quiet), BudgetConfig(max_epochs=max_epochs, patience=patience)
    with ProgressDisplay(quiet) as progress:
        write = (
            partial(outcomes.write_outcomes, meds, [task, *also]) if also else partial(steps.write_bundle, meds, task)
        )
        summary = write(
            out,
            encoder=encoder,
            strategy=strategy,
            settings=settings or (),
            attention=attention,
            budget=budget,
            labelled=labelled,
            split=split_config(split_seed, tuning_from, held_out_from),
            seed=seed,
            progress=progress,
            say=to.say,
        )
    to.say(summary)
    bundle = outcomes.first_bundle(out) if also else out
    to.next("predict", bundle, meds, beside(out, "predictions.parquet"))


@app.command(epilog="Example: ehrseq merge out/bundle out/merged")
def merge(bundle: Bundle, out: Out, quiet: Quiet = False) -> None:
    """Add a bundle's LoRA adapters to its weights, for deployment: the same predictions from plain layers."""
    from ehrsequencing.study.merging import merge_bundle

    to = Output(quiet=quiet)
    to.say(merge_bundle(bundle, out))
    to.next("predict", out, "MEDS", beside(out, "predictions.parquet"))


@app.command(epilog="Example: ehrseq predict out/bundle out/sim out/predictions.parquet")
def predict(
    bundle: Bundle,
    meds: Meds,
    out: Out,
    labels: Annotated[Path | None, typer.Option(help="a MEDS label file: whom to predict, and when")] = None,
    row: Row = None,
    also: Annotated[
        list[Path] | None,
        typer.Option(help="another bundle of the same task: the mean of their hazards is written (repeatable)"),
    ] = None,
    device: Device = "auto",
    precision: Precision = "auto",
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Risks and survival curves for the patients of a dataset, from their records up to prediction_time."""
    from ehrsequencing.cli.progress import ProgressDisplay
    from ehrsequencing.inference import predict_to_file

    use_device(device, precision)
    to = Output(as_json, quiet)
    with ProgressDisplay(quiet):
        written = predict_to_file(bundle, meds, out, labels=labels, row=row, also=also or ())
    to.result(written.text(), written.to_json())
    to.next("evaluate", out, cohort_beside(out))
