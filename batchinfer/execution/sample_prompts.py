"""How long the prompts are: a sample of the real input, counted with the model's own tokenizer."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Sequence
from itertools import zip_longest
from typing import Any

import pyarrow as pa

from batchinfer.engine.prefix_order import scattered
from batchinfer.errors import RowError
from batchinfer.execution.reuse import request_keys
from batchinfer.execution.survey_chunks import survey_chunks
from batchinfer.execution.survey_parts import (
    SHORTEST_ANSWER,
    SampledRows,
    Survey,
    answers_of,
    measured_before,
    require_some_valid,
    seen_of,
    selected,
    too_long,
    with_tokenizer,
)
from batchinfer.execution.survey_requests import survey_requests
from batchinfer.execution.token_counter import counter, longest_sequence
from batchinfer.input import read_shards
from batchinfer.input.manifest import Manifest, Shard
from batchinfer.input.shard_sizes import CHARACTERS_PER_TOKEN
from batchinfer.jobspec import JobSpec, SamplingSpec
from batchinfer.jobspec.templates import Template
from batchinfer.planner import Interval, TooLong, Workload
from batchinfer.prompting.answers import require_whole_choices
from batchinfer.prompting.conditions import holds
from batchinfer.prompting.job_prompts import JobPrompts
from batchinfer.prompting.prompts import NO_ANSWERS, Answers
from batchinfer.prompting.row_sampling import RowSampling
from batchinfer.prompting.tokens import Tokenized, room_of_cut

SAMPLED_SHARDS = 16
ROWS_OF_EACH = 32


def survey(
    spec: JobSpec,
    manifest: Manifest,
    tokenizer_folder: str | None,
    earlier_output_tokens: float | None = None,
    context: int | None = None,
) -> Survey:
    """What the job asks of an engine, from up to 16 x 32 rows spread over its shards.

    `earlier_output_tokens`: mean output tokens of a row in earlier runs of the job. Without earlier runs an answer is
    expected to be one of the choices, or to have between a quarter of max_tokens and all of them.
    `context`: the model's longest sequence, in tokens; None if it is not known.
    Raises InputError if the input cannot be read.
    """
    sampled = _sample(manifest.shards)
    read = read_shards(sampled, manifest.schema, manifest.partitions, spec.rows_input, spec.storage)
    tables = [rows for _, rows in read]
    jobs = spec.step_jobs
    whole = SampledRows(spec, tables, manifest, tokenizer_folder, earlier_output_tokens, context)
    if spec.takes_requests:
        return survey_requests(whole)
    if spec.chunk is not None:
        return survey_chunks(whole)
    if spec.steps is None:
        return _run_once(_survey_step(whole, 0, []))
    answers: dict[str, Any] = {}
    found = []
    for place, (step, job) in enumerate(zip(spec.steps, jobs, strict=True)):
        # What earlier answers will be is not known here, so a condition on them counts as true.
        condition = step.condition()
        if condition is not None and answers.keys() & set(condition.columns):
            condition = None
        mine = [rows if condition is None else _that_hold(condition, rows) for rows in tables]
        given = [{name: [value] * rows.num_rows for name, value in answers.items()} for rows in mine]
        of_step = _survey_step(
            dataclasses.replace(whole, spec=job, tables=mine, earlier_output_tokens=None), place, given
        )
        share = sum(rows.num_rows for rows in mine) / max(1, sum(rows.num_rows for rows in tables))
        found.append((step.name, of_step, share))
        answers[step.name] = stand_in(job)
    return _together(found, manifest, earlier_output_tokens)


def _that_hold(condition: Template, rows: pa.Table) -> pa.Table:
    return rows.filter(pa.array([held is not False for held in holds(condition, rows)], pa.bool_()))


def _together(
    found: Sequence[tuple[str, Survey, float]], manifest: Manifest, earlier_output_tokens: float | None
) -> Survey:
    """The survey of all steps; with each its name and the share of the rows that have it."""
    samples = [survey.sample for _, survey, _ in found]
    # A request that an earlier row has takes no tokens.
    works = [
        (survey.workload, share * (1 - (survey.workload.repeated.mid if survey.workload.repeated is not None else 0)))
        for _, survey, share in found
    ]
    output = [work.output_tokens.scaled(share) for work, share in works]
    answer = Interval(low=sum(o.low for o in output), mid=sum(o.mid for o in output), high=sum(o.high for o in output))
    if earlier_output_tokens is not None:
        answer, _ = measured_before(earlier_output_tokens)
    lines = [
        f"{name} {survey.workload.input_tokens:,.0f} + {survey.workload.output_tokens.mid:,.0f}"
        + (f" for {share:.0%} of the rows" if share < 1 else "")
        + (f", {again.mid:.0%} of them repeated" if (again := survey.workload.repeated) and again.mid else "")
        for name, survey, share in found
    ]
    lengths: Counter[int] = Counter()
    failed: Counter[str] = Counter()
    for sample in samples:
        lengths.update(dict(sample.lengths))
        failed.update(sample.failed)
    first = samples[0]
    return Survey(
        first.model_copy(
            update={
                "failed": dict(failed.most_common()),
                "messages": {code: text for sample in reversed(samples) for code, text in sample.messages.items()},
                "lengths": tuple(sorted(lengths.items())),
                "too_long": next((sample.too_long for sample in samples if sample.too_long is not None), None),
            }
        ),
        works[0][0].model_copy(
            update={
                "rows": max(work.rows for work, _ in works),
                "input_tokens": sum(work.input_tokens * share for work, share in works),
                "longest_input_tokens": max(work.longest_input_tokens for work, _ in works),
                "longest_output_tokens": max((work.longest_output_tokens or 0 for work, _ in works), default=None),
                "output_tokens": answer,
                "sequences": max(sum(share for _, share in works), 1 / max(1, works[0][0].rows)),
                "repeated": None,
                "source": f"{works[0][0].source}; tokens of each step, in + out: {', '.join(lines)}"
                + ("" if earlier_output_tokens is None else "; all answers as an earlier run measured them"),
            }
        ),
    )


def stand_in(job: JobSpec) -> Any:
    """A value of an answer's shape, to count the prompts of later steps before there is an answer."""
    output = job.output
    if output.choices is not None:
        labels = sorted(output.choices, key=len)
        value: Any = list(labels) if output.multi_label else labels[-1]
    elif output.json_schema is not None:
        value = _example(output.json_schema)
    else:
        value = "x" * round(CHARACTERS_PER_TOKEN * job.sampling.max_tokens * (1 + SHORTEST_ANSWER) / 2)
    return [value] * job.sampling.n if job.sampling.n > 1 else value


