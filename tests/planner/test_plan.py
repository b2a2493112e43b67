import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batchinfer.catalog import GIB, accelerators, find_model
from batchinfer.errors import ResourceError
from batchinfer.planner import Cluster, make_plan, shards_in_flight
from batchinfer.planner.plan import engine_settings
from tests.support.builders import make_spec


def cluster(gpus=0, kind=None, memory=64 * GIB, node=None):
    return Cluster(
        gpus=gpus, largest_node_gpus=gpus if node is None else node, accelerator_type=kind, memory_bytes=memory
    )


def plan(where, engine=None, **resources):
    return make_plan(make_spec(resources=resources, engine=engine or {}), where, "a-model")


def test_without_gpus_auto_means_one_cpu_replica_charged_as_one_device():
    made = plan(cluster())
    assert (made.accelerator, made.num_gpus, made.devices) == ("cpu", 0, 1)
    assert (made.min_replicas, made.max_replicas) == (1, 1)
    assert made.price_per_gpu_hour > 0


@pytest.mark.parametrize(
    ("ray_name", "catalog_name"), [("H100", "H100"), ("A100-80G", "A100-80GB"), ("A100-40G", "A100-40GB"), ("L4", "L4")]
)
def test_auto_takes_the_accelerator_that_the_cluster_has(ray_name, catalog_name):
    assert plan(cluster(1, ray_name)).accelerator == catalog_name


def test_auto_replicas_fill_the_cluster():
    made = plan(cluster(9, "H100"), tensor_parallel=2, pipeline_parallel=2)
    assert (made.num_gpus, made.devices, made.min_replicas, made.max_replicas) == (4, 4, 2, 2)


def test_a_range_of_replicas_may_go_beyond_what_is_there_now():
    made = plan(cluster(2, "H100"), replicas={"min": 1, "max": 8})
    assert (made.min_replicas, made.max_replicas) == (1, 8)


@pytest.mark.parametrize(
    ("resources", "need"),
    [
        ({"tensor_parallel": 8}, "1 replica(s) of 8 GPU(s) need 8 GPUs; the cluster has 4"),
        ({"replicas": 5}, "5 replica(s) of 1 GPU(s) need 5 GPUs; the cluster has 4"),
        ({"replicas": {"min": 3, "max": 9}, "tensor_parallel": 2}, "3 replica(s) of 2 GPU(s) need 6 GPUs"),
    ],
)
def test_what_does_not_fit_is_refused_with_both_numbers(resources, need):
    with pytest.raises(ResourceError) as caught:
        plan(cluster(4, "H100"), **resources)
    assert need in str(caught.value)
    assert "resources.replicas" in caught.value.remedy


def test_a_replica_larger_than_any_node_is_refused():
    where = cluster(16, "H100", node=8)
    assert plan(where, tensor_parallel=8).max_replicas == 2
    with pytest.raises(ResourceError, match="16 GPUs does not fit on any node: the largest has 8"):
        plan(where, tensor_parallel=16)


def test_a_gpu_job_without_a_gpu_is_refused():
    with pytest.raises(ResourceError, match=r"resources\.accelerator is H100, but there is no GPU here"):
        plan(cluster(), accelerator="H100")


def test_gpus_of_another_kind_than_asked_for_are_refused():
    with pytest.raises(ResourceError, match="H100, but the GPUs here are L4"):
        plan(cluster(8, "L4"), accelerator="H100")
    # Ray calls every A100 just that.
    assert plan(cluster(8, "A100"), accelerator="A100-40GB").accelerator == "A100-40GB"


def test_gpus_of_an_unknown_kind_have_to_be_named():
    with pytest.raises(ResourceError, match="GPUs of an unknown kind"):
        plan(cluster(8, None))
    assert plan(cluster(8, None), accelerator="H100").accelerator == "H100"


def test_cpu_may_be_asked_for_on_a_gpu_cluster():
    made = plan(cluster(4, "H100"), accelerator="cpu", replicas=3)
    assert (made.accelerator, made.num_gpus, made.max_replicas) == ("cpu", 0, 3)


