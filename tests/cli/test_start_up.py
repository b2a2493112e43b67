"""A command that is refused or only looks answers at once: no heavy library is imported for it."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytestmark = pytest.mark.integration

LAZY = ("ray", "vllm", "torch", "transformers", "pyarrow.dataset", "pandas", "boto3", "huggingface_hub")


def test_the_command_line_starts_without_the_heavy_libraries():
    code = f"import sys, batchinfer.cli; print([name for name in {LAZY!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
