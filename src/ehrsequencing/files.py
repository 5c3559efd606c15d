"""Files and folders that appear whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ehrsequencing.errors import EhrError, Exit

_OURS_TO_SAY = {
    errno.EACCES,
    errno.EPERM,
    errno.ENOSPC,
    errno.EROFS,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.EDQUOT,
    errno.ENAMETOOLONG,
    errno.ELOOP,
}


@contextlib.contextmanager
def staged(out: Path | str, marker: str) -> Iterator[Path]:
    """A temporary folder that becomes ``out`` when the block ends well, and vanishes when it does not.

    ``marker`` is a file (path inside the folder) that tells our own earlier result: only such a folder, or an empty
    one, is replaced.

    Raises:
        EhrError: exit 14 where ``out`` holds something else or cannot be written.
    """
    out = Path(out)
    draft = out.parent / f".{out.name}.{uuid.uuid4().hex[:8]}.tmp"
    try:
        refuse_foreign(out, marker)
        _make(draft, out)
        yield draft
        _swap(draft, out)
    except OSError as error:
        if error.errno not in _OURS_TO_SAY:
            raise
        raise unwritable(out, error) from None
    finally:
        shutil.rmtree(draft, ignore_errors=True)


@contextlib.contextmanager
def staged_file(path: Path | str) -> Iterator[Path]:
    """A temporary path beside ``path`` that takes its name when the block ends well."""
    path = Path(path)
    draft = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        _make(path.parent, path)
        yield draft
        os.replace(draft, path)
    except OSError as error:
        if error.errno not in _OURS_TO_SAY:
            raise
        raise unwritable(path, error) from None
    finally:
        draft.unlink(missing_ok=True)


def _make(folder: Path, out: Path) -> None:
    """The folder; whatever prevents it, a missing root of a special file system included, is the place's fault."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise unwritable(out, error) from None


def refuse_unwritable(out: Path, marker: str) -> None:
    """EhrError (exit 14), before any work, where ``out`` holds something else or cannot be made."""
    refuse_foreign(out, marker)
    probe = out.parent / f".{out.name}.{uuid.uuid4().hex[:8]}.tmp"
    _make(probe, out)
    probe.rmdir()


def write_json(path: Path, data: Any) -> None:
    """Write plain data as readable JSON; NaN and infinity are refused, since JSON has none."""
    with staged_file(path) as draft:
        text = json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False)
        draft.write_text(text + "\n", encoding="utf-8")


def refuse_foreign(out: Path, marker: str) -> None:
    """EhrError (exit 14) where ``out`` exists and is neither empty nor a folder of ours."""
    if not out.exists():
        return
    if not out.is_dir():
        raise EhrError("the output path is a file", str(out), "choose a folder", code=Exit.ENVIRONMENT)
    if any(out.iterdir()) and not (out / marker).exists():
        raise EhrError(
            "the output folder holds something else", str(out), "choose a new or an empty folder", code=Exit.ENVIRONMENT
        )


def unwritable(out: Path, error: OSError) -> EhrError:
    """The error for a place that cannot be written."""
    return EhrError(
        f"the output cannot be written: {error.strerror or error}",
        str(out),
        "choose a place you may write to, on a disk with room",
        code=Exit.ENVIRONMENT,
    )


def _swap(draft: Path, out: Path) -> None:
    if not out.exists():
        draft.rename(out)
        return
    earlier = draft.with_suffix(".old")
    out.rename(earlier)
    try:
        draft.rename(out)
    except OSError:
        earlier.rename(out)
        raise
    shutil.rmtree(earlier)
