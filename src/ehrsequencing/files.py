"""Files and folders that appear whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from ehrsequencing.errors import EhrError, Exit

try:
    import fcntl
except ImportError:  # Windows has none: runs there are on their own
    fcntl = None  # type: ignore[assignment]

WORK = "work.json"
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
    errno.EFBIG,
    errno.EIO,
}
_LEFT_BEHIND = re.compile(r"\..+\.([0-9a-f]{8}\.(tmp|old)|lock)")
_RUST_ERROR = re.compile(r"\(os error (\d+)\)")
_NUMPY_CUT_SHORT = re.compile(r"\d+ requested and \d+ written")


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
        with locked(out):
            _make(draft, out)
            yield draft
            _swap(draft, out)
    except Exception as error:
        refused = unwritable(out, error)
        if refused is None:
            raise
        raise refused from None
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
    except Exception as error:
        refused = unwritable(path, error)
        if refused is None:
            raise
        raise refused from None
    finally:
        draft.unlink(missing_ok=True)


@contextlib.contextmanager
def workplace(out: Path, marker: str, key: str, say: Callable[[str], None] = lambda text: None) -> Iterator[Path]:
    """``OUT.partial/``, where a long run keeps what it has finished; its owner alone, whatever else ends it.

    It is removed when the block ends well, and when a mistake in what was given ends it; killed, interrupted or out of
    room, it stays for the next run with the same ``key``. One with another key is emptied, and ``say`` tells.

    Raises:
        EhrError: exit 14 where ``out`` holds something else or cannot be written, or another run is at it.
    """
    out = Path(out)
    place = out.parent / f"{out.name}.partial"
    refuse_unwritable(out, marker)
    with locked(place):
        _begin(place, key, say)
        try:
            yield place
        except EhrError as error:
            if error.code != Exit.ENVIRONMENT:
                shutil.rmtree(place, ignore_errors=True)
            raise
        else:
            shutil.rmtree(place)
        finally:
            if [path for path in place.rglob("*") if path.is_file()] == [place / WORK]:
                shutil.rmtree(place)


def _begin(place: Path, key: str, say: Callable[[str], None]) -> None:
    refuse_foreign(place, WORK)
    try:
        known = json.loads((place / WORK).read_text(encoding="utf-8"))["key"]
    except (OSError, ValueError, KeyError, TypeError):
        known = None
    if known == key:
        _sweep(place)
        say(f"going on from {place}, which an interrupted run left")
        return
    if known is not None:
        say(f"{place} is of other settings, data or versions: starting anew")
    shutil.rmtree(place, ignore_errors=True)
    write_json(place / WORK, {"key": key})


def _sweep(place: Path) -> None:
    """Remove the drafts and locks that a killed run left anywhere in its own folder."""
    for path in [path for path in place.rglob(".*") if _LEFT_BEHIND.fullmatch(path.name)]:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def publish(draft: Path, out: Path) -> None:
    """A finished folder takes the place of ``out``, whole."""
    with locked(out):
        _swap(draft, out)


@contextlib.contextmanager
def locked(out: Path) -> Iterator[None]:
    """Nobody else writes ``out`` meanwhile; what a killed run left beside it is tidied away first.

    The lock is the operating system's, on a file beside ``out``: it ends with its process, however that ends.

    Raises:
        EhrError: exit 14 where another run holds it.
    """
    _make(out.parent, out)
    lock = out.parent / f".{out.name}.lock"
    handle = _lock(lock, out)
    try:
        _tidy(out)
        yield
    finally:
        lock.unlink(missing_ok=True)
        os.close(handle)


def _lock(path: Path, out: Path) -> int:
    while True:
        try:
            handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        except FileNotFoundError as error:  # a folder in which nothing can be made, such as /proc
            raise _unwritable(out, error.strerror or str(error)) from None
        try:
            if fcntl is not None:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            raise EhrError(
                "another run is writing there", str(out), "wait for it, or choose another folder", code=Exit.ENVIRONMENT
            ) from None
        except OSError as error:  # some network file systems have no locks: there, runs are on their own
            if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
                os.close(handle)
                raise
        if path.exists() and os.path.samestat(os.fstat(handle), path.stat()):
            return handle
        os.close(handle)  # its holder removed the file between our two steps


def _tidy(out: Path) -> None:
    """Remove drafts of killed runs, and put back the earlier result where one was killed while replacing it."""
    ours = re.compile(rf"\.{re.escape(out.name)}\.[0-9a-f]{{8}}\.(tmp|old)")
    for path in [path for path in out.parent.iterdir() if ours.fullmatch(path.name) and path.is_dir()]:
        if path.suffix == ".old" and not out.exists():
            path.rename(out)
        else:
            shutil.rmtree(path, ignore_errors=True)


def _make(folder: Path, out: Path) -> None:
    """The folder; whatever prevents it, a missing root of a special file system included, is the place's fault."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unwritable(out, error.strerror or str(error)) from None


