"""A shard's results: the rows of its result file, and the counts of its record."""

from __future__ import annotations

import contextlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from batchinfer.accounting.records import StepCount
from batchinfer.engine import Completion
from batchinfer.errors import REJECTED_CODES
from batchinfer.execution.shard_block import Envelope
from batchinfer.jobspec import EvaluateSpec, JobSpec
from batchinfer.jobspec.output_keys import RESULT_COLUMNS
from batchinfer.jobspec.printed import printed
from batchinfer.prompting.prompts import column_values
from batchinfer.prompting.typed import arrow_type

SECONDS = "row_seconds"
"""The column of a trial's results with the seconds that the engine had each row."""


def result_table(
    spec: JobSpec,
    rows: pa.Table,
    envelope: Envelope,
    answers: Sequence[Sequence[Completion]],
    timed: bool = False,
    width: int = 1,
    earlier: pa.Table | None = None,
) -> pa.Table:
    """The rows of the result file: id, passed-through columns, output, and the row's outcome.

    `answers`: of each of `spec.step_jobs`. With n > 1 the output, the finish reason and the logprobs are lists of n. A
    list of labels is a list of texts, an embedding a list of numbers. A row that failed before the engine has a null
    output. An answer of the wrong shape is kept beside its error, unless answers are typed: then it is null. `timed`
    adds the column SECONDS. `width`: the numbers of a vector, for a shard that has none. `earlier`: the results of an
    earlier attempt at these rows, whose steps that did not fail stay.
    """
    columns: dict[str, pa.Array | pa.ChunkedArray] = {}
    if spec.rows_input.id_column is None:
        places = envelope.retried if envelope.retried is not None else range(rows.num_rows)
        columns[spec.id_column] = pa.array([envelope.number(place) for place in places], pa.int64())
    else:
        columns[spec.id_column] = rows.column(spec.rows_input.id_column)
    for name in spec.rows_input.columns:
        columns[name] = rows.column(name)
    if spec.steps is None:
        columns |= _answer_columns(spec, answers[0], width)
    else:
        for job, completions in zip(spec.step_jobs, answers, strict=True):
            made = _answer_columns(job, completions, width, f"{job.output.column}_")
            columns |= made if earlier is None else _with_kept(made, earlier, f"{job.output.column}_error_code")
        columns |= _row_columns([job.output.column for job in spec.step_jobs], columns)
        if spec.reuses_answers:
            columns["reused"] = _reused_rows(spec, columns)
    if timed:
        seconds = [sum(c.seconds for c in of_row) for of_row in zip(*answers, strict=True)]
        columns[SECONDS] = pa.array(seconds, pa.float64())
    return pa.table(columns)


def results_schema(spec: JobSpec, rows: pa.Schema) -> pa.Schema:
    """The columns of the results of rows with these columns, before there are any."""
    nothing = Envelope(shard_id=0, generation=0, first_row=0)
    made: pa.Schema = result_table(spec, rows.empty_table(), nothing, [[] for _ in spec.step_jobs]).schema
    return made


def _answer_columns(
    spec: JobSpec, completions: Sequence[Completion], width: int, prefix: str = ""
) -> dict[str, pa.Array | pa.ChunkedArray]:
    """The columns of one step: the output with its companions, and `prefix` with each name of `RESULT_COLUMNS`."""
    many = spec.lists_answers
    text = pa.list_(pa.string()) if many else pa.string()
    first = slice(None) if many else 0
    columns = {**_outputs(spec, completions, width)}
    columns[f"{prefix}finish_reason"] = pa.array(
        [c.finish_reasons[first] if c.finish_reasons else None for c in completions], text
    )
    columns[f"{prefix}input_tokens"] = pa.array([c.input_tokens for c in completions], pa.int32())
    columns[f"{prefix}cached_tokens"] = pa.array([c.cached_tokens for c in completions], pa.int32())
    columns[f"{prefix}output_tokens"] = pa.array([c.output_tokens for c in completions], pa.int32())
    errors = [c.error for c in completions]
    columns[f"{prefix}error_code"] = pa.array([e.code if e else None for e in errors], pa.string())
    columns[f"{prefix}error_message"] = pa.array([e.message if e else None for e in errors], pa.string())
    if spec.sampling.logprobs is not None:
        columns[f"{prefix}logprobs"] = pa.array(
            [c.logprobs[first] if c.logprobs else None for c in completions], _logprobs_type(many)
        )
    if spec.prompt.cut_column is not None:
        columns[f"{prefix}truncated_tokens"] = pa.array([c.truncated_tokens for c in completions], pa.int32())
    if spec.chunk is not None:
        columns["chunks"] = pa.array([c.chunks for c in completions], pa.int32())
        columns["levels"] = pa.array([c.levels for c in completions], pa.int32())
    if spec.reasoning is not None:
        columns[f"{prefix}reasoning_tokens"] = pa.array([c.reasoning_tokens for c in completions], pa.int32())
        if spec.reasoning.column is not None:
            thought = [c.reasoning[first] if c.reasoning else None for c in completions]
            columns[f"{prefix}{spec.reasoning.column}"] = pa.array(thought, text)
    if spec.takes_requests:
        columns["response"] = pa.array([c.response for c in completions], pa.string())
    if spec.reuses_answers:
        columns[f"{prefix}reused"] = pa.array([c.reused_tokens is not None for c in completions], pa.bool_())
    return columns


