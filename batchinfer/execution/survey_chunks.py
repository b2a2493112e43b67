"""The survey of a job that cuts its texts into chunks."""

from __future__ import annotations

from batchinfer.errors import RowError
from batchinfer.execution.row_chunks import ChunkedRows, folding, require_room_to_combine
from batchinfer.execution.survey_parts import (
    SampledRows,
    Survey,
    answers_of,
    measured_before,
    require_some_valid,
    seen_of,
    selected,
    with_tokenizer,
)
from batchinfer.execution.token_counter import UNLIMITED, counter, longest_sequence
from batchinfer.jobspec.chunk_keys import CombinePrompt
from batchinfer.planner import Workload
from batchinfer.prompting.tokens import Tokenized

CUT_CHARACTERS = 8_000_000
"""Characters of sampled texts that a survey cuts into chunks, which takes a few seconds. More would make a plan of long
documents slow."""


def survey_chunks(sampled: SampledRows) -> Survey:
    """`survey` of a job with `chunk`: texts are cut as the replica cuts them, up to CUT_CHARACTERS of them."""
    spec, manifest = sampled.spec, sampled.manifest
    assert spec.chunk is not None
    counters = [counter(sampled.tokenizer_folder, job) for job in spec.step_jobs]
    longest = longest_sequence(spec, sampled.context) or UNLIMITED
    require_room_to_combine(spec, counters[-1], longest)
    program = ChunkedRows(spec, counters, longest)
    failures: list[RowError] = []
    lengths: list[int] = []
    pieces: list[int] = []
    characters = 0
    for rows in sampled.tables:
        for place in range(rows.num_rows):
            if characters > CUT_CHARACTERS:
                break
            row = rows.slice(place, 1)
            characters += sum(len(str(value)) for value in row.column(spec.chunk.column).to_pylist())
            (found,) = program.parts(row)
            if isinstance(found, RowError):
                failures.append(found)
                continue
            pieces.append(len(found))
            lengths += [len(made.ids) for made in counters[0].tokens(found) if isinstance(made, Tokenized)]
    require_some_valid(failures, len(pieces) + len(failures))
    seen, cut = len(pieces) + len(failures), max(1, len(pieces))
    answer, why = answers_of(spec, counters[0], None)
    combined, read = 0.0, 0.0
    prompts_read = sum(lengths) / cut
    if isinstance(spec.combine, CombinePrompt):
        last = spec.step_jobs[1].sampling.max_tokens
        around = counters[1].text_tokens(spec.combine.template)
        fit = max(2, int((longest - last - around) / (answer.mid + 2)))
        folded = [folding(count, fit) for count in pieces]
        combined = sum(requests for requests, _ in folded) / cut
        read = sum(count for _, count in folded) / cut
        prompts_read += read * answer.mid + combined * around
    requests = len(lengths) / cut + combined
    output = answer.scaled(requests)
    if sampled.earlier_output_tokens is not None:
        output, why = measured_before(sampled.earlier_output_tokens)
    return Survey(
        seen_of(seen, failures, lengths, None),
        Workload(
            rows=round(manifest.rows * len(pieces) / seen) if seen else manifest.rows,
            input_tokens=prompts_read,
            longest_input_tokens=max(lengths, default=0),
            output_tokens=output,
            sampled_rows=len(pieces),
            sequences=max(1.0, requests),
            source=f"input: {len(pieces):,} rows sampled{selected(manifest)}, "
            f"counted {with_tokenizer(counters[0].source)}, "
            f"{len(lengths) / cut:,.1f} chunks and {combined:,.1f} combined answers a row; output: {why}",
        ),
    )
