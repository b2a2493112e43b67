"""Answers kept across runs: any damage to the files costs requests, never an answer; what shapes an answer tells
them apart."""

from __future__ import annotations

import math
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batchinfer import events
from batchinfer.engine import Completion
from batchinfer.errors import OutputError, RowError, SpecError
from batchinfer.execution import answer_cache
from batchinfer.execution.answer_cache import AnswerCache
from batchinfer.execution.answer_files import completion, file_of, kept, table_of
from batchinfer.execution.answer_identity import identity, prints_the_time
from batchinfer.execution.asked import Asked
from batchinfer.execution.checks import check
from batchinfer.execution.reuse import Reuse
from batchinfer.jobspec import JobSpec
from batchinfer.model.fingerprint import fingerprint
from batchinfer.storage import LocalStorage, Storage
from tests.support.builders import make_envelope, make_plan, make_spec, write_parquet
from tests.support.fragile_engine import Machine, prompts_of, supervised


def spec_of(uri: Any, **sections: Any) -> JobSpec:
    return make_spec(model={"source": "scripted"}, cache={"uri": str(uri)}, **sections)


def opened(uri: Any, **sections: Any) -> AnswerCache:
    return AnswerCache(spec_of(uri, **sections), make_plan(), lambda spec, plan: (spec, plan))


def session(
    uri: Any, shards: Sequence[list[str]], poison: Sequence[str] = (), accidents: Sequence[int] = ()
) -> tuple[list[Completion], list[str], float, float]:
    """One run's replica over the shards: the answers, what the engine was asked, device-seconds of work and busy."""
    machine = Machine(4, poison, accidents)
    supervisor, meter = supervised(machine)
    cache, reuse = opened(uri), Reuse()
    asked = [Asked(supervisor, make_envelope(shard_id=i), [], reuse, cache) for i in range(len(shards))]
    with ThreadPoolExecutor(3) as pool:
        made = list(pool.map(lambda a, rows: a(prompts_of(rows), range(len(rows))), asked, shards))
    busy = meter.reading().busy_seconds
    supervisor.close()
    cache.close()
    return (
        [one for shard in made for one in shard],
        [row for call in machine.asked for row in call],
        sum(a.gpu_seconds for a in asked),
        busy,
    )


def files(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.parquet"))


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def flip(path: Path) -> None:
    # A file may have been emptied before.
    data = bytearray(path.read_bytes() or b"\0")
    data[len(data) // 3] ^= 1
    path.write_bytes(data)


def another_ones(path: Path) -> None:
    """A file of another identity, under a name that is right for its bytes."""
    name, data = file_of("f" * 32, "all", [kept(b"k" * 32, Completion(["wrong"], ["stop"], 1, 0, 1), 0.0)], 1)
    path.with_name(name).write_bytes(data)
    path.unlink()


DAMAGE: dict[str, Callable[[Path], None]] = {
    "deleted": Path.unlink,
    "cut": cut,
    "empty": lambda path: os.truncate(path, 0),
    "flipped": flip,
    "another one's": another_ones,
    "renamed": lambda path: path.rename(path.with_name("answers.parquet")),
}

WORDS = st.sampled_from([f"w{i}" for i in range(12)])
SHARDS = st.lists(st.lists(WORDS, max_size=12), min_size=1, max_size=3)


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.tuples(SHARDS, st.sampled_from([None, *DAMAGE]), st.integers(0, 3)), min_size=2, max_size=4),
    st.lists(WORDS, max_size=2),
    st.lists(st.integers(2, 6), max_size=2),
)
def test_any_runs_with_any_damage_and_deaths_have_the_answers_of_runs_without_a_cache(sessions, poison, accidents):
    folder = Path(tempfile.mkdtemp())
    known: set[str] = set()
    whole = True
    try:
        for shards, damage, which in sessions:
            made, ran, work, busy = session(folder, shards, poison, accidents)
            rows = [row for shard in shards for row in shard]
            assert [one.texts for one in made] == [[] if row in poison else [row] for row in rows]
            assert {row for row, one in zip(rows, made, strict=True) if one.error} == set(poison) & set(rows)
            from_cache = [one for one in made if one.saved_usd is not None]
            assert all(one.reused_tokens == 2 and one.input_tokens == one.output_tokens == 0 for one in from_cache)
            asked = {row for row, one in zip(rows, made, strict=True) if one.reused_tokens is None}
            if whole:
                assert asked == set(rows) - known | set(poison) & set(rows)
                assert len(from_cache) == len(known & set(rows))
            assert asked == set(ran) & set(rows)
            assert work <= busy + 1e-6
            known |= set(rows) - set(poison)
            found = files(folder)
            if damage is not None and found:
                DAMAGE[damage](found[which % len(found)])
                whole = False
    finally:
        shutil.rmtree(folder)


