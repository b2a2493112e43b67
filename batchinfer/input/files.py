"""The files that an input URI means, and the Hive partitions in their paths."""

from __future__ import annotations

import difflib
import fnmatch
import glob
import itertools
import os
import posixpath
import re
import urllib.parse
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import pyarrow as pa

from batchinfer.errors import InputError, StorageError
from batchinfer.input.splits import chosen_files
from batchinfer.input.table_files import TableEntry
from batchinfer.storage import Entry, Storage, Stores, join, normal_uri, storage_for

_HIVE_NULL = "__HIVE_DEFAULT_PARTITION__"
_LINES = (".jsonl", ".ndjson", ".json")
_SUFFIXES = {
    "parquet": (".parquet", ".parq", ".pq"),
    "jsonl": tuple(line + packed for packed in ("", ".gz", ".zst") for line in _LINES),
    "openai_batch": tuple(line + packed for packed in ("", ".gz", ".zst") for line in _LINES),
    "arrow": (".arrow", ".arrows", ".ipc", ".feather"),
    "csv": tuple(text + packed for packed in ("", ".gz", ".zst") for text in (".csv", ".tsv")),
}
_OF_DATASETS = ("parquet", "arrow")
"""Formats of Hugging Face's datasets, whose folders of several splits are refused unless one is chosen."""
_LOOKED_AT = 10_000


def format_of_name(uri: str) -> str | None:
    """The format that the name of a file says, None if it says none."""
    return next((name for name, suffixes in _SUFFIXES.items() if uri.lower().endswith(suffixes)), None)


@dataclass(frozen=True, slots=True)
class Found:
    """The files that an input URI means, in natural order of their paths, and the ignored files beside them."""

    entries: tuple[Entry, ...]
    left_out: tuple[str, ...]


def input_entries(
    uri: str,
    file_format: str,
    stores: Stores | None = None,
    none_is_fine: bool = False,
    ignore: Sequence[str] = (),
    split: str | None = None,
) -> list[Entry]:
    """The files of `find_input`."""
    return list(find_input(uri, file_format, stores, none_is_fine, ignore, split).entries)


def find_input(
    uri: str,
    file_format: str,
    stores: Stores | None = None,
    none_is_fine: bool = False,
    ignore: Sequence[str] = (),
    split: str | None = None,
) -> Found:
    """The files that `uri` (a folder, a file or a glob) means.

    Files that every tool ignores (`_ignored_by_all`) or that `ignore` names are left out, unless `uri` is the file
    itself, and of a dataset the files of other splits than `split`. Raises InputError for any other file that the
    format does not read, and if there are no files, unless `none_is_fine`.
    """
    storage, whole = storage_for(uri, stores), normal_uri(uri)
    pattern = is_glob(uri, stores)
    listed = {entry.uri: entry for entry in (storage.match(whole) if pattern else storage.list(whole))}
    if whole not in listed:
        _require_no_table(whole if not pattern else fixed_part(whole), listed, file_format, storage)
    folders = {posixpath.dirname(path) for path in listed}
    root = fixed_part(whole) if pattern else whole
    if not pattern and "://" not in whole:
        _require_no_broken_links(whole, ignore)
    chosen = None
    if not pattern and whole not in listed and (split is not None or file_format in _OF_DATASETS):
        names = {_below(root, path) for path in listed}
        chosen = chosen_files(root, names, _SUFFIXES[file_format], split, lambda name: storage.read(join(root, name)))
    entries, left_out, unknown = [], [], []
    for path, entry in listed.items():
        name = _below(root, path)
        if path == whole:
            entries.append(entry)
        elif (
            (chosen is not None and name not in chosen)
            or _ignored_by_all(name)
            or _matches(name, ignore)
            or (not entry.size and path in folders)
        ):
            left_out.append(path)
        elif pattern or path.lower().endswith(_SUFFIXES[file_format]):
            entries.append(entry)
        else:
            unknown.append(path)
    if not entries and not none_is_fine:
        hidden = [path for path in sorted(left_out, key=_place) if path.lower().endswith(_SUFFIXES[file_format])]
        raise InputError(
            f"there are no {file_format} files at input.uri {uri}", _advice(whole, file_format, storage, hidden)
        )
    if unknown:
        first = min(unknown, key=_place)
        more = f" and {len(unknown) - 1:,} more files" if len(unknown) > 1 else ""
        raise InputError(
            f"{first}{more} would not be read: its name does not end as {file_format} files do "
            f"({', '.join(_SUFFIXES[file_format])})",
            f'leave such files out with input.ignore: ["{_like(first)}"], or read them too with a pattern in '
            f"input.uri, such as {join(root, '**', '*')}",
        )
    for entry in entries:
        if not entry.uri.isascii() and entry.uri != entry.uri.encode(errors="replace").decode():
            raise InputError(f"{entry.uri!r}: the name of this file is not UTF-8", "rename it")
    return Found(tuple(sorted(entries, key=lambda e: _place(e.uri))), tuple(sorted(left_out, key=_place)))


