"""Arguments and options that several verbs share, and what they mean."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from ehrsequencing.config import SplitConfig

Out = Annotated[Path, typer.Argument(help="where to write; made whole or not at all")]
Meds = Annotated[Path, typer.Argument(help="a MEDS dataset (folder with data/ and metadata/)")]
Task = Annotated[Path, typer.Argument(help="the question: a TASK.yaml")]
Seed = Annotated[int, typer.Option(min=0, help="seed of everything random")]
TuningFrom = Annotated[str | None, typer.Option(metavar="DATE", help="split by the calendar: tuning begins here")]
HeldOutFrom = Annotated[str | None, typer.Option(metavar="DATE", help="split by the calendar: held-out begins here")]
Threads = Annotated[int | None, typer.Option(min=1, help="CPU threads; default: all cores")]
Device = Annotated[str, typer.Option(help="auto (CUDA where there is one), cpu or cuda")]
Precision = Annotated[str, typer.Option(help="of the encoder: auto (bf16 on CUDA that has it), fp32 or bf16")]
Compile = Annotated[bool, typer.Option("--compile", help="compile the encoder's blocks: CUDA only, for long runs")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="no progress lines, no suggestions")]
Json = Annotated[bool, typer.Option("--json", help="the result as JSON on stdout, messages on stderr")]
Bundle = Annotated[Path, typer.Argument(help="a bundle (from 'ehrseq finetune' or 'ehrseq run')")]
Row = Annotated[str | None, typer.Option(help="which of the bundle's rows, e.g. lora, wide, lora+wide")]
Horizons = Annotated[list[float] | None, typer.Option(help="days; may be given several times")]
Resamples = Annotated[int, typer.Option(min=0, help="resamples for the intervals")]


def use_threads(count: int | None) -> None:
    """So many CPU threads; None leaves all."""
    if count is not None:
        import torch

        torch.set_num_threads(count)


def use_device(device: str, precision: str = "auto", compiled: bool = False) -> None:
    """Where and how precisely encoders compute; nothing is loaded where all is left to the machine."""
    if (device, precision, compiled) != ("auto", "auto", False):
        from ehrsequencing.device import choose, use

        use(choose(device, precision, compiled=compiled))


def split_config(split_seed: int, tuning_from: str | None, held_out_from: str | None) -> SplitConfig:
    """How rows are divided, as the options say."""
    from ehrsequencing.config import SplitConfig, parse
    from ehrsequencing.errors import EhrError, Exit

    if (tuning_from is None) != (held_out_from is None):
        missing = "--tuning-from" if tuning_from is None else "--held-out-from"
        raise EhrError(f"{missing} is missing", missing, "a calendar split needs both dates", code=Exit.USAGE)
    dates = {"tuning": tuning_from, "held_out": held_out_from}
    calendar = {} if tuning_from is None else {"calendar": dates}
    return parse(SplitConfig, {"seed": split_seed, **calendar}, "--tuning-from, --held-out-from")


def split_options(split_seed: int, tuning_from: str | None, held_out_from: str | None) -> tuple[str, ...]:
    """The split as the next verb needs it, where it is not the default."""
    seeded = ("--split-seed", str(split_seed)) if split_seed else ()
    dated = ("--tuning-from", tuning_from, "--held-out-from", held_out_from) if tuning_from and held_out_from else ()
    return (*seeded, *dated)
