"""The keys of a job whose rows are whole requests of OpenAI's API (`input.format: openai_batch`)."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from batchinfer.jobspec.base import Keys
from batchinfer.jobspec.output_keys import AnswerSpec, EmbedSpec
from batchinfer.jobspec.prompt_keys import PromptSpec
from batchinfer.jobspec.sampling_keys import OF_REQUESTS, SamplingSpec

_OF_ALL = ("chat_template", "chat_template_kwargs", "allow_special_tokens")
"""The keys of `prompt` that hold for all requests of a batch file."""


def request_prompts(prompt: PromptSpec, generates: bool) -> tuple[PromptSpec, ...]:
    """The kinds of prompts that requests have: a conversation, if the model writes texts, and last a plain text."""
    plain = PromptSpec(column="body", chat=False, allow_special_tokens=prompt.allow_special_tokens)
    return (prompt.model_copy(update={"messages_column": "body"}), plain) if generates else (plain,)


def sampled_as_openai(values: Any) -> Any:
    """The keys of a job, with the defaults of OpenAI's API in `sampling` if its rows are requests that write texts."""
    if not isinstance(values, dict) or values.get("task", "generate") != "generate":
        return values
    given, sampling = values.get("input"), values.get("sampling")
    form = given.get("format") if isinstance(given, dict) else getattr(given, "format", None)
    if form != "openai_batch":
        return values
    if isinstance(sampling, SamplingSpec):
        sampling = sampling.model_dump(exclude_unset=True)
    if sampling is not None and not isinstance(sampling, dict):
        return values
    return {**values, "sampling": {**OF_REQUESTS, **(sampling or {})}}


def require_whole_requests(task: str, sections: Mapping[str, Any]) -> None:
    """Raise ValueError if one of a job's sections says what requests say themselves."""
    if task not in ("generate", "embed"):
        raise ValueError(f"task {task} has no endpoint in a batch file: take generate or embed")
    apart = ("steps", "chunk", "combine", "reduce", "evaluate", "sampling_column", "cache")
    wrong = [name for name in apart if sections[name] is not None]
    wrong += _set("prompt", sections["prompt"], PromptSpec.model_fields.keys() - {*_OF_ALL})
    wrong += _set("embed", sections["embed"], EmbedSpec.model_fields)
    wrong += _set("output", sections["output"], {*AnswerSpec.model_fields, "embedding_type"} - {"compact_json"})
    wrong += _set("sampling", sections["sampling"], ("n", "logprobs"))
    if wrong:
        raise ValueError(f"{wrong[0]} does not go with input.format: openai_batch, whose requests are whole")


def _set(section: str, keys: Keys, names: Collection[str]) -> list[str]:
    """The keys among `names` that are not as by default, in the order of the section."""
    fields = type(keys).model_fields
    return [f"{section}.{n.rstrip('_')}" for n in fields if n in names and getattr(keys, n) != fields[n].default]
