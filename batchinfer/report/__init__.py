"""What a person is shown: the report of a run, its plan, the catalog; as values and for a terminal."""

from batchinfer.report.catalog import accelerators_document, accelerators_table, models_document, models_table
from batchinfer.report.model import Report, make_report
from batchinfer.report.planned import render_plan
from batchinfer.report.terminal import render

__all__ = [
    "Report",
    "accelerators_document",
    "accelerators_table",
    "make_report",
    "models_document",
    "models_table",
    "render",
    "render_plan",
]
