"""The keys of `evaluate`: which column has the right answers."""

from __future__ import annotations

import difflib

from batchinfer.jobspec.base import Keys
from batchinfer.jobspec.output_keys import OutputSpec


class EvaluateSpec(Keys):
    """Compare the output with a column of the input; the report has the accuracy. Needs `sampling.n: 1`.

    A label that `output.abstain_below` withholds is compared too.
    """

    expected: str
    """The column with the right answer; the output must equal it as text.

    Rows where it is null are not compared. A failed row counts as wrong."""
    part: str | None = None
    """The key of a JSON answer to compare, as in `total`. null: the whole answer, as text.

    Needed with `output.as: struct` or `columns`."""
    by: str | None = None
    """A column: the report has the accuracy for each of its values. null: one accuracy, over all rows."""


def require_part(evaluate: EvaluateSpec | None, output: OutputSpec) -> None:
    """Raise ValueError if `evaluate.part` is no key of the answers, or is missing where they are typed."""
    if evaluate is None:
        return
    keys = (output.json_schema or {}).get("properties", {})
    if evaluate.part is None and output.as_ != "json":
        raise ValueError(f"evaluate.part must name the key to compare beside output.as: {', '.join(keys)}")
    if evaluate.part is not None and evaluate.part not in keys:
        near = difflib.get_close_matches(evaluate.part, keys, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"its keys are {', '.join(keys) or 'none'}"
        raise ValueError(f"evaluate.part {evaluate.part!r:.100} is not a key of output.json_schema: {hint}")
