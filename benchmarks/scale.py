"""What each verb costs on 10,000, 100,000 and 1,000,000 patients of 100 events: CPU seconds, wall, peak memory.

Every verb runs as a process of its own, one thread, on random records (``large_data.py``). Finished figures are kept
and not measured again, so that a killed run goes on: remove ``results/scale.json`` to start anew.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from large_data import write_meds, write_table
from machine import environment, sentence
from readme import RESULTS, publish, table

SIZES = (10_000, 100_000, 1_000_000)
STEPS = 200
KEPT = RESULTS / "scale.json"
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "POLARS_MAX_THREADS", "MKL_NUM_THREADS"), "1")
MAIN = "import sys; sys.argv[0] = 'ehrseq'; from ehrsequencing.cli import main; main()"
TOKENS = """
import json, sys, time
from pathlib import Path
from ehrsequencing.config import InputConfig, TokensConfig
from ehrsequencing.events import MedsDataset
from ehrsequencing.study.data import pretraining_records
started, dataset = time.process_time(), MedsDataset.open(sys.argv[1])
_, store = pretraining_records(dataset, dataset.subject_ids(), InputConfig(), TokensConfig(), folder=Path(sys.argv[2]))
print(json.dumps({"tokens": int(store.offsets[-1]), "own_cpu_seconds": round(time.process_time() - started, 2)}))
"""


def run(command: Sequence[str | Path]) -> dict[str, Any]:
    """CPU and wall seconds and peak memory (all, and without mapped files, looked at twenty times a second) of one
    process that succeeds; its last line of output."""
    started = time.perf_counter()
    with tempfile.TemporaryFile() as output:
        child = subprocess.Popen(
            [sys.executable, "-c", *map(str, command)], env=os.environ | ONE_THREAD, stdout=output, stderr=output
        )
        own, done = 0, 0
        while not done:
            time.sleep(0.05)
            own = max(own, anonymous(child.pid))
            done, status, used = os.wait4(child.pid, os.WNOHANG)
        child.returncode = os.waitstatus_to_exitcode(status)
        output.seek(0)
        said = output.read().decode().strip()
    if child.returncode:
        raise RuntimeError(f"exit code {child.returncode}: {said}")
    figures = {
        "cpu_seconds": round(used.ru_utime + used.ru_stime, 2),
        "wall_seconds": round(time.perf_counter() - started, 2),
        "peak_gb": round(used.ru_maxrss / 1024**2, 3),
        "own_gb": round(own / 1024**2, 3),
    }
    return figures | {"said": said.splitlines()[-1][:200] if said else ""}


def anonymous(pid: int) -> int:
    """kB that a process holds at the moment, files mapped into it apart; 0 where that is not told."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("RssAnon")), 0)


def verb(*words: str | Path) -> Callable[[], dict[str, Any]]:
    return lambda: run([MAIN, *words, "--quiet"])


