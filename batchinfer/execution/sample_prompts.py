"""How long the prompts are: a sample of the real input, counted with the model's own tokenizer.

Planning needs lengths before an engine runs. Importing `transformers` needs seconds, so this module reads the model's
`tokenizer.json` and renders its chat template. The engine counts every row itself and uses neither.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment

from batchinfer.engine.prefix_order import scattered
from batchinfer.errors import RowError
from batchinfer.input import read_shards
from batchinfer.input.manifest import Manifest, Shard
from batchinfer.input.shard_sizes import CHARACTERS_PER_TOKEN
from batchinfer.jobspec import JobSpec
from batchinfer.jobspec.templates import bounded_template
from batchinfer.planner import Interval, PromptSample, Workload
from batchinfer.prompting.answers import label_list, require_whole_choices
from batchinfer.prompting.job_prompts import JobPrompts
from batchinfer.prompting.prompts import Prompt

SAMPLED_SHARDS = 16
ROWS_OF_EACH = 32
SHORTEST_ANSWER = 0.25
"""Share of max_tokens: the low end of an answer's expected length before the first run of a job. If higher, the plan
overestimates jobs with short answers."""

SHOWN_OF_A_MESSAGE = 300
"""Characters of a failure's message in a plan: enough to see what is wrong, and no row's whole text."""


@dataclass(frozen=True, slots=True)
class TokenCounter:
    """Counts the tokens of prompts; `source` names the tokenizer."""

    tokens: Callable[[Sequence[Prompt]], list[int]]
    text_tokens: Callable[[str], int]
    source: str
    exact: bool
    """Whether the model's own tokenizer counts, as in the engine; otherwise the count is an estimate."""


def counter(folder: str | None, chat: bool | None) -> TokenCounter:
    """The counter for the tokenizer in `folder`; without a tokenizer, four characters count as a token."""
    path = os.path.join(folder, "tokenizer.json") if folder else ""
    if not os.path.isfile(path):
        return TokenCounter(
            lambda prompts: [_by_characters(prompt.as_text()) for prompt in prompts],
            _by_characters,
            "at four characters a token: the model's tokenizer is not at hand",
            exact=False,
        )
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(path)
    tokenizer.no_truncation()
    template = None if chat is False else _chat_template(os.path.dirname(path))

    def count(prompts: Sequence[Prompt]) -> list[int]:
        texts = [_rendered(template, prompt) for prompt in prompts]
        return [len(found.ids) for found in tokenizer.encode_batch(texts, add_special_tokens=template is None)]

    return TokenCounter(
        count, lambda text: len(tokenizer.encode(text, add_special_tokens=False).ids), "the model's own", exact=True
    )


def _by_characters(text: str) -> int:
    return max(1, round(len(text) / CHARACTERS_PER_TOKEN))


def _chat_template(folder: str) -> jinja2.Template | None:
    config: dict[str, Any] = {}
    if os.path.isfile(os.path.join(folder, "tokenizer_config.json")):
        with open(os.path.join(folder, "tokenizer_config.json"), encoding="utf-8") as file:
            config = json.load(file)
    text = config.get("chat_template")
    if os.path.isfile(os.path.join(folder, "chat_template.jinja")):
        with open(os.path.join(folder, "chat_template.jinja"), encoding="utf-8") as file:
            text = file.read()
    if not isinstance(text, str):
        return None
    # A special token is a text, or an object with a `content`.
    special = {
        name: token.get("content") if isinstance(token, dict) else token
        for name, token in config.items()
        if name.endswith("_token") and isinstance(token, str | dict)
    }
    # The options with which transformers renders chat templates.
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    try:
        environment.globals.update(special)
        return bounded_template(environment, text)
    except jinja2.TemplateError:
        return None


def _rendered(template: jinja2.Template | None, prompt: Prompt) -> str:
    if template is None:
        return prompt.as_text()
    try:
        return template.render(messages=prompt.as_messages(), add_generation_prompt=True)
    except Exception:
        # A template may raise anything on a row; the text alone is most of the length.
        return prompt.as_text()


@dataclass(frozen=True, slots=True)
class Survey:
    """A sample of the rows: statistics of all sampled rows, and the workload of those that will not fail."""

    sample: PromptSample
    workload: Workload


