"""What a person is shown: reports, plans, progress and the catalog go in, text and tables come out."""

from batchinfer.reporting.catalog import accelerators_document, accelerators_table, models_document, models_table
from batchinfer.reporting.planned import render_plan, sample_lines
from batchinfer.reporting.terminal import render

__all__ = [
    "accelerators_document",
    "accelerators_table",
    "models_document",
    "models_table",
    "render",
    "render_plan",
    "sample_lines",
]
