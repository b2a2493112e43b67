"""Whether the model of a job exists and can do what the spec asks, before an engine starts."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection

from batchinfer.catalog import engine_support, models
from batchinfer.errors import ModelError, SpecError
from batchinfer.jobspec import JobSpec
from batchinfer.model.checkpoint import require_adapter, require_draft, require_weights
from batchinfer.model.download import is_remote
from batchinfer.model.resolve import ModelFacts, model_facts, require_access
from batchinfer.planner.plan import require_consistent, source_of
from batchinfer.storage import join, storage_for


def require_model(spec: JobSpec, access: bool = True) -> ModelFacts:
    """Check that the model exists and can run, before an engine starts. Raises UserError.

    `access` also requires that a repository can be downloaded from here; a plan needs the model's facts only.
    """
    facts = model_facts(spec.model, spec.storage)
    _require_engine_support(facts)
    require_head(spec, facts)
    for job in spec.step_jobs:
        _require_known_tokens(job, facts)
    if facts.shape is not None:
        require_consistent(spec, facts.shape, source_of(spec, facts.name, facts.entry, facts.quantization))
    if is_remote(facts.location) or os.path.isdir(facts.location):
        storage = storage_for(facts.location, spec.storage)
        names = storage.names(facts.location)
        for job in spec.step_jobs:
            _require_model_folder(job, facts.location, names, lambda name: storage.read(join(facts.location, name)))
    elif access:
        require_access(facts, spec.model.revision)
    if spec.model.lora is not None:
        require_adapter(spec.model.lora, facts.shape, spec.storage)
    if spec.model.speculative is not None:
        require_draft(spec.model.speculative, facts.shape)
    return facts


def _require_engine_support(facts: ModelFacts) -> None:
    support = engine_support(facts.shape.architecture) if facts.shape is not None else None
    if facts.shape is None or support is None or support.until is None:
        return
    architecture = facts.shape.architecture
    same = [facts.entry, *models().values()]
    instead = next(e.replacement for e in same if e and e.replacement and e.shape.architecture == architecture)
    raise ModelError(
        f"{facts.name} cannot run: vLLM dropped {architecture} after {support.until}",
        f"use {instead}, which takes its place",
    )


def require_head(spec: JobSpec, facts: ModelFacts) -> None:
    """Refuse a task that the model has no head for, and dimensions that it was not trained for."""
    if not facts.config and facts.shape is None:
        return
    named = next(iter(facts.config.get("architectures") or []), facts.shape.architecture if facts.shape else "")
    overrides = spec.engine.extra.get("hf_overrides") or {}
    config = {**facts.config, **(overrides if isinstance(overrides, dict) else {})}
    if spec.task in ("classify", "score"):
        names = next(iter(config.get("architectures") or []), named)
        if not names.endswith(("ForSequenceClassification", "RewardModel", "ClassificationModel")):
            raise ModelError(
                f"{facts.name} is a {named}, which has no head for task {spec.task}",
                "take a checkpoint whose architecture ends with ForSequenceClassification",
            )
        outputs = len(config.get("id2label") or ()) or config.get("num_labels", 2)
        if (outputs == 1) != (spec.task == "score"):
            other = "score" if spec.task == "classify" else "classify"
            raise ModelError(
                f"{facts.name} has {outputs} output{'s' if outputs > 1 else ''}, which task {spec.task} cannot use",
                f"set task: {other}, or take another model",
            )
    wanted, size = spec.embed.dimensions, config.get("hidden_size")
    if wanted is not None:
        allowed = config.get("matryoshka_dimensions")
        if not allowed and not config.get("is_matryoshka"):
            raise ModelError(
                f"{facts.name} does not say that its vectors may be cut, so embed.dimensions cannot be used",
                "leave it out; if the model's card says so: engine.extra: {hf_overrides: {is_matryoshka: true}}",
            )
        if (allowed and wanted not in allowed) or (isinstance(size, int) and wanted > size):
            raise ModelError(
                f"{facts.name} has no vectors of {wanted} dimensions",
                f"embed.dimensions may be {', '.join(map(str, allowed)) if allowed else f'1 to {size}'}",
            )


def _require_known_tokens(spec: JobSpec, facts: ModelFacts) -> None:
    """Refuse token ids beyond the vocabulary: vLLM refuses each request with such an id, or its engine dies."""
    if facts.shape is None:
        return
    size = facts.shape.vocab_size
    unknown = spec.sampling.unknown_token(size)
    if unknown is not None:
        raise SpecError(
            f"sampling.{unknown[0]} names token {unknown[1]}, and {facts.name} has tokens 0 to {size - 1}",
            "take ids of this model's own tokenizer",
        )


def _require_model_folder(spec: JobSpec, path: str, names: Collection[str], read: Callable[[str], bytes]) -> None:
    """Check weights and chat template. `names` are the files in the folder; `read` returns the bytes of a file."""
    require_weights(path, names, spec.engine.load_format)
    template = "chat_template.jinja" in names
    if "tokenizer_config.json" in names and not template:
        template = b'"chat_template"' in read("tokenizer_config.json")
    key = spec.prompt.needs_chat or ("chat" if spec.prompt.chat else None)
    if not template and key is not None and spec.prompt.chat_template is None:
        key = f"prompt.{key}"
        raise ModelError(
            f"{key} needs a chat template, which {path} does not have", "use prompt.template or a chat model"
        )
