"""Which failed rows a retry cannot help, said before an engine is loaded for them."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from batchinfer.errors import UserError
from batchinfer.jobspec import JobSpec

_BY_INPUT = (
    *("input_invalid", "prompt_empty", "prompt_invalid", "template_error"),
    *("request_invalid", "model_not_found"),
)
"""A retry has the same input and the same prompt."""


def advice_before_retry(spec: JobSpec, failed: Mapping[str, int], changed: Collection[str]) -> str | None:
    """What to say before the retry of so many failed rows by error code; None if every row may succeed.

    `changed`: the keys of the spec that the retry sets. Raises UserError if every row is bound to fail again.
    """
    bound = {code: rows for code, rows in failed.items() if code in _BY_INPUT}
    if "engine.max_model_len" not in changed and "prompt_too_long" in failed:
        bound["prompt_too_long"] = failed["prompt_too_long"]
    if not any(key.startswith("sampling.") for key in changed) and "sampling_invalid" in failed:
        bound["sampling_invalid"] = failed["sampling_invalid"]
    rows, named = sum(bound.values()), ", ".join(f"{count:,} {code}" for code, count in bound.items())
    if bound and rows == sum(failed.values()):
        raise UserError(
            f"none of the {rows:,} failed rows can succeed in a retry, which has the same rows: {named}",
            "make a job of those rows with another prompt or model"
            + ("; --set engine.max_model_len may help, too" if "prompt_too_long" in bound else ""),
        )
    told = []
    if bound:
        told.append(f"{rows:,} of {sum(failed.values()):,} failed rows fail again, since their rows stay: {named}")
    same = spec.sampling.temperature == 0 and not any(key.startswith("sampling.") for key in changed)
    if same and "output_invalid" in failed:
        told.append(
            f"{failed['output_invalid']:,} output_invalid rows most likely get the same answers at temperature 0: "
            "--set sampling.temperature=0.7, or sampling.max_tokens if they were cut, changes that"
        )
    return "; ".join(told) or None
