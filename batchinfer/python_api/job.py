"""A job as an object: the keys of a spec, and the use cases of the commands."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import html
import os
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import yaml
from pydantic import BaseModel

from batchinfer.errors import InputError, SpecError, UserError
from batchinfer.jobspec import (
    CacheSpec,
    ChunkSpec,
    CombinePrompt,
    EmbedSpec,
    EngineSpec,
    EvaluateSpec,
    InputSpec,
    JobSpec,
    LimitsSpec,
    LineageSpec,
    ModelSpec,
    NotifySpec,
    OutputSpec,
    PromptSpec,
    ReasoningSpec,
    ReduceSpec,
    ResourcesSpec,
    SamplingSpec,
    ScheduleSpec,
    ShardsSpec,
    StepSpec,
    StoreSpec,
    from_keys,
    load,
    parse,
)
from batchinfer.jobspec.base import Keys, keys_of
from batchinfer.jobspec.python_classes import schema_of
from batchinfer.python_api.keys import (
    CacheKeys,
    ChunkKeys,
    CombinePromptKeys,
    EmbedKeys,
    EngineKeys,
    EvaluateKeys,
    InputKeys,
    LimitsKeys,
    LineageKeys,
    ModelKeys,
    NotifyKeys,
    OutputKeys,
    PromptKeys,
    ReasoningKeys,
    ReduceKeys,
    ResourcesKeys,
    SamplingKeys,
    ScheduleKeys,
    ShardsKeys,
    StepKeys,
    StoreKeys,
)
from batchinfer.temporary import temporary_folder

if TYPE_CHECKING:
    from batchinfer.python_api.data import Data
    from batchinfer.python_api.run import Run
    from batchinfer.python_api.shown import JobPlan, JobTry

_ANYWHERE = "(given when the job runs)"
"""Stands for a place that a job need not name: `run` takes the rows and the output as arguments."""

_PLACES = {"input.uri": _ANYWHERE, "output.uri": _ANYWHERE}


class Job:
    """What a spec says: which prompt and model, and which shape the answers have.

    Each keyword is a key of the spec, as a dictionary or as a model (`batchinfer.SamplingSpec(max_tokens=8)`). Short
    forms: `model` and `prompt` may be texts, the model's source and the prompt's template; `id_column` is
    `input.id_column`; `choices` is `output.choices`; `output_schema`, a pydantic class or a JSON Schema, makes a typed
    column of each key of the answer. `input.uri` and `output.uri` may be left to `run`.
    """

    def __init__(
        self,
        *,
        model: str | ModelSpec | ModelKeys,
        prompt: str | PromptSpec | PromptKeys | None = None,
        steps: Sequence[StepSpec | StepKeys] | None = None,
        name: str = "job",
        task: Literal["generate", "embed", "classify", "score"] | None = None,
        id_column: str | None = None,
        choices: Sequence[str] | Mapping[str, str] | None = None,
        output_schema: type[BaseModel] | Mapping[str, Any] | None = None,
        input: InputSpec | InputKeys | None = None,  # noqa: A002 # the spec's key
        chunk: ChunkSpec | ChunkKeys | None = None,
        combine: Literal["first", "list", "majority", "max_confidence"]
        | CombinePrompt
        | CombinePromptKeys
        | None = None,
        reduce: ReduceSpec | ReduceKeys | None = None,
        dedupe: bool | None = None,
        cache: CacheSpec | CacheKeys | None = None,
        embed: EmbedSpec | EmbedKeys | None = None,
        sampling: SamplingSpec | SamplingKeys | None = None,
        sampling_column: str | None = None,
        reasoning: ReasoningSpec | ReasoningKeys | None = None,
        output: OutputSpec | OutputKeys | None = None,
        engine: EngineSpec | EngineKeys | None = None,
        resources: ResourcesSpec | ResourcesKeys | None = None,
        shards: ShardsSpec | ShardsKeys | None = None,
        limits: LimitsSpec | LimitsKeys | None = None,
        schedule: ScheduleSpec | ScheduleKeys | None = None,
        notify: NotifySpec | NotifyKeys | None = None,
        lineage: LineageSpec | LineageKeys | None = None,
        evaluate: EvaluateSpec | EvaluateKeys | None = None,
        storage: Mapping[str, StoreSpec | StoreKeys] | None = None,
        labels: Mapping[str, str] | None = None,
    ) -> None:
        given: dict[str, Any] = {
            "name": name,
            "task": task,
            "model": {"source": model} if isinstance(model, str) else model,
            "input": input,
            "prompt": {"template": prompt} if isinstance(prompt, str) else prompt,
            "steps": steps,
            "chunk": chunk,
            "combine": combine,
            "reduce": reduce,
            "dedupe": dedupe,
            "cache": cache,
            "embed": embed,
            "sampling": sampling,
            "sampling_column": sampling_column,
            "reasoning": reasoning,
            "output": output,
            "engine": engine,
            "resources": resources,
            "shards": shards,
            "limits": limits,
            "schedule": schedule,
            "notify": notify,
            "lineage": lineage,
            "evaluate": evaluate,
            "storage": storage,
            "labels": labels,
        }
        keys = {key: _plain(value) for key, value in given.items() if value is not None}
        if id_column is not None:
            _put(keys, "input", "id_column", id_column, "id_column")
        if choices is not None:
            _put(keys, "output", "choices", _plain(choices), "choices")
        if output_schema is not None:
            _put(keys, "output", "json_schema", _schema_of(output_schema), "output_schema")
            answers = keys["output"]
            # With another column's name, or several answers a row, the answer is one value.
            whole = "column" in answers or keys.get("sampling", {}).get("n", 1) != 1
            answers.setdefault("as", "struct" if whole else "columns")
        self._keys = _kept(from_keys(_with_places(keys), "Job"))

    @classmethod
    def from_yaml(cls, source: str | os.PathLike[str]) -> Job:
        """The job of a spec: the path of a file, or YAML itself if it has more than one line. Raises SpecError."""
        text = os.fspath(source)
        spec = parse(text, otherwise=_PLACES) if "\n" in text else load(Path(text), otherwise=_PLACES)
        return cls._of(spec)

    @classmethod
    def _of(cls, spec: JobSpec) -> Job:
        made = cls.__new__(cls)
        made._keys = _kept(spec)
        return made

    def to_yaml(self, path: str | os.PathLike[str] | None = None) -> str:
        """The job as YAML, which `from_yaml` reads back to an equal job; also written to `path`, if there is one."""
        text: str = yaml.safe_dump(self._keys, sort_keys=False, allow_unicode=True)
        if path is not None:
            Path(path).write_text(text, encoding="utf-8")
        return text

    @property
    def keys(self) -> dict[str, Any]:
        """The keys that are set, as the spec has them."""
        return copy.deepcopy(self._keys)

    @property
    def name(self) -> str:
        """The job's name."""
        return str(self._keys["name"])

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Job) and self._keys == other._keys

    def __hash__(self) -> int:
        return hash(self.to_yaml())

    def __str__(self) -> str:
        return self.to_yaml()

    def __repr__(self) -> str:
        return f"<Job {self.name!r}: {self._keys['model']['source']}>"

    def _repr_html_(self) -> str:
        text = html.escape(self.to_yaml())
        return f"<details open><summary><b>{self.name}</b></summary><pre>{text}</pre></details>"

    # The use cases

    def validate(self, data: Data | None = None, output: str | os.PathLike[str] | None = None) -> None:
        """Check model, rows, ids and output, and start nothing. Raises UserError."""
        from batchinfer.execution import preview

        with self._looking(data, output) as spec:
            preview.validate(spec)

    def plan(
        self,
        data: Data | None = None,
        output: str | os.PathLike[str] | None = None,
        *,
        address: str | None = None,
        gpus: int | None = None,
    ) -> JobPlan:
        """What `run` would run, how long and at what cost; writes nothing to the output.

        Where `resources.accelerator` names a GPU, no Ray is started. `gpus`: suppose so many of them.
        """
        from batchinfer.execution import preview
        from batchinfer.python_api.session import attended
        from batchinfer.python_api.shown import JobPlan

        with self._looking(data, output) as spec, attended(spec.storage, progress=False) as listener:
            if gpus is not None:
                return JobPlan(preview.suppose(spec, preview.Supposed(gpus), listener), spec.limits)
            return JobPlan(preview.plan(spec, listener, _address(address)), spec.limits)

    def try_(
        self,
        data: Data | None = None,
        n: int = 20,
        *,
        ids: Sequence[str] = (),
        output: str | os.PathLike[str] | None = None,
        address: str | None = None,
        progress: bool | None = None,
    ) -> JobTry:
        """Run `n` rows, spread over the input, or those with these ids, through the whole job; no run is begun."""
        from batchinfer.execution import runner
        from batchinfer.python_api.session import attended
        from batchinfer.python_api.shown import JobTry

        with self._looking(data, output) as spec, attended(spec.storage, progress) as listener:
            return JobTry(runner.try_rows(spec, listener, n, ids, _address(address)), spec.limits)

    async def try_async(
        self,
        data: Data | None = None,
        n: int = 20,
        *,
        ids: Sequence[str] = (),
        output: str | os.PathLike[str] | None = None,
        address: str | None = None,
        progress: bool | None = None,
    ) -> JobTry:
        """`try_` in an event loop."""
        return await asyncio.to_thread(self.try_, data, n, ids=ids, output=output, address=address, progress=progress)

    def run(
        self,
        data: Data | None = None,
        output: str | os.PathLike[str] | None = None,
        *,
        address: str | None = None,
        wait: bool = True,
        fresh: bool = False,
        at: datetime | None = None,
        progress: bool | None = None,
    ) -> Run:
        """Run the job over `data` (`input.uri` if None), or resume an earlier run, and return it.

        Rows in memory are written beside the output once. The same call again goes on where the run stopped; other rows
        are refused with what is different. `address`: a Ray cluster; the connection that this process has comes first.
        `wait=False` returns at once, and the run goes on in a thread of this process. `fresh`: give up what an earlier
        run left. `at`: the time that a recurring job runs for. `progress`: show a bar; None: where a person looks.

        Raises Stopped, TooManyFailedRows and every other error of `batchinfer.errors`; what is committed is kept.
        """
        from batchinfer.execution.checks import resolved
        from batchinfer.python_api.kept_rows import remove_other_rows
        from batchinfer.python_api.run import OwnRun, Run
        from batchinfer.python_api.session import attended
        from batchinfer.rundir.paths import Layout
        from batchinfer.scheduling import recurring

        spec = self._spec(data, self._place(output), fresh)

        def work() -> Any:
            with attended(spec.storage, progress if wait else progress or False) as listener:
                made = recurring.run(spec, listener, _address(address), fresh, at)
                remove_other_rows(Layout(made.output, spec.storage), spec.input.uri)
                return made

        whole, _ = resolved(spec, at)
        begun = OwnRun(work)
        if wait:
            # In the caller's thread, so that Ctrl-C lets the shards in flight end.
            begun.run()
        else:
            begun.start()
        made = Run(whole.output.uri, spec.storage, begun)
        return made.wait() if wait else made

    async def run_async(
        self,
        data: Data | None = None,
        output: str | os.PathLike[str] | None = None,
        *,
        address: str | None = None,
        fresh: bool = False,
        at: datetime | None = None,
        progress: bool | None = None,
    ) -> Run:
        """`run` in an event loop. If the task is cancelled, the shards in flight end and the run stops."""
        starting = asyncio.ensure_future(
            asyncio.to_thread(
                self.run, data, output, address=address, wait=False, fresh=fresh, at=at, progress=progress
            )
        )
        try:
            begun = await asyncio.shield(starting)
        except asyncio.CancelledError:
            # The thread goes on, and would begin a run that nobody stops.
            await asyncio.to_thread((await starting).stop)
            raise
        return await begun.wait_async()

    def submit(
        self,
        address: str,
        data: Data | None = None,
        output: str | os.PathLike[str] | None = None,
        *,
        shared_filesystem: bool = False,
        with_package: bool = False,
    ) -> Run:
        """Send the job to the cluster whose dashboard is at `address`, unless it runs there already.

        Rows in memory are written beside the output, which the cluster must reach. See `batchinfer submit`.
        """
        from batchinfer.deploy import ray_jobs
        from batchinfer.execution.checks import resolved
        from batchinfer.python_api.run import Run, Submitted
        from batchinfer.python_api.session import attended

        spec = self._spec(data, self._place(output))
        client = ray_jobs.connect(address)
        with attended(spec.storage, progress=False) as listener:
            sent = ray_jobs.submit(spec, client, listener, shared_filesystem, with_package)
        return Run(resolved(spec, None)[0].output.uri, spec.storage, submitted=Submitted(client, sent.id))

    # Places

    def spec_for(self, data: Data | None = None, output: str | os.PathLike[str] | None = None) -> JobSpec:
        """The whole spec of a run over `data`; rows in memory are written beside the output."""
        return self._spec(data, self._place(output))

    def _place(self, output: str | os.PathLike[str] | None) -> str:
        place = os.fspath(output) if output is not None else self._keys.get("output", {}).get("uri")
        if place is None:
            raise UserError("the job does not say where the results go", 'pass output="runs/tickets", or an s3:// URI')
        return str(place)

    def _spec(self, data: Data | None, output: str, fresh: bool = False) -> JobSpec:
        """The whole spec; rows in memory are written beside the output, or found there."""
        from batchinfer.python_api.data import row_stream
        from batchinfer.python_api.kept_rows import rows_beside
        from batchinfer.rundir.paths import Layout
        from batchinfer.storage import normal_uri

        place = os.fspath(data) if isinstance(data, str | os.PathLike) else None
        spec = self._at(place, output)
        if data is None or place is not None:
            if spec.input.uri == _ANYWHERE:
                raise InputError("the job has no rows", "give them to the call, or set input.uri")
            return spec
        if spec.repeats:
            raise SpecError(
                "a recurring job reads new files at a location, and these rows are in memory",
                "set input.uri, or leave schedule and input.incremental out",
            )
        return _reading(spec, rows_beside(row_stream(data), Layout(normal_uri(output), spec.storage), fresh))

    def _at(self, uri: str | None, output: str) -> JobSpec:
        keys = self.keys
        if uri is not None:
            keys.setdefault("input", {})["uri"] = uri
        keys.setdefault("output", {})["uri"] = output
        return from_keys(_with_places(keys), "Job")

    @contextlib.contextmanager
    def _looking(self, data: Data | None, output: str | os.PathLike[str] | None) -> Iterator[JobSpec]:
        """The spec for a use case that begins no run: rows in memory, and an output without a name, are temporary."""
        from batchinfer.python_api.data import row_stream
        from batchinfer.python_api.kept_rows import difference, newest_rows, write_rows
        from batchinfer.rundir.paths import Layout
        from batchinfer.storage import LocalStorage, normal_uri

        with temporary_folder("rows") as folder:
            named = output is not None or "uri" in self._keys.get("output", {})
            place = self._place(output) if named else str(folder / "out")
            if data is None or isinstance(data, str | os.PathLike):
                yield self._spec(data, place)
                return
            spec = self._at(None, place)
            stream = row_stream(data)
            layout = Layout(normal_uri(place), spec.storage)
            kept = newest_rows(layout) if named and stream.again else None
            # A trial of the rows of a run counts for that run's plan.
            if kept is None or difference(stream, kept, layout.storage):
                kept = write_rows(stream, LocalStorage(), str(folder / "rows"))
            yield _reading(spec, kept.uri)


