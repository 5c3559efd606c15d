"""Where simulated patients are seen: how a hospital codes, and whom it sees. The causes are the same everywhere."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import polars as pl

from ehrsequencing.synthetic import vocabulary as v
from ehrsequencing.synthetic.hazard import BASELINE, Weibull


@dataclass(frozen=True)
class Hospital:
    """Case mix and coding.

    Attributes:
        age_mean: years at prediction_time.
        illness: added to everybody's frailty, in its standard deviations: conditions come earlier.
        visits_median: outpatient visits up to prediction_time.
        baseline: of the outcome's hazard; another one makes models from elsewhere miscalibrated.
        codes: this hospital's name for a code of hospital a, where it differs.
        local_noise: whether every second noise code has a local name.
        stream: keeps hospitals of one seed apart.
    """

    age_mean: float = 63.0
    illness: float = 0.0
    visits_median: float = 8.0
    baseline: Weibull = BASELINE
    codes: Mapping[str, str] = field(default_factory=dict)
    local_noise: bool = False
    stream: tuple[int, ...] = ()

    def name_of(self, code: str) -> str:
        """This hospital's name for a code of hospital a.

        >>> HOSPITALS["b"].name_of("SIM//DX-0003"), HOSPITALS["b"].name_of("ICD10CM//I10")
        ('LOCAL//DX-0003', 'ICD10CM//I10')
        """
        if self.local_noise and code.startswith(v.NOISE) and int(code.rsplit("-", 1)[1]) % 2:
            return code.replace(v.NOISE, "LOCAL//")
        return self.codes.get(code, code)


HOSPITALS = {
    "a": Hospital(),
    "b": Hospital(
        age_mean=68.0,
        illness=0.6,
        visits_median=5.0,
        baseline=Weibull(shape=1.2, scale_days=2_300.0),
        codes={
            v.DIABETES: "ICD10CM//E11.65",
            v.CORONARY: "ICD10CM//I25",
            v.COPD: "ICD9CM//496",
            v.INFARCTION: "ICD10CM//I21.4",
            v.STATIN: "ATC//C10AA01",
            v.NSAID: "RXNORM//5640",
            v.FILTRATION: "LOINC//62238-1",
            v.INTENSIVE: "ADMISSION//ICU",
            **{f"VISIT//{clinic}": f"VISIT//{clinic}-B" for clinic in v.CLINICS[::2]},
        },
        local_noise=True,
        stream=(2,),
    ),
}
"""Two hospitals; b codes more finely, more coarsely or in other vocabularies, and sees the older and sicker."""


def in_codes_of_a(history: pl.DataFrame, hospital: Hospital) -> pl.DataFrame:
    """Records of ``hospital`` in the names of hospital a, for ``log_hazard``: it reads meanings, not names."""
    back = {name: code for code, name in hospital.codes.items()}
    return history.with_columns(pl.col("code").replace(back).str.replace("^LOCAL//", v.NOISE))
