"""The input: which files there are, what rows they hold, and the rows of a shard."""

from batchinfer.source.files import input_entries
from batchinfer.source.inspect import build_manifest
from batchinfer.source.reader import read_shards

__all__ = ["build_manifest", "input_entries", "read_shards"]
