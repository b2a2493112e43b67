"""Everything that can be known to be wrong before anything starts or is written."""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from batchinfer.catalog import engine_support, models
from batchinfer.engine.grammars import require_grammar
from batchinfer.engine.installed import require_engine_arguments
from batchinfer.errors import InputError, ModelError, OutputError, SpecError, StoreRefused, UserError
from batchinfer.execution.sample_prompts import chat_template, require_room_for_choices
from batchinfer.input import build_manifest, input_entries
from batchinfer.input.files import fixed_part, is_glob
from batchinfer.input.manifest import Fingerprint, Manifest, from_parquet
from batchinfer.jobspec import SCRIPTED, EmbedSpec, JobSpec, ModelSpec, PromptSpec, parse
from batchinfer.jobspec.cron import Tick
from batchinfer.jobspec.schedule import current_time, resolve
from batchinfer.jobspec.templates import is_template
from batchinfer.model.checkpoint import require_adapter, require_draft, require_weights
from batchinfer.model.download import is_remote
from batchinfer.model.resolve import ModelFacts, model_facts, require_access
from batchinfer.model.thinking import reasoning_parser
from batchinfer.planner.plan import require_consistent, source_of
from batchinfer.prompting.prompts import needed_columns
from batchinfer.rundir.commit import committed_shards
from batchinfer.rundir.ownership import require_own
from batchinfer.rundir.past_runs import FileChoice, require_same_tick
from batchinfer.rundir.paths import MANIFEST, Layout, reading
from batchinfer.storage import impatient, join, local_path, normal_uri, storage_for

_FREE_KEYS = ("name", "resources", "limits", "schedule", "storage", "labels")
"""Keys that may change between the runs of one output: they shape no result."""

_SHAPING_ENGINE_KEYS = ("max_model_len", "kv_cache_dtype", "tokenizer", "load_format", "seed", "scripted")


_LATER_KEYS: dict[str, tuple[str, ...]] = {
    "": ("embed",),
    "prompt": ("query",),
    "output": ("multi_label", "confidence", "abstain_below", "embedding_type"),
}
"""Keys by their section that runs of earlier versions lack."""


@dataclass(frozen=True, slots=True)
class Checked:
    """A spec that can run, with absolute places: its model, its manifest and its committed shards.

    `choice` selects the files of an incremental run; None selects all files.
    """

    spec: JobSpec
    facts: ModelFacts
    layout: Layout
    manifest: Manifest
    committed: frozenset[int]
    resumed: bool
    choice: FileChoice | None = None


def absolute(spec: JobSpec) -> JobSpec:
    """The spec with local places made absolute: workers and later commands run in other folders."""
    return spec.model_copy(
        update={
            "model": _absolute_model(spec.model),
            "input": spec.input.model_copy(update={"uri": normal_uri(spec.input.uri)}),
            "output": spec.output.model_copy(update={"uri": normal_uri(spec.output.uri)}),
            "prompt": _with_chat_template(spec.prompt),
        }
    )


