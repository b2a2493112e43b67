"""A model scores the answers of a comparison's variants: an ordinary job over pairs of a request and an answer.

The pairs of all variants are one file, and the job's folder is named after what is in it: the same answers are judged
once, by one load, and a call that was cut off goes on. Equal pairs run once (`dedupe`).
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from batchinfer.accounting.report import Report
from batchinfer.accounting.scores import Judging
from batchinfer.errors import RowError, SpecError
from batchinfer.execution import runner
from batchinfer.execution.checks import absolute, find_manifest
from batchinfer.execution.model_checks import require_model
from batchinfer.execution.plan_job import plan_of
from batchinfer.execution.progress import Listener
from batchinfer.execution.trial import answer_of
from batchinfer.input import read_shards
from batchinfer.input.shard_sizes import CHARACTERS_PER_TOKEN
from batchinfer.jobspec import JobSpec, from_keys
from batchinfer.jobspec.judge_keys import JudgeSpec
from batchinfer.jobspec.printed import printed
from batchinfer.planner import Interval, Workload, assumed_cluster
from batchinfer.prompting.job_prompts import JobPrompts
from batchinfer.prompting.prompts import Prompt, column_values
from batchinfer.rundir.commit import committed_shards, opened_results
from batchinfer.rundir.paths import Layout
from batchinfer.storage import join, storage_for

_PAIRS = pa.schema(
    [("id", pa.int64()), ("variant", pa.string()), ("row", pa.string()), ("prompt", pa.string()),
     ("answer", pa.string())]
)  # fmt: skip
"""A row of the judge's input. `variant`: its folder's name. `row`: the row's id as text."""


@dataclass(frozen=True, slots=True)
class JudgedVariant:
    """A variant whose sample has run. `folder`: the name of its folder."""

    name: str
    folder: str
    spec: JobSpec
    layout: Layout


@dataclass(slots=True)
class Scores:
    """What the judge said of one variant. `by_row`: for each row its score, the scale's lowest for a row without an
    answer, None if the judge said none. `unscored`: those by the judge's error code."""

    by_row: dict[Any, int | None]
    failed: int
    unscored: Counter[str]


def require_judge(job: JobSpec, judge: JudgeSpec, access: bool = True) -> JobSpec:
    """The judge's job but for its places. Raises UserError if the job's answers cannot be judged, or the judge cannot
    run. `access`: see `require_model`."""
    several = {
        f"task: {job.task}": not job.generates,
        "steps": job.steps is not None,
        "chunk": job.chunk is not None,
        "reduce": job.reduce is not None,
        "input.format: openai_batch": job.takes_requests,
        "sampling.n": job.sampling.n > 1,
    }
    for key, there in several.items():
        if there:
            message = f"a judge reads one request and one answer of each row, and {key} has others"
            raise SpecError(message, "leave --judge out")
    made = judge_job(job, judge, "judge-pairs", "judge-run")
    require_model(made, access)
    return made


def planned_judge(job: JobSpec, judge: JudgeSpec, answers: int, tokens: float) -> Judging:
    """What the judge would cost for so many answers. `tokens`: of a request and its answer, on average."""
    spec, (low, high) = require_judge(job, judge, access=False), judge.scale
    told = Judging(model=judge.model.source, low=low, high=high, answers=answers)
    if spec.resources.accelerator in ("auto", "cpu") or not tokens:
        return told
    read = tokens + len(judge.template) / CHARACTERS_PER_TOKEN
    work = Workload(
        rows=answers,
        input_tokens=read,
        longest_input_tokens=math.ceil(read),
        output_tokens=Interval(low=1, mid=1, high=judge.max_tokens),
        sampled_rows=0,
        source="the requests and answers of the sample",
    )
    cluster = assumed_cluster(spec, psutil.virtual_memory().total)
    made = plan_of(spec, cluster, require_model(spec, access=False), work)
    return told.model_copy(update={"planned_usd": None if made.estimate is None else made.estimate.cost_usd})


def judge_job(job: JobSpec, judge: JudgeSpec, pairs: str, output: str) -> JobSpec:
    """The job that judges. Its device, engine and limits are the compared job's unless the judge has its own."""
    low, high = judge.scale
    resources = judge.resources or job.resources
    return from_keys(
        {
            "name": f"{job.name}-judge"[:60],
            "model": judge.model,
            "input": {"uri": pairs, "id_column": "id", "columns": ["variant", "row"]},
            "prompt": {"template": f"{{% set low, high = {low}, {high} %}}{judge.template}"},
            "sampling": {"max_tokens": judge.max_tokens, "temperature": 0},
            "output": {"uri": output, "column": "score", "choices": [str(n) for n in range(low, high + 1)]},
            "engine": judge.engine or job.engine,
            "resources": resources.model_copy(update={"replicas": 1}),
            "limits": job.limits,
            "labels": job.labels,
            "storage": job.storage,
            "dedupe": True,
        },
        "judge",
    )


