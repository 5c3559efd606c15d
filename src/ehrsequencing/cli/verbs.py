"""The verbs of ``ehrseq``; each works alone on the files that the step before it wrote."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ehrsequencing.cli.output import Output, beside, cohort_beside, task_beside

if TYPE_CHECKING:
    from ehrsequencing.config import SplitConfig

app = typer.Typer(
    name="ehrseq",
    help="Time-to-event prediction from longitudinal health records.",
    no_args_is_help=True,
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
TuningFrom = Annotated[str | None, typer.Option(metavar="DATE", help="split by the calendar: tuning begins here")]
HeldOutFrom = Annotated[str | None, typer.Option(metavar="DATE", help="split by the calendar: held-out begins here")]
Threads = Annotated[int | None, typer.Option(min=1, help="CPU threads; default: all cores")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="no progress lines, no suggestions")]
Json = Annotated[bool, typer.Option("--json", help="the result as JSON on stdout, messages on stderr")]


def _print_version(wanted: bool) -> bool:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"ehrseq {version('ehrsequencing')}")
        raise typer.Exit
    return wanted


@app.callback()
def ehrseq(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Time-to-event prediction from longitudinal health records."""


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
    question: Annotated[str, typer.Option(help="index (one prediction a patient) or every_visit")] = "index",
    hospital: Annotated[str, typer.Option(help="a, or b: other codes, other patients, for 'ehrseq validate'")] = "a",
    quiet: Quiet = False,
) -> None:
    """Write a MEDS dataset whose true hazards are known, with task.yaml and truth.parquet beside it."""
    from ehrsequencing.config import SimulateConfig, parse
    from ehrsequencing.synthetic import simulate as run

    settings = {"patients": patients, "seed": seed, "noise_codes": noise_codes}
    asked = {"competing_death": competing_death, "question": question, "hospital": hospital}
    dataset = run(out, parse(SimulateConfig, settings | asked, "ehrseq simulate"))
    to = Output(quiet=quiet)
    to.say(f"{patients:,} simulated patients in {dataset.root}; the task is {dataset.root / 'task.yaml'}")
    to.next("cohort", out, out / "task.yaml", beside(out, "cohort"))


@convert.command("synthea", epilog="Example: ehrseq convert synthea exports/csv out/synthea")
def convert_synthea(
    src: Annotated[Path, typer.Argument(help="folder of Synthea's CSV files (.csv or .csv.gz)")],
    out: Out,
    quiet: Quiet = False,
) -> None:
    """Synthea CSV export -> MEDS; rejected rows are counted and kept in rejects/."""
    from ehrsequencing.sources.synthea import convert_synthea as run

    to = Output(quiet=quiet)
    to.say(run(src, out).text())
    to.next("check", out)


@convert.command("omop", epilog="Example: ehrseq convert omop exports/cdm out/omop")
def convert_omop(
    src: Annotated[Path, typer.Argument(help="folder of OMOP CDM 5.3 or 5.4 tables (csv, csv.gz, tsv, parquet)")],
    out: Out,
    quiet: Quiet = False,
) -> None:
    """OMOP Common Data Model -> MEDS; every row is an event, left out as documented, or kept in rejects/."""
    from ehrsequencing.sources.omop import convert_omop as run

    to = Output(quiet=quiet)
    to.say(run(src, out).text())
    to.next("check", out)


@convert.command("csv", epilog="Example: ehrseq convert csv exports/registry out/registry --mapping registry.yaml")
def convert_csv(
    src: Annotated[Path, typer.Argument(help="folder of tables (csv, tsv, gzipped, parquet)")],
    out: Out,
    mapping: Annotated[Path, typer.Option(help="a MAPPING.yaml: which columns are subject, time, code, value")],
    quiet: Quiet = False,
) -> None:
    """Any long tables -> MEDS, by a mapping file: a registry, a spreadsheet export, a claims extract."""
    from ehrsequencing.sources.mapped import convert_csv as run

    to = Output(quiet=quiet)
    to.say(run(src, out, mapping).text())
    to.next("check", out)


@app.command(epilog="Example: ehrseq check out/synthea")
def check(meds: Meds, as_json: Json = False, quiet: Quiet = False) -> None:
    """Facts and problems of a MEDS dataset, looking beyond the schema; exit code 11 where one is an error."""
    from ehrsequencing.errors import Exit
    from ehrsequencing.events import MedsDataset
    from ehrsequencing.events import check as run

    to, report = Output(as_json, quiet), run(MedsDataset.open(meds))
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
    from ehrsequencing.study import steps

    to, split = Output(as_json, quiet), _split(split_seed, tuning_from, held_out_from)
    made = steps.write_cohort(meds, task, out, split=split, visit_column=visit_column)
    to.result(made.describe(), {"cohort": str(out), **made.to_json()})
    again = _split_options(split_seed, tuning_from, held_out_from)
    to.next("pretrain", meds, beside(out, "encoder"), "--task", task, *again)