def test_a_run_of_rows_that_are_all_kept_books_no_seconds_and_says_what_they_cost(tmp_path):
    made, _, work, _ = session(tmp_path, [["a", "b"], ["a", "c"]])
    assert work > 0
    made, ran, work, busy = session(tmp_path, [["a", "b"], ["a", "c"]])
    assert (ran, work, busy) == ([], 0.0, 0.0)
    assert [one.texts for one in made] == [["a"], ["b"], ["a"], ["c"]]
    # The second "a" is a duplicate of this run.
    assert sum(one.saved_usd is not None for one in made) == 3
    assert all(one.saved_usd > 0 for one in made if one.saved_usd is not None)
    assert [one.reused_tokens for one in made] == [2] * 4


def test_two_replicas_write_at_once_and_no_file_is_ever_changed(tmp_path):
    session(tmp_path, [["a", "b"]])
    before = {path: path.read_bytes() for path in files(tmp_path)}
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda rows: session(tmp_path, [rows]), [["b", "c", "d"], ["b", "c", "e"]]))
    assert all(path.read_bytes() == data for path, data in before.items())
    assert len(files(tmp_path)) == 3
    assert session(tmp_path, [list("abcde")])[1] == []


@pytest.mark.usefixtures("s3_url")
def test_a_bucket_keeps_answers_and_many_make_a_file_for_each_prefix(
    s3_url: str, bucket: str, store: Storage, monkeypatch: Any
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_url)
    uri = f"{bucket}/answers"
    rows = [f"row {i}" for i in range(3000)]
    session(uri, [rows[:1500], rows[1500:]])
    names = [entry.uri.rpartition("/")[2] for entry in store.list(uri)]
    assert sorted(name[:2] for name in names if name.endswith(".parquet")) == [f"{digit:x}-" for digit in range(16)]
    made, ran, _, _ = session(uri, [rows[2000:], ["new"], rows[:2000]])
    assert ran == ["new"]
    assert [one.texts[0] for one in made] == [*rows[2000:], "new", *rows[:2000]]


def test_a_replica_that_lives_on_writes_before_it_ends(tmp_path, monkeypatch):
    monkeypatch.setattr(answer_cache, "WRITTEN_SECONDS", 0.0)
    first = opened(tmp_path)
    first.keep(prompts_of(["a"]), [Completion(["a"], ["stop"], 1, 0, 1)], 1.0)
    for _ in range(300):
        if files(tmp_path):
            break
        first._written._stop.wait(0.1)
    assert session(tmp_path, [["a"]])[1] == []
    first.close()


WRITER = """
import sys
from batchinfer.execution import answer_cache
from tests.execution.test_answer_cache import Completion, opened, prompts_of
answer_cache.WRITTEN_SECONDS = 0.0
cache = opened(sys.argv[1])
for i in range(10**9):
    rows = [f"{i} {j}" for j in range(50)]
    cache.keep(prompts_of(rows), [Completion([row], ["stop"], 1, 0, 1) for row in rows], 1.0)
    cache._written._write()
    print(i, flush=True)
"""


@pytest.mark.integration
def test_what_a_killed_writer_left_is_whole_and_is_used(tmp_path):
    writer = subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert writer.stdout is not None
    done = [int(writer.stdout.readline()) for _ in range(20)][-1]
    writer.kill()
    writer.communicate()
    for path in files(tmp_path):
        assert table_of(path.parent.name, path.name, path.read_bytes()) is not None
    made, ran, _, _ = session(tmp_path, [[f"{i} {j}" for i in range(done + 1) for j in (0, 49)], ["new"]])
    assert ran == ["new"]
    assert made[-2].texts == [f"{done} 49"]