def judge_answers(
    job: JobSpec,
    judge: JudgeSpec,
    variants: Sequence[JudgedVariant],
    place: str,
    listener: Listener,
    *,
    cluster: str | None = None,
    fresh: bool = False,
) -> tuple[Judging, dict[str, Scores]]:
    """Let the judge score the answers of the variants' samples, in a folder of its own below `place`. Raises what
    `run` raises."""
    low, high = judge.scale
    scores = {one.name: Scores({}, 0, Counter()) for one in variants}
    pairs: list[dict[str, Any]] = []
    owners: list[tuple[str, Any]] = []
    for one in variants:
        for row, prompt, answer in _pairs_of(one):
            if prompt is None or answer is None:
                scores[one.name].by_row[row] = low
                scores[one.name].failed += 1
                continue
            owner = (one.name, row)
            pairs.append(
                {"id": len(owners), "variant": one.folder, "row": printed(row), "prompt": prompt, "answer": answer}
            )
            owners.append(owner)
    told = Judging(model=judge.model.source, low=low, high=high)
    if not pairs:
        return told, scores
    table = pa.Table.from_pylist(pairs, schema=_PAIRS)
    folder = join(place, f"judge-{_digest(judge, pairs)}")
    file = join(folder, "pairs/part-0.parquet")
    storage = storage_for(file, job.storage)
    if storage.stat(file) is None:
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink)
        storage.put(file, sink.getvalue().to_pybytes())
    spec = absolute(judge_job(job, judge, join(folder, "pairs"), join(folder, "run")))
    listener.event("judging", answers=len(pairs), output=spec.output.uri)
    report = runner.run(spec, listener, cluster, fresh)
    for number, score, code in _results(Layout(spec.output.uri, spec.storage)):
        name, row = owners[number]
        scores[name].by_row[row] = None if score is None else int(score)
        if score is None:
            scores[name].unscored[code or "no score"] += 1
    return told.model_copy(update=_spent(report, spec.output.uri)), scores


def _spent(report: Report, output: str) -> Mapping[str, Any]:
    return {
        "output": output,
        "answers": report.rows,
        "unscored": report.rows_failed,
        "cost_usd": report.cost_usd,
        "input_tokens": report.input_tokens,
        "output_tokens": report.output_tokens,
    }


def _digest(judge: JudgeSpec, pairs: Sequence[Mapping[str, Any]]) -> str:
    found = hashlib.sha256(judge.model_dump_json().encode())
    for pair in pairs:
        found.update(repr(sorted(pair.items())).encode())
    return found.hexdigest()[:12]


def _pairs_of(one: JudgedVariant) -> Iterator[tuple[Any, str | None, str | None]]:
    """For each row of a variant's sample its id, its request and its answer; None for one that it does not have."""
    spec, manifest = one.spec, find_manifest(one.layout)
    assert manifest is not None, "the sample has run"
    answers: dict[Any, str | None] = {}
    for shard in sorted(committed_shards(one.layout)):
        with opened_results(one.layout, shard) as file:
            for row in pq.read_table(file).to_pylist():
                failed = row["error_code"] is not None
                answers[row[spec.id_column]] = None if failed else printed(answer_of(spec, row))
    maker = JobPrompts(spec)
    for _, rows in read_shards(manifest.shards, manifest.schema, manifest.partitions, spec.rows_input, spec.storage):
        names = column_values(rows, spec.id_column)
        for name, prompt in zip(names, maker.prompts(rows), strict=True):
            yield name, None if isinstance(prompt, RowError) else _text(prompt), answers.get(name)


def _text(prompt: Prompt) -> str:
    if prompt.messages is None:
        return prompt.as_text()
    return "\n".join(f"{message['role']}: {message['content']}" for message in prompt.messages)


def _results(layout: Layout) -> Iterator[tuple[int, str | None, str | None]]:
    """The place of each pair, its score, and the error code of a pair without one."""
    for shard in sorted(committed_shards(layout)):
        with opened_results(layout, shard) as file:
            found = pq.read_table(file, columns=["id", "score", "error_code"])
        yield from zip(*(column.to_pylist() for column in found.columns), strict=True)
