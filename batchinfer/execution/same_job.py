"""Whether a run goes on as it was begun: the keys that shape its results, and the files that it was cut from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from batchinfer.errors import AnotherSpec, InputError
from batchinfer.input import input_entries
from batchinfer.input.manifest import Manifest
from batchinfer.jobspec import JobSpec
from batchinfer.rundir.paths import Layout
from batchinfer.storage import REQUESTS_AT_ONCE, Entry, Stores, storage_for

_FREE_KEYS = ("name", "resources", "limits", "schedule", "storage", "labels", "notify", "lineage", "cache")
"""Keys that may change between the runs of one output: they shape no result."""


_SHAPING_ENGINE_KEYS = ("max_model_len", "kv_cache_dtype", "tokenizer", "load_format", "seed", "scripted", "extra")
"""Keys of `engine` that shape results. The others say how fast an engine runs, and on how much memory."""


def shaping(spec: JobSpec) -> dict[str, Any]:
    """The part of the spec that shapes the results: what a resume may not change."""
    values = spec.model_dump(mode="json")
    for key in _FREE_KEYS:
        values.pop(key)
    values["dedupe"] = spec.reuses_answers
    # The rows that are published are those of the run, whatever the table.
    values["output"].pop("publish")
    # These keys say which files are read, and a resume reads the files of the manifest.
    for key in ("incremental", "ignore", "on_bad_file", "on_bad_row"):
        values["input"].pop(key)
    # The schema of the class is there, and says what the answers are.
    for answer in (values["output"], *(step["output"] for step in values["steps"] or ())):
        answer.pop("model")
    # The files beside the results are made of them, at the end of any session.
    values["output"].pop("format")
    values["engine"] = {key: values["engine"][key] for key in _SHAPING_ENGINE_KEYS}
    return values


def require_same_spec(manifest: Manifest, spec: JobSpec, layout: Layout) -> None:
    """Refuse to put results of one spec beside those of another."""
    changed = changes_of_spec(manifest, spec)
    if changed:
        raise AnotherSpec(
            f"{layout.root} belongs to another spec:\n" + "\n".join(f"  {change}" for change in changed),
            "choose another output.uri, or delete its results with --fresh",
        )


def changes_of_spec(manifest: Manifest, spec: JobSpec) -> list[str]:
    """One line for each key that shapes results and differs from the spec that the run began with."""
    changed = changed_keys(manifest, spec).items()
    return [f"{key}: {before!r:.80} then, {now!r:.80} now" for key, (before, now) in changed]


def changed_keys(manifest: Manifest, spec: JobSpec) -> dict[str, tuple[Any, Any]]:
    """The keys that shape results and differ from the spec that the run began with, each with both values.

    A run of an earlier version lacks the keys that came later: such a key has changed if it has no longer its default.
    """
    before, now = _flat(manifest.fingerprint.spec), _flat(shaping(spec))
    set_now = _flat(spec.model_dump(mode="json", exclude_defaults=True))
    return {
        key: (before.get(key), now.get(key))
        for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key) and (_has(before, key) or _has(set_now, key))
    }


def _has(flat: Mapping[str, Any], key: str) -> bool:
    """Whether the key, one of its parents or one of its parts is there."""
    parts = key.split(".")
    above = (".".join(parts[:count]) for count in range(1, len(parts) + 1))
    return any(one in flat for one in above) or any(one.startswith(f"{key}.") for one in flat)


def require_same_input(manifest: Manifest, spec: JobSpec) -> None:
    """Refuse to resume over other files than those that were cut into shards."""
    partly = spec.input.incremental is not None
    before = manifest.files
    if spec.input.is_table:
        # The version is pinned: what the table has got since is of no concern.
        partly, entries = True, _found_again(before, spec.storage)
    else:
        entries = input_entries(
            spec.input.uri, spec.input.format, spec.storage, partly, spec.input.ignore, spec.input.split
        )
    now = {entry.uri: entry.tag for entry in entries}
    lines = [f"  {uri} is gone" for uri in before if uri not in now]
    lines += [f"  {uri} has changed" for uri, tag in before.items() if uri in now and now[uri] != tag]
    if not partly:
        known = {*before, *manifest.empty_files, *(uri for uri, _ in manifest.skipped)}
        lines += [f"  {uri} is new" for uri in now if uri not in known]
    if lines:
        more = f"\n  and {len(lines) - 10} more" if len(lines) > 10 else ""
        raise InputError(
            "the input is not the one that this output was begun with:\n" + "\n".join(lines[:10]) + more,
            "put it back, choose another output.uri, or start over with --fresh",
        )


def _found_again(uris: Iterable[str], stores: Stores) -> list[Entry]:
    with ThreadPoolExecutor(REQUESTS_AT_ONCE) as pool:
        found = pool.map(lambda uri: storage_for(uri, stores).stat(uri), uris)
        return [entry for entry in found if entry is not None]


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """The values of a spec by their keys, as in `prompt.template` and `steps.0.name`; none for an empty mapping."""
    if isinstance(value, list | tuple) and value and all(isinstance(inner, Mapping) for inner in value):
        value = dict(enumerate(value))
    if isinstance(value, Mapping):
        return {
            k: v
            for key, inner in value.items()
            for k, v in _flat(inner, f"{prefix}.{key}" if prefix else str(key)).items()
        }
    return {prefix: value}
