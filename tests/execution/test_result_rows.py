from __future__ import annotations

from collections import Counter

import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from batchinfer.engine import Completion
from batchinfer.errors import REJECTED_CODES, RowError
from batchinfer.execution.result_rows import counts, result_table
from tests.support.builders import make_envelope, make_spec

CODES = st.sampled_from(["engine_rejected", "output_invalid"])
TOKENS = st.integers(0, 2**31 - 1)


def completions(n):
    """Answered, answered in the wrong shape, and not run at all."""
    answers = st.lists(st.text(max_size=3), min_size=n, max_size=n)
    reasons = st.lists(st.sampled_from(["stop", "length"]), min_size=n, max_size=n)
    errors = st.none() | st.builds(RowError, CODES, st.just("why"))
    answered = st.builds(Completion, answers, reasons, TOKENS, TOKENS, TOKENS, errors)
    return st.lists(answered | st.builds(Completion.failed, st.builds(RowError, CODES, st.just("why")), TOKENS))


@given(st.integers(1, 3).flatmap(lambda n: st.tuples(st.just(n), completions(n))))
def test_what_a_record_counts_is_what_the_rows_hold(drawn):
    n, done = drawn
    spec = make_spec(sampling={"n": n, "temperature": 1.0})
    rows = pa.table({"id": pa.array(range(len(done)), pa.int64())})
    results = result_table(spec, rows, make_envelope(), [done])
    assert results.column("error_code").to_pylist() == [c.error.code if c.error else None for c in done]
    ran = [c for c in done if c.error is None or c.error.code not in REJECTED_CODES]
    errors = Counter(c.error.code for c in done if c.error)
    assert counts(results) == {
        "rows_failed": errors.total(),
        "input_tokens": sum(c.input_tokens for c in ran),
        "cached_tokens": sum(c.cached_tokens for c in ran),
        "output_tokens": sum(c.output_tokens for c in ran),
        "rejected_tokens": sum(c.input_tokens for c in done if c not in ran),
        "errors": dict(errors),
        "finish_reasons": dict(Counter(reason for c in done if not c.error for reason in c.finish_reasons)),
    }
