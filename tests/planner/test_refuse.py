"""What a job that cannot be laid out says, and that what it proposes does fit."""

import re

import pytest

from batchinfer.catalog import find_model
from batchinfer.errors import ModelError, ResourceError
from batchinfer.planner import Cluster, make_plan
from tests.support.builders import make_spec
from tests.support.plans import WORK, plan


def test_fewer_bits_more_gpus_or_another_gpu_are_computed_not_guessed():
    with pytest.raises(ResourceError) as caught:
        plan("mixtral-8x7b", "A100-80GB", 1, "none")
    assert re.search(r"in 16 bits does not fit 1 x A100-80GB: at TP1 each GPU is \d+\.\d GiB short", str(caught.value))
    assert "weights 87.0" in str(caught.value)
    remedy = caught.value.remedy
    assert "model.quantization: fp8" in remedy
    assert "2 x A100-80GB (TP2)" in remedy
    assert "1 x H200" in remedy
    assert plan("mixtral-8x7b", "A100-80GB", 1, "fp8").max_replicas == 1
    assert plan("mixtral-8x7b", "A100-80GB", 2, "none").tensor_parallel == 2
    assert plan("mixtral-8x7b", "H200", 1, "none").tensor_parallel == 1


def test_more_nodes_are_proposed_where_one_is_not_enough():
    with pytest.raises(ResourceError) as caught:
        plan("llama-4-maverick", "H100", 8, "none")
    assert "16 x H100 on 2 nodes (TP8 PP2)" in caught.value.remedy


def test_a_shorter_context_is_proposed_and_is_the_longest_that_fits():
    with pytest.raises(ResourceError) as caught:
        plan("yi-34b", "A100-80GB", 1, "none", engine={"max_model_len": 4096, "gpu_memory_utilization": 0.855})
    longest = int(re.search(r"engine\.max_model_len: (\d+)", caught.value.remedy).group(1))
    assert 256 <= longest < 4096
    settled = {"gpu_memory_utilization": 0.855}
    assert plan("yi-34b", "A100-80GB", 1, "none", engine={**settled, "max_model_len": longest}).num_gpus == 1
    with pytest.raises(ResourceError):
        plan("yi-34b", "A100-80GB", 1, "none", engine={**settled, "max_model_len": longest + 1})


def test_a_context_longer_than_the_models_is_refused():
    with pytest.raises(
        ModelError, match=r"engine\.max_model_len 8,192 is longer than the context of llama-2-70b: 4,096"
    ):
        plan("llama-2-70b", "H100", 8, engine={"max_model_len": 8192})


def test_a_tensor_parallel_size_that_does_not_divide_is_refused_with_those_that_do():
    with pytest.raises(ResourceError, match="28 attention heads do not divide by 8") as caught:
        plan("qwen2.5-7b", "H100", 8, "none", tensor_parallel=8)
    assert "1, 2, 4" in caught.value.remedy


@pytest.mark.parametrize(
    ("resources", "message"),
    [
        ({"tensor_parallel": 16}, "a replica of 16 GPUs does not fit on any node: the largest has 8"),
        ({"tensor_parallel": 32}, "1 replica(s) of 32 GPU(s) need 32 GPUs; the cluster has 16"),
        ({"replicas": 3, "tensor_parallel": 8}, "3 replica(s) of 8 GPU(s) need 24 GPUs; the cluster has 16"),
        ({"pipeline_parallel": 17}, "1 replica(s) of 17 GPU(s) need 17 GPUs; the cluster has 16"),
        ({"replicas": 17}, "17 replica(s) of 1 GPU(s) need 17 GPUs; the cluster has 16"),
    ],
)
def test_more_than_the_cluster_can_ever_have_is_refused_with_both_numbers(resources, message):
    with pytest.raises(ResourceError) as caught:
        plan("llama-3.1-8b", "H100", 16, "none", WORK, **resources)
    assert message in str(caught.value)


def test_a_pipeline_longer_than_the_model_is_refused():
    with pytest.raises(ResourceError, match=r"pipeline_parallel 40 is more than the 32 layers"):
        plan("llama-3.1-8b", "H100", 64, "none", pipeline_parallel=40)


def test_a_quantized_checkpoint_under_another_name_is_refused():
    with pytest.raises(ModelError, match="is a checkpoint in awq, not in gptq"):
        plan("TechxGenus/Mistral-Large-Instruct-2411-AWQ", "H100", 8, "gptq")


def test_a_quantization_without_a_checkpoint_names_those_that_there_are():
    with pytest.raises(ModelError, match="no w4a16 checkpoint of mistral-large is known") as caught:
        plan("mistral-large", "H100", 8, "w4a16")
    assert "awq (TechxGenus/Mistral-Large-Instruct-2411-AWQ)" in caught.value.remedy


def on_cpu(name, memory, quantization="auto", **engine):
    entry = find_model(name)
    cluster = Cluster(gpus=0, largest_node_gpus=0, accelerator_type=None, memory_bytes=memory)
    spec = make_spec(model={"source": name, "quantization": quantization}, engine=engine)
    return make_plan(
        spec,
        cluster,
        name,
        shape=entry.shape,
        entry=entry,
        checkpoint_quantization=entry.stored_as(name),
        workload=WORK,
    )


def test_on_a_cpu_the_plan_knows_weights_and_cache_and_claims_no_time():
    made = on_cpu("qwen2.5-0.5b", 16 * 2**30)
    assert (made.accelerator, made.num_gpus, made.quantization) == ("cpu", 0, "none")
    assert made.weight_bytes_per_gpu == pytest.approx(494_032_768 * 2, rel=0.01)
    # 4 GiB of cache at 12,288 bytes a token.
    assert made.kv_cache_tokens == pytest.approx(4 * 2**30 / 12_288, rel=0.001)
    assert made.estimate is None


def test_a_cpu_cache_holds_the_longest_sequence_even_where_the_default_would_not():
    made = on_cpu("llama-3.1-8b", 64 * 2**30, max_model_len=65_536)
    assert made.kv_cache_memory_bytes > 65_536 * 131_072
    assert on_cpu("llama-3.1-8b", 64 * 2**30).engine.max_model_len < 131_072


def test_a_model_larger_than_the_machine_is_refused_with_what_would_fit():
    with pytest.raises(ResourceError, match=r"llama-3\.1-8b does not fit this machine: weights of 15\.0 GiB") as caught:
        on_cpu("llama-3.1-8b", 8 * 2**30)
    needed = int(re.search(r"a machine with (\d+) GiB", caught.value.remedy).group(1))
    assert on_cpu("llama-3.1-8b", needed * 2**30).num_gpus == 0


@pytest.mark.parametrize("quantization", ["fp8", "nvfp4"])
def test_what_a_cpu_cannot_run_is_refused_with_the_reason(quantization):
    with pytest.raises(ResourceError, match=f"no {quantization} kernels for every CPU"):
        on_cpu("llama-4-scout", 2**40, quantization)