def _with_kept(columns: Mapping[str, pa.Array], earlier: pa.Table, code: str) -> dict[str, pa.Array]:
    """The columns of a step, with what it had in the rows of an earlier attempt in which it did not fail."""
    kept = earlier.column(code).is_null()
    # Rows are taken, not chosen with if_else, which has no kernel for some nested types.
    rows = pa.array(range(len(kept)))
    place = pc.if_else(kept, rows, pc.add(rows, len(kept)))
    return {
        name: pa.chunked_array([*earlier.column(name).cast(made.type).chunks, made]).take(place)
        for name, made in columns.items()
    }


def _row_columns(names: Sequence[str], columns: Mapping[str, pa.Array | pa.ChunkedArray]) -> dict[str, pa.Array]:
    """The columns that tell of a whole row of several steps.

    The finish reason is that of the first step that did not just stop. The error is that of the first step that failed,
    as `step_failed` if another step has an answer.
    """
    told = {key: [columns[f"{name}_{key}"].to_pylist() for name in names] for key in RESULT_COLUMNS}
    reasons: list[str | None] = []
    for of_row in zip(*told["finish_reason"], strict=True):
        ended = [one for found in of_row for one in (found if isinstance(found, list) else [found]) if one is not None]
        reasons.append(next((one for one in ended if one != "stop"), "stop" if ended else None))
    codes: list[str | None] = []
    messages: list[str | None] = []
    for of_row, message, ended_as in zip(
        zip(*told["error_code"], strict=True),
        zip(*told["error_message"], strict=True),
        zip(*told["finish_reason"], strict=True),
        strict=True,
    ):
        place = next((i for i, code in enumerate(of_row) if code is not None), None)
        if place is None:
            codes.append(None)
            messages.append(None)
            continue
        answered = any(reason is not None for reason in ended_as)
        codes.append("step_failed" if answered else of_row[place])
        messages.append(f"step {names[place]}: {of_row[place]}: {message[place]}")
    sums = {
        key: pa.array([sum(of_row) for of_row in zip(*told[key], strict=True)], pa.int32())
        for key in ("input_tokens", "cached_tokens", "output_tokens")
    }
    return {
        "finish_reason": pa.array(reasons, pa.string()),
        **sums,
        "error_code": pa.array(codes, pa.string()),
        "error_message": pa.array(messages, pa.string()),
    }


def _reused_rows(spec: JobSpec, columns: Mapping[str, pa.Array | pa.ChunkedArray]) -> pa.Array:
    """Whether a row of several steps has the answers of equal requests only, so that it took no tokens."""
    steps = zip(*(columns[f"{job.output.column}_reused"].to_pylist() for job in spec.step_jobs), strict=True)
    tokens = zip(columns["input_tokens"].to_pylist(), columns["output_tokens"].to_pylist(), strict=True)
    return pa.array([any(row) and not any(ran) for row, ran in zip(steps, tokens, strict=True)], pa.bool_())


def _outputs(spec: JobSpec, completions: Sequence[Completion], width: int) -> dict[str, pa.Array]:
    """The output column and its companions (`JobSpec.companions`)."""
    output, name = spec.output, spec.output.column
    if spec.task == "embed":
        return _vectors(spec, [c.embedding for c in completions], width)
    if spec.task == "score":
        return {name: pa.array([c.score for c in completions], pa.float64())}
    if output.kind is not None:
        return _typed_columns(spec, completions)
    if spec.lists_answers:
        texts = [c.texts or None for c in completions]
        if not output.multi_label:
            return {name: pa.array(texts, pa.list_(pa.string()))}
        lists = [None if c.error or not c.texts else [json.loads(text) for text in c.texts] for c in completions]
        return {name: pa.array(lists, pa.list_(pa.list_(pa.string())))}
    answers = [c.texts[0] if c.texts else None for c in completions]
    if output.multi_label:
        # A cut list is no list: its text is in the row's error.
        labels = [
            json.loads(a) if a is not None and c.error is None else None
            for a, c in zip(answers, completions, strict=True)
        ]
        return {name: pa.array(labels, pa.list_(pa.string()))}
    made = {name: pa.array(answers, pa.string())}
    if spec.tells_confidence:
        found = [c.probabilities if c.error is None else None for c in completions]
        sure = [None if p is None else p.get(a or "") for p, a in zip(found, answers, strict=True)]
        made[f"{name}_confidence"] = pa.array(sure, pa.float64())
        pairs = [p and list(p.items()) for p in found]
        made[f"{name}_probabilities"] = pa.array(pairs, pa.map_(pa.string(), pa.float64()))
        if output.abstain_below is not None:
            made[f"{name}_guess"] = made[name]
            made[name] = pc.if_else(pc.less(made[f"{name}_confidence"], output.abstain_below), None, made[name])
    return made


