"""Where files live: list, read, create-if-absent, compare-and-swap. The only place that knows a store.

A commit needs one promise from a store: `create` makes the whole object or nothing, and of many
callers exactly one is told True. The local file system gives it by linking a synced temporary file,
S3 by a conditional write.
"""

from __future__ import annotations

from collections.abc import Mapping

from batchinfer.errors import UserError
from batchinfer.jobspec import StoreSpec
from batchinfer.storage.base import (
    REQUESTS_AHEAD,
    REQUESTS_AT_ONCE,
    Entry,
    Storage,
    delete_many,
    input_changed,
    is_temporary,
    join,
    read_many,
    temporary_name,
)
from batchinfer.storage.local import LocalStorage, local_path
from batchinfer.storage.patience import impatient

__all__ = [
    "REQUESTS_AHEAD",
    "REQUESTS_AT_ONCE",
    "Entry",
    "LocalStorage",
    "Storage",
    "Stores",
    "delete_many",
    "impatient",
    "input_changed",
    "is_temporary",
    "join",
    "local_path",
    "normal_uri",
    "read_many",
    "storage_for",
    "temporary_name",
]

Stores = Mapping[str, StoreSpec]
"""The `storage` key of a spec: how to reach the stores of URIs that begin so."""


def storage_for(uri: str, stores: Stores | None = None) -> Storage:
    """The store that `uri` lives in, reached as the longest of `stores` that it begins with says."""
    scheme, separator, _ = uri.partition("://")
    if not separator or scheme == "file":
        return LocalStorage()
    if scheme != "s3":
        remedy = f"write s3://{uri.partition('://')[2]}" if scheme in ("s3a", "s3n") else "use s3:// or a local path"
        raise UserError(f"{uri}: {scheme}:// is not a store that this version reads or writes", remedy)
    # Here, and not above: boto3 takes long to import, and a local run never needs it.
    from batchinfer.storage.s3 import S3Storage

    fitting = [prefix for prefix in stores or () if _covers(prefix.rstrip("/"), uri)]
    return S3Storage((stores or {})[max(fitting, key=len)] if fitting else StoreSpec())


def _covers(prefix: str, uri: str) -> bool:
    return prefix == "s3:" or join(uri, "").startswith(f"{prefix}/")


def normal_uri(uri: str) -> str:
    """The one name of a place: an absolute path, or an s3:// URI without a slash at its end."""
    if "://" in uri and not uri.startswith("file://"):
        return uri.rstrip("/")
    return local_path(uri)
