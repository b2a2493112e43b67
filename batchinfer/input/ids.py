"""Checks that ids are unique. Memory does not grow with the number of rows."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd  # for its vectorised hash of texts
import pyarrow as pa

from batchinfer.errors import InputError
from batchinfer.input.column_types import JSON, same_text
from batchinfer.temporary import temporary_folder

_BUCKETS = 64

_WRITTEN_AT_ONCE = 2**16
"""Hashes collected before a write, half a megabyte. Fewer need more system calls, more need more memory."""


def require_unique(
    column: str,
    scan: Callable[[], Iterable[tuple[str, pa.Array]]],
    nulls: Mapping[str, int] | None = None,
    row_of: Callable[[str, int], int] = lambda uri, number: number,
) -> None:
    """Raise InputError if an id is null or occurs twice. `scan` gives (file, ids) in input order; `row_of` the row of
    the file that an id is of, by its number among the file's ids.

    `nulls` says how many ids of a file may be null, because their rows cannot be read.

    The ids' 64-bit hashes go to temporary files by their upper bits, and each file is searched by
    itself, so that memory does not grow with the rows. Equal hashes are looked at once more in full.
    """
    with temporary_folder("ids") as folder:
        buckets = [folder / str(i) for i in range(_BUCKETS)]
        with contextlib.ExitStack() as opened:
            files = [opened.enter_context(path.open("wb")) for path in buckets]
            for hashes in _gathered(_hashes(column, ids) for ids in _with_ids(column, scan(), nulls or {})):
                place = (hashes >> np.uint64(58)).astype(np.intp)
                order = np.argsort(place, kind="stable")
                ends = np.cumsum(np.bincount(place, minlength=_BUCKETS))
                for file, part in zip(files, np.split(hashes[order], ends[:-1]), strict=True):
                    # Not `tofile`, whose error does not say that the disk is full.
                    file.write(part.data)
        suspects = {int(value) for path in buckets for value in _repeated(path)}
    if suspects:
        _report(column, suspects, scan(), row_of)


def _gathered(parts: Iterable[npt.NDArray[np.uint64]]) -> Iterator[npt.NDArray[np.uint64]]:
    """The hashes in larger arrays: each array costs up to 64 writes, too many for the ids of one small file."""
    waiting: list[npt.NDArray[np.uint64]] = []
    held = 0
    for part in parts:
        waiting.append(part)
        held += len(part)
        if held >= _WRITTEN_AT_ONCE:
            yield np.concatenate(waiting)
            waiting, held = [], 0
    if waiting:
        yield np.concatenate(waiting)


def _repeated(path: Path) -> npt.NDArray[np.uint64]:
    values = np.sort(np.fromfile(path, dtype=np.uint64))
    repeated: npt.NDArray[np.uint64] = values[1:][values[1:] == values[:-1]]
    return repeated


def _with_ids(column: str, scan: Iterable[tuple[str, pa.Array]], nulls: Mapping[str, int]) -> Iterator[pa.Array]:
    """The ids that are not null. Raises InputError for a file with more nulls than `nulls` has for it."""
    seen: Counter[str] = Counter()
    for uri, ids in scan:
        seen[uri] += ids.null_count
        if seen[uri] > nulls.get(uri, 0):
            raise InputError(
                f"{uri}: id column {column!r} has {seen[uri] - nulls.get(uri, 0)} null values",
                "give every row an id, or leave input.id_column out: rows are then numbered",
            )
        yield ids.drop_null() if ids.null_count else ids


def _hashes(column: str, ids: pa.Array) -> npt.NDArray[np.uint64]:
    hashes: npt.NDArray[np.uint64] = pd.util.hash_array(
        _as_text(column, ids).to_numpy(zero_copy_only=False), categorize=False
    )
    return hashes


def require_id_kind(column: str, kind: pa.DataType) -> None:
    """Raise InputError unless values of the type can be ids: texts, numbers, dates, times, UUIDs, and UTF-8 bytes.

    Booleans are refused because two values cannot identify rows. Lists and objects are refused because they are not
    compared.
    """
    kinds = pa.types
    value = kind.value_type if kinds.is_dictionary(kind) else kind
    if kinds.is_boolean(value) or kinds.is_nested(value) or value == JSON:
        raise InputError(
            f"id column {column!r} has type {value}",
            "an id is a text, a number, a date, a time or a UUID: choose another column",
        )


def _as_text(column: str, ids: pa.Array) -> pa.Array:
    try:
        text = same_text(ids)
        text.validate(full=True)
        return text
    except pa.ArrowException:
        raise InputError(
            f"id column {column!r} of type {ids.type} holds a value without a text, such as bytes that are not UTF-8",
            "an id is a text, a number, a date, a time or a UUID: choose another column",
        ) from None


def _report(
    column: str, suspects: set[int], scan: Iterable[tuple[str, pa.Array]], row_of: Callable[[str, int], int]
) -> None:
    seen: dict[str, str] = {}
    for value, uri, number in _places(column, suspects, scan):
        place = f"row {row_of(uri, number)} of {uri}"
        if value in seen:
            raise InputError(
                f"id column {column!r} has {value!r:.80} twice: {seen[value]} and {place}",
                "ids tell rows apart in the output: make them unique, or leave input.id_column out",
            )
        seen[value] = place


def _places(column: str, suspects: set[int], scan: Iterable[tuple[str, pa.Array]]) -> Iterator[tuple[str, str, int]]:
    row, before = 0, ""
    for uri, ids in scan:
        row = row if uri == before else 0
        before = uri
        with_id = np.flatnonzero(ids.is_valid().to_numpy(zero_copy_only=False))
        wanted = np.isin(_hashes(column, ids.drop_null()), np.fromiter(suspects, dtype=np.uint64))
        for i in with_id[wanted]:
            yield str(_as_text(column, ids)[int(i)].as_py()), uri, row + int(i)
        row += len(ids)
