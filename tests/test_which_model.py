"""The page that says which model to take: its tables come from comparisons and nothing else of it is touched."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "explanation" / "which-model.md"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("which_model", ROOT / "benchmarks" / "which_model.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def row(model, kind, uno, low=0.6):
    metrics = {"uno_c": {"value": uno, "low": low, "high": 0.9}, "ibs": {"value": 0.1, "low": None, "high": None}}
    return {"model": model, "kind": kind, "seconds": 2.0, "metrics": metrics}


def comparison(events=120):
    rows = [
        row("full", "strategy", 0.85),
        row("lora+wide", "strategy", 0.82),
        row("lora", "strategy", 0.81),
        row("frozen-random", "control", 0.8),
        row("cox", "baseline", 0.7),
        row("lstm", "baseline", 0.75),
    ]
    return {"study": "mine", "n": 1500, "events": events, "recipe": {"strategy": "lora"}, "rows": rows}


def test_the_transformer_is_the_recipes_strategy_not_the_best_on_the_evaluated_patients(script):
    table = script.table([comparison()], "uno_c")
    assert "| transformer | 0.810 (0.600–0.900) |" in table
    assert "| transformer + wide | 0.820 (0.600–0.900) |" in table
    assert "| LSTM | 0.750 (0.600–0.900) |" in table
    assert "0.850" not in table
    assert "| Cox | 0.100 |" in script.table([comparison()], "ibs")


def test_a_model_that_a_study_did_not_run_is_a_dash_and_small_counts_stay_small(script):
    fewer = comparison(events=7)
    fewer["rows"] = [one for one in fewer["rows"] if one["model"] != "lstm"]
    table = script.table([comparison(), fewer], "uno_c")
    assert "| LSTM | 0.750 (0.600–0.900) | – |" in table
    assert "under 10" in table
    assert "wide |" not in table.replace("transformer + wide |", "")


def test_only_what_stands_between_the_markers_changes_and_twice_is_once(script, tmp_path):
    page, folder = tmp_path / "page.md", tmp_path / "out"
    folder.mkdir()
    (folder / "comparison.json").write_text(json.dumps(comparison()))
    page.write_text(PAGE.read_text(encoding="utf-8"), encoding="utf-8")
    script.main(page, [folder])
    once = page.read_text(encoding="utf-8")
    script.main(page, [folder])
    assert page.read_text(encoding="utf-8") == once
    own = PAGE.read_text(encoding="utf-8")
    assert once.split(script.BEGIN)[0] == own.split(script.BEGIN)[0]
    assert once.split(script.END)[1] == own.split(script.END)[1]
    assert "mine (1,500 / 120)" in once
