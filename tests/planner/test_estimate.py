"""The estimator against published throughputs, and the laws that any estimate obeys."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batchinfer.catalog.accelerators import accelerators
from batchinfer.catalog.models import models
from batchinfer.catalog.quantization import QUANTIZATIONS
from batchinfer.planner.calibrate import Reading, calibration_from
from batchinfer.planner.estimate import CALIBRATED_SPREAD, RATE_SPREAD, job_estimate, replica_speed
from batchinfer.planner.values import EngineSettings, Fit, Interval, ReplicaSpeed, Workload

ROOT = Path(__file__).parents[2]
LOAD = Interval(low=30, mid=90, high=300)


@pytest.fixture(scope="module")
def exam():
    """What benchmarks/estimator.py finds."""
    command = [sys.executable, "benchmarks/estimator.py", "--json"]
    return json.loads(subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout)


@pytest.mark.integration
def test_the_median_error_is_under_a_fifth_on_all_rows_and_on_those_held_out(exam):
    summary = exam["summary"]
    assert summary["all"]["rows"] > 300
    assert summary["held out"]["rows"] > summary["rows that set constants"]["rows"]
    assert summary["all"]["median_error"] < 0.2
    assert summary["held out"]["median_error"] < 0.2
    assert summary["held out, dense"]["median_error"] < 0.1
    assert summary["vLLM"]["median_error"] < 0.1


@pytest.mark.integration
def test_a_row_off_by_more_than_twofold_is_explained(exam):
    far = [row for row in exam["rows"] if not 0.5 <= row["estimated"] / row["published"] <= 2]
    assert len(far) <= 0.03 * len(exam["rows"])
    assert [row for row in far if not row["group"]["note"]] == []


@pytest.mark.integration
def test_the_intervals_hold_what_was_measured_in_four_of_five_rows(exam):
    for spread, found in (
        (RATE_SPREAD, exam["summary"]["all"]),
        (CALIBRATED_SPREAD, exam["summary"]["calibrated by the like"]),
    ):
        assert spread.low <= found["published_tenth"] <= spread.low + 0.05
        assert spread.high - 0.05 <= found["published_ninetieth"] <= spread.high


def workload(rows=100_000, prompt=500.0, low=200.0, mid=300.0, high=400.0):
    return Workload(
        rows=rows,
        input_tokens=prompt,
        longest_input_tokens=int(prompt) + 1,
        output_tokens=Interval(low=low, mid=mid, high=high),
        sampled_rows=100,
        source="a test",
    )


def room(tokens):
    return Fit(
        weight_bytes_per_gpu=1,
        overhead_bytes_per_gpu=1,
        kv_cache_bytes_per_gpu=1,
        kv_cache_tokens=tokens,
        sequences=1.0,
        shortfall=0,
    )


@st.composite
def cases(draw):
    """The arguments of `replica_speed` for any model on any GPU."""
    tensor = draw(st.sampled_from([1, 2, 4, 8]))
    return {
        "shape": draw(st.sampled_from([model.shape for model in models().values()])),
        "quantization": draw(st.sampled_from(list(QUANTIZATIONS.values()))),
        "accelerator": draw(st.sampled_from([gpu for name, gpu in accelerators().items() if name != "cpu"])),
        "tensor": tensor,
        "pipeline": draw(st.sampled_from([1, 2, 3])),
        "fit": room(draw(st.integers(100, 10_000_000))),
        "settings": EngineSettings(max_num_seqs=draw(st.sampled_from([1, 16, 256, 2048]))),
        "workload": workload(
            rows=draw(st.integers(1, 10_000_000)), prompt=draw(st.floats(1, 50_000)), mid=draw(st.floats(1, 8000))
        ),
    }


@given(cases(), st.sampled_from([2.0, 3.0]))
def test_requests_of_a_row_run_as_rows_of_their_own(case, requests):
    whole = case["workload"]
    several = whole.model_copy(
        update={
            "input_tokens": whole.input_tokens * requests,
            "output_tokens": whole.output_tokens.scaled(requests),
            "sequences": requests,
        }
    )
    each = replica_speed(**(case | {"workload": whole.model_copy(update={"rows": round(whole.rows * requests)})}))
    together = replica_speed(**(case | {"workload": several}))
    assert together.tokens_per_second == pytest.approx(each.tokens_per_second, rel=1e-6)
    assert together.rows_per_second == pytest.approx(each.rows_per_second / requests, rel=1e-6)


@given(cases())
def test_a_speed_is_positive_and_its_figures_agree(case):
    speed = replica_speed(**case)
    work = case["workload"]
    assert speed.rows_per_second > 0
    assert 0 < speed.batch <= max(1, min(case["settings"].max_num_seqs, work.rows))
    assert speed.output_tokens_per_second == pytest.approx(speed.rows_per_second * work.output_tokens.mid)
    tokens = work.input_tokens + work.output_tokens.mid
    assert speed.tokens_per_second == pytest.approx(speed.rows_per_second * tokens)


@given(cases(), st.floats(1, 4), st.sampled_from(["bandwidth_gb_s", "nvlink_gb_s", "tflops"]))
def test_a_better_gpu_is_never_slower(case, factor, figure):
    gpu = case["accelerator"]
    old = getattr(gpu, figure)
    if old is None:
        better = gpu
    elif isinstance(old, dict):
        better = gpu.model_copy(update={figure: {dtype: value * factor for dtype, value in old.items()}})
    else:
        better = gpu.model_copy(update={figure: old * factor})
    faster = replica_speed(**(case | {"accelerator": better}))
    assert faster.rows_per_second >= replica_speed(**case).rows_per_second * (1 - 1e-9)


@given(cases(), st.floats(1, 8))
def test_longer_outputs_and_longer_prompts_never_give_more_rows(case, factor):
    work = case["workload"]
    mid = work.output_tokens.mid * factor
    rows = replica_speed(**case).rows_per_second * (1 + 1e-9)
    longer = work.model_copy(update={"output_tokens": Interval(low=mid, mid=mid, high=mid)})
    assert replica_speed(**(case | {"workload": longer})).rows_per_second <= rows
    longer = work.model_copy(update={"input_tokens": work.input_tokens * factor})
    assert replica_speed(**(case | {"workload": longer})).rows_per_second <= rows


@given(cases(), st.floats(1, 8))
def test_more_room_for_the_kv_cache_is_never_slower(case, factor):
    roomier = room(int(case["fit"].kv_cache_tokens * factor))
    more = replica_speed(**(case | {"fit": roomier})).rows_per_second
    assert more >= replica_speed(**case).rows_per_second * (1 - 1e-9)


def on(gpu, model, quantization, tensor=1, tokens=400_000, **work):
    return replica_speed(
        models()[model].shape,
        QUANTIZATIONS[quantization],
        accelerators()[gpu],
        tensor,
        1,
        room(tokens),
        EngineSettings(),
        workload(**work),
    )


def test_what_bounds_the_speed_is_named():
    assert on("H100", "llama-3.1-8b", "fp8", prompt=4000, mid=16).bound == "compute"
    assert on("H100", "llama-3.1-8b", "fp8", prompt=16, mid=1000, rows=8).bound == "bandwidth"
    assert on("H100", "llama-3.1-8b", "none", tokens=20_000, prompt=2000, mid=2000).bound == "kv cache"


def test_a_gpu_without_fp8_computes_fp8_weights_in_16_bits():
    """Prompts are compute: there fp8 is worth nothing on an A100 and nearly double on an H100."""
    lengths = {"prompt": 4000, "mid": 8}
    a100 = [on("A100-80GB", "llama-3.1-8b", q, **lengths).rows_per_second for q in ("none", "fp8")]
    h100 = [on("H100", "llama-3.1-8b", q, **lengths).rows_per_second for q in ("none", "fp8")]
    assert a100[1] == pytest.approx(a100[0], rel=0.05)
    assert 1.4 < h100[1] / h100[0] < 2


def test_tensor_parallelism_over_pcie_is_slower_than_over_nvlink():
    h100 = accelerators()["H100"]
    base = {"shape": models()["llama-3.3-70b"].shape, "quantization": QUANTIZATIONS["fp8"], "tensor": 4, "pipeline": 1}
    rest = {"fit": room(400_000), "settings": EngineSettings(), "workload": workload()}
    pcie = h100.model_copy(update={"nvlink_gb_s": None})
    fast = replica_speed(accelerator=h100, **base, **rest).rows_per_second
    assert replica_speed(accelerator=pcie, **base, **rest).rows_per_second < 0.7 * fast


SPEEDS = st.builds(
    lambda rows, work: (
        work,
        ReplicaSpeed(
            tokens_per_second=rows * (work.input_tokens + work.output_tokens.mid),
            output_tokens_per_second=rows * work.output_tokens.mid,
            rows_per_second=rows,
            batch=64,
            bound="compute",
        ),
    ),
    st.floats(1e-3, 1e4),
    st.builds(
        lambda rows, prompt, lengths: workload(rows, prompt, *sorted(lengths)),
        st.integers(1, 10**8),
        st.floats(1, 1e5),
        st.tuples(st.floats(1, 1e4), st.floats(1, 1e4), st.floats(1, 1e4)),
    ),
)


@settings(max_examples=200)
@given(
    SPEEDS,
    st.integers(1, 64),
    st.sampled_from([1, 2, 8, 16]),
    st.floats(0.01, 30),
    st.none() | st.floats(0.2, 5),
    st.none() | st.tuples(st.floats(0.3, 3), st.floats(0.3, 3)),
)
def test_an_estimate_is_ordered_and_costs_hours_times_gpus_times_price(
    given_, replicas, gpus, price, calibration, ends
):
    work, speed = given_
    others = ends and tuple(
        speed.model_copy(update={"tokens_per_second": speed.tokens_per_second * factor}) for factor in ends
    )
    made = job_estimate(speed, replicas, gpus, work, price, LOAD, calibration, others)
    for interval in (made.hours, made.cost_usd, made.tokens_per_second, made.usd_per_million_tokens):
        assert 0 < interval.low <= interval.mid <= interval.high
    for name in ("low", "mid", "high"):
        cost, hours = getattr(made.cost_usd, name), getattr(made.hours, name)
        assert cost == pytest.approx(hours * replicas * gpus * price)
    seconds = work.rows / (speed.rows_per_second * replicas * (calibration or 1))
    assert made.hours.mid == pytest.approx((LOAD.mid + seconds) / 3600)
    million = work.rows * (work.input_tokens + work.output_tokens.mid) / 1e6
    assert made.usd_per_million_tokens.mid == pytest.approx(made.cost_usd.mid / million)


def test_a_calibrated_estimate_is_narrower_and_lies_where_the_measurement_did():
    speed = on("H100", "llama-3.1-8b", "fp8")
    work = workload(low=300, mid=300, high=300)
    plain = job_estimate(speed, 2, 1, work, 2.69, LOAD, None)
    known = job_estimate(speed, 2, 1, work, 2.69, LOAD, 0.8)
    assert known.tokens_per_second.mid == pytest.approx(0.8 * plain.tokens_per_second.mid)
    widths = [made.tokens_per_second.high / made.tokens_per_second.low for made in (plain, known)]
    assert widths[1] < widths[0]


def test_the_speeds_at_the_ends_of_the_output_lengths_widen_the_interval():
    work = workload(low=10, mid=300, high=1000)
    speed = on("H100", "llama-3.1-8b", "fp8", mid=300)
    ends = tuple(on("H100", "llama-3.1-8b", "fp8", mid=mid) for mid in (10, 1000))
    made = job_estimate(speed, 1, 1, work, 2.69, LOAD, None, ends)
    assert made.hours.low == pytest.approx((LOAD.low + work.rows / ends[0].rows_per_second / RATE_SPREAD.high) / 3600)
    assert made.hours.high == pytest.approx((LOAD.high + work.rows / ends[1].rows_per_second / RATE_SPREAD.low) / 3600)


def reading(tokens, seconds, estimated, model="m", accelerator="H100", quantization="fp8"):
    return Reading(model, accelerator, quantization, tokens, seconds, estimated)


def test_calibration_is_the_geometric_mean_of_measured_over_estimated():
    readings = [reading(2000, 1, 1000), reading(500, 1, 1000)]
    assert calibration_from(readings, "m", "H100", "fp8") == pytest.approx(1)
    assert calibration_from(readings[:1], "m", "H100", "fp8") == pytest.approx(2)


def test_calibration_takes_the_same_model_accelerator_and_quantization_alone():
    others = [
        reading(900, 1, 1, model="n"),
        reading(900, 1, 1, accelerator="A100-80GB"),
        reading(900, 1, 1, quantization="none"),
        reading(0, 1, 1000),
        reading(900, 0, 1000),
    ]
    assert calibration_from(others, "m", "H100", "fp8") is None
    assert calibration_from([*others, reading(900, 1, 1000)], "m", "H100", "fp8") == pytest.approx(0.9)
