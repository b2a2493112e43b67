"""`batchinfer.compare`: variants of a job beside each other."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from batchinfer.accounting.comparison import Comparison, VariantResult
from batchinfer.python_api.job import Job
from batchinfer.reporting.compare import render_comparison
from batchinfer.reporting.notebook import text_of

if TYPE_CHECKING:
    from batchinfer.python_api.data import Data


class JobComparison:
    """Variants of a job beside each other: `print` shows them as a table, `to_html` writes a page."""

    def __init__(self, comparison: Comparison) -> None:
        self.comparison = comparison
        """All of it."""

    @property
    def variants(self) -> tuple[VariantResult, ...]:
        """Each variant: its plan, what its sample measured, and its place beside the others."""
        return self.comparison.variants

    @property
    def chosen(self) -> VariantResult | None:
        """The variant to take; None if none can be told. `comparison.rule` says why."""
        return next((one for one in self.variants if one.name == self.comparison.chosen), None)

    def document(self) -> dict[str, Any]:
        """What `batchinfer compare --json` prints."""
        return self.comparison.model_dump(mode="json")

    def to_html(self, file: str | os.PathLike[str]) -> None:
        """Write one HTML file for a browser, which needs no other."""
        from batchinfer.pages import compare_page
        from batchinfer.storage import normal_uri, storage_for

        place = os.fspath(file)
        storage_for(place, {}).put(normal_uri(place), compare_page(self.comparison))

    def __str__(self) -> str:
        return text_of(render_comparison(self.comparison))

    def __repr__(self) -> str:
        return f"<JobComparison of {self.comparison.job_name}: {len(self.variants)} variants>"


def compare(
    job: Job,
    vary: Mapping[str, Sequence[Any]],
    data: Data | None = None,
    n: int = 500,
    *,
    output: str | os.PathLike[str] | None = None,
    seed: int = 0,
    margin: float = 0.02,
    judge: str | Mapping[str, Any] | None = None,
    dry_run: bool = False,
    address: str | None = None,
    fresh: bool = False,
    progress: bool | None = None,
) -> JobComparison:
    """Run `n` random rows through each combination of the values in `vary`, as in
    `{"model.source": ["qwen2.5-7b", "qwen2.5-1.5b"]}`, or with `dry_run` only plan them.

    Each variant has a folder in the output's `_compare`, and the same call again runs only what is missing. `margin`:
    how much less accurate than the best the chosen variant may be. `judge`: a model that scores the answers, or the
    keys of `--judge`. See `batchinfer compare`.
    """
    from batchinfer.execution.compare import compare as compared
    from batchinfer.jobspec.judge_keys import judge_from
    from batchinfer.jobspec.variants import variants
    from batchinfer.python_api.session import attended

    found = variants(vary)
    spec = job.spec_for(data, output)
    with attended(spec.storage, progress) as listener:
        made = compared(
            spec,
            found,
            listener,
            rows=n,
            seed=seed,
            margin=margin,
            dry_run=dry_run,
            cluster=address or os.environ.get("RAY_ADDRESS") or None,
            fresh=fresh,
            judge=None if judge is None else judge_from({"model": judge} if isinstance(judge, str) else judge),
        )
    return JobComparison(made)
