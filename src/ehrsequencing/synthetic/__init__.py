"""Simulated records in which the truth is known: the outcome's hazard is an exact function of the recorded history."""

from ehrsequencing.synthetic.hazard import log_hazard
from ehrsequencing.synthetic.simulate import simulate, simulated_task
from ehrsequencing.synthetic.truth import read_truth, true_survival

__all__ = ["log_hazard", "read_truth", "simulate", "simulated_task", "true_survival"]
