"""The wheel is the whole product: it runs without the repository beside it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import batchinfer
from tests.support import ROOT

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of a copy of the source: a build leaves files beside what it builds."""
    source, made = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, source)
    shutil.copytree(ROOT / "batchinfer", source / "batchinfer", ignore=shutil.ignore_patterns("__pycache__"))
    options = ("--no-deps", "--no-build-isolation", "--no-index", "--quiet", "--wheel-dir", str(made))
    subprocess.run([sys.executable, "-m", "pip", "wheel", *options, str(source)], check=True)
    (built,) = made.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("installed")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def run(installed: Path, *arguments: str) -> str:
    """Run `python` with what the wheel holds, away from the repository."""
    environment = os.environ | {"PYTHONPATH": str(installed)}
    done = subprocess.run(
        [sys.executable, *arguments], env=environment, cwd=installed, capture_output=True, text=True, check=True
    )
    return done.stdout


def test_the_wheel_has_the_version_of_the_package(wheel: Path, installed: Path) -> None:
    assert wheel.name.startswith(f"batchinfer-{batchinfer.__version__}-")
    assert run(installed, "-m", "batchinfer", "--version") == f"batchinfer {batchinfer.__version__}\n"


def test_the_commands_that_need_no_input_run_from_the_wheel(installed: Path) -> None:
    assert Path(run(installed, "-c", "import batchinfer; print(batchinfer.__file__)")).is_relative_to(installed)
    assert len(json.loads(run(installed, "-m", "batchinfer", "models", "--json"))) > 10
    assert len(json.loads(run(installed, "-m", "batchinfer", "gpus", "--json"))) > 10
    schema = json.loads(run(installed, "-m", "batchinfer", "explain", "--json"))
    assert schema == json.loads((ROOT / "schemas" / "job-spec.schema.json").read_text(encoding="utf-8"))


def test_the_wheel_has_every_data_file_of_the_package(installed: Path) -> None:
    source = {path.relative_to(ROOT) for path in (ROOT / "batchinfer").rglob("*") if path.is_file()}
    held = {path.relative_to(installed) for path in installed.rglob("*")}
    assert {path for path in source - held if path.suffix != ".pyc"} == set()
