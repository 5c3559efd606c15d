"""The founding document's example runs, for every strategy, and stays short."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parent.parent / "examples" / "survival_analysis" / "train_behrt_survival.py"


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["frozen", "lora", "full"])
def test_it_runs(strategy, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [str(EXAMPLE), "--strategy", strategy, "--patients", "200", "--epochs", "1"])
    runpy.run_path(str(EXAMPLE), run_name="__main__")
    out = capsys.readouterr().out
    assert "Trainable:" in out
    assert "uno_c" in out


def test_it_is_short_and_only_calls_the_package():
    lines = EXAMPLE.read_text().splitlines()
    assert len(lines) < 60
    assert not any("import torch" in line or "loss" in line for line in lines)
