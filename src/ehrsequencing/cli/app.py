"""The program that the verbs are added to."""

from __future__ import annotations

from typing import Annotated

import typer

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
