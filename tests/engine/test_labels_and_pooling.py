"""Labels with their confidence, and pooling models, on the real engine: against `transformers` on random checkpoints.

One process for all, as in `test_vllm_engine.py`.
"""

from __future__ import annotations

import math
from typing import Any

import pytest

from tests.support.engine_process import in_one_process

pytestmark = pytest.mark.end_to_end

SCRIPT = """
from pathlib import Path
from batchinfer.engine import start_engine
from batchinfer.planner import Cluster, make_plan
from batchinfer.prompting.prompts import Prompt
from batchinfer.jobspec import JobSpec
from tests.support import pooling_models, tiny_models
from tests.support.engine_process import forget_groups

folder = Path(given["folder"])
tiny_models.make_checkpoint("Qwen3ForCausalLM", folder / "qwen")
pooling_models.make_checkpoints(folder)
cluster = Cluster(gpus=0, largest_node_gpus=0, accelerator_type=None, memory_bytes=2**33)
found, reference = {}, {}
for name, keys in given["cases"].items():
    keys["model"] = {"source": str(folder / keys["model"]), "dtype": "float32"}
    spec = JobSpec.model_validate(keys)
    engine = start_engine(spec, make_plan(spec, cluster, "x"))
    query = Prompt("alpha file")
    made = engine.generate([Prompt(text=t, query=query) for t in given["texts"]], lambda n: None, lambda n: None)
    found[name] = [
        {"texts": c.texts, "probabilities": c.probabilities, "score": c.score, "out": c.output_tokens,
         "vector": None if c.embedding is None else c.embedding.tolist(), "error": c.error and c.error.message}
        for c in made]
    engine.close()
    del engine
    forget_groups()
for name in ("bert", "modernbert"):
    reference[name] = pooling_models.classified(folder / name, given["texts"])
for name in ("reranker", "xlmr"):
    reference[name] = pooling_models.scored(folder / name, "alpha file", given["texts"])
reference["qwen"] = pooling_models.embedded(folder / "qwen", given["texts"])
reference["labels"] = pooling_models.label_probabilities(folder / "qwen", given["texts"], given["labels"])
report({"found": found, "reference": reference})
"""

LABELS = ["data", "database", "größe", "read a file", "read a list"]
TEXTS = ["def read(self): read a file", "alpha beta gamma delta", "the sum of all numbers", "x"]


def keys(model: str, **more: Any) -> dict[str, Any]:
    return {
        "name": "x",
        "model": model,
        "input": {"uri": "in"},
        "prompt": {"column": "text"},
        "output": {"uri": "out"},
        "engine": {"max_model_len": 128, "enforce_eager": True, "kv_cache_memory_bytes": 2**26},
    } | more


CASES = {
    "labels": keys(
        "qwen",
        sampling={"max_tokens": 20, "temperature": 0},
        output={"uri": "out", "choices": LABELS, "confidence": True},
    ),
    "drawn": keys(
        "qwen",
        sampling={"max_tokens": 20, "temperature": 2.0},
        output={"uri": "out", "choices": ["data", "file", "sum"], "confidence": True},
    ),
    "many": keys("qwen", sampling={"max_tokens": 80}, output={"uri": "out", "choices": LABELS, "multi_label": True}),
    "bert": keys("bert", task="classify"),
    "modernbert": keys("modernbert", task="classify"),
    "reranker": keys("reranker", task="score", prompt={"column": "text", "query": "{{ q }}"}),
    "xlmr": keys("xlmr", task="score", prompt={"column": "text", "query": "{{ q }}"}),
    "qwen": keys("qwen", task="embed"),
    "cut": keys(
        "qwen",
        task="embed",
        embed={"dimensions": 32, "normalize": False},
        engine=keys("")["engine"] | {"extra": {"hf_overrides": {"is_matryoshka": True}}},
    ),
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("pooling")
    return in_one_process(SCRIPT, {"cases": CASES, "texts": TEXTS, "labels": LABELS, "folder": str(folder)}, folder)


def test_the_probabilities_of_labels_sum_to_one_and_the_likeliest_token_leads_the_answer(made: Any) -> None:
    for name in ("labels", "drawn"):
        for row in made["found"][name]:
            assert row["error"] is None
            assert sum(row["probabilities"].values()) == pytest.approx(1)
            assert row["texts"][0] in row["probabilities"]


def test_probabilities_are_those_of_every_way_to_write_a_label(made: Any) -> None:
    # "data" and "größe" part at once, so their probability is exact whichever answer was taken.
    for row, truth in zip(made["found"]["labels"], made["reference"]["labels"], strict=True):
        exact = ["größe"] + ([row["texts"][0]] if not row["texts"][0].startswith("read") else [])
        for label in exact:
            assert row["probabilities"][label] == pytest.approx(truth[label], rel=0.35, abs=0.02)


def test_lists_of_labels_hold_each_at_most_once_in_the_order_of_the_spec(made: Any) -> None:
    import json

    for row in made["found"]["many"]:
        found = json.loads(row["texts"][0])
        assert found == [label for label in LABELS if label in found]


@pytest.mark.parametrize("name", ["bert", "modernbert"])
def test_a_classifier_gives_the_probabilities_of_transformers(name: str, made: Any) -> None:
    for row, truth in zip(made["found"][name], made["reference"][name], strict=True):
        assert row["probabilities"] == pytest.approx(truth, abs=1e-4)
        assert row["texts"] == [max(truth, key=lambda label: truth[label])]


@pytest.mark.parametrize("name", ["reranker", "xlmr"])
def test_a_reranker_gives_the_score_of_transformers(name: str, made: Any) -> None:
    scores = [row["score"] for row in made["found"][name]]
    assert scores == pytest.approx(made["reference"][name], abs=1e-4)
    assert max(scores) - min(scores) > 0.01, "the texts are told apart"


def test_an_embedding_is_the_hidden_state_of_the_last_token(made: Any) -> None:
    for row, truth in zip(made["found"]["qwen"], made["reference"]["qwen"], strict=True):
        length = math.hypot(*truth)
        assert row["vector"] == pytest.approx([x / length for x in truth], abs=1e-4)


def test_an_embedding_is_cut_and_keeps_its_length_if_asked(made: Any) -> None:
    for row, truth in zip(made["found"]["cut"], made["reference"]["qwen"], strict=True):
        assert row["vector"] == pytest.approx(truth[:32], rel=1e-3, abs=1e-3)
