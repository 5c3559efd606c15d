"""Summary and figures -> report.html: words for people, one autoescaped template and its parts."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
import numpy as np

from ehrsequencing.cohort.words import in_days, read_in_words, task_in_words
from ehrsequencing.config import MIN_CELL
from ehrsequencing.errors import EhrError, Exit
from ehrsequencing.files import staged_file
from ehrsequencing.report.contents import KINDS, Row, Summary
from ehrsequencing.report.drawing import palette_css
from ehrsequencing.report.figures import save_forest
from ehrsequencing.report.formats import FORMATS
from ehrsequencing.report.gallery import draw, subgroup_measures, subgroup_model
from ehrsequencing.report.inputs import Inputs, read_inputs
from ehrsequencing.report.measures import cause_columns, meanings, others, tables
from ehrsequencing.report.summary import POOLED, summarise, summarise_folder
from ehrsequencing.report.tripod import answers, tally
from ehrsequencing.report.verdicts import REASONS

REPORT = "report.html"
KIND_NAMES = {
    "oracle": "Oracle: the simulator's own truth, out of reach for any model",
    "strategy": "Transformer strategies, and their blends with the wide model",
    "ensemble": "Means of several seeds",
    "predictions": "Predictions from files",
    "control": "Controls: what pretraining must beat",
    "baseline": "Simple models",
}
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

GAPS = ("truncated_rows", "rows_without_events", "rows_without_birth", "oov_share", "fallback_share", "value_share",
        "bad_values")  # fmt: skip
"""Told under Missing data."""


def write_report(folder: Path) -> Path:
    """Write ``report.html`` into a finished study's or evaluation's folder: one file, no script, nothing loaded from
    elsewhere.

    Raises:
        EhrError: the study is not finished or its files do not belong together (exit 13), or the folder cannot be
            written (exit 14); the old report, if any, is then still whole.
    """
    return write_report_from(read_inputs(Path(folder)), Path(folder) / REPORT)


def write_report_from(inputs: Inputs, out: Path) -> Path:
    """The same from what is in hand, to ``out``."""
    page = render(summarise(inputs))
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
    rows = summarise_folder(Path(study_folder)).rows
    with staged_file(out) as draft:
        save_forest(rows, draft, out.suffix[1:])
    return out


def render(summary: Summary) -> str:
    """The page as text."""
    answered = answers(summary)
    horizons = summary.horizons
    return template("report.html.j2").render(
        s=summary,
        figures=draw(summary),
        horizon=in_days(summary.horizon),
        tau=in_days(summary.tau),
        facts=task_in_words(summary.task, summary.tau),
        read=read_in_words(summary.task),
        groups=[(_kind_name(kind, summary.rows), kind, rows) for kind, rows in _by_kind(summary.rows)],
        tables={part: tables(summary.rows, part, horizons) for part in ("discrimination", "accuracy", "calibration")}
        | {"others": others(summary.rows, horizons)},
        cause_tables=[(cause, rows, cause_columns(rows, horizons)) for cause, rows in summary.cause_figures],
        meanings=meanings(summary.rows),
        notes=_notes(summary.rows),
        checked=[(row.model, row.checks["d_calibration"]) for row in summary.rows if "d_calibration" in row.checks],
        with_ibs=any("ibs" in difference.metrics for difference in summary.differences),
        with_words=any(difference.word for difference in summary.differences),
        reasons=REASONS,
        pooled=POOLED,
        with_train_c=any(np.isfinite(run.train_c).any() for run in summary.runs),
        with_costs=any(row.trainable is not None or row.seconds is not None for row in summary.rows),
        kinds={row.kind for row in summary.rows},
        subgroup_model=subgroup_model(summary),
        subgroup_measures=subgroup_measures(summary),
        tokens=[_token_fact(key, summary.tokens[key]) for key in sorted(summary.tokens, key=_token_rank)],
        gaps={TOKEN_NAMES[key] for key in GAPS},
        estimator="Aalen–Johansen" if summary.competing else "Kaplan–Meier",
        checklist=answered,
        checklist_tally=tally(answered),
        in_days=in_days,
        min_cell=MIN_CELL,
    )  # fmt: skip


def template(name: str) -> jinja2.Template:
    """A template of this package, autoescaped, with the filters of ``formats``."""
    folder = files("ehrsequencing.report") / "templates"
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(lambda part: (folder / part).read_text(encoding="utf-8")),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= FORMATS
    environment.globals["palette"] = palette_css()
    return environment.get_template(name)


def _by_kind(rows: Sequence[Row]) -> list[tuple[str, list[Row]]]:
    kinds = sorted({row.kind for row in rows}, key=lambda kind: KINDS.index(kind) if kind in KINDS else len(KINDS))
    return [(kind, [row for row in rows if row.kind == kind]) for kind in kinds]


def _kind_name(kind: str, rows: Sequence[Row]) -> str:
    """A file's rivals are whatever somebody set it against."""
    if kind == "baseline" and any(row.kind == "predictions" for row in rows):
        return "Set against it"
    return KIND_NAMES.get(kind, kind)


def _notes(rows: Sequence[Row]) -> list[tuple[str, str]]:
    """Each distinct note once, after the models it is about."""
    texts = list(dict.fromkeys(note for row in rows for note in row.notes))
    return [(", ".join(row.model for row in rows if text in row.notes), text) for text in texts]


def _token_rank(key: str) -> int:
    return list(TOKEN_NAMES).index(key) if key in TOKEN_NAMES else len(TOKEN_NAMES)


def _token_fact(key: str, value: Any) -> tuple[str, str]:
    label = TOKEN_NAMES.get(key, key.replace("_", " "))
    if isinstance(value, str):
        return label, value
    if key.endswith("share"):
        return label, f"{value:.1%}"
    return label, f"{value:,}" if isinstance(value, int) else f"{value:,.4g}"
