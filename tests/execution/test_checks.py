"""What the spec and the model say is wrong is refused alike by validate, plan and run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from batchinfer.errors import ModelError, SpecError, UserError
from batchinfer.execution import preview, ray_pipeline, runner
from batchinfer.execution.same_job import changes_of_spec, shaping
from batchinfer.input import build_manifest
from batchinfer.input.manifest import Fingerprint, Manifest
from batchinfer.jobspec import JobSpec
from batchinfer.prompting.prompts import needed_columns
from tests.support import ROOT
from tests.support.builders import make_spec, write_parquet
from tests.support.scripted_jobs import KeepingListener, scripted_spec


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
        preview.validate,
        lambda s: preview.plan(s, KeepingListener()),
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
    made = preview.plan(make_spec(**base, resources={"accelerator": "cpu"}), KeepingListener())
    assert (made.accelerator, made.num_gpus) == ("cpu", 0)
    assert made.sample is not None
    assert made.sample.rows == 2


def supposing(base, **values):
    spec = make_spec(**(base | {"model": {"source": "llama-3.1-8b"}}), resources={"accelerator": "H100"})
    return preview.suppose(spec, preview.Supposed(**values), KeepingListener())


def test_a_plan_can_suppose_gpus_and_rows_that_are_not_at_hand(base):
    gone = base | {"input": {"uri": "/nowhere/at/all", "id_column": "id"}}
    made = supposing(gone, gpus=4, rows=10**6, input_tokens=800.0, output_tokens=100.0)
    assert made.max_replicas * made.num_gpus <= 4
    assert made.assumed
    assert made.workload is not None
    assert (made.workload.rows, made.workload.input_tokens) == (10**6, 800.0)
    one = supposing(gone, gpus=1, rows=10**6, input_tokens=800.0, output_tokens=100.0)
    assert one.estimate is not None
    assert made.estimate is not None
    assert one.estimate.hours.mid > 2 * made.estimate.hours.mid


def test_what_is_supposed_of_the_rows_is_said_whole(base):
    with pytest.raises(UserError, match="--rows, --in and --out go together"):
        supposing(base, rows=10)


def test_gpus_can_be_supposed_for_the_rows_at_hand(base):
    made = supposing(base, gpus=2)
    assert made.workload is not None
    assert made.workload.rows == 2


@pytest.mark.parametrize(
    ("key", "value"),
    [("stop_token_ids", [99_999_999]), ("allowed_token_ids", [5, 99_999_999]), ("logit_bias", {99_999_999: 1.0})],
)
def test_a_token_beyond_the_vocabulary_is_refused_before_the_start(
    corpus: Path, tmp_path: Path, key: str, value: Any
) -> None:
    spec = scripted_spec(
        corpus,
        tmp_path / "out",
        model={"source": str(ROOT / "jobs/demo/model")},
        sampling={"max_tokens": 4, key: value},
    )
    with pytest.raises(SpecError, match=rf"sampling\.{key} names token .* has tokens 0 to \d+"):
        preview.validate(spec)


@pytest.mark.integration
def test_a_schema_without_a_valid_answer_is_refused_by_every_command(base):
    never = {"type": "object", "properties": {"n": {"type": "integer", "minimum": 5, "maximum": 1}}}
    (first, *others) = refusals(make_spec(**(base | {"output": {**base["output"], "json_schema": never}})))
    assert first[0] is SpecError
    assert first[1].startswith("output.json_schema.properties.n cannot be turned into a grammar")
    assert others == [first, first]


def of_an_earlier_version(spec: JobSpec, tmp_path: Path) -> Manifest:
    """The manifest of a run whose version did not have `sampling.repetition_detection`."""
    values = shaping(spec)
    values["sampling"].pop("repetition_detection")
    return build_manifest(spec, needed_columns(spec), Fingerprint(run_id="r", spec=values))


def test_a_key_that_came_later_does_not_keep_a_run_from_being_resumed(base, tmp_path):
    manifest = of_an_earlier_version(make_spec(**base), tmp_path)
    assert changes_of_spec(manifest, make_spec(**base)) == []
    changed = make_spec(**base, sampling={"repetition_detection": {"min_count": 9}, "max_tokens": 7})
    assert changes_of_spec(manifest, changed) == [
        "sampling.max_tokens: 256 then, 7 now",
        "sampling.repetition_detection.min_count: None then, 9 now",
    ]


def test_an_engine_argument_that_is_added_is_a_change(base):
    before = make_spec(**base)
    manifest = build_manifest(before, needed_columns(before), Fingerprint(run_id="r", spec=shaping(before)))
    added = make_spec(**base, engine={"extra": {"attention_backend": "TRITON_ATTN"}})
    assert changes_of_spec(manifest, added) == ["engine.extra.attention_backend: None then, 'TRITON_ATTN' now"]


def test_a_default_that_is_written_out_is_no_change(base, tmp_path):
    manifest = of_an_earlier_version(make_spec(**base), tmp_path)
    default = {"max_pattern_size": 16, "min_pattern_size": 1, "min_count": 20}
    assert changes_of_spec(manifest, make_spec(**base, sampling={"repetition_detection": default})) == []


def test_a_key_that_was_null_and_has_its_default_now_is_a_change(base):
    before = make_spec(**base, sampling={"repetition_detection": None})
    manifest = build_manifest(before, needed_columns(before), Fingerprint(run_id="r", spec=shaping(before)))
    assert any(
        line.startswith("sampling.repetition_detection") for line in changes_of_spec(manifest, make_spec(**base))
    )
