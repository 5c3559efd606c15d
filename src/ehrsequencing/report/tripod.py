"""TRIPOD+AI: every item of the checklist, what it asks, and where this page answers it or who has to.

Collins GS et al. TRIPOD+AI statement: updated guidance for reporting clinical prediction models that use regression or
machine learning methods. BMJ 2024;385:e078378. The questions are in short words of our own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ehrsequencing.report.contents import Summary

Present = Callable[[Summary], bool]


@dataclass(frozen=True)
class Item:
    """One item.

    Attributes:
        number, asks: of the checklist.
        section: where the page answers it; empty where it cannot.
        left: what the authors have to add; empty where the page says all of it.
        needs: whether the page has what answers it.
        partly: what is left where it has not, and yet answers in part.
    """

    number: str
    asks: str
    section: str = ""
    left: str = ""
    needs: Present = lambda summary: True
    partly: str = ""


@dataclass(frozen=True)
class Answer:
    """An item of one page: where it is answered, and what is left; the status is answered, in part or authors."""

    item: Item
    section: str
    left: str

    @property
    def status(self) -> str:
        if not self.section:
            return "authors"
        return "in part" if self.left else "answered"


ITEMS: tuple[Item, ...] = (
    Item("1", "Title: development or evaluation, target population, outcome", "headline",
         "a title that names the setting"),
    Item("2", "Structured abstract", "", "the abstract"),
    Item("3a", "Health-care context, diagnostic or prognostic, existing models", "", "context, and existing models"),
    Item("3b", "Target population, intended purpose and users", "", "purpose, users, place in the care pathway"),
    Item("3c", "Known health inequalities between groups", "", "known inequalities"),
    Item("4", "Objectives: development, evaluation, or both", "headline", "the objective in the authors' words"),
    Item("5a", "Sources of data, why these, how representative", "source", "why these data, and whom they represent"),
    Item("5b", "Dates of accrual and end of follow-up", "source", needs=lambda s: bool(s.source.years),
         left="exact dates, where these may be published"),
    Item("6a", "Setting, number and location of centres", "", "setting and centres"),
    Item("6b", "Eligibility criteria", "eligibility"),
    Item("6c", "Treatments received and how they were handled", "", "treatments; codes of drugs are predictors here"),
    Item("7", "Data preparation and quality checks", "missing", "quality checks of the source itself"),
    Item("8a", "Outcome, horizon, how and when assessed, why this outcome", "outcome", "why this outcome"),
    Item("8b", "Assessors of a subjective outcome", "", "assessors, where the outcome needed judgement"),
    Item("8c", "Blinding of outcome assessment", "", "blinding; codes were recorded in routine care"),
    Item("9a", "Choice of initial predictors", "predictors"),
    Item("9b", "Definition of all predictors, how and when measured", "predictors", "meaning of local codes"),
    Item("9c", "Assessors of subjective predictors", "", "assessors, where predictors needed judgement"),
    Item("10", "Sample size and why it suffices", "sample-size", needs=lambda s: bool(s.sample_size),
         partly="why the sample size suffices"),
    Item("11", "Missing data", "missing"),
    Item("12a", "How data were used and partitioned", "sample-size"),
    Item("12b", "How predictors were handled", "predictors"),
    Item("12c", "Type of model, building steps, tuning, internal validation", "model"),
    Item("12d", "Heterogeneity across clusters", "", "clusters, such as hospitals"),
    Item("12e", "Measures and plots of performance, and why", "performance"),
    Item("12f", "Model updating arising from the evaluation", "calibration"),
    Item("12g", "How predictions were calculated", "use"),
    Item("13", "Class imbalance methods", "model"),
    Item("14", "Approaches to model fairness", "subgroups", "fairness beyond reporting by subgroup",
         needs=lambda s: bool(s.subgroups)),
    Item("15", "Output of the model, classification thresholds", "use", "thresholds, where patients are classified"),
    Item("16", "Differences between development and evaluation data", "source"),
    Item("17", "Ethical approval and consent", "", "approval and consent"),
    Item("18a", "Funding", "", "funding"),
    Item("18b", "Conflicts of interest", "", "conflicts of interest"),
    Item("18c", "Protocol", "", "protocol; the settings under Provenance can serve as an appendix"),
    Item("18d", "Registration", "", "registration"),
    Item("18e", "Availability of data", "", "availability of the data"),
    Item("18f", "Availability of code", "provenance", "where the study's own files are"),
    Item("19", "Patient and public involvement", "", "involvement, or that there was none"),
    Item("20a", "Flow of participants, numbers with and without outcome, follow-up", "eligibility",
         needs=lambda s: bool(s.attrition)),
    Item("20b", "Characteristics of participants, amount of missing data", "source",
         needs=lambda s: bool(s.casemix), left="further characteristics that matter clinically"),
    Item("20c", "Comparison of evaluation with development data", "sample-size",
         "distribution of predictors in both; “ehrseq validate” tabulates it for another site"),
    Item("21", "Participants and events in each analysis", "sample-size"),
    Item("22", "The full model, and restrictions on its use", "use"),
    Item("23a", "Performance with intervals, also by subgroup", "performance", needs=lambda s: bool(s.subgroups),
         partly="performance by subgroup"),
    Item("23b", "Heterogeneity of performance across clusters", "", "results by cluster, such as hospital"),
    Item("24", "Results of model updating", "calibration", needs=lambda s: bool(s.recalibrated),
         left="updating, where the model is changed for another setting"),
    Item("25", "Interpretation, also of fairness, against earlier studies", "headline",
         "interpretation against earlier studies"),
    Item("26", "Limitations", "limitations", "what the authors know beyond the data"),
    Item("27a", "Poor or missing input when the model is used", "use"),
    Item("27b", "Interaction and expertise required of users", "use", "who operates it, and how they are trained"),
    Item("27c", "Next steps, applicability", "limitations", "next steps"),
)  # fmt: skip


def answers(summary: Summary) -> tuple[Answer, ...]:
    """The checklist of this page: what it lacks the facts for is left to the authors."""
    return tuple(_answer(item, summary) for item in ITEMS)


def _answer(item: Item, summary: Summary) -> Answer:
    if item.section and item.needs(summary):
        return Answer(item, item.section, item.left)
    if item.partly:
        return Answer(item, item.section, item.partly)
    return Answer(item, "", item.left or "not recorded by this study")


def tally(answered: tuple[Answer, ...]) -> str:
    """How many items are answered here.

    >>> tally((Answer(ITEMS[0], "headline", ""), Answer(ITEMS[1], "", "the abstract")))
    '1 of 2 items answered, 0 in part, 1 left to the authors'
    """
    counts = [sum(each.status == status for each in answered) for status in ("answered", "in part", "authors")]
    return f"{counts[0]} of {len(answered)} items answered, {counts[1]} in part, {counts[2]} left to the authors"
