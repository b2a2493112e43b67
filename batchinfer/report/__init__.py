"""The report of a run: its model, and how a terminal shows it."""

from batchinfer.report.model import Report, make_report
from batchinfer.report.terminal import render

__all__ = ["Report", "make_report", "render"]
