"""A whole shard as one row of a block, which Ray Data leaves whole."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from pydantic import BaseModel, ConfigDict

from batchinfer.accounting.records import ShardRecord


class Envelope(BaseModel):
    """What goes with the rows of a shard on their way from the reader through the replica to the commit."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    shard_id: int
    generation: int
    """0 for the first commit; each retry of failed rows counts one more."""
    first_row: int
    """The shard's place in the whole input."""
    retried: tuple[int, ...] | None = None
    """Positions in the shard of the rows that a retry runs again. None: all rows, for the first time."""
    record: ShardRecord | None = None
    """What the shard took, once a replica has run it."""


def seal(rows: pa.Table, envelope: Envelope) -> pa.Table:
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
    return pa.table({"envelope": pa.array([envelope.model_dump_json()]), "rows": packed})


def unseal(block: pa.Table) -> tuple[pa.Table, Envelope]:
    """The inverse of `seal`."""
    assert block.num_rows == 1, f"{block.num_rows} shards in one block"
    envelope = Envelope.model_validate_json(block.column("envelope")[0].as_py())
    with pa.ipc.open_stream(block.column("rows")[0].as_buffer()) as reader:
        return reader.read_all(), envelope
