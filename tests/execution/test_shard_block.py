import pyarrow as pa
import pytest

from batchinfer.execution.shard_block import seal, unseal

ROWS = pa.table({"id": [1, 2, 3], "text": ["a", None, "ü"], "m": [[{"role": "user"}], [], None]})


@pytest.mark.parametrize("rows", [ROWS, ROWS.slice(1, 1), ROWS.slice(0, 0), pa.concat_tables([ROWS, ROWS])])
def test_a_sealed_shard_opens_as_it_was(rows):
    about = {"shard_id": 7, "retried": None, "first_row": 2**40}
    block = seal(rows, about)
    opened, told = unseal(block)
    assert block.num_rows == 1
    assert opened.equals(rows)
    assert opened.schema == rows.schema
    assert told == about


def test_a_sealed_shard_survives_being_merged_and_cut_out_again():
    blocks = pa.concat_tables([seal(ROWS.slice(i, 1), {"shard_id": i}) for i in range(3)])
    for i in range(3):
        opened, about = unseal(blocks.slice(i, 1))
        assert (opened.to_pylist(), about) == (ROWS.slice(i, 1).to_pylist(), {"shard_id": i})
