"""The command line as a person meets it: real processes, real exit codes."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
import yaml

from tests.support.commands import forked
from tests.support.scripted_jobs import results


def batchinfer(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "batchinfer", *arguments], capture_output=True, text=True, timeout=240, cwd=cwd
    )


def write_spec(folder: Path, corpus: Path, **changes: Any) -> Path:
    values: dict[str, Any] = {
        "name": "job",
        "model": {"source": "scripted"},
        "input": {"uri": str(corpus), "id_column": "id"},
        "prompt": {"template": "{{ text }}"},
        "output": {"uri": str(folder / "out")},
    } | changes
    path = folder / "job.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def snapshot(folder: Path) -> set[str]:
    return {str(p.relative_to(folder)) for p in folder.rglob("*")}


def damaged(folder: Path, content: bytes) -> Path:
    folder.mkdir()
    (folder / "part.parquet").write_bytes(content)
    return folder


def truncated_parquet(tmp_path: Path) -> bytes:
    pq.write_table(pa.table({"id": ["a"] * 100, "text": ["b"] * 100}), tmp_path / "whole")
    content = (tmp_path / "whole").read_bytes()
    (tmp_path / "whole").unlink()
    return content[: len(content) // 2]


def bad_specs(tmp_path: Path, corpus: Path) -> dict[str, tuple[dict[str, Any], str]]:
    """name: (changes to a good spec, what the message must say)."""
    twins = tmp_path / "twins"
    twins.mkdir()
    pq.write_table(pa.table({"id": ["a", "b", "a"], "text": ["x"] * 3}), twins / "t.parquet")
    file = tmp_path / "a-file"
    file.write_text("")
    (tmp_path / "empty").mkdir()
    return {
        "unknown key": ({"modle": {}}, "unknown key; did you mean 'model'?"),
        "misspelt key": ({"sampling": {"max_token": 3}}, "did you mean 'max_tokens'?"),
        "wrong type": ({"sampling": {"max_tokens": "many"}}, "sampling.max_tokens"),
        "missing column": ({"prompt": {"template": "{{ txt }}"}}, "did you mean 'text'?"),
        "columns that exist": ({"prompt": {"column": "body"}}, "the columns are: id, text, topic"),
        "zero bytes": (_input(damaged(tmp_path / "zero", b"")), "zero bytes"),
        "truncated": (_input(damaged(tmp_path / "cut", truncated_parquet(tmp_path))), "not a readable Parquet file"),
        "not Parquet": (_input(damaged(tmp_path / "text", b"id,text\n1,2\n")), "not a readable Parquet file"),
        "no files": (_input(tmp_path / "empty"), "there are no parquet files"),
        "no folder": (_input(corpus.parent / "corpsu"), f"did you mean {corpus}?"),
        "wrong format": ({"input": {"uri": str(corpus), "format": "jsonl"}}, "set input.format: parquet"),
        "unknown model": ({"model": {"source": "./no-such-model"}}, "unknown model"),
        "no model folder": ({"model": {"source": str(corpus)}}, "no config.json"),
        "output in input": ({"output": {"uri": str(corpus / "out")}}, "output.uri lies inside input.uri"),
        "output where a glob looks": (
            {"input": {"uri": f"{corpus}/*.parquet"}, "output": {"uri": str(corpus / "out")}},
            "output.uri lies inside input.uri",
        ),
        "no permission": ({"output": {"uri": "/proc/out"}}, "cannot write to /proc/out"),
        "a file in the way": ({"output": {"uri": str(file / "out")}}, "cannot write to"),
        "duplicate ids": (_input(twins), "has 'a' twice: row 0 of"),
        "unknown store": ({"output": {"uri": "ftp://x/y"}}, "ftp://"),
    }


def _input(folder: Path) -> dict[str, Any]:
    return {"input": {"uri": str(folder), "id_column": "id"}}


BAD = [
    "unknown key", "misspelt key", "wrong type", "missing column", "columns that exist", "zero bytes", "truncated",
    "not Parquet", "no files", "no folder", "wrong format", "unknown model", "no model folder", "output in input",
    "output where a glob looks",
    "no permission", "a file in the way", "duplicate ids", "unknown store",
]  # fmt: skip


@pytest.mark.parametrize("mistake", BAD)
def test_a_mistake_is_one_message_with_exit_2_and_nothing_written(mistake: str, corpus: Path, tmp_path: Path) -> None:
    cases = bad_specs(tmp_path, corpus)
    assert set(cases) == set(BAD)
    changes, message = cases[mistake]
    spec = write_spec(tmp_path, corpus, **changes)
    before = snapshot(tmp_path)
    done = forked("run", str(spec))
    assert done.returncode == 2, done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.startswith("error: ")
    assert "\n  -> " in done.stderr, "a remedy"
    assert done.stdout == ""
    assert snapshot(tmp_path) == before


def test_bad_calls_are_exit_2(tmp_path: Path, corpus: Path) -> None:
    spec = str(write_spec(tmp_path, corpus))
    for arguments, message in [
        (["run", str(tmp_path / "jab.yaml")], f"did you mean {spec}?"),
        (["run", spec, "--set", "sampling.max_tokens"], "is not KEY=VALUE"),
        (["submit", spec, "--label", "team"], "--label 'team' is not KEY=VALUE"),
        (["submit", spec, "--label", "team=\udcff"], "is not UTF-8 text"),
        (["explain", "output.choises"], "did you mean output.choices?"),
        (["report", str(tmp_path)], "there is no run at"),
        (["retry", str(tmp_path / "nothing")], "there is no run at"),
        (["runn", spec], "No such command"),
        (["run", spec, "--frehs"], "No such option"),
    ]:
        done = forked(*arguments)
        assert (done.returncode, "Traceback" in done.stderr) == (2, False), done.stderr
        assert message in done.stderr


@pytest.mark.integration
def test_validate_says_what_would_run_and_writes_nothing(corpus: Path, tmp_path: Path) -> None:
    spec = write_spec(tmp_path, corpus)
    before = snapshot(tmp_path)
    done = batchinfer("validate", str(spec), "--set", "shards.rows=300")
    first, second, *others = done.stdout.splitlines()
    assert (done.returncode, first) == (0, f"{spec} is valid: 1,000 rows in 4 shards")
    size = sum(path.stat().st_size for path in corpus.rglob("*.parquet"))
    assert others[-1].startswith("not checked here:")
    assert re.fullmatch(rf"it reads \d+ files? of {size:,} bytes", second)
    assert snapshot(tmp_path) == before


@pytest.mark.integration
def test_validate_says_what_it_leaves_out_and_which_files_it_skips(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    pq.write_table(pa.table({"doc": ["a"], "text": ["x"]}), folder / "a.parquet")
    (folder / "bad.parquet").write_bytes(b"no Parquet")
    for name in ("_SUCCESS", "b.csv"):
        (folder / name).write_bytes(b"")
    (folder / "b.csv").write_bytes(b"text")
    spec = write_spec(tmp_path, folder, input={"uri": str(folder), "on_bad_file": "skip"})
    refused = batchinfer("validate", str(spec))
    assert (refused.returncode, f"{folder}/b.csv would not be read" in refused.stderr) == (2, True)
    told = batchinfer("validate", str(spec), "--set", "input.ignore=[b.csv]").stdout
    assert f"it reads 1 file of {(folder / 'a.parquet').stat().st_size:,} bytes, and leaves out 2: " in told
    assert f"{folder}/_SUCCESS, {folder}/b.csv" in told
    assert f"skips {folder}/bad.parquet: " in told


@pytest.mark.integration
def test_validate_and_plan_say_that_groups_lie_scattered(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    pq.write_table(pa.table({"doc": list("ab" * 30), "text": ["x"] * 60}), tmp_path / "in" / "a.parquet")
    told = "the rows of 2 groups lie in 60 separate runs of rows; an input sorted by 'doc' would let more rows share"
    spec = write_spec(tmp_path, tmp_path / "in", input={"uri": str(tmp_path / "in"), "group_by": "doc"})
    assert told in batchinfer("validate", str(spec)).stdout
    planned = batchinfer("plan", str(spec), "--json", "--set", "resources.accelerator=H100")
    assert json.loads(planned.stdout)["candidates"] is not None
    assert told in planned.stderr


@pytest.mark.parametrize(
    "command",
    ["models", "models --json", "gpus", "explain", "explain --json", "validate", "plan", "plan --json", "--help"],
)
def test_a_command_whose_reader_leaves_ends_by_itself_and_quietly(command: str, corpus: Path, tmp_path: Path) -> None:
    name, *options = command.split()
    if name in ("validate", "plan"):
        options = [str(write_spec(tmp_path, corpus, resources={"accelerator": "H100"})), *options]
    done = forked(name, *options, read=False)
    assert done.returncode == 0, done.stderr
    assert [line for line in done.stderr.splitlines() if not line.startswith("{")] == []


def test_an_output_beside_an_input_file_is_fine(corpus: Path, tmp_path: Path) -> None:
    spec = write_spec(tmp_path, corpus, input={"uri": str(corpus / "part-0.parquet")})
    done = forked("validate", str(spec), "--set", f"output.uri={corpus / 'out'}")
    assert done.returncode == 0, done.stderr


@pytest.mark.integration
def test_run_report_and_json_agree(corpus: Path, tmp_path: Path) -> None:
    spec = write_spec(tmp_path, corpus)
    ran = batchinfer("run", str(spec), "--json", "--set", "sampling.max_tokens=64")
    assert ran.returncode == 0, ran.stderr
    document = json.loads(ran.stdout)
    assert {
        "rows", "rows_failed", "input_tokens", "cached_tokens", "output_tokens", "tokens_per_second", "cost_usd",
        "cost_per_million_tokens", "seconds", "shards", "replicas",
    } <= document.keys()  # fmt: skip
    assert set(document["seconds"]) == {"load", "work", "idle", "waste", "in_flight"}
    assert document["rows"] == 1000

    events = [json.loads(line) for line in ran.stderr.splitlines()]
    assert {"event", "level", "timestamp"} <= events[0].keys()
    assert sum(e["rows"] for e in events if e["event"] == "shard committed") == 1000

    again = forked("report", str(tmp_path / "out"), "--json")
    assert json.loads(again.stdout) == document
    unread = forked("report", str(tmp_path / "out"), read=False)
    assert (unread.returncode, unread.stderr) == (0, "")
    shown = forked("report", str(tmp_path / "out"))
    assert "1,000 of 1,000" in shown.stdout
    assert "per million tokens" in shown.stdout
    assert results(tmp_path / "out").num_rows == 1000
    assert (tmp_path / "out" / "_run" / "run.log").stat().st_size > 0


@pytest.mark.usefixtures("ray_cluster")
def test_too_many_failures_print_the_report_and_exit_3(corpus: Path, tmp_path: Path) -> None:
    spec = write_spec(tmp_path, corpus, engine={"scripted": {"reject_on": "5"}})
    done = batchinfer("run", str(spec), "--address", ray.get_runtime_context().gcs_address)
    assert done.returncode == 3, done.stderr
    assert "engine_rejected" in done.stdout
    assert "batchinfer retry" in done.stderr


@pytest.mark.usefixtures("ray_cluster")
def test_an_engine_that_does_not_start_names_the_log(corpus: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text('{"architectures": ["NoSuchModel"], "model_type": "llama"}')
    (model / "model.safetensors").write_bytes(b"not weights")
    spec = write_spec(tmp_path, corpus, model={"source": str(model)})
    done = batchinfer("run", str(spec), "--address", ray.get_runtime_context().gcs_address)
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    log = tmp_path / "out" / "_run" / "run.log"
    assert str(log) in done.stderr
    assert "NoSuchModel" in log.read_text()
