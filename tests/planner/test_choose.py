"""Golden plans of real catalog entries, and the laws of any choice."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batchinfer.catalog import accelerators, find_model, models
from batchinfer.errors import ResourceError, UserError
from batchinfer.planner import assumed_cluster, make_plan
from batchinfer.planner.layout import machine_gpus, tensor_problem
from batchinfer.planner.quantize import QUANTIZATIONS
from tests.support.builders import make_spec
from tests.support.plans import WORK, plan


def chosen(made):
    (one,) = [candidate for candidate in made.candidates if candidate.verdict.startswith("chosen")]
    return one


@pytest.mark.parametrize("work", [None, WORK], ids=["no-rows", "rows"])
@pytest.mark.parametrize(
    ("name", "gpu", "gpus", "quantization", "layouts", "nodes"),
    [
        ("llama-2-70b", "A100-80GB", 4, "none", {(2, 1), (4, 1)}, 1),
        ("llama-3-70b", "A100-80GB", 4, "none", {(2, 1), (4, 1)}, 1),
        ("llama-2-70b", "H200", 1, "fp8", {(1, 1)}, 1),
        ("llama-3-70b", "H200", 1, "fp8", {(1, 1)}, 1),
        ("llama-4-maverick", "H100", 8, "fp8", {(8, 1)}, 1),
        ("llama-4-maverick", "H100", 16, "none", {(8, 2)}, 2),
        ("llama-4-maverick", "H200", 8, "none", {(8, 1)}, 1),
        ("llama-4-scout", "H100", 1, "w4a16", {(1, 1)}, 1),
        ("mistral-large", "A100-80GB", 1, "awq", {(1, 1)}, 1),
        ("mistral-large", "H100", 1, "gptq", {(1, 1)}, 1),
        ("mixtral-8x7b", "A100-80GB", 2, "none", {(2, 1)}, 1),
        ("mixtral-8x7b", "H100", 2, "none", {(2, 1)}, 1),
        ("qwen2.5-7b", "L4", 8, "none", {(1, 1), (2, 1), (4, 1)}, 1),
        ("yi-34b", "A100-80GB", 8, "none", {(1, 1), (2, 1), (4, 1), (8, 1)}, 1),
        ("deepseek-r1", "H200", 8, "auto", {(8, 1)}, 1),
        ("gpt-oss-120b", "H100", 8, "auto", {(1, 1), (2, 1)}, 1),
    ],
)
def test_golden_layouts(name, gpu, gpus, quantization, layouts, nodes, work):
    made = plan(name, gpu, gpus, quantization, work)
    assert (made.tensor_parallel, made.pipeline_parallel) in layouts
    assert made.nodes_per_replica == nodes
    assert made.num_gpus * made.max_replicas <= gpus
    assert (made.estimate is None) == (work is None)


@pytest.mark.parametrize("gpu", ["A10G", "L4", "RTX4090"])
@pytest.mark.parametrize("quantization", ["awq", "gptq", "auto"])
def test_mistral_large_never_fits_24_gb(gpu, quantization):
    with pytest.raises(ResourceError, match=f"mistral-large .* does not fit 1 x {gpu}") as caught:
        plan("mistral-large", gpu, 1, quantization)
    assert "(TP4" in caught.value.remedy
    assert "1 x H100" in caught.value.remedy


@pytest.mark.parametrize(
    ("name", "gpu", "gpus", "expected"),
    [
        # It fits as it is: nobody asked for fewer bits, even where they are cheaper.
        ("llama-3.1-8b", "H100", 1, "none"),
        ("gpt-oss-20b", "H100", 1, "mxfp4"),
        # 200 GiB in 16 bits, 109 GiB in fp8.
        ("llama-4-scout", "H200", 1, "fp8"),
        ("llama-4-scout", "H100", 1, "nvfp4"),
        ("llama-4-maverick", "H100", 8, "fp8"),
        ("mixtral-8x7b", "A100-80GB", 1, "fp8"),
        ("mistral-large", "A100-80GB", 1, "awq"),
    ],
)
def test_auto_loses_quality_only_where_it_must_and_says_so(name, gpu, gpus, expected):
    made = plan(name, gpu, gpus)
    assert made.quantization == expected
    native = find_model(name).native
    assert ("did not fit" in chosen(made).verdict) == (expected != native)


def test_what_auto_left_aside_is_shown_with_its_price():
    made = plan("llama-3.1-8b", "H100", 1, work=WORK)
    (other,) = [c for c in made.candidates if c.quantization == "fp8"]
    assert other.estimate.cost_usd.mid < chosen(made).estimate.cost_usd.mid
    assert f"fits at ${other.estimate.cost_usd.mid:.2f}, but auto keeps 16 bits" in other.verdict


def test_weights_come_from_the_published_checkpoint_or_are_made_on_loading():
    assert plan("llama-4-maverick", "H100", 8).checkpoint == "meta-llama/Llama-4-Maverick-17B-128E-Instruct-FP8"
    made = plan("mixtral-8x22b", "H200", 8, "fp8")
    entry = find_model("mixtral-8x22b")
    assert made.checkpoint == (entry.checkpoints["fp8"].repository if "fp8" in entry.checkpoints else entry.repository)
    assert made.online == ("fp8" not in entry.checkpoints)


def test_a_deadline_takes_the_cheapest_that_meets_it():
    free = plan("llama-3.1-8b", "H100", 8, "none", WORK)
    hours = free.estimate.hours.mid
    slow = plan("llama-3.1-8b", "H100", 8, "none", WORK, limits={"max_runtime_hours": hours * 1.01})
    in_time = [c for c in slow.candidates if c.estimate and c.estimate.hours.mid <= hours * 1.01]
    assert chosen(slow).estimate.cost_usd.mid == min(c.estimate.cost_usd.mid for c in in_time)
    late = [c for c in slow.candidates if c.estimate and c.estimate.hours.mid > hours * 1.01]
    assert late
    assert all(c.verdict.startswith("slower than the deadline") for c in late)


def test_a_deadline_that_nothing_meets_takes_the_fastest():
    made = plan("llama-3.1-8b", "H100", 8, "none", WORK, limits={"max_runtime_hours": 0.001})
    assert chosen(made).estimate.hours.mid == min(c.estimate.hours.mid for c in made.candidates)
    assert "none meets the 0.001 h deadline" in chosen(made).verdict


def test_a_large_job_uses_the_whole_cluster_and_a_small_one_does_not():
    large = plan("llama-3.1-8b", "H100", 8, "none", WORK.model_copy(update={"rows": 10_000_000}))
    small = plan("llama-3.1-8b", "H100", 8, "none", WORK.model_copy(update={"rows": 100}))
    assert large.max_replicas * large.num_gpus == 8
    assert small.max_replicas * small.num_gpus == 1


def test_a_measured_speed_moves_the_estimate():
    plain = plan("llama-3.1-8b", "H100", 1, "none", WORK).estimate
    half = plan("llama-3.1-8b", "H100", 1, "none", WORK, calibration=0.5).estimate
    assert half.tokens_per_second.mid == pytest.approx(plain.tokens_per_second.mid / 2)


def test_losers_say_why():
    made = plan("llama-3-70b", "A100-80GB", 4, "none", WORK)
    verdicts = {(c.tensor_parallel, c.pipeline_parallel, c.replicas): c.verdict for c in made.candidates}
    assert verdicts[1, 1, 1].startswith("does not fit: 6")
    assert verdicts[1, 1, 1].endswith("GiB short on each GPU")
    assert verdicts[1, 2, 1].startswith("dearer: $")
    assert verdicts[made.tensor_parallel, made.pipeline_parallel, made.max_replicas] == "chosen: the cheapest"


def test_a_context_too_long_for_the_cache_is_cut_to_what_it_holds():
    scout = plan("llama-4-scout", "H100", 1, "w4a16", WORK)
    assert 1500 + 256 < scout.engine.max_model_len < 10_485_760
    # One that fits stays the model's own.
    assert plan("llama-3.1-8b", "H100", 1, "none").engine.max_model_len is None


def test_the_engines_settings_of_the_spec_decide_about_the_fit():
    less = plan("llama-3.1-8b", "H100", 1, "none", engine={"gpu_memory_utilization": 0.5})
    more = plan("llama-3.1-8b", "H100", 1, "none", engine={"gpu_memory_utilization": 0.95, "enforce_eager": True})
    assert less.engine.gpu_memory_utilization == 0.5
    assert less.kv_cache_tokens < more.kv_cache_tokens


def test_a_plan_for_gpus_that_are_not_here():
    spec = make_spec(
        model={"source": "llama-4-maverick", "quantization": "none"},
        resources={"accelerator": "H100", "price_per_gpu_hour": 2.69},
    )
    entry = find_model("llama-4-maverick")
    made = make_plan(spec, assumed_cluster(spec, 2**34), "llama-4-maverick", shape=entry.shape, entry=entry)
    assert made.assumed
    assert (made.tensor_parallel, made.pipeline_parallel, made.nodes_per_replica) == (8, 2, 2)


def test_without_a_gpu_named_a_plan_is_for_this_machine():
    spec = make_spec()
    assert make_plan(spec, assumed_cluster(spec, 2**34), "scripted").accelerator == "cpu"


def test_an_autoscaler_may_bring_what_is_not_there_yet():
    waiting = plan("llama-4-maverick", "H100", 8, "none", may_grow=True)
    assert (waiting.tensor_parallel, waiting.pipeline_parallel, waiting.nodes_per_replica) == (8, 2, 2)
    assert plan("llama-3.1-8b", "H100", 8, "none", may_grow=True, replicas=20).max_replicas == 20
    with pytest.raises(ResourceError, match=r"20 replica\(s\) of 1 GPU\(s\) need 20 GPUs; the cluster has 8"):
        plan("llama-3.1-8b", "H100", 8, "none", replicas=20)


def test_a_range_of_replicas_is_kept():
    made = plan("llama-3.1-8b", "H100", 2, "none", replicas={"min": 1, "max": 8})
    assert (made.min_replicas, made.max_replicas) == (1, 8)


def test_the_document_has_the_chosen_layout_and_every_candidate():
    made = plan("llama-3.1-8b", "H100", 2, "none", WORK)
    document = made.document()
    assert {"model", "quantization", "accelerator", "chosen", "candidates", "estimate"} <= document.keys()
    assert document["chosen"]["replicas"] == made.max_replicas
    assert document["chosen"]["weight_bytes_per_gpu"] == made.weight_bytes_per_gpu
    assert document["estimate"]["hours"].keys() == {"low", "mid", "high"}
    assert len(document["candidates"]) == len(made.candidates)


def attempt(*of):
    """The plan, or what a person is told; any other exception is a failure."""
    try:
        return plan(*of)
    except UserError as error:
        return error


@settings(deadline=None, max_examples=60)
@given(
    name=st.sampled_from(sorted(models())),
    gpu=st.sampled_from(sorted(set(accelerators()) - {"cpu"})),
    gpus=st.integers(1, 24),
    more=st.integers(1, 8),
    quantization=st.sampled_from(["auto", "none", "fp8"]),
    work=st.sampled_from([None, WORK]),
)
def test_every_chosen_plan_fits_and_more_gpus_never_make_it_unfit(name, gpu, gpus, more, quantization, work):
    made = attempt(name, gpu, gpus, quantization, work)
    if isinstance(made, UserError):
        assert made.remedy
        return
    one = chosen(made)
    of = one.fit
    usable = accelerators()[gpu].memory_bytes * 0.9
    assert of.fits
    assert of.weight_bytes_per_gpu + of.overhead_bytes_per_gpu + of.kv_cache_bytes_per_gpu <= usable
    shape, tensor = models()[name].shape, made.tensor_parallel
    assert tensor == 1 or tensor_problem(shape, QUANTIZATIONS[made.quantization], tensor) is None
    assert made.num_gpus == tensor * made.pipeline_parallel
    assert made.max_replicas * made.num_gpus <= gpus
    if work is not None:
        money = [c.estimate.cost_usd.mid for c in made.candidates if c.estimate and c.quantization == made.quantization]
        assert one.estimate.cost_usd.mid <= 1.05 * min(money)
    if quantization != "auto":
        assert chosen(plan(name, gpu, gpus + more, quantization, work)).fit.fits


def test_a_machine_that_is_paid_for_whole_charges_its_idle_gpus_to_those_in_use():
    layout = {"tensor_parallel": 2, "pipeline_parallel": 3, "replicas": 1}
    by_gpu, by_machine = (
        plan("llama-4-maverick", "H100", 8, "fp8", WORK, bill=bill, **layout) for bill in ("gpu", "machine")
    )
    assert (by_machine.num_gpus, by_machine.machine_gpus, by_machine.idle_gpus) == (6, 8, 2)
    assert by_machine.price_per_gpu_hour * 6 == pytest.approx(by_gpu.price_per_gpu_hour * 8)
    assert by_machine.estimate.cost_usd.mid == pytest.approx(by_gpu.estimate.cost_usd.mid * 8 / 6)
    assert by_machine.price_source == "resources.price_per_gpu_hour, for 8 GPUs of which 6 are used"
    assert (by_gpu.idle_gpus, by_gpu.price_source) == (2, "resources.price_per_gpu_hour")


def test_a_plan_for_whole_machines_fills_them():
    by_gpu, by_machine = (plan("llama-3.1-8b", "H100", 8, "none", WORK, bill=bill) for bill in ("gpu", "machine"))
    assert by_gpu.idle_gpus > 0
    assert by_machine.idle_gpus == 0
    assert by_machine.estimate.cost_usd.mid < by_gpu.estimate.cost_usd.mid * 8 / (8 - by_gpu.idle_gpus)


@given(gpus=st.integers(1, 16), replicas=st.integers(1, 20), per_machine=st.sampled_from([1, 4, 8]))
def test_the_machines_of_a_layout_hold_its_gpus_and_no_machine_is_empty(gpus, replicas, per_machine):
    nodes = -(-gpus // per_machine)
    paid = machine_gpus(gpus, nodes, replicas, per_machine)
    assert paid >= gpus * replicas
    if nodes == 1:
        # One machine fewer would not hold the last replica.
        assert paid - per_machine < gpus * replicas + (per_machine % gpus) * (paid // per_machine)