class _Down(LocalStorage):
    def list(self, uri: str) -> Any:
        raise answer_cache.StorageError("the store is down")

    def create(self, uri: str, data: bytes) -> bool:
        raise answer_cache.StorageError("the store is down")


def test_a_store_that_is_down_costs_requests_and_is_told_once(tmp_path, monkeypatch):
    monkeypatch.setattr(answer_cache, "storage_for", lambda uri, stores: _Down())
    told: list[str] = []
    with events.heard_by(lambda name, **_: told.append(name)):
        made, ran, _, _ = session(tmp_path, [["a"], ["b"], ["a", "c"]])
    assert [one.texts for one in made] == [["a"], ["b"], ["a"], ["c"]]
    assert sorted(set(ran)) == ["a", "b", "c"]
    assert [name for name in told if name.startswith("cache")] == ["cache not read", "cache not written"]


def test_what_does_not_fit_or_was_cut_by_the_context_is_not_kept(tmp_path):
    cache = opened(tmp_path, output={"uri": "/out", "choices": ["yes", "no"]}, sampling={"max_tokens": 8})
    answers = [
        Completion(["yes"], ["stop"], 1, 0, 1),
        Completion(["maybe"], ["stop"], 1, 0, 1),
        Completion(["no"], ["length"], 1, 0, 3),
        Completion.failed(RowError("engine_rejected", "no"), 1),
    ]
    cache.keep(prompts_of("abcd"), answers, 1.0)
    cache.close()
    again = opened(tmp_path, output={"uri": "/out", "choices": ["yes", "no"]}, sampling={"max_tokens": 8})
    assert [one is not None for one in again.found(prompts_of("abcd"))] == [True, False, False, False]
    again.close()


def test_a_row_that_draws_its_answer_is_not_kept_and_one_that_samples_otherwise_is_another_request(tmp_path):
    cache = opened(tmp_path, sampling_column="text")
    (plain,) = prompts_of("a")
    prompts = [plain, plain._replace(sampling='{"max_tokens": 3}'), plain._replace(sampling='{"temperature": 1}')]
    cache.keep(prompts, [Completion([text], ["stop"], 1, 0, 1) for text in "xyz"], 1.0)
    cache.close()
    again = opened(tmp_path, sampling_column="text")
    assert [one.texts if one else None for one in again.found(prompts)] == [["x"], ["y"], None]
    again.close()


def test_an_answer_is_kept_whole(tmp_path):
    vector = np.array([0.1, -2.5], np.float32)
    first = Completion(
        ["a\ud800"], ["length"], 7, 4, 5, None, [[[{"token": "a", "logprob": -math.pi}]]], vector, {"a": 0.1}, 0.5, 3,
        2.0, ["hm", None],
    )  # fmt: skip
    one = kept(b"k" * 32, first, 0.25)
    name, data = file_of("i" * 32, "all", [one], 1)
    (row,) = table_of("i" * 32, name, data).to_pylist()
    again = completion(row["answer"], row["embedding"])
    for part in ("texts", "finish_reasons", "logprobs", "probabilities", "score", "truncated_tokens", "reasoning"):
        assert getattr(again, part) == getattr(first, part)
    assert again.embedding.tolist() == vector.tolist()
    assert (again.reused_tokens, again.saved_usd, again.input_tokens, again.output_tokens) == (12, 0.25, 0, 0)
    assert completion("[]", None) is completion('{"texts": []}', None) is completion("no JSON", None) is None


SAME = [
    {"name": "other", "labels": {"team": "b"}},
    {"output": {"uri": "/elsewhere", "column": "label"}},
    {"prompt": {"column": "text"}},
    {"limits": {"max_error_rate": 0.5}},
    {"engine": {"max_num_seqs": 4}},
]
OTHER = [
    {"sampling": {"max_tokens": 9}},
    {"sampling": {"temperature": 1, "seed": 3}},
    {"output": {"uri": "/out", "choices": ["yes", "no"]}},
    {"output": {"uri": "/out", "json_schema": {"type": "object", "properties": {"a": {"type": "string"}}}}},
    {"prompt": {"template": "Say {{ text }}", "chat_template_kwargs": {"enable_thinking": False}}},
    {"prompt": {"template": "Say {{ text }}", "chat_template": "{{ messages[0].content }}"}},
    {"engine": {"scripted": {"answer": "ho"}}},
    {"model": {"source": "scripted", "dtype": "float16"}},
    {"task": "embed", "model": {"source": "m"}},
]


