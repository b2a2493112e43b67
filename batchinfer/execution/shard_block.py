"""A whole shard as one row of a block, which Ray Data leaves whole."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pyarrow as pa


def seal(rows: pa.Table, about: dict[str, Any]) -> pa.Table:
    """A block of one row that holds a whole shard: its rows as an Arrow stream, and what goes with them.

    Ray Data merges and splits blocks of rows as it sees fit; a row it leaves whole. Opening it again
    copies nothing.
    """
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, rows.schema) as writer:
        writer.write_table(rows)
    stream = sink.getvalue()
    offsets = pa.py_buffer(np.array([0, stream.size], dtype=np.int64))
    packed = pa.LargeBinaryArray.from_buffers(pa.large_binary(), 1, [None, offsets, stream])
    return pa.table({"about": pa.array([json.dumps(about)]), "rows": packed})


def unseal(block: pa.Table) -> tuple[pa.Table, dict[str, Any]]:
    """The inverse of `seal`."""
    assert block.num_rows == 1, f"{block.num_rows} shards in one block"
    about: dict[str, Any] = json.loads(block.column("about")[0].as_py())
    with pa.ipc.open_stream(block.column("rows")[0].as_buffer()) as reader:
        return reader.read_all(), about
