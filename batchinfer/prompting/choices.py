"""Puts the labels of a job and their descriptions into its prompt."""

from __future__ import annotations

from batchinfer.jobspec import JobSpec, OutputSpec, PromptSpec
from batchinfer.jobspec.prompt_keys import LABELS_PLACE
from batchinfer.jobspec.templates import is_template


def described(spec: JobSpec) -> PromptSpec:
    """The prompt with the descriptions of `output.choices`: at `{{ choices }}`, otherwise after the system message."""
    if not isinstance(spec.output.choices, dict):
        return spec.prompt
    prompt, block = spec.prompt, choices_block(spec.output)
    if any(LABELS_PLACE.search(text) for text in (prompt.template, prompt.system) if text):
        return prompt.model_copy(
            update={"template": _filled_in(prompt.template, block), "system": _filled_in(prompt.system, block)}
        )
    if is_template(prompt.system) or is_template(block):
        block = _literal(block)
    return prompt.model_copy(update={"system": f"{prompt.system}\n\n{block}" if prompt.system else block})


def _filled_in(text: str | None, block: str) -> str | None:
    return LABELS_PLACE.sub(lambda _: _literal(block), text) if text else text


def choices_block(output: OutputSpec) -> str:
    """The text that lists the labels with their descriptions."""
    assert isinstance(output.choices, dict)
    asked = (
        "Answer with a JSON list of the labels that apply, [] if none does:"
        if output.multi_label
        else "Answer with one of these labels:"
    )
    return "\n".join([asked, *(f"- {label}: {meaning}" for label, meaning in output.choices.items())])


def _literal(text: str) -> str:
    """The template that prints `text`."""
    return "".join("{{ '{' }}" if letter == "{" else letter for letter in text)
