"""Makes prompts of rows."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import repeat
from types import MappingProxyType
from typing import Any, NamedTuple

import jinja2
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jinja2.exceptions import SecurityError

from batchinfer.errors import RowError, SpecError
from batchinfer.input.bad_rows import BAD_ROW
from batchinfer.input.column_types import PARSED
from batchinfer.jobspec import JobSpec, PromptSpec
from batchinfer.jobspec.chunk_keys import ANSWERS, CombinePrompt
from batchinfer.jobspec.input_keys import REQUEST_COLUMNS
from batchinfer.jobspec.printed import Map, printed
from batchinfer.jobspec.templates import Template, compile_template, is_template
from batchinfer.jobspec.where import where_columns
from batchinfer.prompting.choices import described
from batchinfer.prompting.messages import NO_MESSAGES, Message, read_message

Answers = Mapping[str, list[Any]]
"""The answers of steps by name, one for each row: a value as templates use it, None, or a RowError."""

NO_ANSWERS: Answers = MappingProxyType({})


class Prompt(NamedTuple):
    """The prompt of one row: the user's `text` with an optional `system` message, or whole `messages`.

    Only the engine knows whether the model has a chat template, so the engine makes the tokens.
    """

    text: str = ""
    system: str | None = None
    messages: tuple[Message, ...] | None = None
    examples: tuple[Message, ...] = ()
    """Turns between the system message and the text."""
    prefill: str | None = None
    """How the assistant's message begins; the model goes on from there."""
    row: Mapping[str, Any] | None = None
    """The values that the prompt was made of, if it may have to be made again: see `PromptMaker.carries_rows`."""
    query: Prompt | None = None
    """What `text` is scored against, for `task: score`."""
    step: int = 0
    """Which of `JobSpec.step_jobs` the prompt belongs to."""
    sampling: str | None = None
    """The keys of `sampling` in which the row differs from the job, as JSON; None if it does not."""
    schema: str | None = None
    """The JSON Schema of the answer to a request, as JSON; `true` is any JSON object. None: what the step says."""
    dimensions: int | None = None
    """How many numbers the vector of a request has; None: what the job says."""

    def as_messages(self) -> list[Message]:
        """The prompt as a chat."""
        if self.messages is not None:
            return list(self.messages)
        system = [{"role": "system", "content": self.system}] if self.system else []
        return [*system, *self.examples, {"role": "user", "content": self.text}]

    def as_text(self) -> str:
        """The prompt for a model without a chat template."""
        return f"{self.system}\n\n{self.text}" if self.system else self.text


def needed_columns(spec: JobSpec) -> dict[str, str]:
    """The columns that the job reads, each with the spec key that names it."""
    needed: dict[str, str] = {}
    if spec.reduce is not None:
        needed[spec.reduce.key] = "reduce.key"
        # What a group has beside them is made when rows are brought together.
        for name, key in _prompt_columns(spec):
            if name not in spec.reduce.made:
                needed.setdefault(name, key)
    if spec.takes_requests:
        needed.update(dict.fromkeys(REQUEST_COLUMNS, "input.format openai_batch"))
    if spec.input.id_column is not None:
        needed.setdefault(spec.input.id_column, "input.id_column")
    for name in spec.input.columns:
        needed.setdefault(name, "input.columns")
    for name, key in () if spec.reduce is not None or spec.takes_requests else _prompt_columns(spec):
        needed.setdefault(name, key)
    for job in spec.step_jobs:
        if job.sampling_column is not None:
            of_step = "" if spec.steps is None else f" of step {job.output.column}"
            needed.setdefault(job.sampling_column, f"sampling_column{of_step}")
    if spec.input.group_by is not None:
        needed.setdefault(spec.input.group_by, "input.group_by")
    if spec.evaluate is not None:
        needed.setdefault(spec.evaluate.expected, "evaluate.expected")
        if spec.evaluate.by is not None:
            needed.setdefault(spec.evaluate.by, "evaluate.by")
    # Last, so that the key tells which columns nothing but the selection reads.
    for name in () if spec.input.where is None else where_columns(spec.input.where):
        needed.setdefault(name, "input.where")
    return needed


