"""Are the ids unique? Answered for any number of rows in little memory."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd  # for its vectorised hash of texts
import pyarrow as pa

from batchinfer.errors import InputError
from batchinfer.input.column_types import JSON, same_text

_BUCKETS = 64

_WRITTEN_AT_ONCE = 2**16
"""Hashes gathered before they are written, half a megabyte: fewer cost a system call each, more cost memory."""


def require_unique(
    column: str,
    scan: Callable[[], Iterable[tuple[str, pa.Array]]],
    row_of: Callable[[str, int], int] = lambda uri, number: number,
) -> None:
    """Raise InputError if an id is null or occurs twice. `scan` gives (file, ids) in input order; `row_of` the row of a
    file that an id is of, by its number among the file's ids.

    The ids' 64-bit hashes go to temporary files by their upper bits, and each file is searched by
    itself, so that memory does not grow with the rows. Equal hashes are looked at once more in full.
    """
    with tempfile.TemporaryDirectory(prefix="batchinfer-ids-") as folder:
        buckets = [Path(folder, str(i)) for i in range(_BUCKETS)]
        files = [path.open("wb") for path in buckets]
        try:
            for hashes in _gathered(_hashes(column, uri, ids) for uri, ids in scan()):
                place = (hashes >> np.uint64(58)).astype(np.intp)
                order = np.argsort(place, kind="stable")
                ends = np.cumsum(np.bincount(place, minlength=_BUCKETS))
                for file, part in zip(files, np.split(hashes[order], ends[:-1]), strict=True):
                    part.tofile(file)
        finally:
            for file in files:
                file.close()
        suspects = {int(value) for path in buckets for value in _repeated(path)}
    if suspects:
        _report(column, suspects, scan(), row_of)


def _gathered(parts: Iterable[npt.NDArray[np.uint64]]) -> Iterator[npt.NDArray[np.uint64]]:
    """The hashes in larger arrays: of each array 64 parts are written, which a small file is not worth."""
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


def _hashes(column: str, uri: str, ids: pa.Array) -> npt.NDArray[np.uint64]:
    if ids.null_count:
        raise InputError(
            f"{uri}: id column {column!r} has {ids.null_count} null values",
            "give every row an id, or leave input.id_column out: rows are then numbered",
        )
    hashes: npt.NDArray[np.uint64] = pd.util.hash_array(
        _as_text(column, ids).to_numpy(zero_copy_only=False), categorize=False
    )
    return hashes


def require_id_kind(column: str, kind: pa.DataType) -> None:
    """Raise InputError unless values of the type can be ids: texts, whole and other numbers, dates, times, UUIDs, and
    bytes that are text.

    True and false tell no rows apart, and no two lists or objects are compared.
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
        wanted = np.isin(_hashes(column, uri, ids), np.fromiter(suspects, dtype=np.uint64))
        for i in np.flatnonzero(wanted):
            yield str(_as_text(column, ids)[int(i)].as_py()), uri, row + int(i)
        row += len(ids)
