"""The catalog as tables for a terminal and as JSON."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from rich.table import Table

from batchinfer.catalog import GIB, Accelerator, Model


def models_document(models: Iterable[Model]) -> list[dict[str, Any]]:
    """The JSON of `batchinfer models --json`: the catalog's facts and the parameter counts computed from the shapes."""
    return [
        {
            **model.model_dump(mode="json", exclude={"licence"}),
            "architecture": model.shape.architecture,
            "parameters": model.shape.parameters().total,
            "active_parameters": model.shape.parameters().active,
            "license": model.licence.title,
            "license_forbids": model.licence.forbids,
            "commercial_use": model.licence.commercial_use,
            "context": model.shape.context,
        }
        for model in models
    ]


def models_table(models: Iterable[Model]) -> Table:
    """A line a model. Active parameters are shown only for mixtures of experts."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    figures = ("parameters", "active", "context")
    for name in ("name", "repository", *figures, "licence", "quantized as", "engine"):
        whole = name in ("name", "repository", "parameters")
        table.add_column(name, justify="right" if name in figures else "left", no_wrap=whole)
    for model in models:
        count = model.shape.parameters()
        mixture = model.shape.experts is not None
        table.add_row(
            model.name,
            model.repository,
            _billions(count.total),
            _billions(count.active) if mixture else "",
            f"{model.shape.context:,}",
            model.licence.title + (" (gated)" if model.gated else ""),
            ", ".join([*([model.native] if model.native != "none" else []), *model.checkpoints]),
            f"until vLLM {model.engine.until}: use {model.replacement}" if model.engine.until else "",
        )
    return table


def _billions(parameters: int) -> str:
    return f"{parameters / 1e9:,.2f}B" if parameters >= 1e8 else f"{parameters / 1e6:,.1f}M"


def accelerators_document(accelerators: Mapping[str, Accelerator]) -> list[dict[str, Any]]:
    """The JSON of `batchinfer gpus --json`."""
    return [{"name": name, **facts.model_dump(mode="json")} for name, facts in accelerators.items()]


def accelerators_table(accelerators: Mapping[str, Accelerator]) -> Table:
    """A line an accelerator, with the price that a run uses if the spec has none.

    These prices are of several providers, so they rank providers as much as GPUs. For a fair comparison, another
    column has the prices of the one provider with prices for most accelerators.
    """
    provider = _common_provider(accelerators.values())
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in (
        "name",
        "memory",
        "GB/s",
        "bf16",
        "fp8",
        "int8",
        "fp4",
        "NVLink GB/s",
        "node",
        "$ an hour",
        "price of",
        f"$ an hour at {provider}",
    ):
        table.add_column(name, justify="left" if name in ("name", "price of") else "right", no_wrap=True)
    for name, facts in accelerators.items():
        price = facts.prices[0] if facts.prices else None
        half = facts.tflops.get("bf16", facts.tflops.get("fp16"))
        table.add_row(
            name,
            f"{facts.memory_bytes / GIB:,.1f} GiB" if facts.memory_bytes else "",
            _figure(facts.bandwidth_gb_s),
            _figure(half),
            *(_figure(facts.tflops.get(dtype)) for dtype in ("fp8", "int8", "fp4")),
            _figure(facts.nvlink_gb_s),
            str(facts.node_gpus) if facts.vendor != "cpu" else "",
            f"{price.usd_per_hour:.4g}" if price else "",
            f"{price.provider} {price.sku}, {price.date}" if price else "none known",
            next((f"{p.usd_per_hour:.4g}" for p in facts.prices if p.provider == provider), ""),
        )
    return table


def _common_provider(accelerators: Iterable[Accelerator]) -> str:
    """The provider with a price for most accelerators; if several tie, the first by name."""
    counts = Counter(name for facts in accelerators for name in {price.provider for price in facts.prices})
    return min(counts, key=lambda name: (-counts[name], name)) if counts else ""


def _figure(value: float | None) -> str:
    return f"{value:,.0f}" if value is not None else ""
