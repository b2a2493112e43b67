"""The input: makes a manifest of shards from a URI, and reads the rows of each shard."""

from batchinfer.input.files import input_entries
from batchinfer.input.inspect import build_manifest, whole_schema
from batchinfer.input.reader import read_shards

__all__ = ["build_manifest", "input_entries", "read_shards", "whole_schema"]
