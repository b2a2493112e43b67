"""Dollars for a person to read."""

from __future__ import annotations


def money(usd: float) -> str:
    """Dollars: two decimals from $10, four from 1 cent, below that three digits."""
    if usd >= 10:
        return f"${usd:,.2f}"
    return f"${usd:.4f}" if usd >= 0.01 or usd == 0 else f"${usd:.3g}"
