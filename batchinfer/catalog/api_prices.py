"""Prices of inference APIs, from the data of the package genai-prices: no request is made."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import date
from functools import cache
from importlib import metadata, resources
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict

from batchinfer.catalog.models import find_model


class ApiPrice(BaseModel):
    """What a provider asks for a model, in dollars for a million tokens."""

    model_config = ConfigDict(frozen=True, protected_namespaces=(), use_attribute_docstrings=True)

    provider: str
    """The provider."""
    model: str
    """Its name of the model."""
    same_model: bool
    """Whether that is the job's own model, served by a host."""
    input_usd: float
    """For a million tokens of prompts."""
    output_usd: float
    """For a million tokens of answers."""
    batch_input_usd: float | None = None
    """The same of its batch API. null: no batch price is known."""
    batch_output_usd: float | None = None
    """The same of its batch API. null: no batch price is known."""

    def usd(self, input_tokens: float, output_tokens: float) -> float:
        """Dollars for so many tokens."""
        return (input_tokens * self.input_usd + output_tokens * self.output_usd) / 1e6

    def batch_usd(self, input_tokens: float, output_tokens: float) -> float | None:
        """Dollars for so many tokens by the batch API; None if no batch price is known."""
        if self.batch_input_usd is None or self.batch_output_usd is None:
            return None
        return (input_tokens * self.batch_input_usd + output_tokens * self.batch_output_usd) / 1e6


@cache
def _wanted() -> dict[str, Any]:
    text = resources.files(__package__).joinpath("apis.yaml").read_text(encoding="utf-8")
    return dict(yaml.safe_load(text))


def api_prices(model: str) -> tuple[ApiPrice, ...]:
    """The prices beside a job with `model`: of the same model at its hosts, cheapest first, then of others."""
    entry = find_model(model)
    names = [entry.repository, *entry.aliases] if entry is not None else [model] if "/" in model else []
    hosted = [found for host in _wanted()["hosts"] if (found := _first(host, names)) is not None]
    hosted.sort(key=lambda price: price.input_usd + price.output_usd)
    others = [(provider, name) for provider, models in _wanted()["beside"].items() for name in models]
    return (*hosted, *(found for one in others if (found := _price(*one, same_model=False)) is not None))


def _first(host: str, names: Iterable[str]) -> ApiPrice | None:
    for name in names:
        for spelled in dict.fromkeys((name, name.lower())):
            if (found := _price(host, spelled, same_model=True)) is not None:
                return found
    return None


@cache
def _price(provider: str, model: str, same_model: bool) -> ApiPrice | None:
    """None for a model that the provider does not have, or has for nothing."""
    usual = _asked(provider, model, {})
    if usual is None or not sum(usual[1:]):
        return None
    batch = _asked(provider, model, {"processing": "batch"})
    has_batch = batch is not None and batch != usual
    return ApiPrice(
        provider=provider.removeprefix("huggingface_"),
        model=usual[0],
        same_model=same_model,
        input_usd=usual[1],
        output_usd=usual[2],
        batch_input_usd=batch[1] if batch is not None and has_batch else None,
        batch_output_usd=batch[2] if batch is not None and has_batch else None,
    )


def _asked(provider: str, model: str, context: dict[str, str]) -> tuple[str, float, float] | None:
    """The provider's name of the model, and dollars for a million tokens in and out, of short prompts."""
    from genai_prices import Usage, calc_price

    # A thousand tokens: some models cost more if one prompt is long.
    used = Usage(input_tokens=1000, output_tokens=1000)
    try:
        made = calc_price(used, model, provider_id=provider, price_context=context)
    except LookupError:
        return None
    return made.model.id, float(made.input_price) * 1000, float(made.output_price) * 1000


@cache
def prices_source() -> str:
    """Where the prices are from, with the day of the newest one."""
    from genai_prices.data_snapshot import get_snapshot

    starts: list[date] = []
    for provider in get_snapshot().providers:
        for model in provider.models:
            for conditional in model.prices if isinstance(model.prices, list) else ():
                starts.append(getattr(conditional.constraint, "start_date", date.min))
    newest = max((day for day in starts if day <= date.today()), default=None)
    told = "" if newest is None else f", whose newest price is of {newest}"
    return f"genai-prices {metadata.version('genai-prices')}{told}"
