"""Writes the tables of the page on which model to take from finished studies: which_model.py PAGE OUT [OUT …]."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

BEGIN, END = "<!-- begin: made by benchmarks/which_model.py -->", "<!-- end -->"
SIMPLE = {
    "kaplan-meier": "one curve for all",
    "aalen-johansen": "one curve for all",
    "age-sex": "age and sex",
    "cox": "Cox",
    "logistic": "logistic",
    "boosting": "boosting",
    "random-survival-forest": "forest",
    "wide": "wide",
    "lstm": "LSTM",
}
TRANSFORMER, BLEND, CONTROL = "transformer", "transformer + wide", "random encoder"
COLUMNS = (*dict.fromkeys(SIMPLE.values()), TRANSFORMER, BLEND, CONTROL)
SMALLEST = 10
"""Counts below this are not written for people."""

Row = dict[str, Any]


def named(comparison: Mapping[str, Any]) -> dict[str, Row]:
    """Rows of a comparison by column. The transformer is the strategy that the recipe names *before* anything is
    scored, not the best of several on the evaluated patients; where it was not fitted, the first that was."""
    rows = {row["model"]: row for row in comparison["rows"]}
    found = {column: rows[model] for model, column in SIMPLE.items() if model in rows}
    alone = [row["model"] for row in comparison["rows"] if row["kind"] == "strategy" and "+" not in row["model"]]
    recipe = comparison.get("recipe", {}).get("strategy")
    chosen = recipe if recipe in alone else next(iter(alone), None)
    pairs = {TRANSFORMER: chosen, BLEND: f"{chosen}+wide", CONTROL: "frozen-random"}
    return found | {column: rows[model] for column, model in pairs.items() if model in rows}


def figure(row: Row | None, metric: str) -> str:
    """A figure with its interval; a dash where the study did not run the model."""
    value = None if row is None else row["metrics"].get(metric)
    if value is None:
        return "–"
    return (
        f"{value['value']:.3f}"
        if value["low"] is None
        else f"{value['value']:.3f} ({value['low']:.3f}–{value['high']:.3f})"
    )


def patients(comparison: Mapping[str, Any]) -> str:
    """Evaluated patients and their outcomes; small counts stay small."""
    events = comparison["events"]
    return f"{comparison['n']:,} / {f'{events:,}' if events >= SMALLEST else f'under {SMALLEST}'}"


def table(comparisons: Sequence[Mapping[str, Any]], metric: str) -> str:
    """One line a model, one column a study; models that no study ran are left out."""
    found = [named(comparison) for comparison in comparisons]
    heads = [f"{comparison['study']} ({patients(comparison)})" for comparison in comparisons]
    lines = [f"| model | {' | '.join(heads)} |", f"| --- |{' --- |' * len(heads)}"]
    for column in COLUMNS:
        if any(column in rows for rows in found):
            lines.append(f"| {column} | {' | '.join(figure(rows.get(column), metric) for rows in found)} |")
    return "\n".join(lines)


def behind(comparison: Mapping[str, Any]) -> str:
    """Which strategy stands for the transformer, how long it and the LSTM took, and against what."""
    rows = named(comparison)
    times = {
        column: rows[column]["seconds"] for column in ("Cox", "boosting", "wide", "LSTM", TRANSFORMER) if column in rows
    }
    told = ", ".join(f"{column} {seconds:.1f} s" for column, seconds in times.items() if seconds is not None)
    chosen = rows[TRANSFORMER]["model"] if TRANSFORMER in rows else "none fitted"
    return f"- `{comparison['study']}`: the transformer is `{chosen}`; fitting one seed took {told}."


def section(comparisons: Sequence[Mapping[str, Any]]) -> str:
    """Everything between the markers."""
    return "\n\n".join(
        [
            "Uno's C, higher is better (patients / outcomes evaluated):",
            table(comparisons, "uno_c"),
            "Integrated Brier score, lower is better:",
            table(comparisons, "ibs"),
            "\n".join(behind(comparison) for comparison in comparisons),
        ]
    )


def rewrite(page: str, comparisons: Sequence[Mapping[str, Any]]) -> str:
    """The page with what stands between its markers replaced."""
    head, rest = page.split(BEGIN)
    tail = rest.split(END)[1]
    return f"{head}{BEGIN}\n\n{section(comparisons)}\n\n{END}{tail}"


def main(page: Path, folders: Sequence[Path]) -> None:
    """Read ``comparison.json`` of each folder and rewrite the page in place."""
    comparisons = [json.loads((folder / "comparison.json").read_text(encoding="utf-8")) for folder in folders]
    page.write_text(rewrite(page.read_text(encoding="utf-8"), comparisons), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), [Path(argument) for argument in sys.argv[2:]])
