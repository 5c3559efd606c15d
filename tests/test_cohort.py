"""The task language as cases: records, a task, and the labels that must come out; the manual and real records."""

from __future__ import annotations

import datetime as dt
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import yaml
from polars.testing import assert_frame_equal

from ascii_tables import dataset, labels, task
from ehrsequencing.cohort import Cohort, build_cohort
from ehrsequencing.cohort.attrition import Rule
from ehrsequencing.cohort.rules import exclude_rules, index_rules, outcome_rules, require_rules
from ehrsequencing.config import TaskConfig, parse
from ehrsequencing.events import MedsDataset
from ehrsequencing.sources.synthea import convert_synthea

EHR_DATA = Path(os.environ.get("EHR_DATA", "../shared/data"))


@dataclass(frozen=True)
class Case:
    """Records, the keys of the task that differ from the defaults, the labels, and how many each rule removes."""

    name: str
    events: str
    labels: str
    task: dict[str, Any] = field(default_factory=dict)
    removed: dict[str, int] = field(default_factory=dict)


CASES = [
    Case(
        "the outcome counts strictly after prediction_time, follow-up ends at the last record",
        """
        subject_id | time             | code
        1          | 2012-06-01       | A
        1          | 2013-01-11 12:00 | OUT
        1          | 2014-01-01       | A
        2          | 2012-06-01       | A
        2          | 2013-01-31       | A
        """,
        """
        subject_id | prediction_time | duration | event
        1          | 2013-01-01      | 10.5     | 1
        2          | 2013-01-01      | 30       | 0
        """,
    ),
    Case(
        "washout: an outcome at prediction_time itself is in the past",
        """
        subject_id | time             | code
        1          | 2013-01-01       | OUT   # at prediction_time
        1          | 2013-02-01       | OUT
        2          | 2013-01-01 00:01 | OUT   # a minute later
        """,
        """
        subject_id | prediction_time | duration             | event
        2          | 2013-01-01      | 0.000694444444444444 | 1
        """,
        removed={"washout": 1},
    ),
    Case(
        "without washout, earlier outcomes are history and the next one counts",
        """
        subject_id | time       | code
        1          | 2012-01-01 | OUT
        1          | 2013-02-01 | OUT
        2          | 2013-01-01 | OUT
        2          | 2013-03-02 | A
        """,
        """
        subject_id | prediction_time | duration | event
        1          | 2013-01-01      | 31       | 1
        2          | 2013-01-01      | 60       | 0
        """,
        {"washout": False},
    ),
    Case(
        "death ends follow-up: what is recorded later does not count",
        """
        subject_id | time       | code
        1          | 2012-01-01 | A
        1          | 2013-01-03 | MEDS_DEATH
        1          | 2013-01-05 | OUT
        2          | 2012-01-01 | A
        2          | 2013-01-03 | OUT         # at the time of death: counts
        2          | 2013-01-03 | MEDS_DEATH
        3          | 2012-01-01 | OUT         # here so that a training subject has one
        """,
        """
        subject_id | prediction_time | duration | event
        1          | 2013-01-01      | 2        | 0
        2          | 2013-01-01      | 2        | 1
        """,
        removed={"record over": 1},
    ),
    Case(
        "death as the outcome; certificates written later are no second death",
        """
        subject_id | time       | code
        1          | 2013-01-03 | MEDS_DEATH
        1          | 2013-01-05 | CERTIFICATE
        2          | 2013-01-05 | A
        """,
        """
        subject_id | prediction_time | duration | event
        1          | 2013-01-01      | 2        | 1
        2          | 2013-01-01      | 4        | 0
        """,
        {"outcome": "MEDS_DEATH"},
    ),
    Case(
        "a death dated at midnight leaves no prediction later that day",
        """
        subject_id | time             | code
        1          | 2013-05-01 00:00 | MEDS_DEATH
        1          | 2013-05-01 08:00 | ADMISSION   # recorded after the dated death
        1          | 2013-05-01 09:00 | OUT
        2          | 2013-05-01 08:00 | ADMISSION
        2          | 2013-05-01 20:00 | MEDS_DEATH  # a death with its hour
        2          | 2013-05-01 14:00 | OUT
        3          | 2013-04-30 08:00 | ADMISSION
        3          | 2013-05-01 00:00 | MEDS_DEATH  # dated: ends follow-up at midnight
        3          | 2013-05-01 14:00 | OUT
        """,
        """
        subject_id | prediction_time     | duration           | event
        2          | 2013-05-01 08:00    | 0.25               | 1
        3          | 2013-04-30 08:00    | 0.6666666666666666 | 0
        """,
        {"index": {"event": "first", "code": "ADMISSION"}},
        {"dead": 1},
    ),
    Case(
        "index by date: before birth, after death, after the last record, nothing after it",
        """
        subject_id | time       | code
        1          | 2014-01-01 | MEDS_BIRTH
        1          | 2015-01-01 | OUT
        2          | 2012-01-01 | MEDS_DEATH
        2          | 2015-01-01 | OUT
        3          | 2012-01-01 | OUT
        4          | 2013-01-01 | A          # the last record is at prediction_time
        5          | 2013-01-02 | OUT
        6          |            | SEX//F     # never seen
        7          | 2013-01-01 | MEDS_DEATH # at prediction_time
        7          | 2013-01-09 | OUT
        8          | 2013-01-01 | MEDS_BIRTH # at prediction_time: just in time
        8          | 2013-01-02 | A
        """,
        """
        subject_id | prediction_time | duration | event
        5          | 2013-01-01      | 1        | 1
        8          | 2013-01-01      | 1        | 0
        """,
        removed={"before birth": 1, "dead": 2, "record over": 2, "no follow-up": 1},
    ),
    Case(
        "index by age: the birthday begins at midnight, leap births on 28 February",
        """
        subject_id | time             | code
        1          | 1960-05-05 17:00 | MEDS_BIRTH
        1          | 2010-05-05 06:00 | OUT
        2          | 1960-02-29       | MEDS_BIRTH
        2          | 2010-03-01       | OUT
        3          | 1960-05-05       | MEDS_BIRTH
        3          | 2010-05-04       | OUT         # does not live to see it in the record
        4          | 2010-05-06       | OUT         # birth unknown
        """,
        """
        subject_id | prediction_time | duration | event
        1          | 2010-05-05      | 0.25     | 1
        2          | 2010-02-28      | 1        | 1
        """,
        {"index": {"age": 50}},
        {"no birth": 1, "record over": 1},
    ),
    Case(
        "index by first event: the first, never a static row; nobody without one",
        """
        subject_id | time             | code
        1          |                  | E11.9
        1          | 2010-01-01 10:00 | E11.65
        1          | 2010-02-01       | E11.9
        1          | 2010-02-10 10:00 | OUT
        2          | 2010-01-01       | E10.1
        2          | 2010-02-01       | OUT
        """,
        """
        subject_id | prediction_time  | duration | event
        1          | 2010-01-01 10:00 | 40       | 1
        """,
        {"index": {"event": "first", "code": {"prefix": "E11"}}},
        {"no index": 1},
    ),
    Case(
        "ages in require: completed years, both ends included",
        """
        subject_id | time       | code
        1          | 1995-01-01 | MEDS_BIRTH  # 18 today
        1          | 2014-01-01 | OUT
        2          | 1995-01-02 | MEDS_BIRTH  # 17
        2          | 2014-01-01 | OUT
        3          | 1947-01-02 | MEDS_BIRTH  # 65 for one more day
        3          | 2014-01-01 | OUT
        4          | 1947-01-01 | MEDS_BIRTH  # 66 today
        4          | 2014-01-01 | OUT
        5          | 2014-01-01 | OUT
        """,
        """
        subject_id | prediction_time | duration | event
        1          | 2013-01-01      | 365      | 1
        3          | 2013-01-01      | 365      | 1
        """,
        {"require": {"visits": 0, "age_min": 18, "age_max": 65}},
        {"no birth": 1, "age_min": 1, "age_max": 1},
    ),
    Case(
        "history and visits are counted in what a model may read",
        """
        subject_id | time             | code
        1          | 2000-01-01       | MEDS_BIRTH  # no visit
        1          | 2010-05-01 00:00 | A           # from input.from on
        1          | 2012-01-01       | A
        1          | 2014-01-01       | OUT
        2          | 2010-04-30       | A           # before input.from
        2          | 2012-01-01       | A
        2          | 2014-01-01       | OUT
        3          | 2010-06-01 08:00 | A
        3          | 2010-06-01 20:00 | A           # the same day is one visit
        3          |                  | SEX//F      # static is no visit
        3          | 2013-01-02       | A           # after prediction_time
        3          | 2014-01-01       | OUT
        4          | 1950-01-01       | MEDS_BIRTH  # neither history nor a visit
        4          | 2012-06-01       | A
        4          | 2013-01-01       | A           # at prediction_time: read
        4          | 2014-01-01       | OUT
        5          | 2012-01-02       | A           # 365 days to the day: enough
        5          | 2012-01-03       | A
        5          | 2014-01-01       | A
        """,
        """
        subject_id | prediction_time | duration | event
        1          | 2013-01-01      | 365      | 1
        5          | 2013-01-01      | 365      | 0
        """,
        {"require": {"visits": 2, "history_days": 365}, "input": {"from": dt.date(2010, 5, 1)}},
        {"history_days": 1, "visits": 2},
    ),
    Case(
        "exclude: at or before prediction_time, static rows always, values in their range",
        """
        subject_id | time       | code   | numeric_value
        1          | 2013-01-01 | HBA1C  | 6.5
        1          | 2014-01-01 | OUT    |
        2          | 2012-01-01 | HBA1C  | 6.4
        2          | 2012-02-01 | HBA1C  |
        2          | 2012-03-01 | HBA1C  | nan
        2          | 2013-01-02 | HBA1C  | 9.9
        2          | 2014-01-01 | OUT    |
        3          |            | SEX//M |
        3          | 2014-01-01 | OUT    |
        """,
        """
        subject_id | prediction_time | duration | event
        2          | 2013-01-01      | 365      | 1
        """,
        {"exclude": [{"code": "HBA1C", "value_min": 6.5}, "SEX//M"]},
        {"exclude 1": 1, "exclude 2": 1},
    ),
    Case(
        "an outcome with a range; limits are compared as stored (float32)",
        """
        subject_id | time       | code | numeric_value
        1          | 2013-01-02 | K    | 0.2
        1          | 2013-01-03 | K    | 0.1
        2          | 2013-01-03 | K    | 0.11
        """,
        """
        subject_id | prediction_time | duration | event
        1          | 2013-01-01      | 2        | 1
        2          | 2013-01-01      | 2        | 0
        """,
        {"outcome": {"code": {"any": ["K", "POTASSIUM"]}, "value_max": 0.1}},
    ),
    Case(
        "a regular expression is searched for anywhere in the code",
        """
        subject_id | time       | code
        1          | 2013-01-02 | DX//ICD10CM//I21.4
        2          | 2013-01-02 | DX//ICD10CM//I25
        """,
        """
        subject_id | prediction_time | duration | event
        1          | 2013-01-01      | 1        | 1
        2          | 2013-01-01      | 1        | 0
        """,
        {"outcome": {"code": {"regex": "//I2[1-4]"}}},
    ),
    Case(
        "rules are counted in order, each on what the one before left",
        """
        subject_id | time       | code
        1          | 2012-01-01 | BAD
        1          | 2012-01-01 | OUT
        2          | 2012-01-01 | OUT
        2          | 2013-01-01 | A
        3          | 2013-01-01 | A
        4          | 2013-01-05 | OUT
        1          | 2013-01-01 | A
        """,
        """
        subject_id | prediction_time | duration | event
        4          | 2013-01-01      | 4        | 1
        """,
        {"exclude": "BAD"},
        {"exclude 1": 1, "washout": 1, "no follow-up": 1},
    ),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_case(case: Case, tmp_path: Path) -> None:
    cohort = build_cohort(dataset(case.events, tmp_path / "meds"), task(**case.task))
    assert_frame_equal(cohort.table.drop("split"), labels(case.labels))
    removed = {rule: count for rule, count in cohort.attrition.select("rule", "removed").iter_rows() if count}
    assert removed == case.removed
    assert_attrition_adds_up(cohort)


def assert_attrition_adds_up(cohort: Cohort) -> None:
    removed, remaining = cohort.attrition["removed"].to_list(), cohort.attrition["remaining"].to_list()
    assert all(
        before - gone == after for before, gone, after in zip(remaining, removed[1:], remaining[1:], strict=False)
    )
    assert remaining[-1] == cohort.table.height


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
