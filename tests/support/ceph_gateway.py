"""Ceph's own S3 gateway on loopback: a real store that is neither AWS nor an emulator.

Needs Debian's packages: apt-get install --no-install-recommends ceph-mon ceph-mgr ceph-osd radosgw ceph-common
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
import uuid
from pathlib import Path

PROGRAMS = ("ceph-mon", "ceph-mgr", "ceph-osd", "radosgw", "radosgw-admin", "monmaptool", "ceph")

_CONFIGURATION = """
[global]
fsid = {fsid}
mon_host = [v2:127.0.0.1:{mon_port},v1:127.0.0.1:{old_mon_port}]
mon_initial_members = a
public_addr = 127.0.0.1
cluster_addr = 127.0.0.1
auth_cluster_required = none
auth_service_required = none
auth_client_required = none
osd_pool_default_size = 1
osd_pool_default_min_size = 1
osd_pool_default_pg_num = 8
osd_pool_default_pgp_num = 8
osd_pool_default_pg_autoscale_mode = off
osd_crush_chooseleaf_type = 0
mon_allow_pool_size_one = true
mon_max_pg_per_osd = 1000
run_dir = {folder}
admin_socket = {folder}/$name.asok
log_file = {folder}/$name.log
keyring = {folder}/keyring
crash_dir = {folder}
[mon]
mon_data = {folder}/mon
mon_data_avail_crit = 1
auth_allow_insecure_global_id_reclaim = false
[mgr]
mgr_data = {folder}/mgr
mgr_initial_modules =
[osd]
osd_data = {folder}/osd
osd_objectstore = memstore
memstore_device_bytes = 2147483648
[client]
rgw_frontends = beast endpoint=127.0.0.1:{port}
rgw_data = {folder}/rgw
ms_mon_client_mode = crc
"""


def missing_programs() -> list[str]:
    """Those that are not installed."""
    return [name for name in PROGRAMS if shutil.which(name) is None]


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


class CephGateway:
    """One monitor, one manager, one storage daemon in memory, one gateway. Both keys are `testing`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._conf = folder / "ceph.conf"
        self._daemons: dict[str, subprocess.Popen[bytes]] = {}
        port = _free_port()
        self.url = f"http://127.0.0.1:{port}"
        for name in ("mon", "mgr", "osd", "rgw"):
            (folder / name).mkdir(parents=True)
        (folder / "keyring").touch()
        self._fsid = str(uuid.uuid4())
        self._mon_port, self._old_mon_port = _free_port(), _free_port()
        self._conf.write_text(
            _CONFIGURATION.format(
                fsid=self._fsid,
                folder=folder,
                port=port,
                mon_port=self._mon_port,
                old_mon_port=self._old_mon_port,
            )
        )

    def __enter__(self) -> CephGateway:
        try:
            self._start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def _start(self) -> None:
        monmap = str(self._folder / "monmap")
        address = f"[v2:127.0.0.1:{self._mon_port},v1:127.0.0.1:{self._old_mon_port}]"
        self._run("monmaptool", "--create", "--fsid", self._fsid, "--addv", "a", address, monmap)
        self._run("ceph-mon", "--mkfs", "-i", "a", "--monmap", monmap)
        self._begin("mon", "ceph-mon", "-f", "-i", "a")
        self._run("ceph", "mon", "stat")
        self._begin("mgr", "ceph-mgr", "-f", "-i", "x")
        disk = str(uuid.uuid4())
        number = self._run("ceph", "osd", "new", disk).strip()
        self._run("ceph-osd", "--mkfs", "-i", number, "--osd-uuid", disk)
        self._begin("osd", "ceph-osd", "-f", "-i", number)
        deadline = time.monotonic() + 60
        while "1 up" not in self._run("ceph", "osd", "stat"):
            assert time.monotonic() < deadline, "the storage daemon did not come up"
            time.sleep(0.5)
        self.mend()
        keys = ("--access-key=testing", "--secret-key=testing")
        self._run("radosgw-admin", "user", "create", "--uid=test", "--display-name=test", *keys)

    def add_user(self, name: str) -> str:
        """A user who may do nothing, whose keys are both `name`; returns what a policy calls the user."""
        keys = (f"--access-key={name}", f"--secret-key={name}")
        self._run("radosgw-admin", "user", "create", f"--uid={name}", f"--display-name={name}", *keys)
        return f"arn:aws:iam:::user/{name}"

    def cut(self) -> None:
        """An outage: the gateway is killed."""
        gateway = self._daemons.pop("rgw")
        gateway.kill()
        gateway.wait()

    def mend(self) -> None:
        """The end of an outage."""
        self._begin("rgw", "radosgw", "-f", "-n", "client.rgw")
        deadline = time.monotonic() + 120
        while not self._answers():
            assert time.monotonic() < deadline, "the gateway does not answer"
            time.sleep(0.5)

    def _answers(self) -> bool:
        try:
            urllib.request.urlopen(self.url, timeout=5).close()
        except urllib.error.HTTPError:
            return True
        except OSError:
            return False
        return True

    def _run(self, *command: str) -> str:
        done = subprocess.run(
            [*command, "--conf", str(self._conf)] if command[0] != "monmaptool" else command,
            capture_output=True,
            text=True,
            timeout=120,
            cwd=self._folder,
        )
        assert done.returncode == 0, f"{command[0]}: {done.stderr}"
        return done.stdout

    def _begin(self, name: str, *command: str) -> None:
        with (self._folder / f"{name}.out").open("ab") as out:
            self._daemons[name] = subprocess.Popen(
                [*command, "--conf", str(self._conf)],
                stdout=out,
                stderr=out,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
                cwd=self._folder,
                env={name: value for name, value in os.environ.items() if name != "CEPH_ARGS"},
            )

    def __exit__(self, *_: object) -> None:
        for daemon in reversed(self._daemons.values()):
            daemon.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                daemon.wait(5)
            daemon.kill()
            daemon.wait()
        self._daemons.clear()
