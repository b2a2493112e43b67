from __future__ import annotations

import subprocess
import sys

import pytest

from tests.support import ROOT

pytestmark = pytest.mark.integration


def run(shell: str) -> tuple[int, str]:
    command = shell.replace("BATCHINFER", f"'{sys.executable}' -m batchinfer")
    done = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True, timeout=60)
    return done.returncode, done.stderr


def test_too_few_open_files_are_named_with_what_to_set() -> None:
    code, said = run("ulimit -n 64; BATCHINFER models")
    assert code == 2
    assert said.startswith("error: this process may open 64 files, and needs 1024\n  -> raise the hard limit")


def test_a_soft_limit_of_open_files_is_raised() -> None:
    assert run("ulimit -Sn 64; BATCHINFER models") == (0, "")


def test_a_python_without_docstrings_is_named() -> None:
    code, said = run("PYTHONOPTIMIZE=2 BATCHINFER models")
    assert code == 2
    assert "unset PYTHONOPTIMIZE" in said
    assert said.count("\n") == 2
