"""A job in Python says what a spec says, and costs no second to import."""

from __future__ import annotations

import inspect
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

import batchinfer
from batchinfer.errors import SpecError, UserError
from batchinfer.jobspec import JobSpec
from batchinfer.jobspec.base import keys_of
from tests.support import ROOT, typed_script

LEAST: dict[str, Any] = {"model": "scripted", "prompt": "{{ text }}"}


class Invoice(BaseModel):
    total: float
    currency: Literal["EUR", "USD"]


def test_short_forms_are_the_keys_that_they_stand_for() -> None:
    short = batchinfer.Job(**LEAST, id_column="id", choices=["a", "b"])
    long = batchinfer.Job(
        model={"source": "scripted"},
        prompt=batchinfer.PromptSpec(template="{{ text }}"),
        input={"id_column": "id"},
        output=batchinfer.OutputSpec.model_validate({"uri": "x", "choices": ["a", "b"]}).model_dump(
            exclude={"uri"}, exclude_unset=True
        ),
    )
    assert short == long
    assert short.keys == {
        "name": "job",
        "model": {"source": "scripted"},
        "input": {"id_column": "id"},
        "prompt": {"template": "{{ text }}"},
        "output": {"choices": ["a", "b"]},
    }


def test_a_pydantic_class_makes_typed_columns() -> None:
    output = batchinfer.Job(**LEAST, output_schema=Invoice).keys["output"]
    assert output == {"json_schema": Invoice.model_json_schema(), "as": "columns"}
    assert batchinfer.Job(**LEAST, output_schema=Invoice, output={"column": "bill"}).keys["output"]["as"] == "struct"
    assert batchinfer.Job(**LEAST, output_schema=Invoice, output={"as": "json"}).keys["output"]["as"] == "json"


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"sampling": {"max_token": 3}}, "Job: sampling.max_token: unknown key; did you mean 'max_tokens'?"),
        ({"sampling": {"max_tokens": 0}}, "Job: sampling.max_tokens: input should be greater than or equal to 1"),
        ({"prompt": "{{ text"}, "Job: prompt.template: "),
        ({"choices": ["a"], "output": {"choices": ["b"]}}, "choices and output.choices say two different things"),
    ],
)
def test_a_mistake_is_named_with_its_key_when_the_job_is_made(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message.replace("?", r"\?")):
        batchinfer.Job(**(LEAST | keys))


def test_every_key_of_the_spec_is_a_keyword() -> None:
    keywords = set(inspect.signature(batchinfer.Job).parameters)
    assert keywords == set(keys_of(JobSpec)) | {"id_column", "choices", "output_schema"}


@pytest.mark.parametrize("path", sorted((ROOT / "jobs").glob("*.yaml")), ids=lambda path: path.name)
def test_a_spec_is_the_same_job_in_yaml_and_in_python(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    job = batchinfer.Job.from_yaml(path)
    assert batchinfer.Job.from_yaml(job.to_yaml()) == job
    assert batchinfer.Job(**job.keys) == job
    assert JobSpec.model_validate(job.keys) == JobSpec.model_validate(yaml.safe_load(path.read_text()))


texts = st.text(st.characters(exclude_categories=("Cs", "Cc")), min_size=1, max_size=12)
jobs = st.fixed_dictionaries(
    {"model": st.sampled_from(["scripted", "qwen2.5-7b"]), "prompt": texts.filter(lambda text: "{" not in text)},
    optional={
        "name": st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,20}", fullmatch=True),
        "id_column": texts,
        "choices": st.lists(texts, min_size=1, max_size=4, unique=True) | st.dictionaries(texts, texts, min_size=1),
        "sampling": st.fixed_dictionaries(
            {}, optional={"max_tokens": st.integers(64, 900), "temperature": st.floats(0, 2), "seed": st.integers(0, 9)}
        ),
        "limits": st.fixed_dictionaries({}, optional={"max_cost_usd": st.floats(0, 1e6) | st.none()}),
        "labels": st.dictionaries(texts, texts),
        "resources": st.just({"replicas": {"min": 1, "max": 3}}),
        "shards": st.fixed_dictionaries({}, optional={"rows": st.just("auto") | st.integers(1, 9_999)}),
    },
)


