"""One page for people: what a finished study left on disk becomes a self-contained report.html."""

from ehrsequencing.report.render import readme_figure, write_report

__all__ = ["readme_figure", "write_report"]
