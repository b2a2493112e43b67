"""The survey of a batch file, whose rows are whole requests."""

from __future__ import annotations

from batchinfer.engine.prefix_order import scattered
from batchinfer.errors import RowError
from batchinfer.execution.survey_parts import (
    SHORTEST_ANSWER,
    SampledRows,
    Survey,
    measured_before,
    seen_of,
    selected,
    too_long,
    with_tokenizer,
)
from batchinfer.execution.token_counter import counter, longest_sequence
from batchinfer.jobspec.sampling_keys import NO_LIMIT
from batchinfer.planner import Interval, Workload
from batchinfer.prompting.openai_requests import BatchRequests
from batchinfer.prompting.row_sampling import RowSampling
from batchinfer.prompting.tokens import Tokenized


def survey_requests(sampled: SampledRows) -> Survey:
    """`survey` of a batch file: each request has its own sampling, and may have several prompts."""
    spec, manifest = sampled.spec, sampled.manifest
    jobs = spec.step_jobs
    longest = longest_sequence(spec, sampled.context)
    counters = [counter(sampled.tokenizer_folder, job) for job in jobs]
    samplings = [RowSampling(job) for job in jobs]
    exact = counters[0].exact and longest is not None
    failures: list[RowError] = []
    lengths: list[int] = []
    answers: list[tuple[float, float]] = []
    most = 0
    rows = 0
    beginnings: list[list[str]] = []
    for found in (BatchRequests(spec).read(table) for table in sampled.tables):
        beginnings.append([])
        for request in found:
            if isinstance(request, RowError):
                failures.append(request)
                continue
            counted = [counters[prompt.step].tokens([prompt])[0] for prompt in request.prompts]
            refused = next((made for made in counted if isinstance(made, RowError)), None)
            of_row = [len(made.ids) for made in counted if isinstance(made, Tokenized)]
            wanted = samplings[request.prompts[0].step].of(request.prompts[0])
            limited = spec.generates and wanted.max_tokens != NO_LIMIT
            least = wanted.max_tokens if limited else int(spec.generates)
            if refused is None and exact and longest is not None and max(of_row) + least > longest:
                refused = too_long(max(of_row), longest - least)
            if refused is not None:
                failures.append(refused)
                continue
            rows += 1
            lengths += of_row
            beginnings[-1].append("\n".join(m["content"] for m in request.prompts[0].as_messages()))
            if spec.generates:
                limit = wanted.max_tokens if limited else spec.answer_tokens
                most = max(most, limit)
                count = wanted.n * len(of_row)
                answers.append((count * (limit if wanted.ignore_eos else SHORTEST_ANSWER * limit), count * limit))
    seen = rows + len(failures)
    output, why = Interval(low=0, mid=0, high=0), "numbers, no token"
    if answers:
        low, high = (sum(part) / len(answers) for part in zip(*answers, strict=True))
        output = Interval(low=low, mid=(low + high) / 2, high=high)
        why = (
            f"between {low:g} and {high:g} by the max_tokens of the requests ({spec.answer_tokens:,} where none is set)"
        )
        if sampled.earlier_output_tokens is not None:
            output, why = measured_before(sampled.earlier_output_tokens)
    return Survey(
        seen_of(seen, failures, lengths, None),
        Workload(
            rows=round(manifest.rows * rows / seen) if seen else manifest.rows,
            input_tokens=sum(lengths) / max(1, rows),
            longest_input_tokens=max(lengths, default=0),
            output_tokens=output,
            longest_output_tokens=most or None,
            sampled_rows=rows,
            source=f"input: {rows:,} requests sampled{selected(manifest)}, "
            f"counted {with_tokenizer(counters[0].source)}; "
            f"output: {why}",
            scattered=scattered(beginnings),
        ),
    )
