"""The headline: one table of rules says who wins, by how much, with what certainty, and whether the sample can tell."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ehrsequencing.report.contents import Difference, Interval, Row
from ehrsequencing.report.numbers import number, plus

NOTHING = Interval(math.nan)
MATTERS = 0.005
"""The gain in Uno C that the rule of three words takes to matter."""


UNSHOWN = {
    "climb": "the gain is worth having",
    "stay": "there is no gain that matters",
    "": "neither a gain that matters nor its absence is shown",
}
"""What the difference in Uno C says by itself."""


REASONS = {
    "c_undecided": "Uno C decides nothing",
    "ibs_undecided": "IBS decides nothing",
    "ibs_worse": "but IBS is worse",
    "ibs_better": "but IBS is better",
    "ibs_missing": "no IBS",
    "family": "not for the best of several",
}
"""Of underpowered, by reason code, beside the word."""


@dataclass(frozen=True)
class Contest:
    """The two rows that the headline sets against each other; ``difference`` is ``row`` minus ``rival`` in Uno C."""

    row: Row
    rival: Row
    difference: Interval | None = None
    word: str = ""
    one_sided: Interval = NOTHING
    why: str = ""
    ibs: Interval = NOTHING

    @property
    def ibs_better(self) -> Interval:
        """By how much ``row`` has the lower integrated Brier score."""
        return Interval(-self.ibs.value, -self.ibs.high, -self.ibs.low)

    @property
    def by_c(self) -> str:
        """What the bounds of the difference in Uno C say by themselves: climb, stay, or nothing."""
        if self.one_sided.high < MATTERS:
            return "stay"
        return "climb" if self.one_sided.low > 0 else ""

    @property
    def better(self) -> bool:
        return self.difference is not None and self.difference.low > 0

    @property
    def worse(self) -> bool:
        return self.difference is not None and self.difference.high < 0

    @property
    def tied(self) -> bool:
        return not self.better and not self.worse

    def said(self, sentence: str) -> str:
        """``sentence`` with the names and numbers of this contest."""
        simple = self.rival.kind == "baseline" and self.row.kind != "predictions"
        text = sentence.format(
            model=named(self.row),
            c=estimated(self.row.uno_c),
            rival=named(self.rival),
            rival_c=estimated(self.rival.uno_c),
            paired="" if self.difference is None else f"the paired difference, {signed(self.difference)},",
            bound=plus(self.one_sided.low),
            best="the best simple model" if simple else "the model it is set against",
            a_simple="a simple model" if simple else "the model it is set against",
            the_row="the best transformer strategy is" if self.row.kind == "strategy" else "the other is",
            matters=f"{MATTERS:g}",
            zero="includes zero" if self.tied else "excludes zero",
            shown="ranks" if self.better else "probably ranks",
            ibs_better=estimated(self.ibs_better, 4),
            ibs_worse=estimated(self.ibs, 4),
            ibs=signed(self.ibs, 4),
            unshown=UNSHOWN[self.by_c],
        )
        return text if text.startswith(self.row.model) else text[0].upper() + text[1:]


@dataclass(frozen=True)
class Verdict:
    """When a sentence is said, and the sentence."""

    name: str
    holds: Callable[[Contest], bool]
    sentence: str


VERDICTS: tuple[Verdict, ...] = (
    Verdict(
        "undecided",
        lambda c: c.difference is None,
        "which is better is not decided: {model} has Uno C {c}, {rival} {rival_c}, and no paired interval of the "
        "difference was computed.",
    ),
    Verdict(
        "wins",
        lambda c: c.better and c.word == "climb",
        "{model} ranks patients better than {best}: Uno C {c} against {rival_c} for {rival}; {paired} excludes zero, "
        "and by the rule below the gain is worth having (climb).",
    ),
    Verdict(
        "wins on one side",
        lambda c: c.word == "climb",
        "{model} probably ranks patients better than {best}: Uno C {c} against {rival_c} for {rival}; {paired} "
        "includes zero, but the one-sided 95% bound of the gain, {bound}, is above it (climb).",
    ),
    Verdict(
        "wins by too little",
        lambda c: c.better and c.word == "stay",
        "{a_simple} suffices: {model} ranks patients better, with Uno C {c} against {rival_c} for {rival}, but "
        "{paired} is too small to matter: {matters} or more is excluded with 95% certainty (stay).",
    ),
    Verdict(
        "predicts better, ranks alike",
        lambda c: c.why == "ibs_better",
        "{model} shows no gain in Uno C that matters over {best}, {c} against {rival_c} for {rival}: by {paired} "
        "{matters} or more is excluded with 95% certainty. Yet its integrated Brier score is better by {ibs_better}, "
        "so that the rule below does not let the cheaper model stay (underpowered).",
    ),
    Verdict(
        "ranks alike, Brier score undecided",
        lambda c: c.why == "ibs_undecided" and c.by_c == "stay" and not c.worse,
        "{a_simple} ranks about as well: {rival} has Uno C {rival_c}, {the_row} {model} with {c}; by {paired} a gain "
        "of {matters} or more is excluded with 95% certainty. Whether its risks are closer to the truth is not "
        "decided: the integrated Brier score differs by {ibs}, and a gain of 1% is not excluded (underpowered).",
    ),
    Verdict(
        "wins, Brier score worse",
        lambda c: c.why == "ibs_worse",
        "{model} {shown} patients better than {best}, but its risks are further from the truth: Uno C {c} against "
        "{rival_c} for {rival}; {paired} {zero}, yet the integrated Brier score is worse by {ibs_worse}, so that the "
        "rule below does not call it a gain (underpowered).",
    ),
    Verdict(
        "wins, Brier score undecided",
        lambda c: c.why == "ibs_undecided" and c.by_c != "stay" and not c.worse,
        "{model} {shown} patients better than {best}: Uno C {c} against {rival_c} for {rival}; {paired} {zero}. "
        "Whether its risks are further from the truth is not decided, the integrated Brier score differing by {ibs}, "
        "so that the rule below does not call it a gain (underpowered).",
    ),
    Verdict(
        "no Brier score",
        lambda c: c.why == "ibs_missing" and not c.worse,
        "by Uno C alone {unshown}: {model} has {c}, {rival} {rival_c}; {paired} {zero}. The rule below also asks for "
        "the integrated Brier score, which could not be computed (underpowered).",
    ),
    Verdict(
        "best of several",
        lambda c: c.why == "family",
        "{model} has the higher Uno C, {c} against {rival_c} for {rival}; {paired} {zero}. But it is the best of "
        "several models that were set against {rival}, and allowing for that choice the gain is not shown "
        "(underpowered).",
    ),
    Verdict(
        "wins, not called a gain",
        lambda c: c.better and c.word == "underpowered",
        "{model} ranks patients better than {best}: Uno C {c} against {rival_c} for {rival}; {paired} excludes zero. "
        "The rule below, which looks at the integrated Brier score too, does not call it a gain (underpowered).",
    ),
    Verdict(
        "wins, not judged",
        lambda c: c.better,
        "{model} ranks patients better than {best}: Uno C {c} against {rival_c} for {rival}; {paired} excludes zero.",
    ),
    Verdict(
        "loses",
        lambda c: c.worse,
        "{a_simple} wins: {rival} has Uno C {rival_c}, {the_row} {model} with {c}; {paired} excludes zero.",
    ),
    Verdict(
        "suffices",
        lambda c: c.word == "stay",
        "{a_simple} suffices: {rival} has Uno C {rival_c}, {the_row} {model} with {c}; {paired} includes zero, and a "
        "gain of {matters} or more is excluded with 95% certainty (stay).",
    ),
    Verdict(
        "too small to say",
        lambda c: c.word == "underpowered",
        "the sample is too small to say whether {model} ranks patients better than {best}: Uno C {c} against {rival_c} "
        "for {rival}; {paired} includes zero, and a gain that matters ({matters}) is not excluded (underpowered).",
    ),
    Verdict(
        "ties",
        lambda c: c.difference is not None and c.row.uno_c.value > c.rival.uno_c.value,
        "{a_simple} ties: {model} has the higher Uno C, {c} against {rival_c} for {rival}, but {paired} includes zero.",
    ),
    Verdict(
        "at least as good",
        lambda c: True,
        "{a_simple} is at least as good: {rival} has Uno C {rival_c}, {the_row} {model} with {c}, and {paired} "
        "includes zero.",
    ),
)  # fmt: skip
"""The first that holds is said."""


def verdict(contest: Contest) -> str:
    """The sentence of the first rule that holds."""
    return contest.said(next(rule.sentence for rule in VERDICTS if rule.holds(contest)))


def contest_of(row: Row, rival: Row, differences: Sequence[Difference]) -> Contest:
    """The pair with its paired difference, also from the pair the other way round; without one, undecided."""
    for d in differences:
        if math.isnan(d.uno_c.low):
            continue
        if (d.model, d.against) == (row.model, rival.model):
            ibs = d.metrics.get("ibs", NOTHING)
            return Contest(row, rival, d.uno_c, d.word, d.one_sided, d.why or _why(d, ibs), ibs)
        if (d.model, d.against) == (rival.model, row.model):
            return Contest(row, rival, Interval(-d.uno_c.value, -d.uno_c.high, -d.uno_c.low))
    return Contest(row, rival)


def paired(row: Row, rival: Row, differences: Sequence[Difference], metric: str) -> Interval | None:
    """``row`` minus ``rival`` on the same patients, also from the pair the other way round; None without interval."""
    for d in differences:
        found = d.metrics.get(metric, NOTHING)
        if math.isnan(found.low):
            continue
        if (d.model, d.against) == (row.model, rival.model):
            return found
        if (d.model, d.against) == (rival.model, row.model):
            return Interval(-found.value, -found.high, -found.low)
    return None


def _why(d: Difference, ibs: Interval) -> str:
    """The reason code of an older file, which has none: from the bounds, where it has those."""
    if d.word != "underpowered" or math.isnan(d.one_sided.low):
        return ""
    climbs, stays = d.one_sided.low > 0, d.one_sided.high < MATTERS
    if not climbs and not stays:
        return "c_undecided"
    if math.isnan(ibs.value):
        return "ibs_missing"
    if stays:
        return "ibs_better" if ibs.high < 0 else "ibs_undecided"
    return "ibs_worse" if ibs.low > 0 else "ibs_undecided"


def named(row: Row) -> str:
    """A row's name in a sentence."""
    return f"the blend {row.model}" if row.blend else row.model


def estimated(interval: Interval, digits: int = 3) -> str:
    """A figure with its interval, which no line break parts."""
    value, low, high = (number(x, digits) for x in (interval.value, interval.low, interval.high))
    return value if math.isnan(interval.low) else f"{value} ({low}{_TO}{high})"


_TO = "\N{NO-BREAK SPACE}to\N{NO-BREAK SPACE}"


def signed(interval: Interval, digits: int = 3) -> str:
    """A difference with its signs.

    >>> signed(Interval(-0.012, -0.03, 0.004)).replace("\N{NO-BREAK SPACE}", " ")
    '−0.012 (−0.030 to +0.004)'
    """
    value, low, high = (plus(x, digits) for x in (interval.value, interval.low, interval.high))
    return value if math.isnan(interval.low) else f"{value} ({low}{_TO}{high})"
