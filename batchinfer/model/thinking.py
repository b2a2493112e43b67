"""Which models think before they answer, and which of vLLM's parsers tells the thinking from the answer."""

from __future__ import annotations

from batchinfer.catalog import find_model
from batchinfer.errors import SpecError
from batchinfer.jobspec import SCRIPTED, JobSpec
from batchinfer.model.tokenizer_files import chat_template_text


def reasoning_parser(spec: JobSpec, folder: str | None) -> str | None:
    """The name of vLLM's parser for the job; None if the text is kept as it is. `folder`: where the model's tokenizer
    lies on this machine. Raises SpecError where `auto` cannot tell.
    """
    reasoning = spec.reasoning
    if reasoning is None or reasoning.parser == "none":
        return None
    if reasoning.parser != "auto":
        return reasoning.parser
    if spec.prompt.chat_template is not None:
        return parser_of_template(spec.prompt.chat_template)
    entry = find_model(spec.model.source)
    if entry is not None:
        return entry.thinking.parser if entry.thinking is not None else None
    if spec.model.source == SCRIPTED:
        return "deepseek_r1"
    if folder is None:
        raise SpecError(
            f"reasoning.parser auto cannot tell how {spec.model.source} thinks: it is not in the catalog, and "
            "its chat template is not at hand",
            "name vLLM's parser for the model, such as qwen3 or deepseek_r1, or say none",
        )
    return parser_of_template(chat_template_text(folder) or "")


def parser_of_template(template: str) -> str | None:
    """The parser for a model with this chat template; None if the template lets nobody think."""
    if "<|channel|>" in template and "analysis" in template:
        return "openai_gptoss"
    if "<think>" not in template:
        return None
    if "enable_thinking" in template:
        return "qwen3"
    # Many templates only strip the thinking of earlier turns. One that opens it after the last lets the model think.
    opened = template.rfind("add_generation_prompt")
    return "deepseek_r1" if opened >= 0 and "<think>" in template[opened:] else None


def thinking_line(spec: JobSpec, folder: str | None) -> str | None:
    """What a person is told of the model's thinking before a run; None if there is nothing to say."""
    entry = find_model(spec.model.source)
    if spec.reasoning is not None:
        parser = reasoning_parser(spec.step_jobs[0], folder)
        if parser is not None:
            kept = f"goes to the column {spec.reasoning.column}" if spec.reasoning.column else "is not kept"
            return f"vLLM's parser {parser} tells the thinking from the answer; the thinking {kept}"
        return "the text is kept as it is: no thinking is told from the answer"
    if spec.task != "generate" or entry is None or entry.thinking is None or spec.prompt.chat is False:
        return None
    off = f", or prompt.chat_template_kwargs: {{{entry.thinking.switch}: false}} so that it answers at once"
    return (
        f"{entry.name} thinks before it answers, and the thinking is kept as part of the answer: "
        f"set reasoning: {{parser: auto}} to keep it apart{off if entry.thinking.switch else ''}"
    )
