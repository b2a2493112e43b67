"""Which options of a spec's `storage` apply to a URI."""

from __future__ import annotations

from collections.abc import Mapping

from batchinfer.jobspec import StoreSpec
from batchinfer.storage.base import join

Stores = Mapping[str, StoreSpec]
"""The `storage` key of a spec: by prefix of URIs, how to reach their store."""


def options_for(uri: str, stores: Stores | None) -> StoreSpec:
    """The options of the longest prefix in `stores` that fits; those of the AWS environment without one."""
    fitting = [prefix for prefix in stores or () if _covers(prefix.rstrip("/"), uri)]
    return (stores or {})[max(fitting, key=len)] if fitting else StoreSpec()


def _covers(prefix: str, uri: str) -> bool:
    return prefix == "s3:" or join(uri, "").startswith(f"{prefix}/")