@app.command(epilog="Example: ehrseq advise --patients 4000 --events 600")
def advise(
    patients: Annotated[int, typer.Option(min=1, help="labelled patients (training + tuning)")],
    events: Annotated[int, typer.Option(min=0, help="how many of them have the outcome")],
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """The recipe for a cohort of this size, and why."""
    from ehrsequencing.errors import EhrError, Exit
    from ehrsequencing.training.recipes import choose_recipe

    if events > patients:
        raise EhrError(f"{events:,} events among {patients:,} patients", "--events", "count patients", code=Exit.USAGE)
    to, choice = Output(as_json, quiet), choose_recipe(patients, events)
    to.result(choice.text(), choice.to_json())
    to.next("finetune", "MEDS", "TASK.yaml", "OUT", "--encoder", "ENCODER")


@app.command(epilog="Example: ehrseq pretrain out/sim out/encoder --epochs 10")
def pretrain(
    meds: Meds,
    out: Out,
    task: Annotated[Path | None, typer.Option(help="a TASK.yaml whose input rules the records obey")] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="passes over the training records")] = None,
    size: Annotated[str, typer.Option(help="small, medium, large or base")] = "small",
    attention: Annotated[
        str, typer.Option(help="bidirectional, or block_causal for predictions at every visit")
    ] = "bidirectional",
    split_seed: Seed = 0,
    tuning_from: TuningFrom = None,
    held_out_from: HeldOutFrom = None,
    seed: Seed = 0,
    threads: Threads = None,
    quiet: Quiet = False,
) -> None:
    """Pretrain an encoder by masked codes on the training subjects' whole records."""
    from ehrsequencing.cli.progress import ProgressDisplay
    from ehrsequencing.study import steps

    _threads(threads)
    split = _split(split_seed, tuning_from, held_out_from)
    with ProgressDisplay(quiet) as progress:
        summary = steps.write_encoder(
            meds,
            out,
            task=task,
            epochs=epochs,
            size=size,
            attention=attention,
            split=split,
            seed=seed,
            progress=progress,
        )
    to = Output(quiet=quiet)
    to.say(summary)
    question = task_beside(meds) if task is None else task
    again = _split_options(split_seed, tuning_from, held_out_from)
    to.next("finetune", meds, question, beside(out, "bundle"), "--encoder", out, *again)


@app.command(epilog="Example: ehrseq finetune out/sim out/sim/task.yaml out/bundle --encoder out/encoder")
def finetune(
    meds: Meds,
    task: Task,
    out: Out,
    encoder: Annotated[Path, typer.Option(help="a pretrained encoder (from 'ehrseq pretrain')")],
    strategy: Annotated[str, typer.Option(help="auto, or a strategy by name (see 'ehrseq advise')")] = "auto",
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
    quiet: Quiet = False,
) -> None:
    """Adapt the encoder to one outcome; leaves one bundle and says what it chose and why."""
    from ehrsequencing.cli.progress import ProgressDisplay
    from ehrsequencing.config import BudgetConfig
    from ehrsequencing.study import steps

    _threads(threads)
    to, budget = Output(quiet=quiet), BudgetConfig(max_epochs=max_epochs, patience=patience)
    with ProgressDisplay(quiet) as progress:
        summary = steps.write_bundle(
            meds,
            task,
            out,
            encoder=encoder,
            strategy=strategy,
            attention=attention,
            budget=budget,
            labelled=labelled,
            split=_split(split_seed, tuning_from, held_out_from),
            seed=seed,
            progress=progress,
            say=to.say,
        )
    to.say(summary)
    to.next("predict", out, meds, beside(out, "predictions.parquet"))


