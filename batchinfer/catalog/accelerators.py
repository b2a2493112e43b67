"""Facts about accelerators, as data with source and date: `gpus.yaml` beside this file."""

from __future__ import annotations

import datetime
import difflib
from functools import cache
from importlib import resources
from typing import Literal, Self, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, model_validator

from batchinfer.errors import ResourceError

Dtype = Literal["bf16", "fp16", "fp8", "int8", "fp4"]

MIB = 2**20
GIB = 2**30
"""Bytes. Sizes of memory are shown in these units, as GPU drivers and Kubernetes show them."""


class _Facts(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Price(_Facts):
    """USD for one device and hour, with provider, source and date."""

    provider: str
    sku: str
    usd_per_hour: float
    date: datetime.date
    source: str

    def __str__(self) -> str:
        return f"${self.usd_per_hour:g}/h, {self.provider} {self.sku}, {self.date}"


class Accelerator(_Facts):
    """One entry of `gpus.yaml`. Figures are None for the CPU, because they depend on the host.

    memory_bytes: what the driver shows, not the nominal size. bandwidth_gb_s: 10^9 bytes a second from device
    memory. tflops: peak dense 10^12 operations a second of the matrix units by dtype; a missing dtype is not
    fast. nvlink_gb_s: 10^9 bytes a second to neighbours, both directions together; None: PCIe.
    node_gpus: GPUs of one host. nvlink_domain: GPUs that NVLink joins, of several hosts if switches join these.
    internode_gb_s: 10^9 bytes a second of network, each direction, for each GPU.
    capability: CUDA compute capability x 10; None: not CUDA.
    unverified: fields, or dtypes of `tflops`, whose figure was not read in a source.
    """

    vendor: Literal["nvidia", "amd", "cpu"]
    node_gpus: int = Field(ge=1)
    nvlink_domain: int = Field(ge=1)
    capability: int | None = None
    memory_bytes: int | None = Field(default=None, gt=0)
    bandwidth_gb_s: float | None = Field(default=None, gt=0)
    tflops: dict[Dtype, float] = {}
    nvlink_gb_s: float | None = Field(default=None, gt=0)
    internode_gb_s: float | None = Field(default=None, gt=0)
    watts: float | None = Field(default=None, gt=0)
    unverified: tuple[str, ...] = ()
    source: str
    date: datetime.date
    prices: tuple[Price, ...]

    @model_validator(mode="after")
    def _marks_are_fields(self) -> Self:
        known = {*type(self).model_fields, *get_args(Dtype)}
        if unknown := set(self.unverified) - known:
            raise ValueError(f"unverified names no figure: {sorted(unknown)}")
        return self


def device_cost(device_seconds: float, price_per_gpu_hour: float) -> float:
    """Dollars for `device_seconds`, at a price in dollars for one device and hour. No other code computes a cost."""
    return device_seconds * price_per_gpu_hour / 3600


@cache
def accelerators() -> dict[str, Accelerator]:
    """Every accelerator of the catalog by name."""
    text = (resources.files(__package__) / "gpus.yaml").read_text(encoding="utf-8")
    return TypeAdapter(dict[str, Accelerator]).validate_python(yaml.safe_load(text))


def accelerator(name: str) -> Accelerator:
    """The entry of `name`, in any case. Raises ResourceError that names the nearest entries."""
    known = {entry.lower(): entry for entry in accelerators()}
    if name.lower() in known:
        return accelerators()[known[name.lower()]]
    longer = [entry for low, entry in known.items() if low.startswith(name.lower())]
    alike = [known[match] for match in difflib.get_close_matches(name.lower(), known, n=3, cutoff=0.5)]
    near = list(dict.fromkeys(longer + alike))
    remedy = f"did you mean {' or '.join(near[:3])}?" if near else f"the catalog has {', '.join(accelerators())}"
    raise ResourceError(f"unknown accelerator {name!r}", remedy)


def list_price(name: str) -> Price | None:
    """The catalog's price for the accelerator `name`, or None if it has none. Raises KeyError for a name that is not
    in the catalog."""
    prices = accelerators()[name].prices
    return prices[0] if prices else None
