import pyarrow as pa
import pytest

from batchinfer.execution.shard_block import seal, unseal
from tests.support.builders import make_envelope, make_record

ROWS = pa.table({"id": [1, 2, 3], "text": ["a", None, "ü"], "m": [[{"role": "user"}], [], None]})


@pytest.mark.parametrize("rows", [ROWS, ROWS.slice(1, 1), ROWS.slice(0, 0), pa.concat_tables([ROWS, ROWS])])
def test_a_sealed_shard_opens_as_it_was(rows):
    envelope = make_envelope(shard_id=7, first_row=2**40, retried=(1, 2), record=make_record(7))
    block = seal(rows, envelope)
    opened, told = unseal(block)
    assert block.num_rows == 1
    assert opened.equals(rows)
    assert opened.schema == rows.schema
    assert told == envelope


def test_a_sealed_shard_survives_being_merged_and_cut_out_again():
    blocks = pa.concat_tables([seal(ROWS.slice(i, 1), make_envelope(shard_id=i)) for i in range(3)])
    for i in range(3):
        opened, told = unseal(blocks.slice(i, 1))
        assert (opened.to_pylist(), told) == (ROWS.slice(i, 1).to_pylist(), make_envelope(shard_id=i))


def test_rows_keep_their_numbers_in_the_input_where_others_between_them_do_not_run():
    envelope = make_envelope(first_row=4, numbers=(4, 9, 12))
    assert [envelope.number(i) for i in range(3)] == [4, 9, 12]
    assert [make_envelope(first_row=4).number(i) for i in range(3)] == [4, 5, 6]