def _prompt_columns(spec: JobSpec) -> list[tuple[str, str]]:
    """The columns of the input that make prompts, each with the spec key that names it."""
    if spec.steps is None:
        found = [(name, f"prompt.{key}") for name, key in described(spec).reads]
        if not found:
            raise SpecError("prompt.template names no column of the input", "write a column in it, as {{ text }}")
        if isinstance(spec.combine, CombinePrompt):
            read = spec.step_jobs[1].prompt.reads
            found += [(name, f"combine.{key}") for name, key in read if name != ANSWERS]
        return [*found, *((name, "prompt.query") for name in compile_template(spec.prompt.query or "").columns)]
    answers = {step.name for step in spec.steps}
    named: list[tuple[str, str]] = []
    for step, job in zip(spec.steps, spec.step_jobs, strict=True):
        read = [*((name, f"prompt.{key}") for name, key in described(job).reads), *step.reads]
        if not read:
            raise SpecError(
                f"step {step.name}: its prompt names no column and no earlier answer",
                "write one in it, as {{ text }}",
            )
        named += [(name, f"the {key} of step {step.name}") for name, key in read if name not in answers]
    if not named:
        raise SpecError("steps names no column of the input", "write a column in a step's prompt, as {{ text }}")
    return named


class PromptMaker:
    """Makes the prompts of the rows of a shard."""

    def __init__(self, prompt: PromptSpec) -> None:
        self._source = prompt.column or prompt.messages_column
        self._columns = list(dict.fromkeys(name for name, _ in prompt.reads))
        self._chat = prompt.messages_column is not None
        self._template = None if prompt.template is None else compile_template(prompt.template)
        self._system = _TurnText(prompt.system)
        self._prefill = _TurnText(prompt.prefill)
        self._examples = tuple(
            {"role": role, "content": text}
            for example in prompt.examples or ()
            for role, text in (("user", example.user), ("assistant", example.assistant))
        )
        self.row_in_system, self.row_in_prefill = is_template(prompt.system), is_template(prompt.prefill)
        written = [text for text in (prompt.template, prompt.system, prompt.prefill) if is_template(text)]
        self.carries_rows = prompt.too_long == "truncate" or any("<" in text or "[" in text for text in written)
        """Whether prompts hold their row: where a value may be cut, and where the templates' own text may hold a
        control token, which must be told from one that stands in a value."""

    def prompts(self, rows: pa.Table, answers: Answers = NO_ANSWERS) -> list[Prompt | RowError]:
        """One prompt, or the reason why there is none, for each of the rows. `answers`: of earlier steps, by name."""
        columns = {name: answers[name] if name in answers else column_values(rows, name) for name in self._columns}
        made = self._made(columns, rows.num_rows)
        if BAD_ROW in rows.column_names:
            for place, problem in enumerate(rows.column(BAD_ROW).to_pylist()):
                if problem is not None:
                    made[place] = RowError("input_invalid", _told(problem))
        return made

    def prompt_of(self, row: Mapping[str, Any]) -> Prompt | RowError:
        """The prompt of one row, as `Prompt.row` holds it."""
        return self._made({name: [value] for name, value in row.items()}, 1)[0]

    def _made(self, columns: Mapping[str, list[Any]], count: int) -> list[Prompt | RowError]:
        bodies: Sequence[Any] = (
            columns[self._source or ""]
            if self._template is None
            else _filled(self._template, {name: columns[name] for name in self._template.columns}, count)
        )
        systems, prefills = self._system.texts(columns, count), self._prefill.texts(columns, count)
        made: list[Prompt | RowError] = []
        for place, (body, system, prefill) in enumerate(zip(bodies, systems, prefills, strict=True)):
            bad = next((part for part in (body, system, prefill) if isinstance(part, RowError)), None)
            if bad is not None:
                made.append(bad)
                continue
            if self._chat:
                made.append(prompt_of_messages(body, system, prefill))
                continue
            row = {name: columns[name][place] for name in self._columns} if self.carries_rows else None
            made.append(self._from_text(body, system, prefill, row))
        return made

    def _from_text(self, value: Any, system: Any, prefill: Any, row: Any) -> Prompt | RowError:
        text = value if isinstance(value, str) else "" if value is None else printed(value)
        if not text.strip():
            return RowError("prompt_empty", "the prompt is null" if value is None else "the prompt has no text")
        if not (_is_unicode(text) and _is_unicode(system or "") and _is_unicode(prefill or "")):
            return RowError("prompt_invalid", "the prompt holds half of a surrogate pair, which is not a character")
        return Prompt(text, system, None, self._examples, prefill, row)


