"""The headline: one table of rules says who wins, by how much, with what certainty, and whether the sample can tell."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ehrsequencing.report.contents import Difference, Interval, Row

NOTHING = Interval(math.nan)
MATTERS = 0.005
"""The gain in Uno C that the rule of three words takes to matter."""


@dataclass(frozen=True)
class Contest:
    """The two rows that the headline sets against each other; ``difference`` is ``row`` minus ``rival`` in Uno C."""

    row: Row
    rival: Row
    difference: Interval | None = None
    word: str = ""
    one_sided: Interval = NOTHING

    @property
    def better(self) -> bool:
        return self.difference is not None and self.difference.low > 0

    @property
    def worse(self) -> bool:
        return self.difference is not None and self.difference.high < 0

    def said(self, sentence: str) -> str:
        """``sentence`` with the names and numbers of this contest."""
        simple = self.rival.kind == "baseline" and self.row.kind != "predictions"
        text = sentence.format(
            model=named(self.row),
            c=estimated(self.row.uno_c),
            rival=named(self.rival),
            rival_c=estimated(self.rival.uno_c),
            paired="" if self.difference is None else f"the paired difference, {signed(self.difference)},",
            bound=f"{self.one_sided.low:+.3f}".replace("-", "−"),
            best="the best simple model" if simple else "the model it is set against",
            a_simple="a simple model" if simple else "the model it is set against",
            the_row="the best transformer strategy is" if self.row.kind == "strategy" else "the other is",
            matters=f"{MATTERS:g}",
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
        "wins without the Brier score",
        lambda c: c.better and c.word == "underpowered",
        "{model} ranks patients better than {best}: Uno C {c} against {rival_c} for {rival}; {paired} excludes zero. "
        "The integrated Brier score does not bear it out, so that the rule below cannot call it a gain (underpowered).",
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
            return Contest(row, rival, d.uno_c, d.word, d.one_sided)
        if (d.model, d.against) == (rival.model, row.model):
            return Contest(row, rival, Interval(-d.uno_c.value, -d.uno_c.high, -d.uno_c.low))
    return Contest(row, rival)


def named(row: Row) -> str:
    """A row's name in a sentence."""
    return f"the blend {row.model}" if row.blend else row.model


def estimated(interval: Interval, digits: int = 3) -> str:
    """A figure with its interval, which no line break parts."""
    if math.isnan(interval.low):
        return f"{interval.value:.{digits}f}"
    return f"{interval.value:.{digits}f} ({interval.low:.{digits}f}{_TO}{interval.high:.{digits}f})"


_TO = "\N{NO-BREAK SPACE}to\N{NO-BREAK SPACE}"


def signed(interval: Interval) -> str:
    """A difference with its signs.

    >>> signed(Interval(-0.012, -0.03, 0.004)).replace("\N{NO-BREAK SPACE}", " ")
    '−0.012 (−0.030 to +0.004)'
    """
    value, low, high = (f"{x:+.3f}".replace("-", "−") for x in (interval.value, interval.low, interval.high))
    return f"{value} ({low}{_TO}{high})"
