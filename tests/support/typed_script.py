"""A user's script, for the type checkers: mypy's strict mode in `make check` accepts it, and so does pyright.

Each `type: ignore` is a mistake that a checker must find: an ignore without use is an error too.
"""

from __future__ import annotations

from typing import assert_type

from pydantic import BaseModel

import batchinfer
from batchinfer.errors import Stopped, TooManyFailedRows


class Invoice(BaseModel):
    """The shape of an answer."""

    total: float
    currency: str


def make_job() -> batchinfer.Job:
    """Sections as dictionaries and as models."""
    return batchinfer.Job(
        name="invoices",
        model={"source": "qwen2.5-7b", "dtype": "bfloat16"},
        prompt={"system": "You read invoices.", "template": "{{ text }}"},
        id_column="invoice_id",
        output_schema=Invoice,
        sampling=batchinfer.SamplingSpec(max_tokens=200, temperature=0),
        resources={"accelerator": "H100", "replicas": {"min": 1, "max": 4}},
        limits={"max_cost_usd": 20},
        labels={"team": "finance"},
    )


def look(job: batchinfer.Job) -> float | None:
    """What it would cost, and a few rows first."""
    assert_type(job.to_yaml(), str)
    tried = job.try_(["one text", "another"], n=2)
    assert_type(tried.rows[0].error_code, str | None)
    cost = job.plan("s3://team/invoices").cost_usd
    return cost.mid if cost is not None else None


def carry_out(job: batchinfer.Job) -> int:
    """A run, its state, its report and its results."""
    try:
        run = job.run([{"invoice_id": 1, "text": "..."}], output="runs/invoices", wait=False).wait(timeout=3600)
    except TooManyFailedRows:
        run = batchinfer.open("runs/invoices").retry({"sampling.max_tokens": 400})
    except Stopped as stopped:
        raise SystemExit(stopped.remedy) from stopped
    assert_type(run.cost, float)
    assert_type(run.status == "complete", bool)
    assert_type(run.report.seconds.idle, float)
    return len(run.to_polars(join=True))


async def beside_others(job: batchinfer.Job) -> dict[str, int]:
    """In an event loop."""
    run = await job.run_async("s3://team/invoices", output="s3://team/runs/invoices", address="auto")
    return (await run.retry_async()).report.errors


def mistaken() -> None:
    """What a checker finds before anything runs."""
    batchinfer.Job(model="a", prompt="b", samplign={})  # type: ignore[call-arg]
    batchinfer.Job(model="a", prompt="b", sampling={"max_token": 3})  # type: ignore[arg-type]
    batchinfer.Job(model="a", prompt="b", sampling={"max_tokens": "3"})  # type: ignore[arg-type]
    batchinfer.Job(model="a", prompt="b", resources={"accelerator": "H900"})  # type: ignore[arg-type]
    batchinfer.Job(prompt="b")  # type: ignore[call-arg]
    batchinfer.SamplingSpec(max_token=3)  # type: ignore[call-arg]
