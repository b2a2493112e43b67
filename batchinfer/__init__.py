"""Distributed batch inference: shards on engines exactly once, and an account of each."""

__version__ = "0.1.0"
