"""The chaos benchmark, short: one kill of each kind and a few more, on two Ray nodes."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.support import ROOT

pytestmark = pytest.mark.end_to_end


# Each kind by itself: test_kills.py (engine, actor, driver), test_runner.py (workers), test_submit.py (a node).
@pytest.mark.soak
@pytest.mark.timeout(900)
def test_kills_of_every_kind_lose_and_double_nothing() -> None:
    command = [sys.executable, "benchmarks/chaos.py", "--kills", "7", "--shards", "40", "--seed", "4", "--json"]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    # The benchmark itself compares the rows with an undisturbed run's and checks the ledger's law.
    assert ended.returncode == 0, ended.stderr[-3000:]
    figures = json.loads(ended.stdout)
    assert figures["kills"] >= 7
    kinds = {"engine process", "replica (actor)", "worker process", "driver", "second node (raylet)"}
    assert figures["faults"].keys() == kinds
    assert figures["rows"] == figures["jobs"] * 40 * 50
    in_flight = 2 * 6
    assert figures["again"] <= figures["kills"] * in_flight + figures["jobs"] * 20, "of which 20 for the row that kills"
    assert figures["waste"] > 0
