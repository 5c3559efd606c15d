"""The command line: one verb a step; parse, call, print."""

from __future__ import annotations

import errno
import os
import sys

from ehrsequencing.errors import EhrError, Exit

INTERRUPTED = 130


def main() -> None:
    """Entry point of ``ehrseq``: a user's mistake ends in one message and its exit code, never in a traceback."""
    # threads that wait by spinning starve each other on a busy machine: a third of the pace, measured; read at import
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from ehrsequencing.cli.verbs import app

    try:
        app()
    except EhrError as error:
        _end(str(error), error.code)
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.ENOSPC, errno.EROFS, errno.ENOTDIR, errno.EISDIR):
            raise
        where = str(error.filename or "")
        _end(str(EhrError(str(error.strerror), where, "choose a folder that can be written to")), Exit.ENVIRONMENT)
    except KeyboardInterrupt:
        _end("interrupted; nothing half-written was left behind", INTERRUPTED)


def _end(message: str, code: int) -> None:
    sys.stderr.write(f"error: {message}\n")
    raise SystemExit(int(code))
