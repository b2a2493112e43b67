"""Which weights run: the checkpoint that the user named, one published beside it, or one made while loading. Pure.

`quantization: auto` puts quality first. The named checkpoint is taken unchanged if it fits the present GPUs, even if
fewer bits would be cheaper: nobody loses quality without asking. If the named checkpoint does not fit, or the GPU
cannot run it, the best fitting quantization is taken, and the plan says so. That is a published checkpoint, or one
that vLLM makes while loading. 8 bits come before 4, and among equal bits those that the GPU computes fast. A quantized
checkpoint has the licence of its model, so the licence never decides.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass

from batchinfer.catalog.accelerators import Accelerator
from batchinfer.catalog.quantization import QUANTIZATIONS, Quantization, QuantizationName
from batchinfer.errors import ModelError, ResourceError, SpecError

AUTO = "auto"

_TWINS = {"int8": "w8a8", "w8a8": "int8"}
"""Two names for the same weights."""

_QUALITY: tuple[QuantizationName, ...] = ("none", "fp8", "w8a8", "int8", "mxfp4", "nvfp4", "w4a16", "awq", "gptq")
"""Best first, roughly by published accuracy: 8 bits before 4, then formats with finer scales first."""

_CPU = ("none", "w8a8", "int8", "w4a16", "awq", "gptq")
"""What vLLM 0.32 has CPU kernels for without AMX (model_executor/kernels/linear: CPUInt8ScaledMM, CPUWNA16)."""

_AMD = ("none", "fp8", "w8a8", "int8", "w4a16", "awq", "gptq", "mxfp4")
"""vLLM 0.32, platforms/rocm.py, `supported_quantization`; w8a8 and w4a16 are its compressed-tensors."""

_INT8_BEFORE = 100
"""Compute capability x 10 from which vLLM's CUTLASS kernels fail: "Int8 not supported on SM100. Use FP8 quantization
instead, or run on older arch"."""


@dataclass(frozen=True, slots=True)
class Weights:
    """One way to have the model's weights: `checkpoint` is loaded, `online` says that the engine quantizes it,
    `named` that the user named it, `verified` that a source says that the repository exists."""

    quantization: Quantization
    checkpoint: str
    online: bool = False
    named: bool = False
    verified: bool = True


@dataclass(frozen=True, slots=True)
class Source:
    """What the user named: `name` for messages, `checkpoint` to load, and `native`, its quantization. `published`:
    other repositories of the model by quantization; those in `unverified` may not exist."""

    name: str
    checkpoint: str
    native: QuantizationName
    published: Mapping[str, str]
    unverified: frozenset[str] = frozenset()


def is_fast(quantization: Quantization, accelerator: Accelerator) -> bool:
    """Whether the GPU computes in the quantized type, faster than in 16 bits; otherwise it is weight-only."""
    rates = accelerator.tflops
    if quantization.compute == "16bit":
        return True
    base = rates.get("bf16", rates.get("fp16", 0.0))
    return rates.get(quantization.compute, 0.0) > base and runs_not(quantization, accelerator) is None


def runs_not(quantization: Quantization, accelerator: Accelerator) -> str | None:
    """Why the accelerator cannot run the quantization; None if it can."""
    name = quantization.name
    if accelerator.vendor == "cpu":
        if name not in _CPU:
            return f"vLLM has no {name} kernels for every CPU: theirs need AMX, or a GPU"
        return None
    if accelerator.vendor == "amd":
        return None if name in _AMD else f"vLLM has no {name} kernels for AMD GPUs"
    level = accelerator.capability
    if level is None:
        return None
    if quantization.needs is not None and level < quantization.needs:
        return f"{name} needs compute capability {quantization.needs / 10:g}, the GPU has {level / 10:g}"
    if quantization.compute == "int8" and level >= _INT8_BEFORE:
        return "vLLM's int8 kernels end with Hopper: on Blackwell GPUs take fp8"
    return None