def _reading(spec: JobSpec, uri: str) -> JobSpec:
    """The spec with rows that were in memory, which are Parquet now."""
    from batchinfer.jobspec import CsvSpec

    changed = {"uri": uri, "format": "parquet", "csv": CsvSpec(), "on_bad_row": "fail"}
    known = {key: value for key, value in changed.items() if key in InputSpec.model_fields}
    return spec.model_copy(update={"input": spec.input.model_copy(update=known)})


def _address(address: str | None) -> str | None:
    """As the commands: the argument, otherwise the environment."""
    return address or os.environ.get("RAY_ADDRESS") or None


def _plain(value: Any) -> Any:
    """The value with dictionaries for models and lists for sequences, as YAML has them."""
    if isinstance(value, Keys):
        return value.model_dump(mode="json", exclude_unset=True)
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return [_plain(inner) for inner in value]
    return value


def _put(keys: dict[str, Any], section: str, key: str, value: Any, short: str) -> None:
    """Set a key by its short form. Raises SpecError if the section says something else."""
    inside = keys.setdefault(section, {})
    if inside.get(key, value) != value:
        raise SpecError(f"{short} and {section}.{key} say two different things", "leave one of the two out")
    inside[key] = value


def _schema_of(given: type[BaseModel] | Mapping[str, Any]) -> dict[str, Any]:
    if isinstance(given, Mapping):
        return dict(given)
    try:
        return schema_of(given, f"output_schema {given!r:.200}")
    except ValueError as error:
        raise SpecError(str(error), "give a pydantic class of plain types") from None


def _with_places(keys: Mapping[str, Any]) -> dict[str, Any]:
    """The keys with something for the places that are named only when the job runs."""
    whole = dict(keys)
    for section in ("input", "output"):
        inside = whole.get(section, {})
        if isinstance(inside, Mapping):
            whole[section] = {"uri": _ANYWHERE, **inside}
    return whole


def _kept(spec: JobSpec) -> dict[str, Any]:
    """The keys of a spec that are set, without the places that stand for none."""
    keys = spec.model_dump(mode="json", exclude_unset=True)
    for section in ("input", "output"):
        if keys[section].get("uri") == _ANYWHERE:
            del keys[section]["uri"]
        if not keys[section]:
            del keys[section]
    return {key: keys[key] for key in keys_of(JobSpec) if key in keys}