def _example(schema: dict[str, Any]) -> Any:
    """A value of a JSON Schema's kind; not of all its rules."""
    if "enum" in schema:
        return schema["enum"][0]
    if schema.get("type") == "object" or "properties" in schema:
        return {
            name: _example(inner) for name, inner in schema.get("properties", {}).items() if isinstance(inner, dict)
        }
    if schema.get("type") == "array":
        items = schema.get("items")
        return [_example(items)] if isinstance(items, dict) else []
    return {"integer": 1, "number": 1.5, "boolean": True}.get(str(schema.get("type")), "x" * 20)


def _survey_step(sampled: SampledRows, step: int, answers: Sequence[Answers]) -> Survey:
    """`survey` of one of `JobSpec.step_jobs`; `answers`: those to earlier steps, for each of `tables`."""
    spec, manifest = sampled.spec, sampled.manifest
    longest = longest_sequence(spec, sampled.context)
    # Counted whole, whatever the job does with prompts that are too long: the plan says what each remedy does.
    counting = counter(sampled.tokenizer_folder, spec)
    cuts = spec.prompt.too_long == "truncate"
    room = None if longest is None or not counting.exact else longest - (1 if spec.generates else 0)
    keeps = room_of_cut(spec, longest) if cuts and longest is not None and counting.exact else None
    sampling = RowSampling(spec)
    samplings: list[SamplingSpec] = []
    lengths: list[int] = []
    beginnings: list[list[str]] = []
    asked: list[bytes] = []
    failures: list[RowError] = []
    maker = JobPrompts(spec, step)
    for rows, given in zip_longest(sampled.tables, answers, fillvalue=NO_ANSWERS):
        made = maker.prompts(rows, given)
        failures += [prompt for prompt in made if isinstance(prompt, RowError)]
        prompts = [prompt for prompt in made if not isinstance(prompt, RowError)]
        counted = counting.tokens(prompts) if prompts else []
        failures += [found for found in counted if isinstance(found, RowError)]
        whole = [(prompt, f) for prompt, f in zip(prompts, counted, strict=True) if isinstance(f, Tokenized)]
        lengths += [len(found.ids) for _, found in whole]
        samplings += [sampling.of(prompt) for prompt, _ in whole]
        # A row whose answer is drawn anew runs, also if its request is not the only one.
        asked += [
            key if sampling.of(prompt).repeats_itself else b"%d %d" % (len(beginnings), place)
            for place, (prompt, key) in enumerate(zip(prompts, request_keys(prompts), strict=True))
        ]
        beginnings.append(["\n".join(m["content"] for m in prompt.as_messages()) for prompt in prompts])
    require_some_valid(failures, len(lengths) + len(failures))
    run = [length for length in lengths if cuts or _fits(length, room)]
    if keeps is not None:
        usual = spec.sampling.max_tokens
        run = [min(length, max(0, keeps + usual - s.max_tokens)) for length, s in zip(lengths, samplings, strict=True)]
    if not cuts and room is not None:
        failures += [too_long(length, room) for length in lengths if length > room]
    output, why = answers_of(spec, counting, sampled.earlier_output_tokens, samplings)
    apart = scattered(beginnings)
    shared = f"; {apart:.0%} of them begin as rows elsewhere in the input do" if apart else ""
    seen = len(run) + len(failures)
    return Survey(
        seen_of(
            seen, failures, lengths, _remedies(spec, lengths, longest if counting.exact else None, sampled.context)
        ),
        Workload(
            rows=round(manifest.rows * len(run) / seen) if seen else manifest.rows,
            input_tokens=sum(run) / len(run) if run else 0.0,
            longest_input_tokens=max(run, default=0),
            output_tokens=output.scaled(spec.sampling.n),
            longest_output_tokens=max((s.max_tokens for s in samplings), default=None) if spec.generates else None,
            sampled_rows=len(run),
            source=f"input: {len(run):,} rows sampled{selected(manifest)}, "
            f"counted {with_tokenizer(counting.source)}{shared}; output: {why}",
            scattered=apart,
            repeated=repeats(asked, manifest.rows) if spec.reuses_answers else None,
        ),
    )


