"""Which types results have in a table, and that a table takes a value only if it keeps it unchanged."""

from __future__ import annotations

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchinfer.errors import OutputError
from batchinfer.tables.column_types import NoType, fit, stored_type, takes

SIMPLE = [
    *(pa.int8(), pa.int16(), pa.int32(), pa.int64(), pa.uint8(), pa.uint16(), pa.uint32(), pa.uint64()),
    *(pa.float16(), pa.float32(), pa.float64(), pa.bool_(), pa.string(), pa.large_string(), pa.binary()),
    *(pa.date32(), pa.timestamp("us", "UTC"), pa.timestamp("ns"), pa.decimal128(10, 2), pa.null()),
    pa.dictionary(pa.int32(), pa.string()),
]
kinds = st.recursive(
    st.sampled_from(SIMPLE),
    lambda inner: st.one_of(
        inner.map(pa.list_),
        inner.map(lambda kind: pa.list_(kind, 2)),
        st.lists(inner, min_size=1, max_size=3).map(lambda ks: pa.struct([(f"f{i}", k) for i, k in enumerate(ks)])),
        inner.map(lambda kind: pa.map_(pa.string(), kind)),
    ),
    max_leaves=4,
)


@given(kinds, st.sampled_from(["delta", "iceberg"]))
def test_a_stored_type_is_its_own_stored_type_and_its_column_takes_it(kind, to):
    stored = stored_type(kind, to)
    assert stored_type(stored, to) == stored
    assert takes(stored, stored)


@pytest.mark.parametrize("kind", SIMPLE[:-2], ids=str)
@pytest.mark.parametrize("to", ["delta", "iceberg"])
def test_the_extreme_values_survive(kind, to):
    if pa.types.is_integer(kind):
        bits = kind.bit_width
        values = [0, 2**bits - 1] if str(kind).startswith("u") else [-(2 ** (bits - 1)), 2 ** (bits - 1) - 1]
        assert [int(v) for v in pa.array(values, kind).cast(stored_type(kind, to)).to_pylist()] == values


def test_times_of_day_are_for_iceberg_alone():
    assert stored_type(pa.time32("s"), "iceberg") == pa.time64("us")
    with pytest.raises(NoType):
        stored_type(pa.time32("s"), "delta")


def test_a_narrower_column_is_refused_and_a_wider_one_taken():
    results = pa.schema([("n", pa.int32())])
    assert fit(results, pa.schema([("n", pa.int64())]), "delta", "t", False).written == pa.schema([("n", pa.int64())])
    with pytest.raises(OutputError, match="'n' is int16 in the table, int32 in the results"):
        fit(results, pa.schema([("n", pa.int16())]), "delta", "t", True)


def test_new_columns_are_refused_or_added():
    results, table = pa.schema([("id", pa.string()), ("label", pa.string())]), pa.schema([("id", pa.string())])
    with pytest.raises(OutputError, match="no column 'label'") as refused:
        fit(results, table, "iceberg", "t", False)
    assert "schema_evolution: additive" in refused.value.remedy
    assert fit(results, table, "iceberg", "t", True).added == ("label",)


def test_a_column_that_must_have_a_value_is_needed():
    table = pa.schema([pa.field("id", pa.string()), pa.field("team", pa.string(), nullable=False)])
    with pytest.raises(OutputError, match="needs a value in column 'team'"):
        fit(pa.schema([("id", pa.string())]), table, "delta", "t", False)
