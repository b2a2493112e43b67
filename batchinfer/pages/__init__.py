"""Pages for a browser: one self-contained HTML file each, without a script."""

from batchinfer.pages.run_page import RunStory, run_page

__all__ = ["RunStory", "run_page"]