MOST_OF_INT8 = 127
"""The largest number of a stored int8 vector. 128 would fit negative numbers only, and break the symmetry."""


def _vectors(spec: JobSpec, vectors: Sequence[npt.NDArray[np.float32] | None], width: int) -> dict[str, pa.Array]:
    """The vectors as `output.embedding_type` has them; `width`: the numbers of a vector if no row has one."""
    name, kind = spec.output.column, spec.output.embedding_type
    if kind is None:
        return {name: pa.array(vectors, pa.list_(pa.float32()))}
    size = next((len(vector) for vector in vectors if vector is not None), width)
    if kind != "int8":
        stored = [None if v is None else v.astype(kind) for v in vectors]
        return {name: pa.array(stored, pa.list_(pa.type_for_alias(kind), size))}
    scales = [None if v is None else float(np.float32(np.abs(v).max() / MOST_OF_INT8)) for v in vectors]
    small = [
        None if v is None else np.rint(v / scale if scale else v).astype(np.int8)
        for v, scale in zip(vectors, scales, strict=True)
    ]
    return {
        name: pa.array(small, pa.list_(pa.int8(), size)),
        f"{name}_scale": pa.array(scales, pa.float32()),
    }


def _typed_columns(spec: JobSpec, completions: Sequence[Completion]) -> dict[str, pa.Array]:
    """The answers as one column of their type, or as one for each key. Types depend on the schema alone."""
    output = spec.output
    assert output.kind is not None
    if output.as_ == "columns":
        answers = [c.values[0] if c.values else None for c in completions]
        return {
            name: pa.array([None if answer is None else answer[name] for answer in answers], arrow_type(kind))
            for name, kind in output.kind.fields
        }
    kind = arrow_type(output.kind)
    if spec.lists_answers:
        return {output.column: pa.array([c.values for c in completions], pa.list_(kind))}
    return {output.column: pa.array([c.values[0] if c.values else None for c in completions], kind)}


def _logprobs_type(many: bool) -> pa.DataType:
    """A list over tokens of lists of alternatives; with n > 1 a list of n such lists."""
    fields = [("token", pa.string()), ("token_id", pa.int32()), ("logprob", pa.float32()), ("rank", pa.int32())]
    tokens = pa.list_(pa.list_(pa.struct(fields)))
    return pa.list_(tokens) if many else tokens


def evaluate(spec: JobSpec, rows: pa.Table, completions: Sequence[Completion]) -> dict[str, tuple[int, int]]:
    """By group: (outputs that equal the expected value, rows that have an expected value)."""
    wanted = spec.evaluate
    if wanted is None:
        return {}
    answers = [_answer(c, wanted) if c.texts and c.error is None else None for c in completions]
    return compared(wanted, rows, answers, spec.output.multi_label)


def _answer(completion: Completion, wanted: EvaluateSpec) -> str | None:
    """What is compared of an answer that fits."""
    if wanted.part is None:
        return completion.texts[0]
    whole = json.loads(completion.texts[0]) if completion.values is None else completion.values[0]
    return part_of(whole, wanted.part)


def part_of(whole: Any, part: str) -> str | None:
    """A key of an answer, as text; None if the answer leaves it out."""
    value = whole.get(part) if isinstance(whole, dict) else None
    return None if value is None else printed(value)


def compared(
    wanted: EvaluateSpec, rows: pa.Table, answers: Sequence[str | None], many: bool
) -> dict[str, tuple[int, int]]:
    """As `evaluate`, for existing answers, None for a row without one; `rows` has the columns of `wanted`.

    `many`: the answers are JSON lists of labels, whose order does not count.
    """
    expected = column_values(rows, wanted.expected)
    groups = column_values(rows, wanted.by) if wanted.by is not None else ["all"] * rows.num_rows
    counts: dict[str, tuple[int, int]] = {}
    for value, group, answer in zip(expected, groups, answers, strict=True):
        if value is not None:
            name = str(group) if group is None else printed(group)
            right, of = counts.get(name, (0, 0))
            counts[name] = (right + (labels_of(answer, many) == labels_of(value, many)), of + 1)
    return counts


