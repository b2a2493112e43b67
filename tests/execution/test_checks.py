"""What the spec and the model say is wrong is refused alike by validate, plan and run."""

from __future__ import annotations

from pathlib import Path

import pytest

from batchinfer.errors import ModelError, SpecError, UserError
from batchinfer.execution import ray_pipeline, runner
from batchinfer.jobspec import JobSpec
from tests.support import ROOT
from tests.support.builders import make_spec, write_parquet
from tests.support.scripted_jobs import KeepingListener


@pytest.fixture
def base(tmp_path: Path) -> dict[str, object]:
    write_parquet(tmp_path / "in" / "a.parquet", {"id": [1, 2], "text": ["a", "b"]})
    return {
        "input": {"uri": str(tmp_path / "in"), "id_column": "id"},
        "output": {"uri": str(tmp_path / "out")},
        "model": {"source": str(ROOT / "jobs/demo/model")},
    }


def refusals(spec: JobSpec) -> list[tuple[type, str]]:
    """What each command says, before it starts anything."""
    found = []
    for command in (
        runner.validate,
        lambda s: runner.plan(s, KeepingListener()),
        lambda s: runner.run(s, KeepingListener()),
    ):
        with pytest.raises(UserError) as caught:
            command(spec)
        found.append((caught.type, caught.value.message))
    return found


def test_a_context_longer_than_the_models_is_refused_by_every_command(base):
    spec = make_spec(**base, engine={"max_model_len": 9999})
    (first, *others) = refusals(spec)
    assert first[0] is ModelError
    assert "engine.max_model_len 9,999" in first[1]
    assert others == [first, first]


@pytest.mark.parametrize(("asked", "kind"), [("4bit", SpecError), ("awq", ModelError)])
def test_weights_that_there_are_not_are_refused_by_every_command(base, asked, kind):
    spec = make_spec(**(base | {"model": {"source": base["model"]["source"], "quantization": asked}}))
    (first, *others) = refusals(spec)
    assert first[0] is kind
    assert others == [first, first]


def test_choices_that_would_be_cut_are_refused_by_every_command(base):
    output = {**base["output"], "choices": ["yes", "a long choice of many words that four tokens cannot hold"]}
    (first, *others) = refusals(make_spec(**(base | {"output": output}), sampling={"max_tokens": 4}))
    assert first[0] is SpecError
    assert others == [first, first]


def test_a_plan_for_a_cpu_starts_no_ray(base, monkeypatch):
    def no_ray(address: str | None) -> None:
        raise AssertionError("Ray was started")

    monkeypatch.setattr(ray_pipeline, "connected", no_ray)
    made = runner.plan(make_spec(**base, resources={"accelerator": "cpu"}), KeepingListener())
    assert (made.accelerator, made.num_gpus) == ("cpu", 0)
    assert made.sample is not None
    assert made.sample.rows == 2
