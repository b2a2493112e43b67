"""Everything that can be known to be wrong before anything starts or is written."""

from __future__ import annotations

import contextlib
import difflib
import os
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from batchinfer.commit import committed_shards
from batchinfer.engine import SCRIPTED
from batchinfer.errors import InputError, ModelError, OutputError, StoreRefused, UserError
from batchinfer.job import Layout
from batchinfer.model_folder import is_remote
from batchinfer.prompts import needed_columns
from batchinfer.shards import Manifest, from_parquet
from batchinfer.source import build_manifest, input_entries
from batchinfer.source.files import fixed_part, is_glob
from batchinfer.source.formats import first_line
from batchinfer.spec import JobSpec
from batchinfer.storage import join, local_path, normal_uri, storage_for

_FREE_KEYS = ("name", "resources", "limits", "schedule", "storage")
"""Keys that may change between the runs of one output: they shape no result."""

_SHAPING_ENGINE_KEYS = ("max_model_len", "kv_cache_dtype", "tokenizer", "load_format", "seed", "scripted")


@dataclass(frozen=True, slots=True)
class Checked:
    """A spec that can run: with absolute places, its manifest, and what is committed of it already."""

    spec: JobSpec
    model_name: str
    layout: Layout
    manifest: Manifest
    committed: frozenset[int]
    resumed: bool


def absolute(spec: JobSpec) -> JobSpec:
    """The spec with local places made absolute: workers and later commands run in other folders."""
    source = spec.model.source
    return spec.model_copy(
        update={
            "model": spec.model.model_copy(
                update={
                    "source": normal_uri(source) if is_remote(source) or os.path.isdir(local_path(source)) else source
                }
            ),
            "input": spec.input.model_copy(update={"uri": normal_uri(spec.input.uri)}),
            "output": spec.output.model_copy(update={"uri": normal_uri(spec.output.uri)}),
        }
    )


@contextlib.contextmanager
def refusals_are_the_users() -> Iterator[None]:
    """Before a run begins, a store that refuses is a mistake of the spec or of the credentials."""
    try:
        yield
    except StoreRefused as error:
        raise UserError(error.message, error.remedy) from error


@refusals_are_the_users()
def check(spec: JobSpec, run_id: str, fresh: bool = False) -> Checked:
    """Look at the model, the input and the output; raises UserError. Writes nothing.

    `run_id` is for a run that begins; one that is resumed keeps its own.
    """
    model_name = spec.model.source
    for uri in (spec.input.uri, spec.output.uri):
        storage_for(uri, spec.storage)
    require_model(spec)
    require_apart(spec)
    spec = absolute(spec)
    layout = Layout(spec.output.uri, spec.storage)
    columns = needed_columns(spec)
    old = find_manifest(layout)
    committed = committed_shards(layout)
    if old is None and committed:
        raise OutputError(
            f"{layout.root} holds results without _run/manifest.parquet, which says what they are",
            "choose another output.uri, or move the old results away",
        )
    resumed = False
    if old is not None:
        try:
            require_same_spec(old, spec, layout)
            if not fresh:
                require_same_input(old, spec)
            resumed = not fresh
        except UserError:
            # A run without a committed shard has nothing to lose: it begins again as things are now.
            if committed:
                raise
    if resumed:
        assert old is not None
        manifest = old
    else:
        manifest = build_manifest(spec, columns, {"run_id": run_id, "spec": shaping(spec)})
        committed = set()
    layout.storage.require_writable(layout.root)
    return Checked(spec, model_name, layout, manifest, frozenset(committed), resumed)


def find_manifest(layout: Layout) -> Manifest | None:
    """The manifest of the run at `layout`, None if there is no run."""
    uri = layout.run("manifest.parquet")
    if layout.storage.stat(uri) is None:
        return None
    return from_parquet(layout.storage.read(uri))


def shaping(spec: JobSpec) -> dict[str, Any]:
    """The part of the spec that shapes the results: what a resume may not change."""
    values = spec.model_dump(mode="json")
    for key in _FREE_KEYS:
        values.pop(key)
    values["engine"] = {key: values["engine"][key] for key in _SHAPING_ENGINE_KEYS}
    return values


def require_same_spec(manifest: Manifest, spec: JobSpec, layout: Layout) -> None:
    """Refuse to put results of one spec beside those of another."""
    before, now = _flat(manifest.fingerprint["spec"]), _flat(shaping(spec))
    changed = [key for key in sorted(before.keys() | now.keys()) if before.get(key) != now.get(key)]
    if changed:
        shown = "\n".join(f"  {key}: {before.get(key)!r:.80} then, {now.get(key)!r:.80} now" for key in changed)
        raise OutputError(
            f"{layout.root} belongs to another spec:\n{shown}",
            "choose another output.uri, or delete that folder to give its results up",
        )


