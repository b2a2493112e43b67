"""Rows whose text is longer than the context: asked chunk by chunk, and their answers made into one."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa

from batchinfer.engine import Completion
from batchinfer.errors import REJECTED_CODES, RowError, SpecError
from batchinfer.execution.row_steps import Ask, checked
from batchinfer.execution.token_counter import TokenCounter
from batchinfer.jobspec import JobSpec
from batchinfer.jobspec.chunk_keys import ANSWERS, CombinePrompt
from batchinfer.jobspec.printed import printed
from batchinfer.prompting.answers import OutputCheck
from batchinfer.prompting.chunks import chunks
from batchinfer.prompting.job_prompts import JobPrompts
from batchinfer.prompting.prompts import NO_ANSWERS, Answers, Prompt, column_values
from batchinfer.prompting.tokens import Tokenized

_LEAST_CHUNK = 16
"""Tokens. A prompt that leaves less for the text of a row would cut it into words."""

_FILLED = "."
"""Stands for a text while the tokens around it are counted."""

_RECUTS = 8
"""How often chunks are made smaller by a tenth because their tokens merge anew in the prompt. One is rare."""

_SMALLER = 0.9


class ChunkedRows:
    """The rows of a job with `chunk`. Safe to use from several threads.

    `counters`: the token counters of `spec.step_jobs`. `context`: the longest sequence in tokens.
    """

    def __init__(self, spec: JobSpec, counters: Sequence[TokenCounter], context: int) -> None:
        assert spec.chunk is not None
        self.jobs = spec.step_jobs
        self._chunk, self._combine = spec.chunk, spec.combine
        self._makers = [JobPrompts(job, place) for place, job in enumerate(self.jobs)]
        self._checks = [OutputCheck(job.output, job.sampling.max_tokens) for job in self.jobs]
        self._counters = counters
        self._rooms = [context - job.sampling.max_tokens for job in self.jobs]

    def run(self, rows: pa.Table, ask: Ask, kept: Answers = NO_ANSWERS) -> list[list[Completion]]:
        """The answer of each row, in a list of one step."""
        parts = self.parts(rows)
        asked = [(place, prompt) for place, found in enumerate(parts) for prompt in _prompts(found)]
        made = iter(ask([prompt for _, prompt in asked], [place for place, _ in asked]))
        folds = [
            _Fold(found) if isinstance(found, RowError) else _Fold([self._checked(0, next(made)) for _ in found])
            for found in parts
        ]
        if isinstance(self._combine, CombinePrompt):
            while any(fold.open for fold in folds):
                self._combine_once(rows, folds, ask)
        return [[fold.completion(self._combine) for fold in folds]]

    def _checked(self, step: int, completion: Completion) -> Completion:
        return checked(self.jobs[step], self._checks[step], completion)

    def parts(self, rows: pa.Table) -> list[list[Prompt] | RowError]:
        """The prompts of each row's chunks, or why it has none."""
        column = self._chunk.column
        values = [_text(value) for value in column_values(rows, column)]
        around = self._makers[0].prompts(rows, {column: [_FILLED if isinstance(v, str) else v for v in values]})
        counts = self._counts(0, around)
        made: list[list[Prompt] | RowError] = []
        for place, (value, prompt, count) in enumerate(zip(values, around, counts, strict=True)):
            if isinstance(prompt, RowError):
                made.append(prompt)
            elif isinstance(count, RowError):
                made.append(count)
            elif isinstance(value, str):
                made.append(self._cut(rows.slice(place, 1), value, count - 1))
            else:
                made.append([prompt])
        return made

    def _cut(self, row: pa.Table, text: str, around: int) -> list[Prompt] | RowError:
        """The prompts of the chunks of a text; `around`: the tokens of a prompt without it."""
        room = self._rooms[0]
        most = min(self._chunk.tokens, room - around)
        if most < _LEAST_CHUNK:
            told = f"the prompt has {around:,} tokens without {self._chunk.column!r}, and there is room for {room:,}"
            return RowError("prompt_too_long", told)
        tokens = self._counters[0].ends(text)
        for _ in range(_RECUTS):
            cut = [
                text[begin:end] for begin, end in chunks(text, tokens, most, min(self._chunk.overlap, most // 2 - 1))
            ]
            cut = [chunk for chunk in cut if chunk.strip()] or cut[:1]
            prompts = self._makers[0].prompts(pa.concat_tables([row] * len(cut)), {self._chunk.column: list[Any](cut)})
            bad = next((prompt for prompt in prompts if isinstance(prompt, RowError)), None)
            if bad is not None:
                return bad
            counts = self._counts(0, prompts)
            refused = next((count for count in counts if isinstance(count, RowError)), None)
            if refused is not None:
                return refused
            if all(isinstance(count, int) and count <= room for count in counts):
                return [prompt for prompt in prompts if isinstance(prompt, Prompt)]
            most = max(2, int(most * _SMALLER))
        return RowError("prompt_too_long", f"no chunk of {self._chunk.column!r} fits into {room:,} tokens")

    def _counts(self, step: int, prompts: Sequence[Prompt | RowError]) -> list[int | RowError]:
        """The tokens of each prompt."""
        whole = [prompt for prompt in prompts if isinstance(prompt, Prompt)]
        found = iter(self._counters[step].tokens(whole) if whole else [])
        made: list[int | RowError] = []
        for prompt in prompts:
            tokens = prompt if isinstance(prompt, RowError) else next(found)
            made.append(len(tokens.ids) if isinstance(tokens, Tokenized) else tokens)
        return made

    def _combine_once(self, rows: pa.Table, folds: Sequence[_Fold], ask: Ask) -> None:
        """One level: of each row with several answers, as many as fit become one."""
        waiting: list[tuple[int, list[list[int]], list[Prompt]]] = []
        for place, fold in enumerate(folds):
            if fold.open:
                packed = self._packed(rows.slice(place, 1), fold.texts)
                if isinstance(packed, RowError):
                    fold.fail(packed)
                else:
                    waiting.append((place, *packed))
        asked = [(place, prompt) for place, _, prompts in waiting for prompt in prompts]
        made = iter(ask([prompt for _, prompt in asked], [place for place, _ in asked]))
        for place, groups, _ in waiting:
            folds[place].combine(groups, [self._checked(1, next(made)) for group in groups if len(group) > 1])

    def _packed(self, row: pa.Table, texts: Sequence[str]) -> tuple[list[list[int]], list[Prompt]] | RowError:
        """The places of the answers that are combined together, and the prompts of groups with more than one."""
        measured = self._counts(1, self._combining(row, [[_FILLED] * 2, [_FILLED] * 4]))
        refused = next((count for count in measured if isinstance(count, RowError)), None)
        if refused is not None:
            return refused
        two, four = (count for count in measured if isinstance(count, int))
        room = self._rooms[1]
        lengths = [self._counters[1].text_tokens(text) + max(1.0, (four - two) / 2) for text in texts]
        inside = float(room - two + 2 * max(1.0, (four - two) / 2))
        for _ in range(_RECUTS):
            groups = packed(lengths, inside)
            several = [group for group in groups if len(group) > 1]
            if not several:
                return RowError("prompt_too_long", f"no two answers fit into one prompt of combine, of {room:,} tokens")
            prompts = self._combining(row, [[texts[i] for i in group] for group in several])
            counts = self._counts(1, prompts)
            wrong = next((found for found in (*prompts, *counts) if isinstance(found, RowError)), None)
            if wrong is not None:
                return wrong
            if all(isinstance(count, int) and count <= room for count in counts):
                return groups, [prompt for prompt in prompts if isinstance(prompt, Prompt)]
            inside *= _SMALLER
        return RowError("prompt_too_long", f"the answers do not fit into one prompt of combine, of {room:,} tokens")

    def _combining(self, row: pa.Table, groups: Sequence[Sequence[str]]) -> list[Prompt | RowError]:
        return self._makers[1].prompts(pa.concat_tables([row] * len(groups)), {ANSWERS: list[Any](map(list, groups))})


class _Fold:
    """The answers of a row while they become one. `found`: those to its chunks, or why there are none."""

    def __init__(self, found: list[Completion] | RowError) -> None:
        self._chunks = 0 if isinstance(found, RowError) else len(found)
        self._levels = 0
        self._error = found if isinstance(found, RowError) else None
        self._left = [] if isinstance(found, RowError) else found
        self._all = list(self._left)
        self._look("chunk", self._left)

    @property
    def open(self) -> bool:
        """Are there several answers left?"""
        return self._error is None and len(self._left) > 1

    @property
    def texts(self) -> list[str]:
        return [completion.texts[0] for completion in self._left]

    def fail(self, error: RowError) -> None:
        """The row has no answer."""
        self._error = dataclasses.replace(error, code="step_failed", message=f"combine: {error.code}: {error.message}")

    def combine(self, groups: Sequence[Sequence[int]], made: list[Completion]) -> None:
        """Replace each group of several answers by one."""
        self._levels += 1
        self._all += made
        self._look("combined answer", made)
        answers = iter(made)
        self._left = [next(answers) if len(group) > 1 else self._left[group[0]] for group in groups]

    def _look(self, what: str, made: Sequence[Completion]) -> None:
        for number, completion in enumerate(made, 1):
            if completion.error is not None and self._error is None:
                code, message = completion.error.code, completion.error.message
                if len(made) > 1 or self._levels:
                    message = f"{what} {number} of {len(made)}: {code}: {message}"
                    code = "step_failed" if code in REJECTED_CODES else code
                self._error = RowError(code, message[:500])

    def completion(self, combine: Any) -> Completion:
        """The row's answer, with the tokens of all its requests."""
        made = Completion([], [], 0, 0, 0, self._error)
        if self._error is None:
            made = dataclasses.replace(_folded(self._left, combine))
        for name in ("input_tokens", "cached_tokens", "output_tokens", "reasoning_tokens", "seconds"):
            setattr(made, name, sum(getattr(completion, name) for completion in self._all))
        again = [completion.reused_tokens for completion in self._all]
        made.reused_tokens = sum(filter(None, again)) if again and None not in again else None
        saved = [completion.saved_usd for completion in self._all if completion.saved_usd is not None]
        made.saved_usd = sum(saved) if saved else None
        made.chunks, made.levels = self._chunks, self._levels
        return made


def _folded(answers: list[Completion], combine: Any) -> Completion:
    if combine == "list":
        return Completion(
            [completion.texts[0] for completion in answers],
            [completion.finish_reasons[0] for completion in answers],
            0,
            0,
            0,
            values=None if answers[0].values is None else [c.values[0] for c in answers if c.values is not None],
            reasoning=None if answers[0].reasoning is None else [c.reasoning[0] for c in answers if c.reasoning],
        )
    if combine == "majority":
        most = Counter(completion.texts[0] for completion in answers).most_common(1)[0][0]
        return next(completion for completion in answers if completion.texts[0] == most)
    if combine == "max_confidence":
        return max(answers, key=lambda completion: (completion.probabilities or {}).get(completion.texts[0], 0.0))
    return next((completion for completion in answers if not _is_empty(completion.texts[0])), answers[0])


def _is_empty(text: str) -> bool:
    """Whether an answer says nothing: no text, or JSON without a value."""
    with contextlib.suppress(ValueError):
        value = json.loads(text)
        values = value.values() if isinstance(value, dict) else [value]
        return all(one in (None, "", [], {}) for one in values)
    return not text.strip()


def _prompts(found: list[Prompt] | RowError) -> Iterator[Prompt]:
    return iter(()) if isinstance(found, RowError) else iter(found)


def _text(value: Any) -> Any:
    """The text to cut. A list of texts is joined; None and errors stay."""
    if isinstance(value, list):
        return "\n\n".join(printed(one) for one in value if one is not None)
    return value if value is None or isinstance(value, RowError | str) else printed(value)


def packed(lengths: Sequence[float], room: float) -> list[list[int]]:
    """Places in order, in groups whose lengths fit into `room` together; one alone may be longer."""
    groups: list[list[int]] = []
    used = 0.0
    for place, length in enumerate(lengths):
        if groups and used + length <= room:
            groups[-1].append(place)
            used += length
        else:
            groups.append([place])
            used = length
    return groups


def folding(answers: int, fit: int) -> tuple[int, int]:
    """(requests, answers read) until one of so many answers is left, with up to `fit` (at least 2) in each request."""
    requests = read = 0
    while answers > 1:
        groups = -(-answers // fit)
        alone = 1 if answers % fit == 1 and groups > 1 else 0
        requests += groups - alone
        read += answers - alone
        answers = groups
    return requests, read


def require_room_to_combine(spec: JobSpec, counter: TokenCounter, context: int) -> None:
    """Raise SpecError if two answers of the greatest length do not fit into one prompt of `combine`.

    `counter`: the one of that prompt.
    """
    if isinstance(spec.combine, CombinePrompt):
        around = counter.text_tokens(spec.combine.template) + counter.text_tokens(spec.combine.system or "")
        longest = max(job.sampling.max_tokens for job in spec.step_jobs)
        last = spec.step_jobs[1].sampling.max_tokens
        if 2 * longest + around + last > context:
            raise SpecError(
                f"two answers of {longest:,} tokens and the prompt of combine ({around:,} tokens) leave no room for an "
                f"answer of {last:,} in a context of {context:,}: answers could not be made into one",
                f"lower sampling.max_tokens to {max(1, (context - around) // 3):,}, or raise engine.max_model_len",
            )
