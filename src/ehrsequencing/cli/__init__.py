"""The command line: one verb a step; parse, call, print."""

from __future__ import annotations

import os
import sys

from ehrsequencing.errors import EhrError, Exit
from ehrsequencing.files import denied

INTERRUPTED = 130


def main() -> None:
    """Entry point of ``ehrseq``: a user's mistake ends in one message and its exit code, never in a traceback."""
    # threads that wait by spinning starve each other on a busy machine: a third of the pace, measured; read at import
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from ehrsequencing.cli.verbs import app

    try:
        app()
    except KeyboardInterrupt:
        _end("interrupted; nothing half-written was left behind, and the same command goes on from here", INTERRUPTED)
    except Exception as error:
        told = _told(error)
        if told is None:
            raise
        _end(str(told), told.code)


def _told(error: Exception) -> EhrError | None:
    """The message for a mistake in what was given, and for a file that cannot be read or written; None for a defect."""
    if isinstance(error, EhrError):
        return error
    if type(error).__module__.startswith("polars") and str(error).startswith("parquet:"):
        fix = "'ehrseq check' names the file: write it again"
        return EhrError(f"a file of the dataset is damaged: {str(error).splitlines()[0]}", "", fix, code=Exit.DATA)
    why = denied(error)
    if why is None:
        return None
    where = str(getattr(error, "filename", None) or "")
    return EhrError(why, where, "choose a place you may read and write, on a disk with room", code=Exit.ENVIRONMENT)


def _end(message: str, code: int) -> None:
    sys.stderr.write(f"error: {message}\n")
    raise SystemExit(int(code))
