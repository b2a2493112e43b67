"""What a row and a shard cost, in things that can be counted: bytes, requests, Ray tasks. Not by clocks.

The bounds leave room for another release of Arrow or Python, none for another copy or another object a row.
"""

from __future__ import annotations

import collections
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest

from batchinfer.engine import Completion
from batchinfer.execution.result_rows import result_table
from batchinfer.execution.shard_block import seal, unseal
from batchinfer.input import read_shards
from batchinfer.jobspec import InputSpec
from batchinfer.prompting.prompts import PromptMaker
from batchinfer.rundir.commit import commit
from batchinfer.rundir.paths import Layout
from batchinfer.storage.local import LocalStorage
from tests.support.builders import make_envelope, make_record, make_spec, manifest_of, write_parquet

ROWS = 4096
TABLE = pa.table(
    {"id": [f"row-{i:09d}" for i in range(ROWS)], "text": [f"{'some text ' * 10}{i}" for i in range(ROWS)]}
)
ENVELOPE = make_envelope()


@pytest.fixture
def pool() -> Iterator[pa.MemoryPool]:
    """Arrow's memory pool for the test, which counts all bytes that were ever allocated."""
    usual = pa.default_memory_pool()
    counting = pa.proxy_memory_pool(usual)
    pa.set_memory_pool(counting)
    yield counting
    pa.set_memory_pool(usual)
    _POOLS.append(counting)


_POOLS: list[pa.MemoryPool] = []
"""Arrow's objects may outlive the test, and their pool must outlive them."""


def python_bytes_a_row(work) -> float:
    """Peak of what Python allocates while `work` runs, for each of ROWS rows."""
    work()
    tracemalloc.start()
    try:
        kept = work()
        assert kept is not None
        return tracemalloc.get_traced_memory()[1] / ROWS
    finally:
        tracemalloc.stop()


def test_a_shard_is_copied_once_when_it_is_sealed_and_not_when_it_is_opened(pool: pa.MemoryPool) -> None:
    before = pool.total_bytes_allocated()
    block = seal(TABLE, ENVELOPE)
    # A buffer that grows by doubling takes up to twice its last size in all.
    assert pool.total_bytes_allocated() - before < 2.1 * TABLE.nbytes
    assert block.nbytes < 1.1 * TABLE.nbytes
    before = pool.total_bytes_allocated()
    rows, _ = unseal(block)
    assert rows.num_rows == ROWS
    assert pool.total_bytes_allocated() - before < 0.01 * TABLE.nbytes


def test_a_prompt_is_one_text_and_one_object() -> None:
    text_bytes = TABLE.column("text").nbytes / ROWS
    maker = PromptMaker(make_spec().prompt)
    # The column's values, the prompts' texts (each some 50 bytes more than its characters), and the tuples.
    assert python_bytes_a_row(lambda: maker.prompts(TABLE)) < 2 * (text_bytes + 60) + 150


def test_the_result_table_makes_no_python_object_for_a_row(pool: pa.MemoryPool) -> None:
    done = [Completion([text], ["stop"], 30, 0, 5) for text in TABLE.column("text").to_pylist()]
    spec = make_spec()
    assert python_bytes_a_row(lambda: result_table(spec, TABLE, ENVELOPE, [done])) < 40
    before = pool.total_bytes_allocated()
    results = result_table(spec, TABLE, ENVELOPE, [done])
    assert pool.total_bytes_allocated() - before < 2.5 * results.nbytes


def counted(name: str, method, asked: collections.Counter[str]):
    """The method, noting that it was asked."""

    def counting(self, *arguments, **options):
        asked[name] += 1
        return method(self, *arguments, **options)

    return counting


def test_reading_and_committing_a_shard_take_so_many_requests(tmp_path: Path, monkeypatch) -> None:
    for number in range(2):
        write_parquet(tmp_path / "in" / f"{number}.parquet", {"id": range(1000)})
    manifest = manifest_of(tmp_path / "in", ["id"], rows=500)
    asked: collections.Counter[str] = collections.Counter()
    for name in ("stat", "open", "read", "create", "put", "list"):
        monkeypatch.setattr(LocalStorage, name, counted(name, getattr(LocalStorage, name), asked))
    shards = list(
        read_shards(manifest.shards, manifest.schema, (), InputSpec(uri=str(tmp_path / "in"), format="parquet"))
    )
    # A file is opened once, and looked at before and after each shard that is read from it.
    assert (len(shards), asked["open"]) == (4, 2)
    assert asked["stat"] <= 2 + len(shards)
    assert asked.keys() <= {"open", "stat"}
    asked.clear()
    assert commit(Layout(str(tmp_path / "out")), shards[0][1], make_record(0))
    assert asked == {"create": 2}
