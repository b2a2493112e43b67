"""Which files an input URI means, and the hive partitions in their paths."""

from __future__ import annotations

import difflib
import glob
import itertools
import os
import posixpath
import re
import urllib.parse
from collections.abc import Sequence

import pyarrow as pa

from batchinfer.errors import InputError
from batchinfer.storage import Entry, Storage, Stores, join, normal_uri, storage_for

_HIVE_NULL = "__HIVE_DEFAULT_PARTITION__"
_SUFFIXES = {"parquet": (".parquet", ".parq", ".pq"), "jsonl": (".jsonl", ".ndjson", ".json")}
_LOOKED_AT = 10_000


def input_entries(uri: str, file_format: str, stores: Stores | None = None, none_is_fine: bool = False) -> list[Entry]:
    """The files that `uri` (a folder, a file or a glob) means, in natural order of their paths.

    Files and folders whose names begin with `_` or `.` are left out, as Spark and Hive do, unless `uri`
    is the file itself. Raises InputError when there are none, unless `none_is_fine`.
    """
    storage, whole = storage_for(uri, stores), normal_uri(uri)
    pattern = is_glob(uri, stores)
    if not pattern and "://" not in whole:
        _require_no_linked_folders(whole)
    entries = {}
    for entry in storage.match(whole) if pattern else storage.list(whole):
        wanted = pattern or entry.uri.lower().endswith(_SUFFIXES[file_format])
        if entry.uri == whole or (wanted and not _hidden(_below(partition_root(whole, entry.uri), entry.uri))):
            # A pattern may reach one file by several links.
            entries[entry.uri] = entry
    if not entries and not none_is_fine:
        raise InputError(f"there are no {file_format} files at input.uri {uri}", _advice(whole, file_format, storage))
    for entry in entries.values():
        if not entry.uri.isascii() and entry.uri != entry.uri.encode(errors="replace").decode():
            raise InputError(f"{entry.uri!r}: the name of this file is not UTF-8", "rename it")
    return sorted(entries.values(), key=lambda e: (_natural(e.uri), e.uri))


def _require_no_linked_folders(root: str) -> None:
    """A listing does not go through links to folders, which may lead anywhere, or round in a circle: what
    is behind one must not be missing silently."""
    for folder, folders, _ in os.walk(root):
        for name in folders:
            path = os.path.join(folder, name)
            if os.path.islink(path) and not _hidden(os.path.relpath(path, root)):
                raise InputError(
                    f"{path} is a link to a folder, and links to folders are not followed",
                    "move the folder itself there, or name it with a pattern in input.uri",
                )


def is_glob(uri: str, stores: Stores | None = None) -> bool:
    """Is `uri` a pattern, and not the name of something that has such characters in it?"""
    whole, storage = normal_uri(uri), storage_for(uri, stores)
    return glob.has_magic(uri) and storage.stat(whole) is None and not storage.names(whole)


def fixed_part(pattern: str) -> str:
    """The folder below which everything lies that `pattern` can match."""
    return posixpath.dirname(re.split(r"[*?\[]", pattern, maxsplit=1)[0])


def partition_root(uri: str, path: str) -> str:
    """The folder above which `key=value` parts of `path`, a file that the input `uri` means, are no partitions."""
    if path == uri:
        return posixpath.dirname(uri)
    return uri if path.startswith(join(uri, "")) else fixed_part(uri)


def _below(root: str, path: str) -> str:
    return path.removeprefix(join(root, ""))


def partition_values(uri: str, path: str) -> dict[str, str | None]:
    """Hive partitions in one file's path: `.../year=2026/...` gives {"year": "2026"}."""
    values: dict[str, str | None] = {}
    for part in posixpath.dirname(_below(partition_root(normal_uri(uri), path), path)).split("/"):
        name, separator, value = part.partition("=")
        if separator and name:
            values[urllib.parse.unquote(name)] = None if value == _HIVE_NULL else urllib.parse.unquote(value)
    return values


def partition_schema(uri: str, paths: Sequence[str]) -> pa.Schema:
    """The partition columns of all files: int64 where every value is a number, text else.

    Raises InputError when a column is a partition of some files only.
    """
    found: dict[str, set[str | None]] = {}
    rows = [(path, partition_values(uri, path)) for path in paths]
    for path, values in rows:
        if values.keys() != rows[0][1].keys():
            raise InputError(
                f"the partitions of the input differ: {list(rows[0][1])} in {rows[0][0]}, {list(values)} in {path}",
                "give input.uri a folder whose files all have the same key=value folders",
            )
        for name, value in values.items():
            found.setdefault(name, set()).add(value)
    return pa.schema([(n, pa.int64() if all(map(_is_number, v)) else pa.string()) for n, v in found.items()])


def _is_number(value: str | None) -> bool:
    # 007 is a name, and text would lose nothing of it.
    return value is None or (value.isascii() and value.isdigit() and str(int(value)) == value and len(value) < 19)


def _hidden(path: str) -> bool:
    return any(part.startswith(("_", ".")) for part in path.split("/"))


def _natural(path: str) -> list[tuple[int, int | str]]:
    """part-2 comes before part-10."""
    return [(0, int(part)) if part.isdecimal() else (1, part) for part in re.split(r"(\d+)", path)]


def _advice(uri: str, file_format: str, storage: Storage) -> str:
    names = [entry.uri.lower() for entry in itertools.islice(storage.list(uri), _LOOKED_AT)]
    if names or storage.names(uri):
        others = [
            f for f, suffixes in _SUFFIXES.items() if f != file_format and any(n.endswith(suffixes) for n in names)
        ]
        return f"it has {others[0]} files: set input.format: {others[0]}" if others else "it has no such files"
    parent = posixpath.dirname(uri)
    if parent == "s3:":
        return "that bucket is empty"
    beside = storage.names(parent)
    if posixpath.dirname(parent) == "s3:" and not beside:
        return "that bucket is empty"
    if not beside and storage.stat(parent) is None:
        return f"the folder {parent} does not exist; paths are relative to where you run"
    near = difflib.get_close_matches(posixpath.basename(uri), beside, n=1)
    return f"did you mean {join(parent, near[0])}?" if near else "paths are relative to where you run"
