"""Who is asked about, from when, and what happened to them: time-to-event cohorts over MEDS, and the one cut."""

from ehrsequencing.cohort.attrition import for_people
from ehrsequencing.cohort.build import build_cohort, eligible, prediction_rows
from ehrsequencing.cohort.cut import cut, whole_records
from ehrsequencing.cohort.result import Cohort

__all__ = ["Cohort", "build_cohort", "cut", "eligible", "for_people", "prediction_rows", "whole_records"]
