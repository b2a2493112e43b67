"""The engine in its host process. The scripted engine stands in for vLLM's: the two processes and what goes between
them are the real ones. vLLM's own is hosted in `test_vllm_engine.py` and in the runs of `test_kills.py`."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import psutil
import pytest

from batchinfer.engine import EngineDied, start_engine
from batchinfer.engine.host import HostedEngine, host_processes, last_error
from batchinfer.errors import EngineError
from batchinfer.prompting.prompts import Prompt
from tests.support import ROOT
from tests.support.builders import make_plan, make_spec

pytestmark = pytest.mark.integration


def spec_of(**scripted):
    return make_spec(prompt={"column": "text"}, engine={"max_num_seqs": 4, "scripted": scripted})


@pytest.fixture
def hosted():
    engines = []

    def start(**scripted):
        engines.append(HostedEngine(spec_of(**scripted), make_plan()))
        return engines[-1]

    yield start
    for engine in engines:
        engine.close()
    assert host_processes() == frozenset(), "a host outlived its engine"


def prompts_of(*texts):
    return [Prompt(text=text) for text in texts]


class Counted:
    """What a call was told."""

    def __init__(self):
        self.entered = 0
        self.left = 0
        self.moved = threading.Event()

    def begun(self, rows):
        self.entered += rows

    def finished(self, rows):
        self.left += rows
        self.moved.set()


def timeless(completions):
    """The completions without the seconds that each took."""
    return [replace(one, seconds=0.0) for one in completions]


def test_calls_side_by_side_are_answered_as_the_engine_itself_answers(hosted):
    batches = [prompts_of(*(f"call {i} row {j} {'refused' * (j % 3)}" for j in range(17))) for i in range(20)]
    here = start_engine(spec_of(reject_on="refused"), make_plan())
    there = hosted(reject_on="refused")

    def ask(prompts):
        counted = Counted()
        completions = there.generate(prompts, counted.begun, counted.finished)
        return timeless(completions), (counted.entered, counted.left)

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(ask, batches))
    expected = [timeless(here.generate(prompts, lambda _: None, lambda _: None)) for prompts in batches]
    here.close()
    assert [completions for completions, _ in found] == expected
    assert {events for _, events in found} == {(17, 17)}, "all events of a call come before its answer"


def test_steps_are_told_while_a_call_runs(hosted):
    engine = hosted(seconds_per_batch=1.0)
    counted = Counted()
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(engine.generate, prompts_of(*"abcdefgh" * 8), counted.begun, counted.finished)
        seen = set()
        while not running.done():
            seen.add(engine.steps)
            time.sleep(0.01)
    assert len(seen) > 1


def test_an_engine_that_dies_hands_over_what_it_had_finished(hosted):
    engine = hosted(kill_on="poison")
    with pytest.raises(EngineDied) as death:
        engine.generate(prompts_of(*"abcdef", "poison", "h"), lambda _: None, lambda _: None)
    assert [c and c.texts for c in death.value.completions] == [["a"], ["b"], ["c"], ["d"], None, None, None, None]


def test_a_host_that_is_killed_is_a_dead_engine_for_the_calls_in_it_and_for_later_ones(hosted):
    engine = hosted(hang_on="stuck")
    counted = Counted()
    with ThreadPoolExecutor(3) as pool:
        calls = [pool.submit(engine.generate, prompts_of(*"abcd", "stuck"), counted.begun, counted.finished)]
        assert counted.moved.wait(60)
        calls.append(pool.submit(engine.generate, prompts_of("stuck"), counted.begun, counted.finished))
        (host,) = host_processes()
        os.kill(host, signal.SIGKILL)
        for call, rows in zip(calls, (5, 1), strict=True):
            with pytest.raises(EngineDied) as death:
                call.result(60)
            assert death.value.completions == [None] * rows
    with pytest.raises(EngineDied):
        engine.generate(prompts_of("a"), lambda _: None, lambda _: None)


def test_an_engine_killed_under_its_host_is_noticed_and_the_host_can_be_left(hosted):
    engine = hosted(hang_on="stuck")
    counted = Counted()
    with ThreadPoolExecutor(1) as pool:
        call = pool.submit(engine.generate, prompts_of(*"abcd", "stuck"), counted.begun, counted.finished)
        assert counted.moved.wait(60)
        (host,) = host_processes()
        (process,) = psutil.Process(host).children()
        process.kill()
        with pytest.raises(EngineDied) as death:
            call.result(60)
    assert [c and c.texts for c in death.value.completions] == [["a"], ["b"], ["c"], ["d"], None]
    assert psutil.pid_exists(host)


def test_a_model_that_does_not_load_is_the_same_error_as_in_this_process(tmp_path):
    spec = make_spec(prompt={"column": "text"}, model={"source": str(tmp_path), "dtype": "auto"})
    with pytest.raises(EngineError, match="vLLM did not start"):
        HostedEngine(spec, make_plan(accelerator="cpu", tensor_parallel=1, num_gpus=0))
    assert host_processes() == frozenset()


def test_a_host_that_is_killed_while_it_loads_is_an_error_that_names_the_signal():
    with ThreadPoolExecutor(1) as pool:
        before = {child.pid for child in psutil.Process().children()}
        starting = pool.submit(HostedEngine, spec_of(load_seconds=600), make_plan())
        # The host is killed once it loads: its engine's process is there.
        while not (hosts := [child for child in psutil.Process().children() if child.pid not in before]):
            time.sleep(0.01)
        (host,) = hosts
        while not host.children():
            time.sleep(0.01)
        host.kill()
        with pytest.raises(EngineError, match="signal 9"):
            starting.result(60)
    assert host_processes() == frozenset()


LOSER = """
import sys
sys.path.insert(0, {root!r})
from tests.support.builders import make_plan, make_spec
from batchinfer.engine.host import HostedEngine, host_processes
spec = make_spec(prompt={{"column": "text"}}, engine={{"scripted": {{}}}})
engine = HostedEngine(spec, make_plan())
print(*host_processes(), flush=True)
sys.stdin.read()
"""


def test_a_host_and_its_engine_end_when_the_replica_is_killed():
    script = LOSER.format(root=str(ROOT))
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as replica:
        host = psutil.Process(int(replica.stdout.readline()))
        processes = [host, *host.children(recursive=True)]
        replica.kill()
    assert len(processes) == 2
    assert psutil.wait_procs(processes, timeout=60)[1] == []


def test_the_last_error_that_an_engine_printed_is_found_behind_those_that_point_to_it():
    printed = [
        "(EngineCore pid=7) INFO loading",
        "(EngineCore pid=7) ERROR 11-27 [core.py:88] torch.OutOfMemoryError: 64 GiB do not fit",
        "Traceback (most recent call last):",
        "RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}",
    ]
    assert last_error(printed) == "torch.OutOfMemoryError: 64 GiB do not fit"
    assert last_error(["INFO all is well", "no error here: nothing"]) is None
