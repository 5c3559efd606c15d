"""Whether a dearer model is worth its price: climb, stay, or underpowered (the rule of three words)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from ehrsequencing.errors import EhrError, Exit
from ehrsequencing.evaluation.compare import LEVEL, Interval, Scores, paired_difference

MIN_GAIN_C, MAX_IBS_LOSS, TWO_SIDED = 0.005, 0.01, 0.90
"""A gain in C that matters, a relative IBS loss that is borne, and the level whose ends are one-sided 95% bounds."""
COMPARED = ("uno_c", "ibs", "antolini_c")
"""Metrics of a table of differences."""

Word = Literal["climb", "stay", "underpowered"]
Why = Literal["", "c_undecided", "ibs_undecided", "ibs_worse", "ibs_missing", "ibs_better"]
"""Why the word is underpowered: C decides nothing; or it does, and IBS decides nothing, is clearly worse (for climb),
does not exist, or is clearly better (for stay)."""


@dataclass(frozen=True)
class Verdict:
    """The word, the difference in Uno's C (dearer − cheaper) and the relative IBS gain, with one-sided 95% bounds.

    ``gain_ibs`` is None where a model has no IBS; ``reason`` then says why, and what C alone would say. ``why`` is
    empty unless the word is underpowered.
    """

    word: Word
    gain_c: Interval
    gain_ibs: Interval | None
    reason: str = ""
    why: Why = ""

    def __str__(self) -> str:
        c, ibs = self.gain_c, self.gain_ibs
        end = self.reason if ibs is None else f"IBS better by {ibs.value:+.1%}"
        return f"{self.word} (Uno C {c.value:+.4f}, 95% bounds {_signed(c.low)} to {_signed(c.high)}; {end})"


def judge(cheaper: Scores, dearer: Scores) -> Verdict:
    """Compare two models on the same patients and resamples.

    climb: the lower bound of ΔC is above 0, its upper bound reaches 0.005, and IBS is not worse by more than 1%.
    stay: the upper bound of ΔC is below 0.005 and that of the relative IBS gain below 1%. Otherwise underpowered, also
    where a model's predictions allow no IBS: the rule asks for both.
    """
    gain_c = paired_difference(cheaper, dearer, "uno_c", TWO_SIDED)
    for scores in (cheaper, dearer):
        if "ibs" not in scores.figures:
            why = scores.not_computed.get("ibs", "it was not asked for")
            reason = f"no IBS: {why}; by C alone: {_by_c(gain_c)}"
            return Verdict("underpowered", gain_c, None, reason, "ibs_missing")
    before, after = cheaper.figures["ibs"], dearer.figures["ibs"]
    gain_ibs = Interval.of((before - after) / np.where(before > 0, before, np.nan), TWO_SIDED)
    by_c = _by_c(gain_c)
    why = _why(by_c, gain_ibs)
    return Verdict("underpowered" if why else by_c, gain_c, gain_ibs, why=why)


def _why(by_c: Word, gain: Interval) -> Why:
    """Why neither C nor, given what C says, the relative IBS gain decides; empty where they do."""
    if by_c == "underpowered":
        return "c_undecided"
    if _ibs_agrees(by_c, gain):
        return ""
    if gain.low is None or gain.high is None:
        return "ibs_undecided"
    if by_c == "climb":
        return "ibs_worse" if gain.high < 0 else "ibs_undecided"
    return "ibs_better" if gain.low > 0 else "ibs_undecided"


def _ibs_agrees(word: Word, gain: Interval) -> bool:
    """Whether the relative IBS gain allows what C says."""
    if gain.high is None:
        return False
    return {"climb": gain.value >= -MAX_IBS_LOSS, "stay": gain.high < MAX_IBS_LOSS}.get(word, True)


def _by_c(gain: Interval) -> Word:
    """What the difference in C says."""
    if gain.low is None or gain.high is None:
        return "underpowered"
    if gain.high < MIN_GAIN_C:
        return "stay"
    return "climb" if gain.low > 0 else "underpowered"


@dataclass(frozen=True)
class Difference:
    """A model against a simpler one on the same patients.

    Attributes:
        model, against: their names.
        differences: metric → model − against, with its 95% interval; those both models have.
        bounds: the same at the level whose ends are one-sided 95% bounds.
        verdict: whether the model is worth its price.
    """

    model: str
    against: str
    differences: Mapping[str, Interval]
    bounds: Mapping[str, Interval]
    verdict: Verdict

    def to_json(self) -> list[dict[str, Any]]:
        """One entry a metric; that of Uno's C carries the ``word`` and, where that is underpowered, ``why``; every one
        has ``low90`` and ``high90``."""
        entries: list[dict[str, Any]] = []
        for metric, difference in self.differences.items():
            bound = self.bounds[metric]
            entry = {"model": self.model, "against": self.against, "metric": metric, **difference.to_json()}
            entries.append(entry | {"low90": bound.low, "high90": bound.high})
            if metric == "uno_c":
                entries[-1] |= {"word": self.verdict.word} | self._reason()
        return entries

    def _reason(self) -> dict[str, str]:
        said = {"why": self.verdict.why, "reason": self.verdict.reason}
        return {key: text for key, text in said.items() if text}


def difference_table(scores: Mapping[str, Scores], against: str) -> list[Difference]:
    """Every other model against the simple one: differences in Uno's C, IBS and Antolini's C, and the verdict.

    Args:
        scores: model → its scores, all of one Evaluation.
        against: the model that is cheaper than all others.

    Raises:
        EhrError: ``against`` is not among them (exit 13).
    """
    if against not in scores:
        known = ", ".join(scores)
        raise EhrError(f"no scores of '{against}'", "models", f"compare with one of: {known}", code=Exit.BUNDLE)
    simple = scores[against]
    return [_against(name, dearer, against, simple) for name, dearer in scores.items() if name != against]


def family_bound(cheaper: Scores, dearer: Sequence[Scores], metric: str = "uno_c") -> float | None:
    """The gain over ``cheaper`` that the best of several models exceeds by chance alone one time in twenty.

    The 95% quantile over resamples of the largest deviation of a gain from its own estimate (the single-step maximum
    of Westfall & Young 1993, Resampling-Based Multiple Testing); None without resamples.

    Args:
        dearer: all that the best is picked from.
    """
    gains = np.stack([each.figures[metric] - cheaper.figures[metric] for each in dearer])  # (m, 1 + B)
    excess = (gains[:, 1:] - gains[:, :1]).max(axis=0)  # (B,)
    seen = excess[np.isfinite(excess)]
    return None if seen.size == 0 else float(np.quantile(seen, (1 + TWO_SIDED) / 2))


def _against(name: str, dearer: Scores, against: str, simple: Scores) -> Difference:
    shared = [metric for metric in COMPARED if metric in dearer.figures and metric in simple.figures]
    wide, narrow = (
        {metric: paired_difference(simple, dearer, metric, level) for metric in shared} for level in (LEVEL, TWO_SIDED)
    )
    return Difference(name, against, wide, narrow, judge(simple, dearer))


def _signed(value: float | None) -> str:
    return "none" if value is None else f"{value:+.4f}"