def _place(path: str) -> tuple[list[tuple[int, int | str]], str]:
    return _natural(path), path


def _like(path: str) -> str:
    """A pattern for files like `path`: by the suffix, or by the whole name if there is no suffix."""
    name = posixpath.basename(path)
    return f"*{posixpath.splitext(name)[1]}" if posixpath.splitext(name)[1] else name


def _matches(name: str, patterns: Sequence[str]) -> bool:
    """Does a pattern match the path below the input, or one name on that path?"""
    return any(
        fnmatch.fnmatchcase(name, pattern) or any(fnmatch.fnmatchcase(part, pattern) for part in name.split("/"))
        for pattern in patterns
    )


def _ignored_by_all(name: str) -> bool:
    """Is it a file that no tool reads as data: hidden names, `_SUCCESS`, checksums, markers of folders?

    A folder `_date=2026-01-01` is a partition, as in Spark: a folder with `_` is hidden only if its name has no `=`.
    """
    *folders, file = name.split("/")
    return (
        any(part.startswith(".") or (part.startswith("_") and "=" not in part) for part in folders)
        or file.startswith(("_", "."))
        or file.endswith((".crc", "_$folder$"))
    )


_TABLES = {
    "_delta_log": (
        "a Delta table",
        "set input.format: delta",
    ),
    ".hoodie": ("a Hudi table", "write its live rows, which Spark reads, to a folder of their own"),
    "metadata": ("an Iceberg table", "set input.format: iceberg, input.uri to its name in the catalog, input.catalog"),
}
"""By the folder of its log: the table format, and how to read its live rows. Data files keep deleted rows too."""


def _require_no_table(root: str, listed: Collection[str], file_format: str, storage: Storage) -> None:
    """Raise InputError for the files of a table: only the table's log says which rows are live."""
    if file_format != "parquet":
        return
    found = {_log_of(_below(root, path)) for path in listed}
    place = root
    while not any(found) and place:
        found = {_log_of(f"{name}/{inner}") for name in _TABLES for inner in _inside(join(place, name), storage)}
        base = posixpath.basename(place)
        # A table's files lie in its folders `data` and `key=value`, so look for the log above such a folder.
        place = posixpath.dirname(place) if "=" in base or base == "data" else ""
    for log in filter(None, found):
        what, way = _TABLES[log]
        raise InputError(
            f"{root} is {what}: its files also hold rows that were deleted or replaced",
            way,
        )


def _log_of(name: str) -> str | None:
    parts = name.split("/")
    for folder, inner in itertools.pairwise(parts):
        if folder in ("_delta_log", ".hoodie") or (folder == "metadata" and inner.endswith(".metadata.json")):
            return folder
    return None


def _inside(folder: str, storage: Storage) -> Sequence[str]:
    try:
        return storage.names(folder)
    except StorageError:
        # The credentials may cover the input only, not the folders above it.
        return ()


def _require_no_broken_links(root: str, ignore: Sequence[str]) -> None:
    """Raise InputError for a link to a folder or to a missing file.

    A listing does not follow links to folders, which may form a cycle. Rows behind such a link would be missing
    silently.
    """
    waiting = [root] if os.path.isdir(root) else []
    while waiting:
        with os.scandir(waiting.pop()) as found:
            for item in found:
                if item.is_dir(follow_symlinks=False):
                    waiting.append(item.path)
                elif item.is_symlink():
                    name = os.path.relpath(item.path, root)
                    if not _ignored_by_all(name) and not _matches(name, ignore):
                        _require_file(item)


def _require_file(link: os.DirEntry[str]) -> None:
    if link.is_dir():
        raise InputError(
            f"{link.path} is a link to a folder, and links to folders are not followed",
            "move the folder itself there, or name it with a pattern in input.uri",
        )
    if not os.path.exists(link.path):
        raise InputError(
            f"{link.path} is a link to {os.readlink(link.path)}, which does not exist",
            f'restore that file, remove the link, or leave it out with input.ignore: ["{link.name}"]',
        )


def is_glob(uri: str, stores: Stores | None = None) -> bool:
    """Is `uri` a pattern? A path with pattern characters in its name is no pattern if it exists."""
    whole, storage = normal_uri(uri), storage_for(uri, stores)
    return glob.has_magic(uri) and storage.stat(whole) is None and not storage.names(whole)


