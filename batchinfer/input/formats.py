"""The interface of every input format: what a file holds, and its rows in order."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import pyarrow as pa

from batchinfer.errors import BatchinferError, InputError
from batchinfer.input.column_types import fitted
from batchinfer.input.manifest import InputFile, Segment


@dataclass(frozen=True, slots=True)
class Inspected:
    """What one file holds: its row groups, the schema of the needed columns, the names of all columns.

    `int96`, `legacy` and `doubtful`: see `parquet_footer.Footer`. `held`: columns that were read at once. `integers`:
    whether a column of JSON numbers has one beyond 2^53, and one below 0. `bad_rows`: how many rows cannot be read and
    are set aside (under BAD_ROW), and how many of these lack each column.
    """

    file: InputFile
    schema: pa.Schema
    names: frozenset[str]
    int96: tuple[str, ...] = ()
    legacy: tuple[str, ...] = ()
    doubtful: tuple[str, ...] = ()
    held: Mapping[str, pa.Array] = field(default_factory=dict)
    integers: Mapping[str, tuple[bool, bool]] = field(default_factory=dict)
    bad_rows: Mapping[str, int] = field(default_factory=dict)


class Rows(Protocol):
    """Rows of one file, read in order."""

    def take(self, segment: Segment) -> pa.Table:
        """The rows of `segment`, which must not begin before the end of the previous segment."""

    def close(self) -> None:
        """Close the file."""


class Batches:
    """Rows of one file that come in batches, front to back. Holds what is left of one batch."""

    def __init__(self, batches: Iterator[pa.Table], at: int) -> None:
        """`at`: the row of the file with which the first batch begins."""
        self.at = at
        self._batches = batches
        self._rest: pa.Table | None = None

    def take(self, segment: Segment) -> pa.Table:
        """The selected rows of `segment`, which begins at `at` or later. Raises StopIteration if the file has fewer."""
        while self.at < segment.start:
            self._next(segment.start - self.at)
        mask, end = segment.mask, segment.start + segment.span
        pieces: list[pa.Table] = []
        while self.at < end:
            done = self.at - segment.start
            piece = self._next(end - self.at)
            if mask is not None:
                # A copy, so that what is left out of a batch does not stay in memory with it.
                piece = piece.filter(pa.array(mask[done : done + piece.num_rows]))
            if piece.num_rows or not pieces:
                pieces.append(piece)
        return pa.concat_tables(pieces)

    def _next(self, most: int) -> pa.Table:
        """The next rows, at most so many, as they lie in one batch."""
        batch = self._rest if self._rest is not None else next(self._batches)
        piece = batch.slice(0, most)
        self._rest = batch.slice(most) if batch.num_rows > most else None
        self.at += piece.num_rows
        return piece


def fit(values: pa.Array, field: pa.Field, uri: str) -> pa.Array:
    """The values of the file at `uri`, converted to the type of `field`. Raises InputError."""
    try:
        return fitted(values, field.type)
    except pa.ArrowException as error:
        raise InputError(
            f"{uri}: column {field.name!r} does not fit {field.type}: {first_line(error)}",
            f"give the column one type in all files, or set input.cast: {{{field.name}: string}}",
        ) from None


@contextlib.contextmanager
def reading(uri: str) -> Iterator[None]:
    """Turn an Arrow error while reading `uri` into an InputError with that URI."""
    try:
        yield
    except BatchinferError:
        raise
    except Exception as error:
        # On damaged data Arrow raises exceptions of many types, such as UnicodeDecodeError.
        raise InputError(
            f"{uri} cannot be read: {first_line(error) or 'it has fewer rows than before, or than its footer says'}",
            "it is damaged: write it again and run with --fresh",
        ) from None


def first_line(error: BaseException) -> str:
    """The first line of the message, at most 500 characters: Arrow appends its stack to a message."""
    return str(error).strip().splitlines()[0][:500] if str(error).strip() else ""
