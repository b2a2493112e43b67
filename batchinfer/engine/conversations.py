"""Renders conversations with the model's chat template, with a limit on its work and no control tokens from rows.

A chat template marks roles by control tokens such as `<|im_start|>`. A tokenizer reads these anywhere in a text, so a
row with such a text could speak as the system. Each control token in a row's text is therefore split in two before
rendering, and the pieces of the prompt are tokenized separately.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import jinja2

from batchinfer.errors import RowError
from batchinfer.jobspec.templates import bounded_template
from batchinfer.private_names import Release
from batchinfer.prompting.prompts import Message

_TRANSFORMERS = Release("transformers", "5.19.0", ("transformers",))
_COMPILE = "transformers.utils.chat_template_utils:_compile_jinja_template"
_TOKENIZER = "transformers.tokenization_utils_base:PreTrainedTokenizerBase"

_BREAKS = [chr(code) for code in range(0xFDD0, 0xFDF0)]
"""Unicode's noncharacters, which mark the splits because texts do not use them."""

_FEW_BEGINNINGS = 16
"""Up to so many searches for two characters are faster than one regular expression for all control tokens."""

Pieces = tuple[str, ...]
"""A prompt in pieces that are tokenized separately: one piece, unless a text of the row holds a control token."""


class Conversations:
    """Renders conversations with the chat template of `tokenizer`. Safe to use from several threads."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        base = _TRANSFORMERS.name(_TOKENIZER)
        # Some of vLLM's tokenizers, such as Mistral's, render conversations without a Jinja2 template. The class of
        # vLLM's tokenizer pool only forwards the call.
        writers = [kind for kind in type(tokenizer).__mro__ if "apply_chat_template" in vars(kind)]
        plain = isinstance(tokenizer, base) and all(
            kind is base or kind.__name__.startswith("TokenizerPool") for kind in writers
        )
        self._template: jinja2.Template | None = None
        if plain:
            source = tokenizer.get_chat_template()
            self._template = bounded_template(_TRANSFORMERS.name(_COMPILE)(source).environment, source)
        controls = sorted(control_tokens(tokenizer), key=len, reverse=True)
        self._controls = re.compile("|".join(map(re.escape, controls))) if controls else None
        beginnings = {token[:2] for token in controls}
        self._beginnings = tuple(beginnings) if len(beginnings) <= _FEW_BEGINNINGS else None

    def pieces(self, messages: Sequence[Message]) -> Pieces | RowError:
        """The prompt for the messages, or the error of the row."""
        try:
            if not any(self._holds_control(message["content"]) for message in messages):
                return (self._render(messages),)
            return self._in_pieces(messages)
        except Exception as error:
            # A chat template is a program and may raise anything: the error belongs to this row. Many templates
            # refuse conversations that the model was not trained on, such as two turns of the user.
            told = f"the model's chat template refused the messages: {error or type(error).__name__}"
            return RowError("prompt_invalid", told[:500])

    def _holds_control(self, text: str) -> bool:
        if self._controls is None:
            return False
        if self._beginnings is not None and not any(beginning in text for beginning in self._beginnings):
            return False
        return self._controls.search(text) is not None

    def _render(self, messages: Sequence[Message]) -> str:
        if self._template is None:
            text: str = self._tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True)
            return text
        # The same arguments as in transformers' `apply_chat_template`.
        special = self._tokenizer.special_tokens_map
        return self._template.render(
            messages=list(messages), tools=None, documents=None, add_generation_prompt=True, **special
        )

    def _in_pieces(self, messages: Sequence[Message]) -> Pieces | RowError:
        mark = next((one for one in _BREAKS if not any(one in message["content"] for message in messages)), None)
        if mark is not None:
            broken = [{**message, "content": self._broken(message["content"], mark)} for message in messages]
            pieces = tuple(self._render(broken).split(mark))
            if "".join(pieces) == self._render(messages):
                return pieces
        return RowError("prompt_invalid", "a text holds a control token, which the model's chat template does not keep")

    def _broken(self, text: str, mark: str) -> str:
        assert self._controls is not None
        # Repeat until no token is left: the rest of a split token may begin another one.
        while self._controls.search(text):
            text = self._controls.sub(lambda found: f"{found[0][:1]}{mark}{found[0][1:]}", text)
        return text


def control_tokens(tokenizer: Any) -> set[str]:
    """The texts that the tokenizer reads as control tokens: special tokens, and tokens like `<|...|>`.

    Words that were only added to the vocabulary, such as `<table>` or `<think>`, are not included.
    """
    added = getattr(tokenizer, "added_tokens_decoder", {}).values()
    found = {token.content for token in added if token.special or re.fullmatch(r"<[|｜].*[|｜]>", token.content)}
    found |= {str(token) for token in getattr(tokenizer, "all_special_tokens", ())}
    # A token of one character cannot be split.
    return {token for token in found if len(token) > 1}
