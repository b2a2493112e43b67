"""What earlier runs do to a plan."""

from __future__ import annotations

import heapq
import json
import math
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batchinfer.execution.checks import check
from batchinfer.execution.plan_job import measured_estimate, measurements, plan_job
from batchinfer.jobspec import JobSpec
from batchinfer.planner import Interval, Plan, Workload, assumed_cluster
from tests.support.builders import make_plan, make_report_value, make_spec


@pytest.fixture
def spec(tmp_path: Path) -> JobSpec:
    (tmp_path / "in").mkdir()
    pq.write_table(pa.table({"id": list(range(5000)), "text": ["x" * 2000] * 5000}), tmp_path / "in" / "a.parquet")
    return make_spec(
        model={"source": "llama-3.1-8b"},
        input={"uri": str(tmp_path / "in"), "id_column": "id"},
        sampling={"max_tokens": 100},
        dedupe=False,
        output={"uri": str(tmp_path / "runs" / "tonight")},
        resources={"accelerator": "H100", "replicas": 1, "tensor_parallel": 1},
    )


def planned(spec: JobSpec) -> Plan:
    return plan_job(check(spec, "run", access=False), assumed_cluster(spec, 2**34))


def ran_before(tmp_path: Path, **values: Any) -> None:
    """The report of an earlier night, in the folder beside."""
    known = {
        "job_name": "a-job",
        "model": "llama-3.1-8b",
        "accelerator": "H100",
        "quantization": "none",
        "tensor_parallel": 1,
        "pipeline_parallel": 1,
    }
    folder = tmp_path / "runs" / "last-night" / "_run"
    folder.mkdir(parents=True)
    (folder / "report.json").write_text(make_report_value(**known | values).model_dump_json())


def test_the_first_plan_is_the_estimators(spec):
    plan = planned(spec)
    assert plan.estimate is not None
    assert plan.workload is not None
    assert plan.workload.rows == 5000
    assert plan.estimate.cost_usd.low < plan.estimate.cost_usd.mid < plan.estimate.cost_usd.high


@pytest.mark.parametrize("accelerator", ["H100", "cpu"])
def test_a_night_without_a_row_is_laid_out_all_the_same(spec, tmp_path, accelerator):
    ran_before(tmp_path, accelerator=accelerator, rows=1000, input_tokens=500_000, output_tokens=20_000)
    pq.write_table(pa.table({"id": [0], "text": [""]})[:0], tmp_path / "in" / "a.parquet")
    resources = make_spec(resources={"accelerator": accelerator, "replicas": 1}).resources
    plan = planned(spec.model_copy(update={"resources": resources}))
    assert (plan.accelerator, plan.max_replicas, plan.workload, plan.estimate) == (accelerator, 1, None, None)


def test_an_earlier_run_of_the_job_says_how_long_answers_are(spec, tmp_path):
    ran_before(tmp_path, rows=1000, input_tokens=500_000, output_tokens=20_000)
    plan = planned(spec)
    assert plan.workload is not None
    assert plan.workload.output_tokens.mid == pytest.approx(20)
    assert "earlier run" in plan.workload.source


def test_a_run_at_half_the_speed_doubles_the_time_and_narrows_the_interval(spec, tmp_path):
    answers = {"rows": 5000, "input_tokens": 5000 * 501, "output_tokens": 5000 * 50}
    ran_before(tmp_path, **answers, work_seconds=1.0)
    seconds = answers["input_tokens"] + answers["output_tokens"]
    # As fast as it measured whatever the estimator thought: a second of work for all of these tokens.
    fast = planned(spec).estimate
    assert fast is not None
    (tmp_path / "runs" / "last-night" / "_run" / "report.json").unlink()
    (tmp_path / "runs" / "last-night" / "_run").rmdir()
    (tmp_path / "runs" / "last-night").rmdir()
    ran_before(tmp_path, **answers, work_seconds=2.0)
    slow = planned(spec).estimate
    assert slow is not None
    assert fast.tokens_per_second.mid == pytest.approx(2 * slow.tokens_per_second.mid, rel=1e-6)
    assert fast.tokens_per_second.mid == pytest.approx(seconds, rel=0.15)


@pytest.mark.parametrize("other", [{"accelerator": "H200"}, {"model": "llama-3.1-70b"}, {"quantization": "fp8"}])
def test_a_run_of_something_else_calibrates_nothing(spec, tmp_path, other):
    before = planned(spec).estimate
    ran_before(tmp_path, rows=1000, input_tokens=500_000, output_tokens=20_000, work_seconds=1e6, job_name="x", **other)
    assert planned(spec).estimate == before