def survey(
    spec: JobSpec,
    manifest: Manifest,
    tokenizer_folder: str | None,
    earlier_output_tokens: float | None = None,
    context: int | None = None,
) -> Survey:
    """What the job asks of an engine, from up to 16 x 32 rows spread over its shards.

    `earlier_output_tokens`: mean output tokens of a row in earlier runs of the job. Without earlier runs an answer is
    expected to be one of the choices, or to have between a quarter of max_tokens and all of them.
    `context`: the model's longest sequence, in tokens; None if it is not known.
    Raises InputError if the input cannot be read.
    """
    # The engine embeds the plain text, without a chat template.
    plain = not spec.generates and spec.prompt.chat is None
    counting = counter(tokenizer_folder, False if plain else spec.prompt.chat)
    room = _room(spec, context) if counting.exact else None
    lengths: list[int] = []
    beginnings: list[list[str]] = []
    failures: list[RowError] = []
    maker = JobPrompts(spec)
    sampled = _sample(manifest.shards)
    source = (spec.input.uri, spec.input.format, spec.storage)
    for _, rows in read_shards(sampled, manifest.schema, manifest.partitions, *source):
        made = maker.prompts(rows)
        failures += [prompt for prompt in made if isinstance(prompt, RowError)]
        prompts = [prompt for prompt in made if not isinstance(prompt, RowError)]
        lengths += counting.tokens(prompts) if prompts else []
        beginnings.append(["\n".join(m["content"] for m in prompt.as_messages()) for prompt in prompts])
    run = [length for length in lengths if room is None or length <= room]
    failures += [_too_long(length, room) for length in lengths if room is not None and length > room]
    output, why = _answers(spec, counting, earlier_output_tokens)
    apart = scattered(beginnings)
    shared = f"; {apart:.0%} of them begin as rows elsewhere in the input do" if apart else ""
    seen = len(run) + len(failures)
    return Survey(
        PromptSample(
            rows=seen,
            failed=dict(Counter(failure.code for failure in failures).most_common()),
            messages={failure.code: failure.message[:SHOWN_OF_A_MESSAGE] for failure in reversed(failures)},
            lengths=_histogram(lengths),
        ),
        Workload(
            rows=round(manifest.rows * len(run) / seen) if seen else manifest.rows,
            input_tokens=sum(run) / len(run) if run else 0.0,
            longest_input_tokens=max(run, default=0),
            output_tokens=output.scaled(spec.sampling.n),
            sampled_rows=len(run),
            source=f"input: {len(run):,} rows sampled, counted {_with(counting.source)}{shared}; output: {why}",
            scattered=apart,
        ),
    )


def _room(spec: JobSpec, context: int | None) -> int | None:
    """Most tokens of a prompt: one is left for the answer, except for an embedding."""
    limits = [limit for limit in (spec.engine.max_model_len, context) if limit is not None]
    return min(limits) - (1 if spec.generates else 0) if limits else None


def _too_long(length: int, room: int) -> RowError:
    return RowError("prompt_too_long", f"the prompt has {length:,} tokens, and there is room for {room:,}")


def _histogram(lengths: Sequence[int]) -> tuple[tuple[int, int], ...]:
    bounds = Counter(1 << max(0, length - 1).bit_length() for length in lengths)
    return tuple(sorted(bounds.items()))


def require_room_for_choices(spec: JobSpec, tokenizer_folder: str | None) -> None:
    """Raise SpecError if `sampling.max_tokens` cuts the longest of `output.choices`: it could never be an answer."""
    counting = counter(tokenizer_folder, False) if spec.output.choices else None
    if counting is None or not counting.exact or not spec.generates:
        return
    require_whole_choices(spec, counting.text_tokens)


def _with(source: str) -> str:
    return source if source.startswith("at ") else f"with {source} tokenizer"


def _sample(shards: Sequence[Shard]) -> list[Shard]:
    """The beginnings of up to 16 shards, evenly spread."""
    count = min(SAMPLED_SHARDS, len(shards))
    picked = [shards[i * len(shards) // count] for i in range(count)]
    return [
        dataclasses.replace(
            s, segments=(dataclasses.replace(s.segments[0], rows=min(ROWS_OF_EACH, s.segments[0].rows)),)
        )
        for s in picked
    ]


def _answers(spec: JobSpec, counting: TokenCounter, earlier: float | None) -> tuple[Interval, str]:
    """Output tokens of one answer, and where the figure comes from."""
    most = spec.sampling.max_tokens
    if not spec.generates:
        return Interval(low=0, mid=0, high=0), "numbers, no token"
    if earlier is not None:
        mean = earlier / spec.sampling.n
        return Interval(low=mean * 0.9, mid=mean, high=mean * 1.1), "as an earlier run of this job measured it"
    if spec.output.choices is not None:
        each = [min(most, counting.text_tokens(choice) + 1) for choice in spec.output.choices]
        if spec.output.multi_label:
            whole = min(most, counting.text_tokens(label_list(spec.output.choices)) + 1)
            return Interval(low=min(whole, 2), mid=(2 + whole) / 2, high=whole), "between no choice and all of them"
        return Interval(low=min(each), mid=sum(each) / len(each), high=max(each)), "the length of the choices"
    least = most if spec.sampling.ignore_eos else max(spec.sampling.min_tokens, SHORTEST_ANSWER * most)
    return (
        Interval(low=least, mid=(least + most) / 2, high=most),
        f"between {least:g} and max_tokens ({most}): no earlier run says more",
    )
