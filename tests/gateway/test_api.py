"""The HTTP application without a server and without Ray: what it takes, what it refuses, and what it keeps."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from batchinfer.gateway.app import build_app
from batchinfer.gateway.engines import Engines, load_engines
from batchinfer.gateway.keys import KeyLimits, create_key, list_keys, revoke_key
from batchinfer.gateway.records import BatchEnd, BatchProgress
from batchinfer.gateway.root import GatewayRoot

ENGINES = """
engines:
  m: {model: {source: scripted}}
  vectors: {task: embed, model: {source: qwen3-embedding-0.6b}}
  theirs: {model: {source: scripted}, owners: [team-b]}
limits: {max_file_bytes: 100000}
"""
CHAT = "/v1/chat/completions"


def line(model: str = "m", url: str = CHAT) -> bytes:
    body = {"model": model, "messages": [{"role": "user", "content": "x"}]}
    return json.dumps({"custom_id": "a", "method": "POST", "url": url, "body": body}).encode() + b"\n"


@pytest.fixture
def engines(tmp_path: Path) -> Engines:
    (tmp_path / "engines.yaml").write_text(ENGINES)
    return load_engines(str(tmp_path / "engines.yaml"))


@pytest.fixture
def root(tmp_path: Path) -> GatewayRoot:
    return GatewayRoot(str(tmp_path / "root"))


@pytest.fixture
def client(root: GatewayRoot, engines: Engines) -> TestClient:
    # A bug is to be an answer of 500 here, as it is for a client.
    return TestClient(build_app(root.uri, engines), "http://127.0.0.1:8000", raise_server_exceptions=False)


def upload(client: TestClient, content: bytes, **how: Any) -> str:
    answer = client.post("/v1/files", files={"file": ("in.jsonl", content)}, data={"purpose": "batch"}, **how)
    assert answer.status_code == 200, answer.text
    return str(answer.json()["id"])


def batch(client: TestClient, file_id: str, **changes: Any) -> Any:
    asked = {"input_file_id": file_id, "endpoint": CHAT, "completion_window": "24h", **changes}
    return client.post("/v1/batches", json={name: value for name, value in asked.items() if value is not None})


def code_of(answer: Any) -> tuple[int, str | None]:
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
    return answer.status_code, answer.json()["error"]["code"]


def test_a_file_is_kept_byte_for_byte_and_served_in_ranges(client: TestClient) -> None:
    content = bytes(range(256)) * 300
    file_id = upload(client, content)
    place = f"/v1/files/{file_id}/content"
    assert client.get(place).content == content
    assert client.get(f"/v1/files/{file_id}").json()["bytes"] == len(content)
    for header, expected in (
        ("bytes=10-19", content[10:20]),
        ("bytes=-7", content[-7:]),
        ("bytes=76790-", content[76790:]),
    ):
        answer = client.get(place, headers={"Range": header})
        assert (answer.status_code, answer.content) == (206, expected)
    assert client.get(place, headers={"Range": "bytes=900000-"}).status_code == 416
    assert client.delete(f"/v1/files/{file_id}").json()["deleted"] is True
    assert client.get(place).status_code == 404


def test_lists_have_the_newest_first_and_pages_that_follow_each_other(client: TestClient) -> None:
    ids = [upload(client, line()) for _ in range(5)]
    made = [batch(client, ids[0]).json()["id"] for _ in range(5)]
    # Ids of one millisecond have no order: pages are to hold each object once.
    seen, after = [], None
    while True:
        page = client.get("/v1/batches", params={"limit": 2} | ({"after": after} if after else {})).json()
        seen += [one["id"] for one in page["data"]]
        after = page["last_id"]
        if not page["has_more"]:
            break
    assert sorted(seen) == sorted(made)
    assert len(seen) == 5
    assert {one["id"] for one in client.get("/v1/files", params={"order": "asc"}).json()["data"]} == set(ids)


def test_a_batch_waits_in_the_queue_and_reads_its_file_until_it_ends(client: TestClient, root: GatewayRoot) -> None:
    file_id = upload(client, line() * 3)
    made = batch(client, file_id, metadata={"why": "test"}).json()
    assert (made["status"], made["request_counts"]["total"], made["metadata"]) == ("validating", 3, {"why": "test"})
    assert made["expires_at"] - made["created_at"] == 86_400
    ((entry,),) = root.queued().values()
    assert entry.batch_id == made["id"]
    assert code_of(client.delete(f"/v1/files/{file_id}")) == (409, "file_in_use")
    assert client.post(f"/v1/batches/{made['id']}/cancel").json()["status"] == "cancelling"
    record = root.batch("local", made["id"])
    assert record is not None
    root.end(record, BatchEnd(status="cancelled", at=1, progress=BatchProgress(total=3)))
    assert client.get(f"/v1/batches/{made['id']}").json()["cancelled_at"] == 1
    assert root.queued() == {}
    assert client.delete(f"/v1/files/{file_id}").status_code == 200


def test_of_two_ends_the_first_stays(client: TestClient, root: GatewayRoot) -> None:
    made = batch(client, upload(client, line())).json()
    record = root.batch("local", made["id"])
    assert record is not None
    root.end(record, BatchEnd(status="completed", at=1, progress=BatchProgress()))
    root.end(record, BatchEnd(status="failed", at=2, progress=BatchProgress()))
    assert client.get(f"/v1/batches/{made['id']}").json()["status"] == "completed"


@pytest.mark.parametrize(
    ("content", "endpoint", "code"),
    [
        (b"no json\n", CHAT, "invalid_json_line"),
        (b"[1]\n", CHAT, "invalid_json_line"),
        (b'{"body": {"model": "m"}}\n', CHAT, "invalid_json_line"),
        (b"[" * 90_000, CHAT, "invalid_json_line"),
        (b"\x1f\x8b broken gzip", CHAT, "invalid_file"),
        (line("gpt-9"), CHAT, "model_not_found"),
        (line("theirs"), CHAT, "model_not_found"),
        (line("vectors"), CHAT, "mismatched_endpoint"),
        (line("m", "/v1/completions"), CHAT, "mismatched_endpoint"),
    ],
)
def test_a_file_that_no_engine_can_answer_is_a_failed_batch_that_says_why(
    client: TestClient, root: GatewayRoot, content: bytes, endpoint: str, code: str
) -> None:
    made = batch(client, upload(client, content), endpoint=endpoint).json()
    assert made["status"] == "failed"
    assert [one["code"] for one in made["errors"]["data"]] == [code]
    assert made["failed_at"] is not None
    assert root.queued() == {}


def test_hostile_calls_are_refused_and_leave_nothing(client: TestClient, root: GatewayRoot, tmp_path: Path) -> None:
    (tmp_path / "secret.json").write_text('{"id": "x"}')
    file_id = upload(client, line())
    before = sorted(str(path) for path in tmp_path.rglob("*"))
    form = {"Content-Type": "multipart/form-data; boundary=b"}
    begin = b'--b\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n'
    head = b'--b\r\nContent-Disposition: form-data; name="file"; filename="x"\r\n\r\n'
    answers = [
        *(client.get(f"/v1/files/{one}") for one in ("..%2F..%2Fsecret.json", "%00", "file-" + "0" * 32, "a" * 9000)),
        *(client.get(f"/v1/batches/{one}") for one in ("../../keys", "batch_%2e%2e", "batch_" + "G" * 32)),
        client.delete("/v1/files/%2e%2e%2f%2e%2e"),
        client.post("/v1/batches/%2e%2e/cancel"),
        client.get("/v1/files", params={"after": "../x"}),
        client.get("/v1/batches", params={"limit": "9" * 5000}),
        client.get("/v1/batches", params={"limit": "-1"}),
        client.get("/v1/models/..%2f..%2fetc"),
        client.post("/v1/batches", content=b"{" * 5000),
        client.post("/v1/batches", content=b"[" * 100_000),
        client.post("/v1/batches", content=b'"text"'),
        client.post("/v1/batches", content=b"x" * 300_000),
        client.post("/v1/batches", content=b"\xff\xfe"),
        batch(client, "../../secret"),
        batch(client, file_id, endpoint="/v1/../x"),
        batch(client, file_id, completion_window="1y"),
        batch(client, file_id, completion_window="99999999999999h"),
        batch(client, file_id, metadata={"a": 1}),
        batch(client, file_id, metadata={"a": "x" * 600}),
        client.post("/v1/batches", content=json.dumps(
            {"input_file_id": file_id, "endpoint": CHAT, "completion_window": "1h", "metadata": {"a": "\ud800"}})),
        client.post("/v1/files", content=b"x"),
        client.post("/v1/files", content=b"x", headers=form),
        client.post("/v1/files", content=begin + head + line(), headers=form),
        client.post("/v1/files", content=begin + b"--b--\r\n", headers=form),
        client.post("/v1/files", content=begin + head + b"\r\n--b--\r\n", headers=form),
        client.post("/v1/files", content=head + line() + b"\r\n--b--\r\n", headers=form),
        client.post("/v1/files", content=begin + head + b"x\r\n" + head + b"y\r\n--b--\r\n", headers=form),
        client.post("/v1/files", content=begin + head + b"x" * 200_000 + b"\r\n--b--\r\n", headers=form),
        client.post("/v1/files", content=(head[i : i + 50] for i in range(0, 10**6, 50)), headers=form),
        client.post("/v1/files", content=(b"x" * 1000 for _ in range(1)), headers={"Content-Type": "a" * 5000}),
        client.request("TRACE", "/v1/files"),
        client.put("/v1/batches"),
    ]  # fmt: skip
    for answer in answers:
        assert 400 <= answer.status_code < 500, (answer.request.url, answer.status_code, answer.text)
        assert "Traceback" not in answer.text
        assert str(tmp_path) not in answer.text
        code_of(answer)
    assert sorted(str(path) for path in tmp_path.rglob("*")) == before


def test_a_file_beyond_the_limit_is_refused_while_it_streams(client: TestClient) -> None:
    sent = 0

    def parts() -> Iterator[bytes]:
        nonlocal sent
        yield b'--b\r\nContent-Disposition: form-data; name="file"; filename="x"\r\n\r\n'
        for _ in range(1000):
            sent += 10_000
            yield b"x" * 10_000

    answer = client.post("/v1/files", content=parts(), headers={"Content-Type": "multipart/form-data; boundary=b"})
    assert code_of(answer) == (413, "file_too_large")


@pytest.mark.parametrize("headers", [{"Origin": "https://a.example"}, {"Origin": "null"}, {"Host": "a.example"}])
def test_a_page_of_a_browser_is_served_only_with_a_key(
    root: GatewayRoot, engines: Engines, client: TestClient, headers: dict[str, str]
) -> None:
    sent = client.post("/v1/files", files={"file": ("in.jsonl", line())}, data={"purpose": "batch"}, headers=headers)
    assert code_of(sent) == (403, "key_needed")
    key = create_key(root, "one", "team-a", {}, KeyLimits())
    with_key = TestClient(build_app(root.uri, engines), headers={**headers, "Authorization": f"Bearer {key}"})
    assert with_key.get("/v1/files").json()["data"] == []


def test_with_a_key_owners_see_only_their_own(client: TestClient, root: GatewayRoot) -> None:
    keys = {
        owner: create_key(root, f"{owner} key", owner, {"project": "x"}, KeyLimits()) for owner in ("team-a", "team-b")
    }
    a, b = ({"headers": {"Authorization": f"Bearer {key}"}} for key in keys.values())
    assert code_of(client.get("/v1/files")) == (401, "invalid_api_key")
    assert client.get("/v1/files", headers={"Authorization": "Bearer sk-bi-" + "A" * 43}).status_code == 401
    file_id = upload(client, line(), **a)
    made = client.post("/v1/batches", json={"input_file_id": file_id, "endpoint": CHAT, "completion_window": "1h"}, **a)
    batch_id = made.json()["id"]
    assert client.get(f"/v1/batches/{batch_id}", **a).status_code == 200
    for call in (
        client.get(f"/v1/files/{file_id}", **b),
        client.get(f"/v1/files/{file_id}/content", **b),
        client.delete(f"/v1/files/{file_id}", **b),
        client.get(f"/v1/batches/{batch_id}", **b),
        client.post(f"/v1/batches/{batch_id}/cancel", **b),
    ):
        assert call.status_code == 404
    assert client.get("/v1/files", **b).json()["data"] == []
    assert {one["id"] for one in client.get("/v1/models", **a).json()["data"]} == {"m", "vectors"}
    assert {one["id"] for one in client.get("/v1/models", **b).json()["data"]} == {"m", "vectors", "theirs"}
    record = root.batch("team-a", batch_id)
    assert record is not None
    assert record.labels == {"project": "x"}


def test_the_root_holds_no_key_and_a_revoked_one_does_not_work(root: GatewayRoot, engines: Engines) -> None:
    key = create_key(root, "one", "team-a", {}, KeyLimits())
    assert all(key.encode() not in path.read_bytes() for path in Path(root.uri).rglob("*") if path.is_file())
    revoke_key(root, "one")
    assert [one.revoked for one in list_keys(root)] == [True]
    client = TestClient(build_app(root.uri, engines))
    # Also once no key is left, nobody gets in without one.
    assert client.get("/v1/files", headers={"Authorization": f"Bearer {key}"}).status_code == 401
    assert client.get("/v1/files").status_code == 401


def test_quotas_of_a_month_count_what_waits(client: TestClient, root: GatewayRoot) -> None:
    key = create_key(root, "k", "team-a", {}, KeyLimits(requests_per_month=5, max_file_bytes=5000))
    how = {"headers": {"Authorization": f"Bearer {key}"}}
    asked = {"endpoint": CHAT, "completion_window": "1h"}
    file_id = upload(client, line() * 3, **how)
    assert client.post("/v1/batches", json={"input_file_id": file_id, **asked}, **how).status_code == 200
    refused = client.post("/v1/batches", json={"input_file_id": file_id, **asked}, **how)
    assert code_of(refused) == (429, "insufficient_quota")
    assert "Retry-After" in refused.headers
    large = client.post("/v1/files", files={"file": ("x", b"y" * 6000)}, data={"purpose": "batch"}, **how)
    assert large.status_code == 413


def test_too_many_calls_are_told_when_to_come_back(client: TestClient, root: GatewayRoot) -> None:
    key = create_key(root, "k", "team-a", {}, KeyLimits(requests_per_minute=3))
    how = {"headers": {"Authorization": f"Bearer {key}"}}
    answers = [client.get("/v1/models", **how) for _ in range(5)]
    assert [one.status_code for one in answers][:4] == [200, 200, 200, 429]
    assert 1 <= int(answers[3].headers["Retry-After"]) <= 60


def test_operators_see_health_and_queues(client: TestClient) -> None:
    batch(client, upload(client, line()))
    assert client.get("/healthz").json() == {"status": "ok"}
    assert 'batchinfer_gateway_unfinished_batches{model="m"} 1.0' in client.get("/metrics").text
