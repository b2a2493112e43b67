"""Distributed batch inference: every shard runs exactly once and is accounted for."""

__version__ = "0.1.0"
