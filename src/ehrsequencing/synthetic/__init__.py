"""Simulated records in which the truth is known: the outcome's hazard is an exact function of the recorded history."""

from ehrsequencing.synthetic.every_visit import has_states, landmark_survival
from ehrsequencing.synthetic.hazard import log_hazard
from ehrsequencing.synthetic.hospital import HOSPITALS, in_codes_of_a
from ehrsequencing.synthetic.simulate import simulate, simulated_task
from ehrsequencing.synthetic.truth import has_causes, read_truth, true_cif, true_event_free, true_survival

__all__ = [
    "HOSPITALS",
    "has_causes",
    "has_states",
    "in_codes_of_a",
    "landmark_survival",
    "log_hazard",
    "read_truth",
    "simulate",
    "simulated_task",
    "true_cif",
    "true_event_free",
    "true_survival",
]
