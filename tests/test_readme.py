"""The README's quick-start runs as written, and the files and verbs it names exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from ehrsequencing.config import SimulateConfig
from ehrsequencing.synthetic import simulate

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


@pytest.mark.slow
def test_the_quick_start_runs(tmp_path, monkeypatch, capsys):
    dataset = simulate(tmp_path / "simulated", SimulateConfig(patients=400, noise_codes=20))
    frame = dataset.scan().select("subject_id", "time", "code", "numeric_value").collect()
    block = re.search(r"```python\n(.*?)```", README, re.DOTALL).group(1)
    monkeypatch.chdir(tmp_path)
    exec(compile(block, "README.md", "exec"), {"frame": frame})
    assert "uno_c" in capsys.readouterr().out


def test_every_file_it_points_to_exists():
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert (ROOT / target).exists(), target


def test_every_study_it_names_exists():
    for study in re.findall(r"studies/\w+\.yaml", README):
        assert (ROOT / study).is_file(), study
