"""What the surveys of a job's rows have in common: the sample, what is told of it, and how long answers are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa

from batchinfer.errors import InputError, RowError
from batchinfer.execution.token_counter import TokenCounter
from batchinfer.input.manifest import Manifest
from batchinfer.jobspec import JobSpec, SamplingSpec
from batchinfer.planner import Interval, PromptSample, TooLong, Workload
from batchinfer.prompting.answers import label_list

SHORTEST_ANSWER = 0.25
"""Share of max_tokens: the low end of an answer's expected length before the first run of a job. If higher, more jobs
with short answers cost less than the plan's range; at 0.25, those with answers of 5% of max_tokens do."""

SHOWN_OF_A_MESSAGE = 300
"""Characters of a failure's message in a plan: enough to see what is wrong, and no row's whole text."""


@dataclass(frozen=True, slots=True)
class SampledRows:
    """Rows of a job, in tables of neighbours. `earlier_output_tokens`, `context`: see `survey`."""

    spec: JobSpec
    tables: Sequence[pa.Table]
    manifest: Manifest
    tokenizer_folder: str | None
    earlier_output_tokens: float | None
    context: int | None


@dataclass(frozen=True, slots=True)
class Survey:
    """A sample of the rows: statistics of all sampled rows, and the workload of those that will not fail."""

    sample: PromptSample
    workload: Workload


def seen_of(rows: int, failures: Sequence[RowError], lengths: Sequence[int], too_long: TooLong | None) -> PromptSample:
    """What the plan tells of the sample."""
    return PromptSample(
        rows=rows,
        failed=dict(Counter(failure.code for failure in failures).most_common()),
        messages={failure.code: failure.message[:SHOWN_OF_A_MESSAGE] for failure in reversed(failures)},
        lengths=_histogram(lengths),
        too_long=too_long,
    )


def selected(manifest: Manifest) -> str:
    """How many rows are selected, for a sentence about the sample."""
    return "" if manifest.total_rows is None else f" of the {manifest.rows_of_all} that are selected"


def require_some_valid(failures: Sequence[RowError], seen: int) -> None:
    """Raise InputError if no sampled row can become a prompt: a corpus of the wrong shape is one mistake."""
    codes = {failure.code for failure in failures}
    if failures and len(failures) == seen and codes <= {"prompt_invalid", "sampling_invalid"}:
        raise InputError(
            f"none of the {seen:,} rows sampled can run: {failures[0].message[:SHOWN_OF_A_MESSAGE]}",
            "change the rows or the keys that read them: all rows have the same shape, so all would fail",
        )


def too_long(length: int, room: int) -> RowError:
    """The error of a row whose prompt leaves no room for an answer."""
    return RowError("prompt_too_long", f"the prompt has {length:,} tokens, and there is room for {room:,}")


def _histogram(lengths: Sequence[int]) -> tuple[tuple[int, int], ...]:
    bounds = Counter(1 << max(0, length - 1).bit_length() for length in lengths)
    return tuple(sorted(bounds.items()))


def with_tokenizer(source: str) -> str:
    """How tokens were counted, for a sentence."""
    return source if source.startswith("at ") else f"with {source} tokenizer"


def measured_before(mean: float) -> tuple[Interval, str]:
    """Output tokens of a row by earlier runs of the job, and where the figure comes from."""
    return Interval(low=mean * 0.9, mid=mean, high=mean * 1.1), "as an earlier run of this job measured it"


def answers_of(
    spec: JobSpec, counting: TokenCounter, earlier: float | None, of_rows: Sequence[SamplingSpec] = ()
) -> tuple[Interval, str]:
    """Output tokens of one answer, and where the figure comes from. `of_rows`: the sampling of rows."""
    samplings = of_rows or [spec.sampling]
    most = round(sum(sampling.max_tokens for sampling in samplings) / len(samplings))
    if not spec.generates:
        return Interval(low=0, mid=0, high=0), "numbers, no token"
    if earlier is not None:
        return measured_before(earlier / spec.sampling.n)
    if spec.output.choices is not None:
        each = [min(most, counting.text_tokens(choice) + 1) for choice in spec.output.choices]
        if spec.output.multi_label:
            whole = min(most, counting.text_tokens(label_list(spec.output.choices)) + 1)
            return Interval(low=min(whole, 2), mid=(2 + whole) / 2, high=whole), "between no choice and all of them"
        return Interval(low=min(each), mid=sum(each) / len(each), high=max(each)), "the length of the choices"
    shortest = [s.max_tokens if s.ignore_eos else max(s.min_tokens, SHORTEST_ANSWER * s.max_tokens) for s in samplings]
    least = sum(shortest) / len(shortest)
    of_each = "" if spec.sampling_column is None else f", on average with {spec.sampling_column}"
    return (
        Interval(low=least, mid=(least + most) / 2, high=most),
        f"between {least:g} and max_tokens ({most}{of_each}): no earlier run says more",
    )
