"""Requests of a batch file on the real engine: each sampled by itself, and responses with the keys of vLLM's."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.support import ROOT
from tests.support.engine_process import in_one_process

pytestmark = pytest.mark.integration

SCRIPT = """
import json
import pyarrow as pa
from batchinfer.engine import start_engine
from batchinfer.execution.row_requests import RequestRows
from batchinfer.jobspec import JobSpec
from tests.support.builders import make_plan
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionResponse
from vllm.entrypoints.openai.completion.protocol import CompletionResponse
from vllm.entrypoints.pooling.embed.protocol import EmbeddingResponse

CLASSES = {"/v1/chat/completions": ChatCompletionResponse, "/v1/completions": CompletionResponse,
           "/v1/embeddings": EmbeddingResponse}
plan = make_plan(accelerator="cpu", tensor_parallel=1, num_gpus=0, price_per_gpu_hour=0.0)
found = []
for values, requests in given:
    spec = JobSpec.model_validate(values)
    engine = start_engine(spec, plan)
    try:
        rows = pa.table({"custom_id": [str(i) for i in range(len(requests))], "method": ["POST"] * len(requests),
                         "url": [url for url, _ in requests], "body": [json.dumps(body) for _, body in requests]})
        (made,) = RequestRows(spec).run(rows, lambda prompts, _: engine.generate(prompts, lambda n: 0, lambda n: 0))
    finally:
        engine.close()
    for (url, _), one in zip(requests, made):
        body = json.loads(one.response) if one.response else None
        # As vLLM's command writes it.
        theirs = json.loads(CLASSES[url].model_validate(body).model_dump_json()) if body else None
        found.append({"error": one.error and [one.error.code, one.error.message], "body": body, "theirs": theirs})
report(found)
"""

CHAT, TEXT, EMBED = "/v1/chat/completions", "/v1/completions", "/v1/embeddings"
MESSAGES = [{"role": "user", "content": "def read(path):\n    return open(path).read()"}]
SCHEMA = {"type": "object", "properties": {"z": {"enum": ["x", "y"]}, "a": {"type": "boolean"}}, "required": ["z", "a"]}


def chat(**keys: Any) -> tuple[str, dict[str, Any]]:
    return CHAT, {"messages": MESSAGES, "temperature": 0, "max_tokens": 12, **keys}


def form(schema: dict[str, Any]) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "form", "schema": schema}}


REQUESTS = {
    "plain": chat(),
    "short": chat(max_tokens=3, ignore_eos=True),
    "several": chat(n=3, temperature=1.5, seed=1),
    "logprobs": chat(logprobs=True, top_logprobs=2),
    "schema": chat(max_tokens=60, response_format=form(SCHEMA)),
    "other schema": chat(max_tokens=60, response_format=form({"enum": ["only"]})),
    "json": chat(max_tokens=4, response_format={"type": "json_object"}),
    "token": chat(stop_token_ids=[999_999]),
    "unknown to xgrammar": chat(response_format=form({"type": "number", "multipleOf": 3})),
    "room": chat(max_tokens=100_000),
    "text": (TEXT, {"prompt": ["def", "import"], "temperature": 0, "max_tokens": 5, "logprobs": 1}),
}
EMBEDDED = {
    "vectors": (EMBED, {"input": ["one", "two"]}),
    "packed": (EMBED, {"input": "one", "encoding_format": "base64"}),
    "dimensions": (EMBED, {"input": "one", "dimensions": 3}),
}


def spec(**sections: Any) -> dict[str, Any]:
    return {
        "name": "x",
        "model": {"source": str(ROOT / "jobs" / "demo" / "model"), "dtype": "float32"},
        "input": {"uri": "in", "format": "openai_batch", "models": ["m"]},
        "output": {"uri": "out"},
        "engine": {"max_model_len": 256, "enforce_eager": True, "kv_cache_memory_bytes": 2**26},
        **sections,
    }


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    given = [(spec(), list(REQUESTS.values())), (spec(task="embed"), list(EMBEDDED.values()))]
    found = in_one_process(SCRIPT, given, tmp_path_factory.mktemp("requests"))
    return dict(zip([*REQUESTS, *EMBEDDED], found, strict=True))


def choices(one: dict[str, Any]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = one["body"]["choices"]
    return found


def test_responses_have_the_keys_of_vllms_and_no_other(made: dict[str, Any]) -> None:
    answered = [one for one in made.values() if one["body"] is not None]
    assert len(answered) == 10
    for one in answered:
        assert one["body"] == one["theirs"]
        assert one["body"]["model"] == "m"


def test_each_request_is_sampled_by_its_own_keys(made: dict[str, Any]) -> None:
    assert choices(made["short"])[0]["finish_reason"] == "length"
    assert made["short"]["body"]["usage"]["completion_tokens"] == 3
    assert len(choices(made["several"])) == 3
    first = choices(made["logprobs"])[0]["logprobs"]["content"][0]
    assert len(first["top_logprobs"]) == 2
    assert first["bytes"] == list(first["token"].encode())
    assert choices(made["plain"])[0]["logprobs"] is None
    assert choices(made["plain"])[0]["message"] == choices(made["logprobs"])[0]["message"]


def test_each_answer_has_the_shape_that_its_request_asks_for(made: dict[str, Any]) -> None:
    answer = json.loads(choices(made["schema"])[0]["message"]["content"])
    assert list(answer) == ["z", "a"]
    assert answer["z"] in ("x", "y")
    assert choices(made["other schema"])[0]["message"]["content"] == '"only"'
    assert choices(made["json"])[0]["message"]["content"].startswith("{")


def test_texts_go_on_without_a_chat_template(made: dict[str, Any]) -> None:
    assert [choice["index"] for choice in choices(made["text"])] == [0, 1]
    assert all(len(choice["logprobs"]["tokens"]) <= 5 for choice in choices(made["text"]))
    # One token of the text, and those that the tokenizer adds.
    assert made["text"]["body"]["usage"]["prompt_tokens"] < made["plain"]["body"]["usage"]["prompt_tokens"]


def test_a_request_that_vllm_refuses_fails_alone(made: dict[str, Any]) -> None:
    assert made["token"]["error"][0] == "request_invalid"
    assert made["unknown to xgrammar"]["error"][0] == "request_invalid"
    assert made["room"]["error"][0] == "prompt_too_long"
    assert made["dimensions"]["error"][0] == "request_invalid"


def test_vectors_are_lists_of_numbers_or_the_same_packed(made: dict[str, Any]) -> None:
    import base64

    import numpy as np

    one, two = (entry["embedding"] for entry in made["vectors"]["body"]["data"])
    assert sum(x * x for x in one) == pytest.approx(1.0, abs=1e-5)
    assert one != two
    packed = np.frombuffer(base64.b64decode(made["packed"]["body"]["data"][0]["embedding"]), "<f4")
    assert packed == pytest.approx(one, abs=1e-6)
    assert made["vectors"]["body"]["usage"]["completion_tokens"] == 0