def usable(source: Source, asked: str, accelerator: Accelerator) -> list[Weights]:
    """The weights that may run, best first: exactly one if `asked` names a quantization.

    Raises SpecError for an unknown name, ModelError if there is no such checkpoint or it is quantized in another
    way, ResourceError if the accelerator cannot run it.
    """
    if asked != AUTO:
        weights = explicit(source, asked)
        if reason := runs_not(weights.quantization, accelerator):
            raise ResourceError(
                f"model.quantization {asked} cannot run on {_device(accelerator)}: {reason}",
                f"set model.quantization to one that can: {_runnable(source, accelerator)}",
            )
        return [weights]
    fitting = [weights for weights in by_quality(source) if runs_not(weights.quantization, accelerator) is None]
    if not fitting:
        reason = runs_not(QUANTIZATIONS[source.native], accelerator)
        raise ResourceError(
            f"{source.name} is a checkpoint in {source.native}, which cannot run on {_device(accelerator)}: {reason}",
            "take another GPU, or a checkpoint of the same model in 16 bits",
        )
    # Among equal bits, what the GPU computes fast: on an A100 int8 before fp8, which is weight-only there.
    return sorted(fitting, key=lambda w: (*_standing(w), not is_fast(w.quantization, accelerator)))


def _standing(weights: Weights) -> tuple[bool, bool, int]:
    """A sort key: the named weights, other verified ones, unverified ones; of each, more bits first. Bits are rounded
    to a multiple of 4, so that the few bits of a format's scales do not decide."""
    bits = round(-weights.quantization.bits / 4)
    return not weights.named, not weights.verified, bits


def explicit(source: Source, asked: str) -> Weights:
    """The weights in the quantization that was asked for; raises SpecError or ModelError."""
    if asked not in QUANTIZATIONS:
        near = difflib.get_close_matches(asked, [AUTO, *QUANTIZATIONS], n=1)
        raise SpecError(
            f"model.quantization: there is no {asked!r}",
            f"did you mean {near[0]}?" if near else f"use one of auto, {', '.join(QUANTIZATIONS)}",
        )
    quantization = QUANTIZATIONS[asked]
    if asked == source.native or _TWINS.get(asked) == source.native:
        return Weights(quantization, source.checkpoint, named=True)
    published = source.published.get(asked) or source.published.get(_TWINS.get(asked, ""))
    if published is not None:
        return Weights(quantization, published, verified=asked not in source.unverified)
    if source.native != "none":
        raise ModelError(
            f"{source.name} is a checkpoint in {source.native}, not in {asked}",
            f"set model.quantization to {source.native} or auto, or model.source to a checkpoint in {asked}",
        )
    if quantization.online:
        return Weights(quantization, source.checkpoint, online=True)
    known = ", ".join(f"{name} ({repository})" for name, repository in source.published.items() if name != "none")
    raise ModelError(
        f"no {asked} checkpoint of {source.name} is known, and only fp8 is made from 16 bits on loading",
        f"there are: {known}" if known else "point model.source at one, or set model.quantization: fp8",
    )


def by_quality(source: Source) -> list[Weights]:
    """The weights of the model by falling quality: the named checkpoint, then published ones and those that vLLM can
    make. None is above the quality of the named one; repositories that may not exist come last."""
    made = [Weights(QUANTIZATIONS[source.native], source.checkpoint, named=True)]
    doubtful = []
    for name in _QUALITY[_QUALITY.index(source.native) + 1 :]:
        quantization = QUANTIZATIONS[name]
        if name in source.published and name not in source.unverified:
            made.append(Weights(quantization, source.published[name]))
        elif quantization.online and source.native == "none":
            made.append(Weights(quantization, source.checkpoint, online=True))
        elif name in source.published:
            doubtful.append(Weights(quantization, source.published[name], verified=False))
    return made + doubtful


def _runnable(source: Source, accelerator: Accelerator) -> str:
    names = [w.quantization.name for w in by_quality(source) if runs_not(w.quantization, accelerator) is None]
    return ", ".join([*names, AUTO]) if names else AUTO


def _device(accelerator: Accelerator) -> str:
    return "a CPU" if accelerator.vendor == "cpu" else "this GPU"
