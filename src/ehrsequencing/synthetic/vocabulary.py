"""The simulator's codes: those that act on the outcome, and the noise around them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import polars as pl
from jaxtyping import Int32

from ehrsequencing.events import BIRTH, DEATH

NOISE = "SIM//"
"""How noise codes begin."""
MALE, FEMALE = "SEX//M", "SEX//F"
OUTCOME = "ICD10CM//I50.9"
HYPERTENSION, DIABETES, CORONARY, COPD = "ICD10CM//I10", "ICD10CM//E11.9", "ICD10CM//I25.10", "ICD10CM//J44.9"
KIDNEY, FIBRILLATION = "ICD10CM//N18.3", "ICD10CM//I48.91"
INFARCTION, PNEUMONIA = "ICD10CM//I21.9", "ICD10CM//J18.9"
ACE_INHIBITOR, STATIN, NSAID, ASPIRIN = "ATC//C09AA05", "ATC//C10AA05", "ATC//M01AE01", "ATC//B01AC06"
PRESSURE, FILTRATION = "LOINC//8480-6", "LOINC//33914-3"
INTENSIVE, WARD = "ADMISSION//INTENSIVE_CARE", "ADMISSION//WARD"
CLINICS = ("NORTH", "SOUTH", "EAST", "WEST", "HARBOUR", "STATION", "PARK", "HILL", "BRIDGE", "MARKET")

DESCRIPTIONS = {
    BIRTH: "Birth",
    DEATH: "Death",
    MALE: "Male",
    FEMALE: "Female",
    OUTCOME: "Heart failure, unspecified: the outcome",
    HYPERTENSION: "Essential hypertension",
    DIABETES: "Type 2 diabetes mellitus",
    CORONARY: "Coronary artery disease",
    COPD: "Chronic obstructive pulmonary disease",
    KIDNEY: "Chronic kidney disease, stage 3",
    FIBRILLATION: "Atrial fibrillation",
    INFARCTION: "Acute myocardial infarction",
    PNEUMONIA: "Pneumonia",
    ACE_INHIBITOR: "Ramipril (ACE inhibitor), dispensed",
    STATIN: "Atorvastatin (statin), dispensed",
    NSAID: "Ibuprofen (NSAID), dispensed",
    ASPIRIN: "Low-dose aspirin, dispensed",
    PRESSURE: "Systolic blood pressure, mmHg",
    FILTRATION: "Estimated glomerular filtration rate, mL/min/1.73 m2",
    INTENSIVE: "Emergency admission to intensive care",
    WARD: "Emergency admission to a ward",
    **{f"VISIT//{name}": f"Outpatient visit, {name.title()} clinic" for name in CLINICS},
}
_KINDS = (("DX", "diagnosis"), ("PROC", "procedure"), ("RX", "prescription"))


@dataclass(frozen=True)
class Vocabulary:
    """All codes in alphabetical order, so that an id sorts as its code does.

    >>> vocabulary = Vocabulary(noise_codes=2)
    >>> [vocabulary.names[number] for number in vocabulary.noise]
    ['SIM//DX-0000', 'SIM//PROC-0001']
    """

    noise_codes: int
    name_of: Callable[[str], str] = str
    """How the hospital names a code of hospital a."""

    @cached_property
    def _noise(self) -> dict[str, str]:
        """Noise codes, by number, in the names of hospital a, with their descriptions."""
        kinds = (_KINDS[number % len(_KINDS)] for number in range(self.noise_codes))
        return {
            f"{NOISE}{short}-{number:04d}": f"Simulated {long} {number}, without effect"
            for number, (short, long) in enumerate(kinds)
        }

    @cached_property
    def descriptions(self) -> dict[str, str]:
        """Code to description, alphabetical."""
        return dict(sorted((self.name_of(code), text) for code, text in (DESCRIPTIONS | self._noise).items()))

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Every code; the position is its id."""
        return tuple(self.descriptions)

    @cached_property
    def ids(self) -> dict[str, int]:
        """Code, in the names of hospital a, to id."""
        place = {name: number for number, name in enumerate(self.names)}
        return {code: place[self.name_of(code)] for code in DESCRIPTIONS | self._noise}

    @cached_property
    def noise(self) -> Int32[np.ndarray, " noise"]:
        """Ids of the noise codes, by number."""
        return np.array([self.ids[code] for code in self._noise], dtype=np.int32)

    def table(self) -> pl.DataFrame:
        """The MEDS code metadata: code, description."""
        return pl.DataFrame({"code": list(self.names), "description": list(self.descriptions.values())})
