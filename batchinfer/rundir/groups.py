"""The groups of `reduce` as a run keeps them: files of its own, which its manifest is cut over."""

from __future__ import annotations

from dataclasses import replace

from batchinfer.errors import OutputError
from batchinfer.input.manifest import Manifest
from batchinfer.rundir.ownership import overwrite
from batchinfer.rundir.paths import Layout
from batchinfer.storage import Entry, storage_for


def keep_groups(layout: Layout, manifest: Manifest) -> Manifest:
    """The manifest over copies of its files of groups in the run's folder; unchanged where it has no such files."""
    if manifest.temporary is None:
        return manifest
    kept: dict[str, Entry] = {}
    for number, made in enumerate(manifest.read_files):
        uri = layout.groups(number)
        overwrite(layout, uri, storage_for(made.uri).read(made.uri))
        entry = layout.storage.stat(uri)
        if entry is None:
            raise OutputError(f"{uri} is gone as soon as it was written", "run the same command again")
        kept[made.uri] = entry
    shards = [
        replace(shard, segments=tuple(replace(part, entry=kept[part.entry.uri]) for part in shard.segments))
        for shard in manifest.shards
    ]
    return replace(manifest, shards=tuple(shards), temporary=None)


def require_groups(layout: Layout, manifest: Manifest) -> None:
    """Raise OutputError if a file of groups of the run is not as it was: its rows would be other ones."""
    if manifest.sources is None or not manifest.shards:
        return
    now = {entry.uri: entry.tag for entry in layout.storage.list(layout.groups_folder)}
    for entry in manifest.read_files:
        if now.get(entry.uri) != entry.tag:
            what = "has changed" if entry.uri in now else "is gone"
            raise OutputError(
                f"{entry.uri}, which holds groups of this run, {what}", "put it back, or start over with --fresh"
            )
