"""Quantized copies of a checkpoint, by rounding to nearest, in the formats that are published.

Layouts: compressed-tensors (int-quantized, pack-quantized), AutoAWQ (GEMM) and GPTQ, as vLLM reads them.
Only the linear layers are quantized; the embedding, the tied head and the norms are not.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

GROUP = 128
_AWQ_ORDER = [0, 2, 4, 6, 1, 3, 5, 7]


def quantize(base: Path, folder: Path, form: str) -> None:
    """Write the checkpoint in `base`, one safetensors file, to `folder` as `form`: a key of `FORMS`."""
    from safetensors.torch import load_file, save_file

    of_layer, config = FORMS[form]
    shutil.copytree(base, folder)
    tensors: dict[str, Any] = {}
    for name, values in load_file(base / "model.safetensors").items():
        if name.endswith("_proj.weight"):
            made = of_layer(values.float())
            tensors |= {f"{name.removesuffix('weight')}{part}": tensor for part, tensor in made.items()}
        else:
            tensors[name] = values
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    described = json.loads((base / "config.json").read_text()) | {"quantization_config": config}
    (folder / "config.json").write_text(json.dumps(described))


def _w8a8(weight: Any) -> dict[str, Any]:
    """[out, in] in int8 with a scale for each output channel."""
    import torch

    scale = weight.abs().amax(1, keepdim=True) / 127
    return {"weight": (weight / scale).round().to(torch.int8), "weight_scale": scale}


def _symmetric(weight: Any) -> tuple[Any, Any]:
    """[out, in] in -8..7 and scales [out, groups]."""
    grouped = weight.reshape(weight.shape[0], -1, GROUP)
    scale = grouped.abs().amax(2, keepdim=True) / 7.5
    return (grouped / scale).round().clamp(-8, 7).reshape(weight.shape).int(), scale.squeeze(2)


def _packed(values: Any, order: list[int] | None = None) -> Any:
    """Eight 4-bit values of a row in each int32, the first in the lowest bits."""
    import torch

    eights = values.long().reshape(values.shape[0], -1, 8)[:, :, order or list(range(8))]
    words = sum(eights[:, :, i] << (4 * i) for i in range(8))
    return torch.where(words >= 2**31, words - 2**32, words).int().contiguous()


def _w4a16(weight: Any) -> dict[str, Any]:
    import torch

    values, scale = _symmetric(weight)
    return {"weight_packed": _packed(values + 8), "weight_scale": scale, "weight_shape": torch.tensor(weight.shape)}


def _awq(weight: Any) -> dict[str, Any]:
    """qweight [in, out / 8] and qzeros [groups, out / 8] in AutoAWQ's order, scales [groups, out]."""
    grouped = weight.reshape(weight.shape[0], -1, GROUP)
    low, high = grouped.amin(2, keepdim=True).clamp(max=0), grouped.amax(2, keepdim=True).clamp(min=0)
    scale = (high - low) / 15
    zero = (-low / scale).round()
    values = ((grouped / scale).round() + zero).clamp(0, 15).reshape(weight.shape)
    return {
        "qweight": _packed(values.T, _AWQ_ORDER),
        "qzeros": _packed(zero.squeeze(2).T, _AWQ_ORDER),
        "scales": scale.squeeze(2).T.half().contiguous(),
    }


def _gptq(weight: Any) -> dict[str, Any]:
    """qweight [in / 8, out], qzeros [groups, out / 8] (one less than the zero point), scales [groups, out]."""
    import torch

    values, scale = _symmetric(weight)
    groups = torch.arange(weight.shape[1]) // GROUP
    return {
        "qweight": _packed(values + 8).T.contiguous(),
        "qzeros": _packed(torch.full((scale.shape[1], weight.shape[0]), 7)),
        "scales": scale.T.half().contiguous(),
        "g_idx": groups.int(),
    }


def _compressed(form: str, weights: dict[str, Any], activations: dict[str, Any] | None) -> dict[str, Any]:
    integer = {"type": "int", "symmetric": True}
    group: dict[str, Any] = {"targets": ["Linear"], "weights": integer | {"dynamic": False} | weights}
    if activations is not None:
        group["input_activations"] = integer | {"dynamic": True} | activations
    return {
        "quant_method": "compressed-tensors",
        "format": form,
        "quantization_status": "compressed",
        "ignore": ["lm_head"],
        "config_groups": {"group_0": group},
    }


FORMS: dict[str, tuple[Callable[[Any], dict[str, Any]], dict[str, Any]]] = {
    "w8a8": (
        _w8a8,
        _compressed("int-quantized", {"num_bits": 8, "strategy": "channel"}, {"num_bits": 8, "strategy": "token"}),
    ),
    "w4a16": (
        _w4a16,
        _compressed("pack-quantized", {"num_bits": 4, "strategy": "group", "group_size": GROUP}, None),
    ),
    "awq": (
        _awq,
        {"quant_method": "awq", "bits": 4, "group_size": GROUP, "zero_point": True, "version": "gemm"},
    ),
    "gptq": (
        _gptq,
        {
            "quant_method": "gptq",
            "bits": 4,
            "group_size": GROUP,
            "sym": True,
            "desc_act": False,
            "checkpoint_format": "gptq",
        },
    ),
}
