"""Counts the tokens of prompts outside the engine, with the model's own tokenizer.

Importing `transformers` needs seconds, so this module reads the model's `tokenizer.json` and renders its chat template.
The engine counts every row itself and uses neither.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import jinja2

from batchinfer.errors import RowError, SpecError
from batchinfer.input.shard_sizes import CHARACTERS_PER_TOKEN
from batchinfer.jobspec import JobSpec, PromptSpec
from batchinfer.model.tokenizer_files import chat_template_text, tokenizer_config
from batchinfer.planner import Plan
from batchinfer.prompting.chat_template import ChatTemplate
from batchinfer.prompting.choices import described
from batchinfer.prompting.control_tokens import is_control
from batchinfer.prompting.prompts import Prompt
from batchinfer.prompting.tokens import Tokenized, Writer, tokens_of

UNLIMITED = 2**31
"""Tokens of a sequence where no limit is known: longer than any."""


@dataclass(frozen=True, slots=True)
class TokenCounter:
    """Counts the tokens of prompts; `source` names the tokenizer."""

    tokens: Callable[[Sequence[Prompt]], list[Tokenized | RowError]]
    text_tokens: Callable[[str], int]
    decode: Callable[[Tokenized], str]
    """The prompt as the model gets it, with its control tokens."""
    ends: Callable[[str], Sequence[tuple[int, int]]]
    """The first and the last character of each token of a text."""
    source: str
    exact: bool
    """Whether the model's own tokenizer counts, as in the engine; otherwise the count is an estimate."""


def counter(folder: str | None, spec: JobSpec, context: int | None = None) -> TokenCounter:
    """The counter for the tokenizer in `folder`; without a tokenizer, four characters count as a token.

    `context`: the longest sequence in tokens; prompts are cut to it if the spec says so. Raises SpecError for a chat
    template that is none.
    """
    prompt = described(spec)
    path = os.path.join(folder, "tokenizer.json") if folder else ""
    template = chat_template(folder, prompt) if spec.wants_chat else None
    if not os.path.isfile(path):
        return TokenCounter(
            lambda prompts: [Tokenized(text, range(_by_characters(text)), 0) for text in map(_whole_text, prompts)],
            _by_characters,
            lambda made: made.text,
            _ends_by_characters,
            "at four characters a token: the model's tokenizer is not at hand",
            exact=False,
        )
    tokenizer = FolderTokenizer(path)
    controls = tokenizer.controls
    if template is None:
        writer = Writer(prompt, None, controls)
    else:
        writer = Writer(prompt, template, controls | template.role_marks, template.knows_tool_calls)
    return TokenCounter(
        tokens_of(spec, tokenizer, writer, template is None, context),
        lambda text: len(tokenizer.encode([text], False)[0]),
        lambda made: tokenizer.decode(made.ids),
        tokenizer.ends,
        "the model's own",
        exact=True,
    )


def longest_sequence(spec: JobSpec, model_context: int | None, plan: Plan | None = None) -> int | None:
    """The longest sequence of the engine, in tokens; None if it is not known. `model_context`: the model's own."""
    planned = plan.engine.max_model_len if plan is not None and plan.engine is not None else None
    limits = (planned, spec.engine.max_model_len, model_context)
    return min((limit for limit in limits if limit is not None), default=None)


class FolderTokenizer:
    """A `tokenizer.json`, read without `transformers`; see `prompting.tokens.Tokenizer`."""

    def __init__(self, path: str) -> None:
        from tokenizers import Tokenizer

        self._tokenizer = Tokenizer.from_file(path)
        self._tokenizer.no_truncation()
        added = self._tokenizer.get_added_tokens_decoder().values()
        self.controls = {token.content for token in added if is_control(token.content, token.special)}

    def encode(self, texts: Sequence[str], special: bool) -> Sequence[Sequence[int]]:
        return [found.ids for found in self._tokenizer.encode_batch(list(texts), add_special_tokens=special)]

    def ends(self, text: str) -> Sequence[tuple[int, int]]:
        ends: Sequence[tuple[int, int]] = self._tokenizer.encode(text, add_special_tokens=False).offsets
        return ends

    def pair(self, first: str, second: str) -> tuple[Sequence[int], Sequence[int] | None]:
        found = self._tokenizer.encode(first, second)
        return found.ids, found.type_ids

    def decode(self, ids: Sequence[int]) -> str:
        """The text of tokens, control tokens among them."""
        text: str = self._tokenizer.decode(list(ids), skip_special_tokens=False)
        return text


def _whole_text(prompt: Prompt) -> str:
    if prompt.messages is not None:
        return "\n".join(message["content"] for message in prompt.messages)
    query = () if prompt.query is None else (prompt.query.text,)
    return "\n\n".join((*query, prompt.as_text()))


def _by_characters(text: str) -> int:
    return max(1, round(len(text) / CHARACTERS_PER_TOKEN))


def _ends_by_characters(text: str) -> Sequence[tuple[int, int]]:
    size = round(CHARACTERS_PER_TOKEN)
    return [(start, min(start + size, len(text))) for start in range(0, len(text), size)]


def chat_template(folder: str | None, prompt: PromptSpec) -> ChatTemplate | None:
    """The spec's chat template or the model's own, None without one. Raises SpecError for a template of the spec that
    is none."""
    config = tokenizer_config(folder)
    text = prompt.chat_template or chat_template_text(folder)
    if text is None:
        return None
    # A special token is a text, or an object with a `content`.
    special = {
        name: token.get("content") if isinstance(token, dict) else token
        for name, token in config.items()
        if name.endswith("_token") and isinstance(token, str | dict)
    }
    try:
        return ChatTemplate(text, special, prompt.chat_template_kwargs)
    except jinja2.TemplateError as error:
        if prompt.chat_template is None:
            return None
        raise SpecError(
            f"prompt.chat_template is not a valid Jinja2 template: {error}",
            "write a chat template, as a tokenizer_config.json has it, or the path of a file with one",
        ) from None
