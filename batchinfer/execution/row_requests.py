"""What a row of a batch file asks of the engine: one request of OpenAI's API, which may have several prompts."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from batchinfer.engine import Completion
from batchinfer.errors import RowError
from batchinfer.execution.row_steps import Ask
from batchinfer.jobspec import JobSpec
from batchinfer.prompting.openai_requests import BatchRequest, BatchRequests
from batchinfer.prompting.openai_responses import response_body
from batchinfer.prompting.prompts import NO_ANSWERS, Answers


class RequestRows:
    """The requests of a shard, as `RowSteps` runs prompts. Safe to use from several threads.

    Each completion has the response of its row; its texts are those of all choices.
    """

    def __init__(self, spec: JobSpec) -> None:
        self.jobs = (spec,)
        self._requests = BatchRequests(spec)
        self._model = spec.input.models[0] if spec.input.models else spec.model.source

    def run(self, rows: pa.Table, ask: Ask, kept: Answers = NO_ANSWERS) -> list[list[Completion]]:
        """For the only step, for each row, its answer. `kept` has no meaning for rows without steps."""
        requests = self._requests.read(rows)
        asked = [(i, prompt) for i, r in enumerate(requests) if isinstance(r, BatchRequest) for prompt in r.prompts]
        found = iter(ask([prompt for _, prompt in asked], [place for place, _ in asked]))
        made = []
        for request in requests:
            if isinstance(request, RowError):
                made.append(Completion.failed(request))
                continue
            made.append(self._together(request, [next(found) for _ in request.prompts]))
        return [made]

    def _together(self, request: BatchRequest, answers: Sequence[Completion]) -> Completion:
        """One completion of those to the prompts of a request. One that failed fails the request."""
        first = answers[0]
        error = next((answer.error for answer in answers if answer.error is not None), None)
        whole = answers if error is None else ()
        made = Completion(
            texts=[text for answer in whole for text in answer.texts],
            finish_reasons=[reason for answer in whole for reason in answer.finish_reasons],
            input_tokens=sum(answer.input_tokens for answer in answers),
            cached_tokens=sum(answer.cached_tokens for answer in answers),
            output_tokens=sum(answer.output_tokens for answer in answers),
            error=error,
            embedding=None if error else first.embedding,
            seconds=sum(answer.seconds for answer in answers),
            reasoning=None if error else first.reasoning,
            reasoning_tokens=sum(answer.reasoning_tokens for answer in answers),
            reused_tokens=first.reused_tokens if len(answers) == 1 else None,
        )
        if error is None:
            made.response = response_body(request, self._model, answers)
        return made
