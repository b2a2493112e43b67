"""The columns of labels and vectors in the result table."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from batchinfer.engine import Completion
from batchinfer.errors import RowError
from batchinfer.execution.result_rows import labels_of, result_table
from batchinfer.jobspec import JobSpec
from tests.support.builders import make_envelope

FAILED = Completion.failed(RowError("prompt_empty", "the prompt has no text"))


def table(completions: list[Completion], width: int = 1, **keys: Any) -> pa.Table:
    spec = JobSpec.model_validate(
        {"name": "x", "model": {"source": "m"}, "input": {"uri": "in"}, "prompt": {"column": "text"}}
        | {"output": {"uri": "out"}}
        | keys
    )
    rows = pa.table({"text": [""] * len(completions)})
    return result_table(spec, rows, make_envelope(), [completions], width=width)


def labelled(label: str, probability: float) -> Completion:
    return Completion([label], ["stop"], 1, 0, 1, probabilities={label: probability, "c": 1 - probability})


def test_a_label_below_the_level_is_withheld_and_its_guess_kept() -> None:
    output = {"uri": "o", "choices": ["a", "b", "c"], "confidence": True, "abstain_below": 0.8}
    found = table([labelled("a", 0.9), labelled("b", 0.7), FAILED], output=output)
    assert found.column("output").to_pylist() == ["a", None, None]
    assert found.column("output_guess").to_pylist() == ["a", "b", None]
    assert found.column("output_confidence").to_pylist() == [0.9, 0.7, None]
    assert dict(found.column("output_probabilities").to_pylist()[0]) == pytest.approx({"a": 0.9, "c": 0.1})
    assert found.column("error_code").to_pylist() == [None, None, "prompt_empty"]


def test_a_list_of_labels_is_a_list_of_texts() -> None:
    output = {"uri": "o", "choices": ["a", "b"], "multi_label": True}
    completions = [Completion(['["a", "b"]'], ["stop"], 1, 0, 1), Completion(["[]"], ["stop"], 1, 0, 1), FAILED]
    found = table(completions, output=output).column("output")
    assert found.type == pa.list_(pa.string())
    assert found.to_pylist() == [["a", "b"], [], None]


@pytest.mark.parametrize("kind", ["float32", "float16", "int8"])
def test_vectors_have_a_fixed_size_also_in_a_shard_without_one(kind: str) -> None:
    vector = np.array([0.5, -1.0, 0.25, 0.0], np.float32)
    output = {"uri": "o", "embedding_type": kind}
    some = table([Completion([], ["stop"], 1, 0, 0, embedding=vector), FAILED], 4, task="embed", output=output)
    none = table([FAILED], 4, task="embed", output=output)
    assert some.schema == none.schema
    assert some.schema.field("output").type.list_size == 4
    stored = np.array(some.column("output").to_pylist()[0], np.float32)
    scale = some.column("output_scale").to_pylist()[0] if kind == "int8" else 1.0
    assert stored * scale == pytest.approx(vector, abs=1 / 254 + 1e-6)


def test_a_score_is_a_number() -> None:
    keys = {"task": "score", "prompt": {"column": "text", "query": "{{ q }}"}}
    found = table([Completion([], ["stop"], 1, 0, 0, score=0.25), FAILED], **keys).column("output")
    assert (found.type, found.to_pylist()) == (pa.float64(), [0.25, None])


def test_the_order_of_a_list_of_labels_does_not_count() -> None:
    assert labels_of(["b", "a"], True) == labels_of('["a", "b"]', True) == frozenset("ab")
    assert labels_of([], True) == frozenset()
    assert labels_of(None, True) is None
    assert labels_of("a", False) == frozenset("a")
