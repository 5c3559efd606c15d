"""Events to tokens, simulation and start-up: CPU time with one thread, wall time with two, memory, medians of several.

Each measurement is a process of its own, the ways in turn; within it each job is run once before it is timed.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from large_data import shards
from machine import environment, sentence
from readme import RESULTS, publish, table

PATIENTS, SAMPLE, REPEATS, STARTS = 50_000, 500, 5, 10
"""Patients tokenised; of them those that the pandas loop reads; timings; start-ups."""


def prepared(patients: int) -> tuple[Any, Any, Any]:
    """History, rows and tokenizer of random records, as pretraining has them."""
    import polars as pl

    from ehrsequencing.config import TokensConfig
    from ehrsequencing.tokens import Tokenizer

    events = pl.concat(list(shards(patients)))
    last = pl.col("time").max().over("subject_id").alias("prediction_time")
    history = events.with_columns(last)
    rows = history.select("subject_id", "prediction_time").unique().sort("subject_id")
    return history, rows, Tokenizer.fit(history, TokensConfig())


def race(loop: bool) -> None:
    """In a process of its own: ``tokenize`` and, on a sample, the pandas loop, in turn; peak memory of the first."""
    from pandas_tokens import pandas_tokens

    from ehrsequencing.tokens import tokenize

    history, rows, tokenizer = prepared(PATIENTS)
    sample = rows.head(SAMPLE)
    own = history.filter(history["subject_id"].is_in(sample["subject_id"].implode()))
    columns = {name: own[name].to_numpy() for name in ("subject_id", "prediction_time", "time", "numeric_value")}
    frame = _frame(columns | {"code": own["code"].to_list()})
    before = _memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    tokenize(history, rows, tokenizer)
    extra = _memory("VmHWM") - before
    ours, theirs = [], []
    for _ in range(REPEATS):
        cpu, wall = time.process_time(), time.perf_counter()
        tokenize(history, rows, tokenizer)
        ours.append({"cpu": time.process_time() - cpu, "wall": time.perf_counter() - wall})
        if loop:
            cpu = time.process_time()
            found = pandas_tokens(frame, tokenizer)
            theirs.append({"cpu": time.process_time() - cpu, "events": own.height})
    if loop:
        store = tokenize(own, sample, tokenizer)
        np.testing.assert_array_equal(found["offsets"], store.offsets[1:])
        for name in ("code", "value", "age", "visit", "gap", "day"):
            np.testing.assert_allclose(found[name], getattr(store, name), rtol=1e-5, atol=1e-5)
    every = [run | {"events": history.height, "extra_gb": extra} for run in ours]
    print(json.dumps({"tokens": every, "pandas": theirs}))


def _frame(columns: dict[str, Any]) -> Any:
    import pandas as pd

    return pd.DataFrame(columns)


def _memory(key: str) -> float:
    """Of this process, in GB."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key))
    return int(line.split()[1]) / 1024**2


def child(code: str, threads: int = 1) -> tuple[str, dict[str, float]]:
    """What a process said, and its CPU and wall seconds and peak memory."""
    names = ("OMP_NUM_THREADS", "POLARS_MAX_THREADS", "MKL_NUM_THREADS")
    started = time.perf_counter()
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(
            [sys.executable, "-c", code], env=os.environ | dict.fromkeys(names, str(threads)), stdout=output
        )
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        output.seek(0)
        said = output.read().decode()
    if process.returncode:
        raise RuntimeError(code)
    wall = time.perf_counter() - started
    return said, {"cpu": used.ru_utime + used.ru_stime, "wall": wall, "peak_gb": used.ru_maxrss / 1024**2}


def median(runs: list[dict[str, float]]) -> dict[str, float]:
    """Of each figure."""
    return {name: round(statistics.median(run[name] for run in runs), 4) for name in runs[0]}


def measure(work: Path) -> dict[str, Any]:
    """Every job several times, in turn."""
    main = "import sys; sys.argv = {}; from ehrsequencing.cli import main\ntry: main()\nexcept SystemExit: pass"
    jobs = {
        "import": "import ehrsequencing",
        "help": main.format(["ehrseq", "--help"]),
        "simulate": main.format(["ehrseq", "simulate", str(work / "sim"), "--patients", "50000", "--quiet"]),
    }
    found: dict[str, list[dict[str, float]]] = {}
    for turn in range(STARTS):
        for name, code in jobs.items():
            if name != "simulate" or turn < 3:
                found.setdefault(name, []).append(child(code)[1])
    found |= json.loads(child("import speed; speed.race(True)")[0])
    found["tokens_two_threads"] = json.loads(child("import speed; speed.race(False)", threads=2)[0])["tokens"]
    return {name: median(runs) for name, runs in found.items()}


def page(found: dict[str, Any]) -> str:
    """The tables."""
    ours, theirs = found["tokens"], found["pandas"]
    pace, their_pace = ours["events"] / ours["cpu"], theirs["events"] / theirs["cpu"]
    lines = [
        [
            f"events → tokens, {ours['events'] / 1e6:.1f} M events, {PATIENTS:,} patients",
            f"{ours['cpu']:.2f} s CPU, {found['tokens_two_threads']['wall']:.2f} s wall with two threads",
            f"{pace / 1e6:.1f} M events/s; {pace / their_pace:,.0f} times a loop over pandas groups; "
            f"{ours['extra_gb']:.2f} GB above what was there",
        ],
        [
            f"the loop, on {SAMPLE:,} of these patients",
            f"{theirs['cpu']:.2f} s CPU",
            f"{their_pace:,.0f} events/s, the same tokens",
        ],
        [
            "`ehrseq simulate`, 50,000 patients",
            f"{found['simulate']['cpu']:.1f} s CPU, {found['simulate']['wall']:.1f} s wall",
            f"{found['simulate']['peak_gb']:.2f} GB at most",
        ],
        *(
            [said, f"{found[name]['cpu']:.2f} s CPU, {found[name]['wall']:.2f} s wall", ""]
            for name, said in (("help", "`ehrseq --help`"), ("import", "`import ehrsequencing`"))
        ),
    ]
    about = f"Medians of {REPEATS} (start-up: {STARTS}, simulation: 3), in turn."
    return "\n\n".join([table(["job", "time", "pace, memory"], lines), about, sentence(found["environment"])])


def main() -> None:
    os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    about = environment(("ehrsequencing", "numpy", "polars", "pandas"))
    print(json.dumps(about, indent=1), flush=True)
    with tempfile.TemporaryDirectory() as work:
        found = measure(Path(work)) | {"environment": about}
    (RESULTS / "speed.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    publish("speed", page(found))
    print(page(found))


if __name__ == "__main__":
    main()
