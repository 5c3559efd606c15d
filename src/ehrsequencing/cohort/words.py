"""A task in words for people: when, what, who, from a TASK.yaml as JSON."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from typing import Any

from ehrsequencing.config import DAYS_PER_YEAR


def in_days(days: float) -> str:
    """
    >>> in_days(1826.25), in_days(365.0), in_days(1000.0), in_days(90.0)
    ('5 years', '1 year', '2.7 years', '90 days')
    """
    years = days / DAYS_PER_YEAR
    if round(years) >= 1 and abs(years - round(years)) < 0.005:
        return f"{round(years)} year{'s' * (round(years) > 1)}"
    return f"{days:,.0f} days" if days <= 600 else f"{years:.1f} years"


def task_in_words(task: Mapping[str, Any], tau: float) -> dict[str, list[tuple[str, str]]]:
    """What was asked, from a TASK.yaml as JSON, by the part of the page that tells it.

    >>> said = task_in_words({"index": {"age": 50}, "outcome": {"code": {"any": ["I21", "I22"]}}}, 365.0)
    >>> said["eligibility"][0], said["outcome"][0]
    (('Prediction is made', 'on the 50th birthday'), ('Outcome', 'first event whose code is I21 or I22, within 1 year'))
    """
    outcome, require, competing = task.get("outcome"), task.get("require") or {}, task.get("competing") or {}
    excluded = task.get("exclude") or []
    wanted = [
        (require.get("history_days"), "at least {:g} days of history"),
        (require.get("visits"), "at least {:g} visit" + "s" * ((require.get("visits") or 0) > 1)),
        (require.get("age_min"), "age {:g} or more"),
        (require.get("age_max"), "age {:g} or less"),
    ]
    parts = {
        "eligibility": [
            ("Prediction is made", _index(task.get("index") or {})),
            ("Asked", _asked(task)),
            ("Required", ", ".join(text.format(value) for value, text in wanted if value)),
            ("Excluded", "; ".join(f"patients with an event {_predicate(p)} by then" for p in excluded)),
            ("Earlier outcome", "excludes a patient" if task.get("washout", True) else "does not exclude a patient"),
            ("Kept together", _groups(task.get("split_by") or {})),
        ],
        "outcome": [
            ("Outcome", f"first event {_predicate(outcome)}, within {in_days(tau)}" if outcome else ""),
            ("Competing events", "; ".join(f"{name}: first event {_predicate(p)}" for name, p in competing.items())),
            ("Follow-up", _follow_up((task.get("follow_up") or {}).get("end"))),
        ],
    }  # fmt: skip
    return {part: [(label, text) for label, text in lines if text] for part, lines in parts.items()}


def read_in_words(task: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What a prediction may read, from a TASK.yaml as JSON.

    >>> read_in_words({"input": {"lookback_days": 730.5}, "delay": [{"code": "A", "days": 7}]})
    [('Input', 'records up to prediction_time, of the last 2 years'), ('Known later', 'events A: read 7 days later')]
    """
    delays = "; ".join(f"events {_predicate(rule)}: {_delay(rule)}" for rule in task.get("delay") or [])
    lines = [("Input", _input(task.get("input") or {})), ("Known later", delays)]
    return [(label, text) for label, text in lines if text]


def _follow_up(end: Any) -> str:
    """
    >>> _follow_up("last_record"), _follow_up({"date": "2013-01-01", "code": None})
    ('', 'ends on 1 January 2013, at the latest')
    """
    if not isinstance(end, Mapping):
        return ""
    where = f"on {_date(end['date'])}" if end.get("date") else f"at the first event {_predicate(end)}"
    return f"ends {where}, at the latest"


def _input(rules: Mapping[str, Any]) -> str:
    """
    >>> _input({"lookback_days": 730.5, "exclude": [{"code": "A"}]})
    'records up to prediction_time, of the last 2 years, without events A'
    """
    start, days = rules.get("from") or rules.get("from_"), rules.get("lookback_days")
    parts = [
        "records up to prediction_time",
        f"from {_date(start)} on" if start else "",
        f"of the last {in_days(days)}" if days else "",
        *(f"without events {_predicate(predicate)}" for predicate in rules.get("exclude") or []),
    ]
    return ", ".join(filter(None, parts))


def _delay(rule: Mapping[str, Any]) -> str:
    """
    >>> _delay({"code": "A", "days": 7.0}), _delay({"code": "A", "until": "end_of_day"})
    ('read 7 days later', 'read from the end of the day on')
    """
    if rule.get("days"):
        return f"read {rule['days']:g} days later"
    return f"read from the {str(rule['until']).replace('_of_', ' of the ')} on"


def _groups(rule: Mapping[str, Any]) -> str:
    """
    >>> _groups({"column": "practice"})
    'patients of one practice share a split'
    """
    if not rule:
        return ""
    shared = f"of one {rule['column']}" if rule.get("column") else f"with the same event {_predicate(rule)}"
    return f"patients {shared} share a split"


def _asked(task: Mapping[str, Any]) -> str:
    """
    >>> _asked({"predict_at": "every_visit", "evaluate_at": {"after_history_days": 730}})
    'at every visit from then on; scored at the end of the first visit with 730 days of history, one row a patient'
    """
    if task.get("predict_at") != "every_visit":
        return ""
    scored = _index(task["evaluate_at"]) if task.get("evaluate_at") else "then"
    return f"at every visit from then on; scored {scored}, one row a patient"


def _index(index: Mapping[str, Any]) -> str:
    if index.get("age") is not None:
        years = index["age"]
        return f"on the {_ordinal(int(years))} birthday" if float(years).is_integer() else f"at age {years:g}"
    if index.get("date"):
        return f"on {_date(index['date'])}"
    if index.get("after_history_days") is not None:
        return f"at the end of the first visit with {index['after_history_days']:g} days of history"
    if index.get("event"):
        return f"at the {index['event']} event {_predicate({'code': index.get('code')})}"
    return "at the times of a label file" if index.get("labels") else ""


def _ordinal(number: int) -> str:
    """
    >>> [_ordinal(n) for n in (1, 12, 43, 50)]
    ['1st', '12th', '43rd', '50th']
    """
    ending = "th" if number % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{ending}"


def _date(value: Any) -> str:
    """
    >>> _date("2013-01-01"), _date("2013-01-01T12:30:00")
    ('1 January 2013', '1 January 2013, 12:30')
    """
    try:
        moment = dt.datetime.fromisoformat(str(value))
    except ValueError:
        return str(value)
    day = f"{moment.day} {moment:%B %Y}"
    return day if moment.time() == dt.time() else f"{day}, {moment:%H:%M}"


def _predicate(predicate: Any) -> str:
    """
    >>> _predicate({"code": "LAB//HB", "value_max": 10.0})
    'LAB//HB with a value of 10 or less'
    """
    if not isinstance(predicate, Mapping):
        return str(predicate)
    code = predicate.get("code")
    text = _codes(code) if isinstance(code, Mapping) else str(code)
    limits = ((predicate.get("value_min"), "{:g} or more"), (predicate.get("value_max"), "{:g} or less"))
    bounds = [words.format(limit) for limit, words in limits if limit is not None]
    return f"{text} with a value of {' and '.join(bounds)}" if bounds else text


def _codes(code: Mapping[str, Any]) -> str:
    if code.get("any"):
        return "whose code is " + " or ".join(map(str, code["any"]))
    if code.get("prefix"):
        return f"whose code begins with {code['prefix']}"
    return f"whose code matches {code.get('regex')}"
