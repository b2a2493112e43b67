"""What becomes of a command whose folder for temporary files is full or missing."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batchinfer.errors import ResourceError
from batchinfer.temporary import TemporaryFolder, room_in, temporary_file, temporary_folder
from tests.support import ROOT
from tests.support.small_disk import small_disk


def test_a_folder_is_gone_afterwards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with temporary_folder("ids") as folder:
        (folder / "a").write_bytes(b"1")
        assert folder.parent == tmp_path
    held = TemporaryFolder("groups")
    assert os.path.isdir(held.path)
    del held
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "make",
    [lambda: TemporaryFolder("a"), lambda: temporary_file(".log"), lambda: temporary_folder("a").__enter__()],
)
def test_without_a_folder_the_message_names_the_variable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Callable[[], object]
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "gone"))
    with pytest.raises(ResourceError, match="no temporary file can be made on this machine") as caught:
        make()
    assert "TMPDIR" in caught.value.remedy
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_told_with_its_folder(number: int) -> None:
    with pytest.raises(ResourceError, match="no room for temporary files at /there"), room_in("/there"):
        raise OSError(number, os.strerror(number))
    with pytest.raises(OSError, match="another"), room_in("/there"):
        raise OSError(errno.EIO, "another")


@pytest.mark.integration
def test_ids_that_do_not_fit_on_the_disk_of_temporary_files_are_told_in_one_message(tmp_path: Path) -> None:
    pq.write_table(pa.table({"id": list(range(100_000)), "text": ["a"] * 100_000}), tmp_path / "in.parquet")
    spec = tmp_path / "job.yaml"
    spec.write_text(
        f"name: j\nmodel: {{source: scripted}}\ninput: {{uri: {tmp_path}/in.parquet, id_column: id}}\n"
        f"prompt: {{column: text}}\noutput: {{uri: {tmp_path}/out}}\n"
    )
    command = [sys.executable, "-m", "batchinfer", "validate", str(spec)]
    small = tmp_path / "small"
    with small_disk(small, 64):
        environment = os.environ | {"TMPDIR": str(small)}
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
        assert list(small.iterdir()) == []
    assert (done.returncode, done.stdout) == (2, "")
    first, second = done.stderr.splitlines()
    assert first.startswith(f"error: there is no room for temporary files at {small}/batchinfer-ids-")
    assert "TMPDIR" in second
