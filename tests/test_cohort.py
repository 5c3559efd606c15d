"""The task language as cases: records, a task, and the labels that must come out; the manual and real records."""

from __future__ import annotations

import importlib.util
import os
import re
from functools import partial
from pathlib import Path

import polars as pl
import pytest
import yaml
from polars.testing import assert_frame_equal

from ascii_tables import dataset, groups, labels, readings, task
from ehrsequencing.cohort import Cohort, build_cohort, cut
from ehrsequencing.cohort.attrition import Rule
from ehrsequencing.cohort.rules import exclude_rules, index_rules, outcome_rules, require_rules
from ehrsequencing.config import SplitConfig, TaskConfig, parse
from ehrsequencing.events import MedsDataset
from ehrsequencing.events import dataset as events_dataset
from ehrsequencing.sources.synthea import convert_synthea
from task_cases import CASES, Case

EHR_DATA = Path(os.environ.get("EHR_DATA", "../shared/data"))


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.key}: {case.name}")
def test_case(case: Case, tmp_path: Path) -> None:
    assert_case(case, dataset(case.events, tmp_path / "meds"))


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.key}: {case.name}")
def test_case_read_in_parts(case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As data too large for memory are read: here every subject is a part of its own."""
    data = dataset(case.events, tmp_path / "meds")
    calendar = parse(SplitConfig, case.split, "test").calendar
    build = partial(build_cohort, task=task(**case.task), calendar=calendar, visit_column=case.visit_column)
    expected = build(data)
    (whole,) = data.shards()
    events = pl.read_parquet(whole)
    whole.unlink()
    for number, own in enumerate(events.partition_by("subject_id", maintain_order=True)):
        own.write_parquet(whole.parent / f"{number}.parquet")
    monkeypatch.setattr(events_dataset, "PART_EVENTS", 1)
    assert len(data.parts()) == events["subject_id"].n_unique()
    found = build(data)
    assert found.fingerprint == expected.fingerprint
    assert found.attrition.equals(expected.attrition)
    assert_case(case, data)


def assert_case(case: Case, data: MedsDataset) -> None:
    question = task(**case.task)
    calendar = parse(SplitConfig, case.split, "test").calendar
    cohort = build_cohort(data, question, calendar=calendar, visit_column=case.visit_column)
    assert_rows(cohort.table, case.labels)
    assert (cohort.visits is None) == (case.visits == "")
    if cohort.visits is not None:
        assert_rows(cohort.visits, case.visits)
    if case.subgroups:
        assert_frame_equal(cohort.subgroups, groups(case.subgroups))
    if case.read:
        history = cut(data.scan(), cohort.table, question, visit_column=case.visit_column).collect()
        assert_frame_equal(history.select("subject_id", "time", "code").sort(pl.all()), readings(case.read))
    removed = {rule: count for rule, count in cohort.attrition.select("rule", "removed").iter_rows() if count}
    assert removed == case.removed
    assert_attrition_adds_up(cohort)


def assert_rows(found: pl.DataFrame, expected: str) -> None:
    wanted = labels(expected)
    assert_frame_equal(found.select(wanted.columns), wanted)


def assert_attrition_adds_up(cohort: Cohort) -> None:
    kept = {"remaining": cohort.table["subject_id"].n_unique(), "rows": cohort.table.height}
    for name, gone in (("remaining", "removed"), ("rows", "rows_removed")):
        left, removed = cohort.attrition[name].to_list(), cohort.attrition[gone].to_list()
        assert all(before - out == after for before, out, after in zip(left, removed[1:], left[1:], strict=False))
        assert left[-1] == kept[name]


MANUAL = Path(__file__).parents[1] / "docs/reference/task-language.md"


def manual_task(number: int) -> TaskConfig:
    block = re.findall(r"```yaml\n(.*?)```", MANUAL.read_text(encoding="utf-8"), re.DOTALL)[number]
    return parse(TaskConfig, yaml.safe_load(block), str(MANUAL))


def test_the_manual_names_every_key_and_rule() -> None:
    text = MANUAL.read_text(encoding="utf-8")
    keys = {name for name in TaskConfig.model_fields if f"`{name}" not in text}
    assert not keys, "keys of the task language without a line in the manual"
    table = text[text.index("| rule | removes |") : text.index("Then: nobody left")]
    written = re.findall("`([^`]*)`", "".join(line.split("|")[1] for line in table.strip().splitlines()[2:]))
    names = {"exclude": ["A", "B"], "require": {"age_min": 1, "age_max": 2, "history_days": 1}}
    visits = {"index": {"labels": "labels.parquet"}, "predict_at": "every_visit"}
    rules = [rule.name for rule in _rules(task(**names, **visits))]
    assert written == [*rules, "evaluate_at", "period"]


def _rules(every: TaskConfig) -> list[Rule]:
    asked = [*index_rules(every, follow_up=True), *require_rules(every.require)]
    return [*asked, *exclude_rules(every), *outcome_rules(every, follow_up=True)]


def test_the_manuals_cases_are_those_of_the_tests() -> None:
    spec = importlib.util.spec_from_file_location("task_language", MANUAL.parents[1] / "task_language.py")
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    assert script.page() == MANUAL.read_text(encoding="utf-8"), "run: python docs/task_language.py"
    shown = {case.key for case in CASES}
    without = {"name", "horizon_days"}  # what they do is no matter of records
    assert set(TaskConfig.model_fields) - without - shown == set()


def test_the_manuals_second_example(tmp_path: Path) -> None:
    records = """
        subject_id | time       | code           | numeric_value
        1          | 1960-03-01 | MEDS_BIRTH     |
        1          | 2010-01-01 | ICD10CM//I10   |
        1          | 2012-01-01 | ICD10CM//E11.9 |
        1          | 2012-01-31 | ICD10CM//I21.9 |
        2          | 1960-03-01 | MEDS_BIRTH     |
        2          | 2009-01-01 | LOINC//33914-3 | 30    # at the limit
        2          | 2010-01-01 | ICD10CM//C50.1 |
        2          | 2012-01-01 | ICD10CM//E11.9 |
        2          | 2012-01-31 | ICD10CM//I21.4 |
        """
    cohort = build_cohort(dataset(records, tmp_path / "meds"), manual_task(1))
    assert cohort.table.select("subject_id", "duration", "event").rows() == [(1, 30.0, 1)]
    assert cohort.attrition.filter(pl.col("removed") > 0)["rule"].to_list() == ["exclude 1"]


@pytest.fixture(scope="module")
def synthea(tmp_path_factory: pytest.TempPathFactory) -> MedsDataset:
    source = EHR_DATA / "synthea_1k"
    if not source.is_dir():
        pytest.skip(f"{source} is not there")
    return convert_synthea(source, tmp_path_factory.mktemp("synthea") / "meds").dataset


def test_synthea_death_within_five_years(synthea: MedsDataset) -> None:
    """The manual's first example; its counts were had once more from the raw CSV files, without this package."""
    cohort = build_cohort(synthea, manual_task(0))
    died = pl.col("event") == 1
    assert cohort.table.height == 722
    assert cohort.table.filter(died & (pl.col("duration") <= 1826.25)).height == 36
    assert cohort.table.filter(died).height == 47
    removed = dict(cohort.attrition.select("rule", "removed").iter_rows())
    assert removed["subjects"] == removed["no birth"] == removed["no follow-up"] == 0
    assert removed["before birth"] + removed["dead"] + removed["age_min"] == 1171 - 724
    assert removed["visits"] == 2