def refuse_unwritable(out: Path, marker: str) -> None:
    """EhrError (exit 14), before any work, where ``out`` holds something else or cannot be made."""
    refuse_foreign(out, marker)
    probe = out.parent / f".{out.name}.{uuid.uuid4().hex[:8]}.tmp"
    _make(probe, out)
    with contextlib.suppress(FileNotFoundError):  # tidied away by a run that has just begun
        probe.rmdir()


def write_json(path: Path, data: Any) -> None:
    """Write plain data as readable JSON; NaN and infinity are refused, since JSON has none."""
    with staged_file(path) as draft:
        text = json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False)
        draft.write_text(text + "\n", encoding="utf-8")


def refuse_around(out: Path, inputs: Iterable[Path]) -> None:
    """EhrError (exit 14) where ``out`` is an input, or lies inside or around one: nothing that is read is replaced."""
    place = Path(out).resolve()
    for given in (Path(each).resolve() for each in inputs):
        if place.is_relative_to(given) or given.is_relative_to(place):
            where = "inside" if place.is_relative_to(given) else "around"
            what = f"the output lies {where} what is read ({given.name})"
            raise EhrError(what, str(out), "choose a folder of its own", code=Exit.ENVIRONMENT)


def refuse_foreign(out: Path, marker: str) -> None:
    """EhrError (exit 14) where ``out`` exists and is neither empty nor a folder of ours."""
    if not out.exists():
        return
    if Path.cwd().is_relative_to(out.resolve()):
        raise EhrError(
            "the output is the folder you are in, or around it", str(out), "name a folder in it", code=Exit.ENVIRONMENT
        )
    if not out.is_dir():
        raise EhrError("the output path is a file", str(out), "choose a folder", code=Exit.ENVIRONMENT)
    if any(out.iterdir()) and not (out / marker).exists():
        raise EhrError(
            "the output folder holds something else", str(out), "choose a new or an empty folder", code=Exit.ENVIRONMENT
        )


def unwritable(out: Path, error: BaseException) -> EhrError | None:
    """The error for a place that cannot be written (a full disk, say); None where ``error`` is of another kind."""
    why = denied(error)
    return None if why is None else _unwritable(out, why)


def denied(error: BaseException) -> str | None:
    """What the system said against reading or writing a file; None where ``error`` is of another kind.

    Libraries written in Rust give the system's error number in their text only, NumPy not even that.
    """
    if isinstance(error, EhrError):
        return None
    told = _RUST_ERROR.search(str(error))
    number = int(told[1]) if told else getattr(error, "errno", None)
    if isinstance(error, OSError) and _NUMPY_CUT_SHORT.search(str(error)):
        number = errno.ENOSPC
    return os.strerror(number) if number in _OURS_TO_SAY else None


def _unwritable(out: Path, why: str) -> EhrError:
    return EhrError(
        f"the output cannot be written: {why}",
        str(out),
        "choose a place you may write to, on a disk with room",
        code=Exit.ENVIRONMENT,
    )


def _swap(draft: Path, out: Path) -> None:
    """``draft`` takes the place of ``out``; killed in between, the next run puts back what had been there."""
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
