"""Facts about accelerators, as data with source and date: `gpus.yaml` beside this file."""

from __future__ import annotations

import datetime
from functools import cache
from importlib import resources

import yaml
from pydantic import BaseModel, ConfigDict, TypeAdapter


class Price(BaseModel):
    """What one device costs for an hour in USD, who said so and when."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    provider: str
    sku: str
    usd_per_hour: float
    date: datetime.date
    source: str

    def __str__(self) -> str:
        return f"${self.usd_per_hour:g}/h, {self.provider} {self.sku}, {self.date}"


class Accelerator(BaseModel):
    """One entry of `gpus.yaml`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    prices: tuple[Price, ...]


@cache
def accelerators() -> dict[str, Accelerator]:
    """Every accelerator of the catalog by name."""
    text = (resources.files(__package__) / "gpus.yaml").read_text(encoding="utf-8")
    return TypeAdapter(dict[str, Accelerator]).validate_python(yaml.safe_load(text))


def list_price(accelerator: str) -> Price | None:
    """The catalog's price for `accelerator`, or None where it knows none."""
    prices = accelerators()[accelerator].prices
    return prices[0] if prices else None
