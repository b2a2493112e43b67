"""Dollars for a person to read."""

from __future__ import annotations


def in_words(count: float) -> str:
    """A large number to three digits, as `7.79 billion`."""
    for limit, unit in ((1e12, "trillion"), (1e9, "billion"), (1e6, "million")):
        if count >= limit:
            return f"{count / limit:.3g} {unit}"
    return f"{count:,.0f}"


def money(usd: float) -> str:
    """Dollars: two decimals from $10, four from 1 cent, below that three digits."""
    if usd >= 10:
        return f"${usd:,.2f}"
    return f"${usd:.4f}" if usd >= 0.01 or usd == 0 else f"${usd:.3g}"