def test_the_specs_price_goes_before_the_catalogs():
    made = plan(cluster(1, "H100"), price_per_gpu_hour=1.25)
    assert (made.price_per_gpu_hour, made.price_source) == (1.25, "resources.price_per_gpu_hour")


def test_a_price_of_zero_is_a_price():
    assert plan(cluster(1, "GB200"), price_per_gpu_hour=0).price_per_gpu_hour == 0


def test_the_catalogs_price_names_its_source_and_date():
    made = plan(cluster(1, "H100"))
    assert made.price_per_gpu_hour == 2.69
    assert "RunPod" in made.price_source
    assert "2026-09-25" in made.price_source


@pytest.mark.parametrize("kind", ["GB200", "TPU-V6E"])
def test_a_device_without_a_price_is_refused_with_the_key_to_set(kind):
    with pytest.raises(ResourceError) as caught:
        plan(cluster(1, kind))
    assert "resources.price_per_gpu_hour" in caught.value.remedy


def test_the_cpu_cache_leaves_room_on_a_small_machine_and_is_shared_by_the_replicas():
    assert plan(cluster(memory=64 * GIB)).kv_cache_memory_bytes == 4 * GIB
    assert plan(cluster(memory=8 * GIB)).kv_cache_memory_bytes == 2 * GIB
    assert plan(cluster(memory=8 * GIB), replicas=2).kv_cache_memory_bytes == GIB


@pytest.mark.parametrize("engine", [{"gpu_memory_utilization": 0.5}, {"kv_cache_memory_bytes": 1000}])
def test_a_cache_that_the_user_sized_is_left_alone(engine):
    assert plan(cluster(), engine=engine).kv_cache_memory_bytes is None


@pytest.mark.parametrize(
    ("gpu", "rows"),
    [("H100", 1024), ("H200", 1024), ("B200", 1024), ("MI300X", 1024), ("A100-80GB", 256), ("L40S", 256)],
)
def test_batches_are_as_large_as_vllm_makes_them_offline_and_as_the_user_says(gpu, rows):
    facts = accelerators()[gpu]
    assert engine_settings(make_spec().engine, facts).max_num_seqs == rows
    assert engine_settings(make_spec(engine={"max_num_seqs": 7}).engine, facts).max_num_seqs == 7


def test_on_a_gpu_the_cache_is_left_to_vllm():
    assert plan(cluster(1, "H100")).kv_cache_memory_bytes is None


@settings(deadline=None, max_examples=50)
@given(slots=st.integers(1, 4096), rows=st.integers(1, 100_000))
def test_enough_shards_are_in_flight_to_fill_the_engine_and_never_too_many(slots, rows):
    held = shards_in_flight(slots, rows, sharing=False)
    assert shards_in_flight(slots, rows, sharing=True) == 16
    assert 3 <= held <= 16
    assert held == 16 or (held - 1) * rows >= 2 * slots


def test_replicas_that_would_leave_no_cpu_to_read_with_are_refused():
    small = cluster().model_copy(update={"cpus": 2.0})
    with pytest.raises(ResourceError, match=r"need 2\.2 CPUs .* the cluster has 2") as caught:
        plan(small, replicas=4)
    assert caught.value.remedy == "set resources.replicas to 3 or less"
    assert plan(small, replicas=3).max_replicas == 3
    assert plan(small.model_copy(update={"may_grow": True}), replicas=4).max_replicas == 4


def test_four_bits_on_a_cpu_without_their_kernel_are_refused_at_plan_time():
    spec, shape = make_spec(model={"source": "/models/mine"}), find_model("llama-3.2-1b").shape
    old = cluster().model_copy(update={"avx512": False})
    with pytest.raises(ResourceError, match="needs AVX-512"):
        make_plan(spec, old, "m", shape=shape, checkpoint_quantization="w4a16")
    assert make_plan(spec, cluster(), "m", shape=shape, checkpoint_quantization="w4a16").quantization == "w4a16"
