"""Whole commands on Ceph's gateway: through an outage, and with the permissions that the documentation lists."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import boto3
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batchinfer.jobspec import StoreSpec, to_yaml
from batchinfer.storage import Storage, join, storage_for
from tests.support import ROOT
from tests.support.ceph_gateway import CephGateway, missing_programs
from tests.support.s3_runs import assert_whole, spec_on

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
    rules = [
        {**rule, "Action": sorted(listing), "Resource": [f"arn:aws:s3:::{bucket}"], "Condition": inside},
        {**rule, "Action": sorted(others), "Resource": [f"arn:aws:s3:::{bucket}/{folder}/*"]},
    ]
    statements = [rule for rule in rules if rule["Action"]]
    if statements:
        policy = {"Version": "2012-10-17", "Statement": statements}
        client.put_bucket_policy(Bucket=bucket, Policy=json.dumps(policy))
    else:
        client.delete_bucket_policy(Bucket=bucket)


class Restricted:
    """A user of the gateway who may do what the page lists for a command, and nothing else."""

    def __init__(self, ceph: CephGateway, name: str, output: str) -> None:
        self.documented = documented()
        self.output = output
        self._ceph = ceph
        self._name = name
        self._principal = ceph.add_user(name)

    def may(self, name: str, without: tuple[str, str] = ("", "")) -> None:
        """Permit what the command `name` needs; `without` is (input or output, the action that is missing)."""
        folder = self.output.removeprefix("s3://runs/")
        for place, bucket, below, actions in zip(
            ("input", "output"), ("data", "runs"), ("in", folder), self.documented[name], strict=True
        ):
            missing = {without[1]} if without[0] == place else set()
            allow(self._ceph, self._principal, bucket, below, actions - missing)

    def does(self, name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        return command(self._ceph, name, *arguments, user=self._name)

    def rows(self) -> pa.Table:
        """The results, read with the user's keys: what a user wrote is not the bucket's owner's to read."""
        keys = {"aws_access_key_id": self._name, "aws_secret_access_key": self._name}
        client = boto3.client("s3", endpoint_url=self._ceph.url, **keys)
        prefix = self.output.removeprefix("s3://runs/") + "/data/"
        found = client.list_objects_v2(Bucket="runs", Prefix=prefix)["Contents"]
        bodies = [client.get_object(Bucket="runs", Key=entry["Key"])["Body"].read() for entry in found]
        return pa.concat_tables([pq.read_table(io.BytesIO(body)) for body in bodies])

    def require_named(self, name: str, *arguments: str) -> None:
        """Each action that is missing is named with an object, and the command ends with exit code 2.

        But for reading the output: on Ceph a user may read what it wrote, whatever a policy says.
        """
        for place, actions in zip(("input", "output"), self.documented[name], strict=True):
            for action in sorted(actions - ({"s3:GetObject"} if place == "output" else set())):
                self.may(name, (place, action))
                done = self.does(name, *arguments)
                told = (name, place, action, done.returncode, done.stderr)
                assert done.returncode == 2, told
                assert f"{action} is not allowed" in done.stderr, told
                assert ("s3://data/in" if place == "input" else self.output) in done.stderr, told


def test_validate_names_the_permission_that_is_missing_and_the_object(ceph, owner, remote, tmp_path):
    user = Restricted(ceph, "validating", "s3://runs/team/one")
    path = written(spec_on(ceph.url, remote, user.output), tmp_path)
    user.require_named("validate", path)
    assert list(owner.list(user.output)) == []
    user.may("validate")
    done = user.does("validate", path)
    assert (done.returncode, "1,000 rows" in done.stdout) == (0, True), done.stderr


def test_each_command_needs_exactly_the_permissions_that_the_page_lists(ceph, owner, remote, tmp_path):
    user = Restricted(ceph, "running", "s3://runs/team/two")
    engine = {"scripted": {"reject_on": "row-07"}}
    spec = spec_on(ceph.url, remote, user.output, engine=engine, limits={"max_error_rate": 1})
    path = written(spec, tmp_path)
    commands = {
        "validate": [path],
        "plan": [path, "--set", "resources.accelerator=H100"],
        "run": [path],
        "retry": [user.output],
        "report": [user.output],
    }
    assert set(user.documented) == set(commands)
    for name, arguments in commands.items():
        user.may(name)
        done = user.does(name, *arguments)
        assert done.returncode == 0, (name, done.stderr)
    assert user.rows().column("id").to_pylist() == [f"row-{i:04d}" for i in range(1000)]
    user.require_named("report", user.output)