def test_on_a_cpu_an_earlier_run_is_the_estimate(spec, tmp_path):
    spec = spec.model_copy(update={"resources": make_spec(resources={"accelerator": "cpu"}).resources})
    assert planned(spec).estimate is None
    ran_before(
        tmp_path, accelerator="cpu", rows=5000, input_tokens=2_500_000, output_tokens=250_000, work_seconds=1000.0,
        load_seconds=40.0,
    )  # fmt: skip
    estimate = planned(spec).estimate
    assert estimate is not None
    assert estimate.tokens_per_second.mid == pytest.approx(2750, rel=0.01)
    work = 5000 * 550 / 2750
    assert estimate.hours.mid == pytest.approx((work + 40) / 3600, rel=0.02)


def test_a_short_trial_says_less_than_a_long_one(spec, tmp_path):
    """50 rows took a second; in a long run the engine is full and does ten times as many tokens a second."""
    spec = spec.model_copy(update={"resources": make_spec(resources={"accelerator": "cpu"}).resources})
    ran_before(
        tmp_path, accelerator="cpu", rows=50, input_tokens=25_000, output_tokens=2_500, work_seconds=2.0,
        load_seconds=1.0,
    )  # fmt: skip
    short = planned(spec).estimate
    assert short is not None
    truth = 5000 * 550 / (10 * 27_500 / 2.0) / 3600
    assert short.hours.low < truth < short.hours.high
    shutil.rmtree(tmp_path / "runs" / "last-night")
    ran_before(
        tmp_path, accelerator="cpu", rows=5000, input_tokens=2_500_000, output_tokens=250_000, work_seconds=200.0,
        load_seconds=1.0,
    )  # fmt: skip
    long = planned(spec).estimate
    assert long is not None
    assert long.hours.high / long.hours.low < short.hours.high / short.hours.low / 2


PAIRS = 60


class Simulated:
    """A random job on one replica: what a trial of its first rows and the whole of it take, in seconds.

    A step of the engine takes `step` and `each` for every row in it; prompts take `read` a token; slots are filled in
    order. `each` x slots over `step` is exp(`bound`) in the middle: if far below 1, a full engine steps as fast as an
    empty one.
    """

    def __init__(self, seed: int, bound: float) -> None:
        self._chance = chance = np.random.default_rng(seed)
        self.trial = round(math.exp(chance.uniform(math.log(20), math.log(1000))))
        self.rows = min(20_000, round(self.trial * math.exp(chance.uniform(math.log(2), math.log(400)))))
        self.slots = int(chance.choice([16, 64, 256]))
        self.most = round(math.exp(chance.uniform(math.log(8), math.log(500))))
        spread, spread_in = chance.uniform(0, 1.2, 2)
        mean = math.log(chance.uniform(0.1, 1.0) * self.most) - spread**2 / 2
        self.outputs = np.clip(chance.lognormal(mean, spread, self.rows), 1, self.most).astype(int)
        self.inputs = np.clip(chance.lognormal(math.log(chance.uniform(20, 1500)), spread_in, self.rows), 1, 8000)
        self._step = 0.02 * math.exp(chance.normal())
        self._each = self._step / self.slots * math.exp(chance.normal(bound))
        self._read = self._each * chance.uniform(0.02, 0.5)
        self._warm_up, self._load, self._idle = chance.uniform(0, 4), chance.uniform(2, 60), chance.uniform(0.2, 2)

    def seconds(self, rows: int) -> dict[str, float]:
        """Of a run of the first rows: work, load, idle, each with the noise of a machine that others use."""
        ends = [0] * min(self.slots, rows)
        for length in self.outputs[:rows]:
            heapq.heapreplace(ends, ends[0] + int(length))
        work = max(ends) * self._step + self.outputs[:rows].sum() * self._each + self.inputs[:rows].sum() * self._read
        return {
            "work": self._warm_up * self._noise(0.1) + work * self._noise(0.05),
            "load": self._load * self._noise(0.1),
            "idle": self._idle * self._noise(0.3),
        }

    def _noise(self, spread: float) -> float:
        return math.exp(self._chance.normal(0, spread))


