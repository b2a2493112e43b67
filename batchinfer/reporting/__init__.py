"""What a person sees: reports, plans, progress and the catalog as text and tables."""

from batchinfer.reporting.catalog import accelerators_document, accelerators_table, models_document, models_table
from batchinfer.reporting.evaluation import render_evaluation
from batchinfer.reporting.planned import render_plan, sample_lines
from batchinfer.reporting.terminal import render

__all__ = [
    "accelerators_document",
    "accelerators_table",
    "models_document",
    "models_table",
    "render",
    "render_evaluation",
    "render_plan",
    "sample_lines",
]
