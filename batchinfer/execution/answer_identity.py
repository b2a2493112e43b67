"""What an answer depends on besides its prompt: model, sampling, shape of the answer, engine. Pure."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from batchinfer.execution.same_job import shaping
from batchinfer.jobspec import JobSpec
from batchinfer.planner import Plan

FORMAT = 1
"""Raised whenever this version makes other tokens of a prompt, or another answer of tokens, than the one before."""

_OF_PLACES = ("input", "evaluate", "steps", "chunk", "combine", "reduce", "dedupe", "sampling_column")
"""Sections that say which prompts are made; the prompts themselves count in full."""

_IN_PROMPT = ("template", "column", "messages_column", "system", "examples", "prefill", "query")
"""Keys of `prompt` whose effect a prompt holds."""

_OF_STORED = ("uri", "column", "as", "abstain_below")
"""Keys of `output` that say how an answer is stored."""


def identity(job: JobSpec, plan: Plan, files: Mapping[str, str], engine: str) -> dict[str, Any]:
    """Everything of one of `JobSpec.step_jobs` that shapes its answers, as JSON has it. New keys of a spec count.

    `files`: by spec key, what the files of model, adapter and tokenizer are. `engine`: its release. Devices,
    parallelism and batches are left out: they change an answer no more than they do between two runs.
    """
    values = shaping(job)
    for key in _OF_PLACES:
        values.pop(key)
    for section, keys in (("prompt", _IN_PROMPT), ("output", _OF_STORED)):
        for key in keys:
            values[section].pop(key)
    for key in ("load_format", "max_model_len"):
        values["engine"].pop(key)
    # Files count by what they are, wherever they lie.
    values["engine"]["tokenizer"] = None
    for model in (values["model"], values["model"]["lora"] or {}):
        model.update({key: None for key in ("source", "path", "revision") if key in model})
    # The longest sequence shapes an answer only where prompts are cut to it; `AnswerCache` keeps no answer that it cut.
    cut = job.prompt.too_long == "truncate" and plan.engine is not None
    return {
        "format": FORMAT,
        "files": dict(files),
        "release": engine,
        "cpu": plan.num_gpus == 0,
        "quantization": plan.quantization,
        "context": plan.engine.max_model_len if cut and plan.engine is not None else None,
        "spec": values,
    }


def prints_the_time(job: JobSpec, template: str | None) -> bool:
    """Whether the chat template makes other tokens of a prompt tomorrow.

    Llama's prints `date_string` instead, if the spec has it.
    """
    given = "date_string" in (job.prompt.chat_template_kwargs or {}) and "date_string" in (template or "")
    return job.wants_chat and "strftime_now" in (template or "") and not given


def name_of(about: Mapping[str, Any]) -> str:
    """The name of an identity: 32 hexadecimal digits."""
    return hashlib.blake2b(json.dumps(about, sort_keys=True).encode(), digest_size=16).hexdigest()