def interval_after_trial(job: Simulated) -> Interval:
    """The seconds that the plan of the whole job expects after the trial."""
    took = job.seconds(job.trial)
    report = make_report_value(
        accelerator="cpu",
        rows=job.trial,
        input_tokens=int(job.inputs[: job.trial].sum()),
        output_tokens=int(job.outputs[: job.trial].sum()),
        work_seconds=took["work"],
        load_seconds=took["load"],
    )
    seconds = report.seconds.model_copy(update={"idle": took["idle"]})
    answer = report.output_tokens / job.trial
    workload = Workload(
        rows=job.rows,
        input_tokens=float(job.inputs[:: max(1, job.rows // 512)].mean()),
        longest_input_tokens=int(job.inputs.max()),
        output_tokens=Interval(low=answer * 0.9, mid=answer, high=answer * 1.1),
        sampled_rows=min(512, job.rows),
        source="simulated",
    )
    spec = make_spec(engine={"max_num_seqs": job.slots}, sampling={"max_tokens": job.most})
    plan = make_plan(accelerator="cpu", num_gpus=0, tensor_parallel=1, price_per_gpu_hour=1.0)
    made = measured_estimate(
        measurements(report.model_copy(update={"sessions": (), "seconds": seconds})), plan, workload, spec
    )
    assert made is not None
    return made.hours.scaled(3600)


@pytest.mark.parametrize("bound", [0.0, -1.5, -3.0], ids=["compute", "between", "bandwidth"])
def test_the_time_of_a_job_is_in_nine_of_ten_intervals_after_a_trial(bound):
    jobs = [Simulated(seed, bound) for seed in range(PAIRS)]
    made = [(interval_after_trial(job), sum(job.seconds(job.rows).values()), job) for job in jobs]
    inside = [interval.low <= took <= interval.high for interval, took, _ in made]
    assert sum(inside) >= 0.9 * PAIRS
    # An interval from nothing to for ever would hold all of them.
    widths = [interval.high / interval.low for interval, _, _ in made]
    assert np.median(widths) < 4
    assert np.median([width for width, (_, _, job) in zip(widths, made, strict=True) if job.trial >= job.slots]) < 3


def test_rows_that_never_ran_say_nothing_about_speed_or_length(spec, tmp_path):
    before = planned(spec)
    ran_before(
        tmp_path, rows=200, rows_failed=200, input_tokens=0, cached_tokens=0, output_tokens=0,
        rejected_tokens=726_072, errors={"prompt_too_long": 200}, work_seconds=1.0,
    )  # fmt: skip
    after = planned(spec)
    assert after.estimate == before.estimate
    assert after.workload is not None
    assert before.workload is not None
    assert after.workload.output_tokens == before.workload.output_tokens


def test_another_models_answers_say_nothing_about_the_length_of_this_ones(spec, tmp_path):
    ran_before(tmp_path, model="llama-3.1-70b", rows=1000, input_tokens=500_000, output_tokens=20_000)
    plan = planned(spec)
    assert plan.workload is not None
    assert "as an earlier run" not in plan.workload.source


SENSELESS = {
    "no replica": {"replicas": 0},
    "negative tokens": {"input_tokens": -5},
    "huge integers": {"input_tokens": 10**400, "rows_ran": 10**300},
    "no parts": {"tensor_parallel": 0},
    "no time for its work": {"seconds": {"load": 1, "work": 1e-300, "idle": 0, "waste": 0}},
    "infinite time": {"seconds": {"load": 1, "work": 1e999, "idle": 0, "waste": 0}},
    "a device that there is not": {"accelerator": "abacus"},
    "weights that there are not": {"quantization": "1bit"},
    "another type": {"rows": "many"},
}


@pytest.mark.parametrize("kind", [*SENSELESS, "no JSON", "a folder", "a link to itself"])
def test_a_neighbours_report_that_makes_no_sense_is_ignored_and_named(spec, tmp_path, kind):
    before = planned(spec)
    ran_before(tmp_path, rows=1000, input_tokens=500_000, output_tokens=20_000)
    place = tmp_path / "runs" / "last-night" / "_run" / "report.json"
    told = json.loads(place.read_text())
    place.unlink()
    if kind == "a folder":
        place.mkdir()
    elif kind == "a link to itself":
        place.symlink_to(place)
    elif kind == "no JSON":
        place.write_bytes(b"\x00" * 100)
    else:
        place.write_text(json.dumps(told | SENSELESS[kind]))
    heard: list[dict[str, Any]] = []
    listener = SimpleNamespace(event=lambda name, **values: heard.append({"name": name} | values))
    checked = check(spec, "run", access=False)
    plan = plan_job(checked, assumed_cluster(spec, 2**34), listener)  # type: ignore[arg-type]
    assert (plan.estimate, plan.workload) == (before.estimate, before.workload)
    if kind not in ("a folder", "a link to itself"):
        assert [(event["name"], event["report"]) for event in heard] == [("report ignored", str(place))]


def test_what_is_no_report_of_ours_is_passed_over(spec, tmp_path):
    folder = tmp_path / "runs" / "theirs" / "_run"
    folder.mkdir(parents=True)
    (folder / "report.json").write_text('{"rows": "many"}')
    assert planned(spec).estimate is not None