def fixed_part(pattern: str) -> str:
    """The deepest folder that contains every path that `pattern` can match."""
    return posixpath.dirname(re.split(r"[*?\[]", pattern, maxsplit=1)[0])


def partition_root(uri: str, path: str) -> str:
    """The root of the partitions of `path`, a file of the input `uri`: only `key=value` folders below it count."""
    if path == uri:
        return posixpath.dirname(uri)
    return uri if path.startswith(join(uri, "")) else fixed_part(uri)


def _below(root: str, path: str) -> str:
    return path.removeprefix(join(root, ""))


def partition_values(uri: str, path: str) -> dict[str, str | None]:
    """The Hive partitions in one file's path: {"year": "2026"} for `.../year=2026/...`. Raises InputError."""
    return _values_below(normal_uri(uri), path)


def entry_values(uri: str, entry: Entry) -> dict[str, str | None]:
    """The values of columns that are not in the file: of the table's own log, or of the folders in its path."""
    if isinstance(entry, TableEntry):
        return {name: text for name, text, _ in entry.values}
    return partition_values(uri, entry.uri)


def _values_below(whole: str, path: str) -> dict[str, str | None]:
    """`partition_values` below the normal URI `whole`."""
    values: dict[str, str | None] = {}
    for part in posixpath.dirname(_below(partition_root(whole, path), path)).split("/"):
        name, separator, value = part.partition("=")
        if not separator or not name:
            continue
        try:
            name = urllib.parse.unquote(name, errors="strict")
            told = None if value == _HIVE_NULL else urllib.parse.unquote(value, errors="strict")
        except UnicodeDecodeError:
            raise InputError(
                f"{path}: the folder {part!r} is not UTF-8 after percent-decoding", "rename that folder"
            ) from None
        if name in values:
            raise InputError(
                f"{path}: two of its folders are values of the partition {name!r}", "rename one of the two folders"
            )
        values[name] = told
    return values


def partition_schema(uri: str, paths: Sequence[str]) -> pa.Schema:
    """The partition columns of all files: int64 if every value of a column is a number, otherwise text.

    Raises InputError when a column is a partition of some files only.
    """
    whole = normal_uri(uri)
    found: dict[str, set[str | None]] = {}
    first: dict[str, str | None] | None = None
    for path in paths:
        values = _values_below(whole, path)
        first = values if first is None else first
        if values.keys() != first.keys():
            raise InputError(
                f"the partitions of the input differ: {list(first)} in {paths[0]}, {list(values)} in {path}",
                "give input.uri a folder whose files all have the same key=value folders",
            )
        for name, value in values.items():
            found.setdefault(name, set()).add(value)
    return pa.schema([(n, pa.int64() if all(map(_is_number, v)) else pa.string()) for n, v in found.items()])


def _is_number(value: str | None) -> bool:
    # 007 and -0 stay text: a number would lose the zeros or the sign.
    return value is None or (re.fullmatch(r"0|-?[1-9][0-9]{0,17}", value) is not None)


def _natural(path: str) -> list[tuple[int, int | str]]:
    """A sort key that puts part-2 before part-10."""
    return [(0, int(part)) if part.isdecimal() else (1, part) for part in re.split(r"(\d+)", path)]


def _advice(uri: str, file_format: str, storage: Storage, hidden: Sequence[str]) -> str:
    """What to do if there is no file to read. `hidden`: files of the format that were left out for their names."""
    names = [entry.uri.lower() for entry in itertools.islice(storage.list(uri), _LOOKED_AT)]
    if names or storage.names(uri):
        others = [
            f for f, suffixes in _SUFFIXES.items() if f != file_format and any(n.endswith(suffixes) for n in names)
        ]
        if others:
            return f"it has {others[0]} files: set input.format: {others[0]}"
        if hidden:
            return (
                f"it has files that tools ignore by their names, such as {hidden[0]}: rename it or its folder, "
                "or name it in input.uri"
            )
        return "it has no such files"
    parent = posixpath.dirname(uri)
    if parent == "s3:":
        return "that bucket is empty"
    try:
        beside = storage.names(parent)
        exists = bool(beside) or storage.stat(parent) is not None
    except StorageError:
        # Credentials may reach the input alone, and not what lies beside it.
        return f"check input.uri; what else lies in {parent} cannot be listed with these credentials"
    if posixpath.dirname(parent) == "s3:" and not beside:
        return "that bucket is empty"
    if not exists:
        return f"the folder {parent} does not exist; paths are relative to where you run"
    near = difflib.get_close_matches(posixpath.basename(uri), beside, n=1)
    return f"did you mean {join(parent, near[0])}?" if near else "paths are relative to where you run"
