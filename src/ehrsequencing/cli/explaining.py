"""The verb that tells what predictions rest on."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ehrsequencing.cli.app import app
from ehrsequencing.cli.options import Bundle, Json, Meds, Out, Quiet, Row, Seed, Threads, use_threads
from ehrsequencing.cli.output import Output, beside


@app.command(epilog="Example: ehrseq explain out/bundle out/sim out/explanation --patients 200")
def explain(
    bundle: Bundle,
    meds: Meds,
    out: Out,
    labels: Annotated[Path | None, typer.Option(help="a MEDS label file: whom to explain, and when")] = None,
    row: Row = None,
    horizon: Annotated[float | None, typer.Option(help="days; default: the bundle's own horizon")] = None,
    patients: Annotated[int, typer.Option(min=1, help="at most so many patients, drawn by hash")] = 200,
    seed: Seed = 0,
    threads: Threads = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """What predictions rest on: attributions of the predicted risk to codes and visits, by integrated gradients."""
    from ehrsequencing.attribution.writing import explain_to_folder
    from ehrsequencing.cli.progress import ProgressDisplay

    use_threads(threads)
    to = Output(as_json, quiet)
    with ProgressDisplay(quiet):
        written = explain_to_folder(
            bundle, meds, out, labels=labels, row=row, horizon=horizon, patients=patients, seed=seed
        )
    to.result(written.text(), written.to_json())
    to.next("predict", bundle, meds, beside(out, "predictions.parquet"))
