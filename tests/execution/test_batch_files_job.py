"""A whole job over a batch file of OpenAI's: its files, a retry, and the file of `run-batch`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from batchinfer.errors import OutputError
from batchinfer.execution import reports, runner
from batchinfer.execution.batch_command import job_of
from batchinfer.jobspec import JobSpec
from batchinfer.jobspec.vllm_command import read_command
from tests.support.scripted_jobs import KeepingListener, assert_ledger_adds_up, results

pytestmark = pytest.mark.end_to_end


def line(number: int, url: str = "/v1/chat/completions", **body: Any) -> str:
    if "prompt" not in body:
        body = {"messages": [{"role": "user", "content": f"text {number}"}]} | body
    request = {"custom_id": f"r-{number}", "method": "POST", "url": url, "body": {"model": "m", **body}}
    return json.dumps(request)


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(text) for text in path.read_text().splitlines()]


def contents(answer: dict[str, Any]) -> list[str]:
    choices = answer["response"]["body"]["choices"]
    return [choice["message"]["content"] if "message" in choice else choice["text"] for choice in choices]


def test_responses_are_in_the_order_of_the_requests_each_sampled_by_itself(tmp_path: Path, ray_cluster: object) -> None:
    special = {
        3: line(3, max_tokens=1),
        5: line(5, n=3, temperature=1),
        7: line(7, tools=[{"type": "function"}]),
        8: line(8, "/v1/completions", prompt=["one", "two"]),
        9: line(9, "/v1/embeddings", input="x"),
        11: '{"custom_id": "broken", "method"',
        12: line(12, model="gpt-9"),
        14: line(14, messages=[{"role": "user", "content": "kill 14"}]),
    }
    requests = tmp_path / "requests.jsonl"
    requests.write_text("\n".join(special.get(number, line(number)) for number in range(40)) + "\n\n")
    output = tmp_path / "out"
    spec = JobSpec.model_validate(
        {
            "name": "batch",
            "model": {"source": "scripted"},
            "input": {"uri": str(requests), "format": "openai_batch", "models": ["m"]},
            "output": {"uri": str(output), "format": "openai_batch"},
            "shards": {"rows": 10},
            "engine": {"scripted": {"kill_on": "kill", "reject_on": "never"}},
            "limits": {"max_error_rate": 1},
        }
    )
    report = runner.run(spec, KeepingListener())
    assert report.errors == {"request_invalid": 2, "input_invalid": 1, "model_not_found": 1, "engine_killed": 1}
    answered = lines_of(output / "batch" / "output.jsonl")
    failed = lines_of(output / "batch" / "errors.jsonl")
    assert [one["custom_id"] for one in answered] == [f"r-{i}" for i in range(40) if i not in (7, 9, 11, 12, 14)]
    assert [(one["custom_id"], one["response"]["status_code"]) for one in failed] == [
        *(("r-7", 400), ("r-9", 400), (None, 400), ("r-12", 404), ("r-14", 500))
    ]
    assert [one["response"]["body"]["error"]["code"] for one in failed] == [
        *("request_invalid", "request_invalid", "input_invalid", "model_not_found", "engine_killed")
    ]
    by_id = {one["custom_id"]: one for one in answered}
    assert contents(by_id["r-0"]) == ["text 0"]
    assert by_id["r-3"]["response"]["body"]["choices"][0]["finish_reason"] == "length"
    assert contents(by_id["r-3"]) == ["text"]
    assert contents(by_id["r-5"]) == ["text 5"] * 3
    assert contents(by_id["r-8"]) == ["one", "two"]
    assert len({one["id"] for one in answered} | {one["id"] for one in failed}) == 40
    usage = by_id["r-5"]["response"]["body"]["usage"]
    assert (usage["prompt_tokens"], usage["completion_tokens"], usage["total_tokens"]) == (2, 6, 8)
    assert_ledger_adds_up(output)

    # A second writing has the same bytes, and a retry replaces what it has mended.
    before = (output / "batch" / "output.jsonl").read_bytes()
    runner.run(spec, KeepingListener())
    assert (output / "batch" / "output.jsonl").read_bytes() == before
    runner.retry(str(output), KeepingListener(), overrides=["engine.scripted.kill_on=no such text"])
    mended = lines_of(output / "batch" / "output.jsonl")
    assert [one["custom_id"] for one in mended] == [f"r-{i}" for i in range(40) if i not in (7, 9, 11, 12)]
    assert [one for one in mended if one["custom_id"] != "r-14"] == answered
    assert len(lines_of(output / "batch" / "errors.jsonl")) == 4

    # vLLM's shape: one file, failed requests in their places.
    reports.write_responses(str(output), str(tmp_path / "vllm.jsonl"))
    whole = lines_of(tmp_path / "vllm.jsonl")
    assert [one["custom_id"] for one in whole] == results(output).column("custom_id").to_pylist()
    assert [one["response"]["body"] for one in whole if one["error"] is None] == [
        one["response"]["body"] for one in mended
    ]
    assert whole[12]["error"]["error"]["type"] == "NotFoundError"
    assert whole[12]["response"] | {"request_id": None} == {"status_code": 404, "request_id": None, "body": None}

    # Another's file in their place is left alone.
    (output / "batch" / "errors.jsonl").write_text("notes\n")
    with pytest.raises(OutputError):
        runner.run(spec, KeepingListener())
    assert (output / "batch" / "errors.jsonl").read_text() == "notes\n"


def test_the_command_is_a_job_whose_folder_lies_beside_the_output(tmp_path: Path) -> None:
    requests = tmp_path / "my requests.jsonl"
    requests.write_text(line(0) + "\n")
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "generation_config.json").write_text('{"temperature": 0.6, "max_new_tokens": 99, "do_sample": true}')
    command = ["-i", str(requests), "-o", str(tmp_path / "out.jsonl"), "--model", str(folder)]
    spec = job_of(read_command([*command, "--max-num-seqs", "8"]), ["resources.accelerator=cpu"])
    assert (spec.name, spec.task, spec.output.uri) == ("my-requests", "generate", f"{tmp_path}/out.jsonl.run")
    assert (spec.sampling.temperature, spec.sampling.max_tokens, spec.sampling.top_p) == (0.6, 99, 1.0)
    assert (spec.engine.max_num_seqs, spec.resources.accelerator, spec.limits.max_error_rate) == (8, "cpu", 1.0)
    assert spec.input.models == (str(folder),)
    plain = job_of(read_command([*command, "--generation-config", "vllm"]))
    assert plain.sampling.temperature == 1.0
    own = read_command([*command, "--override-generation-config", '{"temperature": 0.1}'])
    assert job_of(own).sampling.temperature == 0.1
    requests.write_text(line(0, "/v1/embeddings", input="x") + "\n")
    assert job_of(read_command(command)).task == "embed"
