"""What APIs would ask for the same tokens, for a terminal."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.table import Table

from batchinfer.accounting.break_even import ApiComparison, volume
from batchinfer.accounting.money import in_words, money


def render_apis(made: ApiComparison) -> RenderableType:
    """A line an API, and what the figures assume."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("the same tokens at", overflow="fold")
    for name in ("list", "batch", "$ per M tokens", "own GPUs win from", "batch"):
        table.add_column(name, justify="right", no_wrap=True)
    for one in made.apis:
        table.add_row(
            f"{one.price.provider} {one.price.model}" + (" (the same model)" if one.price.same_model else ""),
            money(one.cost_usd),
            "" if one.batch_cost_usd is None else money(one.batch_cost_usd),
            f"{one.usd_per_million_tokens:.3g}",
            volume(one.break_even),
            volume(one.batch_break_even),
        )
    return Group(table, *assumptions(made))


def assumptions(made: ApiComparison) -> list[str]:
    """What the figures of break-even rest on, a sentence a line."""
    lines = []
    if made.own_usd_per_month and made.own_tokens_per_month:
        lines.append(
            f"own GPUs: one replica rented all month for {money(made.own_usd_per_month)}, which can do "
            f"{in_words(made.own_tokens_per_month)} tokens; a run costs what it says above"
        )
    lines.append(f"prices: {made.source}; other tokenizers count the same text differently")
    return lines
