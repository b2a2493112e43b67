"""Makes everything that the engine needs of a row: its prompt, and the query of `task: score`."""

from __future__ import annotations

import pyarrow as pa

from batchinfer.errors import RowError
from batchinfer.jobspec import JobSpec, PromptSpec
from batchinfer.prompting.choices import described
from batchinfer.prompting.prompts import NO_ANSWERS, Answers, Prompt, PromptMaker
from batchinfer.prompting.row_sampling import RowSampling


class JobPrompts:
    """Makes the prompts of the rows of a shard, as `PromptMaker` does, with what other keys of the job add.

    `spec`: one of `JobSpec.step_jobs`, at place `step` there.
    """

    def __init__(self, spec: JobSpec, step: int = 0) -> None:
        self._step = step
        self._maker = PromptMaker(described(spec))
        self._sampling = RowSampling(spec)
        self._instruction = spec.embed.instruction or ""
        self._queries = None if spec.prompt.query is None else PromptMaker(query_spec(spec.prompt))

    def prompts(self, rows: pa.Table, answers: Answers = NO_ANSWERS) -> list[Prompt | RowError]:
        """For each row its prompt, or the error of that row."""
        made = self._sampling.add(self._maker.prompts(rows, answers), rows)
        if self._step:
            made = [p if isinstance(p, RowError) else p._replace(step=self._step) for p in made]
        if self._instruction:
            made = [p if isinstance(p, RowError) else p._replace(text=self._instruction + p.text) for p in made]
        if self._queries is None:
            return made
        return [_with_query(*both) for both in zip(made, self._queries.prompts(rows), strict=True)]


def _with_query(prompt: Prompt | RowError, query: Prompt | RowError) -> Prompt | RowError:
    if isinstance(prompt, RowError):
        return prompt
    return query if isinstance(query, RowError) else prompt._replace(query=query)


def query_spec(prompt: PromptSpec) -> PromptSpec:
    """How a row becomes the query of `task: score`."""
    return PromptSpec(template=prompt.query, allow_special_tokens=prompt.allow_special_tokens)
