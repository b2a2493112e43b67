"""Random input files for what cuts them into shards."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from hypothesis import strategies as st
from hypothesis.strategies import DrawFn

from batchinfer.input.manifest import InputFile, RowGroup, Shard
from batchinfer.storage import Entry


@st.composite
def input_files(draw: DrawFn) -> list[InputFile]:
    """Up to four files of up to four row groups, some of them empty."""
    files: list[InputFile] = []
    for number in range(draw(st.integers(0, 4))):
        groups: list[RowGroup] = []
        offset = 0
        for _ in range(draw(st.integers(0, 4))):
            size = draw(st.integers(0, 3000))
            groups.append(RowGroup(draw(st.integers(0, 30)), size, offset))
            offset += size
        files.append(InputFile(Entry(f"/in/{number}", offset, f"tag{number}"), tuple(groups)))
    return files


def row_bytes(group: RowGroup) -> int:
    return max(1, -(-group.size // group.rows))


def all_rows(files: Iterable[InputFile]) -> Iterator[tuple[str, int, int]]:
    """(uri, row in the file, bytes) of every row, in order."""
    for file in files:
        sizes = [row_bytes(group) for group in file.groups for _ in range(group.rows)]
        yield from ((file.entry.uri, row, size) for row, size in enumerate(sizes))


def positions(shard: Shard) -> list[tuple[str, int]]:
    """(uri, row in the file) of every row of the shard, in order."""
    return [(s.entry.uri, s.start + i) for s in shard.segments for i in range(s.rows)]
