"""Slips in a TASK.yaml that no rule of the language would ever mean: refused by name, as configuration."""

from __future__ import annotations

from pathlib import Path

import pytest

from ehrsequencing.config import load_task
from ehrsequencing.errors import EhrError, Exit

BASE = "name: a\nindex: {age: 60}\noutcome: A\n"
SLIPS = {
    "index: {age: .inf}": "index.age",
    "index: {after_history_days: 1.0e+12}": "index.after_history_days",
    "input: {lookback_days: 1.0e+20}": "input.lookback_days",
    "delay: [{code: A, days: 1.0e+15}]": "delay.0.days",
    "require: {history_days: 1.0e+12}": "require.history_days",
    "require: {age_min: .inf}": "require.age_min",
    'exclude: {code: {prefix: ""}}': "it is empty",
    "exclude: {code: {any: []}}": "it is empty",
    "washout: true\nwashout: false": "'washout' stands twice",
    "requires: {visits: 2}": "unknown key 'requires'",
}


@pytest.mark.parametrize("slip", SLIPS)
def test_a_slip_is_refused_by_name(slip: str, tmp_path: Path) -> None:
    key = slip.split(":")[0]
    kept = "".join(line + "\n" for line in BASE.splitlines() if not line.startswith(key + ":"))
    (tmp_path / "task.yaml").write_text(kept + slip + "\n", encoding="utf-8")
    with pytest.raises(EhrError) as caught:
        load_task(tmp_path / "task.yaml")
    assert caught.value.code == Exit.CONFIG
    assert SLIPS[slip] in str(caught.value)


def test_a_misspelt_required_key_is_named(tmp_path: Path) -> None:
    (tmp_path / "task.yaml").write_text(BASE.replace("index", "indx"), encoding="utf-8")
    with pytest.raises(EhrError, match="unknown key 'indx'") as caught:
        load_task(tmp_path / "task.yaml")
    assert "did you mean 'index'" in caught.value.fix