def prompt_of_messages(value: Any, system: Any = None, prefill: Any = None) -> Prompt | RowError:
    """The prompt of a conversation: a list of messages, or the JSON text of one. `system`: unless it has its own."""
    if value is None or value == []:
        return RowError("prompt_empty", "the messages are null or empty")
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            return RowError("prompt_invalid", _told(f"the messages are not JSON: {error}"))
    if not isinstance(value, list):
        return RowError("prompt_invalid", NO_MESSAGES)
    read = [read_message(message) for message in value]
    bad = next((message for message in read if isinstance(message, str)), None)
    if bad is not None:
        return RowError("prompt_invalid", _told(bad))
    messages = [message for message in read if not isinstance(message, str)]
    if not any(message["content"].strip() or "tool_calls" in message for message in messages):
        return RowError("prompt_empty", "the messages have no text")
    if not all(_is_unicode(printed(message)) for message in messages) or not _is_unicode(system or ""):
        return RowError("prompt_invalid", "the messages hold half of a surrogate pair, which is not a character")
    first = [{"role": "system", "content": system}] if system and messages[0]["role"] != "system" else []
    return Prompt(system=system if first else None, messages=(*first, *messages), prefill=prefill)


def prompt_of_text(text: str) -> Prompt | RowError:
    """The prompt of a text that stands for itself."""
    if not text.strip():
        return RowError("prompt_empty", "the prompt has no text")
    if not _is_unicode(text):
        return RowError("prompt_invalid", "the prompt holds half of a surrogate pair, which is not a character")
    return Prompt(text)


class _TurnText:
    """The system message or the assistant's beginning: a text of all rows, or a template over each."""

    def __init__(self, text: str | None) -> None:
        self._text = text
        self._template = compile_template(text) if is_template(text) else None

    def texts(self, columns: Mapping[str, list[Any]], count: int) -> Iterable[str | RowError | None]:
        if self._template is None:
            return repeat(self._text, count)
        return _filled(self._template, {name: columns[name] for name in self._template.columns}, count)


def _filled(template: Template, columns: Mapping[str, list[Any]], count: int) -> list[str | RowError]:
    """The template over each row, or why there is no text."""
    render = template.renderer()
    made: list[str | RowError] = []
    # A template without a column has no values to go through.
    rows = zip(*columns.values(), strict=True) if columns else repeat((), count)
    for text, row in zip(template.fill(columns, count), rows, strict=True):
        if text is not None:
            made.append(text)
            continue
        bad = next((value for value in row if isinstance(value, RowError)), None)
        made.append(bad or _printed(render, dict(zip(columns, row, strict=True))))
    return made


def _printed(render: Callable[[Mapping[str, Any]], str], row: dict[str, Any]) -> str | RowError:
    try:
        return rendered(render, row)
    except jinja2.UndefinedError as error:
        nulls = [name for name, value in row.items() if value is None]
        why = f"null in this row: {', '.join(nulls)}" if nulls else str(error)
        return RowError("template_error", _told(f"the template met a missing value: {why}"))


def rendered(render: Callable[[Mapping[str, Any]], str], row: dict[str, Any]) -> str | RowError:
    """The template over a row, or the row's error. Raises jinja2.UndefinedError for a missing value."""
    try:
        return render(row)
    except jinja2.UndefinedError:
        raise
    except SecurityError as error:
        return RowError("template_error", _told(f"the template did what the sandbox forbids: {error}"))
    except Exception as error:
        # A template is the user's program: whatever it raises on this row is this row's error.
        return RowError("template_error", _told(f"{type(error).__name__}: {error}"))


