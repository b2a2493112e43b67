from __future__ import annotations

import time
from types import SimpleNamespace

import pytest

from batchinfer.accounting.meter import Meter
from batchinfer.engine import Completion
from batchinfer.execution.replica import Clock, Replica
from batchinfer.prompting.answers import OutputCheck
from tests.support.builders import make_spec


def test_a_clock_that_is_set_while_a_replica_runs_moves_none_of_its_seconds(monkeypatch):
    real = time.time_ns
    clock = Clock()
    meter = Meter(2, clock)
    meter.ready()
    meter.begin("a", 4)
    readings = [clock()]
    for jump in (3600, -7200, 10**6):
        monkeypatch.setattr(time, "time_ns", lambda jump=jump: real() + jump * 10**9)
        readings.append(clock())
    meter.finished("a", 4)
    seconds, reading = meter.end("a")
    assert readings == sorted(readings)
    assert readings[-1] - readings[0] < 60e6
    assert 0 <= seconds < 120
    lifetime = (reading.at_us - meter.started_at_us) / 1e6 * 2
    assert abs(reading.load_seconds + reading.busy_seconds + reading.idle_seconds - lifetime) < 1e-6


@pytest.mark.parametrize(("reason", "cut"), [("length", True), ("stop", False)])
def test_an_answer_that_max_tokens_cut_says_so(reason, cut):
    spec = make_spec(output={"uri": "/out", "choices": ["concurrency"]}, sampling={"max_tokens": 3})
    replica = SimpleNamespace(_check=OutputCheck(spec.output, 3), _job=SimpleNamespace(spec=spec))
    checked = Replica._checked(replica, Completion(["concur"], [reason], 5, 0, 3))
    assert checked.error is not None
    assert checked.error.code == "output_invalid"
    assert "none of the choices" in checked.error.message
    assert ("cut at sampling.max_tokens (3)" in checked.error.message) is cut
