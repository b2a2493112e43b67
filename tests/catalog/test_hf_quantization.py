"""`quantization_config` as the libraries write it: compressed-tensors' own from that library."""

import pytest

from batchinfer.catalog import quantization_of_config
from batchinfer.errors import ModelError


def _compressed(form, *presets):
    from compressed_tensors.quantization import QuantizationConfig, preset_name_to_scheme

    groups = {f"group_{i}": preset_name_to_scheme(preset, targets=["Linear"]) for i, preset in enumerate(presets)}
    return QuantizationConfig(config_groups=groups, format=form).model_dump(mode="json")


@pytest.mark.parametrize(
    ("preset", "form", "name"),
    [
        ("FP8", "float-quantized", "fp8"),
        ("FP8_DYNAMIC", "float-quantized", "fp8"),
        ("FP8_BLOCK", "float-quantized", "fp8"),
        ("W8A8", "int-quantized", "w8a8"),
        ("W4A16", "pack-quantized", "w4a16"),
        ("W4A16_ASYM", "pack-quantized", "w4a16"),
        ("NVFP4", "nvfp4-pack-quantized", "nvfp4"),
        ("NVFP4A16", "nvfp4-pack-quantized", "nvfp4"),
        ("MXFP4", "mxfp4-pack-quantized", "mxfp4"),
    ],
)
def test_compressed_tensors_schemes_have_their_names(preset, form, name, torch):
    settings = _compressed(form, preset)
    assert settings["quant_method"] == "compressed-tensors"
    assert quantization_of_config({"quantization_config": settings}) == name
    assert quantization_of_config({"text_config": {"quantization_config": settings}}) == name
    assert quantization_of_config({"compression_config": settings}) == name


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        (None, "none"),
        ({}, "none"),
        ({"quant_method": "fp8", "weight_block_size": [128, 128], "fmt": "e4m3"}, "fp8"),
        ({"quant_method": "fbgemm_fp8", "activation_scale_ub": 1200.0}, "fp8"),
        ({"quant_method": "awq", "bits": 4, "group_size": 128, "version": "gemm"}, "awq"),
        ({"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": True}, "gptq"),
        ({"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn"]}, "mxfp4"),
        ({"quant_method": "modelopt", "quant_algo": "FP8"}, "fp8"),
        ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, "nvfp4"),
        ({"quant_method": "modelopt", "quantization": {"quant_algo": "nvfp4"}}, "nvfp4"),
    ],
)
def test_other_methods_have_their_names(settings, name):
    assert quantization_of_config({"quantization_config": settings}) == name


@pytest.mark.parametrize(
    ("scheme", "said"),
    [
        (("pack-quantized", "W8A16"), "int weights of 8 bits and 16-bit activations"),
        (("pack-quantized", "W4A8"), "int weights of 4 bits and activations of 8 bits"),
        (("mixed-precision", "W8A8", "W4A16"), "w4a16 and w8a8"),
    ],
)
def test_a_scheme_that_is_not_known_is_refused_with_its_name(scheme, said, torch):
    with pytest.raises(ModelError, match=said):
        quantization_of_config({"quantization_config": _compressed(*scheme)})


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"quant_method": "compressed-tensors"}, "no config_groups"),
        ({"quant_method": "gptq", "bits": 8}, "gptq with 8 bits"),
        ({"quant_method": "modelopt", "quant_algo": "MIXED_PRECISION"}, "MIXED_PRECISION"),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "bitsandbytes"),
    ],
)
def test_what_is_not_known_is_refused_with_its_name(settings, said):
    with pytest.raises(ModelError, match=said) as raised:
        quantization_of_config({"quantization_config": settings})
    assert raised.value.exit_code == 2
    assert "w4a16" in raised.value.remedy
