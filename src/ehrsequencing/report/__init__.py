"""One page for people: what a finished study or evaluation left on disk becomes a self-contained report.html."""

from ehrsequencing.report.inputs import Inputs, read_inputs
from ehrsequencing.report.render import readme_figure, write_report, write_report_from

__all__ = ["Inputs", "read_inputs", "readme_figure", "write_report", "write_report_from"]
