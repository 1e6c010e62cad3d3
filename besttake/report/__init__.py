"""What people look at when a run is done: one self-contained page."""

from besttake.report.page import write_report

__all__ = ["write_report"]
