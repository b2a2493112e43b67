"""Replicas on GPUs that are only counted: of one node each, and over two nodes, which are raylets on this machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchinfer.execution.placement import nodes_for
from tests.support import ROOT
from tests.support.scripted_jobs import assert_ledger_adds_up, results, scripted_spec

RUN = """
import json, sys, time
import ray
from ray.cluster_utils import Cluster
from tests.support.scripted_jobs import KeepingListener
from batchinfer.execution import runner
from batchinfer.jobspec import JobSpec

cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 4, "num_gpus": 0})
for gpus in (2, 3):
    cluster.add_node(num_cpus=1, num_gpus=gpus)
ray.init(address=cluster.address)
report = runner.run(JobSpec.model_validate_json(sys.argv[1]), KeepingListener(), cluster.address)
# Ray removes a placement group in the background.
deadline = time.monotonic() + 30
while (free := ray.available_resources().get("GPU", 0)) < 5 and time.monotonic() < deadline:
    time.sleep(0.2)
ray.shutdown()
cluster.shutdown()
print(json.dumps({"rows": report.rows, "free": free}))
"""

ONE_NODE = """
import json, sys
import ray
from tests.support.scripted_jobs import KeepingListener
from batchinfer.execution import runner
from batchinfer.jobspec import JobSpec

ray.init(address="local", num_cpus=2, num_gpus=4, include_dashboard=False)
print(json.dumps({"rows": runner.run(JobSpec.model_validate_json(sys.argv[1]), KeepingListener()).rows}))
"""


@pytest.mark.integration
def test_replicas_have_the_gpus_of_one_node(corpus: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    resources = {"accelerator": "H100", "tensor_parallel": 2, "pipeline_parallel": 1, "replicas": 2}
    spec = scripted_spec(corpus, output, resources=resources)
    done = subprocess.run(
        [sys.executable, "-c", ONE_NODE, spec.model_dump_json(exclude_unset=True)],
        cwd=ROOT,
        # As in a run's own cluster: at Ray's niceness of 15 the workers starve beside the suite's other processes.
        env=os.environ | {"RAY_worker_niceness": "0"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout.splitlines()[-1])["rows"] == results(output).num_rows == 1000
    replicas = pq.read_table(output / "_run" / "replicas.parquet").to_pylist()
    assert [replica["num_gpus"] for replica in replicas] == [2, 2]
    assert_ledger_adds_up(output)


@pytest.mark.integration
def test_a_replica_that_one_node_does_not_hold_stands_on_two(corpus: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    resources = {"accelerator": "H100", "tensor_parallel": 2, "pipeline_parallel": 2, "replicas": 1}
    spec = scripted_spec(corpus, output, resources=resources)
    done = subprocess.run(
        [sys.executable, "-c", RUN, spec.model_dump_json(exclude_unset=True)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        # Three nodes of Ray beside two other workers of the suite: 47 seconds alone, over 200 beside them.
        timeout=500,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["rows"] == results(output).num_rows == 1000
    assert found["free"] == 5, "a placement group outlived its run"
    (replica,) = pq.read_table(output / "_run" / "replicas.parquet").to_pylist()
    assert replica["num_gpus"] == 4
    assert json.loads((output / "_run" / "plan.json").read_text())["nodes_per_replica"] == 2
    assert_ledger_adds_up(output)


@given(
    free=st.dictionaries(st.text("abc", min_size=1), st.integers(0, 16), max_size=6),
    tensor=st.integers(1, 8),
    pipeline=st.integers(1, 8),
)
def test_every_group_has_a_node_with_room_and_room_is_found_where_there_is(free, tensor, pipeline):
    nodes = nodes_for(free, tensor, pipeline)
    if nodes is None:
        assert sum(gpus // tensor for gpus in free.values()) < pipeline
    else:
        assert len(nodes) == pipeline
        assert all(nodes.count(node) * tensor <= free[node] for node in nodes)


@pytest.mark.parametrize(
    ("free", "expected"),
    [
        ({"a": 8, "b": 8}, ["a", "b"]),
        ({"a": 4, "b": 16}, ["b", "b"]),
        ({"a": 5, "b": 5, "c": 5}, None),
        ({}, None),
    ],
)
def test_the_fewest_nodes_are_taken(free, expected):
    assert nodes_for(free, 8, 2) == expected