def repeats(requests: Sequence[bytes], rows: int) -> Interval:
    """The share of `rows` whose request is the same as an earlier one's, from the requests of a sample.

    A request that the sample has once counts as if the input had it once, and one that the sample has several times as
    if the rest of the input had no other of them that repeats. So repeats that lie further apart than the sample sees
    are left out, and the share is rather too low (the upper bound on distinct values of Charikar et al., Towards
    Estimation Error Guarantees for Distinct Values, 2000). The interval is that of 95% for a share of so many rows.
    """
    seen = len(requests)
    counts = Counter(requests).values()
    once = sum(count == 1 for count in counts)
    if not seen:
        return Interval(low=0.0, mid=0.0, high=0.0)
    several = len(counts) - once
    share = min(1.0, max(0.0, 1 - once / seen - several / max(rows, seen)))
    spread = 0.0 if seen >= rows else 1.96 * math.sqrt(share * (1 - share) / seen)
    return Interval(low=max(0.0, share - spread), mid=share, high=min(1.0, share + spread))


def _run_once(survey: Survey) -> Survey:
    """The survey without the rows that repeat an earlier one."""
    work = survey.workload
    share = 0.0 if work.repeated is None else work.repeated.mid
    return dataclasses.replace(survey, workload=work.model_copy(update={"rows": round(work.rows * (1 - share))}))


def _fits(length: int, room: int | None) -> bool:
    return room is None or length <= room


def _remedies(spec: JobSpec, lengths: Sequence[int], longest: int | None, model_context: int | None) -> TooLong | None:
    """The prompts that do not fit into `longest` tokens, and what each remedy would do; None if all fit."""
    if longest is None:
        return None
    answer = spec.sampling.max_tokens if spec.generates else 0
    cuts = spec.prompt.too_long == "truncate"
    keeps = max(0, longest - answer)
    room = keeps if cuts else longest - min(1, answer)
    over = [length for length in lengths if length > room]
    if not over:
        return None
    return TooLong(
        rows=len(over),
        longest=max(over),
        room=room,
        cut=cuts,
        cut_tokens=sum(length - keeps for length in over),
        prompt_tokens=sum(lengths),
        context=max(over) + answer,
        model_context=model_context,
    )


def require_room_for_choices(spec: JobSpec, tokenizer_folder: str | None) -> None:
    """Raise SpecError if `sampling.max_tokens` cuts the longest of `output.choices`: it could never be an answer."""
    counting = counter(tokenizer_folder, spec) if spec.output.choices else None
    if counting is None or not counting.exact or not spec.generates:
        return
    require_whole_choices(spec, counting.text_tokens)


def _sample(shards: Sequence[Shard]) -> list[Shard]:
    """The beginnings of up to 16 shards, evenly spread."""
    count = min(SAMPLED_SHARDS, len(shards))
    picked = [shards[i * len(shards) // count] for i in range(count)]
    return [dataclasses.replace(s, segments=(s.segments[0].beginning(ROWS_OF_EACH),)) for s in picked]
