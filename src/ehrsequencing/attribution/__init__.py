"""Why a prediction is what it is: shares of codes and visits in a patient's predicted risk."""

from ehrsequencing.attribution.attributions import Attributions
from ehrsequencing.attribution.explaining import explain, explain_rows

__all__ = ["Attributions", "explain", "explain_rows"]
