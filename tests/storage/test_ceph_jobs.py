"""Whole commands on Ceph's gateway: through an outage, and with the permissions that the documentation lists."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import boto3
import pytest
from ceph_gateway import CephGateway, missing_programs

from batchinfer.jobspec import StoreSpec, to_yaml
from batchinfer.storage import Storage, join, storage_for
from tests.support import ROOT
from tests.support.s3_runs import assert_whole, spec_on, table

pytestmark = [
    pytest.mark.soak,
    pytest.mark.timeout(600),
    pytest.mark.skipif(bool(missing_programs()), reason=f"Ceph is not installed: {', '.join(missing_programs())}"),
]

OUTAGE_SECONDS = 20
DOCUMENTED = re.compile(r"\| (`run`.*?) \| (.*?) \| (.*?) \|\n\| (`report`) \| (.*?) \| (.*?) \|")


@pytest.fixture(scope="module")
def ceph(tmp_path_factory):
    with CephGateway(tmp_path_factory.mktemp("ceph")) as gateway:
        client = boto3.client("s3", endpoint_url=gateway.url)
        for bucket in ("data", "runs"):
            client.create_bucket(Bucket=bucket)
        yield gateway


@pytest.fixture(scope="module")
def owner(ceph) -> Storage:
    return storage_for("s3://data", {"s3://": StoreSpec(endpoint_url=ceph.url)})


@pytest.fixture
def remote(ceph, owner, corpus):
    """The corpus of 1,000 rows in the store."""
    for path in sorted(corpus.rglob("*.parquet")):
        owner.put(f"s3://data/in/split=all/{path.name}", path.read_bytes())
    return "s3://data/in"


def command(ceph, *arguments: str, user: str = "testing", wait: bool = True):
    """`batchinfer` in a process of its own, with the keys of `user`."""
    env = {**os.environ, "AWS_ENDPOINT_URL": ceph.url, "AWS_ACCESS_KEY_ID": user, "AWS_SECRET_ACCESS_KEY": user}
    started = subprocess.Popen(
        [sys.executable, "-m", "batchinfer", *arguments],
        cwd=ROOT,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    if not wait:
        return started
    out, err = started.communicate(timeout=300)
    return subprocess.CompletedProcess(arguments, started.returncode, out, err)


def written(spec, folder: Path) -> str:
    path = folder / "job.yaml"
    path.write_text(to_yaml(spec))
    return str(path)


def test_a_run_goes_through_an_outage_of_the_gateway_and_nothing_is_lost(ceph, owner, remote, tmp_path):
    output = "s3://runs/outage"
    engine = {"scripted": {"seconds_per_batch": 1.5}}
    spec = spec_on(ceph.url, remote, output, {"lease_seconds": 5}, engine=engine)
    running = command(ceph, "run", written(spec, tmp_path), wait=False)
    deadline = time.monotonic() + 200
    while len(list(owner.list(join(output, "data")))) < 2:
        assert running.poll() is None, running.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.2)
    ceph.cut()
    time.sleep(OUTAGE_SECONDS)
    assert running.poll() is None, running.communicate()
    ceph.mend()
    _, err = running.communicate(timeout=300)
    assert running.returncode == 0, err
    assert "store retried" in err
    assert_whole(owner, output)
    # Nothing runs twice, and a retry of a run without failures has nothing to do.
    for again in (["run", written(spec, tmp_path)], ["retry", output]):
        done = command(ceph, *again)
        assert done.returncode == 0, done.stderr
        assert "shard committed" not in done.stderr
    assert_whole(owner, output)


def documented() -> dict[str, tuple[set[str], set[str]]]:
    """The permissions on the input and on the output, by command, as the page lists them."""
    page = (ROOT / "docs/how-to/s3.md").read_text()
    found = DOCUMENTED.search(page)
    assert found is not None
    names, given, taken, report, nothing, read = found.groups()

    def actions(cell: str) -> set[str]:
        return set(re.findall(r"`(s3:\w+)`", cell))

    commands = dict.fromkeys(re.findall(r"`(\w+)`", names), (actions(given), actions(taken)))
    return {**commands, report.strip("`"): (actions(nothing), actions(read))}


def allow(ceph, principal: str, bucket: str, folder: str, actions: set[str]) -> None:
    """Let the user do `actions` below the folder, and nothing else in the bucket."""
    client = boto3.client("s3", endpoint_url=ceph.url)
    listing, others = actions & {"s3:ListBucket"}, actions - {"s3:ListBucket"}
    rule = {"Effect": "Allow", "Principal": {"AWS": [principal]}}
    inside = {"StringLike": {"s3:prefix": [f"{folder}/*", folder]}}
    statements = [
        *(
            [{**rule, "Action": sorted(listing), "Resource": [f"arn:aws:s3:::{bucket}"], "Condition": inside}]
            * bool(listing)
        ),
        *([{**rule, "Action": sorted(others), "Resource": [f"arn:aws:s3:::{bucket}/{folder}/*"]}] * bool(others)),
    ]
    if statements:
        policy = {"Version": "2012-10-17", "Statement": statements}
        client.put_bucket_policy(Bucket=bucket, Policy=json.dumps(policy))
    else:
        client.delete_bucket_policy(Bucket=bucket)


def test_each_command_needs_exactly_the_permissions_that_the_page_lists(ceph, owner, remote, tmp_path):
    user = "restricted"
    principal = ceph.add_user(user)
    table_of = documented()
    assert set(table_of) == {"run", "retry", "validate", "plan", "report"}
    output = "s3://runs/team/job"
    engine = {"scripted": {"reject_on": "row-07"}}
    spec = spec_on(ceph.url, remote, output, engine=engine, limits={"max_error_rate": 1})
    path = written(spec, tmp_path)

    def permit(name: str, without: tuple[str, str] = ("", "")) -> None:
        for place, bucket, folder, actions in zip(
            ("input", "output"), ("data", "runs"), ("in", "team/job"), table_of[name], strict=True
        ):
            allow(ceph, principal, bucket, folder, actions - ({without[1]} if without[0] == place else set()))

    def denied(name: str, place: str, action: str, *arguments: str) -> None:
        permit(name, (place, action))
        done = command(ceph, name, *arguments, user=user)
        told = (name, place, action, done.stderr)
        assert done.returncode == 2, told
        assert f"{action} is not allowed" in done.stderr, told
        assert ("s3://data/in" if place == "input" else output) in done.stderr, told

    for place, actions in zip(("input", "output"), table_of["validate"], strict=True):
        for action in sorted(actions):
            denied("validate", place, action, path)
    assert list(owner.list("s3://runs/team")) == []

    for name, arguments in {
        "validate": [path],
        "plan": [path, "--set", "resources.accelerator=H100"],
        "run": [path],
        "retry": [output],
        "report": [output],
    }.items():
        permit(name)
        done = command(ceph, name, *arguments, user=user)
        assert done.returncode == 0, (name, done.stderr)
    rows = table(owner, join(output, "data"))
    assert rows.column("id").to_pylist() == [f"row-{i:04d}" for i in range(1000)]
    for action in sorted(table_of["report"][1]):
        denied("report", "output", action, output)
