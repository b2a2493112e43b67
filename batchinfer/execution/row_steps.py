"""What a row asks of the engine, step by step: each request as soon as the answers that it uses are there."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import pyarrow as pa

from batchinfer.engine import Completion
from batchinfer.errors import RowError
from batchinfer.jobspec import JobSpec
from batchinfer.prompting.answers import OutputCheck
from batchinfer.prompting.conditions import holds
from batchinfer.prompting.job_prompts import JobPrompts
from batchinfer.prompting.prompts import NO_ANSWERS, Answers, Prompt

Ask = Callable[[Sequence[Prompt], Sequence[int]], Sequence[Completion]]
"""Runs prompts in the engine; the second argument is the row of each prompt."""

_ASKED = RowError("step_failed", "")
"""Stands for the earlier answer of a row that has none."""


class RowSteps:
    """The steps of a job over the rows of a shard. A job with one prompt is one step. Safe to use from several threads.

    Steps that use no answers of one another are asked at once.
    """

    def __init__(self, spec: JobSpec) -> None:
        self.jobs = spec.step_jobs
        self._makers = [JobPrompts(job, place) for place, job in enumerate(self.jobs)]
        self._checks = [OutputCheck(job.output, _limit(job)) for job in self.jobs]
        steps = spec.steps or ()
        self._conditions = [step.condition() for step in steps] if steps else [None]
        names = {step.name for step in steps}
        self._uses = [{name for name, _ in step.reads} & names for step in steps] if steps else [set()]

    def run(self, rows: pa.Table, ask: Ask, kept: Answers = NO_ANSWERS) -> list[list[Completion]]:
        """For each step, for each row, its answer.

        `kept`: by the name of a step, the answers of an earlier attempt at these rows; a RowError: the step failed.
        """
        answers: dict[str, list[Any]] = {}
        made: dict[int, list[Completion]] = {}
        while len(made) < len(self.jobs):
            ready = [i for i, uses in enumerate(self._uses) if i not in made and uses <= answers.keys()]
            wanted = {i: self._wanted(i, rows, answers, kept) for i in ready}
            prompts = [
                (place, p) for found in wanted.values() for place, p in enumerate(found) if isinstance(p, Prompt)
            ]
            found = iter(ask([prompt for _, prompt in prompts], [place for place, _ in prompts]))
            for i, prompts_of_step in wanted.items():
                made[i] = [self._completion(i, prompt, found) for prompt in prompts_of_step]
                answers[self.jobs[i].output.column] = self._values(i, made[i], kept)
        return [made[i] for i in range(len(self.jobs))]

    def _wanted(self, i: int, rows: pa.Table, answers: Answers, kept: Answers) -> list[Prompt | RowError | None]:
        """The prompt of each row, why it has none, or None for a row without this step."""
        prompts: list[Prompt | RowError | None] = [*self._makers[i].prompts(rows, answers)]
        condition = self._conditions[i]
        if condition is not None:
            for place, held in enumerate(holds(condition, rows, answers)):
                if held is not True:
                    prompts[place] = held or None
        for place, value in enumerate(kept.get(self.jobs[i].output.column, ())):
            if not isinstance(value, RowError):
                prompts[place] = None
        return prompts

    def _completion(self, i: int, prompt: Prompt | RowError | None, found: Any) -> Completion:
        if prompt is None:
            return Completion.skipped()
        if isinstance(prompt, RowError):
            return Completion.failed(prompt)
        return checked(self.jobs[i], self._checks[i], next(found))

    def _values(self, i: int, completions: Sequence[Completion], kept: Answers) -> list[Any]:
        if len(self.jobs) == 1:
            return []
        job = self.jobs[i]
        before = kept.get(job.output.column, [_ASKED] * len(completions))
        return [
            value_of(job, completion) if isinstance(earlier, RowError) else earlier
            for completion, earlier in zip(completions, before, strict=True)
        ]


def _limit(job: JobSpec) -> int | None:
    """`max_tokens` of all rows; None if rows have their own."""
    return None if job.sampling_column is not None else job.sampling.max_tokens


def checked(job: JobSpec, check: OutputCheck, completion: Completion) -> Completion:
    """The completion, with an error if its answer does not have the shape that the job asks for."""
    if completion.error is None and not check.trivial:
        answers = list(map(check.check, completion.texts, completion.finish_reasons))
        completion.texts = [answer.text for answer in answers]
        problem = next((answer.problem for answer in answers if answer.problem is not None), None)
        if problem is not None:
            completion.error = RowError("output_invalid", problem)
        elif job.output.kind is not None:
            completion.values = [answer.value for answer in answers]
    return completion


def value_of(job: JobSpec, completion: Completion) -> Any:
    """The answer to a step as templates of later steps use it; a RowError if it failed, None if it was skipped."""
    name, output = job.output.column, job.output
    if completion.error is not None:
        return RowError("step_failed", f"step {name} has no answer: {completion.error.code}")
    if not completion.texts:
        return None
    sure = (completion.probabilities or {}).get(completion.texts[0], 0.0)
    if output.abstain_below is not None and sure < output.abstain_below:
        return None
    parsed = output.json_schema is not None or output.multi_label
    values = [json.loads(text) if parsed else text for text in completion.texts]
    return values if job.sampling.n > 1 else values[0]


def kept_answers(jobs: Sequence[JobSpec], results: pa.Table) -> dict[str, list[Any]]:
    """The answers of an earlier attempt at rows, from the rows of its results, as `RowSteps.run` uses them."""
    found: dict[str, list[Any]] = {}
    for job in jobs:
        name = job.output.column
        codes = results.column(f"{name}_error_code").to_pylist()
        values = results.column(name).to_pylist()
        is_text = job.output.json_schema is not None and job.output.as_ == "json"
        found[name] = [
            RowError("step_failed", f"step {name} has no answer: {code}")
            if code is not None
            else _parsed(value)
            if is_text
            else value
            for code, value in zip(codes, values, strict=True)
        ]
    return found


def _parsed(value: Any) -> Any:
    if isinstance(value, list):
        return [_parsed(one) for one in value]
    return None if value is None else json.loads(value)
