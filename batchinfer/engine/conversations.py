"""What the tokenizer of a vLLM engine knows of conversations: its chat template and its control tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from batchinfer.jobspec import PromptSpec
from batchinfer.private_names import Release
from batchinfer.prompting.chat_template import ChatTemplate
from batchinfer.prompting.control_tokens import is_control
from batchinfer.prompting.messages import Message
from batchinfer.prompting.tokens import Writer

_TRANSFORMERS = Release("transformers", "5.19.0", ("transformers",))
_TOKENIZER = "transformers.tokenization_utils_base:PreTrainedTokenizerBase"


def prompt_writer(spec: PromptSpec, tokenizer: Any, chat: bool) -> Writer:
    """The writer of prompts for the tokenizer; with `chat` through a chat template, the spec's or its own."""
    controls = control_tokens(tokenizer)
    if not chat:
        return Writer(spec, None, controls)
    base = _TRANSFORMERS.name(_TOKENIZER)
    # Mistral's and others' tokenizers of vLLM write their conversations without a Jinja2 template. The class of
    # vLLM's pool only hands the call on.
    writers = [kind for kind in type(tokenizer).__mro__ if "apply_chat_template" in vars(kind)]
    plain = isinstance(tokenizer, base) and all(
        kind is base or kind.__name__.startswith("TokenizerPool") for kind in writers
    )
    source = spec.chat_template or (tokenizer.get_chat_template() if plain else None)
    if source is None:
        return Writer(spec, _own_words(tokenizer, spec), controls)
    special = getattr(tokenizer, "special_tokens_map", {})
    template = ChatTemplate(source, special, spec.chat_template_kwargs)
    return Writer(spec, template, controls | template.role_marks, template.knows_tool_calls)


def _own_words(tokenizer: Any, spec: PromptSpec) -> Callable[[Sequence[Message]], str]:
    def written(messages: Sequence[Message]) -> str:
        text: str = tokenizer.apply_chat_template(
            list(messages), tokenize=False, add_generation_prompt=True, **(spec.chat_template_kwargs or {})
        )
        return text

    return written


class EngineTokenizer:
    """See `prompting.tokens.Tokenizer`."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    def encode(self, texts: Sequence[str], special: bool) -> Sequence[Sequence[int]]:
        ids: Sequence[Sequence[int]] = self._tokenizer(list(texts), add_special_tokens=special)["input_ids"]
        return ids

    def ends(self, text: str) -> Sequence[tuple[int, int]] | None:
        if not getattr(self._tokenizer, "is_fast", False):
            return None
        found: Sequence[tuple[int, int]] = self._tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)[
            "offset_mapping"
        ]
        return found

    def pair(self, first: str, second: str) -> tuple[Sequence[int], Sequence[int] | None]:
        made = self._tokenizer([first], [second])
        types = made.get("token_type_ids")
        return made["input_ids"][0], None if types is None else types[0]


def control_tokens(tokenizer: Any) -> set[str]:
    """The texts that the tokenizer reads as control tokens: special tokens, and tokens like `<|...|>`.

    Words that were only added to the vocabulary, such as `<table>` or `<think>`, are not included.
    """
    added = getattr(tokenizer, "added_tokens_decoder", {}).values()
    found = {token.content for token in added if is_control(token.content, token.special)}
    return found | {str(token) for token in getattr(tokenizer, "all_special_tokens", ())}