class Kept:
    """Figures by size and verb, on disk as soon as they are there."""

    def __init__(self) -> None:
        self.data: dict[str, Any] = json.loads(KEPT.read_text()) if KEPT.is_file() else {}

    def measured(self, size: int, name: str, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        own = self.data.setdefault(str(size), {})
        if name not in own:
            own[name] = measure() | {"date": time.strftime("%Y-%m-%d")}
            KEPT.write_text(json.dumps(self.data, indent=1) + "\n", encoding="utf-8")
            print(f"{size:>9,} {name:<10} {own[name]}", flush=True)
        return dict(own[name])


def bundle(work: Path, seed: int) -> Path:
    """A bundle to predict with, fitted on the smallest dataset."""
    out, meds = work / "bundle", dataset(work, SIZES[0], seed)
    if not out.is_dir():
        run([MAIN, "pretrain", meds, work / "encoder", "--max-steps", "100", "--quiet"])
        fit = ["finetune", meds, meds / "task.yaml", out, "--encoder", work / "encoder", "--strategy", "frozen"]
        run([MAIN, *fit, "--quiet"])
    return out


def dataset(work: Path, size: int, seed: int) -> Path:
    """The random records of so many patients."""
    out = work / f"meds-{size}"
    return out if (out / "task.yaml").is_file() else write_meds(out, size, seed)


def tokens(meds: Path, folder: Path) -> dict[str, Any]:
    """Vocabulary, values and tokens of a whole dataset, into files."""
    figures = run([TOKENS, meds, folder])
    figures |= json.loads(figures.pop("said"))
    size = sum(path.stat().st_size for path in folder.rglob("*.bin")) if folder.is_dir() else None
    shutil.rmtree(folder, ignore_errors=True)
    return figures | ({} if size is None else {"bytes_a_token": round(size / figures["tokens"], 2)})


def measure(size: int, kept: Kept, work: Path, seed: int) -> None:
    """Every verb at one size."""
    meds, out = dataset(work, size, seed), work / f"out-{size}"
    out.mkdir(exist_ok=True)
    task = meds / "task.yaml"
    kept.measured(size, "cohort", verb("cohort", meds, task, out / "cohort"))
    kept.measured(size, "tokens", lambda: tokens(meds, out / "tokens"))
    kept.measured(size, "pretrain", verb("pretrain", meds, out / "encoder", "--max-steps", str(STEPS)))
    kept.measured(size, "check", verb("check", meds))
    model = bundle(work, seed)
    kept.measured(size, "predict", verb("predict", model, meds, out / "p.parquet", "--row", "frozen"))
    kept.measured(size, "simulate", verb("simulate", out / "simulated", "--patients", str(size)))
    shutil.rmtree(out / "simulated", ignore_errors=True)
    if "convert" not in kept.data[str(size)]:
        raw = work / f"raw-{size}"
        if not (raw / "mapping.yaml").is_file():
            shutil.rmtree(raw, ignore_errors=True)
            write_table(raw, meds)
        convert = verb("convert", "csv", raw, out / "converted", "--mapping", raw / "mapping.yaml")
        kept.measured(size, "convert", convert)
        shutil.rmtree(raw)
    shutil.rmtree(out)


def page(kept: Kept, seed: int) -> str:
    """The tables."""
    names = ("convert", "check", "cohort", "tokens", "pretrain", "predict", "simulate")
    sizes = [size for size in SIZES if str(size) in kept.data]
    lines = []
    for name in names:
        found = [kept.data[str(size)].get(name) for size in sizes]
        lines.append([name, *("" if f is None else f"{f['cpu_seconds']:,.0f} s, {_memory(f)}" for f in found)])
    pace = [kept.data[str(size)].get("tokens") for size in sizes]
    pace_line = [f"{f['tokens'] / f['own_cpu_seconds'] / 1e6:.2f}" if f else "" for f in pace]
    lines.append(["million tokens a CPU second, start-up apart", *pace_line])
    return "\n\n".join(
        [
            table(["CPU time, peak memory", *(f"{size:,} patients" for size in sizes)], lines),
            f"Random records of 100 events a patient (`benchmarks/large_data.py`, seed {seed}), in shards of 2,000 "
            "patients; `convert` reads them from one CSV file, `tokens` fits the tokenizer and writes the tokens of "
            f"all patients, `pretrain` does so for the training patients and takes {STEPS} steps, `predict` reads with "
            "the encoder. `simulate` writes its own patients, 61 events each. A verb is one process with one thread, "
            "start-up included; memory is the process's peak, files mapped into it included.",
            sentence(kept.data["environment"]),
        ]
    )


def _memory(figures: dict[str, Any]) -> str:
    mapped = figures["peak_gb"] - figures.get("own_gb", figures["peak_gb"])
    return f"{figures['peak_gb']:.2f} GB" + (f" ({figures['own_gb']:.2f} without mapped files)" if mapped > 0.5 else "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES)
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "ehr-scale", help="needs 12 GB")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    print(json.dumps(environment(), indent=1), flush=True)
    given.work.mkdir(parents=True, exist_ok=True)
    kept = Kept()
    kept.data["environment"] = environment(seed=given.seed)
    for size in given.sizes:
        measure(size, kept, given.work, given.seed)
        publish("scale", page(kept, given.seed))
    publish("scale", page(kept, given.seed))


if __name__ == "__main__":
    main()
