"""Every architecture of the catalog that the engine runs: a shrunken random checkpoint, the same greedy tokens
as `transformers`, in float32. What the engine dropped (MPT, the first Qwen) is in the catalog's own tests.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.support.engine_process import in_one_process, spec_values
from tests.support.tiny_models import ARCHITECTURES, NEW_TOKENS, TEXTS

pytestmark = pytest.mark.end_to_end

SCRIPT = """
from pathlib import Path
from tests.support.engine_process import answers
from tests.support.tiny_models import TEXTS, make_checkpoint, reference

found = {}
for name, spec in given.items():
    folder = Path(spec["model"]["source"])
    make_checkpoint(name, folder)
    found[name] = {"reference": reference(name, folder)}
for name, spec in given.items():
    found[name]["engine"] = answers(spec, TEXTS)
report(found)
"""


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder: Path = tmp_path_factory.mktemp("architectures")
    sampling = {"max_tokens": NEW_TOKENS, "temperature": 0, "ignore_eos": True, "logprobs": 0}
    specs = {name: spec_values({"source": str(folder / name)}, sampling) for name in ARCHITECTURES}
    return in_one_process(SCRIPT, specs, folder)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_greedy_tokens_equal_those_of_transformers(architecture: str, found: Any) -> None:
    engine, reference = found[architecture]["engine"], found[architecture]["reference"]
    assert engine.get("error") is None
    assert engine["tokens"] == reference["tokens"]
    assert len({tuple(tokens) for tokens in reference["tokens"]}) == len(TEXTS), "each prompt has its own answer"
    assert reference["lead"] > 1e-4, "no two tokens so close that rounding would decide"
    assert 128 < reference["prompt_tokens"] < 248, "longer than any window"
