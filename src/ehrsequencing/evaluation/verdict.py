"""Whether a dearer model is worth its price: climb, stay, or underpowered (the rule of three words)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from ehrsequencing.evaluation.compare import Interval, Scores, paired_difference

MIN_GAIN_C, MAX_IBS_LOSS, TWO_SIDED = 0.005, 0.01, 0.90
"""A gain in C that matters, a relative IBS loss that is borne, and the level whose ends are one-sided 95% bounds."""

Word = Literal["climb", "stay", "underpowered"]


@dataclass(frozen=True)
class Verdict:
    """The word, the difference in Uno's C (dearer − cheaper) and the relative IBS gain, with one-sided 95% bounds."""

    word: Word
    gain_c: Interval
    gain_ibs: Interval

    def __str__(self) -> str:
        c, ibs = self.gain_c, self.gain_ibs
        return (
            f"{self.word} (Uno C {c.value:+.4f}, 95% bounds {_signed(c.low)} to {_signed(c.high)}; "
            f"IBS better by {ibs.value:+.1%})"
        )


def judge(cheaper: Scores, dearer: Scores) -> Verdict:
    """Compare two models on the same patients and resamples.

    climb: the lower bound of ΔC is above 0, its upper bound reaches 0.005, and IBS is not worse by more than 1%.
    stay: the upper bound of ΔC is below 0.005 and that of the relative IBS gain below 1%. Otherwise underpowered.
    """
    gain_c = paired_difference(cheaper, dearer, "uno_c", TWO_SIDED)
    before, after = cheaper.figures["ibs"], dearer.figures["ibs"]
    gain_ibs = Interval.of((before - after) / np.where(before > 0, before, np.nan), TWO_SIDED)
    if gain_c.low is None or gain_c.high is None or gain_ibs.high is None:
        return Verdict("underpowered", gain_c, gain_ibs)
    if gain_c.low > 0 and gain_c.high >= MIN_GAIN_C and gain_ibs.value >= -MAX_IBS_LOSS:
        return Verdict("climb", gain_c, gain_ibs)
    if gain_c.high < MIN_GAIN_C and gain_ibs.high < MAX_IBS_LOSS:
        return Verdict("stay", gain_c, gain_ibs)
    return Verdict("underpowered", gain_c, gain_ibs)


def _signed(value: float | None) -> str:
    return "none" if value is None else f"{value:+.4f}"