@app.command(epilog="Example: ehrseq predict out/bundle out/sim out/predictions.parquet")
def predict(
    bundle: Annotated[Path, typer.Argument(help="a bundle (from 'ehrseq finetune' or 'ehrseq run')")],
    meds: Meds,
    out: Out,
    labels: Annotated[Path | None, typer.Option(help="a MEDS label file: whom to predict, and when")] = None,
    row: Annotated[str | None, typer.Option(help="which of the bundle's rows, e.g. lora, wide, lora+wide")] = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Risks and survival curves for the patients of a dataset, from their records up to prediction_time."""
    from ehrsequencing.inference import predict_to_file

    to, written = Output(as_json, quiet), predict_to_file(bundle, meds, out, labels=labels, row=row)
    to.result(written.text(), written.to_json())
    to.next("evaluate", out, cohort_beside(out))


@app.command(epilog="Example: ehrseq evaluate out/predictions.parquet out/cohort --horizon 365 --horizon 1826")
def evaluate(
    predictions: Annotated[Path, typer.Argument(help="anybody's predictions, as parquet")],
    cohort: Annotated[Path, typer.Argument(help="a cohort (from 'ehrseq cohort')")],
    horizon: Annotated[list[float] | None, typer.Option(help="days; may be given several times")] = None,
    bootstrap: Annotated[int, typer.Option(min=0, help="resamples for the intervals")] = 1_000,
    split: Annotated[str, typer.Option(help="which split of the cohort to score")] = "held_out",
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Discrimination and calibration with intervals, on the patients both files share."""
    from ehrsequencing.study.score_file import evaluate_file

    to = Output(as_json, quiet)
    found = evaluate_file(predictions, cohort, horizons=tuple(horizon or ()), bootstrap=bootstrap, split=split)
    to.result(found.text(), found.to_json())
    to.next("validate", "BUNDLE", "MEDS", "TASK.yaml", "OUT")


@app.command(epilog="Example: ehrseq validate out/bundle out/hospital-b out/hospital-b/task.yaml out/validation")
def validate(
    bundle: Annotated[Path, typer.Argument(help="a bundle (from 'ehrseq finetune' or 'ehrseq run')")],
    meds: Meds,
    task: Task,
    out: Out,
    row: Annotated[str | None, typer.Option(help="which of the bundle's rows, e.g. lora, wide, lora+wide")] = None,
    development: Annotated[
        Path | None, typer.Option(help="the bundle's own dataset, where the bundle keeps no case mix")
    ] = None,
    horizon: Annotated[list[float] | None, typer.Option(help="days; may be given several times")] = None,
    split: Annotated[str, typer.Option(help="whom to judge: all, or one split of the dataset")] = "all",
    split_seed: Seed = 0,
    tuning_from: TuningFrom = None,
    held_out_from: HeldOutFrom = None,
    bootstrap: Annotated[int, typer.Option(min=0, help="resamples for the intervals")] = 1_000,
    seed: Seed = 0,
    threads: Threads = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """A bundle on a second site or on later patients: what it does not know, case mix, figures before and after
    recalibration; leaves predictions and a report."""
    from ehrsequencing.cli.progress import ProgressDisplay
    from ehrsequencing.study.validate import validate as judge

    _threads(threads)
    to, asked = Output(as_json, quiet), tuple(horizon or ())
    with ProgressDisplay(quiet) as progress:
        found = judge(
            bundle, meds, task, out, row=row, development=development, horizons=asked, split=split,
            division=_split(split_seed, tuning_from, held_out_from), bootstrap=bootstrap, seed=seed, progress=progress,
        )  # fmt: skip
    to.result(found.text(), found.to_json())
    to.next("pretrain", meds, beside(out, "encoder-of-its-own"), "--task", task)


@app.command(epilog="Example: ehrseq run studies/demo.yaml out/demo")
def run(
    study: Annotated[Path, typer.Argument(help="the whole run: a STUDY.yaml")],
    out: Out,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="only say what would run, and for how long")] = False,
    threads: Threads = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """All of it: data, cohort, pretraining, every strategy and simple model, comparison and report."""
    from ehrsequencing.cli.progress import ProgressDisplay
    from ehrsequencing.study import plan, run_study

    _threads(threads)
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


def _split(split_seed: int, tuning_from: str | None, held_out_from: str | None) -> SplitConfig:
    """How rows are divided, as the options say."""
    from ehrsequencing.config import SplitConfig, parse
    from ehrsequencing.errors import EhrError, Exit

    if (tuning_from is None) != (held_out_from is None):
        missing = "--tuning-from" if tuning_from is None else "--held-out-from"
        raise EhrError(f"{missing} is missing", missing, "a calendar split needs both dates", code=Exit.USAGE)
    dates = {"tuning": tuning_from, "held_out": held_out_from}
    calendar = {} if tuning_from is None else {"calendar": dates}
    return parse(SplitConfig, {"seed": split_seed, **calendar}, "--tuning-from, --held-out-from")


def _split_options(split_seed: int, tuning_from: str | None, held_out_from: str | None) -> tuple[str, ...]:
    """The split as the next verb needs it, where it is not the default."""
    seeded = ("--split-seed", str(split_seed)) if split_seed else ()
    dated = ("--tuning-from", tuning_from, "--held-out-from", held_out_from) if tuning_from and held_out_from else ()
    return (*seeded, *dated)


def _a_bundle(out: Path) -> Path:
    """A bundle of a finished study, for the example of what to do with one."""
    return next(iter(sorted((out / "models").glob("*"))), Path("BUNDLE"))