def about(changes: Any, **facts: Any) -> Any:
    given = {"plan": make_plan(), "files": {"model.source": "abc"}, "engine": "vllm 1"} | facts
    return identity(make_spec(**({"model": {"source": "scripted"}} | changes)), **given)


def test_jobs_share_answers_where_nothing_that_shapes_them_differs():
    first = about({})
    assert all(about(changes) == first for changes in SAME)
    others = [about(changes) for changes in OTHER]
    others += [about({}, files={"model.source": "abd"}), about({}, engine="vllm 2")]
    others.append(about({}, plan=make_plan(quantization="fp8")))
    assert all(one != first for one in others)
    assert all(one not in others[:place] for place, one in enumerate(others))


def test_a_step_shares_answers_with_a_job_of_its_prompt(tmp_path):
    session(tmp_path, [["Say a"]])
    steps = [{"name": "x", "prompt": "{{ text }}"}, {"name": "y", "prompt": "Say {{ text }}"}]
    cache = AnswerCache(
        make_spec(model={"source": "scripted"}, cache={"uri": str(tmp_path)}, prompt={}, steps=steps),
        make_plan(),
        lambda spec, plan: (spec, plan),
    )
    (prompt,) = prompts_of(["Say a"])
    assert cache.found([prompt._replace(step=1)])[0] is not None
    cache.close()


def test_a_chat_template_that_prints_the_time_keeps_nothing():
    printing = "{{ strftime_now('%d') if date_string is not defined else date_string }}"
    assert prints_the_time(make_spec(), printing)
    dated = make_spec(prompt={"template": "{{ text }}", "chat_template_kwargs": {"date_string": "1 Jan"}})
    assert not prints_the_time(dated, printing)
    assert not prints_the_time(make_spec(), "{{ messages }}")


def test_weights_are_told_apart_by_every_byte_and_not_by_their_place(tmp_path):
    folder, copy = tmp_path / "a", tmp_path / "b"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(bytes(100_000))
    shutil.copytree(folder, copy)
    assert fingerprint(str(folder), None) == fingerprint(str(copy), None)
    flip(copy / "model.safetensors")
    assert fingerprint(str(folder), None) != fingerprint(str(copy), None)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sampling": {"temperature": 0.7}}, "set temperature 0 or a seed"),
        ({"dedupe": False}, "leave dedupe: false out"),
        ({"cache": {"uri": "s3://key:secret@team/answers"}}, "holds a user or a password"),
    ],
)
def test_a_cache_of_answers_that_would_differ_is_refused(changes, message):
    with pytest.raises(SpecError, match=message):
        make_spec(**({"cache": {"uri": "/answers"}} | changes))


@pytest.mark.parametrize("place", ["in/answers", "out/answers", ""])
def test_a_cache_beside_the_results_or_in_the_input_is_refused(tmp_path, place):
    write_parquet(tmp_path / "in" / "a.parquet", {"id": [1], "text": ["x"]})
    spec = spec_of(
        tmp_path / place, input={"uri": str(tmp_path / "in"), "id_column": "id"}, output={"uri": str(tmp_path / "out")}
    )
    with pytest.raises(OutputError, match="lie in one another"):
        check(spec, "run")


def test_a_cache_that_cannot_be_written_is_refused_by_its_key(tmp_path):
    write_parquet(tmp_path / "in" / "a.parquet", {"id": [1], "text": ["x"]})
    (tmp_path / "answers").write_text("a file")
    spec = spec_of(
        tmp_path / "answers",
        input={"uri": str(tmp_path / "in"), "id_column": "id"},
        output={"uri": str(tmp_path / "out")},
    )
    with pytest.raises(OutputError) as refused:
        check(spec, "run")
    assert "cache.uri" in refused.value.remedy
