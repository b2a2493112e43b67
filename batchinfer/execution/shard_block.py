"""A whole shard as one row of a block, which Ray Data never splits."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from pydantic import BaseModel, ConfigDict

from batchinfer.accounting.records import ShardRecord


class Envelope(BaseModel):
    """The data about a shard that travels with its rows from the reader through the replica to the commit."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    shard_id: int
    generation: int
    """0 for the first commit; each retry of failed rows counts one more."""
    first_row: int
    """Position of the shard's first row in the whole input."""
    numbers: tuple[int, ...] | None = None
    """Positions of the shard's rows in the whole input, if rows between them are not selected. None: they follow on
    `first_row`."""
    retried: tuple[int, ...] | None = None
    """Positions in the shard of the rows that a retry runs again. None: all rows, for the first time."""
    record: ShardRecord | None = None
    """The shard's accounting; None until a replica has run the shard."""

    def number(self, position: int) -> int:
        """The position in the whole input of the row at `position` in the shard."""
        return self.first_row + position if self.numbers is None else self.numbers[position]


def seal(rows: pa.Table, envelope: Envelope) -> pa.Table:
    """A block of one row that holds a whole shard: its rows as an Arrow stream, and its envelope.

    Ray Data may merge and split blocks, but never splits a row. `unseal` copies no data.
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