def require_same_input(manifest: Manifest, spec: JobSpec) -> None:
    """Refuse to resume over other files than those that were cut into shards."""
    now = {entry.uri: entry.tag for entry in input_entries(spec.input.uri, spec.input.format, spec.storage)}
    before = manifest.files
    lines = [f"  {uri} is gone" for uri in before if uri not in now]
    lines += [f"  {uri} has changed" for uri, tag in before.items() if uri in now and now[uri] != tag]
    lines += [f"  {uri} is new" for uri in now if uri not in before and uri not in manifest.empty_files]
    if lines:
        more = f"\n  and {len(lines) - 10} more" if len(lines) > 10 else ""
        raise InputError(
            "the input is not the one that this output was begun with:\n" + "\n".join(lines[:10]) + more,
            "put it back, choose another output.uri, or begin anew with --fresh",
        )


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(value, Mapping) and value:
        return {
            k: v
            for key, inner in value.items()
            for k, v in _flat(inner, f"{prefix}.{key}" if prefix else str(key)).items()
        }
    return {prefix: value}


def require_apart(spec: JobSpec) -> None:
    """An output inside the input would be read as input by the next run, and the other way round."""
    uri = spec.input.uri
    # A file has room for an output beside it; what a pattern may match next time has not.
    source = fixed_part(normal_uri(uri)) if is_glob(uri, spec.storage) else normal_uri(uri)
    target = normal_uri(spec.output.uri)
    for inner, outer, message in (
        (target, source, "output.uri lies inside input.uri"),
        (source, join(target, "data"), "input.uri lies inside the results of output.uri"),
    ):
        if join(inner, "").startswith(join(outer, "")):
            raise OutputError(f"{message}: {target} and {source}", "give the output a folder of its own")


def require_model(spec: JobSpec) -> None:
    """A model that cannot be found is found out here, not after the engine has started."""
    source = spec.model.source
    if source == SCRIPTED:
        return
    path = local_path(source)
    if is_remote(source):
        storage = storage_for(source, spec.storage)
        _require_model_folder(spec, source, storage.names(source), lambda name: storage.read(join(source, name)))
    elif os.path.isdir(path):
        _require_model_folder(spec, path, os.listdir(path), lambda name: Path(path, name).read_bytes())
    elif re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", source):
        _require_repository(source, spec.model.revision)
    else:
        parent = os.path.dirname(path)
        names = [os.path.join(parent, n) for n in os.listdir(parent)] if os.path.isdir(parent) else []
        near = difflib.get_close_matches(path, [n for n in names if os.path.isdir(n)], n=1)
        raise ModelError(
            f"unknown model {source!r}: neither a folder here nor a Hugging Face repository id",
            f"did you mean {near[0]}?" if near else "give a folder with config.json, or a name like org/model",
        )


def _require_model_folder(spec: JobSpec, path: str, names: Collection[str], read: Callable[[str], bytes]) -> None:
    """`names` are the files in the folder; `read` gives one of them."""
    if "config.json" not in names:
        raise ModelError(f"{path} has no config.json: it is not a model folder", "point model.source at the model")
    weights = any(name.endswith((".safetensors", ".bin", ".pt", ".gguf")) for name in names)
    if not weights and spec.engine.load_format != "dummy":
        raise ModelError(f"{path} has no weights (*.safetensors)", "download the model again, whole")
    template = "chat_template.jinja" in names
    if "tokenizer_config.json" in names and not template:
        template = b'"chat_template"' in read("tokenizer_config.json")
    if not template and (spec.prompt.chat or spec.prompt.messages_column is not None):
        key = "prompt.messages_column" if spec.prompt.messages_column is not None else "prompt.chat"
        raise ModelError(
            f"{key} needs a chat template, which {path} does not have", "use prompt.template or a chat model"
        )


def _require_repository(source: str, revision: str | None) -> None:
    # Slow to import, and needed for repositories only.
    from huggingface_hub import HfApi, try_to_load_from_cache
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError
    from huggingface_hub.utils import logging

    if isinstance(try_to_load_from_cache(source, "config.json", revision=revision), str):
        return
    logging.set_verbosity_error()
    try:
        HfApi().model_info(source, revision=revision, timeout=10)
    except GatedRepoError:
        raise ModelError(
            f"{source} is gated: its licence must be accepted",
            "accept it on its page, then set HF_TOKEN to a token that may read it",
        ) from None
    except RepositoryNotFoundError:
        raise ModelError(
            f"unknown model {source!r}: the hub has none of that name, or it is private",
            "check the name, or set HF_TOKEN",
        ) from None
    except HfHubHTTPError as error:
        raise ModelError(
            f"{source} cannot be looked up: {first_line(error)}", "check the name and the revision"
        ) from None
    except Exception as error:
        # No network: the client's transport errors have no common type.
        raise ModelError(
            f"unknown model {source!r}: neither a folder here nor in the hub's local cache, and the hub cannot "
            f"be reached ({first_line(error)})",
            "give a model folder, or run where the hub can be reached",
        ) from None
