"""The keys of `prompt`: how a row becomes a prompt."""

from __future__ import annotations

import re
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from batchinfer.jobspec.base import Keys, Text, is_json
from batchinfer.jobspec.templates import compile_template, is_template

LABELS_PLACE = re.compile(r"\{\{-?\s*choices\s*-?\}\}")
"""Where a template lists the labels of `output.choices` that have descriptions."""


class ExampleSpec(Keys):
    """One example of `prompt.examples`: a message of the user, and the answer that the model should give to it."""

    user: str
    """The user's message."""
    assistant: str
    """The answer."""


class TruncateSpec(Keys):
    """What `prompt.too_long: truncate` cuts."""

    column: str | None = None
    """The column whose text is cut; all other text of the prompt stays whole.

    null: the column of `prompt.column`, or the only one that `prompt.template` names."""
    side: Literal["right", "left", "middle"] = "right"
    """Where text is taken away: `right` keeps the beginning, `left` the end, `middle` both.

    What `middle` keeps is joined by ` ... `."""


class PromptSpec(Keys):
    """How a row becomes a prompt. Exactly one of `template`, `column` and `messages_column` must be set.

    Without any key there is no prompt, as in a job with `steps`.
    """

    system: str | None = None
    """The system message of every row; a text, or a template as `template` is.

    Without a chat template it stands before the prompt, with an empty line between. A conversation of
    `messages_column` keeps its own system message."""
    template: str | None = None
    """The prompt as a Jinja2 template over the row's columns, as in `"Subject: {{ subject }}"`.

    The template is sandboxed and does at most 64 Mi characters of work a row. A null is an error of its row, except in
    `default(...)` and `is defined`. Put the part that rows share first: the KV cache then serves it to all of them."""
    column: str | None = None
    """The column that holds the whole prompt as text."""
    messages_column: str | None = None
    """The column that holds the conversation: a list of `{role, content}`, or JSON text of one.

    A content is a text or a list of OpenAI's text parts. `tool_calls` and messages of the role `tool` need a model
    whose chat template writes them. Needs a model with a chat template."""
    examples: tuple[ExampleSpec, ...] | None = Field(default=None, min_length=1)
    """Turns before the row's own, as in `[{user: It rains., assistant: weather}]`.

    Needs a model with a chat template. Not with `messages_column`."""
    prefill: str | None = Field(default=None, min_length=1)
    """How every answer begins; the model goes on from there. A text, or a template as `template` is.

    The output column holds what the model wrote after it, and `output.choices`, `json_schema` and `regex` are for that
    alone. Needs a model with a chat template. End it without a blank: tokens begin with one."""
    query: str | None = Field(default=None, min_length=1)
    """The query, a template as `template` is; for `task: score`, which says how well the prompt answers it."""
    chat: bool | None = None
    """Whether prompts go through the model's chat template.

    null: yes if the model has one and `task` is `generate`; otherwise the prompt is plain text."""
    chat_template: str | None = Field(default=None, min_length=1)
    """A chat template in place of the model's own: its text, or the path of a file.

    The file is read where the command runs, and travels with the job."""
    chat_template_kwargs: dict[Text, Any] | None = None
    """Variables for the chat template, as in `{enable_thinking: false}`. One that it does not read has no effect."""
    too_long: Literal["error", "truncate"] = "error"
    """What becomes of a row whose prompt does not fit into the context.

    `error`: it fails with `prompt_too_long`, if no room for one token of an answer is left. `truncate`: the column of
    `truncate` is cut until prompt and `sampling.max_tokens` fit. The results then have the column
    `truncated_tokens`: by how many tokens the prompt is shorter, 0 for a row that was not cut."""
    truncate: TruncateSpec | None = None
    """What `too_long: truncate` cuts. null: the only column of the prompt, at its end."""
    allow_special_tokens: bool = False
    """Whether control tokens in the text of a row, such as `<|im_start|>`, are read as such.

    By default they are text, so that no row can speak as the system. What the spec itself writes (`template`, `system`,
    `examples`, `prefill`) may hold control tokens in any case."""

    @field_validator("template")
    @classmethod
    def _parses(cls, template: str | None) -> str | None:
        if template is not None:
            compile_template(template)
        return template

    @field_validator("query")
    @classmethod
    def _parses_too(cls, query: str | None) -> str | None:
        return cls._parses(query)

    @field_validator("system", "prefill")
    @classmethod
    def _parses_if_template(cls, text: str | None) -> str | None:
        if is_template(text):
            compile_template(text)
        return text

    @field_validator("chat_template_kwargs")
    @classmethod
    def _for_the_template(cls, kwargs: dict[str, Any] | None) -> dict[str, Any] | None:
        taken = sorted({"messages", "add_generation_prompt", "continue_final_message"} & set(kwargs or ()))
        if taken:
            raise ValueError(f"holds {taken[0]!r}, which is set for each row: leave it out")
        if kwargs is not None and not is_json(kwargs):
            raise ValueError("holds what JSON cannot say: put dates and keys that are numbers in quotes")
        return kwargs

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if not self.model_fields_set - {"chat_template", "chat_template_kwargs", "allow_special_tokens"}:
            # Of a job with steps, or with whole requests. `JobSpec` refuses others.
            return self
        given = [name for name in ("template", "column", "messages_column") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"needs exactly one of template, column, messages_column; given: {given or 'none'}")
        key = self.needs_chat
        if key is not None and self.chat is False:
            raise ValueError(f"{key} needs the model's chat template: leave chat out")
        if self.examples is not None and self.messages_column is not None:
            raise ValueError("examples go with template or column: put the turns into the conversations")
        return self

    @model_validator(mode="after")
    def _has_what_to_cut(self) -> Self:
        if self.too_long == "error":
            if self.truncate is not None:
                raise ValueError("truncate has no effect without too_long: truncate")
            return self
        if self.messages_column is not None:
            raise ValueError("too_long: truncate goes with template or column: no message says which to cut")
        return self

    def require_one_to_cut(self, lists_labels: bool) -> None:
        """Raise ValueError unless `too_long: truncate` has one column to cut.

        `lists_labels`: whether `{{ choices }}` is the place of the labels, and no column."""
        if self.too_long == "error":
            return
        template = LABELS_PLACE.sub("", self.template or "") if lists_labels else self.template or ""
        columns = [self.column] if self.column is not None else compile_template(template).columns
        named = self.truncate.column if self.truncate is not None else None
        if named is not None and named not in columns:
            raise ValueError(f"truncate.column names {named!r}, and the prompt is made of {', '.join(columns)}")
        if named is None and len(columns) > 1:
            raise ValueError(f"the prompt is made of {', '.join(columns)}: set truncate.column to the one to cut")

    @property
    def has_source(self) -> bool:
        """Does it say what prompts are made of?"""
        return any(value is not None for value in (self.template, self.column, self.messages_column))

    @property
    def needs_chat(self) -> str | None:
        """The first key that has no meaning without a chat template."""
        names = ("messages_column", "examples", "prefill", "chat_template", "chat_template_kwargs")
        return next((name for name in names if getattr(self, name) is not None), None)

    @property
    def reads(self) -> list[tuple[str, str]]:
        """The columns that make prompts, each with the key that names it. Empty for a template without a column."""
        if self.column is not None:
            found = [(self.column, "column")]
        elif self.messages_column is not None:
            found = [(self.messages_column, "messages_column")]
        else:
            found = [(name, "template") for name in compile_template(self.template or "").columns]
        if not found:
            return []
        for key, text in (("system", self.system), ("prefill", self.prefill)):
            if is_template(text):
                found += [(name, key) for name in compile_template(text).columns]
        return found

    @property
    def cut_column(self) -> str | None:
        """The column that is cut where a prompt is too long; None if such a row fails."""
        if self.too_long == "error":
            return None
        if self.truncate is not None and self.truncate.column is not None:
            return self.truncate.column
        return self.column or compile_template(self.template or "").columns[0]
