"""The accelerators of the catalog."""

import pytest

from batchinfer.catalog import accelerator, accelerators
from batchinfer.errors import ResourceError

GPUS = {name: entry for name, entry in accelerators().items() if name != "cpu"}


@pytest.mark.parametrize("name", GPUS)
def test_a_gpu_has_every_figure_that_planning_needs(name):
    gpu = GPUS[name]
    assert gpu.memory_bytes is not None
    assert gpu.bandwidth_gb_s is not None
    assert gpu.internode_gb_s is not None
    assert gpu.watts is not None
    assert gpu.source.strip()
    assert 14e9 < gpu.memory_bytes < 320e9
    assert 290 <= gpu.bandwidth_gb_s <= 8000
    assert "fp16" in gpu.tflops
    assert (gpu.capability is None) == (gpu.vendor == "amd")


@pytest.mark.parametrize("name", GPUS)
def test_dtypes_follow_from_the_architecture(name):
    """fp8 since Ada and Hopper, fp4 since Blackwell, bf16 since Ampere."""
    gpu = GPUS[name]
    if gpu.capability is not None:
        assert ("bf16" in gpu.tflops) == (gpu.capability >= 80)
        assert ("fp8" in gpu.tflops) == (gpu.capability >= 89)
        assert ("fp4" in gpu.tflops) == (gpu.capability >= 100)


@pytest.mark.parametrize("name", GPUS)
def test_nvlink_joins_the_gpus_of_a_host_or_more_and_nothing_else_does(name):
    gpu = GPUS[name]
    if gpu.nvlink_gb_s is None:
        assert gpu.nvlink_domain == 1
    else:
        assert gpu.nvlink_domain >= gpu.node_gpus
        assert gpu.nvlink_gb_s / 2 > (gpu.internode_gb_s or 0)


@pytest.mark.parametrize(
    ("name", "mebibytes", "bandwidth", "fp8"),
    [
        ("L40S", 46_068, 864, 733),
        ("A100-80GB", 81_920, 2039, None),
        ("H100", 81_559, 3350, 1978),
        ("B300", 275_040, 7750, 4500),
        ("GB200", 189_471, 8000, 5000),
        ("GB300", 284_208, 8000, 5000),
    ],
)
def test_figures_are_the_published_ones(name, mebibytes, bandwidth, fp8):
    gpu = accelerator(name)
    assert gpu.memory_bytes == mebibytes * 2**20
    assert gpu.bandwidth_gb_s == bandwidth
    assert gpu.tflops.get("fp8") == fp8


def test_int8_collapses_on_the_last_blackwells():
    for name in ("B300", "GB300"):
        assert accelerator(name).tflops["int8"] < accelerator(name).tflops["bf16"] / 10


@pytest.mark.parametrize(
    ("name", "field"),
    [
        ("T4", "memory_bytes"),
        ("A10", "bf16"),
        ("A100-40GB", "bf16"),
        ("H100", "memory_bytes"),
        ("H200", "memory_bytes"),
        ("GB200", "internode_gb_s"),
        ("MI300X", "int8"),
        ("MI355X", "fp4"),
        ("RTX4090", "fp8"),
    ],
)
def test_what_was_not_read_in_a_source_is_marked(name, field):
    assert field in accelerator(name).unverified


def test_the_cpu_has_no_figures_of_its_own():
    cpu = accelerator("cpu")
    assert (cpu.memory_bytes, cpu.bandwidth_gb_s, cpu.tflops, cpu.nvlink_gb_s) == (None, None, {}, None)


def test_a_name_is_found_in_any_case():
    assert accelerator("h100") is accelerators()["H100"]


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("A100", "A100-40GB or A100-80GB"),
        ("H100-SXM", "H100"),
        ("MI300", "MI300X"),
        ("L40", "L40S"),
        ("RTX3090", "RTX"),
    ],
)
def test_an_unknown_name_is_refused_with_the_nearest_ones(name, near):
    with pytest.raises(ResourceError, match=f"unknown accelerator '{name}'") as raised:
        accelerator(name)
    assert raised.value.exit_code == 2
    assert near in raised.value.remedy


def test_a_name_like_none_is_refused_with_all_of_them():
    with pytest.raises(ResourceError) as raised:
        accelerator("zzz")
    assert all(name in raised.value.remedy for name in accelerators())
