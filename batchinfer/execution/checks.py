"""Everything that can be known to be wrong before anything starts or is written."""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from batchinfer.engine.grammars import require_grammar
from batchinfer.engine.installed import require_engine_arguments
from batchinfer.errors import ModelError, OutputError, SpecError, StoreRefused, UserError
from batchinfer.execution.lineage import require_client
from batchinfer.execution.model_checks import require_model
from batchinfer.execution.publish import require_publishable
from batchinfer.execution.row_chunks import require_room_to_combine
from batchinfer.execution.same_job import require_same_input, require_same_spec, shaping
from batchinfer.execution.sample_prompts import require_room_for_choices
from batchinfer.execution.token_counter import UNLIMITED, chat_template, counter, longest_sequence
from batchinfer.input import build_manifest
from batchinfer.input.files import fixed_part, is_glob
from batchinfer.input.manifest import Fingerprint, Manifest, from_parquet
from batchinfer.jobspec import SCRIPTED, CacheSpec, JobSpec, ModelSpec, PromptSpec, PublishSpec, parse
from batchinfer.jobspec.cron import Tick
from batchinfer.jobspec.schedule import current_time, resolve
from batchinfer.jobspec.templates import is_template
from batchinfer.model.download import is_remote
from batchinfer.model.resolve import ModelFacts
from batchinfer.model.thinking import reasoning_parser
from batchinfer.prompting.prompts import needed_columns
from batchinfer.prompting.row_sampling import require_sampling_columns
from batchinfer.rundir.commit import committed_shards
from batchinfer.rundir.groups import require_groups
from batchinfer.rundir.ownership import require_own
from batchinfer.rundir.past_runs import FileChoice, require_same_tick
from batchinfer.rundir.paths import MANIFEST, Layout, reading
from batchinfer.storage import impatient, join, local_path, normal_uri, storage_for


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
    before: tuple[str | None, int] = (None, 0)
    """The tag of the manifest that was found in the output, and how many shards its run had committed."""


def absolute(spec: JobSpec) -> JobSpec:
    """The spec with local places made absolute: workers and later commands run in other folders."""
    return spec.model_copy(
        update={
            "model": _absolute_model(spec.model),
            "input": spec.input
            if spec.input.format == "iceberg"
            else spec.input.model_copy(update={"uri": normal_uri(spec.input.uri)}),
            "output": spec.output.model_copy(
                update={"uri": normal_uri(spec.output.uri), "publish": _absolute_publish(spec.output.publish)}
            ),
            "cache": None if spec.cache is None else CacheSpec(uri=normal_uri(spec.cache.uri)),
            **_with_chat_templates(spec),
        }
    )


def _absolute_publish(publish: PublishSpec | None) -> PublishSpec | None:
    if publish is None or publish.to != "delta":
        return publish
    return publish.model_copy(update={"table": normal_uri(publish.table)})


def _with_chat_templates(spec: JobSpec) -> dict[str, Any]:
    if spec.steps is None:
        return {"prompt": _with_chat_template(spec.prompt)}
    steps = [step.model_copy(update={"prompt": _with_chat_template(step.prompt)}) for step in spec.steps]
    return {"steps": tuple(steps)}


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
    for uri in (spec.input.uri, spec.output.uri, *(() if spec.cache is None else (spec.cache.uri,))):
        storage_for(uri, spec.storage)
    require_client(spec)
    facts = require_model(spec, access)
    require_apart(spec)
    spec = absolute(spec)
    require_lasting(spec)
    layout = Layout(spec.output.uri, spec.storage)
    require_own(layout, thorough=fresh or trial)
    for job in spec.step_jobs:
        require_room_for_choices(job, facts.folder)
    require_engine_arguments(spec)
    # Compiles the spec's own template.
    for job in spec.step_jobs:
        chat_template(facts.folder, job.prompt)
        if spec.model.source != SCRIPTED:
            require_grammar(job.output, facts.folder)
    if spec.model.source != SCRIPTED and not is_remote(facts.location):
        # A model in a store has its chat template there: the replica looks, once it has the model.
        reasoning_parser(spec.step_jobs[0], facts.folder)
    if spec.chunk is not None and spec.model.source != SCRIPTED and not is_remote(facts.location):
        _require_tokenizer(spec, facts)
    columns = needed_columns(spec)
    # Before the manifest is read: if another run writes it meanwhile, its tag is no longer this one.
    found = layout.storage.stat(layout.manifest)
    old = None if trial else find_manifest(layout)
    committed = set() if trial else committed_shards(layout)
    if old is None and committed:
        raise OutputError(
            f"{layout.root} holds results without {MANIFEST[1:]}, which says what they are",
            "choose another output.uri, or move the old results away",
        )
    before = (None if found is None else found.tag, len(committed))
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
            require_groups(layout, old)
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
    require_sampling_columns(spec, manifest.schema)
    require_files_apart(manifest, layout)
    require_publishable(spec, manifest)
    layout.storage.require_writable(layout.root)
    if spec.cache is not None:
        storage_for(spec.cache.uri, spec.storage).require_writable(spec.cache.uri, "cache.uri")
    return Checked(spec, facts, layout, manifest, frozenset(committed), resumed, choice, before)


def _require_tokenizer(spec: JobSpec, facts: ModelFacts) -> None:
    """Texts are cut by the tokens of the model, and answers combined: both are counted outside the engine."""
    counters = [counter(facts.folder, job) for job in spec.step_jobs]
    # Without a folder the model is downloaded for the run, and the replica looks.
    if facts.folder is not None and not counters[0].exact:
        raise ModelError(
            f"{facts.name} has no tokenizer.json here, and chunk cuts texts by its tokens",
            "download the model first, or save its fast tokenizer into its folder",
        )
    require_room_to_combine(spec, counters[-1], longest_sequence(spec, facts.context) or UNLIMITED)


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
            f"{place} is gone, which describes how the run was made",
            "restore it, or run the job again, which writes it again",
        )
    with reading(place, "move it away and run the job again, which writes it again"):
        text = layout.storage.read(place).decode()
    spec = absolute(parse(text, place, overrides))
    return Layout(layout.root, spec.storage), manifest, spec


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
    if spec.cache is not None:
        _require_cache_apart(normal_uri(spec.cache.uri), source, target)


def _require_cache_apart(cache: str, source: str, target: str) -> None:
    for key, other in (("input.uri", source), ("output.uri", target)):
        for inner, outer in ((cache, other), (other, cache)):
            if join(inner, "").startswith(join(outer, "")):
                raise OutputError(f"cache.uri and {key} lie in one another: {cache} and {other}", "put the cache apart")


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
