"""Whether a run goes on as it was begun: the keys that shape its results, and the files that it was cut from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from batchinfer.errors import InputError, OutputError
from batchinfer.input import input_entries
from batchinfer.input.manifest import Manifest
from batchinfer.jobspec import EmbedSpec, JobSpec
from batchinfer.rundir.paths import Layout

_FREE_KEYS = ("name", "resources", "limits", "schedule", "storage", "labels")
"""Keys that may change between the runs of one output: they shape no result."""


_SHAPING_ENGINE_KEYS = ("max_model_len", "kv_cache_dtype", "tokenizer", "load_format", "seed", "scripted")


_LATER_KEYS: dict[str, tuple[str, ...]] = {
    "": ("embed",),
    "prompt": ("query",),
    "output": ("multi_label", "confidence", "abstain_below", "embedding_type"),
}
"""Keys by their section that runs of earlier versions lack."""


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