def column_values(rows: pa.Table, name: str) -> list[Any]:
    """The values of a column as prompts print them, and a RowError for each value that has no text.

    Bytes are read as UTF-8. Floats of 16 and 32 bits print with their shortest digits, such as 0.1. Bytes that are not
    UTF-8, dates after the year 9999 and the time 24:00 have no text.
    """
    column = rows.column(name)
    convert = _converter(column.type)
    if PARSED.items() <= (rows.schema.field(name).metadata or {}).items():
        convert = _each_parsed if pa.types.is_list(column.type) else json.loads
    try:
        values: list[Any] = column.to_pylist()
    except Exception:
        # Arrow's exceptions depend on the column's type, from OverflowError to UnicodeDecodeError.
        values = [_python_value(value) for value in column]
    if pa.types.is_time(column.type):
        values = [_BEYOND_MIDNIGHT if late else value for late, value in zip(_late(column), values, strict=True)]
    if convert is None:
        return values
    return [value if value is None or isinstance(value, RowError) else _converted(convert, value) for value in values]


def _each_parsed(values: list[str | None]) -> list[Any]:
    """The objects of a group's rows."""
    return [None if value is None else json.loads(value) for value in values]


def _python_value(value: pa.Scalar) -> Any:
    try:
        return value.as_py()
    except UnicodeDecodeError:
        return _NOT_UTF8
    except Exception as error:
        # Arrow's exceptions depend on the column's type; the error belongs to this row.
        return RowError("prompt_invalid", _told(f"the row holds a value that cannot be read: {error}"))


_A_DAY = {"s": 86_400, "ms": 86_400 * 10**3, "us": 86_400 * 10**6, "ns": 86_400 * 10**9}
_BEYOND_MIDNIGHT = RowError("prompt_invalid", "the row holds the time 24:00 or later, which is none of a day's")


def _late(times: pa.ChunkedArray) -> list[bool | None]:
    """Which times Arrow would give as those of the next day: Parquet may hold 24:00:00, and Python has 00:00:00."""
    numbers = times.cast(pa.int32() if times.type.bit_width == 32 else pa.int64())
    late: list[bool | None] = pc.greater_equal(numbers, _A_DAY[times.type.unit]).to_pylist()
    return late


_NOT_UTF8 = RowError("prompt_invalid", "the row holds text that is not UTF-8")


def _converted(convert: Callable[[Any], Any], value: Any) -> Any:
    try:
        return convert(value)
    except UnicodeDecodeError:
        return _NOT_UTF8


def _converter(kind: pa.DataType) -> Callable[[Any], Any] | None:
    """Converts a Python value that is not null to the value of a prompt; None if no conversion is needed."""
    kinds = pa.types
    if kinds.is_dictionary(kind):
        return _converter(kind.value_type)
    if kinds.is_binary(kind) or kinds.is_large_binary(kind) or kinds.is_fixed_size_binary(kind):
        return bytes.decode
    if kinds.is_float32(kind):
        return lambda value: float(str(np.float32(value)))
    if kinds.is_float16(kind):
        # The shortest digits of 16 bits round whole numbers: 65504 would be 65500.
        return lambda value: value if value.is_integer() else float(str(np.float16(value)))
    if kinds.is_struct(kind):
        fields = {field.name: convert for field in kind if (convert := _converter(field.type)) is not None}
        return (lambda value: {k: _inner(fields.get(k), v) for k, v in value.items()}) if fields else None
    if kinds.is_map(kind):
        key, item = _converter(kind.key_type), _converter(kind.item_type)
        return lambda value: Map((_inner(key, k), _inner(item, v)) for k, v in value)
    if kinds.is_list(kind) or kinds.is_large_list(kind) or kinds.is_fixed_size_list(kind):
        each = _converter(kind.value_type)
        return (lambda value: [_inner(each, v) for v in value]) if each is not None else None
    return None


def _inner(convert: Callable[[Any], Any] | None, value: Any) -> Any:
    return value if convert is None or value is None else convert(value)


def _is_unicode(text: str) -> bool:
    """Whether the text can be encoded: a Python text may hold half of a surrogate pair, which UTF-8 cannot."""
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _told(message: str) -> str:
    """The message with surrogates escaped and at most 500 characters, for a column of texts."""
    return message.encode(errors="backslashreplace").decode()[:500]
