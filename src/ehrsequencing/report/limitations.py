"""What this study cannot show, worked out from its own facts: one table of conditions and sentences."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ehrsequencing.report.calibrated import calibration_off
from ehrsequencing.report.contents import Row, Summary
from ehrsequencing.report.findings import MIN_EVALUATED_EVENTS, best_of

MARKED_SHARE = 0.05
"""A share of events or patients above which it is a limitation that they are read less well."""


@dataclass(frozen=True)
class Facts:
    """What the conditions look at: the summary, the raw counts, the token store's numbers and the study's settings."""

    summary: Summary
    n: int
    events: int
    tokens: Mapping[str, Any]
    study: Mapping[str, Any]

    def share(self, key: str) -> float:
        """A number of the token store as a share of its patients, or as it is where it is one already."""
        value = float(self.tokens.get(key) or 0.0)
        return value if key.endswith("share") else value / max(float(self.tokens.get("n_rows") or 0), 1.0)

    @property
    def seeds(self) -> int:
        """Training seeds of the transformer with the most; 0 where none is known."""
        return max((len(row.seeds) for row in self.summary.rows if row.kind == "strategy"), default=0)


Condition = Callable[[Facts], bool]
LIMITATIONS: tuple[tuple[Condition, str], ...] = (
    (
        lambda f: f.summary.source.simulated,
        "The records are simulated: nothing here is evidence about real patients.",
    ),
    (
        lambda f: f.events < MIN_EVALUATED_EVENTS,
        f"Fewer than {MIN_EVALUATED_EVENTS} evaluated patients had the outcome: intervals are wide, models are hard to "
        "rank, and calibration is known roughly at best.",
    ),
    (
        lambda f: not f.summary.source.simulated,
        "All patients come from one dataset. Elsewhere codes, care and patients differ; “ehrseq validate” shows what "
        "becomes of a model on other records.",
    ),
    (
        lambda f: f.summary.source.split == "random",
        "The evaluated patients are a random part of the same records, not later ones: a change over time would not "
        "show here.",
    ),
    (
        lambda f: bool(_calibration(f.summary)),
        "{calibration} Recalibrate before using its probabilities.",
    ),
    (
        lambda f: len([row for row in f.summary.rows if row.kind != "oracle"]) > 1,
        "Which model is best was decided on the evaluated patients themselves, which flatters the best a little.",
    ),
    (
        lambda f: f.seeds == 1,
        "Every model was trained with one seed: the intervals cover the chance in who was evaluated, not in training.",
    ),
    (
        lambda f: f.seeds > 0,
        "The intervals hold the training patients fixed: a model trained on other patients would differ by more.",
    ),
    (
        lambda f: bool(f.summary.recipe.get("departures")),
        "Training departed from the recommended recipe, as listed under Model and training.",
    ),
    (
        lambda f: f.share("oov_share") > MARKED_SHARE,
        "More than 5% of recorded codes were unknown to the vocabulary and are read as one placeholder.",
    ),
    (
        lambda f: f.share("truncated_rows") > MARKED_SHARE,
        "More than 5% of patients had longer records than the models read: their oldest visits are left out.",
    ),
    (
        lambda f: f.share("rows_without_birth") > MARKED_SHARE,
        "More than 5% of patients have no birth date: the models read no age for them.",
    ),
    (
        lambda f: f.share("rows_without_events") > MARKED_SHARE,
        "More than 5% of patients had no event before prediction_time: for them the models know next to nothing.",
    ),
    (
        lambda f: not f.summary.subgroups,
        "Performance by subgroup (sex, age, ethnicity) was not examined; name columns or codes under “subgroups” in "
        "the task to have it.",
    ),
    (
        lambda f: True,
        "Routine records show what was written down: a missing code does not mean a healthy patient, and treatments "
        "given because of a high risk lower the risk that is then observed.",
    ),
    (
        lambda f: True,
        "Leaving follow-up is taken to say nothing about the outcome to come (independent censoring), which the data "
        "cannot show.",
    ),
)  # fmt: skip


def limitations(facts: Facts) -> tuple[str, ...]:
    """The sentences that apply."""
    calibration = _calibration(facts.summary)
    return tuple(text.replace("{calibration}", calibration) for holds, text in LIMITATIONS if holds(facts))


def _calibration(summary: Summary) -> str:
    """What is off in the calibration of the best model, at the horizon at which it is worst; else nothing."""
    row: Row | None = best_of(summary.rows)
    return "" if row is None else calibration_off(row, summary.horizons)
