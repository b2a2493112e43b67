"""What a line of a batch file asks of the engine, and which lines are refused."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batchinfer.errors import ROW_ERROR_CODES, RowError
from batchinfer.jobspec.sampling_keys import NO_LIMIT
from batchinfer.prompting.openai_requests import CHAT, COMPLETIONS, EMBEDDINGS, BatchRequest, BatchRequests
from batchinfer.prompting.row_sampling import RowSampling
from tests.support.builders import make_spec

INPUT = {"uri": "/in.jsonl", "format": "openai_batch"}
MESSAGES = [{"role": "user", "content": "Hello"}]


def batch_spec(**sections: Any) -> Any:
    given = {"input": INPUT | sections.pop("input", {}), "prompt": {}, **sections}
    return make_spec(**given)


def read(body: Any, url: str = CHAT, method: str = "POST", **sections: Any) -> BatchRequest | RowError:
    return BatchRequests(batch_spec(**sections)).request(method, url, json.dumps(body))


def asked(body: Any, url: str = CHAT, **sections: Any) -> BatchRequest:
    found = read(body, url, **sections)
    assert isinstance(found, BatchRequest), found
    return found


def refused(body: Any, url: str = CHAT, **sections: Any) -> str:
    found = read(body, url, **sections)
    assert isinstance(found, RowError)
    assert found.code == "request_invalid"
    return found.message


def sampled(body: Any, url: str = CHAT, **sections: Any) -> Any:
    spec = batch_spec(**sections)
    (prompt,) = asked(body, url, **sections).prompts
    return RowSampling(spec.step_jobs[prompt.step]).of(prompt)


def test_a_body_says_how_its_own_answer_is_sampled() -> None:
    body = {
        "messages": MESSAGES,
        "temperature": 0.2,
        "top_p": 0.9,
        "n": 3,
        "seed": 7,
        "stop": ["a", "b"],
        "max_tokens": 9,
        "max_completion_tokens": 8,
        "logit_bias": {"5": 1000, "6": -3},
        "logprobs": True,
        "top_logprobs": 4,
        "user": "somebody",
    }
    mine = sampled(body)
    assert (mine.temperature, mine.top_p, mine.n, mine.seed, mine.stop) == (0.2, 0.9, 3, 7, ("a", "b"))
    # The newer key holds, and biases end at 100, as at OpenAI.
    assert (mine.max_tokens, mine.logit_bias, mine.logprobs) == (8, {5: 100.0, 6: -3.0}, 4)


def test_what_a_body_leaves_out_is_as_openai_has_it_and_the_spec_may_say_otherwise() -> None:
    usual = sampled({"messages": MESSAGES})
    assert (usual.temperature, usual.max_tokens, usual.repetition_detection) == (1.0, NO_LIMIT, None)
    assert sampled({"prompt": "Hello"}, COMPLETIONS).max_tokens == 16
    of_spec = sampled({"messages": MESSAGES}, sampling={"temperature": 0, "max_tokens": 50})
    assert (of_spec.temperature, of_spec.max_tokens, of_spec.repetition_detection) == (0.0, 50, None)


def test_empty_lists_and_nulls_say_nothing() -> None:
    body = {"messages": MESSAGES, "stop": [], "stop_token_ids": [], "bad_words": [], "seed": None, "tools": None}
    assert asked(body).prompts[0].sampling is None


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"tools": [{"type": "function"}]}, "tools is not supported"),
        ({"stream": True}, "stream is not supported"),
        ({"stream": 0}, "stream is not supported"),
        ({"temprature": 1}, "did you mean temperature"),
        ({"temperature": 3}, "temperature: input should be less than or equal to 2"),
        ({"n": 2, "temperature": 0}, "n > 1 with temperature 0"),
        ({"top_logprobs": 3}, "top_logprobs needs logprobs: true"),
        ({"logprobs": 3}, "logprobs is not true or false"),
        ({"logprobs": True, "top_logprobs": 21}, "logprobs: input should be less than or equal to 20"),
        ({"max_tokens": 0}, "max_tokens: input should be greater than or equal to 1"),
        ({"response_format": {"type": "xml"}}, "response_format is 'xml'"),
        ({"response_format": {"type": "json_schema"}}, "has no schema"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": 1}}}},
            "not a valid JSON Schema",
        ),
        ({"prompt": "Hello"}, "has no key 'prompt'"),
        ({"logit_bias": {"x": 1}}, "logit_bias is not an object"),
    ],
)
def test_a_key_that_would_change_the_answer_is_never_passed_over(change: dict[str, Any], told: str) -> None:
    assert told in refused({"messages": MESSAGES, **change})


def test_messages_of_pictures_are_refused_and_text_parts_are_joined() -> None:
    picture = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]
    found = read({"messages": picture})
    assert isinstance(found, RowError)
    assert found.code == "prompt_invalid"
    parts = [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}]
    assert asked({"messages": parts}).prompts[0].messages == ({"role": "user", "content": "a\nb"},)


def test_the_answer_to_a_schema_has_its_keys_in_the_order_of_the_schema() -> None:
    schema = {"type": "object", "properties": {"z": {"type": "string"}, "a": {"type": "string"}}}
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    found = asked({"messages": MESSAGES, "response_format": form}).prompts[0].schema
    assert found is not None
    assert list(json.loads(found)["properties"]) == ["z", "a"]
    assert asked({"messages": MESSAGES, "response_format": {"type": "json_object"}}).prompts[0].schema == "true"
    assert asked({"messages": MESSAGES, "response_format": {"type": "text"}}).prompts[0].schema is None


def test_a_list_of_texts_is_one_request_with_several_prompts() -> None:
    request = asked({"prompt": ["a", "b"], "logprobs": 2}, COMPLETIONS)
    assert [prompt.text for prompt in request.prompts] == ["a", "b"]
    assert request.top_logprobs == 2
    # The second kind of a job's requests is the plain text.
    assert {prompt.step for prompt in request.prompts} == {1}
    assert refused({"prompt": [1, 2]}, COMPLETIONS) == "prompt is not a text or a list of texts"


def test_embeddings_need_task_embed_and_have_an_encoding() -> None:
    model = {"source": "/a/model"}
    found = asked(
        {"input": ["a", "b"], "encoding_format": "base64", "dimensions": 8}, EMBEDDINGS, task="embed", model=model
    )
    assert found.encoding == "base64"
    assert {(prompt.step, prompt.dimensions) for prompt in found.prompts} == {(0, 8)}
    assert "answers /v1/chat/completions and /v1/completions" in refused({"input": "a"}, EMBEDDINGS)
    assert "answers /v1/embeddings" in refused({"messages": MESSAGES}, CHAT, task="embed", model=model)


def test_names_of_models_are_checked_if_the_spec_has_them() -> None:
    body = {"model": "gpt-4o-mini", "messages": MESSAGES}
    assert asked(body)
    assert asked(body, input={"models": ["gpt-4o-mini", "other"]})
    found = read(body, input={"models": ["other"]})
    assert isinstance(found, RowError)
    assert found.code == "model_not_found"


@pytest.mark.parametrize(("method", "url"), [("GET", CHAT), ("POST", "/v1/audio/speech"), ("POST", "../x")])
def test_other_methods_and_endpoints_are_refused(method: str, url: str) -> None:
    found = read({"messages": MESSAGES}, url, method)
    assert isinstance(found, RowError)
    assert found.code == "request_invalid"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
    max_leaves=6,
)
KEYS = st.sampled_from(
    [*("messages", "prompt", "input", "model", "n", "stop", "logit_bias", "response_format", "max_tokens"),
     *("logprobs", "top_logprobs", "tools", "seed", "temperature", "encoding_format", "dimensions", "best_of")]
)  # fmt: skip


READER = BatchRequests(batch_spec())


@given(st.dictionaries(KEYS, JSON) | JSON, st.sampled_from([CHAT, COMPLETIONS]))
@settings(max_examples=80)
def test_whatever_a_body_holds_it_is_a_request_or_an_error_of_its_row(body: Any, url: str) -> None:
    found = READER.request("POST", url, json.dumps(body))
    assert isinstance(found, BatchRequest) or found.code in ROW_ERROR_CODES
