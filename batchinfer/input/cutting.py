"""Cuts the input into shards: in input order, with a limit on rows and on bytes. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from batchinfer.input.manifest import InputFile, RowGroup, Segment, Shard, packed_mask
from batchinfer.input.row_bits import RowBits

_GAP_BYTES = 2**22
"""Row groups without a selected row are skipped where they have so many bytes. Less, and a manifest has a segment for
every few rows; more, and a reader decodes what nobody wants."""


@dataclass(frozen=True, slots=True)
class _Piece:
    """The rows to run of a row group: `first_row` counts among all rows to run, `start` in its file, `place` in the
    whole input. `before` counts the rows to run of the file before `start`, where `bits` selects them."""

    file: InputFile
    number: int
    rows: int
    first_row: int
    start: int
    place: int
    before: int = 0
    bits: RowBits | None = None

    @property
    def group(self) -> RowGroup:
        return self.file.groups[self.number]

    @property
    def end(self) -> int:
        return self.first_row + self.rows

    @property
    def row_bytes(self) -> int:
        return max(1, -(-self.group.size // self.group.rows))

    def stretch(self, taken: int, take: int) -> tuple[int, int]:
        """The rows of the file from the selected row `taken` of the group to the last of `take` selected ones."""
        if self.bits is None:
            return self.start + taken, self.start + taken + take
        first = self.before + taken
        return self.bits.nth(first), self.bits.nth(first + take - 1) + 1


def cut(
    files: Sequence[InputFile],
    sizes: Callable[[int], int],
    max_bytes: int,
    settle: Callable[[int, int], int] | None = None,
    selected: Sequence[RowBits] | None = None,
) -> list[Shard]:
    """Shards in input order, each of at most `sizes(first row)` rows and `max_bytes` bytes, but at least one row.

    `settle(first row, rows)` may return fewer rows, so that the shard ends at the end of a group. `selected`: the rows
    to run of each file, None for all. Rows are counted among these.
    """
    pieces = list(_pieces(files, selected))
    total = pieces[-1].end if pieces else 0
    shards: list[Shard] = []
    first_row = at = 0
    while first_row < total:
        rows = _fitting(pieces, at, first_row, sizes(first_row), max_bytes)
        rows = rows if settle is None else settle(first_row, rows)
        segments: list[_OpenSegment] = []
        end = first_row + rows
        while first_row < end:
            piece = pieces[at]
            take = min(end, piece.end) - first_row
            _append(segments, piece, first_row - piece.first_row, take)
            first_row += take
            at += first_row == piece.end
        shards.append(Shard(len(shards), end - rows, tuple(segment.closed() for segment in segments)))
    return shards


def _pieces(files: Sequence[InputFile], selected: Sequence[RowBits] | None) -> Iterator[_Piece]:
    place = first_row = 0
    for index, file in enumerate(files):
        starts = np.cumsum([0, *(group.rows for group in file.groups)])
        bits = None if selected is None or selected[index].count == file.rows else selected[index]
        counts = np.diff(starts) if bits is None else bits.counts(starts)
        before = 0
        for number, (start, rows) in enumerate(zip(starts[:-1].tolist(), counts.tolist(), strict=True)):
            if rows:
                yield _Piece(file, number, rows, first_row, start, place + start, before, bits)
            first_row += rows
            before += rows
        place += file.rows


def _fitting(pieces: Sequence[_Piece], at: int, first_row: int, most: int, max_bytes: int) -> int:
    """How many rows from `first_row` on fit both limits, at least 1. `first_row` lies in the piece `at`."""
    rows, room = 0, max_bytes
    while at < len(pieces):
        piece = pieces[at]
        there = piece.end - first_row - rows
        take = min(there, most - rows, room // piece.row_bytes)
        rows += take
        room -= take * piece.row_bytes
        if take < there:
            break
        at += 1
    return max(1, rows)


@dataclass(slots=True)
class _OpenSegment:
    """A segment that may still grow: of the rows `start` to `stop` of the file, `rows` run."""

    piece: _Piece
    last_group: int
    start: int
    stop: int
    rows: int
    end: int
    size: int

    def closed(self) -> Segment:
        piece, bits = self.piece, self.piece.bits
        return Segment(
            piece.file.entry,
            piece.number,
            self.start,
            self.start - piece.start,
            self.rows,
            piece.group.offset,
            self.end,
            self.size,
            piece.place + self.start - piece.start,
            None if bits is None else packed_mask(bits.mask(self.start, self.stop)),
        )


def _append(segments: list[_OpenSegment], piece: _Piece, taken: int, take: int) -> None:
    """Add `take` rows of a row group, after the first `taken`, growing the last segment where they follow on it."""
    group = piece.group
    start, stop = piece.stretch(taken, take)
    end, size = group.offset + group.size, take * group.size // group.rows
    last = segments[-1] if segments else None
    if last is not None and last.piece.file is piece.file and _near(last, piece, start):
        last.stop, last.rows, last.end, last.size = stop, last.rows + take, end, last.size + size
        last.last_group = piece.number
    else:
        segments.append(_OpenSegment(piece, piece.number, start, stop, take, end, size))


def _near(last: _OpenSegment, piece: _Piece, start: int) -> bool:
    """Do the rows from `start` on follow on a segment, or are the row groups between them not worth skipping?"""
    if last.stop == start:
        return True
    if piece.bits is None:
        return False
    between = piece.file.groups[last.last_group + 1 : piece.number]
    return sum(group.size for group in between) < _GAP_BYTES
