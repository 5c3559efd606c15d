"""Summary and figures -> report.html: words and number formats for people, one autoescaped template."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
import numpy as np

from ehrsequencing.config import MIN_CELL
from ehrsequencing.errors import EhrError, Exit
from ehrsequencing.files import staged_file
from ehrsequencing.report.contents import KINDS, Interval, Row, Summary
from ehrsequencing.report.figures import draw, save_forest
from ehrsequencing.report.summary import summarise
from ehrsequencing.report.words import in_days, task_in_words

REPORT = "report.html"
KIND_NAMES = {
    "oracle": "Oracle: the simulator's own truth, out of reach for any model",
    "strategy": "Transformer strategies, and their blends with the wide model",
    "control": "Controls: what pretraining must beat",
    "baseline": "Simple models",
}
MAIN_METRICS = ("uno_c", "harrell_c", "ibs")
METRIC_NAMES = {"uno_c": "Uno C", "harrell_c": "Harrell C", "ibs": "IBS", "ici": "ICI", "auc": "AUC"}
TOKEN_NAMES = {
    "n_rows": "patients",
    "n_tokens": "tokens",
    "median_length": "median tokens a patient",
    "max_length": "most tokens a patient",
    "truncated_rows": "patients cut to their most recent visits",
    "left_out_tokens": "tokens left out of those",
    "rows_without_events": "patients without any event",
    "rows_without_birth": "patients without a birth date",
    "events_before_birth": "events before birth",
    "oov_share": "codes outside the vocabulary",
    "fallback_share": "codes read as their parent code",
    "value_share": "events with a numeric value",
    "bad_values": "values that were not numbers",
}


def write_report(study_folder: Path) -> Path:
    """Write ``report.html`` into a finished study's folder: one file, no script, nothing loaded from elsewhere.

    Raises:
        EhrError: the study is not finished or its files do not belong together (exit 13), or the folder cannot be
            written (exit 14); the old report, if any, is then still whole.
    """
    out = Path(study_folder) / REPORT
    page = render(summarise(out.parent))
    with staged_file(out) as draft:
        draft.write_text(page, encoding="utf-8")
    return out


def readme_figure(study_folder: Path, out: Path) -> Path:
    """The forest figure of a finished study as a small .svg or .png of its own.

    Raises:
        EhrError: another file type is asked for (exit 2), or the study is not finished (exit 13).
    """
    out = Path(out)
    if out.suffix not in (".svg", ".png"):
        raise EhrError(f"a figure is .svg or .png, not '{out.suffix}'", str(out), "rename it", code=Exit.USAGE)
    rows = summarise(Path(study_folder)).rows
    with staged_file(out) as draft:
        save_forest(rows, draft, out.suffix[1:])
    return out


def render(summary: Summary) -> str:
    """The page as text."""
    horizon = in_days(summary.horizon)
    further = [name for name in _metrics(summary.rows) if name not in MAIN_METRICS]
    return _environment().get_template("report.html.j2").render(
        s=summary,
        figures=draw(summary, horizon),
        horizon=horizon,
        tau=in_days(summary.tau),
        facts=task_in_words(summary.task, summary.tau),
        groups=[(KIND_NAMES.get(kind, kind), kind, rows) for kind, rows in _by_kind(summary.rows)],
        further=[(metric_name(name), name) for name in further],
        notes=_notes(summary.rows),
        with_ibs=any("ibs" in difference.metrics for difference in summary.differences),
        with_train_c=any(np.isfinite(run.train_c).any() for run in summary.runs),
        tokens=[_token_fact(key, summary.tokens[key]) for key in sorted(summary.tokens, key=_token_rank)],
        min_cell=MIN_CELL,
        competing=len(summary.causes) > 1,
        estimator="Aalen–Johansen" if len(summary.causes) > 1 else "Kaplan–Meier",
    )  # fmt: skip


def _environment() -> jinja2.Environment:
    folder = files("ehrsequencing.report") / "templates"
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(lambda name: (folder / name).read_text(encoding="utf-8")),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    formats: Mapping[str, Callable[..., str]] = {
        "estimate": estimate,
        "limits": limits,
        "signed": signed,
        "zero": zero,
        "count": count,
        "duration": duration,
        "share": share,
    }
    environment.filters |= formats
    return environment


def _by_kind(rows: Sequence[Row]) -> list[tuple[str, list[Row]]]:
    kinds = sorted({row.kind for row in rows}, key=lambda kind: KINDS.index(kind) if kind in KINDS else len(KINDS))
    return [(kind, [row for row in rows if row.kind == kind]) for kind in kinds]


def _metrics(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(name for row in rows for name in row.metrics))


def _notes(rows: Sequence[Row]) -> list[tuple[str, str]]:
    """Each distinct note once, after the models it is about."""
    texts = list(dict.fromkeys(note for row in rows for note in row.notes))
    return [(", ".join(row.model for row in rows if text in row.notes), text) for text in texts]


def metric_name(name: str) -> str:
    """
    >>> metric_name("brier@365"), metric_name("uno_c")
    ('Brier score at 1 year', 'Uno C')
    """
    base, _, days = name.partition("@")
    label = {"brier": "Brier score"}.get(base) or METRIC_NAMES.get(base, base.replace("_", " "))
    return f"{label} at {in_days(float(days))}" if days else label


def estimate(interval: Interval | None, digits: int = 3) -> str:
    """
    >>> estimate(Interval(0.81234, 0.79, 0.83)), estimate(None)
    ('0.812', '–')
    """
    return "–" if interval is None or math.isnan(interval.value) else f"{interval.value:.{digits}f}"


def limits(interval: Interval | None, digits: int = 3) -> str:
    """
    >>> limits(Interval(0.81234, 0.79, 0.83)), limits(Interval(0.8))
    ('(0.790–0.830)', '')
    """
    if interval is None or math.isnan(interval.low):
        return ""
    return f"({interval.low:.{digits}f}–{interval.high:.{digits}f})"


def signed(interval: Interval | None, digits: int = 3) -> str:
    """
    >>> signed(Interval(-0.0213, -0.05, 0.0)), signed(Interval(0.2)), signed(None)
    ('−0.021 (−0.050 to +0.000)', '+0.200', '–')
    """
    if interval is None or math.isnan(interval.value):
        return "–"
    value, low, high = (f"{x:+.{digits}f}".replace("-", "−") for x in (interval.value, interval.low, interval.high))
    return value if math.isnan(interval.low) else f"{value} ({low} to {high})"


def zero(interval: Interval | None) -> str:
    """Whether zero is in the interval.

    >>> zero(Interval(0.1, 0.01, 0.2)), zero(Interval(0.1, 0.0, 0.2))
    ('excluded, better', 'included')
    """
    if interval is None or math.isnan(interval.low):
        return "–"
    return "excluded, better" if interval.low > 0 else "excluded, worse" if interval.high < 0 else "included"


def count(value: int | None) -> str:
    return "–" if value is None else f"{value:,}"


def share(part: int | None, whole: int | None) -> str:
    """
    >>> share(16_424, 499_000), share(499_000, 499_000), share(None, 10)
    ('3.3%', '100%', '')
    """
    if part is None or not whole:
        return ""
    percent = 100 * part / whole
    return f"{percent:.0f}%" if percent >= 99.95 else f"{percent:.1f}%"


def duration(seconds: float | None) -> str:
    """
    >>> duration(0.4), duration(75.0), duration(7200.0), duration(None)
    ('0.4 s', '1.2 min', '2.0 h', '–')
    """
    if seconds is None:
        return "–"
    if seconds < 0.05:
        return "<0.1 s"
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 3600 else f"{seconds / 3600:.1f} h"


def _token_rank(key: str) -> int:
    return list(TOKEN_NAMES).index(key) if key in TOKEN_NAMES else len(TOKEN_NAMES)


def _token_fact(key: str, value: Any) -> tuple[str, str]:
    label = TOKEN_NAMES.get(key, key.replace("_", " "))
    if isinstance(value, str):
        return label, value
    if key.endswith("share"):
        return label, f"{value:.1%}"
    return label, f"{value:,}" if isinstance(value, int) else f"{value:,.4g}"
