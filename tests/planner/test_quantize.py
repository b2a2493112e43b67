import pytest

from batchinfer.catalog import QUANTIZATIONS, accelerator
from batchinfer.errors import ModelError, ResourceError, SpecError
from batchinfer.planner.quantize import Source, by_quality, explicit, is_fast, runs_not, usable

PLAIN = Source("m", "org/m", "none", {"none": "org/m", "awq": "org/m-awq", "w8a8": "org/m-w8a8"}, frozenset())
AWQ = Source("m-awq", "org/m-awq", "awq", {})


def names(weights):
    return [(one.quantization.name, one.checkpoint, one.online) for one in weights]


@pytest.mark.parametrize(
    ("gpu", "quantization", "fast"),
    [
        ("H100", "fp8", True),
        ("L4", "fp8", True),
        ("MI300X", "fp8", True),
        ("A100-80GB", "fp8", False),
        ("A100-80GB", "int8", True),
        ("H100", "int8", True),
        ("B300", "int8", False),
        ("GB300", "w8a8", False),
        ("H100", "nvfp4", False),
        ("B200", "nvfp4", True),
        ("T4", "awq", True),
    ],
)
def test_what_a_gpu_computes_fast(gpu, quantization, fast):
    assert is_fast(QUANTIZATIONS[quantization], accelerator(gpu)) is fast


@pytest.mark.parametrize(
    ("device", "quantization", "reason"),
    [
        ("B200", "w8a8", "int8 kernels end with Hopper"),
        ("B300", "int8", "int8 kernels end with Hopper"),
        ("T4", "mxfp4", "needs compute capability 8, the GPU has 7.5"),
        ("MI300X", "nvfp4", "no nvfp4 kernels for AMD"),
        ("cpu", "fp8", "no fp8 kernels for every CPU"),
        ("cpu", "nvfp4", "no nvfp4 kernels for every CPU"),
        ("cpu", "mxfp4", "no mxfp4 kernels for every CPU"),
    ],
)
def test_what_a_device_cannot_run_says_why(device, quantization, reason):
    assert reason in runs_not(QUANTIZATIONS[quantization], accelerator(device))


@pytest.mark.parametrize("quantization", ["none", "w8a8", "int8", "w4a16", "awq", "gptq"])
def test_what_a_cpu_can_run(quantization):
    assert runs_not(QUANTIZATIONS[quantization], accelerator("cpu")) is None


def test_auto_takes_the_named_checkpoint_first_then_falls_by_quality():
    assert names(usable(PLAIN, "auto", accelerator("H100"))) == [
        ("none", "org/m", False),
        ("fp8", "org/m", True),
        ("w8a8", "org/m-w8a8", False),
        ("awq", "org/m-awq", False),
    ]


def test_of_as_many_bits_auto_takes_what_the_gpu_computes_fast():
    assert [name for name, _, _ in names(usable(PLAIN, "auto", accelerator("A100-80GB")))] == [
        "none",
        "w8a8",
        "fp8",
        "awq",
    ]
    four = Source("m", "org/m", "none", {"nvfp4": "org/m-nvfp4", "awq": "org/m-awq"})
    assert names(usable(four, "auto", accelerator("H100")))[-2:] == [
        ("awq", "org/m-awq", False),
        ("nvfp4", "org/m-nvfp4", False),
    ]
    assert names(usable(four, "auto", accelerator("B200")))[-2:] == [
        ("nvfp4", "org/m-nvfp4", False),
        ("awq", "org/m-awq", False),
    ]


def test_auto_leaves_out_int8_where_the_gpu_has_none():
    assert "w8a8" not in [name for name, _, _ in names(usable(PLAIN, "auto", accelerator("B300")))]


def test_auto_never_goes_above_the_named_checkpoint():
    assert names(usable(AWQ, "auto", accelerator("H100"))) == [("awq", "org/m-awq", False)]


def test_repositories_that_may_not_exist_come_last():
    source = Source("m", "org/m", "none", {"w8a8": "org/m-w8a8", "awq": "org/m-awq"}, frozenset({"w8a8"}))
    assert [name for name, _, _ in names(by_quality(source))] == ["none", "fp8", "awq", "w8a8"]


def test_a_published_checkpoint_goes_before_one_made_on_loading():
    source = Source("m", "org/m", "none", {"fp8": "org/m-fp8"})
    assert names([explicit(source, "fp8")]) == [("fp8", "org/m-fp8", False)]
    assert names([explicit(PLAIN, "fp8")]) == [("fp8", "org/m", True)]


def test_int8_and_w8a8_are_two_names_of_the_same_weights():
    assert explicit(PLAIN, "int8").checkpoint == "org/m-w8a8"
    assert explicit(Source("m", "org/m", "w8a8", {}), "int8").named


def test_a_quantization_without_a_checkpoint_is_refused_with_those_that_there_are():
    with pytest.raises(ModelError, match="no gptq checkpoint of m is known") as caught:
        explicit(PLAIN, "gptq")
    assert "awq (org/m-awq)" in caught.value.remedy


@pytest.mark.parametrize("asked", ["gptq", "fp8", "none"])
def test_a_quantized_checkpoint_under_another_name_is_refused(asked):
    with pytest.raises(ModelError, match=f"m-awq is a checkpoint in awq, not in {asked}") as caught:
        explicit(AWQ, asked)
    assert "set model.quantization to awq or auto" in caught.value.remedy


def test_an_unknown_quantization_is_refused_with_the_nearest():
    with pytest.raises(SpecError, match="there is no 'ntfp4'") as caught:
        explicit(PLAIN, "ntfp4")
    assert "nvfp4" in caught.value.remedy


def test_int8_is_not_made_on_loading():
    with pytest.raises(ModelError, match="no int8 checkpoint of m is known, and only fp8 is made"):
        explicit(Source("m", "org/m", "none", {}), "int8")


@pytest.mark.parametrize(("device", "reason"), [("cpu", "need AMX"), ("B200", "Blackwell")])
def test_what_is_asked_for_and_cannot_run_is_refused_with_the_reason(device, reason):
    asked = "fp8" if device == "cpu" else "w8a8"
    with pytest.raises(ResourceError, match=reason) as caught:
        usable(PLAIN, asked, accelerator(device))
    assert "none" in caught.value.remedy


def test_a_named_checkpoint_that_cannot_run_at_all_is_refused():
    with pytest.raises(ResourceError, match="m is a checkpoint in nvfp4, which cannot run on a CPU"):
        usable(Source("m", "org/m", "nvfp4", {}), "auto", accelerator("cpu"))
