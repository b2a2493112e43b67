"""How the weights of a model are quantized, from the `quantization_config` in its `config.json`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from batchinfer.catalog.quantization import QuantizationName
from batchinfer.errors import ModelError


def quantization_of_config(config: Mapping[str, Any]) -> QuantizationName:
    """The quantization of the checkpoint with this `config.json`; "none" if the file names none.

    Raises ModelError for a quantization that is not in the catalog, such as 8-bit weights with 16-bit activations.
    """
    settings = _settings(config)
    if not settings:
        return "none"
    method = str(settings.get("quant_method") or "").lower()
    if method == "compressed-tensors":
        return _compressed_tensors(settings)
    if method.startswith("modelopt"):
        return _modelopt(settings)
    bits = settings.get("bits", settings.get("w_bit", 4))
    if method in ("fp8", "fbgemm_fp8"):
        return "fp8"
    if method == "mxfp4":
        return "mxfp4"
    if method == "awq" and bits == 4:
        return "awq"
    if method == "gptq" and bits == 4:
        return "gptq"
    raise _unknown(f"{method} with {bits} bits" if method in ("awq", "gptq") else f"quant_method {method!r}")


def _settings(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The `quantization_config`. Models with vision may have it in their text part; old compressed-tensors
    checkpoints have `compression_config` instead."""
    text = config.get("text_config")
    for part in (config, text if isinstance(text, Mapping) else {}):
        for key in ("quantization_config", "compression_config"):
            if part.get(key):
                found: Mapping[str, Any] = part[key]
                return found
    return {}


def _compressed_tensors(settings: Mapping[str, Any]) -> QuantizationName:
    groups = (settings.get("config_groups") or {}).values()
    kinds = {_group(group, str(group.get("format") or settings.get("format"))) for group in groups}
    if len(kinds) != 1:
        what = " and ".join(sorted(map(str, kinds))) or "no config_groups"
        raise _unknown(f"compressed-tensors with {what}")
    return kinds.pop()


def _group(group: Mapping[str, Any], form: str) -> QuantizationName:
    weights, activations = group.get("weights") or {}, group.get("input_activations")
    kind = (weights.get("type", "int"), weights.get("num_bits"))
    if kind == ("float", 4):
        return "mxfp4" if form.startswith("mxfp4") or weights.get("group_size") == 32 else "nvfp4"
    if kind == ("float", 8) and not form.startswith("mxfp8"):
        return "fp8"
    if kind == ("int", 8) and activations and activations.get("num_bits") == 8:
        return "w8a8"
    if kind == ("int", 4) and not activations:
        return "w4a16"
    read_with = f"activations of {activations.get('num_bits')} bits" if activations else "16-bit activations"
    raise _unknown(f"compressed-tensors with {kind[0]} weights of {kind[1]} bits and {read_with} ({form})")


def _modelopt(settings: Mapping[str, Any]) -> QuantizationName:
    inner = settings.get("quantization")
    algorithm = str((inner if isinstance(inner, Mapping) else settings).get("quant_algo") or "").upper()
    if algorithm.startswith("FP8"):
        return "fp8"
    if algorithm == "NVFP4":
        return "nvfp4"
    raise _unknown(f"modelopt with quant_algo {algorithm!r}")


def _unknown(what: str) -> ModelError:
    return ModelError(
        f"the weights are quantized in a way that is not known here: {what}",
        "take a checkpoint in 16 bits, fp8, w8a8, awq, gptq, w4a16, nvfp4 or mxfp4",
    )
