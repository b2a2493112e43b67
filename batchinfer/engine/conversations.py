"""Conversations become tokens: through the model's chat template, with a limit, and with no control token from a row.

A chat template writes who speaks with control tokens such as `<|im_start|>`. A tokenizer reads these wherever they
stand, so a row whose text holds them could speak as the system. Here they are text in a text: each is broken in two
before the template sees it, and the parts become tokens apart from one another.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import jinja2

from batchinfer.errors import RowError
from batchinfer.jobspec.sandbox import bounded_template
from batchinfer.private_names import Release
from batchinfer.prompting.prompts import Message

_TRANSFORMERS = Release("transformers", "5.19.0", ("transformers",))
_COMPILE = "transformers.utils.chat_template_utils:_compile_jinja_template"
_TOKENIZER = "transformers.tokenization_utils_base:PreTrainedTokenizerBase"

_BREAKS = [chr(code) for code in range(0xFDD0, 0xFDF0)]
"""Unicode's noncharacters: no text has a use for them."""

_FEW_BEGINNINGS = 16
"""So many searches for two characters are faster than one for all control tokens."""

Pieces = tuple[str, ...]
"""A prompt in pieces that become tokens apart from one another: one, unless a text of the row holds a control token."""


class Conversations:
    """Renders conversations with the chat template of `tokenizer`. One serves any number of threads."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        base = _TRANSFORMERS.name(_TOKENIZER)
        # Mistral's and others' tokenizers of vLLM write their conversations without a Jinja2 template. The class of
        # vLLM's pool only hands the call on.
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
        """The prompt for the messages, or why there is none."""
        try:
            if not any(self._holds_control(message["content"]) for message in messages):
                return (self._render(messages),)
            return self._in_pieces(messages)
        except Exception as error:
            # A chat template is a program: it refuses conversations that the model was not trained on, such as two
            # turns of the user, and whatever else it raises is this row's error too.
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
        # As transformers renders it.
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
        # Again until none is left: what comes after a broken token may begin another one.
        while self._controls.search(text):
            text = self._controls.sub(lambda found: f"{found[0][:1]}{mark}{found[0][1:]}", text)
        return text


def control_tokens(tokenizer: Any) -> set[str]:
    """The texts that the tokenizer reads as control tokens: special ones, and those written as `<|...|>`.

    Not words that were only added to a vocabulary, such as `<table>` or `<think>`.
    """
    added = getattr(tokenizer, "added_tokens_decoder", {}).values()
    found = {token.content for token in added if token.special or re.fullmatch(r"<[|｜].*[|｜]>", token.content)}
    found |= {str(token) for token in getattr(tokenizer, "all_special_tokens", ())}
    # A token of one character cannot be broken: it is not one that people take for text.
    return {token for token in found if len(token) > 1}
