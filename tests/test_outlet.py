from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import ROOT

pytestmark = pytest.mark.integration


def run(shell: str) -> subprocess.CompletedProcess[str]:
    command = shell.replace("BATCHINFER", f"'{sys.executable}' -m batchinfer")
    return subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("stream", [">&-", ">/dev/full", ">&- 2>&-", "0<&- >&- 2>&-"])
def test_a_command_whose_stdout_nobody_can_read_has_the_exit_code_of_its_work(stream: str) -> None:
    done = run(f"BATCHINFER models {stream}")
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("stream", ["2>&-", "2>/dev/full"])
def test_an_error_that_nobody_can_read_has_its_exit_code(tmp_path: Path, stream: str) -> None:
    assert run(f"BATCHINFER validate {tmp_path}/none.yaml {stream}").returncode == 2


def test_a_reader_that_leaves_is_no_failure() -> None:
    done = run("(BATCHINFER models --json; echo $? >&2) | head -c 1")
    assert done.stderr == "0\n"


def test_a_terminal_without_the_characters_shows_what_it_can() -> None:
    done = run("PYTHONIOENCODING=ascii PYTHONUTF8=0 LC_ALL=C BATCHINFER gpus")
    assert done.returncode == 0
    assert done.stdout.isascii()
    assert "AWS" in done.stdout
