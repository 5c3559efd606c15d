"""``ehrseq explain``: attributions as files, and as a table for people."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ehrsequencing.attribution.attributions import Attributions
from ehrsequencing.attribution.explaining import explain
from ehrsequencing.bundle import Bundle
from ehrsequencing.config import MIN_CELL
from ehrsequencing.events import MedsDataset
from ehrsequencing.files import refuse_around, refuse_unwritable, staged, write_json

JSON_FILE, TABLE_FILE = "attributions.json", "attributions.parquet"
SHOWN = 15
"""Codes in the table that is printed."""
WIDTH = 60


@dataclass(frozen=True)
class Explanation:
    """A folder that was written, and what it holds."""

    out: Path
    found: dict[str, Any]

    def text(self) -> str:
        """The most influential codes, for people."""
        found = self.found
        n = found["patients"] or f"<{MIN_CELL}"
        head = (
            f"{n} patients explained by '{found['model']}': risk by {found['horizon']:g} days\n"
            f"compared with: {found['baseline']}\n"
        )
        if not found["codes"]:
            return f"{head}no code that at least {MIN_CELL} of them have\n{self._where()}"
        lines = [f"{'mean':>8}{'mean |·|':>10}{'patients':>10}  code"]
        for code in found["codes"][:SHOWN]:
            words = f"{code['code']}  {code['description'] or ''}"[:WIDTH].rstrip()
            lines.append(f"{code['mean']:>+8.2%}{code['mean_abs']:>10.2%}{code['patients']:>10,}  {words}")
        return "\n".join([head, *lines, "", self._where()])

    def _where(self) -> str:
        gap = self.found["completeness"]
        return (
            f"of each patient they sum to its risk less that of the baseline, to {gap:.1g}; attribution is not "
            f"causation\n{self.out / TABLE_FILE}: every event (with ids)\n{self.out / JSON_FILE}: for people"
        )

    def to_json(self) -> dict[str, Any]:
        """For programs: the content of ``attributions.json`` and where the files are."""
        return {"out": str(self.out), "table": str(self.out / TABLE_FILE), **self.found}


def explain_to_folder(
    bundle: Path,
    meds: Path,
    out: Path,
    *,
    labels: Path | None = None,
    row: str | None = None,
    horizon: float | None = None,
    patients: int | None = None,
    seed: int = 0,
) -> Explanation:
    """Write ``attributions.parquet`` (every event, with ids) and ``attributions.json`` (for people) into ``out``.

    Raises:
        EhrError: as ``explain``; exit 14 where ``out`` holds something else, or lies inside the input.
    """
    out = Path(out)
    refuse_around(out, (Path(bundle), Path(meds)))
    refuse_unwritable(out, TABLE_FILE)
    found = explain(
        Bundle.load(bundle),
        MedsDataset.open(meds),
        row=row,
        horizon=horizon,
        labels=labels,
        patients=patients,
        seed=seed,
    )
    return write(found, out)


def write(found: Attributions, out: Path) -> Explanation:
    """The two files; the folder appears whole or not at all."""
    content = found.to_json()
    with staged(out, TABLE_FILE) as draft:
        found.to_parquet(draft / TABLE_FILE)
        write_json(draft / JSON_FILE, content)
    return Explanation(out, content)
