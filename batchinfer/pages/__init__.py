"""Pages for a browser: one self-contained HTML file each, without a script."""

from batchinfer.pages.compare_page import compare_page
from batchinfer.pages.costs_page import CostsStory, costs_page
from batchinfer.pages.run_page import RunStory, run_page

__all__ = ["CostsStory", "RunStory", "compare_page", "costs_page", "run_page"]
