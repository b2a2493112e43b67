"""Which files an input URI means, and the hive partitions in their paths."""

from __future__ import annotations

import difflib
import glob
import os
import re
import urllib.parse
from collections.abc import Sequence

import pyarrow as pa

from batchinfer.errors import InputError
from batchinfer.storage import Entry, local_path, storage_for

_HIVE_NULL = "__HIVE_DEFAULT_PARTITION__"
_SUFFIXES = {"parquet": (".parquet", ".parq", ".pq"), "jsonl": (".jsonl", ".ndjson", ".json")}


def input_entries(uri: str, file_format: str) -> list[Entry]:
    """The files that `uri` (a folder, a file or a glob) means, in natural order of their paths.

    Files and folders whose names begin with `_` or `.` are left out, as Spark and Hive do, unless `uri`
    is the file itself. Raises InputError when there are none.
    """
    if is_glob(uri):
        paths = glob.glob(local_path(uri), recursive=True)
        storage = storage_for(uri)
        found = (storage.stat(path) for path in paths if os.path.isfile(path))
        # A pattern may reach one file by several links.
        entries = list({entry.uri: entry for entry in found if entry}.values())
    else:
        _require_no_linked_folders(local_path(uri))
        entries = list(storage_for(uri).list(uri))
        if not os.path.isfile(local_path(uri)):
            suffixes = _SUFFIXES[file_format]
            entries = [e for e in entries if e.uri.lower().endswith(suffixes)]
    root = partition_root(uri)
    if not os.path.isfile(local_path(uri)):
        entries = [e for e in entries if not _hidden(os.path.relpath(e.uri, root))]
    if not entries:
        raise InputError(f"there are no {file_format} files at input.uri {uri}", _advice(uri, file_format))
    for entry in entries:
        if not entry.uri.isascii() and entry.uri != entry.uri.encode(errors="replace").decode():
            raise InputError(f"{entry.uri!r}: the name of this file is not UTF-8", "rename it")
    return sorted(entries, key=lambda e: (_natural(e.uri), e.uri))


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


def is_glob(uri: str) -> bool:
    """Is `uri` a pattern, and not the name of something that has such characters in it?"""
    return glob.has_magic(uri) and not os.path.lexists(local_path(uri))


def partition_root(uri: str) -> str:
    """The folder above which `key=value` parts of a path are not partitions."""
    path = local_path(uri)
    fixed = re.split(r"[*?\[]", path, maxsplit=1)[0] if is_glob(uri) else path
    return path if os.path.isdir(path) else os.path.dirname(fixed)


def partition_values(uri: str, path: str) -> dict[str, str | None]:
    """Hive partitions in one file's path: `.../year=2026/...` gives {"year": "2026"}."""
    values: dict[str, str | None] = {}
    for part in os.path.dirname(os.path.relpath(path, partition_root(uri))).split(os.sep):
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
    return any(part.startswith(("_", ".")) for part in path.split(os.sep) if part != "..")


def _natural(path: str) -> list[tuple[int, int | str]]:
    """part-2 comes before part-10."""
    return [(0, int(part)) if part.isdecimal() else (1, part) for part in re.split(r"(\d+)", path)]


def _advice(uri: str, file_format: str) -> str:
    path = local_path(uri)
    if os.path.isdir(path):
        names = [name.lower() for _, _, files in os.walk(path) for name in files]
        others = [
            f for f, suffixes in _SUFFIXES.items() if f != file_format and any(n.endswith(suffixes) for n in names)
        ]
        return f"it has {others[0]} files: set input.format: {others[0]}" if others else "it has no such files"
    parent = os.path.dirname(path.rstrip("/"))
    if not os.path.isdir(parent):
        return f"the folder {parent} does not exist; paths are relative to where you run"
    near = difflib.get_close_matches(os.path.basename(path), os.listdir(parent), n=1)
    return f"did you mean {os.path.join(parent, near[0])}?" if near else "paths are relative to where you run"
