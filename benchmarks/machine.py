"""What a figure was measured on: date, processor, cores, load, threads, versions, and the command."""

from __future__ import annotations

import datetime as dt
import os
import platform
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent


def environment(
    libraries: tuple[str, ...] = ("ehrsequencing", "numpy", "polars", "torch"), seed: int = 0
) -> dict[str, Any]:
    """The machine, as plain data."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    cpu = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())
    flags = next((line.split() for line in lines if line.startswith("flags")), [])
    return {
        "date": dt.date.today().isoformat(),
        "commit": commit(),
        "cpu": cpu,
        "bf16": any(flag in flags for flag in ("avx512_bf16", "amx_bf16")),
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 1),
        "threads": 1,
        "python": platform.python_version(),
        "versions": {name: version(name) for name in libraries},
        "seed": seed,
        "command": " ".join(["python", f"benchmarks/{Path(sys.argv[0]).name}"]),
    }


def commit() -> str:
    """Of the code, and whether it was changed since."""

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True).stdout.strip()

    changed = " with changes" if git("status", "--porcelain", "--", "src", "benchmarks/*.py") else ""
    return git("rev-parse", "--short", "HEAD") + changed


def sentence(about: dict[str, Any]) -> str:
    """The same in one line."""
    versions = ", ".join(f"{name} {number}" for name, number in about["versions"].items())
    return (
        f"{about['date']}, `{about['command']}`, {about['cpu']}, {about['cores']} cores (load {about['load']}), "
        f"Python {about['python']}, {versions}, one thread, seed {about['seed']}"
        f"{', commit ' + about['commit'] if about.get('commit') else ''}."
    )