def labels_of(value: Any, many: bool) -> frozenset[str] | None:
    """The labels of an answer or of an expected value; None for a row without one. `many`: it is a list of labels."""
    if value is None:
        return None
    if many and isinstance(value, str) and value.startswith("["):
        with contextlib.suppress(ValueError):
            value = json.loads(value)
    if many and isinstance(value, list):
        return frozenset(printed(label) for label in value)
    return frozenset([printed(value)])


def counts(results: pa.Table) -> dict[str, Any]:
    """The fields of a ShardRecord that count the rows of `result_table`: tokens, errors, finish reasons."""
    codes = results.column("error_code")
    rejected = pc.is_in(codes, pa.array(sorted(REJECTED_CODES)))
    ran = results.filter(pc.invert(rejected))
    reasons = results.column("finish_reason").filter(codes.is_null())
    if pa.types.is_list(reasons.type):
        reasons = pc.list_flatten(reasons)
    names = ["input_tokens", "cached_tokens", "output_tokens"]
    names += ["reasoning_tokens"] if "reasoning_tokens" in results.column_names else []
    return {
        "rows_failed": len(codes) - codes.null_count,
        **{name: pc.sum(ran.column(name), min_count=0).as_py() for name in names},
        "rejected_tokens": pc.sum(results.column("input_tokens").filter(rejected), min_count=0).as_py(),
        "errors": _numbers(codes),
        "finish_reasons": _numbers(reasons),
    }


def reuse_counts(results: pa.Table, answers: Sequence[Sequence[Completion]]) -> dict[str, float]:
    """The fields of a ShardRecord about answers that were those of equal requests."""
    if "reused" not in results.column_names:
        return {}
    reused = results.column("reused").to_pylist()
    kept = [c for of_step in answers for c in of_step if c.saved_usd is not None]
    from_cache = [any(c.saved_usd is not None for c in of_row) for of_row in zip(*answers, strict=True)]
    return {
        "rows_reused": sum(reused),
        "tokens_reused": sum(c.reused_tokens or 0 for of_step in answers for c in of_step),
        "rows_from_cache": sum(again and kept for again, kept in zip(reused, from_cache, strict=True)),
        "tokens_from_cache": sum(c.reused_tokens or 0 for c in kept),
        "saved_by_cache_usd": sum(c.saved_usd or 0.0 for c in kept),
    }


def step_counts(
    jobs: Sequence[JobSpec], answers: Sequence[Sequence[Completion]], seconds: Mapping[str, float]
) -> dict[str, StepCount]:
    """What each step of a job with `steps` did in this attempt. `seconds`: its device-seconds, by name."""
    return {
        job.output.column: step_count(completions, seconds.get(job.output.column, 0.0))
        for job, completions in zip(jobs, answers, strict=True)
    }


def step_count(completions: Sequence[Completion], gpu_seconds: float) -> StepCount:
    """What the requests of these completions did."""
    asked = [c for c in completions if c.error is not None or c.finish_reasons]
    ran = [c for c in asked if c.error is None or c.error.code not in REJECTED_CODES]
    return StepCount(
        rows=len(asked),
        rows_failed=sum(c.error is not None for c in asked),
        input_tokens=sum(c.input_tokens for c in ran),
        cached_tokens=sum(c.cached_tokens for c in ran),
        output_tokens=sum(c.output_tokens for c in ran),
        reasoning_tokens=sum(c.reasoning_tokens for c in ran),
        rejected_tokens=sum(c.input_tokens for c in asked) - sum(c.input_tokens for c in ran),
        errors=dict(Counter(c.error.code for c in asked if c.error is not None)),
        gpu_seconds=gpu_seconds,
        rows_reused=sum(c.reused_tokens is not None for c in asked),
        tokens_reused=sum(c.reused_tokens or 0 for c in asked),
        tokens_from_cache=sum(c.reused_tokens or 0 for c in asked if c.saved_usd is not None),
        saved_by_cache_usd=sum(c.saved_usd or 0.0 for c in asked),
    )


def of_steps(steps: Mapping[str, StepCount]) -> dict[str, float]:
    """The tokens of a record, as the sums over its steps."""
    names = (
        *("input_tokens", "cached_tokens", "output_tokens", "reasoning_tokens", "rejected_tokens", "tokens_reused"),
        *("tokens_from_cache", "saved_by_cache_usd"),
    )
    return {name: sum(getattr(step, name) for step in steps.values()) for name in names}


def _numbers(values: pa.ChunkedArray) -> dict[str, int]:
    """How often each value occurs, in order of first appearance; nulls do not count."""
    return {found["values"]: found["counts"] for found in pc.value_counts(values.drop_null()).to_pylist()}