@settings(max_examples=60, deadline=None)
@given(jobs)
def test_to_yaml_and_from_yaml_are_inverses(keys: dict[str, Any]) -> None:
    try:
        job = batchinfer.Job(**keys)
    except SpecError:
        # What no spec can say, as a label that is the name of another column.
        return
    text = job.to_yaml()
    again = batchinfer.Job.from_yaml(text)
    assert again == job
    assert again.to_yaml() == text
    assert hash(again) == hash(job)


def test_a_job_without_a_place_for_its_results_says_what_to_do() -> None:
    with pytest.raises(UserError, match="does not say where the results go"):
        batchinfer.Job(**LEAST).run(["a"])
    with pytest.raises(UserError, match="the job has no rows"):
        batchinfer.Job(**LEAST).run(output="out")


def test_recurring_jobs_do_not_read_rows_in_memory(tmp_path: Path) -> None:
    job = batchinfer.Job(**LEAST, schedule={"cron": "0 2 * * *"})
    with pytest.raises(SpecError, match="a recurring job reads new files"):
        job.run(["a"], output=tmp_path)


def test_a_notebook_shows_a_job_without_reading_its_text_as_html() -> None:
    shown = batchinfer.Job(**(LEAST | {"prompt": "<b>{{ text }}</b>"}))._repr_html_()
    assert "&lt;b&gt;{{ text }}" in shown


def test_the_plan_of_rows_in_memory_leaves_no_file(tmp_path: Path) -> None:
    job = batchinfer.Job(model="scripted", prompt="{{ text }}", resources={"accelerator": "H100"})
    plan = job.plan([f"text {i}" for i in range(300)], output=tmp_path / "out")
    assert plan.plan.workload is not None
    assert plan.plan.workload.rows == 300
    assert plan.plan.accelerator == "H100"
    assert "300 rows" in str(plan)
    assert "8 replicas of 1 H100 each" in plan._repr_html_()
    assert plan.document()["accelerator"] == "H100"
    assert not (tmp_path / "out").exists()


@pytest.mark.integration
def test_a_plan_starts_no_ray() -> None:
    code = """
import batchinfer
batchinfer.Job(model="scripted", prompt="{{ text }}", resources={"accelerator": "H100"}).plan(["a", "b"])
import ray
print(ray.is_initialized())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


@pytest.mark.integration
def test_the_package_is_imported_in_milliseconds_and_without_its_heavy_parts() -> None:
    code = (
        "import sys, time; began = time.process_time(); import batchinfer; seconds = time.process_time() - began; "
        "heavy = {'ray', 'pyarrow', 'torch', 'pandas', 'pydantic', 'vllm', 'duckdb'} & sys.modules.keys(); "
        "batchinfer.Job; more = {'ray', 'pyarrow.dataset', 'torch', 'pandas', 'polars', 'vllm'} & sys.modules.keys(); "
        "print(seconds, sorted(heavy), sorted(more))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    seconds, _, rest = done.stdout.partition(" ")
    assert rest.strip() == "[] []"
    assert float(seconds) < 0.3


def test_every_public_name_is_there() -> None:
    assert [name for name in batchinfer.__all__ if getattr(batchinfer, name, None) is None] == []
    assert set(batchinfer.__all__) <= set(dir(batchinfer))
    with pytest.raises(AttributeError, match="has no attribute 'Jobb'"):
        batchinfer.Jobb  # noqa: B018


def test_the_script_that_is_type_checked_makes_the_job_that_it_says() -> None:
    keys = typed_script.make_job().keys
    assert keys["output"]["json_schema"]["properties"].keys() == {"total", "currency"}
    assert keys["resources"]["replicas"] == {"min": 1, "max": 4}
    assert keys["sampling"] == {"max_tokens": 200, "temperature": 0.0}
