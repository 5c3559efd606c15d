"""The task language as cases: records, a task, and what must come out. Tests run them, the manual prints them."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Case:
    """What one key of the task language means, by example.

    Attributes:
        key: under which the manual shows it.
        events: the records; further columns than MEDS' own are kept as text.
        labels: the cohort's rows; with a column ``split`` where that is the point.
        task: the keys that differ from a task that asks on 2013-01-01 for OUT and requires nothing.
        removed: how many subjects each rule removes.
        visits: the eligible visits, with a prediction at every visit.
        read: what a model reads of the records, where that is the point.
        split: the study's ``split``.
        visit_column: the study's ``tokens.visit_column``.
        subgroups: the groups of the rows, where that is the point.
    """

    key: str
    name: str
    events: str
    labels: str
    task: dict[str, Any] = field(default_factory=dict)
    removed: dict[str, int] = field(default_factory=dict)
    visits: str = ""
    read: str = ""
    split: dict[str, Any] = field(default_factory=dict)
    visit_column: str | None = None
    subgroups: str = ""


CASES = [
    Case(
        "outcome",
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
        "washout",
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
        "washout",
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
        "follow_up",
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
        "outcome",
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
        "index",
        "a death known by its date alone comes with the last record of its day",
        """
        subject_id | time             | code
        1          | 2013-05-01 00:00 | MEDS_DEATH  # read as 09:00
        1          | 2013-05-01 08:00 | ADMISSION
        1          | 2013-05-01 09:00 | OUT
        1          | 2013-05-02 09:00 | OUT
        2          | 2013-05-01 08:00 | ADMISSION
        2          | 2013-05-01 10:00 | MEDS_DEATH  # a death with its hour
        2          | 2013-05-01 14:00 | OUT
        3          | 2013-04-30 08:00 | ADMISSION
        3          | 2013-05-01 00:00 | MEDS_DEATH  # the only record of its day
        3          | 2013-05-02 14:00 | OUT
        """,
        """
        subject_id | prediction_time  | duration             | event
        1          | 2013-05-01 08:00 | 0.041666666666666664 | 1
        2          | 2013-05-01 08:00 | 0.08333333333333333  | 0
        3          | 2013-04-30 08:00 | 0.6666666666666666   | 0
        """,
        {"index": {"event": "first", "code": "ADMISSION"}},
    ),
    Case(
        "index",
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
        "index",
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
        "index",
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
        "require",
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
        "require",
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
        "exclude",
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
        "outcome",
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
        "outcome",
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
        "exclude",
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
    Case(
        "index",
        "index by last event: it looks ahead, since nobody knows at the time that none will follow",
        """
        subject_id | time       | code
        1          | 2010-01-01 | E11
        1          | 2012-01-01 | E11
        1          | 2012-02-01 | OUT
        2          | 2011-01-01 | E11
        2          | 2011-01-11 | A
        """,
        """
        subject_id | prediction_time | duration | event
        1          | 2012-01-01      | 31       | 1
        2          | 2011-01-01      | 10       | 0
        """,
        {"index": {"event": "last", "code": "E11"}},
    ),
    Case(
        "index",
        "index by each event: a row for each time, and every rule goes by row",
        """
        subject_id | time       | code
        1          | 2010-01-01 | VISIT
        1          | 2010-01-01 | VISIT   # the same time: one row
        1          | 2012-01-01 | VISIT
        1          | 2012-02-01 | OUT
        1          | 2012-03-01 | VISIT   # washout: this row goes, the others stay
        2          | 2011-01-01 | VISIT
        2          | 2011-01-11 | A
        2          | 2011-01-21 | VISIT   # nothing after it
        3          | 2011-01-21 | VISIT   # nothing after it: the subject goes
        """,
        """
        subject_id | prediction_time | duration | event
        1          | 2010-01-01      | 761      | 1
        1          | 2012-01-01      | 31       | 1
        2          | 2011-01-01      | 20       | 0
        """,
        {"index": {"event": "each", "code": "VISIT"}},
        {"no follow-up": 1},
    ),
    Case(
        "index",
        "index by random event: drawn by a hash of the split seed and the subject, apart from all other subjects",
        """
        subject_id | time       | code
        1          | 2010-01-01 | VISIT
        1          | 2011-01-01 | VISIT
        1          | 2012-01-01 | VISIT
        1          | 2012-02-01 | OUT
        2          | 2011-01-01 | VISIT   # the only one
        2          | 2011-01-11 | A
        """,
        """
        subject_id | prediction_time | duration | event
        1          | 2010-01-01      | 761      | 1
        2          | 2011-01-01      | 10       | 0
        """,
        {"index": {"event": "random", "code": "VISIT"}},
    ),
    Case(
        "index",
        "index after so much history: the end of the first visit that ends so many days after the first record",
        """
        subject_id | time             | code
        1          |                  | SEX//F
        1          | 1960-01-01       | MEDS_BIRTH  # no history
        1          | 2010-01-01 08:00 | A           # the first record
        1          | 2010-12-31 23:00 | A
        1          | 2011-01-01 07:00 | A           # 365 days after it less an hour, but the visit goes on
        1          | 2011-01-01 09:00 | A           # its end
        1          | 2011-01-02 09:00 | OUT
        2          | 2010-01-01       | A
        2          | 2010-06-01       | OUT         # never so much
        """,
        """
        subject_id | prediction_time  | duration | event
        1          | 2011-01-01 09:00 | 1        | 1
        """,
        {"index": {"after_history_days": 365}},
        {"no index": 1},
    ),
    Case(
        "competing",
        "the earliest event of any cause ends it; 2, 3, … are the competing events in the task's order",
        """
        subject_id | time       | code
        1          | 2013-01-03 | OUT
        1          | 2013-01-05 | MEDS_DEATH
        2          | 2013-01-03 | MEDS_DEATH
        3          | 2013-01-04 | TRANSPLANT
        3          | 2013-01-05 | OUT          # after a competing event: too late
        4          | 2012-01-01 | TRANSPLANT   # before: history (name it under exclude to leave it out)
        4          | 2013-01-09 | A
        """,
        """
        subject_id | prediction_time | duration | event
        1          | 2013-01-01      | 2        | 1
        2          | 2013-01-01      | 2        | 2
        3          | 2013-01-01      | 3        | 3
        4          | 2013-01-01      | 8        | 0
        """,
        {"competing": {"death": "MEDS_DEATH", "transplant": "TRANSPLANT"}},
    ),
    Case(
        "competing",
        "at the same time the outcome comes first, then the task's order; a death not named censors",
        """
        subject_id | time       | code
        1          | 2013-01-03 | OUT
        1          | 2013-01-03 | TRANSPLANT
        2          | 2013-01-03 | TRANSPLANT
        2          | 2013-01-03 | DIALYSIS
        3          | 2013-01-03 | MEDS_DEATH
        3          | 2013-01-04 | DIALYSIS    # after death
        4          | 2013-01-03 | MEDS_DEATH
        4          | 2013-01-03 | DIALYSIS    # at the time of death: counts
        """,
        """
        subject_id | prediction_time | duration | event
        1          | 2013-01-01      | 2        | 1
        2          | 2013-01-01      | 2        | 2
        3          | 2013-01-01      | 2        | 0
        4          | 2013-01-01      | 2        | 2
        """,
        {"competing": {"dialysis": "DIALYSIS", "transplant": "TRANSPLANT"}},
    ),
    Case(
        "follow_up",
        "follow-up ends at the first such event after prediction_time, at death or the last record if they are sooner",
        """
        subject_id | time       | code
        1          | 2012-01-01 | LEFT        # before prediction_time: no end
        1          | 2013-02-01 | LEFT
        1          | 2013-03-01 | OUT         # after it
        2          | 2013-02-01 | LEFT
        2          | 2013-02-01 | OUT         # at the same time: counts
        3          | 2013-01-15 | MEDS_DEATH
        3          | 2013-02-01 | LEFT
        4          | 2013-01-20 | A
        """,
        """
        subject_id | prediction_time | duration | event
        1          | 2013-01-01      | 31       | 0
        2          | 2013-01-01      | 31       | 1
        3          | 2013-01-01      | 14       | 0
        4          | 2013-01-01      | 19       | 0
        """,
        {"follow_up": {"end": {"code": "LEFT"}}},
    ),
    Case(
        "follow_up",
        "follow-up ends on a date: its midnight; rows from then on have none",
        """
        subject_id | time             | code
        1          | 2012-01-01       | VISIT
        1          | 2013-01-01 00:00 | OUT    # at the midnight itself: counts
        2          | 2012-12-01       | VISIT
        2          | 2013-01-01 00:01 | OUT
        3          | 2012-12-31       | VISIT
        3          | 2012-12-31 12:00 | A      # the last record, sooner
        4          | 2013-01-01       | VISIT
        4          | 2013-02-01       | OUT
        """,
        """
        subject_id | prediction_time | duration | event
        1          | 2012-01-01      | 366      | 1
        2          | 2012-12-01      | 31       | 0
        3          | 2012-12-31      | 0.5      | 0
        """,
        {"index": {"event": "first", "code": "VISIT"}, "follow_up": {"end": {"date": dt.date(2013, 1, 1)}}},
        {"no follow-up": 1},
    ),
    Case(
        "input",
        "the look-back: so many days before prediction_time, the first moment included; births and static rows stay",
        """
        subject_id | time       | code
        1          |            | SEX//F
        1          | 1960-01-01 | MEDS_BIRTH
        1          | 2012-12-01 | A            # a moment too old
        1          | 2012-12-02 | B            # 30 days before
        1          | 2013-01-01 | C
        1          | 2013-02-01 | OUT
        2          | 2012-11-01 | A            # no readable visit
        2          | 2013-02-01 | A
        """,
        """
        subject_id | prediction_time | duration | event
        1          | 2013-01-01      | 31       | 1
        """,
        {"input": {"lookback_days": 30}, "require": {"visits": 2}},
        {"visits": 1},
        read="""
        subject_id | time       | code
        1          |            | SEX//F
        1          | 1960-01-01 | MEDS_BIRTH
        1          | 2012-12-02 | B
        1          | 2013-01-01 | C
        """,
    ),
    Case(
        "input",
        "history_days looks past the look-back: one may ask for two years of records and read one",
        """
        subject_id | time       | code
        1          | 2011-01-01 | A     # two years ago: not read, but history
        1          | 2012-06-01 | B
        1          | 2013-02-01 | OUT
        2          | 2012-06-01 | B
        2          | 2013-02-01 | OUT
        """,
        """
        subject_id | prediction_time | duration | event
        1          | 2013-01-01      | 31       | 1
        """,
        {"input": {"lookback_days": 365}, "require": {"visits": 1, "history_days": 730}},
        {"history_days": 1},
        read="""
        subject_id | time       | code
        1          | 2012-06-01 | B
        """,
    ),
    Case(
        "input",
        "what the input excludes is not read, makes no visit and no history; the other rules still see it",
        """
        subject_id | time       | code       | numeric_value
        1          | 2012-01-01 | HOSPICE    |
        1          | 2012-02-01 | SCORE      | 9
        1          | 2012-03-01 | SCORE      | 1
        1          |            | RACE//A    |
        1          | 2013-02-01 | OUT        |
        2          | 2012-01-01 | HOSPICE    |
        2          | 2013-02-01 | OUT        |
        """,
        """
        subject_id | prediction_time | duration | event
        1          | 2013-01-01      | 31       | 1
        """,
        {
            "input": {"exclude": ["HOSPICE", {"code": {"prefix": "RACE//"}}, {"code": "SCORE", "value_min": 5}]},
            "require": {"visits": 1},
        },
        {"visits": 1},
        read="""
        subject_id | time       | code
        1          | 2012-03-01 | SCORE
        """,
    ),
    Case(
        "delay",
        "a delayed record is read from the moment it is known, at that time; outcome and washout go by their own times",
        """
        subject_id | time       | code
        1          | 2012-12-20 | CULTURE   # known on 2012-12-30
        1          | 2012-12-25 | CULTURE   # known on 2013-01-04: too late
        1          | 2012-12-31 | A
        1          | 2013-02-01 | OUT
        2          | 2012-12-31 | A
        2          | 2012-12-31 | OUT       # washout sees it, though nobody knows yet
        2          | 2013-02-01 | A
        3          | 2012-12-31 | A
        3          | 2012-12-31 | CULTURE   # not known: exclude does not see it
        3          | 2013-02-01 | A
        """,
        """
        subject_id | prediction_time | duration | event
        1          | 2013-01-01      | 31       | 1
        3          | 2013-01-01      | 31       | 0
        """,
        {
            "delay": [{"code": "CULTURE", "days": 10}, {"code": "OUT", "days": 5}],
            "exclude": {"code": "CULTURE", "value_min": 1},
        },
        {"washout": 1},
        read="""
        subject_id | time       | code
        1          | 2012-12-30 | CULTURE
        1          | 2012-12-31 | A
        3          | 2012-12-31 | A
        """,
    ),
    Case(
        "delay",
        "exclude sees what is known at prediction_time",
        """
        subject_id | time       | code
        1          | 2012-12-01 | CANCER   # known on 2012-12-31
        1          | 2013-02-01 | OUT
        2          | 2012-12-20 | CANCER   # known on 2013-01-19
        2          | 2013-02-01 | OUT
        """,
        """
        subject_id | prediction_time | duration | event
        2          | 2013-01-01      | 31       | 1
        """,
        {"delay": {"code": "CANCER", "days": 30}, "exclude": "CANCER"},
        {"exclude 1": 1},
    ),
    Case(
        "delay",
        "known at the end of the day: not on that day, however late",
        """
        subject_id | time             | code
        1          | 2012-06-01 08:00 | DX
        1          | 2012-06-02 08:00 | DX
        1          | 2012-06-02 09:00 | INDEX
        1          | 2012-06-03 09:00 | OUT
        """,
        """
        subject_id | prediction_time  | duration | event
        1          | 2012-06-02 09:00 | 1        | 1
        """,
        {"index": {"event": "first", "code": "INDEX"}, "delay": {"code": "DX", "until": "end_of_day"}},
        read="""
        subject_id | time                       | code
        1          | 2012-06-01 23:59:59.999999 | DX
        1          | 2012-06-02 09:00           | INDEX
        """,
    ),
    Case(
        "delay",
        "known at the end of the visit: its last record where there is a visit column, otherwise the end of the day",
        """
        subject_id | time             | code  | stay
        1          |                  | DX    | 1     # static: known always
        1          | 2012-06-01 08:00 | DX    | 1
        1          | 2012-06-03 10:00 | HOME  | 1
        1          | 2012-07-01 08:00 | DX    |       # no stay: known when the day ends
        1          | 2012-07-02 08:00 | DX    | 2
        1          | 2012-07-02 09:00 | INDEX | 2
        1          | 2012-07-04 09:00 | HOME  | 2     # the stay ends after prediction_time
        1          | 2012-07-05 09:00 | OUT   |
        """,
        """
        subject_id | prediction_time  | duration | event
        1          | 2012-07-02 09:00 | 3        | 1
        """,
        {"index": {"event": "first", "code": "INDEX"}, "delay": {"code": "DX", "until": "end_of_visit"}},
        read="""
        subject_id | time                       | code
        1          |                            | DX
        1          | 2012-06-03 10:00           | DX
        1          | 2012-06-03 10:00           | HOME
        1          | 2012-07-01 23:59:59.999999 | DX
        1          | 2012-07-02 09:00           | INDEX
        """,
        visit_column="stay",
    ),
    Case(
        "predict_at",
        "every visit from the index on, each at its last record; visits at or after the outcome are dropped",
        """
        subject_id | time             | code
        1          | 2012-06-01 08:00 | A           # before the index
        1          | 2013-01-01 08:00 | A
        1          | 2013-01-01 20:00 | B           # the same day: one visit
        1          | 2013-02-01       | A
        1          | 2013-03-01       | OUT         # the outcome's own visit is no prediction
        1          | 2013-04-01       | A
        2          | 2012-06-01       | A
        2          | 2013-02-01       | A           # the last record: no follow-up
        3          | 2012-06-01       | A           # no visit after the index
        """,
        """
        subject_id | prediction_time  | duration           | event
        1          | 2013-01-01 20:00 | 58.166666666666664 | 1
        """,
        {"predict_at": "every_visit"},
        {"no visit": 1, "no follow-up": 1},
        visits="""
        subject_id | prediction_time  | duration           | event
        1          | 2013-01-01 20:00 | 58.166666666666664 | 1
        1          | 2013-02-01       | 28                 | 1
        """,
    ),
    Case(
        "predict_at",
        "without washout earlier outcomes are history; visits after the first one since the index are dropped even so",
        """
        subject_id | time       | code
        1          | 2012-06-01 | OUT
        1          | 2013-01-05 | A
        1          | 2013-01-06 | MOVED       # a competing event: visits at or after it are dropped
        1          | 2013-01-07 | A
        1          | 2013-01-09 | OUT
        2          | 2012-06-01 | OUT
        2          | 2013-01-05 | A
        2          | 2013-01-08 | OUT
        2          | 2013-01-09 | A
        2          | 2013-01-10 | OUT
        """,
        """
        subject_id | prediction_time | duration | event
        1          | 2013-01-05      | 1        | 2
        2          | 2013-01-05      | 3        | 1
        """,
        {"predict_at": "every_visit", "washout": False, "competing": {"moved": "MOVED"}},
        visits="""
        subject_id | prediction_time | duration | event
        1          | 2013-01-05      | 1        | 2
        2          | 2013-01-05      | 3        | 1
        """,
    ),
    Case(
        "evaluate_at",
        "of every visit, each patient's first one at or after evaluate_at is evaluated; the others train",
        """
        subject_id | time       | code
        1          | 2013-01-05 | A
        1          | 2013-06-01 | A
        1          | 2013-07-01 | A
        1          | 2013-07-11 | OUT
        2          | 2013-01-05 | A    # none at or after evaluate_at that has follow-up
        2          | 2013-06-05 | A
        """,
        """
        subject_id | prediction_time | duration | event
        1          | 2013-06-01      | 40       | 1
        """,
        {"predict_at": "every_visit", "evaluate_at": {"date": dt.date(2013, 6, 1)}},
        {"evaluate_at": 1},
        visits="""
        subject_id | prediction_time | duration | event
        1          | 2013-01-05      | 187      | 1
        1          | 2013-06-01      | 40       | 1
        1          | 2013-07-01      | 10       | 1
        2          | 2013-01-05      | 151      | 0
        """,
    ),
    Case(
        "split_by",
        "subjects of one group share a split; a subject's group is its first value, static ones first",
        """
        subject_id | time       | code
        1          |            | SITE//NORTH
        1          | 2013-02-01 | OUT
        2          | 2012-01-01 | SITE//SOUTH
        2          | 2012-02-01 | SITE//NORTH  # moved later
        2          | 2013-02-01 | OUT
        3          | 2012-01-01 | SITE//NORTH
        3          | 2013-02-01 | OUT
        4          | 2013-02-01 | OUT          # no group: by itself
        5          |            | SITE//SOUTH
        5          | 2013-02-01 | OUT
        """,
        """
        subject_id | prediction_time | duration | event | split
        1          | 2013-01-01      | 31       | 1     | train
        2          | 2013-01-01      | 31       | 1     | tuning
        3          | 2013-01-01      | 31       | 1     | train
        4          | 2013-01-01      | 31       | 1     | train
        5          | 2013-01-01      | 31       | 1     | tuning
        """,
        {"split_by": {"code": {"prefix": "SITE//"}}},
    ),
    Case(
        "subgroups",
        "codes tell which of them a patient has, the last one known at prediction_time; a predicate tells whether; sex "
        "and a band of age are there without being asked for",
        """
        subject_id | time       | code           | numeric_value
        1          |            | GENDER//F      |
        1          | 1950-05-05 | MEDS_BIRTH     |
        1          | 2010-01-01 | REGION//north  |
        1          | 2012-12-31 | REGION//south  |
        1          | 2013-01-02 | REGION//east   |               # later: not known
        1          | 2012-01-01 | HBA1C          | 7
        1          | 2013-02-01 | OUT            |
        2          |            | GENDER//M      |
        2          | 1973-01-01 | MEDS_BIRTH     |               # 40 on that day
        2          |            | REGION//north  |
        2          | 2012-01-01 | HBA1C          | 6
        2          | 2013-02-01 | OUT            |
        3          | 2012-01-01 | A              |
        3          | 2013-02-01 | OUT            |
        """,
        """
        subject_id | prediction_time | duration | event
        1          | 2013-01-01      | 31       | 1
        2          | 2013-01-01      | 31       | 1
        3          | 2013-01-01      | 31       | 1
        """,
        {"subgroups": {"region": {"prefix": "REGION//"}, "high_hba1c": {"code": "HBA1C", "value_min": 6.5}}},
        subgroups="""
        subject_id | prediction_time | sex     | age      | region  | high_hba1c
        1          | 2013-01-01      | F       | 60 to 69 | south   | yes
        2          | 2013-01-01      | M       | 40 to 49 | north   | no
        3          | 2013-01-01      | unknown | unknown  | unknown | no
        """,
    ),
    Case(
        "split",
        "by the calendar: rows before tuning train, rows from held_out on judge; training is followed up to held_out",
        """
        subject_id | time             | code
        1          | 2010-01-01       | VISIT
        1          | 2011-12-31 00:00 | OUT
        2          | 2010-01-01       | VISIT
        2          | 2012-06-01       | OUT     # after held_out begins: censored there
        3          | 2011-01-01       | VISIT
        3          | 2012-01-01 00:00 | OUT     # as it begins: counts
        4          | 2012-01-01       | VISIT
        4          | 2012-01-11       | OUT
        5          | 2010-06-01       | VISIT   # its first row: the later ones go
        5          | 2012-02-01       | VISIT
        5          | 2012-03-01       | A
        """,
        """
        subject_id | prediction_time | duration | event | split
        1          | 2010-01-01      | 729      | 1     | train
        2          | 2010-01-01      | 730      | 0     | train
        3          | 2011-01-01      | 365      | 1     | tuning
        4          | 2012-01-01      | 10       | 1     | held_out
        5          | 2010-06-01      | 579      | 0     | train
        """,
        {"index": {"event": "each", "code": "VISIT"}},
        split={"calendar": {"tuning": dt.date(2011, 1, 1), "held_out": dt.date(2012, 1, 1)}},
    ),
]
