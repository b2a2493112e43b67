"""A model's chat template: messages become one text, as `transformers` renders it, with a bound for each row.

Importing `transformers` takes seconds, so the options, filters and functions that its templates use are repeated here.
The engine and the plan render with this class: what the plan counts is what the engine runs.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from batchinfer.jobspec.sandbox import bounded_template
from batchinfer.prompting.messages import Message

_ROLE_MARK = re.compile(r"<[|｜][^\s<>|｜]+[|｜]>|\[/?[A-Z_]{2,}\]|<</?SYS>>|<(?:start|end)_of_turn>|</?s>")
"""What templates write around turns. Some tokenizers have no token of their own for such a mark."""


class ChatTemplate:
    """The template `source` with the special tokens that it may name. One serves any number of threads.

    `kwargs`: variables for the template, such as `enable_thinking`. Raises jinja2.TemplateError for a source that is
    no template.
    """

    def __init__(self, source: str, special: Mapping[str, Any], kwargs: Mapping[str, Any] | None = None) -> None:
        self.source = source
        self._variables = {**special, **(kwargs or {})}
        self._template = bounded_template(_environment(), source)

    def __call__(self, messages: Sequence[Message]) -> str:
        """The text of the messages, up to where the assistant begins. Raises whatever the template raises."""
        return self._template.render(
            messages=list(messages), tools=None, documents=None, add_generation_prompt=True, **self._variables
        )

    @property
    def knows_tool_calls(self) -> bool:
        """Whether the template writes `tool_calls`; otherwise they would be missing without a word."""
        return "tool_calls" in self.source

    @property
    def role_marks(self) -> set[str]:
        """The marks that the template writes around turns, such as `[INST]`."""
        return set(_ROLE_MARK.findall(self.source))


class _Generation(Extension):
    """`{% generation %}` marks the assistant's words for training; here its body is all that counts."""

    tags = {"generation"}  # noqa: RUF012 # as Jinja2 has it

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, "jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Jinja2's own escapes what HTML would read."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise(message: str) -> None:
    raise jinja2.TemplateError(message)