def _with_chat_template(prompt: PromptSpec) -> PromptSpec:
    """The prompt with the text of its chat template, where the spec has the path of a file."""
    path = prompt.chat_template
    if path is None or is_template(path) or "\n" in path:
        return prompt
    try:
        with open(local_path(path), encoding="utf-8") as file:
            text = file.read()
    except (OSError, ValueError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise SpecError(
            f"prompt.chat_template: {path!r:.200} cannot be read: {reason}",
            "give a Jinja2 template, or the path of a file with one, from where the command runs",
        ) from None
    if not is_template(text):
        raise SpecError(
            f"prompt.chat_template: the file {path!r:.200} holds no Jinja2 template",
            "a chat template goes through `messages`, as in {% for message in messages %}",
        )
    return prompt.model_copy(update={"chat_template": text})


def _absolute_model(model: ModelSpec) -> ModelSpec:
    def place(source: str) -> str:
        return normal_uri(source) if is_remote(source) or os.path.isdir(local_path(source)) else source

    changed: dict[str, Any] = {"source": place(model.source)}
    if model.lora is not None:
        changed["lora"] = model.lora.model_copy(update={"path": place(model.lora.path)})
    if model.speculative is not None and model.speculative.model is not None:
        changed["speculative"] = model.speculative.model_copy(update={"model": place(model.speculative.model)})
    return model.model_copy(update=changed)


@contextlib.contextmanager
def refusals_are_the_users() -> Iterator[None]:
    """Turn StoreRefused into UserError: before a run begins, the spec or the credentials are the likely cause.

    Storage retries little here, because an address that never answers is most likely wrong.
    """
    try:
        with impatient():
            yield
    except StoreRefused as error:
        raise UserError(error.message, error.remedy) from error


def check_at(spec: JobSpec, at: datetime | None = None, fresh: bool = False, access: bool = True) -> Checked:
    """`check` of the spec as `resolved` for the time `at`, with an id for a new run."""
    rendered, tick = resolved(spec, at)
    return check(rendered, new_run_id(), fresh, tick, access)


def new_run_id() -> str:
    """An id that no other run has."""
    return uuid.uuid4().hex[:12]


def resolved(spec: JobSpec, at: datetime | None) -> tuple[JobSpec, Tick | None]:
    """The spec with its variables filled in for the time `at`; None is now, or the latest tick of a schedule."""
    return resolve(spec, at or current_time(spec, datetime.now(UTC)))


@refusals_are_the_users()
def check(
    spec: JobSpec,
    run_id: str,
    fresh: bool = False,
    tick: Tick | None = None,
    access: bool = True,
    trial: bool = False,
) -> Checked:
    """Check the model, the input and the output; raises UserError. Writes nothing.

    `run_id` is the id of a new run; a resumed run keeps its own id. `fresh` ignores what an earlier run of
    batchinfer left in the output. `spec` has its variables filled in for `tick`; None is a job that runs once.
    `access`: see `require_model`. `trial`: the output is that of a trial, which replaces an earlier one of any job.
    """
    for uri in (spec.input.uri, spec.output.uri):
        storage_for(uri, spec.storage)
    facts = require_model(spec, access)
    require_apart(spec)
    spec = absolute(spec)
    require_lasting(spec)
    layout = Layout(spec.output.uri, spec.storage)
    require_own(layout, thorough=fresh or trial)
    require_room_for_choices(spec, facts.folder)
    require_engine_arguments(spec)
    # Compiles the spec's own template.
    chat_template(facts.folder, spec.prompt)
    if spec.model.source != SCRIPTED:
        require_grammar(spec.output, facts.folder)
        if not is_remote(facts.location):
            # A model in a store has its chat template there: the replica looks, once it has the model.
            reasoning_parser(spec, facts.folder)
    columns = needed_columns(spec)
    old = None if trial else find_manifest(layout)
    committed = set() if trial else committed_shards(layout)
    if old is None and committed:
        raise OutputError(
            f"{layout.root} holds results without {MANIFEST[1:]}, which says what they are",
            "choose another output.uri, or move the old results away",
        )
    resumed = False
    fingerprint = Fingerprint(run_id=run_id, spec=shaping(spec))
    choice = None
    if tick is not None:
        require_same_tick(old, tick, layout)
        fingerprint = fingerprint.model_copy(update={"job": spec.name, "tick": tick.name})
        choice = FileChoice.of(spec, tick, layout)
    if old is not None and not fresh:
        try:
            require_same_spec(old, spec, layout)
            require_same_input(old, spec)
            resumed = True
        except UserError:
            # A run without a committed shard has nothing to lose, so it begins again with today's spec and input.
            if committed:
                raise
    if resumed:
        assert old is not None
        manifest = old
    else:
        manifest = build_manifest(spec, columns, fingerprint, choice)
        committed = set()
    require_files_apart(manifest, layout)
    layout.storage.require_writable(layout.root)
    return Checked(spec, facts, layout, manifest, frozenset(committed), resumed, choice)


def find_manifest(layout: Layout) -> Manifest | None:
    """The manifest of the run at `layout`, None if there is no run."""
    uri = layout.manifest
    if layout.storage.stat(uri) is None:
        return None
    with reading(uri, "restore it, or choose another output.uri: it says which rows each result belongs to"):
        return from_parquet(layout.storage.read(uri))


@refusals_are_the_users()
def open_run(uri: str, overrides: Sequence[str] = ()) -> tuple[Layout, Manifest, JobSpec]:
    """The run at `uri`, opened first with the environment's storage settings, then with those of the run's spec."""
    layout = Layout(normal_uri(uri))
    manifest = find_manifest(layout)
    if manifest is None:
        raise OutputError(f"there is no run at {uri}", "give the output.uri of a job that was run")
    place = layout.spec
    if layout.storage.stat(place) is None:
        raise OutputError(
            f"{place} is gone, which says how the run was made", "restore it, or run the job again: it is written anew"
        )
    with reading(place, "move it away and run the job again: it is written anew"):
        text = layout.storage.read(place).decode()
    spec = absolute(parse(text, place, overrides))
    return Layout(layout.root, spec.storage), manifest, spec


def shaping(spec: JobSpec) -> dict[str, Any]:
    """The part of the spec that shapes the results: what a resume may not change."""
    values = spec.model_dump(mode="json")
    for key in _FREE_KEYS:
        values.pop(key)
    # These keys say which files are read, and a resume reads the files of the manifest.
    for key in ("incremental", "ignore", "on_bad_file", "on_bad_row"):
        values["input"].pop(key)
    # The schema of the class is there, and says what the answers are.
    values["output"].pop("model")
    # A key that is not set, and one that a run of an earlier version did not have, are the same.
    given = spec.input.model_dump(mode="json", exclude_defaults=True)
    for key in ("cast", "csv", "where", "limit", "sample"):
        if key not in given:
            values["input"].pop(key)
    for key, default in (("too_long", "error"), ("allow_special_tokens", False)):
        if values["prompt"][key] == default:
            values["prompt"].pop(key)
    # Nor do they have these keys, which change nothing unless they are set.
    for section, keys in _LATER_KEYS.items():
        for key in keys:
            place = values[section] if section else values
            if not place[key] or place[key] == EmbedSpec().model_dump():
                place.pop(key)
    values["engine"] = {key: values["engine"][key] for key in _SHAPING_ENGINE_KEYS} | values["engine"]["extra"]
    return values


def require_same_spec(manifest: Manifest, spec: JobSpec, layout: Layout) -> None:
    """Refuse to put results of one spec beside those of another."""
    changed = changes_of_spec(manifest, spec)
    if changed:
        raise OutputError(
            f"{layout.root} belongs to another spec:\n" + "\n".join(f"  {change}" for change in changed),
            "choose another output.uri, or give its results up with --fresh",
        )


def changes_of_spec(manifest: Manifest, spec: JobSpec) -> list[str]:
    """One line for each key that shapes results and differs from the spec that the run began with."""
    before, now = flat(manifest.fingerprint.spec), flat(shaping(spec))
    written = flat(spec.model_dump(mode="json", exclude_unset=True))
    changed = [
        key
        for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key) and (_has(before, key) or _has(written, key))
    ]
    return [f"{key}: {before.get(key)!r:.80} then, {now.get(key)!r:.80} now" for key in changed]


