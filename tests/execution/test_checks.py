from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, scripted_spec

from batchinfer.errors import SpecError
from batchinfer.execution import runner


@pytest.mark.parametrize(
    ("key", "value"),
    [("stop_token_ids", [99_999_999]), ("allowed_token_ids", [5, -1]), ("logit_bias", {99_999_999: 1.0})],
)
def test_a_token_beyond_the_vocabulary_is_refused_before_the_start(
    corpus: Path, tmp_path: Path, key: str, value: Any
) -> None:
    spec = scripted_spec(
        corpus,
        tmp_path / "out",
        model={"source": str(ROOT / "jobs/demo/model")},
        sampling={"max_tokens": 4, key: value},
    )
    with pytest.raises(SpecError, match=rf"sampling\.{key} names token .* has tokens 0 to \d+"):
        runner.validate(spec)
