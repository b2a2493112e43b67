"""The quantizations that vLLM runs: bits of a weight, the type of the computation, and the GPUs that support them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

ComputeType = Literal["16bit", "fp8", "int8", "fp4"]

QuantizationName = Literal["none", "fp8", "int8", "w8a8", "awq", "gptq", "w4a16", "nvfp4", "mxfp4"]


@dataclass(frozen=True, slots=True)
class Quantization:
    """One way to store weights.

    bits: bits of a quantized weight, with its share of scales and zero points.
    experts_only: attention stays in 16 bits (MXFP4).
    compute: type of the matrix products if the GPU is fast in it; otherwise they run in 16 bits (weight-only).
    online: vLLM can quantize a 16-bit checkpoint while loading, so no quantized checkpoint has to be published.
    needs: the smallest CUDA compute capability x 10 that runs the quantization; None: any, and CPUs.
    """

    name: QuantizationName
    bits: float
    compute: ComputeType
    experts_only: bool = False
    online: bool = False
    needs: int | None = None


# Scales: fp8 has one a channel, or a 32-bit scale for a block of 128 x 128 weights, under 0.01 bits a weight.
# A group of 128 with a 16-bit scale and a 4-bit zero point adds 20/128 bits. NVFP4 has an 8-bit scale for 16
# weights, MXFP4 one for 32. Capabilities: vLLM's supported-hardware table (0.32).
QUANTIZATIONS: dict[str, Quantization] = {
    q.name: q
    for q in (
        Quantization("none", 16.0, "16bit"),
        Quantization("fp8", 8.0, "fp8", online=True, needs=75),
        Quantization("int8", 8.0, "int8"),
        Quantization("w8a8", 8.0, "int8"),
        Quantization("awq", 4 + 20 / 128, "16bit", needs=75),
        Quantization("gptq", 4 + 20 / 128, "16bit", needs=60),
        Quantization("w4a16", 4 + 16 / 128, "16bit", needs=75),
        Quantization("nvfp4", 4.5, "fp4", needs=75),
        Quantization("mxfp4", 4.25, "fp4", experts_only=True, needs=80),
    )
}

FOUR_BIT_GROUPS: tuple[QuantizationName, ...] = ("awq", "gptq", "w4a16")
"""Integers of 4 bits, with a scale for each group of 128: kernels need whole groups, on a CPU also AVX-512."""