def _has(flat: Mapping[str, Any], key: str) -> bool:
    """Whether the key, one of its parents or one of its parts is there. A run of an earlier version lacks the keys that
    came later, and a default does not keep such a run from being resumed."""
    parts = key.split(".")
    above = (".".join(parts[:count]) for count in range(1, len(parts) + 1))
    return any(flat.get(one, {}) != {} for one in above) or any(one.startswith(f"{key}.") for one in flat)


def require_same_input(manifest: Manifest, spec: JobSpec) -> None:
    """Refuse to resume over other files than those that were cut into shards."""
    partly = spec.input.incremental is not None
    entries = input_entries(spec.input.uri, spec.input.format, spec.storage, partly, spec.input.ignore)
    now = {entry.uri: entry.tag for entry in entries}
    before = manifest.files
    lines = [f"  {uri} is gone" for uri in before if uri not in now]
    lines += [f"  {uri} has changed" for uri, tag in before.items() if uri in now and now[uri] != tag]
    if not partly:
        known = {*before, *manifest.empty_files, *(uri for uri, _ in manifest.skipped)}
        lines += [f"  {uri} is new" for uri in now if uri not in known]
    if lines:
        more = f"\n  and {len(lines) - 10} more" if len(lines) > 10 else ""
        raise InputError(
            "the input is not the one that this output was begun with:\n" + "\n".join(lines[:10]) + more,
            "put it back, choose another output.uri, or begin anew with --fresh",
        )


def flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """The values of a spec by their keys, as in `prompt.template`."""
    if isinstance(value, Mapping) and value:
        return {
            k: v
            for key, inner in value.items()
            for k, v in flat(inner, f"{prefix}.{key}" if prefix else str(key)).items()
        }
    return {prefix: value}


def require_apart(spec: JobSpec) -> None:
    """An output inside the input would be read as input by the next run, and the other way round."""
    uri = spec.input.uri
    # An output may lie beside an input file, but not where a pattern could match it next time.
    source = fixed_part(normal_uri(uri)) if is_glob(uri, spec.storage) else normal_uri(uri)
    target = normal_uri(spec.output.uri)
    written = [(source, folder, "input.uri lies where output.uri is written") for folder in Layout(target).folders]
    for inner, outer, message in ((target, source, "output.uri lies inside input.uri"), *written):
        if join(inner, "").startswith(join(outer, "")):
            raise OutputError(f"{message}: {target} and {source}", "give the output a folder of its own")


def require_files_apart(manifest: Manifest, layout: Layout) -> None:
    """Refuse input files that lie where the run writes: a link may lead there, and the file would change while read."""
    for uri in (*manifest.files, *manifest.empty_files):
        if any(normal_uri(uri).startswith(join(folder, "")) for folder in layout.folders):
            raise OutputError(
                f"the input file {uri} lies where output.uri is written", "give the output a folder of its own"
            )


def require_lasting(spec: JobSpec) -> None:
    """Refuse an output in a job's working_dir, which Ray deletes after the job."""
    if "/runtime_resources/working_dir_files/" in spec.output.uri:
        raise OutputError(
            f"output.uri lies in the job's working_dir, which Ray deletes after the job: {spec.output.uri}",
            "give an absolute path on storage that every node has, or s3://bucket/...",
        )


def require_model(spec: JobSpec, access: bool = True) -> ModelFacts:
    """Check that the model exists and can run, before an engine starts. Raises UserError.

    `access` also requires that a repository can be downloaded from here; a plan needs the model's facts only.
    """
    facts = model_facts(spec.model, spec.storage)
    _require_engine_support(facts)
    _require_head(spec, facts)
    _require_known_tokens(spec, facts)
    if facts.shape is not None:
        require_consistent(spec, facts.shape, source_of(spec, facts.name, facts.entry, facts.quantization))
    if is_remote(facts.location) or os.path.isdir(facts.location):
        storage = storage_for(facts.location, spec.storage)
        names = storage.names(facts.location)
        _require_model_folder(spec, facts.location, names, lambda name: storage.read(join(facts.location, name)))
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


def _require_head(spec: JobSpec, facts: ModelFacts) -> None:
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
    sampling, size = spec.sampling, facts.shape.vocab_size
    given: dict[str, Collection[int]] = {
        "stop_token_ids": sampling.stop_token_ids or (),
        "allowed_token_ids": sampling.allowed_token_ids or (),
        "logit_bias": sampling.logit_bias or {},
    }
    for key, ids in given.items():
        unknown = sorted(token for token in ids if not 0 <= token < size)
        if unknown:
            raise SpecError(
                f"sampling.{key} names token {unknown[0]}, and {facts.name} has tokens 0 to {size - 1}",
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
